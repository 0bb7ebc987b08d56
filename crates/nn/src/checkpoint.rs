//! A training run between two epochs: everything by name, in a sealed file of its own (module `sealed`) or wherever
//! unfinished work is kept.
//!
//! The weights (`model.*`), velocities (`velocity.*`) and what the step rule keeps (`rule.*`) as they lie in memory, the
//! schedule and the history as `f64`, and what training it is.

use crate::keeper::Keeper;
use crate::sealed::{load_tensors, save_tensors, tensor_text, text_tensor};
use crate::sgd::Sgd;
use crate::state::deep_copy;
use crate::{EpochReport, Error, Model, Module, Result, Role, ScheduleState, Slot, StateDict};
use indexmap::IndexMap;
use std::path::Path;
use tsbd_tensor::{Device, Tensor};

/// What files of checkpoints say that they hold.
const TRAINING: &str = "training";
const MODEL: &str = "model.";
const VELOCITY: &str = "velocity.";
const RULE: &str = "rule.";
const RUN: &str = "run";
const SCHEDULE: &str = "schedule";
const HISTORY: &str = "history";
const NOTES: &str = "notes";

/// Everything that training after epoch k depends on: resuming gives the same bits as never having stopped.
#[derive(Debug)]
pub struct Checkpoint {
    pub(crate) run: String,
    pub(crate) state: StateDict,
    pub(crate) velocities: IndexMap<String, Tensor>,
    pub(crate) rule: IndexMap<String, Tensor>,
    pub(crate) schedule: ScheduleState,
    pub(crate) history: Vec<EpochReport>,
}

impl Clone for Checkpoint {
    /// A deep copy, which later steps do not change.
    fn clone(&self) -> Checkpoint {
        let copies = |tensors: &IndexMap<String, Tensor>| {
            tensors.iter().map(|(name, tensor)| (name.clone(), deep_copy(name, tensor))).collect()
        };
        Checkpoint {
            run: self.run.clone(),
            state: self.state.clone(),
            velocities: copies(&self.velocities),
            rule: copies(&self.rule),
            schedule: self.schedule.clone(),
            history: self.history.clone(),
        }
    }
}

impl Checkpoint {
    /// A checkpoint that shares its tensors with the running training: good until the next step.
    pub(crate) fn borrow(
        run: &str,
        model: &Model,
        optimizer: &Sgd,
        rule: IndexMap<String, Tensor>,
        schedule: &ScheduleState,
        history: &[EpochReport],
    ) -> Checkpoint {
        Checkpoint {
            run: run.to_owned(),
            state: model.state.shared(),
            velocities: optimizer.velocities().clone(),
            rule,
            schedule: schedule.clone(),
            history: history.to_vec(),
        }
    }

    /// The epoch that training goes on with, from 0.
    pub fn next_epoch(&self) -> usize {
        self.history.len()
    }

    /// The epochs so far.
    pub fn history(&self) -> &[EpochReport] {
        &self.history
    }

    /// The weights and running estimates.
    pub fn state(&self) -> &StateDict {
        &self.state
    }

    /// Everything by name, the tensors themselves (not copies): good until the next step.
    pub fn tensors(&self) -> Result<IndexMap<String, Tensor>> {
        let numbers = |values: Vec<f64>| Tensor::from_vec(values.clone(), values.len(), &Device::Cpu);
        let named = |prefix: &str, (name, tensor): (&String, &Tensor)| (format!("{prefix}{name}"), tensor.clone());
        let mut tensors: IndexMap<String, Tensor> = self.state.tensors(MODEL).collect();
        tensors.extend(self.velocities.iter().map(|velocity| named(VELOCITY, velocity)));
        tensors.extend(self.rule.iter().map(|own| named(RULE, own)));
        tensors.insert(RUN.to_owned(), text_tensor(&self.run)?);
        tensors.insert(SCHEDULE.to_owned(), numbers(self.schedule.to_numbers().to_vec())?);
        if !self.history.is_empty() {
            let history = self.history.iter().flat_map(|report| report.to_numbers()).collect();
            tensors.insert(HISTORY.to_owned(), numbers(history)?);
        }
        Ok(tensors)
    }

    /// What [`Self::tensors`] gave, for a network with these `modules`; refuses what is missing, of another shape, or more.
    pub fn from_tensors(mut tensors: IndexMap<String, Tensor>, modules: &[Module]) -> Result<Checkpoint> {
        let run = tensor_text(&taken(&mut tensors, RUN)?)?;
        let state = StateDict::build(modules, |_, slot| fitting(&mut tensors, MODEL, slot))?;
        let mut velocities = IndexMap::new();
        for slot in modules.iter().flat_map(Module::slots).filter(|slot| slot.role == Role::Parameter) {
            let velocity = fitting(&mut tensors, VELOCITY, &slot)?;
            velocities.insert(slot.name, velocity);
        }
        let schedule: Vec<f64> = taken(&mut tensors, SCHEDULE)?.to_vec1()?;
        let schedule = <[f64; 5]>::try_from(schedule).map_err(|found| Error::Replacement {
            name: SCHEDULE.to_owned(),
            expected: "[5]".to_owned(),
            found: format!("[{}]", found.len()),
        })?;
        let history: Vec<f64> = match tensors.shift_remove(HISTORY) {
            Some(history) => history.to_vec1()?,
            None => vec![],
        };
        let mut rule = IndexMap::new();
        for (name, tensor) in tensors {
            let Some(own) = name.strip_prefix(RULE) else {
                return Err(Error::UnknownTensor { name, example: format!("{MODEL}{}", modules[0].name) });
            };
            rule.insert(own.to_owned(), tensor);
        }
        let history = history.as_chunks().0.iter().map(|&numbers| EpochReport::from_numbers(numbers)).collect();
        Ok(Checkpoint { run, state, velocities, rule, schedule: ScheduleState::from_numbers(schedule), history })
    }

    /// Writes the file, whole or not at all.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        save_tensors(path.as_ref(), TRAINING, &self.tensors()?)
    }

    /// Reads a file that [`Checkpoint::save`] wrote for a network with these `modules`.
    pub fn load(path: impl AsRef<Path>, modules: &[Module]) -> Result<Checkpoint> {
        let path = path.as_ref();
        let missing = || Error::file(path)(std::io::ErrorKind::NotFound.into());
        Checkpoint::load_if_present(path, modules)?.ok_or_else(missing)
    }

    /// [`Checkpoint::load`], or nothing when there is no such file.
    pub fn load_if_present(path: impl AsRef<Path>, modules: &[Module]) -> Result<Option<Checkpoint>> {
        load_tensors(path.as_ref(), TRAINING)?.map(|tensors| Checkpoint::from_tensors(tensors, modules)).transpose()
    }

    /// Keeps it as the state of `stage`, with the `notes` of whoever watches the training. `run` says what training it is and
    /// what it began with.
    pub fn keep(&self, keeper: &mut dyn Keeper, stage: &str, run: &str, notes: &str) -> Result<()> {
        let mut tensors = self.tensors()?;
        tensors.insert(NOTES.to_owned(), text_tensor(notes)?);
        keeper.keep(stage, run, &tensors)
    }

    /// What [`Self::keep`] kept last, with the notes.
    pub fn kept(keeper: &mut dyn Keeper, stage: &str, run: &str, modules: &[Module]) -> Option<(Checkpoint, String)> {
        let mut tensors = keeper.kept(stage, run)?;
        let notes = tensor_text(&tensors.shift_remove(NOTES)?).ok()?;
        Some((Checkpoint::from_tensors(tensors, modules).ok()?, notes))
    }
}

/// The tensor `name`, which must be there.
fn taken(tensors: &mut IndexMap<String, Tensor>, name: &str) -> Result<Tensor> {
    tensors.shift_remove(name).ok_or_else(|| {
        let example = tensors.keys().next().cloned().unwrap_or_default();
        Error::UnknownTensor { name: name.to_owned(), example }
    })
}

/// The tensor of a slot of the network, which must have the slot's shape.
fn fitting(tensors: &mut IndexMap<String, Tensor>, prefix: &str, slot: &Slot) -> Result<Tensor> {
    let name = format!("{prefix}{}", slot.name);
    let tensor = taken(tensors, &name)?;
    if tensor.dims() == slot.dims {
        return Ok(tensor);
    }
    let [expected, found] = [&slot.dims[..], tensor.dims()].map(|dims| format!("{dims:?}"));
    Err(Error::Replacement { name, expected, found })
}
