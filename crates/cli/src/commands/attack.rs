//! `tsbd attack`: trains one backdoored model, as a grid of one cell.

use clap::Args;
use serde_json::json;
use tsbd_experiment::Store;
use tsbd_orchestrator::MODEL;

use crate::command_line::examples;
use crate::failure::{Exit, Outcome};
use crate::options::{Computing, Folders, OnePoint};
use crate::terminal::{self, Talk};
use crate::{grid, planning};

/// Train one backdoored model, and say where it lies
///
/// It is a cell like those of `tsbd run`: continued when interrupted, and trained once, also for experiments that have
/// the same attack with the same settings. The device is none of these: a model that was trained on another one is taken
/// as it is. The attack `none` trains a clean model.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd attack badnets --profile smoke                     seconds, on drawn images"
    "tsbd attack blended --set attack.poisoning_ratio=0.05 --seed 1"
    "tsbd attack badnets --set attacks.badnets.trigger=grid --set training.epochs=5"
    "tsbd attack badnets --profile paper --device cuda"
    "tsbd attack badnets --profile smoke --json | jq -r .model"
))]
pub struct Arguments {
    /// Attack: one of `tsbd list attacks`
    name: String,

    #[command(flatten)]
    computing: Computing,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    point: OnePoint,

    #[command(flatten)]
    folders: Folders,
}

/// Trains the model unless it is there already.
pub fn run(arguments: Arguments, talk: &Talk) -> Outcome {
    let Arguments { name, computing, json, point, folders } = arguments;
    // The cells open the device themselves.
    let place = computing.open()?.place;
    let data = folders.data.data.as_deref();
    let plan = planning::one_point(&name, "none", &point, &folders.data.root())?;
    let store = Store::new(&folders.results);
    let summary = grid::run(&plan, &store, grid::Options { data, place }, talk)?;
    let exit = grid::exit(&summary);
    if exit != Exit::Done {
        for line in grid::describe(&summary, &plan) {
            terminal::say(line);
        }
        return Ok(exit);
    }
    let key = &plan.points[0].cell;
    let record = store.result(key).map_err(planning::store_failure)?;
    let model = store.artefact(key, MODEL);
    if json {
        terminal::print_json(&json!({
            "attack": name, "model": model, "key": key, "metrics": record.metrics, "facts": record.facts,
            "device": record.provenance.device, "seconds": record.provenance.seconds, "cell": record.cell,
        }));
        return Ok(Exit::Done);
    }
    let rates = ["acc", "asr", "ra"].into_iter().filter_map(|rate| Some((rate, record.metrics.get(rate)?)));
    let rates: Vec<_> = rates.map(|(rate, value)| format!("{} {:.2} %", rate.to_uppercase(), value * 100.0)).collect();
    terminal::print(&format!("{}\n{}\n", rates.join(", "), model.display()));
    if !talk.quiet {
        terminal::say(format!(
            "hint: tsbd defend tsbd --model {} --attack {name}{}{}",
            model.display(),
            point.as_typed(),
            computing.as_typed()
        ));
    }
    Ok(Exit::Done)
}
