//! Stochastic gradient descent with momentum and weight decay.

use crate::{ParameterGradients, Result, StateDict};
use indexmap::IndexMap;
use tsbd_tensor::{Current, Tensor, sgd_steps};

/// What the optimiser needs to know.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SgdConfig {
    /// The learning rate before the schedule changes it.
    pub learning_rate: f64,
    /// How much of the last step's velocity is kept, in `[0, 1)`.
    pub momentum: f64,
    /// The factor of the weights that is added to their gradient: for every parameter, batch norms and biases too.
    pub weight_decay: f64,
}

/// The optimiser with its velocities.
///
/// As PyTorch's `SGD` without dampening or Nesterov: `v = momentum * v + gradient + weight_decay * w`, `w -= rate * v`.
/// Velocities begin at 0, which makes the first one the decayed gradient.
#[derive(Debug)]
pub struct Sgd {
    config: SgdConfig,
    velocities: IndexMap<String, Tensor>,
}

impl Sgd {
    /// An optimiser that has made no step yet.
    pub fn new(config: SgdConfig, state: &StateDict) -> Result<Sgd> {
        let zeros = state.parameters().map(|(name, tensor)| Ok((name.to_owned(), tensor.zeros_like()?)));
        Ok(Sgd { config, velocities: zeros.collect::<Result<_>>()? })
    }

    /// An optimiser that goes on with `velocities`, one for each parameter.
    pub fn with_velocities(config: SgdConfig, velocities: IndexMap<String, Tensor>) -> Sgd {
        Sgd { config, velocities }
    }

    /// Its configuration.
    pub fn config(&self) -> &SgdConfig {
        &self.config
    }

    /// The velocity of each parameter.
    pub fn velocities(&self) -> &IndexMap<String, Tensor> {
        &self.velocities
    }

    /// Changes the parameters in place, with the learning rate of the configuration.
    pub fn step(&mut self, state: &mut StateDict, gradients: &ParameterGradients) -> Result<()> {
        self.step_at(self.config.learning_rate, state, gradients)
    }

    /// Changes the parameters in place, with this learning rate.
    pub fn step_at(&mut self, learning_rate: f64, state: &mut StateDict, gradients: &ParameterGradients) -> Result<()> {
        self.move_parameters(learning_rate, state, gradients, None)
    }

    /// [`Self::step_at`], or with `current` a step that can be recorded.
    pub(crate) fn move_parameters(
        &self,
        learning_rate: f64,
        state: &StateDict,
        gradients: &ParameterGradients,
        current: Option<Current>,
    ) -> Result<()> {
        let SgdConfig { momentum, weight_decay, .. } = self.config;
        let options = tsbd_tensor::Sgd { learning_rate, momentum, weight_decay };
        let steps: Result<Vec<_>> = self
            .velocities
            .iter()
            .map(|(name, velocity)| Ok([state.get(name)?, velocity, gradients.get(name)?]))
            .collect();
        Ok(sgd_steps(&steps?, options, current)?)
    }
}
