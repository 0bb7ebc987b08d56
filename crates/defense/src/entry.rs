//! What a defense is: its entry in the registry, its checked form, and what it leaves.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::mem::discriminant;
use std::sync::Arc;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tsbd_analysis::{NeuronVector, Unlearning};
use tsbd_attack::parameters::{read, split};
use tsbd_attack::{DatasetFacts, Evaluation, ParameterError};
use tsbd_data::ImageSource;
use tsbd_nn::{Architecture, Layer, Model, Precision};

use crate::{CleanSubset, Context, Error};

/// Makes a checked defense of the shared and of its own parameters.
pub type Configure = fn(&DefenseCommon, Value) -> Result<Box<dyn Defense>, ParameterError>;

/// One defense in the registry.
pub struct DefenseEntry {
    /// Name as the user writes it, e.g. `fp`.
    pub name: &'static str,
    /// Name as papers print it, e.g. `FP`.
    pub title: &'static str,
    /// Where it was published.
    pub paper: &'static str,
    /// One sentence: what the defense does to the model.
    pub summary: &'static str,
    /// Raised whenever results of the same parameters change by more than rounding; part of a cell's key.
    pub revision: u32,
    /// JSON schema of the defense's own parameters (without the shared ones of [`DefenseCommon`]).
    pub schema: fn() -> schemars::Schema,
    /// Checks the parameters as far as it goes without network and data set.
    pub configure: Configure,
    /// Parameters, own and shared ones, that are published for a data set and differ from the defaults, as one table. They
    /// stand in for what nobody has written.
    pub published: fn(&DatasetFacts) -> Value,
}

/// Nothing but the defaults is published for any data set.
pub fn as_everywhere(_: &DatasetFacts) -> Value {
    json!({})
}

/// Whether these are the numbers of Tiny ImageNet, the only data set here of 200 classes.
pub(crate) fn is_tiny_imagenet(dataset: &DatasetFacts) -> bool {
    dataset.classes == 200
}

impl DefenseEntry {
    /// The defense from one flat table of shared and own parameters, as [`Defense::parameters`] gives it.
    pub fn from_parameters(&self, value: &Value) -> Result<Box<dyn Defense>, ParameterError> {
        let (shared, own) = split(value, &schemars::schema_for!(DefenseCommon))?;
        (self.configure)(&read(&shared)?, own)
    }
}

impl Debug for DefenseEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DefenseEntry").field("name", &self.name).field("revision", &self.revision).finish()
    }
}

/// What every defense shares. Defaults as in BackdoorBench's defense configurations and the TSBD paper.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DefenseCommon {
    /// Share of the clean training set that the defender has; greater than 0, at most 1.
    pub clean_ratio: f64,
    /// Images per batch, for every pass of the defense over its clean images.
    pub batch_size: usize,
    /// How far the passes round in which a defense trains: fine-tuning, distillation, NC's triggers, the masks of ANP and RNP.
    /// `f32`, `tf32` or `bf16`, as `training.precision`. Unlearning and measurements are `f32`; CLP and i-BAU train in no
    /// such pass.
    // What rounds nothing is not in the key.
    #[serde(skip_serializing_if = "Precision::is_full")]
    #[schemars(schema_with = "precisions")]
    pub precision: Precision,
}

/// The names of precisions.
fn precisions(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"enum": Precision::ALL.map(Precision::name), "default": Precision::default().name()})
}

impl Default for DefenseCommon {
    fn default() -> DefenseCommon {
        DefenseCommon { clean_ratio: 0.05, batch_size: 256, precision: Precision::F32 }
    }
}

impl DefenseCommon {
    /// The same for a defense that trains in no pass that may round: one result, one key.
    pub(crate) fn in_full_precision(&self) -> DefenseCommon {
        DefenseCommon { precision: Precision::F32, ..self.clone() }
    }

    /// Number of clean images out of `train_images`: `int(train_images * clean_ratio)`, as BackdoorBench counts.
    pub fn clean_count(&self, train_images: usize) -> usize {
        (train_images as f64 * self.clean_ratio) as usize
    }

    /// Number of clean images of each class where every class has as many: `int(train_images * clean_ratio / classes)`.
    pub fn clean_count_per_class(&self, train_images: usize, classes: usize) -> usize {
        (train_images as f64 * self.clean_ratio / classes.max(1) as f64) as usize
    }

    /// Refuses what no data set allows.
    pub fn check_ranges(&self) -> Result<(), ParameterError> {
        ParameterError::unless_nonzero("batch_size", self.batch_size)?;
        ParameterError::unless_share("clean_ratio", self.clean_ratio)
    }

    /// Refuses a share of the data set that is less than one image for each class.
    pub fn check(&self, dataset: &DatasetFacts) -> Result<(), ParameterError> {
        self.check_ranges()?;
        let count = self.clean_count(dataset.train_images);
        if count >= dataset.classes {
            return Ok(());
        }
        Err(ParameterError::new(
            "clean_ratio",
            self.clean_ratio,
            format!("{count} of {} training images, fewer than one for each class", dataset.train_images),
            format!("give at least {}", ratio_of(dataset.classes, dataset.train_images)),
        ))
    }

    /// The clean images, `passes` times.
    pub(crate) fn passes(&self, dataset: &DatasetFacts, passes: f64) -> f64 {
        self.clean_count(dataset.train_images) as f64 * passes
    }

    /// Refuses a share of the clean images that leaves fewer than 10 to measure an accuracy on.
    pub(crate) fn check_held_out(&self, dataset: &DatasetFacts, validation_share: f64) -> Result<(), ParameterError> {
        let count = self.clean_count(dataset.train_images) as f64;
        if count * validation_share >= 10.0 {
            return Ok(());
        }
        Err(ParameterError::new(
            "validation_share",
            validation_share,
            format!("of {count} clean images leaves fewer than 10 to measure an accuracy on"),
            "give a greater share, a greater `clean_ratio`, or `selection = \"oracle\"`",
        ))
    }
}

/// The smallest `clean_ratio` that is `count` images: a quotient may lie just below it.
pub(crate) fn ratio_of(count: usize, train_images: usize) -> f64 {
    let ratio = count as f64 / train_images.max(1) as f64;
    if ((train_images as f64 * ratio) as usize) < count { ratio.next_up() } else { ratio }
}

/// A configured defense.
pub trait Defense: Send + Sync + Debug {
    /// All parameters in one flat table, defaults filled: what identifies the defense in a cell's key.
    /// [`DefenseEntry::from_parameters`] reads it back.
    fn parameters(&self) -> Value;

    /// The shared parameters.
    fn common(&self) -> &DefenseCommon;

    /// Refuses what this network or data set does not allow.
    fn check(&self, architecture: &dyn Architecture, dataset: &DatasetFacts) -> Result<(), ParameterError>;

    /// The clean images that the defender gets of the training set.
    fn clean_subset(&self, train: Arc<dyn ImageSource>, seed: u64) -> Result<CleanSubset, ParameterError> {
        CleanSubset::draw(train, self.common(), seed)
    }

    /// The layers that [`Repaired::scores`] will have, in network order; none of a defense that orders no neurons.
    fn scored_layers(&self, _: &dyn Architecture) -> Vec<String> {
        Vec::new()
    }

    /// The clean unlearning that the repair starts from, for a defense that does. It depends on nothing else, so it is done
    /// once for all repairs that ask for the same, and handed over as `Context::unlearned`.
    fn unlearning(&self) -> Option<Unlearning> {
        None
    }

    /// About how many images go forward and backward through the network in a repair (those that only go forward count a
    /// third): what an estimate of its seconds is made of. What is measured on the way is not counted.
    fn image_passes(&self, dataset: &DatasetFacts) -> f64;

    /// Repairs `backdoored` with the images of `clean`. The same arguments give the same bits.
    fn repair(&self, backdoored: &Model, clean: &CleanSubset, context: &mut Context) -> Result<Repaired, Error>;
}

/// A repaired model, and how it came about.
#[derive(Debug, Clone)]
pub struct Repaired {
    /// The model.
    pub model: Model,
    /// What was pruned or reset, in network order. Fine-tuning changes everything and is not listed.
    pub changed: Vec<ChangedNeuron>,
    /// Metrics on the way.
    pub trace: Vec<TracePoint>,
    /// Counts, thresholds and choices, for the record.
    pub facts: serde_json::Map<String, Value>,
    /// How the defense ordered the neurons, where it did: the larger the number, the sooner it prunes the neuron. By
    /// convolution, or by the batch norm whose channels it scores.
    pub scores: Option<NeuronVector>,
}

/// Facts for the record.
pub(crate) fn noted(facts: impl IntoIterator<Item = (&'static str, Value)>) -> serde_json::Map<String, Value> {
    facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

impl Repaired {
    /// How many weights of each neuron were set to 0, in all layers of the kind that the defense prunes: filters of
    /// convolutions that are no shortcuts, channels of batch norms, or inputs of the linear layer. `None` where it pruned
    /// nothing.
    pub fn zeroed(&self) -> Option<NeuronVector> {
        let modules = self.model.architecture.modules();
        let is_pruned = |name: &str| self.changed.iter().any(|change| change.layer == name);
        let kind = discriminant(&modules.iter().find(|module| is_pruned(&module.name))?.layer);
        let prunable = modules.iter().filter(|module| {
            discriminant(&module.layer) == kind && (is_pruned(&module.name) || !module.name.contains("shortcut"))
        });
        let mut layers: IndexMap<String, Vec<f64>> = prunable
            .filter_map(|module| {
                let neurons = match module.layer {
                    Layer::Conv2d { out_channels, .. } => out_channels,
                    Layer::BatchNorm2d { channels } => channels,
                    Layer::Linear { in_features, .. } => in_features,
                    // Layers that no defense prunes.
                    _ => return None,
                };
                Some((module.name.clone(), vec![0.0; neurons]))
            })
            .collect();
        for ChangedNeuron { layer, neuron, zeroed, .. } in &self.changed {
            if let Some(values) = layers.get_mut(layer) {
                values[*neuron] = *zeroed as f64;
            }
        }
        Some(layers.into_iter().collect())
    }
}

/// A neuron that a defense pruned or reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedNeuron {
    /// Name of the module, e.g. `layer4.1.conv2`.
    pub layer: String,
    /// Number of the filter (or input feature) in its layer.
    pub neuron: usize,
    /// How many of its weights were set to 0.
    pub zeroed: usize,
    /// What was done, e.g. `zeroed 12 of 144 weights`.
    pub what: String,
}

/// Metrics at one point of a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TracePoint {
    /// The stage, e.g. `unlearning`.
    pub stage: String,
    /// Epoch (or step) of the stage, from 0.
    pub epoch: usize,
    /// Rates as fractions, losses, seconds.
    pub metrics: BTreeMap<String, f64>,
}

impl TracePoint {
    /// A point with these metrics.
    pub fn new(stage: &str, epoch: usize, metrics: impl IntoIterator<Item = (&'static str, f64)>) -> TracePoint {
        let metrics = metrics.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        TracePoint { stage: stage.to_owned(), epoch, metrics }
    }

    /// Adds the rates of an evaluation: `acc`, and `asr`, `ra` where they are defined.
    pub fn add(&mut self, evaluation: &Evaluation) {
        let rates = [("acc", Some(evaluation.acc)), ("asr", evaluation.asr), ("ra", evaluation.ra)];
        self.metrics.extend(rates.into_iter().filter_map(|(name, rate)| Some((name.to_owned(), rate?))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DEFENSES;

    #[test]
    fn every_defense_has_its_own_name_and_reads_back_the_parameters_it_writes() {
        for (place, entry) in DEFENSES.iter().enumerate() {
            assert!(DEFENSES[..place].iter().all(|other| other.name != entry.name));
            assert!(std::ptr::eq(crate::find(entry.name).unwrap(), *entry));
            let common = DefenseCommon { clean_ratio: 0.1, batch_size: 64, ..DefenseCommon::default() };
            let defense = (entry.configure)(&common, json!({})).unwrap();
            let parameters = defense.parameters();
            assert_eq!((&parameters["clean_ratio"], &parameters["batch_size"]), (&json!(0.1), &json!(64)));
            assert_eq!(entry.from_parameters(&parameters).unwrap().parameters(), parameters);
            assert_eq!(defense.common(), &common);
        }
    }

    #[test]
    fn every_own_parameter_of_a_schema_has_a_default_and_a_description() {
        for entry in DEFENSES {
            let schema = (entry.schema)();
            let defaults = (entry.configure)(&DefenseCommon::default(), json!({})).unwrap().parameters();
            for (field, property) in schema.get("properties").unwrap().as_object().unwrap() {
                assert!(defaults.get(field).is_some(), "{}.{field}", entry.name);
                assert!(property.get("description").is_some(), "{}.{field}", entry.name);
            }
        }
    }

    #[test]
    fn every_shared_parameter_of_the_schema_has_a_default_and_a_description() {
        let schema = schemars::schema_for!(DefenseCommon);
        let properties = schema.get("properties").unwrap();
        for (field, property) in properties.as_object().unwrap() {
            assert!(property.get("default").is_some() && property.get("description").is_some(), "{field}");
        }
        assert_eq!(properties["precision"]["default"], "f32", "though it is not in the key");
        assert_eq!(properties["precision"]["enum"], json!(["f32", "tf32", "bf16"]));
    }

    #[test]
    fn what_is_published_for_a_data_set_are_parameters_that_the_defense_takes() {
        let facts = |classes, size| DatasetFacts::balanced(classes, 100_000, 10_000, size);
        let mut particular = Vec::new();
        for entry in DEFENSES {
            let usual = (entry.configure)(&DefenseCommon::default(), json!({})).unwrap().parameters();
            assert_eq!((entry.published)(&facts(10, 32)), json!({}), "{}: CIFAR-10 has the defaults", entry.name);
            for dataset in [facts(43, 32), facts(200, 64)] {
                let published = (entry.published)(&dataset);
                for (field, value) in published.as_object().unwrap() {
                    assert_ne!(&usual[field], value, "{}.{field}", entry.name);
                }
                let taken = entry.from_parameters(&published).unwrap().parameters();
                assert!(published.as_object().unwrap().iter().all(|(field, value)| taken[field] == *value));
                if taken != usual {
                    particular.push((entry.name, dataset.classes));
                }
            }
        }
        for name in ["ft", "fp", "nad", "nc"] {
            assert!(particular.contains(&(name, 200)), "{name} has numbers of its own for Tiny ImageNet");
        }
    }

    #[test]
    fn fewer_clean_images_than_classes_are_refused() {
        let facts = |train_images| DatasetFacts::balanced(10, train_images, 10_000, 32);
        assert!(DefenseCommon::default().check(&facts(200)).is_ok());
        let error = DefenseCommon::default().check(&facts(199)).unwrap_err();
        assert_eq!(
            (error.field.as_str(), error.way_out.as_str()),
            ("clean_ratio", "give at least 0.05025125628140704")
        );
        for train_images in [11, 47, 49, 94, 188, 12_345, 50_000] {
            let error = DefenseCommon { clean_ratio: 1e-9, ..DefenseCommon::default() }.check(&facts(train_images));
            let way_out = error.unwrap_err().way_out;
            let clean_ratio = way_out.trim_start_matches("give at least ").parse().unwrap();
            let suggested = DefenseCommon { clean_ratio, ..DefenseCommon::default() };
            assert!(suggested.check(&facts(train_images)).is_ok(), "{train_images}: {way_out}");
        }
        let wide = DefenseCommon { clean_ratio: 1.5, ..DefenseCommon::default() };
        assert_eq!(wide.check(&facts(200)).unwrap_err().field, "clean_ratio");
    }
}
