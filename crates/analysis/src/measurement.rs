//! What a measurement is: its entry in the registry, its checked form, what it needs, and what it finds out.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use serde_json::{Map, Value};
use tsbd_attack::{ParameterError, TriggeredTest};
use tsbd_data::{ImageSource, Subset};
use tsbd_nn::{Architecture, Model, RandomStream};

use crate::{Context, Error, NeuronLayer, NeuronVector, NeuronVectors, Neurons, UnlearnedModel, Unlearning};

/// Makes a checked measurement of its parameters.
pub type Configure = fn(&Value) -> Result<Box<dyn Measurement>, ParameterError>;

/// One measurement in the registry.
pub struct MeasurementEntry {
    /// Name as the user writes it, e.g. `nwc`.
    pub name: &'static str,
    /// Name as papers print it, e.g. `NWC`.
    pub title: &'static str,
    /// Where it was published.
    pub paper: &'static str,
    /// One sentence: what is measured.
    pub summary: &'static str,
    /// Raised whenever results of the same parameters change; part of a cell's key.
    pub revision: u32,
    /// The numbers that tables can show.
    pub scalars: &'static [Scalar],
    /// JSON schema of its parameters.
    pub schema: fn() -> schemars::Schema,
    /// Checks the parameters as far as it goes without network and data set.
    pub configure: Configure,
}

impl Debug for MeasurementEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeasurementEntry").field("name", &self.name).field("revision", &self.revision).finish()
    }
}

/// A number that a measurement gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scalar {
    /// Its name. Where it ends with `*`, there are several, which begin like this.
    pub name: &'static str,
    /// What it is, with its range or unit. Numbers of measurements are not printed as percentages.
    pub meaning: &'static str,
}

impl MeasurementEntry {
    /// Whether it gives a number of this name.
    pub fn gives(&self, name: &str) -> bool {
        self.scalars.iter().any(|scalar| match scalar.name.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == scalar.name,
        })
    }
}

/// A configured measurement of one model, which an attack has trained and a defense may have repaired.
pub trait Measurement: Send + Sync + Debug {
    /// All parameters, defaults filled: what identifies the measurement in a cell's key, beside what it needs.
    fn parameters(&self) -> Value;

    /// What it has to be given.
    fn needs(&self) -> Needs;

    /// Refuses what this network does not allow.
    fn check(&self, architecture: &dyn Architecture) -> Result<(), ParameterError>;

    /// Refuses what the defenses of [`Needs::scores`] do not allow: `scored` has of each the layers that it scores, by the
    /// names that its scores have.
    fn check_scores(
        &self,
        _architecture: &dyn Architecture,
        _scored: &BTreeMap<String, Vec<String>>,
    ) -> Result<(), ParameterError> {
        Ok(())
    }

    /// Measures. The same arguments give the same bits.
    fn measure(&self, subject: &Subject, context: &mut Context) -> Result<Measured, Error>;
}

/// What a measurement has to be given beside the model and the images.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Needs {
    /// The clean model with the same images, network, training and seed.
    pub clean_model: bool,
    /// The numbers of TSBD's clean unlearning and the clean images that it uses.
    pub unlearning: bool,
    /// The model after that unlearning.
    pub unlearned: bool,
    /// The model after the same unlearning of triggered images, until the attack success rate is at most this.
    pub poison_unlearned: Option<f64>,
    /// Defenses by whose scores neurons are compared.
    pub scores: Vec<String>,
}

/// A model, and what a measurement needs beside it.
#[derive(Clone, Default)]
pub struct Subject<'a> {
    /// The model.
    pub model: Option<&'a Model>,
    /// [`Needs::clean_model`].
    pub clean_model: Option<&'a Model>,
    /// [`Needs::unlearning`]: its numbers and its images.
    pub unlearning: Option<(&'a Unlearning, Arc<dyn ImageSource>)>,
    /// [`Needs::unlearned`].
    pub unlearned: Option<&'a UnlearnedModel>,
    /// [`Needs::poison_unlearned`].
    pub poison_unlearned: Option<&'a UnlearnedModel>,
    /// Test images with and without the trigger.
    pub pairs: Option<Pairs>,
    /// By defense, the scores of [`Needs::scores`].
    pub scores: BTreeMap<String, NeuronVector>,
}

/// The test images that count for the attack success rate, without and with the trigger, in the same order.
#[derive(Clone)]
pub struct Pairs {
    /// Without, with their true labels.
    pub clean: Arc<dyn ImageSource>,
    /// With, with the label that the attacker wants.
    pub triggered: Arc<dyn ImageSource>,
}

impl Pairs {
    /// The pairs of a triggered test set.
    pub fn of(triggered: &Arc<TriggeredTest>) -> Pairs {
        let indices = (0..triggered.len()).map(|position| triggered.index(position) as u32).collect();
        let clean = Arc::new(Subset::new(Arc::clone(triggered.beneath()) as _, indices));
        Pairs { clean, triggered: Arc::clone(triggered) as _ }
    }

    /// At most `count` of them, drawn from `stream`, in their order.
    pub fn at_most(&self, count: usize, stream: &mut RandomStream) -> Pairs {
        if count >= self.clean.len() {
            return self.clone();
        }
        let mut drawn = stream.permutation(self.clean.len());
        drawn.truncate(count);
        drawn.sort_unstable();
        let part = |of: &Arc<dyn ImageSource>| Arc::new(Subset::new(Arc::clone(of), drawn.clone())) as _;
        Pairs { clean: part(&self.clean), triggered: part(&self.triggered) }
    }
}

/// What a measurement found out.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Measured {
    /// The numbers of [`MeasurementEntry::scalars`]; what is undefined is left out.
    pub scalars: BTreeMap<String, f64>,
    /// Vectors with a number for each neuron.
    pub vectors: NeuronVectors,
    /// Which form, which layers, how many images: what a reader has to know.
    pub facts: Map<String, Value>,
}

impl Measured {
    /// Adds a number, if it is defined.
    pub(crate) fn with_scalar(mut self, name: impl Into<String>, value: Option<f64>) -> Measured {
        self.scalars.extend(value.map(|value| (name.into(), value)));
        self
    }

    /// Adds a vector.
    pub(crate) fn with_vector(mut self, name: impl Into<String>, vector: NeuronVector) -> Measured {
        self.vectors.insert(name.into(), vector);
        self
    }

    /// Adds a fact.
    pub(crate) fn with_fact(mut self, name: &str, value: impl Into<Value>) -> Measured {
        self.facts.insert(name.to_owned(), value.into());
        self
    }
}

/// What was needed, or an error that names it.
pub(crate) fn given<T>(part: Option<T>, name: &'static str) -> Result<T, Error> {
    part.ok_or(Error::NotGiven { part: name })
}

/// Refuses a layer that is no convolution with neurons of the network. None given: the last one.
pub(crate) fn check_layer(layer: &Option<String>, architecture: &dyn Architecture) -> Result<(), ParameterError> {
    let neurons = Neurons::of(architecture);
    if layer_named(layer, &neurons).is_some() {
        return Ok(());
    }
    let names: Vec<&str> = neurons.layers().iter().map(|layer| layer.module.as_str()).collect();
    Err(ParameterError::new(
        "layer",
        serde_json::to_string(layer).unwrap_or_default(),
        format!("{} has no such convolution", architecture.name()),
        format!("give one of {}", names.join(", ")),
    ))
}

/// The layer of this name; the last one if none is given.
pub(crate) fn layer_named<'n>(layer: &Option<String>, neurons: &'n Neurons) -> Option<&'n NeuronLayer> {
    match layer {
        None => neurons.layers().last(),
        Some(name) => neurons.layers().iter().find(|layer| layer.module == *name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MEASUREMENTS;
    use crate::golden;

    #[test]
    fn every_measurement_has_its_own_name_and_reads_back_the_parameters_it_writes() {
        for (place, entry) in MEASUREMENTS.iter().enumerate() {
            assert!(MEASUREMENTS[..place].iter().all(|other| other.name != entry.name));
            assert!(std::ptr::eq(crate::find(entry.name).unwrap(), *entry));
            let measurement = (entry.configure)(&Value::Null).unwrap();
            let parameters = measurement.parameters();
            assert_eq!((entry.configure)(&parameters).unwrap().parameters(), parameters);
            let schema = (entry.schema)();
            for (field, property) in schema.get("properties").unwrap().as_object().unwrap() {
                assert!(parameters.get(field).is_some(), "{}.{field}", entry.name);
                assert!(property.get("description").is_some(), "{}.{field}", entry.name);
            }
            let wrong = serde_json::json!({"no_such_parameter": 1});
            assert_eq!((entry.configure)(&wrong).unwrap_err().field, "no_such_parameter");
        }
    }

    #[test]
    fn every_measurement_gives_the_numbers_it_announces_the_same_each_time_and_touches_no_model() {
        golden::with_subject(|subject| {
            let digests = || {
                let unlearned = [subject.unlearned, subject.poison_unlearned].map(|found| Some(&found.unwrap().model));
                let models = [subject.model, subject.clean_model].into_iter().chain(unlearned);
                models.map(|model| model.unwrap().state.digest().unwrap()).collect::<Vec<_>>()
            };
            let before = digests();
            for entry in MEASUREMENTS {
                // Of so few neurons the usual ratios would select none.
                let few = serde_json::json!({"neuron_ratios": [0.25, 0.5]});
                let own = if entry.name == "coverage" { few } else { Value::Null };
                let measurement = (entry.configure)(&own).unwrap();
                let measured = || {
                    golden::in_context(&mut crate::NoObserver, |context| measurement.measure(subject, context).unwrap())
                };
                let found = measured();
                assert_eq!(digests(), before, "{} touched a model", entry.name);
                assert_eq!(found, measured(), "{}", entry.name);
                assert!(!found.vectors.is_empty() && !found.scalars.is_empty(), "{}", entry.name);
                assert!(found.scalars.keys().all(|name| entry.gives(name)), "{}: {:?}", entry.name, found.scalars);
                for scalar in entry.scalars {
                    let start = scalar.name.trim_end_matches('*');
                    assert!(found.scalars.keys().any(|name| name.starts_with(start)), "{}.{}", entry.name, scalar.name);
                }
                let vectors = found.vectors.values().flat_map(NeuronVector::values);
                assert!(vectors.chain(found.scalars.values().copied()).all(f64::is_finite), "{}", entry.name);
            }
        });
    }

    #[test]
    fn what_is_needed_and_not_given_is_named() {
        for entry in MEASUREMENTS {
            let measurement = (entry.configure)(&Value::Null).unwrap();
            let missing = golden::in_context(&mut crate::NoObserver, |context| {
                measurement.measure(&Subject::default(), context).unwrap_err()
            });
            assert!(matches!(missing, Error::NotGiven { part: "the model" }), "{}: {missing}", entry.name);
        }
    }

    #[test]
    fn an_unknown_layer_is_refused_with_those_there_are() {
        for entry in MEASUREMENTS.iter().filter(|entry| entry.name != "tac" && entry.name != "coverage") {
            let of = |layer: &str| (entry.configure)(&serde_json::json!({"layer": layer})).unwrap();
            assert!(of("conv1").check(golden::architecture().as_ref()).is_ok());
            let error = of("shortcut").check(golden::architecture().as_ref()).unwrap_err();
            assert_eq!((error.field.as_str(), error.way_out.as_str()), ("layer", "give one of conv1, conv2"));
        }
    }

    #[test]
    fn pairs_are_drawn_together_and_keep_their_order() {
        let pairs = golden::pairs();
        let stream = || tsbd_nn::Streams::new(3).stream("test", 0);
        let few = pairs.at_most(5, &mut stream());
        assert_eq!((few.clean.len(), few.triggered.len()), (5, 5));
        let places: Vec<usize> = (0..5)
            .map(|place| {
                let found =
                    (0..pairs.clean.len()).find(|all| pairs.clean.image(*all) == few.clean.image(place)).unwrap();
                assert_eq!(few.triggered.image(place), pairs.triggered.image(found));
                found
            })
            .collect();
        assert!(places.is_sorted());
        assert_eq!(pairs.at_most(100, &mut stream()).clean.len(), pairs.clean.len());
    }
}
