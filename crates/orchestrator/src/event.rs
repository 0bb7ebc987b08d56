//! What a run tells whoever draws it, and what remains at its end.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tsbd_experiment::{Cell, CellKey, Damage};

use crate::protocol::{CellEvent, EXIT_DONE, EXIT_FAILED, EXIT_STOPPED};

/// Something happened in a run.
#[derive(Debug, Clone, PartialEq)]
pub enum RunEvent {
    /// A record cannot be believed. It was moved to `aside`, and its cell runs again.
    Damaged {
        /// The record.
        damage: Damage,
        /// Its new name; `None` if it had gone meanwhile.
        aside: Option<PathBuf>,
    },
    /// The run begins.
    Planned {
        /// Cells of the plan.
        total: usize,
        /// Those with a result.
        done: usize,
        /// Those that will run, parents first.
        outstanding: Vec<CellKey>,
    },
    /// A cell has begun to run.
    CellStarted {
        /// The cell.
        key: CellKey,
        /// Its parameters.
        cell: Box<Cell>,
        /// Its process; 0 if it is not known.
        pid: u32,
        /// Its job, if it runs on a cluster.
        job: Option<String>,
        /// Log of the attempt.
        log: PathBuf,
        /// Whether it has a checkpoint to continue from.
        continues: bool,
    },
    /// A cell waits again, and runs later: it was lost, others left it too little memory, or its cluster put it back into the
    /// queue.
    CellReturned {
        /// The cell.
        key: CellKey,
        /// Why.
        reason: String,
        /// Whether it was running.
        ran: bool,
    },
    /// A cell told something. Steps are left out when the receiver is slow.
    CellProgress {
        /// The cell.
        key: CellKey,
        /// What it told.
        event: CellEvent,
    },
    /// A cell has its result.
    CellFinished {
        /// The cell.
        key: CellKey,
        /// Fractions.
        metrics: BTreeMap<String, f64>,
        /// Seconds of computing.
        seconds: f64,
    },
    /// A cell failed.
    CellFailed {
        /// The cell.
        key: CellKey,
        /// Why.
        reason: String,
        /// Log of the attempt.
        log: PathBuf,
        /// The log's last lines.
        log_tail: Vec<String>,
    },
    /// A cell never runs in this run, because a cell it starts from failed.
    CellSkipped {
        /// The cell.
        key: CellKey,
        /// The parent.
        parent: CellKey,
    },
    /// A cell stopped on request.
    CellStopped {
        /// The cell.
        key: CellKey,
    },
    /// The cells were asked to stop (`kill` false), or killed (`kill` true). Jobs of a cluster are left alone first, and
    /// cancelled if they are to be killed.
    Interrupted {
        /// Whether they were killed.
        kill: bool,
        /// How many ran or were queued.
        running: usize,
    },
    /// Something worth telling, such as which jobs were submitted.
    Note {
        /// A sentence.
        text: String,
    },
    /// Something that the run survives but somebody should know, such as a status file that cannot be written.
    Warning {
        /// A sentence.
        text: String,
    },
}

/// What a run has come to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RunSummary {
    /// Cells of the plan that already had a result.
    pub already_done: usize,
    /// Cells that have one now.
    pub finished: Vec<CellKey>,
    /// Cells that failed, with the reasons.
    pub failed: Vec<(CellKey, String)>,
    /// Cells that did not run because a parent failed, with that parent.
    pub skipped: Vec<(CellKey, CellKey)>,
    /// Cells that stopped on request, or were never started because of it.
    pub stopped: Vec<CellKey>,
    /// Cells whose jobs were left in the queue of a cluster on request.
    pub left: Vec<CellKey>,
    /// Whether the run was interrupted.
    pub interrupted: bool,
    /// How long it took.
    pub elapsed: Duration,
}

impl RunSummary {
    /// 0: every cell has its result; 1: some failed; 130: interrupted, the same command continues.
    pub fn exit_code(&self) -> u8 {
        if self.interrupted && !(self.stopped.is_empty() && self.left.is_empty()) {
            EXIT_STOPPED
        } else if self.failed.is_empty() && self.skipped.is_empty() {
            EXIT_DONE
        } else {
            EXIT_FAILED
        }
    }
}
