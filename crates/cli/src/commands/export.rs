//! `tsbd export`: an experiment in a form that something else runs.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use tsbd_experiment::Store;
use tsbd_orchestrator::{Exported, Place, export_slurm};

use crate::command_line::examples;
use crate::failure::{Exit, Failure, Outcome};
use crate::options::{Folders, Overrides};
use crate::{grid, planning, terminal};

/// Write what an experiment would run in a form that something else runs
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd export slurm experiments/table1.toml --out jobs    job scripts, to be submitted by hand"
))]
pub struct Arguments {
    #[command(subcommand)]
    form: Form,
}

#[derive(Subcommand, Debug)]
enum Form {
    Slurm(Slurm),
}

/// Write the Slurm job scripts of everything that is not done yet
///
/// DIR gets a job array for each wave of cells (a repair comes after the model that it repairs), submit.sh, which submits
/// them with their dependencies, and a README. Nothing is submitted, and no cluster is asked. What jobs ask for is the section
/// `[slurm]` of the experiment. `tsbd run FILE --executor slurm` submits the same by itself, and follows it.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd export slurm experiments/table1.toml --out jobs --results /shared/results"
    "tsbd export slurm experiments/table1.toml --out jobs --set slurm.partition=cpu --set slurm.time=120 --set slurm.memory=4G"
    "bash jobs/submit.sh                                     submits them"
    "tsbd table experiments/table1.toml --results /shared/results    the table of what is done, at any time"
))]
struct Slurm {
    /// Experiment file
    file: PathBuf,

    /// Folder for the scripts, new or empty; it has to be on a file system that all nodes share
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    #[command(flatten)]
    overrides: Overrides,

    #[command(flatten)]
    folders: Folders,
}

/// Writes.
pub fn run(arguments: Arguments) -> Outcome {
    let Form::Slurm(Slurm { file, out, overrides, folders }) = arguments.form;
    let plan = planning::to_run(&file, &overrides, &folders)?;
    let data = folders.data.data.as_deref();
    let options = grid::run_options(&grid::Options { data, place: Place::Slurm });
    let options = options.map_err(|error| Failure::from_error(Exit::Failed, error))?;
    let store = Store::new(&folders.results);
    let Exported { submit, cells, arrays } = export_slurm(&plan, &store, &out, &options).map_err(grid::run_failure)?;
    terminal::say(format!("{cells} cells in {arrays} job arrays"));
    terminal::say(format!("hint: bash {}", submit.display()));
    Ok(Exit::Done)
}
