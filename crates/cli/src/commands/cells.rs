//! `tsbd cells`: what a child process of `tsbd run` does that computes several cells of a GPU. Hidden from the help: people
//! have no use for it.

use std::path::PathBuf;

use clap::Args;
use tsbd_orchestrator::{CellsArguments, execute, run_cells};

use super::cell::versions;
use crate::failure::{Exit, Failure, Outcome};

/// Run the cells of a results folder that standard input names, in this process and at the same time; their events are
/// lines of JSON on standard output
#[derive(Args, Debug)]
pub struct Arguments {
    /// Results folder
    #[arg(long, value_name = "DIR")]
    results: PathBuf,

    /// Folder with the data sets
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// What computes
    #[arg(long)]
    device: String,

    /// Threads of the CPU that the cells have together
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

/// Runs the cells. How each ended is told in its last event.
pub fn run(arguments: Arguments) -> Outcome {
    let Arguments { results, data, device, threads } = arguments;
    let arguments = CellsArguments { results, data, device, threads };
    let open = || {
        let device = tsbd_tensor::device(&arguments.device)?;
        // After a fault the driver answers every call with it.
        Ok(move || Ok(device.synchronize()?))
    };
    run_cells(&arguments, &versions(), open, execute).map_err(|error| Failure::failed(error.to_string()))?;
    Ok(Exit::Done)
}
