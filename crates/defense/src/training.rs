//! The training loop of `tsbd-nn` as a stage of a repair: progress goes to the repair's observer, each epoch leaves a
//! point in the trace.

use std::ops::ControlFlow;
use std::sync::Arc;

use tsbd_attack::ParameterError;
use tsbd_data::{ImageSource, Loader, Order};
use tsbd_nn::{
    BatchSource, EpochReport, Model, Outcome, Schedule, SgdConfig, StepReport, StepRule, TrainingConfig,
    TrainingObserver, train_with,
};
use tsbd_tensor::{DType, Tensor};

use crate::Error;
use crate::context::{Context, Progress};
use crate::entry::TracePoint;

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
    /// Epochs, optimiser, schedule.
    pub(crate) config: TrainingConfig,
}

/// What is measured after an epoch, and whether training ends there.
pub(crate) type Measure<'m> =
    &'m mut dyn FnMut(&EpochReport, &Model, &Context, &mut TracePoint) -> Result<ControlFlow<()>, Error>;

impl Stage {
    /// Trains `model` with `rule` on `source`.
    pub(crate) fn train(
        &self,
        rule: &mut dyn StepRule,
        model: &mut Model,
        source: &Loader,
        context: &mut Context,
        trace: &mut Vec<TracePoint>,
        measure: Measure,
    ) -> Result<(), Error> {
        let total = self.config.epochs * source.batches_per_epoch();
        context.observer.stage(self.name, total);
        let mut watcher = Watcher { stage: self, context, trace, measure };
        let summary =
            train_with(rule, model, source, &self.config, None, &mut watcher).map_err(|error| match error {
                error @ tsbd_nn::Error::NonFiniteLoss { .. } => {
                    Error::Diverged { stage: self.name, parameter: self.rate_parameter, source: Box::new(error) }
                }
                error => Error::Network(error),
            })?;
        match summary.outcome {
            Outcome::Interrupted => Err(Error::Stopped { stage: self.name }),
            Outcome::Completed | Outcome::Stopped => Ok(()),
        }
    }
}

struct Watcher<'w, 'c, 'm> {
    stage: &'w Stage,
    context: &'w mut Context<'c>,
    trace: &'w mut Vec<TracePoint>,
    measure: Measure<'m>,
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
        self.context.trace(self.trace, point);
        Ok(flow)
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

/// Fine-tuning as BackdoorBench's defenses do it: SGD with a cosine schedule, shuffled and augmented.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FineTuning {
    pub(crate) epochs: usize,
    pub(crate) learning_rate: f64,
    pub(crate) momentum: f64,
    pub(crate) weight_decay: f64,
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

    /// The stage `fine-tuning` with these numbers.
    pub(crate) fn stage(&self) -> Stage {
        let FineTuning { epochs, learning_rate, momentum, weight_decay, cosine_period } = *self;
        let sgd = SgdConfig { learning_rate, momentum, weight_decay };
        let schedule = Schedule::Cosine { t_max: cosine_period };
        Stage { name: "fine-tuning", rate_parameter: "learning_rate", config: TrainingConfig { epochs, sgd, schedule } }
    }
}
