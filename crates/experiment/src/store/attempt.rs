//! An attempt: the private folder in which one process works on one cell.
//!
//! A process holds the lock of its folder for as long as it lives, so two processes never work in the same one. A
//! folder whose lock is free belongs to a process that has ended; if it holds a checkpoint, the next process takes the
//! folder over and continues from there.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use fs_err as fs;

use super::lock::{PATIENCE, lock_within};
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

/// A folder that this process alone works in.
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
        newest_checkpoint(&self.directory).is_ok_and(|newest| newest.is_some())
    }
}

/// When the newest checkpoint in an attempt's folder was written; nothing if there is none, or no folder any more.
fn newest_checkpoint(directory: &Path) -> Result<Option<SystemTime>, StoreError> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let entries = match fs::read_dir(directory) {
        Err(error) if gone(&error) => return Ok(None),
        entries => entries.map_err(file_error)?,
    };
    let mut newest = None;
    for entry in entries {
        let entry = entry.map_err(file_error)?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(Attempt::CHECKPOINTS)) {
            match entry.metadata().and_then(|metadata| metadata.modified()) {
                Err(error) if gone(&error) => {}
                written => newest = newest.max(Some(written.map_err(file_error)?)),
            }
        }
    }
    Ok(newest)
}

impl Store {
    /// The folder of an attempt.
    pub fn attempt_directory(&self, key: &CellKey, id: &AttemptId) -> PathBuf {
        self.attempts_directory(key).join(id.to_string())
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

    /// The attempt to continue: of those that no process works in, the one with the newest checkpoint.
    pub fn resumable_attempt(&self, key: &CellKey) -> Result<Option<AttemptId>, StoreError> {
        let mut newest: Option<(SystemTime, AttemptId)> = None;
        for id in self.attempts(key)? {
            let Some(written) = newest_checkpoint(&self.attempt_directory(key, &id))? else { continue };
            let newer = newest.as_ref().is_none_or(|(time, _)| written >= *time);
            if newer && self.open_attempt(key, &id).is_ok() {
                newest = Some((written, id));
            }
        }
        Ok(newest.map(|(_, id)| id))
    }

    /// Begins to work in an attempt's folder; refuses if another process does.
    pub fn open_attempt(&self, key: &CellKey, id: &AttemptId) -> Result<Attempt, StoreError> {
        self.open_attempt_within(key, id, Duration::ZERO)
    }

    fn open_attempt_within(&self, key: &CellKey, id: &AttemptId, patience: Duration) -> Result<Attempt, StoreError> {
        let directory = self.attempt_directory(key, id);
        let lock = fs::OpenOptions::new().write(true).create(true).truncate(false).open(directory.join("lock"));
        let lock = lock.map_err(file_error)?;
        if !lock_within(&lock, patience).map_err(file_error)? {
            return Err(StoreError::AttemptInUse { path: directory });
        }
        Ok(Attempt { store: self.clone(), key: key.clone(), id: id.clone(), directory, _lock: lock })
    }

    /// The attempt to work in: `wanted` if it is free, else one to continue, else a new one.
    pub fn begin_attempt(&self, key: &CellKey, wanted: Option<&AttemptId>) -> Result<Attempt, StoreError> {
        if let Some(attempt) = wanted.and_then(|id| self.open_attempt_within(key, id, PATIENCE).ok()) {
            return Ok(attempt);
        }
        if let Some(attempt) = self.resumable_attempt(key)?.and_then(|id| self.open_attempt(key, &id).ok()) {
            return Ok(attempt);
        }
        let id = self.create_attempt(key)?;
        self.open_attempt(key, &id)
    }

    /// Removes the folders of a finished cell's attempts that no process works in. Logs of failures go with them:
    /// the cell has a result now.
    pub fn remove_ended_attempts(&self, key: &CellKey) -> Result<(), StoreError> {
        for id in self.attempts(key)? {
            if let Ok(attempt) = self.open_attempt(key, &id) {
                fs::remove_dir_all(attempt.directory()).map_err(file_error)?;
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
        assert_eq!(store.resumable_attempt(&key).unwrap(), Some(expected.clone()));
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
        assert_eq!(store.resumable_attempt(&key).unwrap(), None);
        assert_ne!(store.begin_attempt(&key, None).unwrap().id(), &first);
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
