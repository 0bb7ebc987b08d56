//! Cells as jobs of a Slurm cluster, through its command line.
//!
//! Outstanding cells are submitted as job arrays in waves: an array depends on those that make what its cells start from
//! ([`arrays`]). Each array has a folder `results/slurm/<n>/` with its script and with what its cells say ([`submission`]),
//! written before it is submitted under a name of its own: a coordinator that is killed at any point finds its jobs again
//! and submits none twice. The [`follower`] looks at the queue, judges what became of each job ([`queue`]), and submits
//! again what was lost. The results folder is the truth: a job's state only explains why a result is not there.

mod arrays;
mod export;
mod follower;
mod queue;
mod submission;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;
use tokio::sync::mpsc;
use tsbd_experiment::{CellKey, Plan, Store};

use self::arrays::Template;
use self::follower::{Follower, Request};
use self::queue::{Commands, QueueError};
use crate::dispatcher::RunOptions;
use crate::executor::{Executor, Order, Report};

pub use export::{Exported, export_slurm};

/// Why nothing can be run on the cluster.
#[derive(Debug, thiserror::Error)]
pub enum SlurmError {
    /// Slurm's programs are missing, or its controller does not answer, or it refuses such jobs.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// A path that a job script cannot name.
    #[error("{}: {reason}; give another folder", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Jobs ask for a GPU, and the program that they start has no use for one.
    #[error(
        "slurm.gpus = {gpus}: this program was built without CUDA; build it with `make build-cuda`, or set it to 0"
    )]
    WithoutCuda {
        /// GPUs of one cell.
        gpus: usize,
    },
    /// The results folder.
    #[error("cannot prepare jobs: {0}")]
    System(#[from] io::Error),
}

/// The executor. What it decides lies in the [`Follower`], which runs in a task of its own.
pub(crate) struct Slurm {
    requests: mpsc::UnboundedSender<Request>,
}

impl Slurm {
    /// An executor, and the reports on its cells. Asks Slurm whether it would take such jobs at all. Must be called within a
    /// tokio runtime.
    pub async fn new(
        plan: &Plan,
        store: &Store,
        options: &RunOptions,
    ) -> Result<(Self, mpsc::Receiver<Report>), SlurmError> {
        let template = Template::new(plan, store, options)?;
        let scheduler = Commands;
        let limit = scheduler.largest_array().await?;
        let trial = tempfile::Builder::new().prefix("tsbd-trial-").tempfile()?;
        fs::write(trial.path(), template.trial())?;
        scheduler.check(trial.path()).await?;
        let (sender, reports) = mpsc::channel(256);
        let (requests, received) = mpsc::unbounded_channel();
        let follower = Follower::new(scheduler, plan, store, template, limit, sender);
        tokio::spawn(follower.run(received));
        Ok((Self { requests }, reports))
    }
}

impl Executor for Slurm {
    const KEEPS_ORDER: bool = true;

    fn capacity(&mut self) -> usize {
        usize::MAX
    }

    async fn start(&mut self, cells: Vec<CellKey>) -> Vec<Report> {
        // The follower ends with the last report; whoever sends after that sends in vain.
        let _ = self.requests.send(Request::Start(cells));
        Vec::new()
    }

    fn order(&mut self, order: Order) {
        let _ = self.requests.send(Request::Order(order));
    }
}

/// An absolute path that can stand between quotes in a job script and in Slurm's own patterns.
fn nameable(path: &Path) -> Result<PathBuf, SlurmError> {
    let path = std::path::absolute(path)?;
    let refuse = |reason: &str| Err(SlurmError::Path { path: path.clone(), reason: reason.to_owned() });
    match path.to_str() {
        None => refuse("its name is no Unicode, which a job script has to be"),
        Some(name) if name.contains(['"', '\\', '%', '$', '`']) || name.contains(char::is_control) => {
            refuse("Slurm gives \", \\, %, $, ` and line breaks in names of files a meaning of their own")
        }
        Some(_) => Ok(path),
    }
}
