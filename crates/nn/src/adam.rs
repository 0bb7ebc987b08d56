//! Adam.

use crate::storage::{FileTensors, read, refuse_others};
use crate::{Error, Layout, Module, ParameterGradients, Result, Role, Slot, StateDict, write_atomically};
use indexmap::IndexMap;
use safetensors::SafeTensors;
use std::path::Path;
use tsbd_tensor::{Device, Tensor, adam_step};

/// What the optimiser needs to know.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct AdamConfig {
    /// The step size.
    pub learning_rate: f64,
    /// How much of the first and of the second moment each step keeps, in `[0, 1)`.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub epsilon: f64,
}

impl AdamConfig {
    /// This learning rate with PyTorch's other defaults: betas .9 and .999, epsilon 1e-8.
    pub fn new(learning_rate: f64) -> AdamConfig {
        AdamConfig { learning_rate, betas: [0.9, 0.999], epsilon: 1e-8 }
    }
}

/// The optimiser with its moments.
///
/// As PyTorch's `Adam` without weight decay and AMSGrad; see [`tsbd_tensor::adam_step`]. Moments begin at 0.
#[derive(Debug)]
pub struct Adam {
    config: AdamConfig,
    steps: u64,
    /// The first and the second moment of each parameter.
    moments: IndexMap<String, [Tensor; 2]>,
}

/// The names of the moments in a file, PyTorch's.
const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

impl Adam {
    /// An optimiser that has made no step yet.
    pub fn new(config: AdamConfig, state: &StateDict) -> Result<Adam> {
        let zeros = state
            .parameters()
            .map(|(name, tensor)| Ok((name.to_owned(), [tensor.zeros_like()?, tensor.zeros_like()?])));
        Ok(Adam { config, steps: 0, moments: zeros.collect::<Result<_>>()? })
    }

    /// Its configuration.
    pub fn config(&self) -> &AdamConfig {
        &self.config
    }

    /// How many steps it has made.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Moments (themselves, not copies) and step count under their names with `prefix` before them, as they lie in
    /// memory: for a state kept in a checkpoint with others.
    pub fn tensors(&self, prefix: &str) -> Result<IndexMap<String, Tensor>> {
        let named = |(name, moments): (&String, &[Tensor; 2])| {
            let name = name.clone();
            let pairs = MOMENTS.iter().zip(moments.clone());
            pairs.map(|(kind, moment)| (format!("{prefix}{kind}.{name}"), moment)).collect::<Vec<_>>()
        };
        let mut tensors: IndexMap<_, _> = self.moments.iter().flat_map(named).collect();
        tensors.insert(format!("{prefix}step"), Tensor::new(self.steps as i64, &Device::Cpu)?);
        Ok(tensors)
    }

    /// Takes copies of what [`Self::tensors`] gave: the next step has the same bits as if the optimiser had never been
    /// away.
    pub fn restore(&mut self, prefix: &str, tensors: &IndexMap<String, Tensor>) -> Result<()> {
        let find = |name: &str| {
            let name = format!("{prefix}{name}");
            tensors.get(&name).ok_or_else(|| {
                let example = tensors.keys().next().cloned().unwrap_or_default();
                Error::UnknownTensor { name, example }
            })
        };
        for (name, moments) in &mut self.moments {
            for (kind, moment) in MOMENTS.iter().zip(moments) {
                *moment = crate::state::owned(find(&format!("{kind}.{name}"))?)?.to_device(moment.device())?;
            }
        }
        self.steps = find("step")?.to_scalar::<i64>()? as u64;
        Ok(())
    }

    /// Changes the parameters in place, with the learning rate of the configuration.
    pub fn step(&mut self, state: &mut StateDict, gradients: &ParameterGradients) -> Result<()> {
        self.step_at(self.config.learning_rate, state, gradients)
    }

    /// Changes the parameters in place, with this learning rate.
    pub fn step_at(&mut self, learning_rate: f64, state: &mut StateDict, gradients: &ParameterGradients) -> Result<()> {
        let AdamConfig { betas, epsilon, .. } = self.config;
        let options = tsbd_tensor::Adam { learning_rate, betas, epsilon };
        self.steps += 1;
        for (name, [first, second]) in &self.moments {
            adam_step(state.get(name)?, first, second, gradients.get(name)?, self.steps, options)?;
        }
        Ok(())
    }

    /// Writes moments and step count to a safetensors file, whole or not at all: `exp_avg.<parameter>` and
    /// `exp_avg_sq.<parameter>` in PyTorch's layouts, and `step`. `state` is the one that the optimiser steps.
    pub fn save(&self, state: &StateDict, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut file = FileTensors::new();
        for (name, moments) in &self.moments {
            for (kind, moment) in MOMENTS.iter().zip(moments) {
                file.add(format!("{kind}.{name}"), moment, state.entry(name)?.layout)?;
            }
        }
        file.add("step".to_owned(), &Tensor::new(self.steps as i64, &Device::Cpu)?, Layout::Same)?;
        write_atomically(path, &[&file.serialize(None, path)?])
    }

    /// Reads what [`Adam::save`] wrote, for a network with these `modules`: the next step has the same bits as if the
    /// optimiser had never been away.
    pub fn load(config: AdamConfig, modules: &[Module], path: impl AsRef<Path>) -> Result<Adam> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(Error::file(path))?;
        let unreadable = |source| Error::Safetensors { path: path.to_path_buf(), source };
        let file = SafeTensors::deserialize(&bytes).map_err(unreadable)?;
        let mut moments = IndexMap::new();
        for slot in modules.iter().flat_map(Module::slots).filter(|slot| slot.role == Role::Parameter) {
            let [first, second] = MOMENTS.map(|kind| read(&file, &format!("{kind}.{}", slot.name), &slot, path, true));
            moments.insert(slot.name, [crate::state::owned(&first?)?, crate::state::owned(&second?)?]);
        }
        let step = Slot { name: "step".to_owned(), dims: vec![], role: Role::Counter, layout: Layout::Same };
        let steps = read(&file, "step", &step, path, true)?.to_scalar::<i64>()? as u64;
        let expected = |name: &str| match name.split_once('.') {
            Some((kind, parameter)) => MOMENTS.contains(&kind) && moments.contains_key(parameter),
            None => name == "step",
        };
        refuse_others(&file, expected, path)?;
        Ok(Adam { config, steps, moments })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny::{batches, model, tiny};
    use crate::{Architecture, LossOptions, Mode, Model};

    fn step(model: &mut Model, adam: &mut Adam, batch: &crate::Batch) {
        let gradients = model.gradients(batch, Mode::Train, &LossOptions::default()).unwrap().gradients;
        adam.step(&mut model.state, &gradients).unwrap();
    }

    #[test]
    fn a_restored_optimiser_goes_on_with_the_same_bits() {
        let batches = batches(4);
        let (mut model, folder) = (model(0), tempfile::tempdir().unwrap());
        let path = folder.path().join("adam.safetensors");
        let mut adam = Adam::new(AdamConfig::new(0.01), &model.state).unwrap();
        for batch in &batches[..2] {
            step(&mut model, &mut adam, batch);
        }
        adam.save(&model.state, &path).unwrap();
        let mut resumed = model.clone();
        let mut restored = Adam::load(*adam.config(), tiny().modules(), &path).unwrap();
        assert_eq!(restored.steps(), 2);
        let mut forgetful = (model.clone(), Adam::new(AdamConfig::new(0.01), &model.state).unwrap());
        for batch in &batches[2..] {
            step(&mut model, &mut adam, batch);
            step(&mut resumed, &mut restored, batch);
            step(&mut forgetful.0, &mut forgetful.1, batch);
        }
        let digest = |model: &Model| model.state.digest().unwrap();
        assert_eq!(digest(&resumed), digest(&model));
        assert_ne!(digest(&forgetful.0), digest(&model), "the moments matter");
    }

    #[test]
    fn an_optimiser_restored_from_a_checkpoints_tensors_goes_on_with_the_same_bits() {
        let (batches, mut model) = (batches(3), model(0));
        let mut adam = Adam::new(AdamConfig::new(0.01), &model.state).unwrap();
        step(&mut model, &mut adam, &batches[0]);
        let mut resumed = model.clone();
        let mut restored = Adam::new(*adam.config(), &resumed.state).unwrap();
        restored.restore("a.", &adam.tensors("a.").unwrap()).unwrap();
        assert_eq!(restored.steps(), 1);
        for batch in &batches[1..] {
            step(&mut model, &mut adam, batch);
            step(&mut resumed, &mut restored, batch);
        }
        assert_eq!(resumed.state.digest().unwrap(), model.state.digest().unwrap());
        let foreign = restored.restore("b.", &adam.tensors("a.").unwrap()).unwrap_err();
        assert!(
            matches!(foreign, Error::UnknownTensor { ref name, .. } if name.starts_with("b.exp_avg.")),
            "{foreign}"
        );
    }

    #[test]
    fn a_file_of_another_network_is_refused() {
        let (model, folder) = (model(0), tempfile::tempdir().unwrap());
        let path = folder.path().join("adam.safetensors");
        let config = AdamConfig::new(0.01);
        Adam::new(config, &model.state).unwrap().save(&model.state, &path).unwrap();
        let modules = tiny().modules().to_vec();
        let fewer = Adam::load(config, &modules[..2], &path).unwrap_err();
        assert!(matches!(fewer, Error::TensorUnexpected { ref name, .. } if name == "exp_avg.linear.bias"), "{fewer}");
        let mut wider = modules;
        wider[2].layer = crate::Layer::Linear { in_features: 4, out_features: 7 };
        let wider = Adam::load(config, &wider, &path).unwrap_err();
        assert!(matches!(wider, Error::TensorShape { ref name, .. } if name == "exp_avg.linear.weight"), "{wider}");
    }
}
