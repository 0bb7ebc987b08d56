//! Trains a model on an attack's images.

use std::ops::ControlFlow;
use std::sync::Arc;

use serde_json::json;
use tsbd_attack::{LEARNED_TRIGGER, TrainingPlan, TrainingSource};
use tsbd_data::{ImageSource, Loader, Order};
use tsbd_experiment::{Augmentation, CellKind, Schedule, TracePoint, TrainingParameters};
use tsbd_nn::{
    Checkpoint, EpochReport, Model, Outcome, SgdConfig, StepReport, TrainingConfig, TrainingObserver, train, train_with,
};

use super::{ExecuteError, MODEL, Setting, rates};
use crate::workspace::{CellError, CellWorkspace, Conclusion, Findings, ProgressReporter};

const STAGE: &str = "train";
/// The stage of the epochs in which an attack trains its trigger and the model rests.
const PREPARATION: &str = "preparation";

pub(super) fn run(mut setting: Setting, workspace: &CellWorkspace) -> Result<Conclusion, CellError> {
    let parameters = workspace.cell().training.as_ref();
    let parameters = parameters.ok_or(ExecuteError::Incomplete { kind: CellKind::Train, part: "training" })?;
    let mut stream = setting.streams.stream("initialisation", 0);
    let mut model = Model::new(Arc::clone(&setting.architecture), &mut stream)?.to_device(&setting.device)?;
    let reporter = workspace.reporter();
    let resume = last_checkpoint(&setting, workspace, &reporter);
    let plan = TrainingPlan {
        config: config(parameters),
        batch_size: parameters.batch_size,
        augment: parameters.augmentation == Augmentation::Standard,
        device: setting.device.clone(),
    };

    let mut artefacts = vec![MODEL.to_owned()];
    let (summary, mut facts) = match setting.poisoner.train.clone() {
        TrainingSource::Static(images) => {
            let loader = loader(&setting, images, &plan);
            let mut observer = Observer { workspace, reporter: &reporter, epochs: plan.config.epochs, preparation: 0 };
            let summary = train(&mut model, &loader, &plan.config, resume, &mut observer)?;
            (summary, setting.facts(&setting.poisoner.facts))
        }
        TrainingSource::Controlled(control) => {
            let mut training = control.begin(&plan)?;
            let (config, batches) = (training.config().clone(), training.batches());
            let preparation = training.preparation().map_or(0, |preparation| preparation.epochs());
            let mut observer = Observer { workspace, reporter: &reporter, epochs: config.epochs, preparation };
            let summary = train_with(training.as_mut(), &mut model, batches.as_ref(), &config, resume, &mut observer)?;
            if summary.outcome != Outcome::Interrupted && setting.poisoner.awaits_trigger() {
                let path = workspace.directory().join(LEARNED_TRIGGER);
                training.save_trigger(&path)?;
                setting = setting.with_learned_trigger(&path)?;
                artefacts.push(LEARNED_TRIGGER.to_owned());
            }
            let mut facts = setting.facts(&training.facts());
            facts.insert("training".to_owned(), json!(config));
            (summary, facts)
        }
    };
    if summary.outcome == Outcome::Interrupted {
        return Ok(Conclusion::Stopped);
    }
    reporter.stage("evaluate");
    let evaluation = setting.evaluate(&model)?;
    model.save(workspace.directory().join(MODEL))?;
    facts.insert("selection".to_owned(), json!("last epoch"));
    let trace = summary.history.iter().map(traced).collect();
    Ok(Conclusion::Done(Findings { metrics: rates(&evaluation), facts, trace, artefacts }))
}

fn loader(setting: &Setting, images: Arc<dyn ImageSource>, plan: &TrainingPlan) -> Loader {
    Loader {
        source: images,
        normalization: setting.dataset.normalization,
        augmentation: plan.augment.then(|| setting.dataset.augmentation()),
        batch_size: plan.batch_size,
        order: Order::Shuffled(STAGE.to_owned()),
        drop_last: true,
        streams: setting.streams,
        device: setting.device.clone(),
    }
}

fn config(parameters: &TrainingParameters) -> TrainingConfig {
    TrainingConfig {
        epochs: parameters.epochs,
        sgd: SgdConfig {
            learning_rate: parameters.learning_rate,
            momentum: parameters.momentum,
            weight_decay: parameters.weight_decay,
        },
        schedule: match &parameters.schedule {
            Schedule::Constant => tsbd_nn::Schedule::Constant,
            Schedule::Cosine { t_max } => tsbd_nn::Schedule::Cosine { t_max: *t_max },
            Schedule::Plateau { factor, patience, threshold } => {
                tsbd_nn::Schedule::Plateau { factor: *factor, patience: *patience, threshold: *threshold }
            }
            Schedule::MultiStep { milestones, gamma } => {
                tsbd_nn::Schedule::MultiStep { milestones: milestones.clone(), gamma: *gamma }
            }
        },
        precision: parameters.precision,
    }
}

/// The checkpoint to go on from. A damaged one costs the epochs that it held and nothing else.
fn last_checkpoint(setting: &Setting, workspace: &CellWorkspace, reporter: &ProgressReporter) -> Option<Checkpoint> {
    match Checkpoint::load_if_present(workspace.checkpoint(), setting.architecture.modules()) {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            reporter.note(format!("{error}; training begins again with the first epoch"));
            None
        }
    }
}

fn traced(report: &EpochReport) -> TracePoint {
    let stage = if report.train_accuracy.is_some() { STAGE } else { PREPARATION };
    // In the preparation the model's learning rate is not used.
    let metrics = [
        ("learning_rate", report.train_accuracy.map(|_| report.learning_rate)),
        ("mean_loss", Some(report.mean_loss)),
        ("train_accuracy", report.train_accuracy),
        ("seconds", Some(report.seconds)),
    ];
    TracePoint {
        stage: stage.to_owned(),
        epoch: report.epoch,
        metrics: metrics.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect(),
    }
}

struct Observer<'a> {
    workspace: &'a CellWorkspace,
    reporter: &'a ProgressReporter,
    epochs: usize,
    /// How many of them are the preparation.
    preparation: usize,
}

impl TrainingObserver for Observer<'_> {
    fn step(&mut self, report: &StepReport) -> ControlFlow<()> {
        let (epoch, step) = ((report.epoch, report.epochs), (report.step + 1, report.steps));
        let stage = if report.epoch < self.preparation { PREPARATION } else { STAGE };
        self.reporter.step(stage, epoch, step, Some(report.loss), Some(report.images_per_second));
        match self.workspace.cancellation().is_cancelled() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn note(&mut self, note: &str) {
        self.reporter.note(note);
    }

    fn epoch_end(&mut self, report: &EpochReport, _model: &Model) -> tsbd_nn::Result<ControlFlow<()>> {
        let TracePoint { stage, epoch, metrics } = traced(report);
        self.reporter.epoch(&stage, epoch, self.epochs, &metrics);
        Ok(ControlFlow::Continue(()))
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> tsbd_nn::Result<()> {
        self.workspace.save("", || checkpoint.save(self.workspace.checkpoint()))
    }
}
