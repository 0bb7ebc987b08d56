//! `tsbd cell`: what a child process of `tsbd run` does. Hidden from the help: people have no use for it, except to
//! repeat one cell of a results folder under a debugger.

use std::path::PathBuf;

use clap::Args;
use tsbd_experiment::CellKey;
use tsbd_orchestrator::{CellArguments, EXIT_DONE, EXIT_STOPPED, Versions, execute, run_cell};

use crate::failure::{Exit, Outcome};

/// Run one cell of a results folder in this process; its events are lines of JSON on standard output
#[derive(Args, Debug)]
pub struct Arguments {
    /// The cell's key: the name of its folder in RESULTS/cells
    key: CellKey,

    /// Results folder
    #[arg(long, value_name = "DIR")]
    results: PathBuf,

    /// Folder with the data sets
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// What computes
    #[arg(long, default_value = "cpu")]
    device: String,

    /// Threads to compute with
    #[arg(long, default_value_t = 1)]
    threads: usize,

    /// The attempt to work in
    #[arg(long)]
    attempt: Option<String>,
}

/// Runs the cell. How it ended is told in its last event and in the exit code.
pub fn run(arguments: Arguments) -> Outcome {
    let Arguments { key, results, data, device, threads, attempt } = arguments;
    let arguments = CellArguments { key, results, data, device, threads, attempt };
    Ok(match run_cell(&arguments, versions(), execute) {
        EXIT_DONE => Exit::Done,
        EXIT_STOPPED => Exit::Interrupted,
        _ => Exit::Failed,
    })
}

/// What this program was built from, for records.
pub(super) fn versions() -> Versions {
    Versions {
        tsbd: env!("CARGO_PKG_VERSION").to_owned(),
        revision: env!("TSBD_REVISION").to_owned(),
        candle: env!("TSBD_CANDLE").to_owned(),
    }
}
