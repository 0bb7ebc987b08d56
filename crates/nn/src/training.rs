//! The training loop.
//!
//! Each epoch: for each batch, gradients in training mode, running estimates moved, one optimiser step; then the
//! schedule steps, the observer sees the model, and a checkpoint is offered. No epoch is preferred: the last one's
//! weights are the result, as in BackdoorBench.
//!
//! A rule may begin with epochs of its own, in which the model and its schedule rest ([`Preparation`]), and may have a
//! state that a checkpoint keeps: an attack that trains its trigger beside the model is such a rule.

mod recorded;

use crate::{
    Batch, BatchSource, Checkpoint, Error, LossOptions, Mode, Model, Precision, Result, Schedule, ScheduleState, Sgd,
    SgdConfig, Step,
};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;
use std::time::Instant;
use tsbd_tensor::Tensor;

use recorded::Recorder;

/// How to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingConfig {
    /// How many times the data is seen, in the rule's [`Preparation`] and by the model.
    pub epochs: usize,
    /// The optimiser.
    pub sgd: SgdConfig,
    /// How the learning rate changes.
    pub schedule: Schedule,
    /// How far the model's passes round in training.
    #[serde(default, skip_serializing_if = "Precision::is_full")]
    pub precision: Precision,
}

/// One step of training, made. On a GPU the next one may be under way.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepReport {
    /// The epoch, from 0.
    pub epoch: usize,
    /// How many epochs there will be.
    pub epochs: usize,
    /// The step within the epoch, from 0.
    pub step: usize,
    /// How many steps the epoch has.
    pub steps: usize,
    /// The batch's mean cross-entropy before the step; in the preparation, the rule's own loss.
    pub loss: f64,
    /// Images per second since the epoch began.
    pub images_per_second: f64,
}

/// One epoch of training, just finished.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EpochReport {
    /// The epoch, from 0.
    pub epoch: usize,
    /// Its learning rate (of its first step, where the rate changes within an epoch).
    pub learning_rate: f64,
    /// The mean over batches of the batch's mean cross-entropy; in the preparation, of the rule's own loss.
    pub mean_loss: f64,
    /// The fraction of images classified as labelled, while training, in `[0, 1]`; nothing in the preparation, in which
    /// nothing is classified.
    pub train_accuracy: Option<f64>,
    /// How many images were seen.
    pub images: usize,
    /// Wall-clock seconds, without the observer's own work.
    pub seconds: f64,
}

impl EpochReport {
    pub(crate) fn to_numbers(self) -> [f64; 6] {
        let EpochReport { epoch, learning_rate, mean_loss, train_accuracy, images, seconds } = self;
        [epoch as f64, learning_rate, mean_loss, train_accuracy.unwrap_or(f64::NAN), images as f64, seconds]
    }

    pub(crate) fn from_numbers([epoch, learning_rate, mean_loss, train_accuracy, images, seconds]: [f64; 6]) -> Self {
        EpochReport {
            epoch: epoch as usize,
            learning_rate,
            mean_loss,
            train_accuracy: (!train_accuracy.is_nan()).then_some(train_accuracy),
            images: images as usize,
            seconds,
        }
    }
}

/// Watches a training run and may end it.
pub trait TrainingObserver {
    /// After every step. `Break` interrupts training: the last checkpoint stays good, the steps since are lost.
    fn step(&mut self, _report: &StepReport) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// Something that a user wants to know and that is no error; on standard error by default.
    fn note(&mut self, note: &str) {
        eprintln!("{note}");
    }

    /// After every epoch. `Break` ends training here, with this model as its result.
    fn epoch_end(&mut self, _report: &EpochReport, _model: &Model) -> Result<ControlFlow<()>> {
        Ok(ControlFlow::Continue(()))
    }

    /// After every epoch that does not end training early: what to [`Checkpoint::save`]. Its tensors change with the
    /// next step; a clone keeps them.
    fn checkpoint(&mut self, _checkpoint: &Checkpoint) -> Result<()> {
        Ok(())
    }
}

/// An observer that does nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct IgnoreProgress;
impl TrainingObserver for IgnoreProgress {}

/// How a batch becomes a gradient: plain cross-entropy, or what an attack or a defense makes of it.
pub trait StepRule {
    /// What the rule does before the model's own epochs.
    fn preparation(&mut self) -> Option<&mut dyn Preparation> {
        None
    }

    /// Before the first step of every epoch, those of the preparation included. What the rule draws in an epoch may
    /// depend on the epoch's number and on nothing else, as with a [`BatchSource`].
    fn begin_epoch(&mut self, _epoch: usize) -> Result<()> {
        Ok(())
    }

    /// The loss, the gradients for the optimiser, and the batch statistics for the running estimates.
    fn compute(&mut self, model: &Model, batch: &Batch) -> Result<Step>;

    /// What else happens after the optimiser's step, to the model or to the rule itself.
    fn after(&mut self, _model: &mut Model, _batch: &Batch) -> Result<()> {
        Ok(())
    }

    /// If a step is the gradient of a cross-entropy for the batch as it is and nothing else, [`Self::after`] included, that one:
    /// on a GPU it is recorded once and done again.
    fn plain(&self) -> Option<CrossEntropyStep> {
        None
    }

    /// Everything about the rule that changes results, in words: a checkpoint of another rule is refused.
    fn describe(&self) -> String;

    /// What later steps depend on and the epoch's number does not tell, by name: kept in checkpoints. The tensors may
    /// share their memory with the rule.
    fn state(&self) -> Result<IndexMap<String, Tensor>> {
        Ok(IndexMap::new())
    }

    /// Goes on from what [`Self::state`] gave.
    fn restore(&mut self, _state: IndexMap<String, Tensor>) -> Result<()> {
        Ok(())
    }
}

/// Epochs at the beginning in which a rule trains something of its own while model, optimiser and schedule rest.
pub trait Preparation {
    /// How many of the run's epochs they are.
    fn epochs(&self) -> usize;

    /// One step; its loss, which must be finite.
    fn step(&mut self, batch: &Batch) -> Result<f64>;
}

/// The gradient of the (scaled) cross-entropy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CrossEntropyStep {
    /// What is minimised.
    pub loss: LossOptions,
    /// What batch norms do.
    pub mode: Mode,
}

impl Default for CrossEntropyStep {
    fn default() -> CrossEntropyStep {
        CrossEntropyStep { loss: LossOptions::default(), mode: Mode::Train }
    }
}

impl StepRule for CrossEntropyStep {
    fn compute(&mut self, model: &Model, batch: &Batch) -> Result<Step> {
        model.gradients(batch, self.mode, &self.loss)
    }
    fn plain(&self) -> Option<CrossEntropyStep> {
        Some(*self)
    }
    fn describe(&self) -> String {
        format!("{self:?}")
    }
}

/// How training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// All epochs were trained.
    Completed,
    /// The observer ended it after an epoch: the model is the result.
    Stopped,
    /// The observer interrupted an epoch: the model is unfinished; resume from the last checkpoint.
    Interrupted,
}

/// What a training run was.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingSummary {
    /// How it ended.
    pub outcome: Outcome,
    /// Its finished epochs, those before a resumption too.
    pub history: Vec<EpochReport>,
}

/// Trains `model` on cross-entropy; see [`train_with`].
pub fn train(
    model: &mut Model,
    source: &dyn BatchSource,
    config: &TrainingConfig,
    resume: Option<Checkpoint>,
    observer: &mut dyn TrainingObserver,
) -> Result<TrainingSummary> {
    train_with(&mut CrossEntropyStep::default(), model, source, config, resume, observer)
}

/// Trains `model` with the gradients that `rule` gives.
///
/// With `resume` the model's weights are replaced by the checkpoint's, and the result has the same bits as if training
/// had never stopped. A loss that is not finite is an error, before it reaches the weights, and so are weights that are not
/// finite after an epoch.
pub fn train_with(
    rule: &mut dyn StepRule,
    model: &mut Model,
    source: &dyn BatchSource,
    config: &TrainingConfig,
    resume: Option<Checkpoint>,
    observer: &mut dyn TrainingObserver,
) -> Result<TrainingSummary> {
    let before = std::mem::replace(&mut model.precision, config.precision);
    let summary = train_at_its_precision(rule, model, source, config, resume, observer);
    model.precision = before;
    summary
}

fn train_at_its_precision(
    rule: &mut dyn StepRule,
    model: &mut Model,
    source: &dyn BatchSource,
    config: &TrainingConfig,
    resume: Option<Checkpoint>,
    observer: &mut dyn TrainingObserver,
) -> Result<TrainingSummary> {
    let run = describe_run(rule, model, source, config);
    let mut schedule = ScheduleState::new(config.sgd.learning_rate);
    let mut history = vec![];
    let mut optimizer = Sgd::new(config.sgd, &model.state)?;
    if let Some(checkpoint) = resume {
        if checkpoint.run != run {
            return Err(Error::ForeignCheckpoint { field: "configuration", found: checkpoint.run, expected: run });
        }
        let device = model.state.parameters().next().map(|(_, tensor)| tensor.device().clone());
        let device = device.unwrap_or(tsbd_tensor::Device::Cpu);
        model.state = checkpoint.state.to_device(&device)?;
        let velocities = checkpoint.velocities.into_iter().map(|(name, velocity)| {
            let velocity = crate::state::owned(&velocity)?.to_device(&device)?;
            Ok((name, velocity))
        });
        optimizer = Sgd::with_velocities(config.sgd, velocities.collect::<Result<_>>()?);
        rule.restore(checkpoint.rule)?;
        (schedule, history) = (checkpoint.schedule, checkpoint.history);
    }

    let preparation = rule.preparation().map_or(0, |preparation| preparation.epochs());
    let mut recorder = Recorder::new(model)?;
    for epoch in history.len()..config.epochs {
        let report =
            train_epoch(rule, model, source, config, &mut optimizer, &mut recorder, &mut schedule, epoch, observer)?;
        let Some(report) = report else {
            return Ok(TrainingSummary { outcome: Outcome::Interrupted, history });
        };
        // The last step has no loss after it that would tell.
        if let Some(name) = model.state.non_finite()? {
            return Err(Error::NonFiniteState { epoch, name: name.to_owned() });
        }
        history.push(report);
        if epoch >= preparation {
            schedule.step(&config.schedule, report.mean_loss);
        }
        if observer.epoch_end(&report, model)?.is_break() {
            return Ok(TrainingSummary { outcome: Outcome::Stopped, history });
        }
        observer.checkpoint(&Checkpoint::borrow(&run, model, &optimizer, rule.state()?, &schedule, &history))?;
    }
    Ok(TrainingSummary { outcome: Outcome::Completed, history })
}

/// One epoch, or nothing when the observer interrupted it.
#[expect(clippy::too_many_arguments, reason = "the loop's own body, taken out to be read alone")]
fn train_epoch(
    rule: &mut dyn StepRule,
    model: &mut Model,
    source: &dyn BatchSource,
    config: &TrainingConfig,
    optimizer: &mut Sgd,
    recorder: &mut Recorder,
    schedule: &mut ScheduleState,
    epoch: usize,
    observer: &mut dyn TrainingObserver,
) -> Result<Option<EpochReport>> {
    let learning_rate = schedule.learning_rate();
    let mut tally = Tally::new(epoch, config.epochs, source.batches_per_epoch());
    rule.begin_epoch(epoch)?;
    // The step that a GPU is asked for while the host reads the one before.
    let mut queued: Option<Made> = None;
    let mut batches = source.epoch(epoch).enumerate().peekable();
    while let Some((step, batch)) = batches.next() {
        let batch = batch?;
        let made = Made { step, indices: batch.indices.clone() };
        if let Some(preparation) = rule.preparation().filter(|preparation| epoch < preparation.epochs()) {
            let loss = preparation.step(&batch)?;
            made.require_finite(epoch, loss)?;
            if tally.add(made, loss, None, observer).is_break() {
                return Ok(None);
            }
            continue;
        }
        let rate = schedule.learning_rate();
        if let Some(recorded) = recorder.recorded(rule.plain(), model, optimizer, &batch, observer) {
            recorded.queue(&batch, rate)?;
            // The next batch is made while the GPU computes.
            batches.peek();
            schedule.step_made(&config.schedule);
            rule.after(model, &batch)?;
            let before = queued.replace(made);
            if tally.add_queued(before, recorder, model, observer)?.is_break() {
                return Ok(None);
            }
            continue;
        }
        if tally.add_queued(queued.take(), recorder, model, observer)?.is_break() {
            return Ok(None);
        }
        let Step { loss, correct, gradients, statistics } = rule.compute(model, &batch)?;
        made.require_finite(epoch, loss)?;
        model.absorb(&statistics)?;
        optimizer.step_at(rate, &mut model.state, &gradients)?;
        schedule.step_made(&config.schedule);
        rule.after(model, &batch)?;
        if tally.add(made, loss, Some(correct), observer).is_break() {
            return Ok(None);
        }
    }
    if tally.add_queued(queued, recorder, model, observer)?.is_break() {
        return Ok(None);
    }
    if tally.made == 0 {
        return Err(Error::EmptyEpoch { epoch, images: source.images_per_epoch() });
    }
    let Tally { begin, loss_sum, correct, images, made, .. } = tally;
    Ok(Some(EpochReport {
        epoch,
        learning_rate,
        mean_loss: loss_sum / f64::from(made),
        train_accuracy: correct.map(|correct| correct as f64 / images as f64),
        images,
        seconds: begin.elapsed().as_secs_f64(),
    }))
}

/// A step that was made or is being made.
struct Made {
    step: usize,
    indices: Vec<u32>,
}

impl Made {
    fn require_finite(&self, epoch: usize, loss: f64) -> Result<()> {
        match loss.is_finite() {
            true => Ok(()),
            false => Err(Error::NonFiniteLoss { epoch, step: self.step, loss, indices: self.indices.clone() }),
        }
    }
}

/// What an epoch's steps come to.
struct Tally {
    begin: Instant,
    epoch: usize,
    epochs: usize,
    /// How many steps the epoch has.
    steps: usize,
    loss_sum: f64,
    correct: Option<usize>,
    images: usize,
    made: u32,
}

impl Tally {
    fn new(epoch: usize, epochs: usize, steps: usize) -> Tally {
        Tally { begin: Instant::now(), epoch, epochs, steps, loss_sum: 0.0, correct: None, images: 0, made: 0 }
    }

    /// Adds a step and tells the observer.
    fn add(
        &mut self,
        Made { step, indices }: Made,
        loss: f64,
        correct: Option<usize>,
        observer: &mut dyn TrainingObserver,
    ) -> ControlFlow<()> {
        self.loss_sum += loss;
        self.images += indices.len();
        self.made += 1;
        if let Some(correct) = correct {
            *self.correct.get_or_insert(0) += correct;
        }
        let images_per_second = self.images as f64 / self.begin.elapsed().as_secs_f64();
        let &mut Tally { epoch, epochs, steps, .. } = self;
        observer.step(&StepReport { epoch, epochs, step, steps, loss, images_per_second })
    }

    /// Adds a queued step, if there is one, when it is done.
    fn add_queued(
        &mut self,
        queued: Option<Made>,
        recorder: &mut Recorder,
        model: &mut Model,
        observer: &mut dyn TrainingObserver,
    ) -> Result<ControlFlow<()>> {
        let Some(queued) = queued else { return Ok(ControlFlow::Continue(())) };
        let (loss, correct) = recorder.outcome(model)?;
        queued.require_finite(self.epoch, loss)?;
        Ok(self.add(queued, loss, Some(correct), observer))
    }
}

/// What a checkpoint must agree on with the run that resumes from it: network, configuration, batches and rule, in words.
pub fn describe_run(rule: &dyn StepRule, model: &Model, source: &dyn BatchSource, config: &TrainingConfig) -> String {
    let TrainingConfig { epochs, sgd, schedule, precision } = config;
    let precision = if precision.is_full() { String::new() } else { format!(", {}", precision.name()) };
    format!(
        "{} with {} parameters, TrainingConfig {{ epochs: {epochs}, sgd: {sgd:?}, schedule: {schedule:?} }}{precision}, {} images in {} batches, {}",
        model.architecture.name(),
        model.state.parameter_count(),
        source.images_per_epoch(),
        source.batches_per_epoch(),
        rule.describe(),
    )
}

#[cfg(test)]
mod tests;
