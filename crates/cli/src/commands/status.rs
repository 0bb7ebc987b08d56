//! `tsbd status`: what runs in a results folder now, and how far an experiment is.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use tsbd_experiment::Store;
use tsbd_orchestrator::{RunStatus, StatusState, read_status};

use crate::columns::Columns;
use crate::command_line::examples;
use crate::commands::plan::{self, State};
use crate::failure::{Exit, Outcome};
use crate::options::{Folders, Overrides};
use crate::progress::duration;
use crate::{planning, terminal};

/// Show what is running, and how far an experiment is
///
/// Reads the results folder and disturbs nothing, so it can be asked while `tsbd run` works in another terminal. TO GO is how long
/// the stage of a running cell will still take, if it goes on as it did.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd status                             is anything running in ./results?"
    "tsbd status experiments/table1.toml     and how many cells of this experiment are done"
    "tsbd status experiments/table1.toml --json | jq .cells.done"
    "watch tsbd status experiments/table1.toml"
))]
pub struct Arguments {
    /// Experiment file
    file: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    overrides: Overrides,

    #[command(flatten)]
    folders: Folders,
}

/// Looks and prints.
pub fn run(arguments: Arguments) -> Outcome {
    let Arguments { file, json, overrides, folders } = arguments;
    let store = Store::new(&folders.results);
    let status = read_status(&store).map_err(planning::store_failure)?;
    let experiment = match &file {
        Some(file) => {
            let plan = planning::to_look(file, &overrides, &folders)?;
            let lines = plan::survey(&plan, &store, None)?;
            Some((plan, lines))
        }
        None => None,
    };
    if json {
        let cells = experiment.as_ref().map(|(plan, lines)| {
            let count = |wanted: fn(&State) -> bool| lines.iter().filter(|line| wanted(&line.state)).count();
            json!({
                "experiment": plan.experiment.name, "profile": plan.experiment.profile, "total": lines.len(),
                "done": count(|state| *state == State::Done), "outstanding": count(State::is_outstanding),
                "failed": count(|state| matches!(state, State::Failed(_))),
            })
        });
        terminal::print_json(&json!({ "run": status, "cells": cells }));
        return Ok(Exit::Done);
    }
    match &status {
        Some(status) => terminal::print(&render(status)),
        None => terminal::print(&format!("nothing was ever run in {}\n", folders.results.display())),
    }
    if let Some((plan, lines)) = &experiment {
        terminal::print(&format!("\n{}", plan::render(plan, lines)));
        for line in lines {
            if let State::Failed(reason) | State::Damaged(reason) = &line.state {
                terminal::print(&format!("{}: {}: {reason}\n", line.label, line.state.word()));
            }
        }
    }
    Ok(Exit::Done)
}

/// What the last run in the folder is doing, or how it ended.
fn render(status: &RunStatus) -> String {
    let RunStatus { experiment, profile, coordinator, total, done, failed, skipped, waiting, .. } = status;
    let state = match status.state {
        StatusState::Running => format!("is running as {coordinator}"),
        StatusState::Finished => "has ended".to_owned(),
        StatusState::Interrupted => "was interrupted; the same command continues it".to_owned(),
        StatusState::Left => "left its jobs in the queue; the same command follows them again".to_owned(),
        StatusState::Gone => "was killed; the same command continues it".to_owned(),
    };
    let mut text = format!("{experiment}, profile {profile}, {state}\n{done} of {total} cells done");
    for (count, what) in [
        (status.running.len(), "running"),
        (status.queued, "in the queue"),
        (*waiting, "waiting"),
        (*failed, "failed"),
        (*skipped, "skipped"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }
    text.push('\n');
    if status.state != StatusState::Running || status.running.is_empty() {
        return text;
    }
    let mut columns = Columns::headed(&["RUNNING", "STAGE", "EPOCH", "LOSS", "IMAGES/S", "FOR", "TO GO"]);
    for cell in &status.running {
        let epoch = match (cell.epoch, cell.epochs, cell.step, cell.steps) {
            (Some(epoch), Some(epochs), ..) if epochs > 1 => format!("{} of {epochs}", epoch + 1),
            (.., Some(step), Some(steps)) => format!("step {step} of {steps}"),
            _ => "-".to_owned(),
        };
        columns.row([
            format!("{}, seed {}", cell.label, cell.seed),
            cell.stage.clone(),
            epoch,
            cell.loss.map_or("-".to_owned(), |loss| format!("{loss:.4}")),
            cell.images_per_second.map_or("-".to_owned(), |speed| format!("{speed:.0}")),
            duration(status.updated_unix.saturating_sub(cell.started_unix) as f64),
            cell.stage_seconds_left.map_or("-".to_owned(), duration),
        ]);
    }
    text.push_str(&columns.render(terminal::stdout_width()));
    text
}
