//! A cell: one unit of work, identified by the content of its parameters.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use crate::parameters::{DatasetParameters, MethodParameters, ModelParameters, Precision, TrainingParameters};

/// The name of a cell: the first 128 bits of BLAKE3 over the cell's canonical JSON, as 32 hexadecimal digits.
///
/// The digits lie in the key itself: grids of 100,000 cells sort, compare and copy very many.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CellKey([u8; CellKey::DIGITS]);

impl CellKey {
    /// Number of hexadecimal digits.
    pub const DIGITS: usize = 32;

    /// The name of the cell that this value describes.
    pub(crate) fn of(cell: &Value) -> Self {
        Self::of_text(&canonical_json(cell))
    }

    fn of_text(canonical: &str) -> Self {
        let digest = blake3::hash(canonical.as_bytes());
        digest.to_hex()[..Self::DIGITS].parse().expect("BLAKE3 gives 64 hexadecimal digits")
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("digits are ASCII")
    }

    /// The first eight digits: enough for a person to tell cells apart.
    pub fn short(&self) -> &str {
        &self.as_str()[..8]
    }
}

impl fmt::Display for CellKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Hash for CellKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // A digest already; half of it tells cells apart.
        state.write(&self.0[..16]);
    }
}

impl fmt::Debug for CellKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CellKey").field(&self.as_str()).finish()
    }
}

impl Serialize for CellKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl FromStr for CellKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let key = text.as_bytes().try_into().ok().filter(|_| digits);
        key.map(Self).ok_or_else(|| InvalidKey(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for CellKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A text that is no cell key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no cell key: a key has 32 digits out of 0-9 and a-f, as the folders of results/cells have")]
pub struct InvalidKey(String);

/// A part of what a key is made of.
enum Part<'a> {
    Own(&'a Value),
    Method(&'a MethodParameters),
}

impl Part<'_> {
    fn is_null(&self) -> bool {
        matches!(self, Part::Own(Value::Null))
    }
}

/// What a cell does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CellKind {
    /// Makes what an attack starts from: a pattern, an encoder.
    Prepare,
    /// Trains a model on poisoned (or, with the attack `none`, clean) images.
    Train,
    /// Makes the model of its first parent unlearn: what repairs and measurements start from.
    Unlearn,
    /// Repairs the model of its first parent.
    Defend,
    /// Measures something inside the model of its first parent.
    Measure,
}

/// Everything that determines a result, and nothing else: no time, no code revision, no experiment name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// What is done.
    pub kind: CellKind,
    /// Cells of different profiles never mix.
    pub profile: String,
    /// Seed of every random stream of the cell.
    pub seed: u64,
    /// Digest of the images, as `tsbd-data` gives it.
    pub data_digest: String,
    /// The cells whose results this one starts from. For a Prepare cell the Train cell of the clean model, if it needs
    /// one; for a Train cell of an attack with a groundwork its Prepare cell. For all others first the cell whose model
    /// they are about, then what else they need: the Train cell below a repaired model and the Prepare cell, for the
    /// trigger; an Unlearn cell; for a Measure cell the Train cell of the clean model and the Defend cells whose scores
    /// it compares.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<CellKey>,
    /// The images.
    pub dataset: DatasetParameters,
    /// The network; Prepare cells have one only if they start from a clean model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelParameters>,
    /// How it is trained; Train cells only (a defense's own training is among its parameters).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingParameters>,
    /// The attack; `none` for clean training. A Prepare cell has those parameters alone that its result depends on.
    pub attack: Arc<MethodParameters>,
    /// The defense: of a Defend cell, and of a cell about the model that one left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defense: Option<Arc<MethodParameters>>,
    /// The unlearning: of an Unlearn cell, and of a Measure cell that depends on its numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlearning: Option<Arc<MethodParameters>>,
    /// The measurement; Measure cells only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measurement: Option<Arc<MethodParameters>>,
}

impl Cell {
    /// The cell's name. Depends on the cell's parameters alone.
    pub fn key(&self) -> CellKey {
        CellKey::of_text(&self.canonical())
    }

    /// [`canonical_json`] of the cell. The parameters of methods, which are most of it, are not copied for that: cells share them.
    fn canonical(&self) -> String {
        let Cell {
            kind,
            profile,
            seed,
            data_digest,
            parents,
            dataset,
            model,
            training,
            attack,
            defense,
            unlearning,
            measurement,
        } = self;
        let own = json!({
            "kind": kind, "profile": profile, "seed": seed, "data_digest": data_digest, "dataset": dataset, "model": model,
            "training": training, "parents": (!parents.is_empty()).then_some(parents),
        });
        let methods = [
            ("attack", Some(attack)),
            ("defense", defense.as_ref()),
            ("unlearning", unlearning.as_ref()),
            ("measurement", measurement.as_ref()),
        ];
        let own =
            own.as_object().expect("it was just made").iter().map(|(name, value)| (name.as_str(), Part::Own(value)));
        let methods = methods.into_iter().filter_map(|(name, method)| Some((name, Part::Method(method?))));
        let mut text = Vec::with_capacity(2048);
        write_object(own.chain(methods).filter(|(_, part)| !part.is_null()), &mut text, |part, text| match part {
            Part::Own(value) => write_canonical(value, text),
            Part::Method(method) => {
                let MethodParameters { name, revision, parameters } = method;
                let (name, revision) = (json!(name), json!(revision));
                let fields = [("name", &name), ("revision", &revision), ("parameters", parameters)];
                write_object(fields.into_iter().filter(|(_, value)| !value.is_null()), text, write_canonical);
            }
        });
        String::from_utf8(text).expect("JSON is text")
    }

    /// Name of the defense, `none` for a cell without one.
    pub fn defense_name(&self) -> &str {
        self.defense.as_ref().map_or("none", |defense| &defense.name)
    }

    /// Name of the measurement, `none` for a cell without one.
    pub fn measurement_name(&self) -> &str {
        self.measurement.as_ref().map_or("none", |measurement| &measurement.name)
    }

    /// How far the steps of a training round, or those of a repair; everything else does not.
    pub fn precision(&self) -> Precision {
        match (self.kind, &self.training, &self.defense) {
            (CellKind::Train, Some(training), _) => training.precision,
            // That of `tsbd_defense::DefenseCommon`; not there, it is the default.
            (CellKind::Defend, _, Some(defense)) => {
                let stated = defense.parameters.get("precision");
                stated.and_then(|precision| Precision::deserialize(precision).ok()).unwrap_or_default()
            }
            _ => Precision::default(),
        }
    }

    /// What a person calls the cell: `lf groundwork`, `badnets`, `badnets + tsbd`, `badnets unlearned`, `badnets: tac`.
    pub fn label(&self) -> String {
        let attack = &self.attack.name;
        let model = match self.defense_name() {
            "none" => attack.clone(),
            defense => format!("{attack} + {defense}"),
        };
        match (self.kind, &self.unlearning, &self.measurement) {
            (CellKind::Prepare, ..) => format!("{attack} groundwork"),
            (CellKind::Unlearn, Some(unlearning), _) => format!("{model} after {}", unlearning.name),
            (CellKind::Measure, _, Some(measurement)) => format!("{model}: {}", measurement.name),
            _ => model,
        }
    }

    /// The cell as TOML, for `cell.toml`. [`Cell::from_toml`] reads it back to a cell of the same key.
    pub fn to_toml(&self) -> String {
        let value = without_nulls(self.to_value());
        toml::to_string(&value).expect("a cell consists of tables, strings and numbers, all of which TOML can write")
    }

    /// Reads what [`Cell::to_toml`] wrote.
    pub fn from_toml(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("a cell has string keys only, so JSON can hold it")
    }
}

/// JSON with sorted keys, without spaces and without nulls (a parameter that is null is a parameter not given):
/// equal values give equal bytes, whatever order a map keeps.
pub(crate) fn canonical_json(value: &Value) -> String {
    let mut text = Vec::with_capacity(1024);
    write_canonical(value, &mut text);
    String::from_utf8(text).expect("JSON is text")
}

fn write_canonical(value: &Value, text: &mut Vec<u8>) {
    match value {
        Value::Object(map) => {
            let entries = map.iter().filter(|(_, value)| !value.is_null());
            write_object(entries.map(|(key, value)| (key.as_str(), value)), text, write_canonical);
        }
        Value::Array(items) => {
            text.push(b'[');
            for (position, item) in items.iter().enumerate() {
                if position > 0 {
                    text.push(b',');
                }
                write_canonical(item, text);
            }
            text.push(b']');
        }
        scalar => write_plain(scalar, text),
    }
}

/// Entries, of which none is null, in the order of their keys.
fn write_object<'a, T>(
    entries: impl Iterator<Item = (&'a str, T)>,
    text: &mut Vec<u8>,
    write: impl Fn(T, &mut Vec<u8>),
) {
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by_key(|(key, _)| *key);
    text.push(b'{');
    for (position, (key, value)) in entries.into_iter().enumerate() {
        if position > 0 {
            text.push(b',');
        }
        write_plain(key, text);
        text.push(b':');
        write(value, text);
    }
    text.push(b'}');
}

fn write_plain(value: &(impl Serialize + ?Sized), text: &mut Vec<u8>) {
    serde_json::to_writer(text, value).expect("text and numbers can be written to memory");
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_nulls(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        scalar => scalar,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::parameters::{Augmentation, Schedule};

    pub(crate) fn train_cell(attack: &str, seed: u64) -> Cell {
        Cell {
            kind: CellKind::Train,
            profile: "smoke".into(),
            seed,
            data_digest: "0123".into(),
            parents: Vec::new(),
            dataset: DatasetParameters {
                name: "shapes".into(),
                train_images: Some(2000),
                test_images: None,
                image_size: Some(16),
                seed: 0,
            },
            model: Some(ModelParameters { name: "preact-resnet18".into(), width: 8 }),
            training: Some(TrainingParameters {
                epochs: 3,
                batch_size: 64,
                learning_rate: 0.05,
                momentum: 0.9,
                weight_decay: 5e-4,
                schedule: Schedule::Cosine { t_max: 3 },
                augmentation: Augmentation::Standard,
                precision: Precision::F32,
            }),
            attack: MethodParameters::new(
                attack,
                1,
                json!({"poisoning_ratio": 0.1, "target_class": 0, "trigger": null}),
            ),
            defense: None,
            unlearning: None,
            measurement: None,
        }
    }

    pub(crate) fn defend_cell(train: &Cell, defense: &str) -> Cell {
        Cell {
            kind: CellKind::Defend,
            training: None,
            parents: vec![train.key()],
            defense: Some(MethodParameters::new(defense, 1, json!({"epochs": 1.0}))),
            ..train.clone()
        }
    }

    #[test]
    fn the_precision_of_a_cell_is_that_of_its_own_training() {
        let mut train = train_cell("badnets", 0);
        train.training.as_mut().unwrap().precision = Precision::Bf16;
        assert_eq!(train.precision(), Precision::Bf16);
        let mut repair = defend_cell(&train, "ft");
        assert_eq!(repair.precision(), Precision::F32);
        let defense = repair.defense.as_mut().unwrap();
        Arc::make_mut(defense).parameters["precision"] = json!("tf32");
        assert_eq!(repair.precision(), Precision::Tf32);
        assert_eq!(Cell { kind: CellKind::Unlearn, ..repair }.precision(), Precision::F32);
    }

    #[test]
    fn what_a_key_is_made_of_is_the_whole_cell() {
        let train = train_cell("badnets", 7);
        let repair = defend_cell(&train, "ft");
        let method = || Some(MethodParameters::new("of", 2, json!({"b": {"d": null, "c": [1, null]}, "a": null})));
        let bare = Cell { kind: CellKind::Prepare, model: None, training: None, ..train.clone() };
        let full = Cell { kind: CellKind::Measure, unlearning: method(), measurement: method(), ..repair.clone() };
        for cell in [train, repair, bare, full] {
            assert_eq!(cell.canonical(), canonical_json(&cell.to_value()));
        }
    }

    #[test]
    fn the_key_is_the_same_whatever_order_a_map_keeps() {
        let one: Value = serde_json::from_str(r#"{"b": [1, {"y": 0.5, "x": null}], "a": "ü\""}"#).unwrap();
        let other: Value = serde_json::from_str(r#"{"a": "ü\"", "b": [1, {"y": 0.5}]}"#).unwrap();
        assert_eq!(canonical_json(&one), canonical_json(&other));
        assert_eq!(canonical_json(&one), r#"{"a":"ü\"","b":[1,{"y":0.5}]}"#);
    }

    #[test]
    fn the_key_of_a_cell_never_changes_by_accident() {
        // A changed literal means that every result on users' disks is lost: only for a change that is meant.
        assert_eq!(train_cell("badnets", 0).key().as_str().len(), CellKey::DIGITS);
        assert_eq!(train_cell("badnets", 0).key().as_str(), "f2404fff608b63f061bfbbe9028fd6c1");
    }

    #[test]
    fn every_part_of_a_cell_changes_its_key() {
        let cell = train_cell("badnets", 0);
        let mut changed = vec![cell.clone(); 7];
        changed[0].seed = 1;
        changed[1].profile = "quick".into();
        changed[2].data_digest = "0124".into();
        Arc::make_mut(&mut changed[3].attack).revision = 2;
        Arc::make_mut(&mut changed[4].attack).parameters["target_class"] = json!(1);
        changed[5].model.as_mut().unwrap().width = 16;
        changed[6].training.as_mut().unwrap().epochs = 4;
        let mut keys: Vec<_> = changed.iter().map(Cell::key).collect();
        keys.push(cell.key());
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 8);
    }

    #[test]
    fn a_cell_survives_its_toml_form() {
        let train = train_cell("blended", 3);
        let encoder = Cell { kind: CellKind::Prepare, model: None, training: None, ..train.clone() };
        let method = |name: &str| Some(MethodParameters::new(name, 1, json!({"layer": null, "x": 1e-4})));
        let unlearn =
            Cell { kind: CellKind::Unlearn, training: None, unlearning: method("unlearning"), ..train.clone() };
        let measure = Cell { kind: CellKind::Measure, measurement: method("nwc"), ..unlearn.clone() };
        assert_eq!(
            [&encoder, &unlearn, &measure, &train].map(Cell::label),
            ["blended groundwork", "blended after unlearning", "blended: nwc", "blended"]
        );
        for cell in [encoder, defend_cell(&train, "tsbd"), unlearn, measure, train] {
            let read = Cell::from_toml(&cell.to_toml()).unwrap();
            assert_eq!(read.key(), cell.key(), "{}", cell.to_toml());
        }
    }

    #[test]
    fn only_32_lower_case_digits_are_a_key() {
        assert!("0123456789abcdef0123456789abcdef".parse::<CellKey>().is_ok());
        for wrong in ["", "0123", "0123456789ABCDEF0123456789abcdef", "../../../../../../../etc/passwd0"] {
            assert!(wrong.parse::<CellKey>().is_err(), "{wrong}");
        }
    }
}
