//! What an attack needs made before it can poison anything: a pattern searched on a clean model, a trained encoder.
//!
//! It is a cell of its own, made once and shared by every cell that needs the same: its key is made of
//! [`Groundwork::parameters`], not of all parameters of the attack. The clean model that it may start from is the very
//! cell of the attack `none` with the same images, network, training and seed.
//!
//! Not here: who runs it (the orchestrator), and what each attack makes (the attacks' own crates).

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use candle_core::safetensors::Load as _;
use indexmap::IndexMap;
use safetensors::SafeTensors;
use serde_json::{Map, Value};
use tsbd_data::{CHANNELS, Dataset, Picture};
use tsbd_nn::{Architecture, Model, Module, StateDict, Streams, write_atomically};
use tsbd_tensor::{Device, Tensor};

use crate::Error;
use crate::parameters::ParameterError;

/// What an attack needs made before it can poison.
pub trait Groundwork: Send + Sync + Debug {
    /// Everything that determines the result, as a part of the attack's [`crate::Attack::parameters`]: what the attack
    /// does with the result afterwards (how many images it poisons, which label it gives) has no place here. An attack
    /// configured with these alone, and defaults for the rest, has the same groundwork.
    fn parameters(&self) -> Value;

    /// Whether [`Self::make`] starts from a trained clean model.
    fn needs_clean_model(&self) -> bool;

    /// Refuses what the network that it starts from does not allow. Asked only where a clean model is needed.
    fn check(&self, _architecture: &dyn Architecture) -> Result<(), ParameterError> {
        Ok(())
    }

    /// Makes it. The same parameters, images, model and streams give the same bits.
    fn make(&self, context: &mut GroundworkContext<'_>) -> Result<Material, Error>;
}

/// What surrounds the making of a groundwork.
pub struct GroundworkContext<'a> {
    /// The clean data set. An attacker has its training images.
    pub clean: &'a Arc<Dataset>,
    /// The clean model, for a groundwork that needs one; see [`Self::clean_model`].
    pub model: Option<&'a Model>,
    /// Random streams of the cell's seed.
    pub streams: Streams,
    /// The device to compute on; that of the model.
    pub device: Device,
    /// Who watches.
    pub observer: &'a mut dyn GroundworkObserver,
}

impl<'a> GroundworkContext<'a> {
    /// The clean model, or an error if nobody gave one.
    pub fn clean_model(&self) -> Result<&'a Model, Error> {
        self.model.ok_or(Error::NoCleanModel)
    }

    /// Tells that `done` of at most `total` steps of `stage` are done; an error if the observer wants to stop.
    pub fn step(&mut self, stage: &str, done: usize, total: usize, loss: Option<f64>) -> Result<(), Error> {
        match self.observer.step(stage, done, total, loss) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Stopped { stage: stage.to_owned() }),
        }
    }

    /// Keeps what a later making of the same groundwork can go on from: [`Self::kept`] gives it then.
    pub fn keep(&mut self, run: &str, state: &IndexMap<String, Tensor>) -> Result<(), Error> {
        Ok(self.observer.keep(run, state)?)
    }

    /// What an earlier making, which did not come to its end, kept last under the same `run`; nothing in most cases.
    pub fn kept(&mut self, run: &str) -> Option<IndexMap<String, Tensor>> {
        self.observer.kept(run)
    }

    /// Tells the metrics at the end of round `round` (an epoch, a pass), from 0; they are kept in the record.
    pub fn round(&mut self, stage: &str, round: usize, metrics: &[(&str, f64)]) {
        self.observer.round(stage, round, metrics);
    }
}

/// Watches a groundwork being made, and can stop it.
pub trait GroundworkObserver {
    /// A step is done; may be told often. `Break` stops: the making ends with [`Error::Stopped`].
    fn step(&mut self, _stage: &str, _done: usize, _total: usize, _loss: Option<f64>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// A round has ended with these metrics.
    fn round(&mut self, _stage: &str, _round: usize, _metrics: &[(&str, f64)]) {}

    /// Keeps a state of the making, in place of the one before. `run` says what it belongs to.
    fn keep(&mut self, _run: &str, _state: &IndexMap<String, Tensor>) -> tsbd_nn::Result<()> {
        Ok(())
    }

    /// The state that was kept last by a making of the same `run` which did not come to its end, if it can be used.
    fn kept(&mut self, _run: &str) -> Option<IndexMap<String, Tensor>> {
        None
    }
}

/// Watches nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoObserver;

impl GroundworkObserver for NoObserver {}

/// What a groundwork has made: tensors, which the attack goes on with, and what is told of them.
#[derive(Debug, Clone, Default)]
pub struct Material {
    tensors: BTreeMap<String, Tensor>,
    /// Rates and losses, for the record: the bit accuracy of a decoder, the fooling rate of a pattern. Finite.
    pub metrics: BTreeMap<String, f64>,
    /// Counts and choices, for the record.
    pub facts: Map<String, Value>,
}

impl Material {
    /// Nothing yet.
    pub fn new() -> Material {
        Material::default()
    }

    /// Adds a tensor; one of the same name is replaced.
    pub fn with_tensor(mut self, name: impl Into<String>, tensor: Tensor) -> Material {
        self.tensors.insert(name.into(), tensor);
        self
    }

    /// Adds a picture, as a tensor `u8` `[height, width, 3]`.
    pub fn with_picture(self, name: impl Into<String>, picture: Picture) -> Result<Material, Error> {
        let Picture { pixels, height, width } = picture;
        let tensor = Tensor::from_vec(pixels, (height, width, CHANNELS), &Device::Cpu).map_err(tsbd_nn::Error::from)?;
        Ok(self.with_tensor(name, tensor))
    }

    /// The picture that [`Self::with_picture`] added.
    pub fn picture(&self, name: &str) -> Result<Picture, Error> {
        let tensor = self.tensor(name)?;
        let pixels = tensor.flatten_all().and_then(|levels| levels.to_vec1()).map_err(tsbd_nn::Error::from)?;
        let (height, width, _) = tensor.dims3().map_err(tsbd_nn::Error::from)?;
        Ok(Picture { pixels, height, width })
    }

    /// Adds a metric.
    pub fn with_metric(mut self, name: impl Into<String>, value: f64) -> Material {
        self.metrics.insert(name.into(), value);
        self
    }

    /// Adds a fact.
    pub fn with_fact(mut self, name: impl Into<String>, value: impl Into<Value>) -> Material {
        self.facts.insert(name.into(), value.into());
        self
    }

    /// Adds all tensors of a network's state as `<prefix>.<name>`, in the layout of memory.
    pub fn with_state(mut self, prefix: &str, state: &StateDict) -> Material {
        let named = state.entries().map(|(name, entry)| (format!("{prefix}.{name}"), entry.tensor.clone()));
        self.tensors.extend(named);
        self
    }

    /// The state that [`Self::with_state`] added, of a network with these modules.
    pub fn state(&self, prefix: &str, modules: &[Module]) -> Result<StateDict, Error> {
        for slot in modules.iter().flat_map(Module::slots) {
            let found = self.tensor(&format!("{prefix}.{}", slot.name))?.dims();
            if found != slot.dims {
                let (expected, found) = (format!("{:?}", slot.dims), format!("{found:?}"));
                return Err(tsbd_nn::Error::Replacement { name: slot.name, expected, found }.into());
            }
        }
        Ok(StateDict::build(modules, |_, slot| Ok(self.tensors[&format!("{prefix}.{}", slot.name)].clone()))?)
    }

    /// The tensor `name`.
    pub fn tensor(&self, name: &str) -> Result<&Tensor, Error> {
        let found = || self.tensors.keys().cloned().collect::<Vec<_>>().join(", ");
        self.tensors.get(name).ok_or_else(|| Error::MaterialTensor { name: name.to_owned(), found: found() })
    }

    /// All tensors by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Writes the tensors as safetensors, whole or not at all; equal tensors give equal bytes. Metrics and facts are
    /// the record's.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let bytes = safetensors::serialize(self.tensors(), None)
            .map_err(|source| tsbd_nn::Error::Safetensors { path: path.to_owned(), source })?;
        Ok(write_atomically(path, &[&bytes])?)
    }

    /// Reads the tensors that [`Self::save`] wrote, without metrics and facts.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Material, Error> {
        let path = path.as_ref();
        let bytes = fs_err::read(path)?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|source| tsbd_nn::Error::Safetensors { path: path.to_owned(), source })?;
        let mut material = Material::new();
        for (name, view) in file.tensors() {
            material.tensors.insert(name, view.load(device).map_err(tsbd_nn::Error::from)?);
        }
        Ok(material)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn material() -> Material {
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        Material::new()
            .with_tensor("weight", tensor(&[0.1, -2.5, f32::MIN_POSITIVE]))
            .with_tensor("trigger", Tensor::new(&[[0u8, 255], [7, 9]], &Device::Cpu).unwrap())
            .with_metric("bit_accuracy", 0.99)
    }

    #[test]
    fn saved_tensors_load_with_the_same_bits_and_types_and_save_to_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["a", "b"].map(|name| folder.path().join(name));
        material().save(&first).unwrap();
        let loaded = Material::load(&first, &Device::Cpu).unwrap();
        assert_eq!(loaded.tensor("trigger").unwrap().to_vec2::<u8>().unwrap(), [[0, 255], [7, 9]]);
        let weight = loaded.tensor("weight").unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(weight, [0.1, -2.5, f32::MIN_POSITIVE]);
        assert!(loaded.metrics.is_empty(), "metrics are the record's");
        loaded.save(&second).unwrap();
        assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
    }

    #[test]
    fn a_missing_tensor_and_a_damaged_file_are_named() {
        let error = material().tensor("pattern").unwrap_err().to_string();
        assert!(error.contains("`pattern`") && error.contains("trigger, weight"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("material.safetensors");
        material().save(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let error = Material::load(&path, &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("material.safetensors"), "{error}");
        let missing = Material::load(folder.path().join("none"), &Device::Cpu).unwrap_err().to_string();
        assert!(missing.contains("none"), "{missing}");
    }

    #[test]
    fn an_observer_that_breaks_stops_the_making() {
        struct Impatient;
        impl GroundworkObserver for Impatient {
            fn step(&mut self, _: &str, done: usize, _: usize, _: Option<f64>) -> ControlFlow<()> {
                if done < 2 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            }
        }
        let images = || tsbd_data::Images::new(vec![7; 24], vec![0, 1], (2, 2), 2);
        let normalization = tsbd_data::Normalization::IDENTITY;
        let clean = Arc::new(Dataset::new("test", images(), images(), &["a", "b"], normalization, false));
        let mut context = GroundworkContext {
            clean: &clean,
            model: None,
            streams: Streams::new(0),
            device: Device::Cpu,
            observer: &mut Impatient,
        };
        assert!(context.step("search", 1, 3, None).is_ok());
        assert!(matches!(context.step("search", 2, 3, None), Err(Error::Stopped { stage }) if stage == "search"));
        assert!(matches!(context.clean_model(), Err(Error::NoCleanModel)));
    }
}
