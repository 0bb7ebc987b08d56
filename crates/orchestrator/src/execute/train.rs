//! Trains a model on an attack's images.

use std::ops::ControlFlow;
use std::sync::Arc;

use serde_json::json;
use tsbd_attack::TrainingSource;
use tsbd_data::{ImageSource, Loader, Order};
use tsbd_experiment::{Augmentation, CellKind, Schedule, TracePoint, TrainingParameters};
use tsbd_nn::{
    Checkpoint, EpochReport, Model, Outcome, SgdConfig, StepReport, TrainingConfig, TrainingObserver, train,
};

use super::{ExecuteError, MODEL, Setting, rates};
use crate::workspace::{CellError, CellWorkspace, Conclusion, Findings, ProgressReporter};

const STAGE: &str = "train";

pub(super) fn run(setting: &Setting, workspace: &CellWorkspace) -> Result<Conclusion, CellError> {
    let parameters = workspace.cell().training.as_ref();
    let parameters = parameters.ok_or(ExecuteError::Incomplete { kind: CellKind::Train, part: "training" })?;
    let loader = loader(setting, parameters);
    let mut stream = setting.streams.stream("initialisation", 0);
    let mut model = Model::new(Arc::clone(&setting.architecture), &mut stream)?.to_device(&setting.device)?;
    let reporter = workspace.reporter();
    let resume = last_checkpoint(setting, workspace, &reporter);

    let mut observer = Observer { workspace, reporter: &reporter, epochs: parameters.epochs };
    let summary = train(&mut model, &loader, &config(parameters), resume, &mut observer)?;
    if summary.outcome == Outcome::Interrupted {
        return Ok(Conclusion::Stopped);
    }
    reporter.stage("evaluate");
    let evaluation = setting.evaluate(&model)?;
    model.save(workspace.directory().join(MODEL))?;
    let mut facts = setting.facts();
    facts.insert("selection".to_owned(), json!("last epoch"));
    Ok(Conclusion::Done(Findings {
        metrics: rates(&evaluation),
        facts,
        trace: summary.history.iter().map(traced).collect(),
        artefacts: vec![MODEL.to_owned()],
    }))
}

fn loader(setting: &Setting, parameters: &TrainingParameters) -> Loader {
    let TrainingSource::Static(images) = &setting.poisoner.train;
    Loader {
        source: Arc::clone(images) as Arc<dyn ImageSource>,
        normalization: setting.dataset.normalization,
        augmentation: match parameters.augmentation {
            Augmentation::Standard => Some(setting.dataset.augmentation()),
            Augmentation::None => None,
        },
        batch_size: parameters.batch_size,
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
    }
}

/// The checkpoint to go on from. A damaged one costs the epochs that it held and nothing else.
fn last_checkpoint(setting: &Setting, workspace: &CellWorkspace, reporter: &ProgressReporter) -> Option<Checkpoint> {
    match Checkpoint::load_if_present(workspace.checkpoint(), setting.architecture.modules()) {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            let note = format!("{error}; training begins again with the first epoch");
            eprintln!("{note}");
            reporter.note(note);
            None
        }
    }
}

fn traced(report: &EpochReport) -> TracePoint {
    let metrics = [
        ("learning_rate", report.learning_rate),
        ("mean_loss", report.mean_loss),
        ("train_accuracy", report.train_accuracy),
        ("seconds", report.seconds),
    ];
    TracePoint {
        stage: STAGE.to_owned(),
        epoch: report.epoch,
        metrics: metrics.map(|(name, value)| (name.to_owned(), value)).into(),
    }
}

struct Observer<'a> {
    workspace: &'a CellWorkspace,
    reporter: &'a ProgressReporter,
    epochs: usize,
}

impl TrainingObserver for Observer<'_> {
    fn step(&mut self, report: &StepReport) -> ControlFlow<()> {
        let (epoch, step) = ((report.epoch, report.epochs), (report.step + 1, report.steps));
        self.reporter.step(STAGE, epoch, step, Some(report.loss), Some(report.images_per_second));
        match self.workspace.cancellation().is_cancelled() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn epoch_end(&mut self, report: &EpochReport, _model: &Model) -> tsbd_nn::Result<ControlFlow<()>> {
        self.reporter.epoch(STAGE, report.epoch, self.epochs, &traced(report).metrics);
        Ok(ControlFlow::Continue(()))
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> tsbd_nn::Result<()> {
        checkpoint.save(self.workspace.checkpoint())?;
        if let Err(error) = self.workspace.checkpointed() {
            eprintln!("the seconds spent so far could not be kept: {error}");
        }
        Ok(())
    }
}
