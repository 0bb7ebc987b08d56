//! `tsbd run`: trains and repairs what an experiment asks for and the results folder does not hold yet.

use std::path::PathBuf;

use clap::Args;
use tsbd_experiment::Store;
use tsbd_orchestrator::Place;

use crate::command_line::examples;
use crate::failure::{Exit, Failure, Outcome};
use crate::options::{Folders, Overrides};
use crate::terminal::{self, Talk};
use crate::{grid, planning};

/// Train and repair everything an experiment asks for that is not done yet
///
/// The whole file is checked before anything is trained. Each model is trained, or repaired, in a process of its own; a
/// backdoored model is trained once for all its defenses. Stop it at any time (Ctrl-C, a kill, a power cut): the same
/// command continues from the last epoch. Results that are there are never changed.
///
/// With --executor slurm the cells become job arrays of the cluster that this machine submits to; the section `[slurm]` of the
/// file says what each job asks for (partition, time, memory, cpus, ...). The command follows them until all are done, and
/// submits again what a failed node lost. Ctrl-C leaves the jobs in the queue, and the same command follows them again; a
/// second Ctrl-C within 5 s cancels them.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd run experiments/demo.toml                           minutes, no download"
    "tsbd run experiments/table1.toml                         Table 1 with the file's profile"
    "tsbd run experiments/table1.toml --profile paper         as published; hours on a GPU"
    "tsbd run experiments/table1.toml --set attack.poisoning_ratio=0.05 --set 'seeds=[0, 1, 2]'"
    "tsbd run experiments/table1.toml --results /mnt/results --workers 2"
    "tsbd run experiments/table1.toml --results /shared/results --executor slurm --set slurm.partition=cpu --set slurm.time=120"
    ;
    "Exit codes: 0 all done, 1 some cells failed, 2 the file was refused, 130 interrupted (resumable)."
))]
pub struct Arguments {
    /// Experiment file
    file: PathBuf,

    /// Cells at a time; the cores are divided among them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,

    /// Where cells are computed: on this machine, or in jobs of a Slurm cluster
    #[arg(long, value_name = "WHERE", default_value = "local", value_parser = ["local", "slurm"])]
    executor: String,

    /// Print a JSON summary at the end
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    overrides: Overrides,

    #[command(flatten)]
    folders: Folders,
}

/// Runs what is outstanding.
pub fn run(arguments: Arguments, talk: &Talk) -> Outcome {
    let Arguments { file, workers, executor, json, overrides, folders } = arguments;
    let data = folders.data.data.as_deref();
    let place = if executor == "slurm" { Place::Slurm } else { Place::Local };
    if place == Place::Slurm && workers > 1 {
        return Err(Failure::refused(format!("--workers {workers} with --executor slurm: the cluster decides"))
            .hint("leave --workers out; `at_once` in [slurm] limits how many cells run at a time"));
    }
    let plan = planning::to_run(&file, &overrides, &folders)?;
    let store = Store::new(&folders.results);
    let options = grid::Options { data, place, workers: usize::from(workers) };
    let summary = grid::run(&plan, &store, options, talk)?;
    let exit = grid::exit(&summary);
    if json {
        terminal::print_json(&grid::to_json(&summary, &plan, &store));
    }
    if !talk.quiet || exit != Exit::Done {
        for line in grid::describe(&summary, &plan) {
            terminal::say(line);
        }
    }
    if !talk.quiet && exit == Exit::Done {
        terminal::say(format!("hint: tsbd table {}{}{}", file.display(), overrides.as_typed(), folders.as_typed()));
    }
    Ok(exit)
}
