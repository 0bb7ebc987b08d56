//! The parameters of a method as its JSON schema tells them: name, kind of value, default, and what it means.
//!
//! The schemas come from the methods' own parameter structs, so what is listed here is what is read.

use serde_json::Value;

use crate::columns;

/// One parameter.
#[derive(Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Name as in an experiment file.
    pub name: String,
    /// The kind of value: "number", "whole number of at least 0", "all-to-one | all-to-all".
    pub kind: String,
    /// The default as TOML; `None` when the parameter is unset by default.
    pub default: Option<String>,
    /// The doc comment, as one paragraph.
    pub meaning: String,
}

/// The parameters of a schema, in its order.
pub fn of_schema(schema: &schemars::Schema) -> Vec<Parameter> {
    let root = schema.as_value();
    let properties = root.get("properties").and_then(Value::as_object);
    properties.into_iter().flatten().map(|(name, property)| parameter(root, name, property)).collect()
}

/// The parameters as paragraphs: name, kind and default on one line, the meaning indented below.
pub fn render(parameters: &[Parameter], prefix: &str, indent: usize, width: usize) -> String {
    let margin = " ".repeat(indent);
    let mut text = String::new();
    for Parameter { name, kind, default, meaning } in parameters {
        let default = default.as_deref().unwrap_or("unset");
        text.push_str(&format!("{margin}{prefix}{name} = {default}    ({kind})\n"));
        if !meaning.is_empty() {
            let inner = indent + 4;
            let folded = columns::fold(meaning, width.saturating_sub(inner), inner);
            text.push_str(&format!("{margin}    {folded}\n"));
        }
    }
    text
}

fn parameter(root: &Value, name: &str, property: &Value) -> Parameter {
    let meaning = property.get("description").and_then(Value::as_str).unwrap_or_default();
    let default = property.get("default").filter(|default| !default.is_null());
    Parameter {
        name: name.to_owned(),
        kind: kind(root, property),
        default: default.map(Value::to_string),
        meaning: meaning.replace('`', "").split_whitespace().collect::<Vec<_>>().join(" "),
    }
}

fn kind(root: &Value, property: &Value) -> String {
    let property = resolve(root, property);
    if let Some(value) = property.get("const") {
        return plain(value);
    }
    if let Some(values) = property.get("enum").and_then(Value::as_array) {
        return values.iter().filter(|value| !value.is_null()).map(plain).collect::<Vec<_>>().join(" | ");
    }
    for key in ["oneOf", "anyOf"] {
        if let Some(options) = property.get(key).and_then(Value::as_array) {
            let options = options.iter().map(|option| kind(root, option)).filter(|option| option != "null");
            return options.collect::<Vec<_>>().join(" | ");
        }
    }
    match property.get("type") {
        Some(Value::String(name)) => of_type(root, name, property),
        Some(Value::Array(names)) => {
            let names = names.iter().filter_map(Value::as_str).filter(|name| *name != "null");
            names.map(|name| of_type(root, name, property)).collect::<Vec<_>>().join(" | ")
        }
        _ => "any value".to_owned(),
    }
}

fn of_type(root: &Value, name: &str, property: &Value) -> String {
    let minimum = property.get("minimum").and_then(Value::as_f64);
    let maximum = property.get("maximum").and_then(Value::as_f64);
    let range = match (minimum, maximum) {
        (Some(low), Some(high)) => format!(" from {low} to {high}"),
        (Some(low), None) => format!(" of at least {low}"),
        (None, Some(high)) => format!(" of at most {high}"),
        (None, None) => String::new(),
    };
    match name {
        "integer" => format!("whole number{range}"),
        "number" => format!("number{range}"),
        "boolean" => "true | false".to_owned(),
        "string" => "text".to_owned(),
        "array" => match property.get("items") {
            Some(items) => format!("list of {}", kind(root, items)),
            None => "list".to_owned(),
        },
        "object" => "table".to_owned(),
        other => other.to_owned(),
    }
}

/// Follows a reference into the schema's definitions.
fn resolve<'a>(root: &'a Value, property: &'a Value) -> &'a Value {
    let reference = property.get("$ref").and_then(Value::as_str);
    reference.and_then(|path| root.pointer(path.strip_prefix('#')?)).unwrap_or(property)
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use schemars::JsonSchema;
    use serde::Serialize;

    use super::*;

    #[derive(JsonSchema, Serialize, Default)]
    #[serde(rename_all = "kebab-case")]
    enum Rule {
        /// One.
        #[default]
        AllToOne,
        /// All.
        AllToAll,
    }

    #[derive(JsonSchema, Serialize, Default)]
    #[serde(default)]
    struct Example {
        /// Share of the images;
        /// greater than `0`.
        ratio: f64,
        /// Class.
        target: u32,
        rule: Rule,
        threshold: Option<f64>,
    }

    fn example() -> Vec<Parameter> {
        of_schema(&schemars::schema_for!(Example))
    }

    fn named(name: &str) -> Parameter {
        example().into_iter().find(|parameter| parameter.name == name).expect("the example has it")
    }

    #[test]
    fn a_parameter_has_its_kind_its_default_and_its_documentation() {
        assert_eq!(
            named("ratio"),
            Parameter {
                name: "ratio".into(),
                kind: "number".into(),
                default: Some("0.0".into()),
                meaning: "Share of the images; greater than 0.".into(),
            }
        );
        assert_eq!(named("target").kind, "whole number of at least 0");
    }

    #[test]
    fn the_choices_of_an_enumeration_are_spelled_out() {
        assert_eq!(named("rule").kind, "all-to-one | all-to-all");
        assert_eq!(named("rule").default.as_deref(), Some("\"all-to-one\""));
        assert_eq!(serde_json::json!(Rule::AllToAll), "all-to-all", "the choices are those that are read and written");
    }

    #[test]
    fn an_optional_parameter_is_unset_by_default() {
        assert_eq!((named("threshold").kind.as_str(), &named("threshold").default), ("number", &None));
        assert!(render(&example(), "attack.", 2, 80).contains("  attack.threshold = unset    (number)\n"));
    }
}
