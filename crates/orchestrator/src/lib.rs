//! Runs a grid of cells and resumes it.
//!
//! The coordinator (`tsbd run`) calls [`run()`]. It works out what is outstanding, and the *dispatcher*, which alone owns
//! the state, lets an *executor* run each cell in a process of its own, `tsbd cell <key> ...` ([`CellArguments`]): in
//! children on this machine, or in job arrays of a Slurm cluster ([`Place`]). The two talk over channels; nothing is shared.
//! Cells that share a GPU share a process as well ([`run_cells`]).
//! A cell tells its progress in lines of JSON on its standard output ([`CellEvent`]), its standard error is the attempt's
//! log, and its result is what it publishes in the store.
//! Everything the coordinator does is told to whoever draws it as [`RunEvent`]s, and written to `status.json`.
//!
//! A child with a cell of its own calls [`run_cell`] with the function that does the work:
//!
//! ```no_run
//! use tsbd_orchestrator::{CellArguments, CellError, CellWorkspace, Conclusion, Findings, Versions, run_cell};
//!
//! fn execute(workspace: &CellWorkspace) -> Result<Conclusion, CellError> {
//!     let cell = workspace.cell();                         // what to do
//!     let reporter = workspace.reporter();                 // progress to the coordinator; cheap to clone
//!     reporter.stage("train");
//!     // If it is there, continue from it:
//!     let _resume = workspace.checkpoint().exists();
//!     // ... after each epoch: workspace.save("", || checkpoint.save(workspace.checkpoint()))
//!     if workspace.cancellation().is_cancelled() {
//!         return Ok(Conclusion::Stopped);                  // the next run continues from the checkpoint
//!     }
//!     let _model = workspace.directory().join("model.safetensors"); // written here, moved when it is published
//!     Ok(Conclusion::Done(Findings { artefacts: vec!["model.safetensors".into()], ..Findings::default() }))
//! }
//!
//! # fn main() { let arguments: CellArguments = todo!();
//! let exit_code = run_cell(&arguments, Versions::default(), execute);
//! # }
//! ```

mod child;
mod devices;
mod dispatcher;
mod event;
pub mod execute;
mod executor;
mod host;
mod interrupt;
mod ledger;
mod lifeline;
mod local;
mod pace;
#[cfg(test)]
mod properties;
mod protocol;
mod slurm;
mod status;
mod workspace;

pub use devices::{CellsPerGpu, Devices, GpuSharing};
pub use dispatcher::{Place, RunError, RunOptions, run};
pub use event::{RunEvent, RunSummary};
pub use execute::{MATERIAL, MODEL, execute};
pub use host::run_cells;
pub use interrupt::{InterruptSender, Interrupts};
pub use ledger::{Ending, Ledger};
pub use pace::Pace;
pub use protocol::{CellArguments, CellEvent, CellsArguments, EXIT_DONE, EXIT_FAILED, EXIT_STOPPED};
pub use slurm::{Exported, SlurmError, export_slurm};
pub use status::{RunStatus, RunningCell, StatusState, read_status};
pub use tsbd_experiment::Versions;
pub use workspace::{Cancellation, CellError, CellWorkspace, Conclusion, Findings, ProgressReporter, run_cell};
