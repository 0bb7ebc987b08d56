//! An attempt: the private folder in which a process, or a thread of one, works on one cell.
//!
//! It holds the lock of its folder for as long as it works, so two of a machine never work in the same one.
//! A folder whose lock is free belongs to one that has ended; if it holds a checkpoint, the next one takes the
//! folder over and continues from there.
//!
//! Locks of a file system that several machines share may be seen on the machine alone that took them, so a folder is taken
//! over on the machine only where it was worked in. Elsewhere, and while its process lives, its checkpoint is taken as it is
//! now into a folder of its own: a checkpoint is replaced as a whole, never changed.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use fs_err as fs;

use super::lock::{PATIENCE, host_name, lock_within};
use super::{Store, StoreError, file_error};
use crate::cell::CellKey;

/// Name of an attempt's folder: a number that counts up, and the process that made the folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AttemptId {
    number: u32,
    pid: u32,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.number, self.pid)
    }
}

impl FromStr for AttemptId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (number, pid) = text.split_once('-')?;
            Some(Self { number: number.parse().ok()?, pid: pid.parse().ok()? })
        };
        parse()
            .ok_or_else(|| format!("`{text}` is no attempt: its name is a number, a dash and a process, as in 1-4711"))
    }
}

/// A folder that nobody else works in.
#[derive(Debug)]
pub struct Attempt {
    pub(super) store: Store,
    pub(super) key: CellKey,
    id: AttemptId,
    directory: PathBuf,
    _lock: fs::File,
}

impl Attempt {
    /// Name of the checkpoint inside the folder: what a later attempt continues from.
    pub const CHECKPOINT: &'static str = "checkpoint.safetensors";
    /// How the names of all checkpoints begin: work in several stages has one for each.
    const CHECKPOINTS: &'static str = "checkpoint.";
    /// Name of the file with the seconds that were spent up to the checkpoint.
    pub const SECONDS: &'static str = "seconds";

    /// Its name.
    pub fn id(&self) -> &AttemptId {
        &self.id
    }

    /// The folder.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The cell.
    pub fn key(&self) -> &CellKey {
        &self.key
    }

    /// Where the checkpoint is written, atomically, by whoever trains.
    pub fn checkpoint(&self) -> PathBuf {
        self.directory.join(Self::CHECKPOINT)
    }

    /// Where the checkpoint of one stage is written, atomically, by whoever works in several.
    pub fn stage_checkpoint(&self, stage: &str) -> PathBuf {
        let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
        let name: String = stage.chars().map(plain).collect();
        self.directory.join(format!("{}{name}.safetensors", Self::CHECKPOINTS))
    }

    /// Whether there is something to continue from.
    pub fn has_checkpoint(&self) -> bool {
        self.store.checkpointed(&self.key, &self.id).is_some()
    }
}

/// The checkpoints in an attempt's folder, and when they were written; none if there is no folder any more.
fn checkpoints(directory: &Path) -> Result<Vec<(OsString, SystemTime)>, StoreError> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let entries = match fs::read_dir(directory) {
        Err(error) if gone(&error) => return Ok(Vec::new()),
        entries => entries.map_err(file_error)?,
    };
    let mut checkpoints = Vec::new();
    for entry in entries {
        let entry = entry.map_err(file_error)?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(Attempt::CHECKPOINTS)) {
            match entry.metadata().and_then(|metadata| metadata.modified()) {
                Err(error) if gone(&error) => {}
                written => checkpoints.push((name, written.map_err(file_error)?)),
            }
        }
    }
    Ok(checkpoints)
}

impl Store {
    /// The folder of an attempt.
    pub fn attempt_directory(&self, key: &CellKey, id: &AttemptId) -> PathBuf {
        self.attempts_directory(key).join(id.to_string())
    }

    /// When the newest checkpoint in the folder of an attempt was written, if there is one to continue from.
    pub fn checkpointed(&self, key: &CellKey, id: &AttemptId) -> Option<SystemTime> {
        let checkpoints = checkpoints(&self.attempt_directory(key, id)).unwrap_or_default();
        checkpoints.into_iter().map(|(_, written)| written).max()
    }

    fn attempts_directory(&self, key: &CellKey) -> PathBuf {
        self.cell_directory(key).join("attempts")
    }

    /// The attempts there are of a cell, oldest first.
    pub fn attempts(&self, key: &CellKey) -> Result<Vec<AttemptId>, StoreError> {
        let entries = match fs::read_dir(self.attempts_directory(key)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(file_error(error)),
        };
        let mut attempts = Vec::new();
        for entry in entries {
            let entry = entry.map_err(file_error)?;
            attempts.extend(entry.file_name().to_str().and_then(|name| name.parse().ok()));
        }
        attempts.sort();
        Ok(attempts)
    }

    /// Makes the folder of a new attempt. Nobody works in it yet.
    pub fn create_attempt(&self, key: &CellKey) -> Result<AttemptId, StoreError> {
        self.refuse_exported()?;
        fs::create_dir_all(self.attempts_directory(key)).map_err(file_error)?;
        loop {
            let number = self.attempts(key)?.last().map_or(1, |last| last.number + 1);
            let id = AttemptId { number, pid: std::process::id() };
            match fs::create_dir(self.attempt_directory(key, &id)) {
                Ok(()) => return Ok(id),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(file_error(error)),
            }
        }
    }

    /// A folder to work in that nobody works in: the one with the newest checkpoint if it can be taken over, else a new one,
    /// with its checkpoints if there is one.
    pub fn prepare_attempt(&self, key: &CellKey) -> Result<AttemptId, StoreError> {
        let Some(newest) = self.newest_checkpoint(key)? else { return self.create_attempt(key) };
        if self.open_attempt(key, &newest).is_ok() {
            return Ok(newest);
        }
        let id = self.create_attempt(key)?;
        let (from, to) = (self.attempt_directory(key, &newest), self.attempt_directory(key, &id));
        let checkpoints = checkpoints(&from)?.into_iter().map(|(name, _)| name);
        for name in [OsString::from(Attempt::SECONDS)].into_iter().chain(checkpoints) {
            match fs::hard_link(from.join(&name), to.join(&name)) {
                // Its process may finish the cell meanwhile, and has it removed.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file_error(error)),
                _ => {}
            }
        }
        Ok(id)
    }

    /// The attempt with the newest checkpoint, whoever works in it.
    fn newest_checkpoint(&self, key: &CellKey) -> Result<Option<AttemptId>, StoreError> {
        let mut newest: Option<(SystemTime, AttemptId)> = None;
        for id in self.attempts(key)? {
            let Some(written) = self.checkpointed(key, &id) else { continue };
            if newest.as_ref().is_none_or(|(time, _)| written >= *time) {
                newest = Some((written, id));
            }
        }
        Ok(newest.map(|(_, id)| id))
    }

    /// Begins to work in an attempt's folder; refuses if another process does, or one of another machine did.
    pub fn open_attempt(&self, key: &CellKey, id: &AttemptId) -> Result<Attempt, StoreError> {
        self.open_attempt_within(key, id, Duration::ZERO)
    }

    fn open_attempt_within(&self, key: &CellKey, id: &AttemptId, patience: Duration) -> Result<Attempt, StoreError> {
        let directory = self.attempt_directory(key, id);
        let lock =
            fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(directory.join("lock"));
        let mut lock = lock.map_err(file_error)?;
        if !lock_within(&lock, patience).map_err(file_error)? {
            return Err(StoreError::AttemptInUse { path: directory });
        }
        let (mut worked_on, host) = (String::new(), host_name());
        lock.read_to_string(&mut worked_on).map_err(file_error)?;
        if worked_on.is_empty() {
            lock.write_all(host.as_bytes()).map_err(file_error)?;
        } else if worked_on != host {
            return Err(StoreError::AttemptInUse { path: directory });
        }
        Ok(Attempt { store: self.clone(), key: key.clone(), id: id.clone(), directory, _lock: lock })
    }

    /// The attempt to work in: `wanted` if it is free, else one to continue, else a new one.
    pub fn begin_attempt(&self, key: &CellKey, wanted: Option<&AttemptId>) -> Result<Attempt, StoreError> {
        if let Some(attempt) = wanted.and_then(|id| self.open_attempt_within(key, id, PATIENCE).ok()) {
            return Ok(attempt);
        }
        // Another process may take over the same one a moment earlier, but not one that was just made.
        if let Ok(attempt) = self.open_attempt(key, &self.prepare_attempt(key)?) {
            return Ok(attempt);
        }
        let id = self.create_attempt(key)?;
        self.open_attempt(key, &id)
    }

    /// Removes the folders of a finished cell's attempts, except those that a process of this machine works in. Logs of
    /// failures go with them: the cell has a result now. A process of another machine that still works on the cell, without
    /// need, finds its folder gone and ends.
    pub fn remove_ended_attempts(&self, key: &CellKey) -> Result<(), StoreError> {
        for id in self.attempts(key)? {
            let directory = self.attempt_directory(key, &id);
            let worked_on = fs::read_to_string(directory.join("lock")).unwrap_or_default();
            let elsewhere = !worked_on.is_empty() && worked_on != host_name();
            if elsewhere || self.open_attempt(key, &id).is_ok() {
                fs::remove_dir_all(directory).map_err(file_error)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::tests::train_cell;

    fn store() -> (tempfile::TempDir, Store, CellKey) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let key = store.describe(&train_cell("badnets", 0)).unwrap();
        (folder, store, key)
    }

    #[test]
    fn two_processes_never_work_in_the_same_attempt() {
        let (_folder, store, key) = store();
        let first = store.begin_attempt(&key, None).unwrap();
        fs::write(first.checkpoint(), "epoch 1").unwrap();
        let second = store.begin_attempt(&key, Some(first.id())).unwrap();
        assert_ne!(first.id(), second.id());
        assert!(store.open_attempt(&key, first.id()).is_err());
    }

    #[test]
    fn the_newest_checkpoint_of_an_ended_process_is_continued() {
        let (_folder, store, key) = store();
        let old = store.begin_attempt(&key, None).unwrap();
        fs::write(old.checkpoint(), "epoch 9").unwrap();
        let new = store.begin_attempt(&key, None).unwrap();
        fs::write(new.checkpoint(), "epoch 2").unwrap();
        let earlier = SystemTime::now() - Duration::from_secs(60);
        fs::File::open(old.checkpoint()).unwrap().file().set_modified(earlier).unwrap();
        let expected = new.id().clone();
        drop((old, new));
        assert_eq!(store.prepare_attempt(&key).unwrap(), expected);
        assert_eq!(store.begin_attempt(&key, None).unwrap().id(), &expected);
    }

    #[test]
    fn the_checkpoint_of_a_stage_counts_like_any_other_and_each_stage_has_its_own() {
        let (_folder, store, key) = store();
        let first = store.begin_attempt(&key, None).unwrap();
        assert!(!first.has_checkpoint());
        let path = first.stage_checkpoint("trigger search");
        assert!(path.ends_with("checkpoint.trigger-search.safetensors"), "{}", path.display());
        assert_ne!(path, first.stage_checkpoint("fine-tuning"));
        fs::write(path, "class 3").unwrap();
        assert!(first.has_checkpoint());
        let expected = first.id().clone();
        drop(first);
        assert_eq!(store.begin_attempt(&key, None).unwrap().id(), &expected);
    }

    #[test]
    fn an_attempt_without_a_checkpoint_is_not_continued() {
        let (_folder, store, key) = store();
        let first = store.begin_attempt(&key, None).unwrap().id().clone();
        let second = store.begin_attempt(&key, None).unwrap();
        assert_ne!(second.id(), &first);
        assert!(!second.checkpoint().exists());
    }

    #[test]
    fn a_folder_of_another_machine_is_left_alone_and_its_checkpoint_continued_in_one_of_its_own() {
        let (_folder, store, key) = store();
        let theirs = store.begin_attempt(&key, None).unwrap();
        fs::write(theirs.checkpoint(), "epoch 9").unwrap();
        fs::write(theirs.directory().join(Attempt::SECONDS), "70").unwrap();
        fs::write(theirs.directory().join("lock"), "another machine").unwrap();
        let (id, checkpoint) = (theirs.id().clone(), theirs.checkpoint());
        // Its lock looks free from here, though its process may live.
        drop(theirs);
        let ours = store.begin_attempt(&key, None).unwrap();
        assert_ne!(ours.id(), &id);
        assert_eq!(fs::read_to_string(ours.checkpoint()).unwrap(), "epoch 9");
        assert_eq!(fs::read_to_string(ours.directory().join(Attempt::SECONDS)).unwrap(), "70");
        // Whoever writes the next checkpoint replaces the file, and changes nothing for the other.
        super::super::write_atomically(&checkpoint, b"epoch 10").unwrap();
        assert_eq!(fs::read_to_string(ours.checkpoint()).unwrap(), "epoch 9");
        assert!(store.open_attempt(&key, &id).is_err());
        store.remove_ended_attempts(&key).unwrap();
        assert_eq!(store.attempts(&key).unwrap(), [ours.id().clone()]);
    }

    #[test]
    fn the_attempts_of_a_finished_cell_are_removed_except_running_ones() {
        let (_folder, store, key) = store();
        drop(store.begin_attempt(&key, None).unwrap());
        let running = store.begin_attempt(&key, None).unwrap();
        store.remove_ended_attempts(&key).unwrap();
        assert_eq!(store.attempts(&key).unwrap(), [running.id().clone()]);
    }
}
