//! Adam.

use indexmap::IndexMap;
use tsbd_tensor::{Device, Tensor, adam_step, amsgrad_step};

use crate::{Error, ParameterGradients, Result, StateDict};

/// What the optimiser needs to know.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct AdamConfig {
    /// The step size.
    pub learning_rate: f64,
    /// How much of the first and of the second moment each step keeps, in `[0, 1)`.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Whether the largest second moment so far stands for the present one, so that steps never grow because gradients
    /// have become small.
    #[serde(default)]
    pub amsgrad: bool,
}

impl AdamConfig {
    /// This learning rate with PyTorch's other defaults: betas .9 and .999, epsilon 1e-8, no AMSGrad.
    pub fn new(learning_rate: f64) -> AdamConfig {
        AdamConfig { learning_rate, betas: [0.9, 0.999], epsilon: 1e-8, amsgrad: false }
    }
}

/// The optimiser with its moments.
///
/// As PyTorch's `Adam` without weight decay; see [`tsbd_tensor::adam_step`] and [`tsbd_tensor::amsgrad_step`]. Moments
/// begin at 0.
#[derive(Debug)]
pub struct Adam {
    config: AdamConfig,
    steps: u64,
    /// The first and the second moment of each parameter, and with AMSGrad the largest second one.
    moments: IndexMap<String, Vec<Tensor>>,
}

/// The names of the moments, PyTorch's.
const MOMENTS: [&str; 3] = ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"];

impl Adam {
    /// An optimiser that has made no step yet.
    pub fn new(config: AdamConfig, state: &StateDict) -> Result<Adam> {
        let kept = if config.amsgrad { 3 } else { 2 };
        let zeros = state.parameters().map(|(name, tensor)| {
            let moments: Result<_> = (0..kept).map(|_| Ok(tensor.zeros_like()?)).collect();
            Ok((name.to_owned(), moments?))
        });
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
        let named = |(name, moments): (&String, &Vec<Tensor>)| {
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
        for (name, moments) in &self.moments {
            let (parameter, gradient) = (state.get(name)?, gradients.get(name)?);
            match moments.as_slice() {
                [first, second, largest] => {
                    amsgrad_step(parameter, first, second, largest, gradient, self.steps, options)?;
                }
                moments => adam_step(parameter, &moments[0], &moments[1], gradient, self.steps, options)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny::{batches, model};
    use crate::{LossOptions, Mode, Model};

    fn step(model: &mut Model, adam: &mut Adam, batch: &crate::Batch) {
        let gradients = model.gradients(batch, Mode::Train, &LossOptions::default()).unwrap().gradients;
        adam.step(&mut model.state, &gradients).unwrap();
    }

    #[test]
    fn an_optimiser_restored_from_a_checkpoints_tensors_goes_on_with_the_same_bits() {
        for amsgrad in [false, true] {
            goes_on(AdamConfig { amsgrad, ..AdamConfig::new(0.01) });
        }
    }

    fn goes_on(config: AdamConfig) {
        let (batches, mut model) = (batches(3), model(0));
        let mut adam = Adam::new(config, &model.state).unwrap();
        step(&mut model, &mut adam, &batches[0]);
        let mut resumed = model.clone();
        let mut forgetful = (model.clone(), Adam::new(config, &model.state).unwrap());
        let mut restored = Adam::new(*adam.config(), &resumed.state).unwrap();
        restored.restore("a.", &adam.tensors("a.").unwrap()).unwrap();
        assert_eq!(restored.steps(), 1);
        for batch in &batches[1..] {
            step(&mut model, &mut adam, batch);
            step(&mut resumed, &mut restored, batch);
            step(&mut forgetful.0, &mut forgetful.1, batch);
        }
        assert_eq!(resumed.state.digest().unwrap(), model.state.digest().unwrap());
        assert_ne!(forgetful.0.state.digest().unwrap(), model.state.digest().unwrap(), "the moments matter");
        let foreign = restored.restore("b.", &adam.tensors("a.").unwrap()).unwrap_err();
        assert!(
            matches!(foreign, Error::UnknownTensor { ref name, .. } if name.starts_with("b.exp_avg.")),
            "{foreign}"
        );
    }
}
