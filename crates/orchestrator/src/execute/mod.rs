//! What a cell does: makes what an attack starts from, trains an attacked model, makes it unlearn, repairs it, or
//! measures something in it.
//!
//! This runs in a child of the coordinator, inside the folder of a [`CellWorkspace`]. It reads the cell's parameters and
//! its parent's model, writes a checkpoint and a model into the folder, and returns numbers; the workspace publishes
//! them. It knows no other cell.

mod defend;
mod measure;
mod prepare;
mod train;
mod unlearn;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tsbd_attack::{Attack, DatasetFacts, Evaluation, Material, PoisonFacts, Poisoner};
use tsbd_data::{DataRoot, Dataset, ImageSource};
use tsbd_experiment::{CellKind, MethodParameters, ModelParameters};
use tsbd_nn::{Architecture, Model, Streams};
use tsbd_tensor::Device;

use crate::workspace::{CellError, CellWorkspace, Conclusion};

/// Name of the file with the finished model, among a cell's artefacts.
pub const MODEL: &str = "model.safetensors";

/// Name of the file with what a Prepare cell made.
pub const MATERIAL: &str = "material.safetensors";

/// Images per batch when a model is measured: changes speed and memory, not results.
const EVALUATION_BATCH: usize = 500;

/// Why a cell cannot be run by this program; whatever fails inside it has its own error.
#[derive(Debug, thiserror::Error)]
enum ExecuteError {
    /// The images on disk are not those that the cell's key was made from.
    #[error("the data set {name} has digest {found}, this cell is about {expected}: start `tsbd run` again")]
    OtherData { name: String, found: String, expected: String },
    /// A name or revision that this program does not have.
    #[error("{kind} `{name}`, revision {revision}: this program has {found}")]
    OtherMethod { kind: &'static str, name: String, revision: u32, found: String },
    /// The cell lacks a part that its kind needs.
    #[error("a {kind:?} cell without {part}: its cell.toml was changed; remove the cell's folder and run again")]
    Incomplete { kind: CellKind, part: &'static str },
}

/// Runs the workspace's cell to its end.
pub fn execute(workspace: &CellWorkspace) -> Result<Conclusion, CellError> {
    workspace.reporter().stage("load data");
    let basis = Basis::of(workspace)?;
    match workspace.cell().kind {
        CellKind::Prepare => prepare::run(&basis, workspace),
        CellKind::Train => train::run(Setting::of(basis, workspace)?, workspace),
        CellKind::Unlearn => unlearn::run(basis, workspace),
        CellKind::Defend => defend::run(Setting::of(basis, workspace)?, workspace),
        CellKind::Measure => measure::run(Setting::of(basis, workspace)?, workspace),
    }
}

/// What all cells have in common: the clean images, randomness, where to compute.
struct Basis {
    dataset: Arc<Dataset>,
    dataset_facts: DatasetFacts,
    streams: Streams,
    device: Device,
}

impl Basis {
    fn of(workspace: &CellWorkspace) -> Result<Basis, CellError> {
        let cell = workspace.cell();
        let device = tsbd_tensor::device(&workspace.arguments().device)?;
        let root = DataRoot::discover(workspace.arguments().data.as_deref());
        let dataset = Arc::new(tsbd_data::load(&cell.dataset, &root)?);
        if dataset.digest != cell.data_digest {
            return Err(ExecuteError::OtherData {
                name: dataset.name.clone(),
                found: dataset.digest.clone(),
                expected: cell.data_digest.clone(),
            }
            .into());
        }
        let dataset_facts = DatasetFacts::of(&dataset);
        Ok(Basis { dataset, dataset_facts, streams: Streams::new(cell.seed), device })
    }

    fn architecture(&self, model: &ModelParameters) -> Result<Arc<dyn Architecture>, CellError> {
        Ok(tsbd_models::build(&model.for_images(self.dataset_facts.classes, self.dataset_facts.size))?)
    }
}

/// What training and repairing a model have in common: the images, the attack on them, the network.
struct Setting {
    dataset: Arc<Dataset>,
    dataset_facts: DatasetFacts,
    poisoner: Poisoner,
    architecture: Arc<dyn Architecture>,
    streams: Streams,
    device: Device,
}

impl Setting {
    fn of(basis: Basis, workspace: &CellWorkspace) -> Result<Setting, CellError> {
        let cell = workspace.cell();
        let attack = configure_attack(&cell.attack)?;
        attack.check(&basis.dataset_facts)?;
        let material = match workspace.parent_of_kind(CellKind::Prepare)? {
            // Images are poisoned on the CPU, wherever the network is.
            Some(prepared) => Some(Material::load(workspace.parent_artefact(&prepared.key, MATERIAL), &Device::Cpu)?),
            None => None,
        };
        let poisoner = attack.prepare(&basis.dataset, &basis.streams, material.as_ref())?;
        let model = cell.model.as_ref().ok_or(ExecuteError::Incomplete { kind: cell.kind, part: "a network" })?;
        let architecture = basis.architecture(model)?;
        let Basis { dataset, dataset_facts, streams, device } = basis;
        Ok(Setting { dataset, dataset_facts, poisoner, architecture, streams, device })
    }

    /// Measures a model on the test sets.
    fn evaluate(&self, model: &Model) -> Result<Evaluation, tsbd_attack::Error> {
        let (test, triggered) = (&self.dataset.test, self.poisoner.test.as_ref());
        tsbd_attack::evaluate(model, test, triggered, self.dataset.normalization, EVALUATION_BATCH)
    }

    /// The same with the trigger that a training learned and left in the file `path`, if this attack learns one.
    fn with_learned_trigger(mut self, path: &Path) -> Result<Setting, tsbd_attack::Error> {
        self.poisoner = self.poisoner.with_learned_trigger(path)?;
        Ok(self)
    }

    /// What every record says about the images, of which `poison` were poisoned.
    fn facts(&self, poison: &PoisonFacts) -> Map<String, Value> {
        let mut facts = object(json!(poison));
        facts.insert("train_images".to_owned(), json!(self.dataset.train.len()));
        facts.insert("test_images".to_owned(), json!(self.dataset.test.len()));
        facts
    }
}

fn configure_attack(method: &MethodParameters) -> Result<Box<dyn Attack>, CellError> {
    let entry = tsbd_experiment::ATTACKS.iter().find(|entry| entry.name == method.name);
    match entry {
        Some(entry) if entry.revision == method.revision => Ok(entry.from_parameters(&method.parameters)?),
        _ => Err(other_method("attack", method, entry.map(|entry| entry.revision)).into()),
    }
}

fn other_method(kind: &'static str, method: &MethodParameters, found: Option<u32>) -> ExecuteError {
    let found = found.map_or("none of that name".to_owned(), |revision| format!("revision {revision}"));
    ExecuteError::OtherMethod { kind, name: method.name.clone(), revision: method.revision, found }
}

/// The rates that are defined, by name.
fn rates(evaluation: &Evaluation) -> BTreeMap<String, f64> {
    let rates = [("acc", Some(evaluation.acc)), ("asr", evaluation.asr), ("ra", evaluation.ra)];
    rates.into_iter().filter_map(|(name, rate)| Some((name.to_owned(), rate?))).collect()
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        other => unreachable!("facts are tables, not {other}"),
    }
}
