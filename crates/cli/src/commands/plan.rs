//! `tsbd plan`: what would run, what is done, what it will cost.

use std::collections::{BTreeMap, HashMap, HashSet, btree_map, hash_map};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};
use tsbd_experiment::{
    Cell, CellKey, CellKind, Found, MethodParameters, OutcomeKind, Plan, RecordSummary, Store, outstanding,
};

use super::bench::{groundwork_seconds, training_images_per_second};
use crate::columns::Columns;
use crate::command_line::examples;
use crate::failure::{Exit, Failure, Outcome};
use crate::options::{Folders, Overrides};
use crate::progress::duration;
use crate::{labels, planning, terminal, workbench};

/// Show what an experiment would run, what is done already, and what the rest will cost
///
/// The experiment file is checked as `tsbd run` does; nothing is trained. Data sets that a run in this results folder has
/// noted are not opened again: `tsbd run` does that. Costs are those of similar cells that this results folder holds: of
/// those that a CPU computed, or of those of a GPU, whichever computed the newest. Cells that shared a GPU took longer than they
/// do alone, and what is estimated by them is too much. Where there is none, the images that go through the network are counted, and
/// the speed is that of trainings of the same network, or what --measure finds.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd plan experiments/table1.toml"
    "tsbd plan experiments/table1.toml --profile paper --measure"
    "tsbd plan experiments/table1.toml --profile paper --measure=cuda     one cell at a time"
    "tsbd plan experiments/table1.toml --set attack.poisoning_ratio=0.05 --set 'grid.attack=[\"badnets\"]'"
    "tsbd plan experiments/table1.toml --json | jq '.cells[] | select(.state != \"done\") | .label'"
))]
pub struct Arguments {
    /// Experiment file
    file: PathBuf,

    /// Time a few training steps here of each network that no finished cell has trained on a CPU, SSBA's encoder too; with
    /// --measure=cuda, on a GPU
    #[arg(long, value_name = "DEVICE", num_args = 0..=1, require_equals = true, default_missing_value = "cpu")]
    measure: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    overrides: Overrides,

    #[command(flatten)]
    folders: Folders,
}

/// Prints the plan.
pub fn run(arguments: Arguments) -> Outcome {
    let Arguments { file, measure, json, overrides, folders } = arguments;
    let plan = planning::to_look(&file, &overrides, &folders)?;
    let lines = survey(&plan, &Store::new(&folders.results), measure.as_deref())?;
    if json {
        terminal::print_json(&describe(&plan, &lines));
    } else {
        terminal::print(&render(&plan, &lines));
    }
    Ok(Exit::Done)
}

/// One cell of a plan, and what is known of it.
pub struct Line {
    /// The cell.
    pub key: CellKey,
    /// What people call it.
    pub label: String,
    /// What it does.
    pub kind: CellKind,
    /// What the store holds of it.
    pub state: State,
    /// Seconds it took, or will probably take.
    pub seconds: Option<f64>,
    /// [`Plan::image_passes`]: what it costs where no speed is known.
    pub passes: Option<f64>,
    /// Training images times epochs, for cells that train from the beginning.
    pub images: Option<usize>,
}

/// What the store holds of a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// A result.
    Done,
    /// Nothing yet: it is to run.
    ToDo,
    /// The last attempt failed with this reason: it is to run again.
    Failed(String),
    /// A result that cannot be believed, with the reason.
    Damaged(String),
    /// Nothing, and nothing needs it.
    NotNeeded,
}

impl State {
    /// In a word.
    pub fn word(&self) -> &'static str {
        match self {
            State::Done => "done",
            State::ToDo => "to do",
            State::Failed(_) => "failed",
            State::Damaged(_) => "damaged",
            State::NotNeeded => "not needed",
        }
    }

    /// Whether `tsbd run` would run it.
    pub fn is_outstanding(&self) -> bool {
        !matches!(self, State::Done | State::NotNeeded)
    }
}

/// Looks every cell up. Networks that no finished cell has trained, and what an attack trains by itself, are timed on the
/// device that `measure` names, if it does.
pub fn survey(plan: &Plan, store: &Store, measure: Option<&str>) -> Result<Vec<Line>, Failure> {
    let keep = |found: Found<RecordSummary>| match found {
        Found::Done(record) => {
            let RecordSummary { seconds, on_gpu, started_unix, .. } = *record;
            (State::Done, Some(Took { seconds, on_gpu, started_unix }))
        }
        Found::Failed(failure) => (State::Failed(failure.reason), None),
        Found::Damaged(damage) => (State::Damaged(damage.to_string()), None),
        Found::Nothing => (State::ToDo, None),
    };
    let found = store.look_at_all(plan.cells.keys(), keep).map_err(planning::store_failure)?;
    let done = found.iter().filter(|(_, (state, _))| *state == State::Done);
    let done: BTreeMap<CellKey, OutcomeKind> = done.map(|(key, _)| (key.clone(), OutcomeKind::Done)).collect();
    let wanted: HashSet<CellKey> = outstanding(plan, &done).into_iter().collect();
    let mut labels = labels::of(plan);
    let took = || found.iter().filter_map(|(key, (_, took))| Some((key, took.as_ref()?)));
    let newest = || took().max_by_key(|(_, took)| took.started_unix).is_some_and(|(_, took)| took.on_gpu);
    let on_gpu = measure.map_or_else(newest, |device| device != "cpu");
    let mut costs = Costs::of(plan, took().filter(|(_, took)| took.on_gpu == on_gpu));
    if let Some(device) = measure {
        costs.measure(device, wanted.iter().map(|key| &plan.cells[key]))?;
    }
    let mut lines = Vec::with_capacity(found.len());
    for ((key, cell), (_, (mut state, took))) in plan.cells.iter().zip(found) {
        if state != State::Done && !wanted.contains(key) {
            state = State::NotNeeded;
        }
        let images = cell.training.as_ref().zip(cell.dataset.train_images);
        lines.push(Line {
            key: key.clone(),
            label: labels.remove(key).expect("every cell has a label"),
            kind: cell.kind,
            state,
            seconds: took.map(|took| took.seconds).or_else(|| costs.estimate(cell)),
            passes: costs.passes(cell),
            images: images.map(|(training, images)| training.epochs * images),
        });
    }
    Ok(lines)
}

/// What a finished cell cost.
struct Took {
    seconds: f64,
    on_gpu: bool,
    started_unix: u64,
}

/// What cells cost on a CPU, or on a GPU.
struct Costs<'a> {
    plan: &'a Plan,
    /// Seconds of all finished cells that do the same work, and how many these are.
    took: HashMap<String, (f64, usize)>,
    /// Of each network that finished cells have trained, or that was timed, in each precision: images and their seconds.
    speeds: BTreeMap<(String, &'static str), (f64, f64)>,
    /// [`Plan::image_passes`] by kind and methods: cells share them, and reading their parameters takes long.
    passes: HashMap<(CellKind, [usize; 3]), Option<f64>>,
}

impl<'a> Costs<'a> {
    fn of<'k>(plan: &'a Plan, took: impl Iterator<Item = (&'k CellKey, &'k Took)>) -> Self {
        let mut costs = Self { plan, took: HashMap::new(), speeds: BTreeMap::new(), passes: HashMap::new() };
        for (key, Took { seconds, .. }) in took {
            let cell = &plan.cells[key];
            let work = costs.work(cell);
            let (all, count) = costs.took.entry(work).or_default();
            *all += seconds;
            *count += 1;
            if cell.kind == CellKind::Train
                && let (Some(network), Some(images)) = (costs.network(cell), costs.passes(cell))
            {
                let (all_images, all_seconds) = costs.speeds.entry((network, cell.precision().name())).or_default();
                *all_images += images;
                *all_seconds += seconds;
            }
        }
        costs
    }

    /// Times the networks of these cells whose speed is not known, and the groundworks of unknown cost, on this device.
    fn measure<'c>(&mut self, device: &str, cells: impl Iterator<Item = &'c Cell>) -> Result<(), Failure> {
        let trained = self.plan.cells.values().find_map(|cell| cell.training.as_ref());
        let batch = trained.map_or(128, |training| training.batch_size);
        for cell in cells {
            if cell.kind == CellKind::Prepare {
                self.measure_groundwork(device, cell)?;
                continue;
            }
            let (Some(name), Some(network)) = (self.network(cell), self.network_parameters(cell)) else { continue };
            let precision = cell.precision();
            if let btree_map::Entry::Vacant(unknown) = self.speeds.entry((name, precision.name())) {
                unknown.insert((training_images_per_second(&network, batch, precision, device)?, 1.0));
            }
        }
        Ok(())
    }

    fn measure_groundwork(&mut self, device: &str, cell: &Cell) -> Result<(), Failure> {
        let work = self.work(cell);
        let attack = workbench::configured(&cell.attack)?;
        if let (hash_map::Entry::Vacant(unknown), Some(groundwork), Some(facts)) =
            (self.took.entry(work), attack.groundwork(), self.plan.facts(cell))
            && let Some(seconds) = groundwork_seconds(groundwork, facts, device)?
        {
            unknown.insert((seconds, 1));
        }
        Ok(())
    }

    /// The mean of the cells that do the same work; else from the number of images and the speed of the network.
    fn estimate(&mut self, cell: &Cell) -> Option<f64> {
        let work = self.work(cell);
        if let Some((seconds, count)) = self.took.get(&work) {
            return Some(seconds / *count as f64);
        }
        let passes = self.passes(cell)?;
        let network = self.network(cell)?;
        let speed = self.speeds.get(&(network.clone(), cell.precision().name()));
        // Better that of another precision than none: the slowest, so that the estimate is not too low.
        let (images, seconds) = speed.or_else(|| {
            let others = self.speeds.iter().filter(|((name, _), _)| *name == network).map(|(_, speed)| speed);
            others.max_by(|one, other| (one.1 / one.0).total_cmp(&(other.1 / other.0)))
        })?;
        Some(passes * seconds / images)
    }

    fn network_parameters(&self, cell: &Cell) -> Option<tsbd_models::ModelParameters> {
        let facts = self.plan.facts(cell)?;
        Some(cell.model.as_ref()?.for_images(facts.classes, facts.size))
    }

    /// The network of a cell for its images, in words.
    fn network(&self, cell: &Cell) -> Option<String> {
        self.network_parameters(cell).map(|network| format!("{network:?}"))
    }

    fn passes(&mut self, cell: &Cell) -> Option<f64> {
        let of = |method: Option<&Arc<MethodParameters>>| method.map_or(0, |method| Arc::as_ptr(method).addr());
        let methods = [Some(&cell.attack), cell.defense.as_ref(), cell.unlearning.as_ref()].map(of);
        *self.passes.entry((cell.kind, methods)).or_insert_with(|| self.plan.image_passes(cell))
    }

    /// What cells of the same cost have in common: the network, images and training, defense, unlearning or measurement,
    /// whatever the attack and the seed.
    fn work(&mut self, cell: &Cell) -> String {
        // What a groundwork costs depends on the attack; what a training costs, on how long the attack lets it last.
        let attack = (cell.kind == CellKind::Prepare).then_some(&cell.attack);
        let passes = if cell.kind == CellKind::Train { self.passes(cell) } else { None };
        let methods = (cell.defense_name(), cell.measurement_name(), &cell.unlearning, attack, passes);
        serde_json::to_string(&(cell.kind, &cell.model, &cell.dataset, &cell.training, methods))
            .expect("cells have string keys only")
    }
}

fn word(kind: CellKind) -> &'static str {
    match kind {
        CellKind::Prepare => "prepare",
        CellKind::Train => "train",
        CellKind::Unlearn => "unlearn",
        CellKind::Defend => "defend",
        CellKind::Measure => "measure",
    }
}

/// The cells with their states, and a line that sums them up.
pub fn render(plan: &Plan, lines: &[Line]) -> String {
    let mut columns = Columns::headed(&["CELL", "KIND", "KEY", "STATE", "TIME"]);
    for line in lines {
        let time = match (line.seconds, line.state.is_outstanding()) {
            (Some(seconds), false) => duration(seconds),
            (Some(seconds), true) => format!("about {}", duration(seconds)),
            (None, _) => {
                line.images.map_or("unknown".to_owned(), |images| format!("unknown ({images} images to train on)"))
            }
        };
        columns.row([line.label.as_str(), word(line.kind), line.key.short(), line.state.word(), &time]);
    }
    format!(
        "{} ({}), profile {}\n\n{}\n{}\n",
        plan.experiment.title,
        plan.experiment.name,
        plan.experiment.profile,
        columns.render(terminal::stdout_width().max(100)),
        summary(plan, lines)
    )
}

fn summary(plan: &Plan, lines: &[Line]) -> String {
    let outstanding: Vec<_> = lines.iter().filter(|line| line.state.is_outstanding()).collect();
    let done = lines.iter().filter(|line| line.state == State::Done).count();
    let mut text =
        format!("{} grid points, {} cells: {done} done, {} to do", plan.points.len(), lines.len(), outstanding.len());
    let known: f64 = outstanding.iter().filter_map(|line| line.seconds).sum();
    let unknown = outstanding.iter().filter(|line| line.seconds.is_none()).count();
    if known > 0.0 {
        text.push_str(&format!(", about {} of work", duration(known)));
    }
    if unknown > 0 && known > 0.0 {
        text.push_str(&format!(" and {unknown} cells of unknown cost"));
    } else if unknown > 0 {
        text.push_str("; the cost is unknown until the first of its kind is done, or --measure times some steps");
    }
    text
}

fn describe(plan: &Plan, lines: &[Line]) -> Value {
    let cells: Vec<_> = lines
        .iter()
        .map(|line| {
            json!({
                "key": line.key, "label": line.label, "kind": line.kind, "state": line.state.word(),
                "seconds": line.seconds.filter(|_| !line.state.is_outstanding()),
                "estimated_seconds": line.seconds.filter(|_| line.state.is_outstanding()),
                "parents": plan.cells[&line.key].parents, "cell": plan.cells[&line.key],
            })
        })
        .collect();
    let outstanding: Vec<&Line> = lines.iter().filter(|line| line.state.is_outstanding()).collect();
    let total = json!({
        "cells": lines.len(),
        "done": lines.iter().filter(|line| line.state == State::Done).count(),
        "outstanding": outstanding.len(),
        "estimated_seconds": outstanding.iter().filter_map(|line| line.seconds).sum::<f64>(),
        "of_unknown_cost": outstanding.iter().filter(|line| line.seconds.is_none()).count(),
    });
    json!({
        "experiment": plan.experiment.name, "title": plan.experiment.title, "profile": plan.experiment.profile,
        "points": plan.points, "cells": cells,
        "total": total,
        "outstanding": outstanding.len(),
    })
}
