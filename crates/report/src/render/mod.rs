//! Writing a [`Table`]: one module per format. What every format says of the table beside its numbers stands here.

pub(crate) mod frame;
mod json;
mod latex;
mod markdown;
mod text;
mod wide;

#[cfg(test)]
mod tests;

use tsbd_experiment::Setting;

use crate::error::Result;
use crate::format::{Emphasis, Format};
use crate::table::{Table, Unit, Value};

impl Table {
    /// The table for a terminal. Columns that do not fit beside each other in `width` letters make blocks below each other;
    /// without a width, as in a file, all stand side by side.
    pub fn text(&self, emphasis: Emphasis, width: Option<usize>) -> String {
        text::render(self, emphasis, width)
    }

    /// The table in a format, as bytes; text formats are UTF-8 and end in a newline. `emphasis` matters to
    /// [`Format::Text`] alone.
    pub fn render(&self, format: Format, emphasis: Emphasis) -> Result<Vec<u8>> {
        match format {
            Format::Text => Ok(self.text(emphasis, None).into_bytes()),
            Format::Markdown => Ok(markdown::render(self).into_bytes()),
            Format::Latex => Ok(latex::render(self).into_bytes()),
            Format::Json => json::render(self),
            Format::Csv => frame::csv(&wide::texts(self)?),
            Format::Parquet => frame::parquet(&wide::numbers(self)?),
        }
    }

    /// `profile quick, training.epochs = 5 · data CIFAR-10 · model PreAct-ResNet18, width 16 · seed 0 · 8 of 8 cells`.
    pub(crate) fn summary(&self) -> String {
        let count = self.count;
        let mut cells = format!("{} of {} cells done", count.done, count.cells);
        if count.missing > 0 {
            cells += &format!(", {} missing", count.missing);
        }
        if count.failed > 0 {
            cells += &format!(", {} failed", count.failed);
        }
        let profile = configured(&self.profile, &self.settings);
        format!("{profile} · {} · {} · {cells}", self.material, named_seeds(&self.seeds))
    }

    /// Whether a row or a column is the model without a defense.
    fn has_undefended(&self) -> bool {
        let names = |axis: &str| match axis {
            _ if axis == self.column_axis => self.columns.iter().map(|column| &column.name).collect(),
            _ if axis == self.row_axis => {
                self.panels.iter().flat_map(|panel| &panel.lines).map(|line| &line.name).collect()
            }
            _ => Vec::new(),
        };
        names("defense").into_iter().any(|name| name.as_deref() == Some("none"))
    }

    /// Sentences on how to read the table, as far as they apply. `best` says how the best value is marked.
    pub(crate) fn notes(&self, best: &str) -> Vec<String> {
        let entries =
            || self.panels.iter().flat_map(|panel| self.lines(panel)).flat_map(|line| line.entries.iter().flatten());
        let has = |wanted: fn(&Value) -> bool| entries().any(|entry| wanted(&entry.value));
        let mut notes = Vec::new();
        let mut values = match self.unit {
            Unit::Percent => "In percent",
            Unit::Plain => "Numbers as they are",
            Unit::Mixed => "Rates in percent, numbers of measurements as they are",
        }
        .to_owned();
        if self.seeds.len() > 1 {
            values += ", mean ± sample standard deviation over the seeds";
        }
        if entries().any(|entry| entry.best) {
            values += &format!("; {best} where every rival is done");
            if self.has_undefended() {
                values += ", the undefended model not competing";
            }
        }
        notes.push(values + ".");
        if has(|value| matches!(value, Value::Measured { seeds, of, .. } if seeds < of)) {
            notes.push("(k/n): only k of n seeds have this value; it enters no average.".into());
        }
        if self.panels.iter().any(|panel| !panel.averages.is_empty()) {
            notes.push("Average: over the attacks (not the clean model), only where all of them are done.".into());
        }
        notes.extend(self.definitions.iter().cloned());
        notes.extend(self.source.as_ref().map(|source| format!("Published: {source}.")));
        notes
    }
}

/// `profile quick, training.epochs = 5`: the profile, and what `--set` wrote over it and the file.
pub(crate) fn configured(profile: &str, settings: &[Setting]) -> String {
    let settings = settings.iter().map(|setting| format!("{} = {}", setting.key, setting.value));
    std::iter::once(format!("profile {profile}")).chain(settings).collect::<Vec<_>>().join(", ")
}

/// `seed 0`, or `seeds 0, 1, 2`; the seeds ascend.
pub(crate) fn named_seeds(seeds: &[u64]) -> String {
    match seeds {
        // Hundreds of numbers in a row say no more than the first and the last.
        [first, .., last] if seeds.len() > 20 && last - first + 1 == seeds.len() as u64 => {
            format!("seeds {first} to {last}")
        }
        [seed] => format!("seed {seed}"),
        seeds => format!("seeds {}", seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// A number as every table prints it.
pub(crate) fn decimals(number: f64) -> String {
    format!("{number:.2}")
}

/// A value with two decimals; `±` stands between mean and deviation.
pub(crate) fn printed(value: &Value, plus_minus: &str) -> String {
    match value {
        Value::Measured { mean, deviation, seeds, of } => {
            let mut text = decimals(*mean);
            if let Some(deviation) = deviation {
                text += &format!("{plus_minus}{}", decimals(*deviation));
            }
            if seeds < of {
                text += &format!(" ({seeds}/{of})");
            }
            text
        }
        Value::Missing => "missing".into(),
        Value::Failed => "failed".into(),
        Value::Undefined => "–".into(),
    }
}

/// The name of the first column of a table.
pub(crate) fn row_head(axis: &str) -> String {
    match axis {
        "attack" => "Attack".into(),
        "defense" => "Defense".into(),
        "measure" => "Measurement".into(),
        "dataset" => "Data set".into(),
        "model" => "Model".into(),
        "seed" => "Seed".into(),
        other => other.to_owned(),
    }
}
