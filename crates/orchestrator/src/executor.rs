//! What the dispatcher and whoever runs cells for it say to each other.
//!
//! The dispatcher decides *what* runs: the store, the order of the cells, what a result or a failure means. An executor
//! decides *where*: in children of this process ([`crate::local`]) or in jobs of a cluster ([`crate::slurm`]).

use std::path::PathBuf;

use tsbd_experiment::CellKey;

use crate::protocol::CellEvent;

/// Runs cells that are handed over, and reports on them over the channel that came with it. Knows nothing of results: that
/// a cell has ended says nothing about what it left.
pub(crate) trait Executor {
    /// Whether it takes a cell before the cells that it starts from are done, and keeps the order itself.
    const KEEPS_ORDER: bool;

    /// How many cells it would hold now, those that it holds included.
    fn capacity(&mut self) -> usize;

    /// Takes cells over, parents first; each one ends with a [`Report::Ended`]. Gives the reports that are due at once.
    fn start(&mut self, cells: Vec<CellKey>) -> impl Future<Output = Vec<Report>> + Send;

    /// A cell that it has given back, perhaps, will not be handed over again.
    fn forget(&mut self, _key: &CellKey) {}

    /// Tells something to all cells at work.
    fn order(&mut self, order: Order);
}

/// What an executor tells the dispatcher.
#[derive(Debug)]
pub(crate) enum Report {
    /// A cell has begun to run.
    Started { key: CellKey, start: Start },
    /// A line of a cell.
    Said { key: CellKey, event: CellEvent },
    /// A cell that ran waits again, for this reason.
    Returned { key: CellKey, reason: String },
    /// The executor has done with a cell.
    Ended { key: CellKey, end: End },
    /// Something worth telling people.
    Note { text: String },
    /// Something that the run survives but somebody should know.
    Warning { text: String },
}

/// Where a cell runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    /// Its process; 0 if it is not known.
    pub pid: u32,
    /// Its job, for people; `None` for a child.
    pub job: Option<String>,
    /// Name of the attempt's folder; empty if it is not known.
    pub attempt: String,
    /// What it writes on standard error.
    pub log: PathBuf,
    /// Whether it has a checkpoint to continue from.
    pub continues: bool,
}

/// Why the executor has done with a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// It ended. If it left no result and gave no reason itself, this sentence is the reason.
    Because(String),
    /// It stopped on request.
    Stopped,
    /// It was left to itself on request, and may still run.
    Left,
    /// It ended without being done, for a reason that may not be its own: it waits for another turn.
    Again(String),
    /// It cannot run, because this cell has no result and gets none.
    Parent(CellKey),
}

/// What the dispatcher tells an executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Ask the cells to stop.
    Stop,
    /// Kill them.
    Kill,
}
