//! A training run between two epochs, in one file.
//!
//! The file is the eight bytes of [`MAGIC`], the BLAKE3 digest of what follows, and a safetensors file: the weights
//! (`model.*`) and velocities (`velocity.*`) in PyTorch's layouts, the schedule and the history as `f64`, and what the
//! step rule keeps (`rule.*`) as it lies in memory. A file that was cut off or changed does not match its digest and is refused before anything of it is used.

use crate::sgd::Sgd;
use crate::state::deep_copy;
use crate::storage::{FileTensors, read, read_as_stored, refuse_others};
use crate::{EpochReport, Error, Model, Module, Result, Role, ScheduleState, StateDict, write_atomically};
use indexmap::IndexMap;
use safetensors::SafeTensors;
use std::path::Path;
use tsbd_tensor::{Device, Tensor};

/// The first bytes of every checkpoint; the digit is the format's version.
const MAGIC: &[u8; 8] = b"tsbdckp1";
const DIGEST: usize = 32;

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
        let payload = file.serialize(Some(("run", self.run.clone())), path)?;
        write_atomically(path, &[MAGIC, blake3::hash(&payload).as_bytes(), &payload])
    }

    /// Reads a file that [`Checkpoint::save`] wrote for a network with these `modules`.
    pub fn load(path: impl AsRef<Path>, modules: &[Module]) -> Result<Checkpoint> {
        let path = path.as_ref();
        let damaged = |reason: String| Error::DamagedCheckpoint { path: path.to_path_buf(), reason };
        let bytes = std::fs::read(path).map_err(Error::file(path))?;
        let content = bytes.strip_prefix(MAGIC).ok_or_else(|| damaged("it does not begin as one".into()))?;
        let (digest, payload) =
            content.split_at_checked(DIGEST).ok_or_else(|| damaged(format!("only {} bytes long", bytes.len())))?;
        if blake3::hash(payload).as_bytes() != digest {
            return Err(damaged("its digest does not match its content: it was cut off or changed".into()));
        }
        let unreadable = |source| Error::Safetensors { path: path.to_path_buf(), source };
        let file = SafeTensors::deserialize(payload).map_err(unreadable)?;
        let (_, header) = SafeTensors::read_metadata(payload).map_err(unreadable)?;
        let run = header.metadata().as_ref().and_then(|metadata| metadata.get("run")).cloned();
        let run = run.ok_or_else(|| damaged("it does not say which run it belongs to".into()))?;

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
