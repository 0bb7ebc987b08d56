//! Makes what an attack starts from.

use std::ops::ControlFlow;
use std::sync::Arc;

use indexmap::IndexMap;
use tsbd_attack::{Groundwork, GroundworkContext, GroundworkObserver};
use tsbd_experiment::{CellKind, TracePoint};
use tsbd_nn::Model;
use tsbd_tensor::Tensor;

use super::{Basis, ExecuteError, MATERIAL, MODEL, configure_attack};
use crate::workspace::{Cancellation, CellError, CellWorkspace, Conclusion, Findings, ProgressReporter};

/// What its checkpoint is called: a groundwork keeps one state.
const STAGE: &str = "groundwork";

pub(super) fn run(basis: &Basis, workspace: &CellWorkspace) -> Result<Conclusion, CellError> {
    let attack = configure_attack(&workspace.cell().attack)?;
    let groundwork = attack.groundwork().ok_or(incomplete("an attack that has a groundwork"))?;
    let model = clean_model(groundwork, basis, workspace)?;
    let (reporter, cancellation) = (workspace.reporter(), workspace.cancellation());
    let mut observer = Observer { workspace, reporter, cancellation, trace: Vec::new() };
    let mut context = GroundworkContext {
        clean: &basis.dataset,
        model: model.as_ref(),
        streams: basis.streams,
        device: basis.device.clone(),
        observer: &mut observer,
    };
    let material = match groundwork.make(&mut context) {
        Err(tsbd_attack::Error::Stopped { .. }) => return Ok(Conclusion::Stopped),
        result => result?,
    };
    material.save(workspace.directory().join(MATERIAL))?;
    Ok(Conclusion::Done(Findings {
        metrics: material.metrics,
        facts: material.facts,
        trace: observer.trace,
        artefacts: vec![MATERIAL.to_owned()],
    }))
}

/// The clean model of the parent, where the groundwork starts from one.
fn clean_model(
    groundwork: &dyn Groundwork,
    basis: &Basis,
    workspace: &CellWorkspace,
) -> Result<Option<Model>, CellError> {
    if !groundwork.needs_clean_model() {
        return Ok(None);
    }
    let architecture = basis.architecture(workspace.cell().model.as_ref().ok_or(incomplete("a network"))?)?;
    groundwork.check(architecture.as_ref())?;
    let trained = workspace.parent_of_kind(CellKind::Train)?.ok_or(incomplete("a clean model among its parents"))?;
    let path = workspace.parent_artefact(&trained.key, MODEL);
    Ok(Some(Model::load(Arc::clone(&architecture), path)?.to_device(&basis.device)?))
}

/// The cell's parameters lack a part.
fn incomplete(part: &'static str) -> ExecuteError {
    ExecuteError::Incomplete { kind: CellKind::Prepare, part }
}

struct Observer<'a> {
    workspace: &'a CellWorkspace,
    reporter: ProgressReporter,
    cancellation: Cancellation,
    trace: Vec<TracePoint>,
}

impl GroundworkObserver for Observer<'_> {
    fn step(&mut self, stage: &str, done: usize, total: usize, loss: Option<f64>) -> ControlFlow<()> {
        self.reporter.step(stage, (0, 1), (done, total), loss, None);
        if self.cancellation.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn round(&mut self, stage: &str, round: usize, metrics: &[(&str, f64)]) {
        let metrics = metrics.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        let point = TracePoint { stage: stage.to_owned(), epoch: round, metrics };
        self.reporter.epoch(stage, round, round + 1, &point.metrics);
        self.trace.push(point);
    }

    fn keep(&mut self, run: &str, state: &IndexMap<String, Tensor>) -> tsbd_nn::Result<()> {
        self.workspace.keep(STAGE, run, state)
    }

    fn kept(&mut self, run: &str) -> Option<IndexMap<String, Tensor>> {
        self.workspace.kept(STAGE, run)
    }
}
