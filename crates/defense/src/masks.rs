//! Masks on the weights of batch norms, trained while the network rests: what ANP and RNP share.
//!
//! A batch norm of weight γ and bias β has the weight `γ * (mask + noise)` and the bias `β * (1 + bias noise)`; without
//! noise `γ * mask` and β. Batches are normalised by their own statistics, and no running estimate moves.

use std::ops::ControlFlow;
use std::time::Instant;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use tsbd_nn::{Batch, BatchSource, Mode, Model};
use tsbd_tensor::{CrossEntropy, Sgd, Tape, Tensor, Var, sgd_step};

use crate::Error;
use crate::context::{Context, Progress};
use crate::entry::TracePoint;
use crate::pruning::{ChannelScores, batch_norms};
use crate::training::scalar;

/// A mask for each channel of each batch norm, and the optimiser's velocity.
#[derive(Debug)]
pub(crate) struct ChannelMasks {
    norms: Vec<String>,
    values: Vec<Tensor>,
    velocities: Vec<Tensor>,
}

/// Perturbations `[channels]` of each batch norm's mask and of its bias (as a share of it).
#[derive(Debug, Clone)]
pub(crate) struct Noise {
    pub(crate) weights: Vec<Tensor>,
    pub(crate) biases: Vec<Tensor>,
}

/// The cross-entropy of a batch, and what it says about masks or noise.
pub(crate) struct Slope<T> {
    pub(crate) loss: f64,
    pub(crate) gradients: T,
}

impl ChannelMasks {
    /// Masks of 1 for every batch norm of `model`.
    pub(crate) fn ones(model: &Model) -> Result<ChannelMasks, Error> {
        let norms: Vec<String> = batch_norms(model.architecture.as_ref()).map(|(name, _)| name.to_owned()).collect();
        let weights = norms.iter().map(|norm| Ok(model.state.get(&format!("{norm}.weight"))?));
        let weights: Vec<&Tensor> = weights.collect::<Result<_, Error>>()?;
        let values = weights.iter().map(|weight| weight.ones_like()).collect::<Result<_, _>>()?;
        let velocities = weights.iter().map(|weight| weight.zeros_like()).collect::<Result<_, _>>()?;
        Ok(ChannelMasks { norms, values, velocities })
    }

    /// Masks and velocities by name.
    fn tensors(&self) -> IndexMap<String, Tensor> {
        let named = |what: &str, tensors: &[Tensor]| -> Vec<(String, Tensor)> {
            let names = self.norms.iter().map(|norm| format!("{what}.{norm}"));
            names.zip(tensors.iter().cloned()).collect()
        };
        [named("mask", &self.values), named("velocity", &self.velocities)].into_iter().flatten().collect()
    }

    /// Takes copies of what [`Self::tensors`] gave.
    fn restore(&mut self, tensors: &IndexMap<String, Tensor>) -> Result<(), Error> {
        for (what, own) in [("mask", &mut self.values), ("velocity", &mut self.velocities)] {
            for (norm, own) in self.norms.iter().zip(own) {
                let name = format!("{what}.{norm}");
                let missing = || {
                    let example = tensors.keys().next().cloned().unwrap_or_default();
                    tsbd_nn::Error::UnknownTensor { name: name.clone(), example }
                };
                *own = tensors.get(&name).ok_or_else(missing)?.to_device(own.device())?.copy()?;
            }
        }
        Ok(())
    }

    /// The masks, rounded to four decimals: the reference writes them to a text file.
    pub(crate) fn rounded(&self) -> Result<ChannelScores, Error> {
        let rounded = |value: f32| format!("{value:.4}").parse().unwrap_or(f64::NAN);
        let layers = self
            .norms
            .iter()
            .zip(&self.values)
            .map(|(norm, values)| Ok((norm.clone(), values.to_vec1::<f32>()?.into_iter().map(rounded).collect())));
        Ok(ChannelScores { layers: layers.collect::<Result<_, Error>>()? })
    }

    /// The mean cross-entropy of `batch` and its gradients with respect to the masks.
    pub(crate) fn slope(
        &self,
        model: &Model,
        batch: &Batch,
        noise: Option<&Noise>,
    ) -> Result<Slope<Vec<Tensor>>, Error> {
        let tape = Tape::new();
        let masks: Vec<Var> = self.values.iter().map(|mask| tape.leaf(mask)).collect();
        let noise = noise.map(|Noise { weights, biases }| (constants(weights), constants(biases)));
        let loss =
            self.loss(model, batch, &masks, noise.as_ref().map(|(weights, biases)| (&weights[..], &biases[..])))?;
        let mut gradients = tape.backward(&loss)?;
        Ok(Slope { loss: scalar(loss.tensor())?, gradients: self.take(&mut gradients, &masks)? })
    }

    /// The mean cross-entropy of `batch` with `noise` and its gradients with respect to the noise.
    pub(crate) fn noise_slope(&self, model: &Model, batch: &Batch, noise: &Noise) -> Result<Slope<Noise>, Error> {
        let tape = Tape::new();
        let leaves = |tensors: &[Tensor]| -> Vec<Var> { tensors.iter().map(|tensor| tape.leaf(tensor)).collect() };
        let (weights, biases) = (leaves(&noise.weights), leaves(&noise.biases));
        let loss = self.loss(model, batch, &constants(&self.values), Some((&weights, &biases)))?;
        let mut gradients = tape.backward(&loss)?;
        let weights = self.take(&mut gradients, &weights)?;
        let gradients = Noise { weights, biases: self.take(&mut gradients, &biases)? };
        Ok(Slope { loss: scalar(loss.tensor())?, gradients })
    }

    /// No tape is given to the pass: of the network's own parameters no gradient is wanted, and none is computed.
    fn loss(&self, model: &Model, batch: &Batch, masks: &[Var], noise: Option<(&[Var], &[Var])>) -> Result<Var, Error> {
        let mut pass = model.pass(Mode::TrainKeepingStatistics);
        for (number, (norm, mask)) in self.norms.iter().zip(masks).enumerate() {
            let [weight, bias] = [format!("{norm}.weight"), format!("{norm}.bias")];
            let gamma = Var::constant(model.state.get(&weight)?.clone());
            let masked = match noise {
                None => gamma.mul(mask)?,
                Some((weights, biases)) => {
                    let beta = Var::constant(model.state.get(&bias)?.clone());
                    pass = pass.replacing(&bias, beta.mul(&biases[number].offset(1.0)?)?);
                    gamma.mul(&mask.add(&weights[number])?)?
                }
            };
            pass = pass.replacing(&weight, masked);
        }
        Ok(pass.forward(&batch.images)?.cross_entropy(&batch.labels, CrossEntropy { label_smoothing: 0.0 })?)
    }

    fn take(&self, gradients: &mut tsbd_tensor::Gradients, leaves: &[Var]) -> Result<Vec<Tensor>, Error> {
        let missing = |norm: &String| tsbd_nn::Error::NoGradient { parameter: format!("{norm}.weight") };
        let taken =
            self.norms.iter().zip(leaves).map(|(norm, leaf)| Ok(gradients.take(leaf).ok_or_else(|| missing(norm))?));
        taken.collect()
    }

    /// One step of the optimiser; masks are then cut off at 0 and 1.
    pub(crate) fn descend(&mut self, gradients: &[Tensor], options: Sgd) -> Result<(), Error> {
        for ((value, velocity), gradient) in self.values.iter_mut().zip(&self.velocities).zip(gradients) {
            sgd_step(value, velocity, gradient, options)?;
            *value = value.clamp(0f32, 1f32)?;
        }
        Ok(())
    }
}

fn constants(tensors: &[Tensor]) -> Vec<Var> {
    tensors.iter().cloned().map(Var::constant).collect()
}

/// A stage in which masks are trained.
pub(crate) struct MaskTraining {
    /// Name in traces and progress.
    pub(crate) stage: &'static str,
    /// The parameter that holds the learning rate, for the hint of an error.
    pub(crate) rate_parameter: &'static str,
    /// Passes over the batches.
    pub(crate) epochs: usize,
}

/// Steps after which a training of masks is kept, beside the end of each epoch: ANP's epochs have up to 500.
const KEPT: usize = 50;

/// What is kept beside the masks.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Notes {
    /// Steps done.
    done: usize,
    /// Sum of the losses of the present epoch.
    sum: f64,
    /// The stage's part of the trace.
    points: Vec<TracePoint>,
    seconds: f64,
}

impl MaskTraining {
    /// Calls `step` with the masks, the number of each step and its batch; it returns the loss. Each epoch leaves its mean
    /// loss in the trace. `run` says what is kept: a training that was killed goes on if it is the same. The seconds that it
    /// took.
    pub(crate) fn run(
        &self,
        masks: &mut ChannelMasks,
        source: &dyn BatchSource,
        run: &str,
        context: &mut Context,
        trace: &mut Vec<TracePoint>,
        step: &mut dyn FnMut(&mut ChannelMasks, usize, &Batch) -> Result<f64, Error>,
    ) -> Result<f64, Error> {
        let &MaskTraining { stage, rate_parameter, epochs } = self;
        let (start, steps) = (Instant::now(), source.batches_per_epoch());
        let total = epochs * steps;
        context.observer.stage(stage, total);
        let mut notes = Notes::default();
        if let Some((tensors, kept)) = context.kept(stage, run) {
            masks.restore(&tensors)?;
            notes = kept;
        }
        for point in &notes.points {
            context.trace(trace, point.clone());
        }
        let earlier = notes.seconds;
        let (first, made) = (notes.done / steps, notes.done % steps);
        for epoch in first..epochs {
            let skipped = if epoch == first { made } else { 0 };
            for (number, batch) in source.epoch(epoch).enumerate().skip(skipped) {
                let batch = batch?;
                let loss = step(masks, epoch * steps + number, &batch)?;
                if !loss.is_finite() {
                    let indices = batch.indices.clone();
                    let source = Box::new(tsbd_nn::Error::NonFiniteLoss { epoch, step: number, loss, indices });
                    return Err(Error::Diverged { stage, parameter: rate_parameter, source });
                }
                (notes.done, notes.sum) = (notes.done + 1, notes.sum + loss);
                let progress = Progress { stage, done: notes.done, total, loss: Some(loss) };
                if let ControlFlow::Break(()) = context.observer.progress(&progress) {
                    return Err(Error::Stopped { stage });
                }
                let ended = number + 1 == steps;
                if ended {
                    let point = TracePoint::new(stage, epoch, [("loss", notes.sum / steps as f64)]);
                    notes.sum = 0.0;
                    notes.points.push(point.clone());
                    context.trace(trace, point);
                }
                if ended || notes.done % KEPT == 0 {
                    notes.seconds = earlier + start.elapsed().as_secs_f64();
                    context.keep(stage, run, masks.tensors(), &notes)?;
                }
            }
        }
        Ok(earlier + start.elapsed().as_secs_f64())
    }
}
