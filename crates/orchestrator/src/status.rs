//! `status.json`: what a run is doing, for people and programs that look from outside.
//!
//! It is replaced as a whole, so a reader never sees half of it. It is told by the coordinator alone; whether that one
//! still lives is told by the lock of the results folder.

use std::io;
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use fs_err as fs;
use serde::{Deserialize, Serialize};
use tsbd_experiment::store::LockHolder;
use tsbd_experiment::{Cell, CellKey, CellKind, Store, StoreError};

use crate::pace::Pace;
use crate::protocol::CellEvent;

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
    /// Cells that wait in the queue of a cluster.
    #[serde(default)]
    pub queued: usize,
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
    /// The coordinator went on request and left its jobs in the queue; the same command follows them again.
    Left,
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
    /// Its process; 0 if it is not known.
    pub pid: u32,
    /// Its job, if it runs on a cluster.
    #[serde(default)]
    pub job: Option<String>,
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
    /// Seconds until the stage ends, if it goes on as it did.
    #[serde(default)]
    pub stage_seconds_left: Option<f64>,
    #[serde(skip)]
    pace: Pace,
}

impl RunningCell {
    pub(crate) fn new(
        key: &CellKey,
        cell: &Cell,
        pid: u32,
        job: Option<String>,
        attempt: String,
        continues: bool,
    ) -> Self {
        Self {
            key: key.clone(),
            kind: cell.kind,
            label: cell.label(),
            attack: cell.attack.name.clone(),
            defense: cell.defense_name().to_owned(),
            seed: cell.seed,
            pid,
            job,
            started_unix: unix_now(),
            attempt,
            stage: if continues { "continue" } else { "start" }.to_owned(),
            epoch: None,
            epochs: None,
            step: None,
            steps: None,
            loss: None,
            images_per_second: None,
            stage_seconds_left: None,
            pace: Pace::default(),
        }
    }

    pub(crate) fn hear(&mut self, event: &CellEvent) {
        match event {
            CellEvent::Started { attempt, .. } => self.attempt.clone_from(attempt),
            CellEvent::Stage { stage } => {
                self.stage.clone_from(stage);
                (self.epoch, self.epochs, self.step, self.steps) = (None, None, None, None);
                (self.loss, self.images_per_second, self.stage_seconds_left) = (None, None, None);
                self.pace.seconds_left(stage, 0.0, Instant::now());
            }
            CellEvent::Step { stage, epoch, epochs, step, steps, loss, images_per_second } => {
                self.stage.clone_from(stage);
                (self.epoch, self.epochs) = (Some(*epoch), Some(*epochs));
                (self.step, self.steps) = (Some(*step), Some(*steps));
                (self.loss, self.images_per_second) = (*loss, *images_per_second);
                if let Some(share) = event.share() {
                    self.stage_seconds_left = self.pace.seconds_left(stage, share, Instant::now());
                }
            }
            CellEvent::Epoch { stage, epoch, epochs, .. } => {
                self.stage.clone_from(stage);
                (self.epoch, self.epochs) = (Some(*epoch), Some(*epochs));
            }
            CellEvent::Failed { .. } | CellEvent::Note { .. } | CellEvent::Finished { .. } | CellEvent::Stopped => {}
        }
    }
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
