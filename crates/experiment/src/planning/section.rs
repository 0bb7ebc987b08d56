//! Typed reading of one table: every value that is wrong is told with its place, its key, what it is and what it may be.

use crate::diagnostic::{Place, Problems, suggest};
use crate::document::{Content, Node, Table, lookup};

/// One table of an experiment, e.g. `[training]`, which may be absent.
pub(super) struct Section<'a> {
    path: &'static str,
    table: Option<&'a Table>,
    /// Where to point for a value that is missing.
    place: Place,
}

impl<'a> Section<'a> {
    /// The table at `path`; tells what is no table and keys that are not in `known`.
    pub fn open(root: &'a Table, path: &'static str, known: &[&str], place: &Place, problems: &mut Problems) -> Self {
        let node = lookup(root, path);
        let table = node.and_then(|node| require_table(node, path, problems));
        if let Some(table) = table {
            refuse_unknown(table, path, known, problems);
        }
        let place = node.map_or_else(|| place.clone(), |node| node.key_place.clone());
        Self { path, table, place }
    }

    /// The value of a key.
    pub fn get(&self, name: &str) -> Option<&'a Node> {
        self.table?.get(name)
    }

    /// Dotted key.
    pub fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.path)
    }

    /// Where the value stands, or the section, or what made it necessary.
    pub fn place(&self, name: &str) -> Place {
        self.get(name).map_or_else(|| self.place.clone(), |node| node.place.clone())
    }

    /// Tells that the value of a key cannot be used.
    pub fn refuse(&self, name: &str, reason: impl Into<String>, hint: impl Into<String>, problems: &mut Problems) {
        let written = self.get(name).map(Node::written);
        problems.add(&self.place(name), self.key(name), written, reason, hint);
    }

    pub fn text(&self, name: &str, problems: &mut Problems) -> Option<String> {
        match &self.get(name)?.content {
            Content::Text(text) => Some(text.clone()),
            _ => self.wrong_kind(name, "a text in quotes", problems),
        }
    }

    pub fn truth(&self, name: &str, problems: &mut Problems) -> Option<bool> {
        match self.get(name)?.content {
            Content::Boolean(truth) => Some(truth),
            _ => self.wrong_kind(name, "true or false", problems),
        }
    }

    pub fn integer(&self, name: &str, least: usize, problems: &mut Problems) -> Option<usize> {
        let node = self.get(name)?;
        let Content::Integer(number) = node.content else {
            return self.wrong_kind(name, "a whole number", problems);
        };
        match usize::try_from(number) {
            Ok(number) if number >= least => Some(number),
            _ => {
                self.refuse(name, "out of range", format!("give a whole number of at least {least}"), problems);
                None
            }
        }
    }

    pub fn number(
        &self,
        name: &str,
        allowed: impl Fn(f64) -> bool,
        range: &str,
        problems: &mut Problems,
    ) -> Option<f64> {
        let number = match self.get(name)?.content {
            Content::Integer(number) => number as f64,
            Content::Float(number) => number,
            _ => return self.wrong_kind(name, "a number", problems),
        };
        if number.is_finite() && allowed(number) {
            return Some(number);
        }
        self.refuse(name, "out of range", format!("give a number {range}"), problems);
        None
    }

    pub fn integers(&self, name: &str, problems: &mut Problems) -> Option<Vec<usize>> {
        let numbers = match &self.get(name)?.content {
            Content::List(items) => items
                .iter()
                .map(|item| match item.content {
                    Content::Integer(number) => usize::try_from(number).ok(),
                    _ => None,
                })
                .collect(),
            _ => None,
        };
        if numbers.is_none() {
            self.wrong_kind::<()>(name, "a list of whole numbers", problems);
        }
        numbers
    }

    pub fn texts(&self, name: &str, problems: &mut Problems) -> Option<Vec<String>> {
        let texts = match &self.get(name)?.content {
            Content::List(items) => items
                .iter()
                .map(|item| match &item.content {
                    Content::Text(text) => Some(text.clone()),
                    _ => None,
                })
                .collect(),
            _ => None,
        };
        if texts.is_none() {
            self.wrong_kind::<()>(name, "a list of texts", problems);
        }
        texts
    }

    fn wrong_kind<T>(&self, name: &str, wanted: &str, problems: &mut Problems) -> Option<T> {
        let kind = self.get(name).map_or("nothing", Node::kind);
        self.refuse(name, format!("{kind} where {wanted} is expected"), format!("write {wanted}"), problems);
        None
    }
}

/// The table of a node, or an error.
pub(super) fn require_table<'a>(node: &'a Node, path: &str, problems: &mut Problems) -> Option<&'a Table> {
    let table = node.as_table();
    if table.is_none() {
        let reason = format!("{} where a table is expected", node.kind());
        problems.add(&node.place, path, Some(node.written()), reason, format!("write a table: [{path}]"));
    }
    table
}

/// Tells every key of `table` that is not in `known`. `path` is empty for the file itself.
pub(super) fn refuse_unknown(table: &Table, path: &str, known: &[&str], problems: &mut Problems) {
    for (key, node) in table.iter().filter(|(key, _)| !known.contains(&key.as_str())) {
        let dotted = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let hint = suggest(key, known.iter().copied());
        problems.add(&node.key_place, dotted, None, "there is no such key", hint);
    }
}
