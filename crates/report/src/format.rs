//! The formats a table can be written in.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// What a table is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For a terminal.
    #[default]
    Text,
    /// A Markdown table.
    Markdown,
    /// Comma-separated values with one line of names.
    Csv,
    /// A `table` environment with booktabs rules.
    Latex,
    /// Apache Parquet.
    Parquet,
    /// One JSON value.
    Json,
}

impl Format {
    /// Every format, in the order of the help.
    pub const ALL: [Self; 6] = [Self::Text, Self::Markdown, Self::Csv, Self::Latex, Self::Parquet, Self::Json];

    /// The name on the command line, which is also the usual extension of a file: `text`, `md`, `csv`, `tex`,
    /// `parquet`, `json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Markdown => "md",
            Self::Csv => "csv",
            Self::Latex => "tex",
            Self::Parquet => "parquet",
            Self::Json => "json",
        }
    }

    /// Whether it is not meant for a terminal.
    pub const fn is_binary(self) -> bool {
        matches!(self, Self::Parquet)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|format| format.name() == text)
            .ok_or_else(|| Error::UnknownFormat { given: text.to_owned(), known: Self::ALL.map(Self::name).join(", ") })
    }
}

/// How the text form marks the best value of a row. The caller decides (is it a terminal? is `NO_COLOR` set?), so that
/// the same arguments always give the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Emphasis {
    /// A star behind the value: for pipes, logs and terminals without styles.
    #[default]
    Star,
    /// ANSI bold.
    Bold,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_found_by_its_name() {
        for format in Format::ALL {
            assert_eq!(format.name().parse::<Format>().unwrap(), format);
        }
    }

    #[test]
    fn an_unknown_format_is_refused_with_the_known_ones() {
        let message = "xlsx".parse::<Format>().unwrap_err().to_string();
        assert_eq!(message, "`xlsx` is no table format: use one of text, md, csv, tex, parquet, json");
    }
}
