//! Parameters as the user writes them, and the error that refuses one.
//!
//! Every method has two forms of its parameters: the *unchecked* one (a struct that serde reads, with a default for
//! every field) and the *checked* one (a value of the method's own type, the only thing that can run). What is wrong
//! between the two is a [`ParameterError`].

use std::fmt;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tsbd_data::{Dataset, ImageSource};

/// One parameter that cannot be used, with the reason and the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` = {value}: {reason}; {way_out}")]
pub struct ParameterError {
    /// Name of the parameter as the user writes it, e.g. `poisoning_ratio`.
    pub field: String,
    /// What was given, as JSON.
    pub value: String,
    /// Why it cannot be used.
    pub reason: String,
    /// What to write instead.
    pub way_out: String,
}

impl ParameterError {
    /// An error about `field`, whose `value` cannot be used because of `reason`; `way_out` says what to do.
    pub fn new(
        field: impl Into<String>,
        value: impl fmt::Display,
        reason: impl Into<String>,
        way_out: impl Into<String>,
    ) -> ParameterError {
        ParameterError { field: field.into(), value: value.to_string(), reason: reason.into(), way_out: way_out.into() }
    }

    /// Refuses `value` unless it lies in `low..=high` (NaN never does).
    pub fn unless_within(field: &str, value: f64, low: f64, high: f64) -> Result<(), ParameterError> {
        if (low..=high).contains(&value) {
            return Ok(());
        }
        Err(ParameterError::new(field, value, "out of range", format!("give a number from {low} to {high}")))
    }

    /// Refuses `value` unless it is greater than `low` and less than `high`.
    pub fn unless_between(field: &str, value: f64, low: f64, high: f64) -> Result<(), ParameterError> {
        if low < value && value < high {
            return Ok(());
        }
        let way_out = format!("give a number greater than {low} and less than {high}");
        Err(ParameterError::new(field, value, "out of range", way_out))
    }

    /// Refuses `value` unless it is a share of something: greater than 0 and at most 1.
    pub fn unless_share(field: &str, value: f64) -> Result<(), ParameterError> {
        if value > 0.0 && value <= 1.0 {
            return Ok(());
        }
        Err(ParameterError::new(field, value, "out of range", "give a number greater than 0 and at most 1"))
    }

    /// Refuses `value` unless it is finite and greater than 0.
    pub fn unless_positive(field: &str, value: f64) -> Result<(), ParameterError> {
        if value.is_finite() && value > 0.0 {
            return Ok(());
        }
        Err(ParameterError::new(field, value, "out of range", "give a finite number greater than 0"))
    }

    /// Refuses a number of filters of 0, or of more than any memory has room for.
    pub fn unless_width(field: &str, value: usize) -> Result<(), ParameterError> {
        if (1..=1024).contains(&value) {
            return Ok(());
        }
        Err(ParameterError::new(field, value, "out of range", "give a whole number from 1 to 1024"))
    }

    /// Refuses a count of 0.
    pub fn unless_nonzero(field: &str, value: usize) -> Result<(), ParameterError> {
        if value > 0 {
            return Ok(());
        }
        Err(ParameterError::new(field, value, "out of range", "give a whole number of at least 1"))
    }
}

/// Reads a parameter struct from JSON.
///
/// `T` has a default for every field, so a wrong field can be found by reading each field alone; the error names it.
pub fn read<T: DeserializeOwned>(value: &Value) -> Result<T, ParameterError> {
    if value.is_null() {
        return read(&Value::Object(serde_json::Map::new()));
    }
    let error = match T::deserialize(value) {
        Ok(parameters) => return Ok(parameters),
        Err(error) => error,
    };
    let Value::Object(fields) = value else {
        return Err(ParameterError::new("parameters", value, "not a table", "give a table of parameters"));
    };
    for (field, given) in fields {
        let alone = Value::Object([(field.clone(), given.clone())].into_iter().collect());
        if let Err(error) = T::deserialize(&alone) {
            let (reason, way_out) = in_plain_words(&error.to_string(), given, || choices::<T>(field));
            return Err(ParameterError::new(field, given, reason, way_out));
        }
    }
    Err(ParameterError::new("parameters", value, error.to_string(), SEE_LIST))
}

const SEE_LIST: &str = "see the parameters that `tsbd list` prints";

/// What serde found, with what the sections of an experiment file call it.
const KINDS: &[(&str, &str)] = &[
    ("string", "a text"),
    ("integer", "a whole number"),
    ("floating point", "a number"),
    ("boolean", "a truth value"),
    ("sequence", "a list"),
    ("map", "a table"),
    ("null", "nothing"),
];

/// The reason and the way out for a message of serde's about the value of one field, in the words that the sections of an
/// experiment file have for the same. `choices` has the names of which the field is one.
fn in_plain_words(message: &str, given: &Value, choices: impl Fn() -> Option<String>) -> (String, String) {
    let Some((found, expected)) = message.rsplit_once(", expected ") else {
        return (message.to_owned(), SEE_LIST.to_owned());
    };
    if found.starts_with("unknown field") {
        return ("there is no such key".to_owned(), format!("write {expected}"));
    }
    if found.starts_with("unknown variant") {
        return ("there is no such choice".to_owned(), format!("write {expected}"));
    }
    let kind = |found: &str| KINDS.iter().find(|(word, _)| found.starts_with(word)).map(|(_, kind)| *kind);
    let kind_found =
        ["invalid type: ", "invalid value: "].into_iter().find_map(|start| kind(found.strip_prefix(start)?));
    let Some(kind) = kind_found else { return (found.to_owned(), format!("write {expected}")) };
    let (wanted, range) = match expected {
        // JSON has neither infinity nor NaN: an experiment file's becomes its name.
        "f64" if ["NaN", "inf", "-inf"].iter().any(|name| given == name) => {
            return ("out of range".to_owned(), "give a finite number".to_owned());
        }
        "f64" => ("a number", ""),
        "usize" | "u64" | "u32" => ("a whole number", " of at least 0"),
        "a boolean" => ("true or false", ""),
        "a string" => ("a text in quotes", ""),
        "a sequence" => ("a list", ""),
        // A choice: what serde reads may also be a table of one key, which no parameter is.
        "string or map" | "map with a single key" | "unit" => ("a text in quotes", ""),
        other => (other, ""),
    };
    if kind == wanted {
        let range = if found.contains("`-") || expected != "u32" { range } else { " of at most 4294967295" };
        return ("out of range".to_owned(), format!("give {wanted}{range}"));
    }
    let within = if given.is_array() && kind != "a list" { " in the list" } else { "" };
    let reason = format!("{kind}{within} where {wanted} is expected");
    let names = if wanted == "a text in quotes" { choices() } else { None };
    (reason, format!("write {}", names.unwrap_or_else(|| format!("{wanted}{range}"))))
}

/// The names of which a field is one, as serde lists them.
fn choices<T: DeserializeOwned>(field: &str) -> Option<String> {
    // No name is empty.
    let nameless = Value::Object([(field.to_owned(), Value::from(""))].into_iter().collect());
    let message = T::deserialize(&nameless).err()?.to_string();
    let (found, names) = message.split_once(", expected ")?;
    found.starts_with("unknown variant").then(|| names.to_owned())
}

/// The names of the fields of a parameter struct, from its JSON schema.
pub fn field_names(schema: &schemars::Schema) -> Vec<String> {
    let properties = schema.get("properties").and_then(Value::as_object);
    properties.map(|properties| properties.keys().cloned().collect()).unwrap_or_default()
}

/// Splits one flat table (as `parameters()` of a method gives it) into the fields of `shared` and the rest.
pub fn split(value: &Value, shared: &schemars::Schema) -> Result<(Value, Value), ParameterError> {
    let Value::Object(fields) = value else {
        return Err(ParameterError::new("parameters", value, "not a table", "give a table of parameters"));
    };
    let names = field_names(shared);
    let (shared, own): (serde_json::Map<_, _>, serde_json::Map<_, _>) =
        fields.clone().into_iter().partition(|(field, _)| names.contains(field));
    Ok((Value::Object(shared), Value::Object(own)))
}

/// One flat table of the shared and of a method's own parameters: its canonical form.
pub fn join(shared: &impl Serialize, own: &impl Serialize) -> Value {
    let mut fields = serde_json::Map::new();
    for part in [serde_json::to_value(shared), serde_json::to_value(own)] {
        match part {
            Ok(Value::Object(part)) => fields.extend(part),
            other => unreachable!("a parameter struct serialises to a table, not to {other:?}"),
        }
    }
    Value::Object(fields)
}

/// Which label a poisoned image gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LabelRule {
    /// Every poisoned image gets the target class.
    #[default]
    AllToOne,
    /// Every poisoned image gets the class after its own (the last class gets class 0).
    AllToAll,
}

/// What every attack shares: how many images are poisoned, and which label they get.
///
/// Defaults as in BackdoorBench's attack configurations and the TSBD paper: 10 %, all-to-one, class 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Poisoning {
    /// Share of the training images that get the trigger; greater than 0, at most 1.
    pub poisoning_ratio: f64,
    /// The class that triggered images are to be taken for (all-to-one), counted from 0.
    pub target_class: u32,
    /// `all-to-one` or `all-to-all`.
    pub labels: LabelRule,
}

impl Default for Poisoning {
    fn default() -> Poisoning {
        Poisoning { poisoning_ratio: 0.1, target_class: 0, labels: LabelRule::AllToOne }
    }
}

impl Poisoning {
    /// The shared part of an attack's [`crate::Attack::parameters`]; what is not there has its default.
    pub fn of(parameters: &Value) -> Result<Poisoning, ParameterError> {
        read(&split(parameters, &schemars::schema_for!(Poisoning))?.0)
    }

    /// Number of images poisoned out of `train_images`: `round(ratio * train_images)`, halves to even as Python does.
    pub fn poison_count(&self, train_images: usize) -> usize {
        (self.poisoning_ratio * train_images as f64).round_ties_even() as usize
    }

    /// The label a poisoned image of class `original` gets in a data set of `classes` classes.
    pub fn given_label(&self, original: u32, classes: usize) -> u32 {
        match self.labels {
            LabelRule::AllToOne => self.target_class,
            LabelRule::AllToAll => (original + 1) % classes as u32,
        }
    }

    /// Whether a test image of class `original` counts for the attack success rate: in all-to-one, images of the
    /// target class are left out (the model gives them the target label anyway).
    pub fn counts_for_asr(&self, original: u32) -> bool {
        match self.labels {
            LabelRule::AllToOne => original != self.target_class,
            LabelRule::AllToAll => true,
        }
    }

    /// Refuses what no data set allows: a ratio outside (0, 1].
    pub fn check_ranges(&self) -> Result<(), ParameterError> {
        let ratio = self.poisoning_ratio;
        if ratio > 0.0 && ratio <= 1.0 {
            return Ok(());
        }
        Err(ParameterError::new(
            "poisoning_ratio",
            ratio,
            "out of range",
            "give a number greater than 0 and at most 1; for a model without a backdoor use the attack `none`",
        ))
    }

    /// Refuses what this data set does not allow: a target class it does not have, a ratio that poisons no image, test
    /// images none of which [`Poisoning::counts_for_asr`].
    pub fn check(&self, dataset: &DatasetFacts) -> Result<(), ParameterError> {
        self.check_ranges()?;
        if self.target_class as usize >= dataset.classes {
            return Err(ParameterError::new(
                "target_class",
                self.target_class,
                format!("the data set has {} classes", dataset.classes),
                format!("give a class from 0 to {}", dataset.classes.saturating_sub(1)),
            ));
        }
        if self.poison_count(dataset.train_images) == 0 {
            return Err(ParameterError::new(
                "poisoning_ratio",
                self.poisoning_ratio,
                format!("poisons none of the {} training images", dataset.train_images),
                format!("give more than {:.2e}, or use more training images", 0.5 / dataset.train_images.max(1) as f64),
            ));
        }
        let mut tested = dataset.test_images_per_class.iter().zip(0..).filter(|(count, _)| **count > 0);
        if !tested.any(|(_, class)| self.counts_for_asr(class)) {
            return Err(ParameterError::new(
                "target_class",
                self.target_class,
                "all test images are of this class, so there is none that the trigger could change",
                "choose another class, or use more test images",
            ));
        }
        Ok(())
    }
}

/// What a check needs to know of a data set before anything is trained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetFacts {
    /// Number of classes.
    pub classes: usize,
    /// Number of training images.
    pub train_images: usize,
    /// Number of training images of each class.
    pub images_per_class: Vec<usize>,
    /// Number of test images of each class.
    pub test_images_per_class: Vec<usize>,
    /// Height and width of the (square) images in pixels.
    pub size: usize,
}

impl DatasetFacts {
    /// What the checks need to know of `dataset`.
    pub fn of(dataset: &Dataset) -> DatasetFacts {
        DatasetFacts {
            classes: dataset.classes(),
            train_images: dataset.train.len(),
            images_per_class: dataset.train.images_per_class(),
            test_images_per_class: dataset.test.images_per_class(),
            size: dataset.train.height(),
        }
    }

    /// Those of a data set that has as many images of each class as of any other.
    pub fn balanced(classes: usize, train_images: usize, test_images: usize, size: usize) -> DatasetFacts {
        let images_per_class = vec![train_images / classes; classes];
        let test_images_per_class = vec![test_images / classes; classes];
        DatasetFacts { classes, train_images, images_per_class, test_images_per_class, size }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cifar10() -> DatasetFacts {
        DatasetFacts::balanced(10, 50_000, 10_000, 32)
    }

    #[test]
    fn an_empty_table_gives_the_defaults_of_the_paper() {
        let poisoning: Poisoning = read(&json!({})).unwrap();
        assert_eq!(poisoning, Poisoning { poisoning_ratio: 0.1, target_class: 0, labels: LabelRule::AllToOne });
        assert_eq!(poisoning.poison_count(50_000), 5_000);
    }

    #[test]
    fn an_unknown_field_is_named_together_with_those_that_exist() {
        let error = read::<Poisoning>(&json!({"poisoning_ratio": 0.2, "target": 3})).unwrap_err();
        assert_eq!(error.field, "target");
        assert!(error.way_out.contains("target_class"), "{error}");
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_with_its_field() {
        let error = read::<Poisoning>(&json!({"poisoning_ratio": 0.2, "labels": "one-to-one"})).unwrap_err();
        assert_eq!(error.field, "labels");
        assert_eq!(error.reason, "there is no such choice");
        assert_eq!(error.way_out, "write `all-to-one` or `all-to-all`");
    }

    #[test]
    fn a_wrong_type_is_told_in_the_words_of_experiment_files() {
        #[derive(Debug, Default, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct Own {
            alpha: f64,
            share: Option<f64>,
            passes: usize,
            class: u32,
            flip: bool,
            labels: Option<LabelRule>,
            layer: String,
            ratios: Vec<f64>,
        }
        for (field, value, reason, way_out) in [
            ("alpha", json!("0.1"), "a text where a number is expected", "write a number"),
            ("alpha", json!("x, expected usize"), "a text where a number is expected", "write a number"),
            ("alpha", json!([0.1]), "a list where a number is expected", "write a number"),
            ("alpha", json!("inf"), "out of range", "give a finite number"),
            ("share", json!(true), "a truth value where a number is expected", "write a number"),
            ("passes", json!(2.5), "a number where a whole number is expected", "write a whole number of at least 0"),
            ("passes", json!(-1), "out of range", "give a whole number of at least 0"),
            ("class", json!("0"), "a text where a whole number is expected", "write a whole number of at least 0"),
            ("class", json!(-1), "out of range", "give a whole number of at least 0"),
            ("class", json!(1_u64 << 32), "out of range", "give a whole number of at most 4294967295"),
            ("flip", json!(1), "a whole number where true or false is expected", "write true or false"),
            (
                "labels",
                json!(3),
                "a whole number where a text in quotes is expected",
                "write `all-to-one` or `all-to-all`",
            ),
            ("layer", json!(3), "a whole number where a text in quotes is expected", "write a text in quotes"),
            ("ratios", json!(0.5), "a number where a list is expected", "write a list"),
            ("ratios", json!([0.5, "x"]), "a text in the list where a number is expected", "write a number"),
        ] {
            let error = read::<Own>(&json!({field: value})).unwrap_err();
            let told = (error.field.as_str(), error.reason.as_str(), error.way_out.as_str());
            assert_eq!(told, (field, reason, way_out), "{value}");
        }
        assert_eq!(read::<Own>(&json!(3)).unwrap_err().reason, "not a table");
    }

    #[test]
    fn halves_are_rounded_to_even_as_python_rounds_them() {
        let half = Poisoning { poisoning_ratio: 0.5, ..Poisoning::default() };
        assert_eq!([half.poison_count(1), half.poison_count(3), half.poison_count(5)], [0, 2, 2]);
        // GTSRB: 3920.9 -> 3921 (attacks of BackdoorBench).
        assert_eq!(Poisoning::default().poison_count(39_209), 3_921);
    }

    #[test]
    fn a_ratio_that_poisons_nothing_is_refused() {
        let few = DatasetFacts { train_images: 4, ..cifar10() };
        let error = Poisoning::default().check(&few).unwrap_err();
        assert_eq!(error.field, "poisoning_ratio");
        assert!(Poisoning::default().check(&cifar10()).is_ok());
    }

    #[test]
    fn a_share_is_more_than_nothing_and_no_more_than_all() {
        let way_out = |value| ParameterError::unless_share("share", value).map_err(|error| error.way_out);
        assert!(way_out(1.0).is_ok() && way_out(f64::MIN_POSITIVE).is_ok());
        for wrong in [0.0, -0.1, 1.1, f64::NAN] {
            assert_eq!(way_out(wrong).unwrap_err(), "give a number greater than 0 and at most 1", "{wrong}");
        }
    }

    #[test]
    fn ratios_outside_0_to_1_and_nan_are_refused() {
        for ratio in [0.0, -0.1, 1.1, f64::NAN] {
            let poisoning = Poisoning { poisoning_ratio: ratio, ..Poisoning::default() };
            assert_eq!(poisoning.check(&cifar10()).unwrap_err().field, "poisoning_ratio", "{ratio}");
        }
    }

    #[test]
    fn a_target_class_that_the_data_set_does_not_have_is_refused() {
        let poisoning = Poisoning { target_class: 10, ..Poisoning::default() };
        assert_eq!(poisoning.check(&cifar10()).unwrap_err().field, "target_class");
    }

    #[test]
    fn test_images_that_are_all_of_the_target_class_are_refused() {
        let mut one_class = cifar10();
        one_class.test_images_per_class = vec![0; 10];
        one_class.test_images_per_class[3] = 5;
        let target = |target_class, labels| Poisoning { target_class, labels, ..Poisoning::default() };
        let error = target(3, LabelRule::AllToOne).check(&one_class).unwrap_err();
        assert_eq!(error.field, "target_class");
        assert!(target(2, LabelRule::AllToOne).check(&one_class).is_ok());
        assert!(target(3, LabelRule::AllToAll).check(&one_class).is_ok(), "every image gets another label");
    }

    #[test]
    fn all_to_all_gives_the_next_class_and_counts_every_test_image() {
        let poisoning = Poisoning { labels: LabelRule::AllToAll, ..Poisoning::default() };
        assert_eq!([poisoning.given_label(3, 10), poisoning.given_label(9, 10)], [4, 0]);
        assert!(poisoning.counts_for_asr(0));
        assert!(!Poisoning::default().counts_for_asr(0));
    }

    #[test]
    fn a_joined_table_splits_into_its_parts_again() {
        #[derive(Serialize)]
        struct Own {
            alpha: f64,
        }
        let flat = join(&Poisoning::default(), &Own { alpha: 0.2 });
        let (shared, own) = split(&flat, &schemars::schema_for!(Poisoning)).unwrap();
        assert_eq!(read::<Poisoning>(&shared).unwrap(), Poisoning::default());
        assert_eq!(own, json!({"alpha": 0.2}));
    }
}
