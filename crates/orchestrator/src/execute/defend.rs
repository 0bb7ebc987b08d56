//! Repairs the model of a Train cell.

use std::ops::ControlFlow;
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::{Value, json};
use tsbd_analysis::{NeuronVectors, Unlearned};
use tsbd_attack::{Evaluation, LEARNED_TRIGGER, PoisonFacts};
use tsbd_defense::{Context, Defense, DefenseObserver, Progress};
use tsbd_experiment::{CellKind, MethodParameters, NEURONS, TracePoint};
use tsbd_nn::{Keeper, Model};
use tsbd_tensor::Tensor;

use super::unlearn::{self, save_neurons};
use super::{ExecuteError, MODEL, Setting, other_method, rates};
use crate::workspace::{Cancellation, CellError, CellWorkspace, Conclusion, Findings, ProgressReporter};

/// Name of the vector with the scores that a defense ordered neurons by.
pub(super) const SCORES: &str = "score";
/// Name of the vector with how many weights of each neuron a defense set to 0.
const ZEROED: &str = "zeroed";

pub(super) fn run(setting: Setting, workspace: &CellWorkspace) -> Result<Conclusion, CellError> {
    let cell = workspace.cell();
    let incomplete = |part| ExecuteError::Incomplete { kind: CellKind::Defend, part };
    let method = cell.defense.as_ref().ok_or(incomplete("defense"))?;
    let defense = configure(method)?;
    defense.check(setting.architecture.as_ref(), &setting.dataset_facts)?;
    let trained = workspace.parent_of_kind(CellKind::Train)?.ok_or(incomplete("a trained model among its parents"))?;
    let setting = setting.with_learned_trigger(&workspace.parent_artefact(&trained.key, LEARNED_TRIGGER))?;
    let path = workspace.parent_artefact(&trained.key, MODEL);
    let backdoored = Model::load(Arc::clone(&setting.architecture), path)?.to_device(&setting.device)?;

    let (parents, device) = (workspace.parents()?, &setting.device);
    let unlearned = unlearn::result(workspace, &parents, Unlearned::Clean, &setting.architecture, device)?;
    let clean = defense.clean_subset(Arc::clone(&setting.dataset.train) as _, cell.seed)?;
    let (reporter, cancellation) = (workspace.reporter(), workspace.cancellation());
    let mut observer = Observer { workspace, reporter, cancellation };
    let mut context = Context {
        streams: setting.streams.child(&method.name),
        device: setting.device.clone(),
        normalization: setting.dataset.normalization,
        augmentation: setting.dataset.augmentation(),
        clean_test: Arc::clone(&setting.dataset.test) as _,
        evaluate: &|model| setting.evaluate(model),
        unlearned: unlearned.as_ref(),
        observer: &mut observer,
    };
    let repaired = match defense.repair(&backdoored, &clean, &mut context) {
        Err(tsbd_defense::Error::Stopped { .. }) => return Ok(Conclusion::Stopped),
        result => result?,
    };
    workspace.reporter().stage("evaluate");
    let after = setting.evaluate(&repaired.model)?;
    repaired.model.save(workspace.directory().join(MODEL))?;
    let mut artefacts = vec![MODEL.to_owned()];
    let zeroed = repaired.zeroed().map(|zeroed| (ZEROED.to_owned(), zeroed));
    let vectors: NeuronVectors =
        repaired.scores.map(|scores| (SCORES.to_owned(), scores)).into_iter().chain(zeroed).collect();
    if !vectors.is_empty() {
        save_neurons(&vectors, &workspace.directory().join(NEURONS))?;
        artefacts.push(NEURONS.to_owned());
    }

    let before = Evaluation {
        acc: trained.metrics.get("acc").copied().ok_or(incomplete("its parent's accuracy"))?,
        asr: trained.metrics.get("asr").copied(),
        ..Evaluation::default()
    };
    let mut metrics = rates(&after);
    metrics.insert("acc_before".to_owned(), before.acc);
    metrics.extend(before.asr.map(|asr| ("asr_before".to_owned(), asr)));
    metrics.extend(tsbd_analysis::der(&before, &after).map(|der| ("der".to_owned(), der)));
    let poison: PoisonFacts = serde_json::from_value(Value::Object(trained.facts))
        .map_err(|_| incomplete("its parent's count of poisoned images"))?;
    let mut facts = setting.facts(&poison);
    facts.insert("clean_count".to_owned(), json!(clean.len()));
    facts.insert("changed_neurons".to_owned(), json!(repaired.changed.len()));
    // Defenses that choose nothing leave what they end with.
    facts.insert("selection".to_owned(), json!("last epoch"));
    facts.extend(repaired.facts);
    Ok(Conclusion::Done(Findings { metrics, facts, trace: repaired.trace, artefacts }))
}

fn configure(method: &MethodParameters) -> Result<Box<dyn Defense>, CellError> {
    match tsbd_defense::find(&method.name) {
        Some(entry) if entry.revision == method.revision => Ok(entry.from_parameters(&method.parameters)?),
        entry => Err(other_method("defense", method, entry.map(|entry| entry.revision)).into()),
    }
}

struct Observer<'a> {
    workspace: &'a CellWorkspace,
    reporter: ProgressReporter,
    cancellation: Cancellation,
}

impl Keeper for Observer<'_> {
    fn keep(&mut self, stage: &str, run: &str, state: &IndexMap<String, Tensor>) -> tsbd_nn::Result<()> {
        self.workspace.keep(stage, run, state)
    }

    fn kept(&mut self, stage: &str, run: &str) -> Option<IndexMap<String, Tensor>> {
        self.workspace.kept(stage, run)
    }
}

impl DefenseObserver for Observer<'_> {
    fn stage(&mut self, stage: &str, _steps: usize) {
        self.reporter.stage(stage);
    }

    fn progress(&mut self, progress: &Progress) -> ControlFlow<()> {
        self.reporter.step(progress.stage, (0, 1), (progress.done, progress.total), progress.loss, None);
        if self.cancellation.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn trace(&mut self, point: &TracePoint) {
        self.reporter.epoch(&point.stage, point.epoch, point.epoch + 1, &point.metrics);
    }
}
