//! The training loop of `tsbd-nn` as a stage of a repair: progress goes to the repair's observer, each epoch leaves a
//! point in the trace and is offered to be kept, so that a repair that was killed goes on with the epoch after the one that was.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tsbd_attack::{DatasetFacts, ParameterError};
use tsbd_data::{ImageSource, Loader, Order};
use tsbd_nn::{
    BatchSource, Checkpoint, EpochReport, Model, Outcome, Precision, Schedule, SgdConfig, StepReport, StepRule,
    TrainingConfig, TrainingObserver, describe_run, train_with,
};
use tsbd_tensor::{DType, Tensor};

use crate::Error;
use crate::context::{Context, Progress};
use crate::entry::{TracePoint, is_tiny_imagenet};

/// The number of a tensor of one element, in 64 bits.
pub(crate) fn scalar(tensor: &Tensor) -> Result<f64, Error> {
    Ok(tensor.to_dtype(DType::F64)?.reshape(())?.to_scalar::<f64>()?)
}

/// One stage: what it is called, and how it trains.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    /// Name in traces and progress.
    pub(crate) name: &'static str,
    /// The parameter that holds its learning rate, for the hint of an error.
    pub(crate) rate_parameter: &'static str,
    /// Epochs, optimiser, schedule, precision.
    pub(crate) config: TrainingConfig,
}

/// What is measured after an epoch, and whether training ends there.
pub(crate) type Measure<'m> =
    &'m mut dyn FnMut(&EpochReport, &Model, &Context, &mut TracePoint) -> Result<ControlFlow<()>, Error>;

impl Stage {
    /// Trains `model` with `rule` on `source`; the seconds that it took.
    pub(crate) fn train(
        &self,
        rule: &mut dyn StepRule,
        model: &mut Model,
        source: &Loader,
        context: &mut Context,
        trace: &mut Vec<TracePoint>,
        measure: Measure,
    ) -> Result<f64, Error> {
        let total = self.config.epochs * source.batches_per_epoch();
        context.observer.stage(self.name, total);
        let run = format!("{}, from {}", describe_run(rule, model, source, &self.config), model.state.digest()?);
        let kept = Checkpoint::kept(&mut *context.observer, self.name, &run, model.architecture.modules());
        let kept = kept.and_then(|(checkpoint, notes)| Some((checkpoint, serde_json::from_str::<Notes>(&notes).ok()?)));
        let (resume, notes) = kept.map_or((None, Notes::default()), |(checkpoint, notes)| (Some(checkpoint), notes));
        for point in &notes.points {
            context.trace(trace, point.clone());
        }
        let (start, earlier) = (Instant::now(), notes.seconds);
        let mut watcher = Watcher { stage: self, run, notes, start, earlier, context, trace, measure };
        let summary = train_with(rule, model, source, &self.config, resume, &mut watcher).map_err(|error| {
            if error.is_divergence() {
                Error::Diverged { stage: self.name, parameter: self.rate_parameter, source: Box::new(error) }
            } else {
                Error::Network(error)
            }
        })?;
        match summary.outcome {
            Outcome::Interrupted => Err(Error::Stopped { stage: self.name }),
            Outcome::Completed | Outcome::Stopped => Ok(watcher.seconds()),
        }
    }
}

/// What is kept with each checkpoint.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Notes {
    /// The stage's part of the trace.
    points: Vec<TracePoint>,
    seconds: f64,
}

struct Watcher<'w, 'c, 'm> {
    stage: &'w Stage,
    /// Which training is kept.
    run: String,
    notes: Notes,
    start: Instant,
    /// Seconds before `start`, up to the checkpoint that was gone on from.
    earlier: f64,
    context: &'w mut Context<'c>,
    trace: &'w mut Vec<TracePoint>,
    measure: Measure<'m>,
}

impl Watcher<'_, '_, '_> {
    fn seconds(&self) -> f64 {
        self.earlier + self.start.elapsed().as_secs_f64()
    }
}

impl TrainingObserver for Watcher<'_, '_, '_> {
    fn step(&mut self, report: &StepReport) -> ControlFlow<()> {
        let done = report.epoch * report.steps + report.step + 1;
        let total = report.epochs * report.steps;
        self.context.observer.progress(&Progress { stage: self.stage.name, done, total, loss: Some(report.loss) })
    }

    fn epoch_end(&mut self, report: &EpochReport, model: &Model) -> tsbd_nn::Result<ControlFlow<()>> {
        let metrics = [("loss", Some(report.mean_loss)), ("train_accuracy", report.train_accuracy)];
        let metrics = metrics.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let mut point = TracePoint::new(self.stage.name, report.epoch, metrics);
        let flow = (self.measure)(report, model, self.context, &mut point).map_err(tsbd_nn::Error::observer)?;
        self.notes.points.push(point.clone());
        self.context.trace(self.trace, point);
        Ok(flow)
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> tsbd_nn::Result<()> {
        self.notes.seconds = self.seconds();
        let notes = serde_json::to_string(&self.notes).map_err(tsbd_nn::Error::observer)?;
        checkpoint.keep(&mut *self.context.observer, self.stage.name, &self.run, &notes)
    }
}

/// Measures nothing.
pub(crate) fn nothing(_: &EpochReport, _: &Model, _: &Context, _: &mut TracePoint) -> Result<ControlFlow<()>, Error> {
    Ok(ControlFlow::Continue(()))
}

/// Batches of the defender's images.
impl Context<'_> {
    /// In order, augmented afresh in each epoch. `purpose` names the random stream of the augmentation.
    pub(crate) fn augmented(&self, images: Arc<dyn ImageSource>, purpose: &str, batch_size: usize) -> Loader {
        Loader { order: Order::Sequential, ..self.shuffled(images, purpose, batch_size) }
    }

    /// Shuffled and augmented afresh in each epoch.
    pub(crate) fn shuffled(&self, images: Arc<dyn ImageSource>, purpose: &str, batch_size: usize) -> Loader {
        Loader {
            source: images,
            normalization: self.normalization,
            augmentation: Some(self.augmentation),
            batch_size,
            order: Order::Shuffled(purpose.to_owned()),
            drop_last: false,
            streams: self.streams.child(purpose),
            device: self.device.clone(),
        }
    }

    /// In order, as they are.
    pub(crate) fn plain(&self, images: Arc<dyn ImageSource>, batch_size: usize) -> Loader {
        Loader::evaluation(images, self.normalization, batch_size).on(&self.device)
    }
}

/// How the learning rate of fine-tuning changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FineTuningSchedule {
    /// Half a cosine of `cosine_period` epochs.
    Cosine,
    /// A tenth when the loss of ten epochs has brought nothing new, as PyTorch's `ReduceLROnPlateau` with its defaults.
    Plateau,
}

/// What BackdoorBench's configurations of FT, FP and NC have for Tiny ImageNet.
pub(crate) fn published(dataset: &DatasetFacts) -> Value {
    if is_tiny_imagenet(dataset) { json!({"epochs": 200, "schedule": "plateau"}) } else { json!({}) }
}

/// Fine-tuning as BackdoorBench's defenses do it: SGD with a schedule, shuffled and augmented.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FineTuning {
    pub(crate) epochs: usize,
    pub(crate) learning_rate: f64,
    pub(crate) momentum: f64,
    pub(crate) weight_decay: f64,
    /// A cosine unless given.
    pub(crate) schedule: Option<FineTuningSchedule>,
    pub(crate) cosine_period: usize,
}

impl FineTuning {
    pub(crate) fn check(&self) -> Result<(), ParameterError> {
        ParameterError::unless_nonzero("epochs", self.epochs)?;
        ParameterError::unless_positive("learning_rate", self.learning_rate)?;
        ParameterError::unless_within("momentum", self.momentum, 0.0, 1.0)?;
        ParameterError::unless_within("weight_decay", self.weight_decay, 0.0, 1.0)?;
        ParameterError::unless_nonzero("cosine_period", self.cosine_period)
    }

    /// One form of schedule and period for everything that means the same: the usual schedule is not there, and a period that
    /// is not used is 100.
    pub(crate) fn canonical_schedule(&self) -> (Option<FineTuningSchedule>, usize) {
        match self.schedule {
            None | Some(FineTuningSchedule::Cosine) => (None, self.cosine_period),
            plateau => (plateau, 100),
        }
    }

    /// The stage `fine-tuning` with these numbers, whose passes round to `precision`.
    pub(crate) fn stage(&self, precision: Precision) -> Stage {
        let FineTuning { epochs, learning_rate, momentum, weight_decay, schedule, cosine_period } = *self;
        let sgd = SgdConfig { learning_rate, momentum, weight_decay };
        let schedule = match schedule {
            None | Some(FineTuningSchedule::Cosine) => Schedule::Cosine { t_max: cosine_period },
            Some(FineTuningSchedule::Plateau) => Schedule::plateau(),
        };
        let config = TrainingConfig { epochs, sgd, schedule, precision };
        Stage { name: "fine-tuning", rate_parameter: "learning_rate", config }
    }
}
