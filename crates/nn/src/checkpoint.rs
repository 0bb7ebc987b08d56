//! A training run between two epochs, in one file.
//!
//! The file is a sealed one (module `sealed`) with a safetensors file inside: the weights (`model.*`) and velocities
//! (`velocity.*`) in PyTorch's layouts, the schedule and the history as `f64`, and what the step rule keeps (`rule.*`) as
//! it lies in memory.

use crate::sgd::Sgd;
use crate::state::deep_copy;
use crate::storage::{FileTensors, read, read_as_stored, refuse_others};
use crate::{EpochReport, Error, Model, Module, Result, Role, ScheduleState, StateDict, sealed};
use indexmap::IndexMap;
use std::path::Path;
use tsbd_tensor::{Device, Tensor};

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

    /// Writes the file, whole or not at all.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut file = FileTensors::new();
        self.state.add_to(&mut file, "model.")?;
        for (name, velocity) in &self.velocities {
            file.add(format!("velocity.{name}"), velocity, self.state.entry(name)?.layout)?;
        }
        for (name, tensor) in &self.rule {
            file.add(format!("rule.{name}"), tensor, crate::Layout::Same)?;
        }
        let numbers = |values: Vec<f64>, name: &str, file: &mut FileTensors| {
            let tensor = Tensor::from_vec(values.clone(), values.len(), &Device::Cpu)?;
            file.add(name.to_owned(), &tensor, crate::Layout::Same)
        };
        numbers(self.schedule.to_numbers().to_vec(), "schedule", &mut file)?;
        if !self.history.is_empty() {
            let values = self.history.iter().flat_map(|report| report.to_numbers()).collect();
            numbers(values, "history", &mut file)?;
        }
        sealed::write(path, &file.serialize(Some((sealed::RUN, self.run.clone())), path)?)
    }

    /// Reads a file that [`Checkpoint::save`] wrote for a network with these `modules`.
    pub fn load(path: impl AsRef<Path>, modules: &[Module]) -> Result<Checkpoint> {
        let path = path.as_ref();
        let damaged = |reason: String| Error::DamagedCheckpoint { path: path.to_path_buf(), reason };
        let content = sealed::read(path)?;
        let file = sealed::parse(&content, path)?;
        let run = sealed::run_of(&content, path)?;

        let state = StateDict::read_from(&file, "model.", modules, path)?;
        let mut velocities = IndexMap::new();
        for slot in modules.iter().flat_map(Module::slots).filter(|slot| slot.role == Role::Parameter) {
            let velocity = read(&file, &format!("velocity.{}", slot.name), &slot, path, true)?;
            velocities.insert(slot.name, velocity);
        }
        let mut rule = IndexMap::new();
        for name in file.names() {
            if let Some(own) = name.strip_prefix("rule.") {
                rule.insert(own.to_owned(), read_as_stored(&file, name, path)?);
            }
        }
        let numbers = |name: &str| -> Result<Vec<f64>> { Ok(read_as_stored(&file, name, path)?.to_vec1()?) };
        let schedule = <[f64; 5]>::try_from(numbers("schedule")?)
            .map_err(|found| damaged(format!("its schedule has {} numbers", found.len())))?;
        let history = if file.tensor("history").is_ok() { numbers("history")? } else { vec![] };
        refuse_others(
            &file,
            |name| match name.split_once('.') {
                Some(("model", name)) => state.get(name).is_ok(),
                Some(("velocity", name)) => velocities.contains_key(name),
                Some(("rule", name)) => rule.contains_key(name),
                _ => ["schedule", "history"].contains(&name),
            },
            path,
        )?;
        let history = history.as_chunks().0.iter().map(|&numbers| EpochReport::from_numbers(numbers)).collect();
        Ok(Checkpoint { run, state, velocities, rule, schedule: ScheduleState::from_numbers(schedule), history })
    }

    /// [`Checkpoint::load`], or nothing when there is no such file.
    pub fn load_if_present(path: impl AsRef<Path>, modules: &[Module]) -> Result<Option<Checkpoint>> {
        match Checkpoint::load(path, modules) {
            Ok(checkpoint) => Ok(Some(checkpoint)),
            Err(Error::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
