//! What a cell's parameters describe, made: the data set, the attack, the network, where it computes.
//!
//! For the commands that do one thing in this process (`poison`, `evaluate`, `defend`). Cells of a grid are made by the
//! orchestrator in processes of their own.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tsbd_attack::{Attack, DatasetFacts, Evaluation, Material, Poisoner, Poisoning, TriggeredTest};
use tsbd_data::{Dataset, ImageSource, Images};
use tsbd_experiment::{Cell, CellKind, Found, MethodParameters, Plan, Store, Verification};
use tsbd_nn::{Architecture, Layer, Model, Streams};
use tsbd_orchestrator::{MATERIAL, Place};
use tsbd_tensor::Device;

use crate::commands::data;
use crate::failure::{Exit, Failure, Problem};
use crate::options::{Folders, LearnedTrigger, OpenDevice, flag, gpu_way_out};
use crate::terminal::Talk;
use crate::{grid, planning, signals};

/// A data set, an attack on it, and the network that meets both.
pub struct Workbench {
    /// The clean images.
    pub dataset: Arc<Dataset>,
    /// Height and width of the images in pixels.
    pub size: usize,
    /// The attack, checked.
    pub attack: Box<dyn Attack>,
    /// What the attack's groundwork made, if it has one.
    pub material: Option<Material>,
    /// The network.
    pub architecture: Arc<dyn Architecture>,
    /// The random streams of the cell's seed.
    pub streams: Streams,
    /// Where the network computes. Images are poisoned on the CPU.
    pub device: Device,
}

impl Workbench {
    /// Loads and configures what the only point of `plan` names. What its attack starts from is taken from the results
    /// folder, or made there on the device.
    pub fn of(plan: &Plan, folders: &Folders, open: OpenDevice, talk: &Talk) -> Result<Self, Failure> {
        let OpenDevice { device, place } = open;
        let cell = &plan.cells[&plan.points[0].cell];
        let dataset = tsbd_data::load(&cell.dataset, &folders.data.root()).map_err(data::failure)?;
        let facts = DatasetFacts::of(&dataset);
        let attack = attack(plan)?;
        attack.check(&facts).map_err(parameter_failure)?;
        let model = cell.model.as_ref().ok_or_else(|| Failure::refused("the point has no network"))?;
        let architecture = tsbd_models::build(&model.for_images(facts.classes, facts.size))
            .map_err(|error| Failure::from_error(Exit::Refused, error))?;
        let streams = Streams::new(cell.seed);
        let material = material(cell, plan, folders, place, talk)?;
        Ok(Self { dataset: Arc::new(dataset), size: facts.size, attack, material, architecture, streams, device })
    }

    /// The poisoned training set, and the triggered test set unless its trigger is learned.
    pub fn prepare(&self) -> Result<Poisoner, Failure> {
        self.attack.prepare(&self.dataset, &self.streams, self.material.as_ref()).map_err(failed)
    }

    /// The same, and a triggered test set in any case: a trigger that was learned with `model`, if there is one, is read
    /// from the file that `flag` names or that lies beside the model.
    pub fn poison(&self, flag: &LearnedTrigger, model: Option<&Path>) -> Result<Poisoner, Failure> {
        let poisoner = self.prepare()?;
        if !poisoner.awaits_trigger() {
            return match flag.named() {
                None => Ok(poisoner),
                Some(path) => Err(Failure::refused(format!(
                    "--learned-trigger {}: this attack learns no trigger, its parameters give it",
                    path.display()
                ))
                .hint("leave the flag out, or name the attack that learned this trigger")),
            };
        }
        let hint = "--learned-trigger FILE names the attack.safetensors that `tsbd attack` left beside the model";
        let Some(path) = flag.path(model) else {
            return Err(Failure::refused("the trigger of this attack is learned with a model").hint(hint));
        };
        if !path.is_file() {
            return Err(Failure::refused(format!("{}: there is no such file", path.display())).hint(hint));
        }
        poisoner.with_learned_trigger(&path).map_err(|error| Failure::from_error(Exit::Refused, error))
    }

    /// The indices of the test images that the attack triggers.
    pub fn triggered(&self) -> Result<Vec<usize>, Failure> {
        let poisoning = Poisoning::of(&self.attack.parameters()).map_err(parameter_failure)?;
        Ok(TriggeredTest::indices(&self.dataset.test, &poisoning))
    }

    /// Leaves one test image, that of `index`: for who looks at one, and has no use for all others triggered.
    pub fn with_one_test_image(mut self, index: usize) -> Self {
        let test = &self.dataset.test;
        let size = (test.height(), test.width());
        let alone = Images::new(test.image(index).to_vec(), vec![test.label(index)], size, self.dataset.classes());
        self.dataset = Arc::new(Dataset { test: Arc::new(alone), ..Dataset::clone(&self.dataset) });
        self
    }

    /// A model with the weights of a safetensors file, on the device.
    pub fn load_model(&self, path: &Path) -> Result<Model, Failure> {
        if !path.is_file() {
            return Err(Failure::refused(format!("--model {}: there is no such file", path.display()))
                .hint("`tsbd attack NAME` trains a model and says where it lies"));
        }
        let model = Model::load(Arc::clone(&self.architecture), path).map_err(|error| {
            let hint = match &error {
                tsbd_nn::Error::TensorShape { .. } => self.as_made(path),
                tsbd_nn::Error::Safetensors { .. } if is_pickle(path) => as_safetensors(path),
                _ => "the file has to be a state dict with PyTorch's names, written as safetensors".to_owned(),
            };
            Failure::from_error(Exit::Refused, error).hint(hint)
        })?;
        model.to_device(&self.device).map_err(failed)
    }

    /// How to ask for a network of the shapes in a file, which are others than this one's.
    fn as_made(&self, path: &Path) -> String {
        let network = self.architecture.as_ref();
        let header = header(path).unwrap_or_default();
        let first_dimension = |tensor: &str| header[tensor]["shape"][0].as_u64().map(|length| length as usize);
        let channels = network.modules().iter().find_map(|module| match module.layer {
            Layer::Conv2d { out_channels, .. } if module.name == "conv1" => Some(out_channels),
            _ => None,
        });
        let width = first_dimension("conv1.weight").filter(|width| Some(*width) != channels);
        let classes = first_dimension(&format!("{}.weight", network.head()));
        let classes = classes.filter(|classes| *classes != network.classes());
        let mut ways = Vec::new();
        ways.extend(width.map(|width| format!("width {width}: --set model.width={width}")));
        ways.extend(classes.map(|classes| {
            let fitting = tsbd_data::DATASETS.iter().filter(|entry| entry.classes == classes);
            let flags: Vec<String> = fitting.map(|entry| format!("--dataset {}", entry.name)).collect();
            if flags.is_empty() {
                format!("{classes} classes, as no data set here has")
            } else {
                format!("{classes} classes: {}", flags.join(" or "))
            }
        }));
        if ways.is_empty() {
            return format!("the file has to be of {}; `tsbd list models` has the networks there are", network.name());
        }
        format!("the file's network has {}", ways.join("; and "))
    }

    /// ACC, and ASR and RA where the attack has a trigger, on the device of the model.
    pub fn evaluate(&self, model: &Model, poisoner: &Poisoner) -> Result<Evaluation, tsbd_attack::Error> {
        let (clean, triggered) = (&self.dataset.test, poisoner.test.as_ref());
        tsbd_attack::evaluate(model, clean, triggered, self.dataset.normalization, EVALUATION_BATCH)
    }
}

/// The head of a safetensors file: what it says of each tensor. Its length stands before it.
fn header(path: &Path) -> Option<Value> {
    let bytes = fs_err::read(path).ok()?;
    let (length, rest) = bytes.split_first_chunk()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    serde_json::from_slice(rest.get(..length)?).ok()
}

/// Whether a file that is no safetensors is one of PyTorch's own, by its name or as the archive that `torch.save` writes.
fn is_pickle(path: &Path) -> bool {
    let is_named = |extension: &str| path.extension().is_some_and(|found| found == extension);
    let is_archive = || fs_err::read(path).is_ok_and(|bytes| bytes.starts_with(b"PK"));
    is_named("pt") || is_named("pth") || (!is_named("safetensors") && is_archive())
}

/// How to write a file of `torch.save` as safetensors: its state dict, or that of its key `model`, as BackdoorBench's have.
fn as_safetensors(path: &Path) -> String {
    let [from, to] = [path.to_owned(), path.with_extension("safetensors")].map(|path| path.display().to_string());
    let program = format!(
        "import torch, safetensors.torch as s; m = torch.load({from:?}, map_location=\"cpu\"); \
         m = m.get(\"model\", m); s.save_file({{k: v.contiguous() for k, v in m.items()}}, {to:?})"
    );
    format!("PyTorch's own files are not read; write it as safetensors: python{}", flag("-c", &program))
}

/// The attack of the only point of a plan.
pub fn attack(plan: &Plan) -> Result<Box<dyn Attack>, Failure> {
    configured(&plan.cells[&plan.points[0].cell].attack)
}

/// The attack of a cell.
pub fn configured(named: &MethodParameters) -> Result<Box<dyn Attack>, Failure> {
    let entry = tsbd_experiment::registry::attack(&named.name)
        .ok_or_else(|| Failure::refused(format!("there is no attack named \"{}\"", named.name)))?;
    entry.from_parameters(&named.parameters).map_err(parameter_failure)
}

/// What the groundwork of a cell's attack made, if it has one: published in the results folder, or made there now.
fn material(
    cell: &Cell,
    plan: &Plan,
    folders: &Folders,
    place: Place,
    talk: &Talk,
) -> Result<Option<Material>, Failure> {
    let Some(key) = cell.parents.iter().find(|key| plan.cells[*key].kind == CellKind::Prepare) else { return Ok(None) };
    let store = Store::new(&folders.results);
    let found = store.look(key, Verification::Digests).map_err(planning::store_failure)?;
    if !matches!(found, Found::Done(_)) {
        let part = plan.leading_to(key);
        let options = grid::Options { data: folders.data.data.as_deref(), place };
        let summary = signals::end_after(|| grid::run(&part, &store, options, talk))?;
        let exit = grid::exit(&summary);
        if exit != Exit::Done {
            let problems = grid::describe(&summary, &part).into_iter().map(Problem::new);
            return Err(Failure::several(exit, problems.collect()));
        }
    }
    Material::load(store.artefact(key, MATERIAL), &Device::Cpu).map(Some).map_err(failed)
}

/// Images per batch when a model is measured. Changes speed and memory, never a rate.
const EVALUATION_BATCH: usize = 500;

/// Something that went wrong with an attack, a defense or a network on the way.
pub fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Failure {
    let way_out = gpu_way_out(&error.to_string());
    let failure = Failure::from_error(Exit::Failed, error);
    match way_out {
        Some(way_out) => failure.hint(way_out),
        None => failure,
    }
}

/// A parameter that is refused.
pub fn parameter_failure(error: tsbd_attack::ParameterError) -> Failure {
    let message = format!("`{}` = {}: {}", error.field, error.value, error.reason);
    Failure::several(Exit::Refused, vec![Problem::new(message)]).hint(error.way_out)
}
