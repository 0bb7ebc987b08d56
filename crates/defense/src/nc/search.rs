//! The search for the smallest trigger that moves every image to one class.

use serde::{Deserialize, Serialize};
use tsbd_data::{CHANNELS, Loader, Normalization};
use tsbd_nn::{Batch, BatchSource, Mode, Model, count_correct};
use tsbd_tensor::{Adam, CrossEntropy, DType, Tape, Tensor, Var, adam_step};

use super::Parameters;
use crate::Error;
use crate::training::scalar;

/// The stage's name in traces and progress.
pub(super) const STAGE: &str = "trigger search";
/// Keeps masks and patterns inside 0 to 1.
const EPSILON: f64 = 1e-7;
/// Adam's, in the search.
const BETAS: [f64; 2] = [0.5, 0.9];

/// A trigger that the search has found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reversed {
    /// `f32` `[height * width]`, 0 to 1: how much of the pattern a place takes.
    pub mask: Vec<f32>,
    /// `f32` `[height * width * channel]`, 0 to 1.
    pub pattern: Vec<f32>,
    /// The sum of the mask.
    pub norm: f64,
    /// Whether the mask moved enough images in some epoch. Otherwise it is that of the first epoch.
    pub successful: bool,
    /// Share of the images that were moved in the epoch that the mask is from (the mean over its batches).
    pub success_rate: f64,
    /// Epochs that the search took.
    pub epochs: usize,
}

/// An epoch of a search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SearchEpoch {
    /// Share of the images that the network took for the class: the mean over the batches.
    pub success_rate: f64,
    /// The sum of the mask before each step: the mean over the batches.
    pub size: f64,
    /// The weight of the mask's size in the next epoch.
    pub cost: f64,
}

/// When masks are kept, how the weight of their size changes, and when the search ends.
#[derive(Debug, Clone)]
pub struct Bookkeeping {
    threshold: f64,
    patience: usize,
    multiplier: f64,
    stop_threshold: f64,
    stop_patience: usize,
    /// Present weight of the mask's size.
    pub cost: f64,
    /// Size of the smallest mask that was successful; infinite as long as there is none.
    pub smallest: f64,
    smallest_before: f64,
    stale: usize,
    successes: usize,
    failures: usize,
    raised: bool,
    lowered: bool,
}

/// What an epoch of the search leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// The mask is the smallest successful one so far.
    pub keep: bool,
    /// The search is over.
    pub stop: bool,
}

impl Bookkeeping {
    /// The beginning of a search.
    pub fn new(parameters: &Parameters) -> Bookkeeping {
        Bookkeeping {
            threshold: parameters.success_threshold,
            patience: parameters.cost_patience,
            multiplier: parameters.cost_multiplier,
            stop_threshold: parameters.early_stop_threshold,
            stop_patience: parameters.early_stop_patience,
            cost: parameters.initial_cost,
            smallest: f64::INFINITY,
            smallest_before: f64::INFINITY,
            stale: 0,
            successes: 0,
            failures: 0,
            raised: false,
            lowered: false,
        }
    }

    /// Takes notice of an epoch in which the mask had this size and moved this share of the images, both means over the
    /// batches.
    pub fn epoch_end(&mut self, success_rate: f64, size: f64) -> Verdict {
        let successful = success_rate >= self.threshold;
        let keep = successful && size < self.smallest;
        if keep {
            self.smallest = size;
        }
        if self.smallest.is_finite() {
            let stale = self.smallest >= self.stop_threshold * self.smallest_before;
            self.stale = if stale { self.stale + 1 } else { 0 };
        }
        self.smallest_before = self.smallest_before.min(self.smallest);
        if self.raised && self.lowered && self.stale >= self.stop_patience {
            return Verdict { keep, stop: true };
        }

        (self.successes, self.failures) = if successful { (self.successes + 1, 0) } else { (0, self.failures + 1) };
        if self.successes >= self.patience {
            (self.successes, self.raised) = (0, true);
            self.cost *= self.multiplier;
        } else if self.failures >= self.patience {
            (self.failures, self.lowered) = (0, true);
            self.cost /= self.multiplier.powf(1.5);
        }
        Verdict { keep, stop: false }
    }
}

/// A search in progress.
pub struct Search<'a> {
    model: &'a Model,
    class: u32,
    source: &'a Loader,
    parameters: &'a Parameters,
    trigger: Trigger,
    bookkeeping: Bookkeeping,
    best: Option<Reversed>,
    history: Vec<SearchEpoch>,
}

impl<'a> Search<'a> {
    /// The search for the trigger that moves the images of `source` to `class`.
    pub fn new(
        model: &'a Model,
        class: u32,
        source: &'a Loader,
        parameters: &'a Parameters,
    ) -> Result<Search<'a>, Error> {
        let (height, width) = (source.source.height(), source.source.width());
        let trigger = Trigger::new(height, width, source.normalization, &source.device)?;
        let bookkeeping = Bookkeeping::new(parameters);
        Ok(Search { model, class, source, parameters, trigger, bookkeeping, best: None, history: Vec::new() })
    }

    /// The epochs that are done.
    pub fn history(&self) -> &[SearchEpoch] {
        &self.history
    }

    /// One epoch; what was found, if it is the last one. `step` is called after each batch with its number.
    pub fn epoch(&mut self, step: &mut dyn FnMut(usize) -> Result<(), Error>) -> Result<Option<Reversed>, Error> {
        let epoch = self.history.len();
        let (mut success_rate, mut size) = (0.0, 0.0);
        let batches = self.source.batches_per_epoch() as f64;
        for (number, batch) in self.source.epoch(epoch).enumerate() {
            let batch = batch?;
            let rate = self.parameters.search_learning_rate;
            let met = self.trigger.step(self.model, self.class, &batch, self.bookkeeping.cost, rate)?;
            if !met.loss.is_finite() {
                let (loss, indices) = (met.loss, batch.indices);
                let source = Box::new(tsbd_nn::Error::NonFiniteLoss { epoch, step: number, loss, indices });
                return Err(Error::Diverged { stage: STAGE, parameter: "search_learning_rate", source });
            }
            success_rate += met.moved as f64 / batch.len() as f64;
            size += met.size;
            step(number)?;
        }
        (success_rate, size) = (success_rate / batches, size / batches);
        let verdict = self.bookkeeping.epoch_end(success_rate, size);
        if verdict.keep || epoch == 0 {
            let [mask, pattern] = self.trigger.values()?;
            let norm = mask.iter().map(|&value| f64::from(value)).sum();
            let successful = verdict.keep;
            self.best = Some(Reversed { mask, pattern, norm, successful, success_rate, epochs: epoch + 1 });
        }
        self.history.push(SearchEpoch { success_rate, size, cost: self.bookkeeping.cost });
        if !verdict.stop && self.history.len() < self.parameters.search_epochs {
            return Ok(None);
        }
        Ok(self.best.take().map(|best| Reversed { epochs: self.history.len(), ..best }))
    }
}

/// What a step met, before it moved the trigger.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Met {
    /// The objective.
    pub loss: f64,
    /// Images that the network takes for the class.
    pub moved: usize,
    /// The sum of the mask.
    pub size: f64,
}

/// What a batch says about a trigger.
#[derive(Debug)]
pub struct Slope {
    /// What the trigger, as it is, meets.
    pub met: Met,
    /// Of the objective, with respect to mask `[1, height, width, 1]` and pattern `[1, height, width, channel]` as the
    /// optimiser moves them.
    pub gradients: [Tensor; 2],
}

/// Mask and pattern as the optimiser moves them: any number, which a hyperbolic tangent brings between 0 and 1. Both begin
/// at 1, which is 0.88.
#[derive(Debug)]
pub struct Trigger {
    /// `[1, height, width, 1]`.
    mask: Tensor,
    /// `[1, height, width, channel]`.
    pattern: Tensor,
    /// First and second moments of mask and pattern.
    moments: [[Tensor; 2]; 2],
    steps: u64,
    /// What normalisation multiplies a pattern in 0 to 1 with, and what it adds then, in the pattern's shape.
    normalization: [Tensor; 2],
}

impl Trigger {
    /// The trigger at the beginning of a search.
    pub fn new(
        height: usize,
        width: usize,
        normalization: Normalization,
        device: &tsbd_tensor::Device,
    ) -> Result<Trigger, Error> {
        let ones = |channels| Tensor::ones((1, height, width, channels), DType::F32, device);
        let (mask, pattern) = (ones(1)?, ones(CHANNELS)?);
        let everywhere =
            |values: [f32; CHANNELS]| Tensor::new(&values, device)?.broadcast_as(pattern.dims())?.contiguous();
        let Normalization { mean, std } = normalization;
        let scale = everywhere(std.map(|std| 1.0 / std))?;
        let shift = everywhere(std::array::from_fn(|channel| -mean[channel] / std[channel]))?;
        let zeros = |tensor: &Tensor| -> Result<_, Error> { Ok([tensor.zeros_like()?, tensor.zeros_like()?]) };
        let moments = [zeros(&mask)?, zeros(&pattern)?];
        Ok(Trigger { mask, pattern, moments, steps: 0, normalization: [scale, shift] })
    }

    /// One step of Adam on the objective of [`Self::slope`].
    pub fn step(
        &mut self,
        model: &Model,
        class: u32,
        batch: &Batch,
        cost: f64,
        learning_rate: f64,
    ) -> Result<Met, Error> {
        let Slope { met, gradients } = self.slope(model, class, batch, cost)?;
        self.steps += 1;
        let options = Adam { learning_rate, betas: BETAS, epsilon: 1e-8 };
        let values = [&self.mask, &self.pattern].into_iter().zip(&self.moments);
        for ((value, [first, second]), gradient) in values.zip(&gradients) {
            adam_step(value, first, second, gradient, self.steps, options)?;
        }
        Ok(met)
    }

    /// The cross-entropy of the stamped images with `class` plus `cost` times the mask's size, and its gradients. The
    /// network is in evaluation mode, its weights are constants: no work is spent on their gradients.
    pub fn slope(&self, model: &Model, class: u32, batch: &Batch, cost: f64) -> Result<Slope, Error> {
        let labels = Tensor::full(class, batch.len(), batch.labels.device())?;
        let tape = Tape::new();
        let leaves = [tape.leaf(&self.mask), tape.leaf(&self.pattern)];
        let [mask, pattern] = [between_0_and_1(&leaves[0])?, between_0_and_1(&leaves[1])?];
        let [scale, shift] = self.normalization.clone().map(Var::constant);
        let stamped = stamp(&batch.images, &mask, &pattern.mul(&scale)?.add(&shift)?)?;
        let logits = model.pass(Mode::Eval).rounding_to(model.precision).through(&stamped)?;
        let moved = count_correct(logits.tensor(), &labels)?;
        let size = mask.sum()?;
        let loss = logits.cross_entropy(&labels, CrossEntropy::default())?.add(&size.scale(cost)?)?;
        let met = Met { loss: scalar(loss.tensor())?, moved, size: scalar(size.tensor())? };
        let mut gradients = tape.backward(&loss)?;
        let mut taken = |leaf| gradients.take(leaf).ok_or(tsbd_nn::Error::InputUnused);
        Ok(Slope { met, gradients: [taken(&leaves[0])?, taken(&leaves[1])?] })
    }

    /// Mask and pattern, each between 0 and 1.
    pub fn values(&self) -> Result<[Vec<f32>; 2], Error> {
        let values = |tensor: &Tensor| -> Result<_, Error> {
            Ok(between_0_and_1(&Var::constant(tensor.clone()))?.tensor().flatten_all()?.to_vec1()?)
        };
        Ok([values(&self.mask)?, values(&self.pattern)?])
    }
}

/// `tanh(x) / (2 + ε) + 1/2`.
fn between_0_and_1(x: &Var) -> tsbd_tensor::Result<Var> {
    x.tanh()?.scale(1.0 / (2.0 + EPSILON))?.offset(0.5)
}

/// `(1 - mask) · images + mask · pattern`, for `images` `[batch, height, width, channel]`, one mask and one (normalised)
/// pattern.
fn stamp(images: &Tensor, mask: &Var, pattern: &Var) -> tsbd_tensor::Result<Var> {
    let batch = images.dims()[0];
    let mask = Var::concat_channels(&[mask; CHANNELS])?;
    let kept = mask.scale(-1.0)?.offset(1.0)?.broadcast_batch(batch)?;
    kept.mul(&Var::constant(images.clone()))?.add(&mask.mul(pattern)?.broadcast_batch(batch)?)
}
