//! Makes the model of the first parent unlearn.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::{Map, Value, json};
use tsbd_analysis::{Context, NeuronVector, NeuronVectors, Neurons, Observer, Unlearned, UnlearnedModel, Unlearning};
use tsbd_attack::LEARNED_TRIGGER;
use tsbd_data::ImageSource;
use tsbd_defense::{CleanSubset, DefenseCommon};
use tsbd_experiment::{CellKind, CellRecord, MethodParameters, NEURONS, NWC, TracePoint};
use tsbd_nn::{Architecture, Keeper, Model};
use tsbd_tensor::{Device, Tensor};

use super::{Basis, ExecuteError, MODEL, Setting, other_method};
use crate::workspace::{Cancellation, CellError, CellWorkspace, Conclusion, Findings, ProgressReporter};

/// Fact with the seconds that an unlearning took.
const SECONDS: &str = "unlearning_seconds";
/// Fact that tells whether it came as far as it should.
const REACHED: &str = "unlearning_reached";

pub(super) fn run(basis: Basis, workspace: &CellWorkspace) -> Result<Conclusion, CellError> {
    let incomplete = |part| ExecuteError::Incomplete { kind: CellKind::Unlearn, part };
    let cell = workspace.cell();
    let unlearning = configure(cell.unlearning.as_ref().ok_or(incomplete("an unlearning"))?)?;
    let architecture = basis.architecture(cell.model.as_ref().ok_or(incomplete("a network"))?)?;
    let parents = workspace.parents()?;
    let subject = parents.first().ok_or(incomplete("a model among its parents"))?;
    let path = workspace.parent_artefact(&subject.key, MODEL);
    let model = Model::load(Arc::clone(&architecture), path)?.to_device(&basis.device)?;
    let dataset = Arc::clone(&basis.dataset);
    let (streams, device) = (basis.streams.child(Unlearning::STREAMS), basis.device.clone());
    let images = match unlearning.of {
        Unlearned::Clean => clean_images(&unlearning, Arc::clone(&dataset.train) as _, cell.seed)?,
        Unlearned::Poison => poison_images(basis, workspace, &parents)?,
    };

    let count = images.len();
    let mut observer = Watcher::new(workspace);
    let mut context = Context {
        streams,
        device,
        normalization: dataset.normalization,
        augmentation: dataset.augmentation(),
        observer: &mut observer,
    };
    let unlearned = match unlearning.run(&model, images, &mut context) {
        Err(tsbd_analysis::Error::Stopped { .. }) => return Ok(Conclusion::Stopped),
        result => result?,
    };
    unlearned.model.save(workspace.directory().join(MODEL))?;
    save_neurons(&[(NWC.to_owned(), unlearned.nwc)].into(), &workspace.directory().join(NEURONS))?;

    let last = unlearned.rates.last().map(|rate| (unlearning.of.rate().to_owned(), *rate));
    let facts = [
        ("unlearning_images", json!(count)),
        ("unlearning_epochs", json!(unlearned.rates.len())),
        (REACHED, json!(unlearned.reached)),
        (SECONDS, json!(unlearned.seconds)),
    ];
    Ok(Conclusion::Done(Findings {
        metrics: last.into_iter().collect(),
        facts: facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        trace: observer.trace,
        artefacts: vec![MODEL.to_owned(), NEURONS.to_owned()],
    }))
}

/// What the Unlearn cell among `parents` left whose unlearning is of these images; `None` if none is.
pub(super) fn result(
    workspace: &CellWorkspace,
    parents: &[CellRecord],
    of: Unlearned,
    architecture: &Arc<dyn Architecture>,
    device: &Device,
) -> Result<Option<UnlearnedModel>, CellError> {
    for record in parents.iter().filter(|record| record.cell.kind == CellKind::Unlearn) {
        let method = record.cell.unlearning.as_ref();
        let unlearning = configure(method.ok_or(incomplete_parent("an unlearning"))?)?;
        if unlearning.of != of {
            continue;
        }
        let path = workspace.parent_artefact(&record.key, MODEL);
        return Ok(Some(UnlearnedModel {
            model: Model::load(Arc::clone(architecture), path)?.to_device(device)?,
            nwc: weight_changes(record, architecture.as_ref(), workspace)?,
            rates: record.trace.iter().filter_map(|point| point.metrics.get(of.rate()).copied()).collect(),
            reached: fact(&record.facts, REACHED)?,
            seconds: fact(&record.facts, SECONDS)?,
        }));
    }
    Ok(None)
}

/// The weight change of each neuron that an Unlearn cell left.
fn weight_changes(
    record: &CellRecord,
    architecture: &dyn Architecture,
    workspace: &CellWorkspace,
) -> Result<NeuronVector, CellError> {
    let nwc = neurons(record, workspace)?.remove(NWC).ok_or(incomplete_parent("the weight changes of its neurons"))?;
    let layers = Neurons::of(architecture);
    let expected = layers.layers().iter().map(|layer| (layer.module.as_str(), layer.filters));
    if nwc.layers().map(|(name, values)| (name, values.len())).eq(expected) {
        return Ok(nwc);
    }
    Err(incomplete_parent("a weight change for each neuron of the network").into())
}

/// The vectors that a parent left.
pub(super) fn neurons(record: &CellRecord, workspace: &CellWorkspace) -> Result<NeuronVectors, CellError> {
    let text = fs_err::read_to_string(workspace.parent_artefact(&record.key, NEURONS))?;
    Ok(serde_json::from_str(&text)?)
}

fn fact<T: serde::de::DeserializeOwned>(facts: &Map<String, Value>, name: &'static str) -> Result<T, CellError> {
    let value = facts.get(name).cloned().and_then(|value| serde_json::from_value(value).ok());
    Ok(value.ok_or(incomplete_parent(name))?)
}

fn incomplete_parent(part: &'static str) -> ExecuteError {
    ExecuteError::Incomplete { kind: CellKind::Unlearn, part }
}

/// The unlearning of a cell, checked against what this program does.
pub(super) fn configure(method: &MethodParameters) -> Result<Unlearning, CellError> {
    let unlearning: Unlearning = serde_json::from_value(method.parameters.clone())?;
    if (method.name.as_str(), method.revision) != (unlearning.of.stage(), Unlearning::REVISION) {
        return Err(other_method("the unlearning", method, Some(Unlearning::REVISION)).into());
    }
    Ok(unlearning)
}

/// The clean images that are unlearned: those that every defense has with the same ratio and seed.
pub(super) fn clean_images(
    unlearning: &Unlearning,
    train: Arc<dyn ImageSource>,
    seed: u64,
) -> Result<Arc<dyn ImageSource>, CellError> {
    let clean_ratio = unlearning.clean_ratio.ok_or(incomplete_parent("a ratio of clean images"))?;
    let common = DefenseCommon { clean_ratio, batch_size: unlearning.batch_size, ..DefenseCommon::default() };
    Ok(CleanSubset::draw(train, &common, seed)?.images())
}

/// The triggered test images with the target label.
fn poison_images(
    basis: Basis,
    workspace: &CellWorkspace,
    parents: &[CellRecord],
) -> Result<Arc<dyn ImageSource>, CellError> {
    let setting = attacked(Setting::of(basis, workspace)?, workspace, parents)?;
    let incomplete = ExecuteError::Incomplete { kind: workspace.cell().kind, part: "an attack that has a trigger" };
    Ok(setting.poisoner.test.ok_or(incomplete)?)
}

/// The setting with the trigger that the attacked model among `parents` was trained with, if that attack learns one.
pub(super) fn attacked(
    setting: Setting,
    workspace: &CellWorkspace,
    parents: &[CellRecord],
) -> Result<Setting, CellError> {
    let attack = &workspace.cell().attack.name;
    let trained =
        parents.iter().find(|record| record.cell.kind == CellKind::Train && record.cell.attack.name == *attack);
    let incomplete =
        ExecuteError::Incomplete { kind: workspace.cell().kind, part: "an attacked model among its parents" };
    Ok(setting.with_learned_trigger(&workspace.parent_artefact(&trained.ok_or(incomplete)?.key, LEARNED_TRIGGER))?)
}

/// Writes vectors, which must be finite.
pub(super) fn save_neurons(vectors: &NeuronVectors, path: &Path) -> Result<(), CellError> {
    let infinite = vectors.iter().find(|(_, vector)| vector.values().any(|value| !value.is_finite()));
    if let Some((name, _)) = infinite {
        return Err(format!(
            "`{name}` has a value that is no finite number: the network's weights or outputs overflow"
        )
        .into());
    }
    let text = serde_json::to_string(vectors)?;
    Ok(tsbd_experiment::store::write_atomically(path, text.as_bytes())?)
}

/// Tells the coordinator what an unlearning or a measurement does, and keeps its epochs for the record.
pub(super) struct Watcher<'a> {
    workspace: &'a CellWorkspace,
    reporter: ProgressReporter,
    cancellation: Cancellation,
    pub(super) trace: Vec<TracePoint>,
}

impl<'a> Watcher<'a> {
    pub(super) fn new(workspace: &'a CellWorkspace) -> Watcher<'a> {
        let (reporter, cancellation) = (workspace.reporter(), workspace.cancellation());
        Watcher { workspace, reporter, cancellation, trace: Vec::new() }
    }
}

impl Keeper for Watcher<'_> {
    fn keep(&mut self, stage: &str, run: &str, state: &IndexMap<String, Tensor>) -> tsbd_nn::Result<()> {
        self.workspace.keep(stage, run, state)
    }

    fn kept(&mut self, stage: &str, run: &str) -> Option<IndexMap<String, Tensor>> {
        self.workspace.kept(stage, run)
    }
}

impl Observer for Watcher<'_> {
    fn step(&mut self, stage: &'static str, done: usize, total: usize, loss: Option<f64>) -> ControlFlow<()> {
        self.reporter.step(stage, (0, 1), (done, total), loss, None);
        if self.cancellation.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn epoch(&mut self, stage: &'static str, epoch: usize, metrics: &[(&'static str, f64)]) {
        let point = TracePoint::new(stage, epoch, metrics.iter().copied());
        self.reporter.epoch(stage, epoch, epoch + 1, &point.metrics);
        self.trace.push(point);
    }
}
