//! Runs what is outstanding of a plan, with its progress on standard error.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tsbd_experiment::{CellKey, Plan, Store};
use tsbd_orchestrator::{CellEvent, Devices, Interrupts, Place, RunError, RunEvent, RunOptions, RunSummary};

use crate::commands::plan;
use crate::failure::{Exit, Failure};
use crate::progress::{Position, Progress, duration};
use crate::terminal::{self, Talk};
use crate::{labels, planning};

/// How a plan is run.
pub struct Options<'a> {
    /// Folder with the data sets, if the user named one.
    pub data: Option<&'a Path>,
    /// Where cells are computed.
    pub place: Place,
}

/// Runs everything of `plan` that has no result yet. A second Ctrl-C kills what the first asked to stop, or cancels the
/// jobs that the first would have left in the queue.
pub fn run(plan: &Plan, store: &Store, options: Options, talk: &Talk) -> Result<RunSummary, Failure> {
    let system = |error| run_failure(RunError::System(error));
    let weights = weights(plan::survey(plan, store, None)?);
    let runtime = tokio::runtime::Runtime::new().map_err(system)?;
    runtime.block_on(async {
        let run_options = run_options(&options).map_err(system)?;
        let interrupts = Interrupts::from_signals().map_err(system)?;
        let (sender, events) = mpsc::channel(256);
        let drawing = tokio::spawn(draw(events, labels::of(plan), weights, options.place.clone(), talk.quiet));
        let summary = tsbd_orchestrator::run(plan, store, run_options, interrupts, sender).await;
        // Ends by itself once nobody sends any more; a panic in drawing loses lines, not results.
        let _ = drawing.await;
        summary.map_err(run_failure)
    })
}

/// What the cells that have to run weigh against each other: their seconds, or in a new results folder, where no speed is
/// known, the images that go through their networks.
fn weights(lines: Vec<plan::Line>) -> HashMap<CellKey, f64> {
    let outstanding: Vec<plan::Line> = lines.into_iter().filter(|line| line.state.is_outstanding()).collect();
    let timed = outstanding.iter().any(|line| line.seconds.is_some());
    let weight = |line: &plan::Line| if timed { line.seconds } else { line.passes };
    outstanding.iter().filter_map(|line| Some((line.key.clone(), weight(line)?))).collect()
}

/// A cell on a GPU that says nothing for so long has a GPU that hangs. Every step of every stage is told; the longest time
/// without any is that in which images are loaded, poisoned or measured, minutes at most.
const GPU_SILENCE_LIMIT: Duration = Duration::from_secs(3600);

/// The options of a run.
pub fn run_options(options: &Options) -> std::io::Result<RunOptions> {
    let Options { data, place } = options;
    let silence_limit = matches!(place, Place::Local(Devices::Gpus { .. })).then_some(GPU_SILENCE_LIMIT);
    Ok(RunOptions { data: data.map(Path::to_owned), place: place.clone(), silence_limit, ..RunOptions::new()? })
}

/// Why a run could not begin.
pub fn run_failure(error: RunError) -> Failure {
    match error {
        RunError::Store(error) => planning::store_failure(error),
        RunError::Slurm(error) => Failure::from_error(Exit::Refused, error),
        error => Failure::from_error(Exit::Failed, error),
    }
}

async fn draw(
    mut events: mpsc::Receiver<RunEvent>,
    labels: HashMap<CellKey, String>,
    weights: HashMap<CellKey, f64>,
    place: Place,
    quiet: bool,
) {
    let mut progress: Option<Progress> = None;
    while let Some(event) = events.recv().await {
        if let RunEvent::Planned { outstanding, total, done } = &event {
            tracing::info!(total, done, "planned");
            let cells = || outstanding.iter().map(|key| (key.clone(), weights.get(key).copied()));
            progress = (!outstanding.is_empty()).then(|| Progress::new(cells(), quiet));
        }
        show(event, progress.as_mut(), &labels, &place);
    }
    if let Some(progress) = &mut progress {
        progress.clear();
    }
}

fn show(event: RunEvent, progress: Option<&mut Progress>, labels: &HashMap<CellKey, String>, place: &Place) {
    let label = |key: &CellKey| labels.get(key).cloned().unwrap_or_else(|| key.short().to_owned());
    match event {
        RunEvent::Damaged { damage, aside } => {
            terminal::say(format!("warning: {damage}"));
            let aside = aside.map_or(String::new(), |aside| format!(", the damaged record is {}", aside.display()));
            terminal::say(format!("hint: the cell runs again{aside}"));
        }
        RunEvent::Warning { text } => terminal::say(format!("warning: {text}")),
        event => {
            let Some(progress) = progress else { return };
            match event {
                RunEvent::CellStarted { key, continues, pid, job, log, .. } => {
                    tracing::info!(cell = %key, pid, job, log = %log.display(), "started");
                    progress.started(&key, &label(&key), continues);
                }
                RunEvent::CellProgress { key, event } => hear(progress, &key, &label(&key), event),
                RunEvent::CellFinished { key, metrics, seconds } => {
                    progress.finished(&key, &label(&key), seconds, &metrics);
                }
                RunEvent::CellFailed { key, reason, log_tail, .. } => {
                    progress.failed(&key, &label(&key), &reason);
                    // The log usually ends with the reason itself.
                    for line in log_tail.iter().filter(|line| !line.contains(&reason)) {
                        tracing::info!("{}: {line}", label(&key));
                    }
                }
                RunEvent::CellReturned { key, reason, ran } => progress.returned(&key, &label(&key), &reason, ran),
                RunEvent::CellSkipped { key, parent } => progress.skipped(&key, &label(&key), &label(&parent)),
                RunEvent::CellStopped { key } => progress.stopped(&key),
                RunEvent::Interrupted { kill, running } => progress.note(&match (place, kill) {
                    (Place::Local(_), false) => {
                        format!(
                            "stopping {}; again to kill, which loses what came after the last checkpoint",
                            cells(running)
                        )
                    }
                    (Place::Local(_), true) => format!("killing {}", cells(running)),
                    (Place::Slurm, false) => {
                        format!("leaving {} in the queue; again within 5 s to cancel the jobs", cells(running))
                    }
                    (Place::Slurm, true) => format!("cancelling the jobs of {}", cells(running)),
                }),
                RunEvent::Note { text } => progress.note(&text),
                RunEvent::Planned { .. } | RunEvent::Damaged { .. } | RunEvent::Warning { .. } => {}
            }
        }
    }
}

/// What a running cell tells.
fn hear(progress: &mut Progress, key: &CellKey, label: &str, event: CellEvent) {
    let share = event.share().unwrap_or(0.0);
    match event {
        CellEvent::Stage { stage } => progress.moved(key, label, &Position { stage, ..Position::default() }),
        CellEvent::Step { stage, epoch, epochs, step, steps, loss, images_per_second } => {
            let count = match epochs {
                0 | 1 => format!("{step} of {steps}"),
                _ => format!("epoch {} of {epochs}", epoch + 1),
            };
            progress.moved(key, label, &Position { stage, share, count, loss, images_per_second });
        }
        CellEvent::Note { text } => progress.note(&format!("{label}: {text}")),
        CellEvent::Epoch { stage, epoch, metrics, .. } => tracing::info!("{label}: {stage} {epoch}: {metrics:?}"),
        CellEvent::Started { .. } | CellEvent::Finished { .. } | CellEvent::Stopped | CellEvent::Failed { .. } => {}
    }
}

fn cells(count: usize) -> String {
    if count == 1 { "1 cell".to_owned() } else { format!("{count} cells") }
}

/// How the run ended, as an exit code.
pub fn exit(summary: &RunSummary) -> Exit {
    match summary.exit_code() {
        tsbd_orchestrator::EXIT_DONE => Exit::Done,
        tsbd_orchestrator::EXIT_STOPPED => Exit::Interrupted,
        _ => Exit::Failed,
    }
}

/// What a run has come to, for people; failures with their reasons.
pub fn describe(summary: &RunSummary, plan: &Plan) -> Vec<String> {
    let labels = labels::of(plan);
    let RunSummary { already_done, finished, failed, skipped, stopped, left: in_queue, interrupted, elapsed } = summary;
    if finished.is_empty() && failed.is_empty() && stopped.is_empty() && in_queue.is_empty() {
        return vec![match already_done {
            1 => "the only cell is done already".to_owned(),
            _ => format!("all {already_done} cells are done already"),
        }];
    }
    // What never came to its turn is left too, not only what was stopped at work.
    let left = plan.cells.len().saturating_sub(already_done + finished.len() + failed.len() + skipped.len());
    let mut parts = vec![format!("{} done", finished.len())];
    for (count, what) in
        [(*already_done, "done before"), (failed.len(), "failed"), (skipped.len(), "skipped"), (left, "left")]
    {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    let mut lines =
        vec![format!("{}: {} in {}", cells(plan.cells.len()), parts.join(", "), duration(elapsed.as_secs_f64()))];
    lines.extend(failed.iter().map(|(key, reason)| format!("failed: {} ({}): {reason}", labels[key], key.short())));
    if !in_queue.is_empty() {
        let count = cells(in_queue.len());
        lines.push(format!("the jobs of {count} go on; run the same command to follow them again"));
    } else if *interrupted && !stopped.is_empty() {
        lines.push("stopped; run the same command to continue".to_owned());
    } else if !failed.is_empty() {
        lines.push("hint: run the same command to try the failed cells again; nothing that is done is lost".to_owned());
    }
    lines
}

/// The same for programs.
pub fn to_json(summary: &RunSummary, plan: &Plan, store: &Store) -> Value {
    let labels = labels::of(plan);
    let cell = |key: &CellKey| json!({ "key": key, "label": labels[key], "folder": store.cell_directory(key) });
    let with = |key: &CellKey, field: &str, value: Value| {
        let mut cell = cell(key);
        cell[field] = value;
        cell
    };
    json!({
        "experiment": plan.experiment.name,
        "profile": plan.experiment.profile,
        "cells": plan.cells.len(),
        "already_done": summary.already_done,
        "finished": summary.finished.iter().map(cell).collect::<Vec<_>>(),
        "failed": summary.failed.iter().map(|(key, reason)| with(key, "reason", json!(reason))).collect::<Vec<_>>(),
        "skipped": summary.skipped.iter().map(|(key, parent)| with(key, "parent", json!(parent))).collect::<Vec<_>>(),
        "left_in_queue": summary.left.iter().map(cell).collect::<Vec<_>>(),
        "stopped": summary.stopped.iter().map(cell).collect::<Vec<_>>(),
        "interrupted": summary.interrupted,
        "seconds": summary.elapsed.as_secs_f64(),
    })
}

#[cfg(test)]
mod tests {
    use tsbd_experiment::CellKind;
    use tsbd_orchestrator::{CellsPerGpu, GpuSharing};

    use super::*;

    #[test]
    fn cells_that_say_nothing_are_ended_on_gpus_alone() {
        let limit = |place| run_options(&Options { data: None, place }).unwrap().silence_limit;
        let gpus = Devices::Gpus { gpus: vec![], cells: CellsPerGpu::Auto, sharing: GpuSharing::OneProcess };
        assert_eq!(limit(Place::Local(gpus)), Some(GPU_SILENCE_LIMIT));
        assert_eq!(limit(Place::Local(Devices::Cpu { workers: 2 })), None);
        assert_eq!(limit(Place::Slurm), None);
    }

    #[test]
    fn cells_weigh_their_seconds_or_their_images_where_no_speed_is_known() {
        let key = |digit: char| digit.to_string().repeat(32).parse::<CellKey>().unwrap();
        let line = |digit: char, state: plan::State, seconds: Option<f64>, passes: f64| plan::Line {
            key: key(digit),
            label: String::new(),
            kind: CellKind::Train,
            state,
            seconds,
            passes: Some(passes),
            images: None,
        };
        let fresh = vec![line('1', plan::State::ToDo, None, 5e4), line('2', plan::State::ToDo, None, 2e3)];
        assert_eq!(weights(fresh), [(key('1'), 5e4), (key('2'), 2e3)].into());
        let known = vec![
            line('1', plan::State::Done, Some(7.0), 5e4),
            line('2', plan::State::ToDo, Some(3.0), 2e3),
            line('3', plan::State::ToDo, None, 1e3),
        ];
        assert_eq!(weights(known), [(key('2'), 3.0)].into());
    }
}
