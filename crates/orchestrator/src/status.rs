//! `status.json`: what a run is doing, for people and programs that look from outside.
//!
//! It is replaced as a whole, so a reader never sees half of it. It is told by the coordinator alone; whether that one
//! still lives is told by the lock of the results folder.

use std::io;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use fs_err as fs;
use serde::{Deserialize, Serialize};
use tsbd_experiment::store::LockHolder;
use tsbd_experiment::{CellKey, CellKind, Store, StoreError};

/// What a run is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunStatus {
    /// Whether it goes on.
    pub state: StatusState,
    /// Name of the experiment.
    pub experiment: String,
    /// The profile in force.
    pub profile: String,
    /// The coordinator.
    pub coordinator: LockHolder,
    /// When this was written, in seconds since 1970.
    pub updated_unix: u64,
    /// Cells of the plan.
    pub total: usize,
    /// Cells with a result.
    pub done: usize,
    /// Cells that failed in this run.
    pub failed: usize,
    /// Cells that cannot run because a parent failed.
    pub skipped: usize,
    /// Cells that wait for a worker or a parent.
    pub waiting: usize,
    /// Cells that run.
    pub running: Vec<RunningCell>,
}

/// Whether a run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StatusState {
    /// It does.
    Running,
    /// It has ended by itself.
    Finished,
    /// It was interrupted, and the same command continues.
    Interrupted,
    /// The coordinator has ended without a word (it was killed); the same command continues.
    Gone,
}

/// A cell that runs, and what it last told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunningCell {
    /// The cell.
    pub key: CellKey,
    /// What it does.
    pub kind: CellKind,
    /// What a person calls it.
    pub label: String,
    /// Name of its attack.
    pub attack: String,
    /// Name of its defense, `none` without one.
    pub defense: String,
    /// Seed.
    pub seed: u64,
    /// The child.
    pub pid: u32,
    /// When it was started, in seconds since 1970.
    pub started_unix: u64,
    /// Name of the attempt's folder.
    pub attempt: String,
    /// Stage it is in.
    pub stage: String,
    /// Epoch of the stage, from 0.
    pub epoch: Option<usize>,
    /// Epochs of the stage.
    pub epochs: Option<usize>,
    /// Steps done in the epoch.
    pub step: Option<usize>,
    /// Steps of an epoch.
    pub steps: Option<usize>,
    /// Last loss.
    pub loss: Option<f64>,
    /// Speed.
    pub images_per_second: Option<f64>,
}

/// What the last run in this folder is doing or did; `None` if there was none.
pub fn read_status(store: &Store) -> Result<Option<RunStatus>, StoreError> {
    let text = match fs::read_to_string(path(store)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // Written by another version: nothing is built on it, so it is as good as none.
    let Ok(mut status) = serde_json::from_str::<RunStatus>(&text) else { return Ok(None) };
    if status.state == StatusState::Running && store.lock_holder()?.as_ref() != Some(&status.coordinator) {
        status.state = StatusState::Gone;
    }
    Ok(Some(status))
}

pub(crate) fn write_status(store: &Store, status: &RunStatus) -> io::Result<()> {
    // Not synced to the disk: after a crash of the machine it would be wrong anyway.
    let file = tsbd_nn::temporary_file(store.root())?;
    serde_json::to_writer_pretty(&file, status)?;
    file.persist(path(store)).map_err(|error| error.error)?;
    Ok(())
}

pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn path(store: &Store) -> PathBuf {
    store.root().join("status.json")
}
