//! What a cell's parameters describe, made: the data set, the attack, the network.
//!
//! For the commands that do one thing in this process (`poison`, `evaluate`, `defend`). Cells of a grid are made by the
//! orchestrator in processes of their own.

use std::path::Path;
use std::sync::Arc;

use tsbd_attack::{Attack, DatasetFacts, Evaluation, Poisoner};
use tsbd_data::{DataRoot, Dataset};
use tsbd_experiment::Cell;
use tsbd_models::ModelParameters;
use tsbd_nn::{Architecture, Model, Streams};

use crate::commands::data;
use crate::failure::{Exit, Failure, Problem};

/// A data set, an attack on it, and the network that meets both.
pub struct Workbench {
    /// The clean images.
    pub dataset: Arc<Dataset>,
    /// Height and width of the images in pixels.
    pub size: usize,
    /// The attack, checked.
    pub attack: Box<dyn Attack>,
    /// The network.
    pub architecture: Arc<dyn Architecture>,
    /// The random streams of the cell's seed.
    pub streams: Streams,
}

impl Workbench {
    /// Loads and configures what `cell` names.
    pub fn of(cell: &Cell, root: &DataRoot) -> Result<Self, Failure> {
        let dataset = tsbd_data::load(&cell.dataset, root).map_err(data::failure)?;
        let facts = DatasetFacts::of(&dataset);
        let entry = tsbd_experiment::ATTACKS
            .iter()
            .find(|entry| entry.name == cell.attack.name)
            .ok_or_else(|| Failure::refused(format!("there is no attack named \"{}\"", cell.attack.name)))?;
        let attack = entry.from_parameters(&cell.attack.parameters).map_err(parameter_failure)?;
        attack.check(&facts).map_err(parameter_failure)?;
        let model = ModelParameters {
            name: cell.model.name.clone(),
            width: cell.model.width,
            classes: dataset.classes(),
            image_size: facts.size,
        };
        let architecture = tsbd_models::build(&model).map_err(|error| Failure::from_error(Exit::Refused, error))?;
        let streams = Streams::new(cell.seed);
        Ok(Self { dataset: Arc::new(dataset), size: facts.size, attack, architecture, streams })
    }

    /// The poisoned training set, and the triggered test set unless its trigger is learned.
    pub fn prepare(&self) -> Result<Poisoner, Failure> {
        self.attack.prepare(&self.dataset, &self.streams).map_err(failed)
    }

    /// The same, and a triggered test set in any case: of a trigger that was learned with a model, it is made of the file
    /// `learned_trigger`.
    pub fn poison(&self, learned_trigger: Option<&Path>) -> Result<Poisoner, Failure> {
        let poisoner = self.prepare()?;
        if !poisoner.awaits_trigger() {
            return Ok(poisoner);
        }
        let hint = "--learned-trigger FILE names the attack.safetensors that `tsbd attack` left beside the model";
        let Some(path) = learned_trigger else {
            return Err(Failure::refused("the trigger of this attack is learned with a model").hint(hint));
        };
        if !path.is_file() {
            return Err(Failure::refused(format!("{}: there is no such file", path.display())).hint(hint));
        }
        poisoner.with_learned_trigger(path).map_err(|error| Failure::from_error(Exit::Refused, error))
    }

    /// A model with the weights of a safetensors file.
    pub fn load_model(&self, path: &Path) -> Result<Model, Failure> {
        if !path.is_file() {
            return Err(Failure::refused(format!("--model {}: there is no such file", path.display()))
                .hint("`tsbd attack NAME` trains a model and says where it lies"));
        }
        Model::load(Arc::clone(&self.architecture), path).map_err(|error| {
            let hint = match &error {
                tsbd_nn::Error::TensorShape { .. } => {
                    "say with which width and which data set the model was made: --set model.width=64 --dataset cifar10"
                }
                _ => "the file has to be a state dict with PyTorch's names, written as safetensors",
            };
            Failure::from_error(Exit::Refused, error).hint(hint)
        })
    }

    /// ACC, and ASR and RA where the attack has a trigger.
    pub fn evaluate(&self, model: &Model, poisoner: &Poisoner) -> Result<Evaluation, tsbd_attack::Error> {
        let (clean, triggered) = (&self.dataset.test, poisoner.test.as_ref());
        tsbd_attack::evaluate(model, clean, triggered, self.dataset.normalization, EVALUATION_BATCH)
    }
}

/// Images per batch when a model is measured. Changes speed and memory, never a rate.
const EVALUATION_BATCH: usize = 500;

/// Something that went wrong with an attack, a defense or a network on the way.
pub fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Failure {
    Failure::from_error(Exit::Failed, error)
}

/// A parameter that is refused.
pub fn parameter_failure(error: tsbd_attack::ParameterError) -> Failure {
    let message = format!("`{}` = {}: {}", error.field, error.value, error.reason);
    Failure::several(Exit::Refused, vec![Problem::new(message)]).hint(error.way_out)
}
