//! A network with weights: its outputs and its gradients.

use crate::pass::gradients_of;
use crate::{
    Architecture, Batch, Mode, ParameterGradients, Pass, Precision, RandomStream, Result, StateDict, Statistics,
};
use indexmap::IndexMap;
use std::sync::Arc;
use tsbd_tensor::{CrossEntropy, DType, Device, Tape, Tensor, Var};

/// A network with weights. A clone shares nothing that training changes.
#[derive(Debug, Clone)]
pub struct Model {
    /// The network.
    pub architecture: Arc<dyn Architecture>,
    /// Its weights and running estimates.
    pub state: StateDict,
    /// How far its passes ([`Model::pass`]) round, except in [`Mode::Eval`]; [`crate::train_with`] sets it for as long as it trains.
    pub precision: Precision,
}

/// What is minimised: `scale` times the mean cross-entropy.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LossOptions {
    /// How much of each label's probability is spread over all classes, in `[0, 1)`.
    pub label_smoothing: f64,
    /// A factor on the loss: -1 unlearns (gradient ascent).
    pub scale: f64,
}

impl Default for LossOptions {
    /// Plain cross-entropy, descended.
    fn default() -> LossOptions {
        LossOptions { label_smoothing: 0.0, scale: 1.0 }
    }
}

impl LossOptions {
    /// Cross-entropy, ascended.
    pub fn ascent() -> LossOptions {
        LossOptions { scale: -1.0, ..LossOptions::default() }
    }
}

/// What one batch says about the weights.
#[derive(Debug)]
pub struct Step {
    /// The mean cross-entropy, before [`LossOptions::scale`].
    pub loss: f64,
    /// How many images were classified as labelled.
    pub correct: usize,
    /// The gradient of the scaled loss with respect to every parameter.
    pub gradients: ParameterGradients,
    /// What batch norms met; empty unless the mode was [`Mode::Train`].
    pub statistics: Statistics,
}

/// A [`Step`] of which nothing has been read: its numbers lie where the model does.
pub(crate) struct QueuedStep {
    /// One number.
    pub(crate) loss: Tensor,
    /// One number.
    pub(crate) correct: Tensor,
    pub(crate) gradients: ParameterGradients,
    pub(crate) statistics: Statistics,
}

impl Model {
    /// A network with PyTorch's default initialisation (in distribution), drawn from `stream`.
    pub fn new(architecture: Arc<dyn Architecture>, stream: &mut RandomStream) -> Result<Model> {
        let state = StateDict::initial(architecture.modules(), stream)?;
        Ok(Model { architecture, state, precision: Precision::F32 })
    }

    /// A network with the weights of a safetensors file; see [`StateDict::load`].
    pub fn load(architecture: Arc<dyn Architecture>, path: impl AsRef<std::path::Path>) -> Result<Model> {
        let state = StateDict::load(path, architecture.modules())?;
        Ok(Model { architecture, state, precision: Precision::F32 })
    }

    /// Writes the weights to a safetensors file; see [`StateDict::save`].
    pub fn save(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        self.state.save(path)
    }

    /// The same network with its weights on another device.
    pub fn to_device(&self, device: &Device) -> Result<Model> {
        let (architecture, state) = (self.architecture.clone(), self.state.to_device(device)?);
        Ok(Model { architecture, state, precision: self.precision })
    }

    /// A forward pass through these weights, to be run with [`Pass::forward`].
    pub fn pass(&self, mode: Mode) -> Pass<'_> {
        let precision = if mode == Mode::Eval { Precision::F32 } else { self.precision };
        Pass::new(self.architecture.as_ref(), &self.state, mode).rounding_to(precision)
    }

    /// The logits `[batch, classes]` of images `[batch, height, width, channel]`. Moves no running estimate.
    pub fn logits(&self, images: &Tensor, mode: Mode) -> Result<Tensor> {
        Ok(self.pass(mode).forward(images)?.tensor().clone())
    }

    /// The logits, and the outputs with the names `taps`: of a module (`layer4.1.conv2`), a block (`layer3`), or
    /// [`Architecture::features`]. Maps are `[batch, height, width, channel]`.
    pub fn tapped(&self, images: &Tensor, mode: Mode, taps: &[&str]) -> Result<(Tensor, IndexMap<String, Tensor>)> {
        let pass = self.pass(mode).tapping(taps);
        let logits = pass.forward(images)?;
        let outputs: Result<_> =
            taps.iter().map(|&tap| Ok((tap.to_owned(), pass.require_tap(tap)?.tensor().clone()))).collect();
        Ok((logits.tensor().clone(), outputs?))
    }

    /// The loss of a batch and its gradients.
    pub fn gradients(&self, batch: &Batch, mode: Mode, loss: &LossOptions) -> Result<Step> {
        let QueuedStep { loss, correct, gradients, statistics } = self.queue_gradients(batch, mode, loss)?;
        // Read last: a GPU has got all of its work before the host waits for it.
        Ok(Step { loss: scalar(&loss)?, correct: scalar(&correct)? as usize, gradients, statistics })
    }

    /// [`Self::gradients`], of which nothing has been read.
    pub(crate) fn queue_gradients(&self, batch: &Batch, mode: Mode, loss: &LossOptions) -> Result<QueuedStep> {
        let mut correct = None;
        let (value, gradients, statistics) = self.queue_derivatives(mode, &[], |pass| {
            let logits = pass.forward(&batch.images)?;
            correct = Some(tsbd_tensor::count_correct(logits.tensor(), &batch.labels)?);
            Ok(logits.cross_entropy(&batch.labels, CrossEntropy { label_smoothing: loss.label_smoothing })?)
        })?;
        let correct = correct.expect("counted by the pass");
        let gradients = if loss.scale == 1.0 { gradients } else { gradients.scale(loss.scale)? };
        Ok(QueuedStep { loss: value, correct, gradients, statistics })
    }

    /// The value and the gradients of any scalar that `loss` computes on a recorded pass, whose outputs named in `taps`
    /// can be used in it.
    pub fn differentiate(
        &self,
        mode: Mode,
        taps: &[&str],
        loss: impl FnOnce(&Pass) -> Result<Var>,
    ) -> Result<(f64, ParameterGradients, Statistics)> {
        let (value, gradients, statistics) = self.queue_derivatives(mode, taps, loss)?;
        Ok((scalar(&value)?, gradients, statistics))
    }

    fn queue_derivatives(
        &self,
        mode: Mode,
        taps: &[&str],
        loss: impl FnOnce(&Pass) -> Result<Var>,
    ) -> Result<(Tensor, ParameterGradients, Statistics)> {
        let tape = Tape::new();
        let (value, leaves, statistics) = {
            let pass = self.pass(mode).on_tape(&tape).tapping(taps);
            let value = loss(&pass)?;
            (value, pass.leaves(), pass.take_statistics())
        };
        let mut gradients = tape.backward(&value)?;
        let gradients = gradients_of(&self.state, &leaves, &mut gradients)?;
        Ok((value.tensor().clone(), gradients, statistics))
    }

    /// Moves the running estimates towards what a pass met; see [`StateDict::absorb`].
    pub fn absorb(&mut self, statistics: &Statistics) -> Result<()> {
        self.state.absorb(statistics)
    }
}

/// A tensor's only number, converted where the host has it.
fn scalar(tensor: &Tensor) -> Result<f64> {
    Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.reshape(())?.to_scalar::<f64>()?)
}

/// How many images are classified as labelled, by logits `[batch, classes]` and labels `u32` `[batch]`.
pub fn count_correct(logits: &Tensor, labels: &Tensor) -> Result<usize> {
    Ok(scalar(&tsbd_tensor::count_correct(logits, labels)?)? as usize)
}
