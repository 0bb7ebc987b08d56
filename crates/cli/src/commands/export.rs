//! `tsbd export`: an experiment for something else that runs it, its results for somebody else who reads them.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use tsbd_experiment::{ExportedResults, Store};
use tsbd_orchestrator::{Exported, Place, export_slurm};

use crate::command_line::examples;
use crate::failure::{Exit, Failure, Outcome};
use crate::options::{Folders, Overrides};
use crate::{grid, planning, terminal};

/// Write an experiment for a cluster to run, or its results for others to read
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd export results experiments/table1.toml --out shared    its results, without the models"
    "tsbd export slurm experiments/table1.toml --out jobs       job scripts, to be submitted by hand"
))]
pub struct Arguments {
    #[command(subcommand)]
    form: Form,
}

#[derive(Subcommand, Debug)]
enum Form {
    Results(Results),
    Slurm(Slurm),
}

/// Copy the results of an experiment, without the models
///
/// DIR becomes a results folder that `tsbd table`, `tsbd figure` and `tsbd report` read as any other, with --results DIR:
/// the sealed records of the cells that are done, and what they found out about neurons. Model weights, by far the largest
/// part, are left out, so nothing can be run there. Results of several experiments can go to one folder.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd export results experiments/table1.toml --out shared"
    "tsbd export results experiments/fig4.toml --out shared         beside those of Table 1"
    "tsbd table experiments/table1.toml --results shared            the table, on any machine, without the data"
    "tsbd report --results shared                                   one page with everything in it"
))]
struct Results {
    /// Experiment file
    file: PathBuf,

    /// Folder for the results: new, empty, or one that results were exported to before
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    #[command(flatten)]
    overrides: Overrides,

    #[command(flatten)]
    folders: Folders,
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
    match arguments.form {
        Form::Results(results) => export_results(results),
        Form::Slurm(slurm) => export_scripts(slurm),
    }
}

fn export_results(Results { file, out, overrides, folders }: Results) -> Outcome {
    let plan = planning::to_look(&file, &overrides, &folders)?;
    let ExportedResults { cells, missing } =
        Store::new(&folders.results).export(&plan, &out).map_err(planning::store_failure)?;
    terminal::say(format!("{cells} cells in {}", out.display()));
    if missing > 0 {
        terminal::say(format!("{missing} cells have no result and are not there"));
    }
    Ok(Exit::Done)
}

fn export_scripts(Slurm { file, out, overrides, folders }: Slurm) -> Outcome {
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
