//! `--set a.b=c`: one value from the command line, the uppermost layer.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::diagnostic::{Place, Problems, SourceText};
use crate::document::{Content, Node, Table, lookup, parse, set};

/// One `--set KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Dotted key, as in an experiment file.
    pub key: String,
    /// The value as TOML. A text may stand without quotes.
    pub value: String,
}

impl Setting {
    /// A setting of `key` to `value`.
    pub fn new(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { key: key.into(), value: value.into() }
    }

    /// Whether results made with it are others than without. Titles, seeds and what tables and figures show can be read off
    /// these themselves, and how jobs are queued changes nothing.
    pub(crate) fn changes_results(&self) -> bool {
        let section = self.key.split('.').next().unwrap_or_default().trim();
        !["title", "seeds", "profile", "table", "figure", "slurm"].contains(&section)
    }

    /// The setting as a document of one value, whose places point into `KEY=VALUE`.
    pub(crate) fn parse(&self, problems: &mut Problems) -> Table {
        let source = |value: &str| Arc::new(SourceText { name: "--set".into(), text: format!("{}={value}", self.key) });
        // The key alone, so that an error in it is told as such.
        let with_number = source("0");
        let before = problems.len();
        let mut document = parse(&with_number, problems);
        if problems.len() > before {
            return Table::new();
        }
        let whole = source(&self.value);
        let mut errors = Problems::default();
        let parsed = parse(&whole, &mut errors);
        if errors.is_empty() {
            return parsed;
        }
        // Where TOML wants quotes and the shell has taken them, the value is taken as text; what begins like a list,
        // a table or a text is an error as it is.
        let start = self.key.len() + 1;
        if self.value.trim_start().starts_with(['[', '{', '"', '\'']) {
            parse(&whole, problems);
            return Table::new();
        }
        let place = Place { span: start..whole.text.len(), source: Arc::clone(&whole) };
        let path = dotted(&document);
        if let Some(node) = lookup(&document, &path) {
            let key_place = Place { source: whole, span: node.key_place.span.clone() };
            let text = Node { content: Content::Text(self.value.trim().to_owned()), place, key_place };
            set(&mut document, &path, text);
        }
        document
    }
}

/// The path of the only value of a document.
fn dotted(table: &Table) -> String {
    match table.iter().next() {
        None => String::new(),
        Some((key, Node { content: Content::Table(inner), .. })) => format!("{key}.{}", dotted(inner)),
        Some((key, _)) => key.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::document::table_to_json;

    fn read(key: &str, value: &str) -> Result<Value, Problems> {
        let mut problems = Problems::default();
        let table = Setting::new(key, value).parse(&mut problems);
        if problems.is_empty() { Ok(table_to_json(&table)) } else { Err(problems) }
    }

    #[test]
    fn a_value_is_toml_and_a_text_needs_no_quotes() {
        assert_eq!(read("attack.poisoning_ratio", "0.05").unwrap(), json!({"attack": {"poisoning_ratio": 0.05}}));
        assert_eq!(read("data.name", "shapes").unwrap(), json!({"data": {"name": "shapes"}}));
        assert_eq!(read("data.name", "\"shapes\"").unwrap(), json!({"data": {"name": "shapes"}}));
        assert_eq!(read("grid.attack", "[\"badnets\"]").unwrap(), json!({"grid": {"attack": ["badnets"]}}));
        assert_eq!(
            read("attacks.blended.trigger", "a/b.png").unwrap(),
            json!({"attacks": {"blended": {"trigger": "a/b.png"}}})
        );
    }

    #[test]
    fn a_broken_key_or_list_is_an_error_that_points_into_the_argument() {
        let problems = read("grid.attack", "[badnets]").unwrap_err();
        assert!(format!("{problems:?}").contains("grid.attack=[badnets]"), "{problems:?}");
        assert!(read("a..b", "1").is_err());
    }
}
