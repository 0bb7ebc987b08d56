//! TOML in which every key and every value knows where it was written, so that layers can be laid over each other and
//! an error still points to the line that is to blame.

use std::ops::Range;
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value;
use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Place, Problems, SourceText};

/// A value with its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub content: Content,
    /// Where the value stands.
    pub place: Place,
    /// Where its key stands; for an element of an array, where the element stands.
    pub key_place: Place,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    /// TOML has dates; nothing here uses them.
    Date(String),
    List(Vec<Node>),
    Table(Table),
}

/// Keys in the order in which they were first written.
pub(crate) type Table = IndexMap<String, Node>;

impl Node {
    pub fn as_table(&self) -> Option<&Table> {
        match &self.content {
            Content::Table(table) => Some(table),
            _ => None,
        }
    }

    /// What kind of value it is, for messages.
    pub fn kind(&self) -> &'static str {
        match &self.content {
            Content::Text(_) => "a text",
            Content::Integer(_) => "a whole number",
            Content::Float(_) => "a number",
            Content::Boolean(_) => "a truth value",
            Content::Date(_) => "a date",
            Content::List(_) => "a list",
            Content::Table(_) => "a table",
        }
    }

    /// The value as written; tables and lists by their kind alone if they are long.
    pub fn written(&self) -> String {
        let text = self.place.text();
        let short = text.chars().count() <= 60 && !text.contains('\n') && self.as_table().is_none();
        if short { text.to_owned() } else { self.kind().to_owned() }
    }

    /// The value as JSON. A number that JSON cannot hold becomes its text.
    pub fn to_json(&self) -> Value {
        match &self.content {
            Content::Text(text) | Content::Date(text) => Value::from(text.as_str()),
            Content::Integer(number) => Value::from(*number),
            Content::Float(number) if number.is_finite() => Value::from(*number),
            Content::Float(number) => Value::from(number.to_string()),
            Content::Boolean(truth) => Value::from(*truth),
            Content::List(items) => items.iter().map(Node::to_json).collect(),
            Content::Table(table) => table_to_json(table),
        }
    }
}

pub(crate) fn table_to_json(table: &Table) -> Value {
    table.iter().map(|(key, node)| (key.clone(), node.to_json())).collect()
}

/// Reads a document. Everything that is no TOML is told, and what could be read is given back.
pub(crate) fn parse(source: &Arc<SourceText>, problems: &mut Problems) -> Table {
    let (document, errors) = DeTable::parse_recoverable(&source.text);
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        let place = Place { source: Arc::clone(source), span };
        let hint = "write it as TOML: key = value, where a text stands in quotes";
        problems.add(&place, "", None, format!("this is no TOML: {}", error.message()), hint);
    }
    table(document.get_ref(), source, problems)
}

fn table(table: &DeTable<'_>, source: &Arc<SourceText>, problems: &mut Problems) -> Table {
    // The parser sorts keys by name; the user's order is that of the file.
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, value)| (key.span().start, value.span().start));
    let mut nodes = Table::new();
    for (key, value) in entries {
        let key_place = Place { source: Arc::clone(source), span: key.span() };
        let node = node(value.get_ref(), value.span(), key_place, problems);
        nodes.insert(key.get_ref().to_string(), node);
    }
    nodes
}

fn node(value: &DeValue<'_>, span: Range<usize>, key_place: Place, problems: &mut Problems) -> Node {
    let place = Place { source: Arc::clone(&key_place.source), span };
    let content = match value {
        DeValue::String(text) => Content::Text(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Content::Integer(number),
            Err(_) => {
                let value = Some(place.text().to_owned());
                problems.add(&place, "", value, "the number is too large", "give at most 9223372036854775807");
                Content::Integer(0)
            }
        },
        DeValue::Float(number) => Content::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(truth) => Content::Boolean(*truth),
        DeValue::Datetime(date) => Content::Date(date.to_string()),
        DeValue::Array(items) => {
            let items = items.iter().map(|item| {
                let place = Place { source: Arc::clone(&key_place.source), span: item.span() };
                node(item.get_ref(), item.span(), place, problems)
            });
            Content::List(items.collect())
        }
        DeValue::Table(inner) => Content::Table(table(inner, &key_place.source, problems)),
    };
    Node { content, place, key_place }
}

/// Lays `over` on `base`: tables merge, anything else replaces what was there.
pub(crate) fn overlay(base: &mut Table, over: Table) {
    for (key, node) in over {
        match (base.get_mut(&key), node) {
            (Some(Node { content: Content::Table(below), .. }), Node { content: Content::Table(above), .. }) => {
                overlay(below, above)
            }
            (_, node) => {
                base.insert(key, node);
            }
        }
    }
}

/// The value at a dotted key.
pub(crate) fn lookup<'a>(table: &'a Table, path: &str) -> Option<&'a Node> {
    match path.split_once('.') {
        None => table.get(path),
        Some((first, rest)) => lookup(table.get(first)?.as_table()?, rest),
    }
}

/// Sets the value at a dotted key, making the tables on the way.
pub(crate) fn set(table: &mut Table, path: &str, value: Node) {
    match path.split_once('.') {
        None => {
            table.insert(path.to_owned(), value);
        }
        Some((first, rest)) => {
            let inner = table.entry(first.to_owned()).or_insert_with(|| empty_table(&value));
            if inner.as_table().is_none() {
                *inner = empty_table(&value);
            }
            if let Content::Table(inner) = &mut inner.content {
                set(inner, rest, value);
            }
        }
    }
}

fn empty_table(value: &Node) -> Node {
    Node { content: Content::Table(Table::new()), ..value.clone() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Table {
        let mut problems = Problems::default();
        let source = Arc::new(SourceText { name: "x.toml".into(), text: text.into() });
        let table = parse(&source, &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
        table
    }

    #[test]
    fn a_value_remembers_where_it_was_written_through_layers() {
        let mut base = read("[attack]\npoisoning_ratio = 0.1\ntarget_class = 0");
        overlay(&mut base, read("attack.poisoning_ratio = 1.5"));
        assert_eq!(table_to_json(&base), json!({"attack": {"poisoning_ratio": 1.5, "target_class": 0}}));
        let ratio = lookup(&base, "attack.poisoning_ratio").unwrap();
        assert_eq!((ratio.place.text(), ratio.key_place.text()), ("1.5", "poisoning_ratio"));
        assert_eq!(lookup(&base, "attack.target_class").unwrap().place.line_and_column(), (3, 16));
    }

    #[test]
    fn keys_keep_the_order_of_the_file() {
        let keys: Vec<_> = read("z = 1\na = 2\n[m]\n").into_keys().collect();
        assert_eq!(keys, ["z", "a", "m"]);
    }

    #[test]
    fn a_dotted_key_is_set_whether_its_tables_exist_or_not() {
        let mut table = read("[defenses.tsbd]\nneuron_ratio = 0.15");
        let value = lookup(&read("x = 0.3"), "x").unwrap().clone();
        set(&mut table, "defenses.tsbd.neuron_ratio", value.clone());
        set(&mut table, "attacks.blended.alpha", value);
        let expected = json!({"defenses": {"tsbd": {"neuron_ratio": 0.3}}, "attacks": {"blended": {"alpha": 0.3}}});
        assert_eq!(table_to_json(&table), expected);
    }

    #[test]
    fn every_error_of_a_document_is_told() {
        let mut problems = Problems::default();
        let source = Arc::new(SourceText { name: "x.toml".into(), text: "a = \nb = [1\n[c]\nd = 2020-99-99\n".into() });
        parse(&source, &mut problems);
        assert!(problems.len() >= 2, "{problems:?}");
    }
}
