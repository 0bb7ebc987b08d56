//! `tsbd defend`: one defense on one model in a file.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tsbd_attack::{DatasetFacts, Evaluation};
use tsbd_defense::{Context, DefenseObserver, Progress, TracePoint, Unlearning};
use tsbd_nn::Keeper;

use crate::columns::Columns;
use crate::command_line::examples;
use crate::failure::{Exit, Failure, Outcome};
use crate::options::{Computing, Folders, LearnedTrigger, OnePoint};
use crate::planning;
use crate::progress::duration;
use crate::terminal::{self, Talk};
use crate::workbench::{self, Workbench};

/// Repair one model in a file
///
/// The defense sees a share of the clean training set (--set defense.clean_ratio=0.05) and never the trigger. With
/// --attack, the model is measured with that attack's trigger before and after.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd defend tsbd --model model.safetensors --attack badnets --out repaired.safetensors"
    "tsbd defend fp --model backdoored.safetensors --profile paper --set defense.clean_ratio=0.01 --device cuda"
    "tsbd defend ft --model model.safetensors --dataset shapes --set model.width=8 --json"
))]
pub struct Arguments {
    /// Defense: one of `tsbd list defenses`
    name: String,

    /// The model: a state dict with PyTorch's names, as safetensors
    #[arg(long, value_name = "FILE")]
    model: PathBuf,

    /// Attack whose trigger the model is measured with; `none` measures accuracy alone
    #[arg(long, value_name = "NAME", default_value = "none")]
    attack: String,

    /// Write the repaired model to this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    #[command(flatten)]
    computing: Computing,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    learned_trigger: LearnedTrigger,

    #[command(flatten)]
    point: OnePoint,

    #[command(flatten)]
    folders: Folders,
}

/// Repairs, measures and prints.
pub fn run(arguments: Arguments, talk: &Talk) -> Outcome {
    let Arguments { name, model, attack, out, computing, json, learned_trigger, point, folders } = arguments;
    if let Some(path) = out.as_ref().filter(|path| path.exists()) {
        return Err(Failure::refused(format!("--out {}: the file exists", path.display())).hint("give a new name"));
    }
    let open = computing.open()?;
    let plan = planning::one_point(&attack, &name, &point, &folders.data.root())?;
    let cell = &plan.cells[&plan.points[0].cell];
    let workbench = Workbench::of(&plan, &folders, open, talk)?;
    let backdoored = workbench.load_model(&model)?;
    let poisoner = workbench.poison(&learned_trigger, Some(&model))?;
    let before = workbench.evaluate(&backdoored, &poisoner).map_err(workbench::failed)?;

    let method = cell.defense.as_ref().ok_or_else(|| {
        Failure::refused(format!("\"{name}\" repairs nothing")).hint("`tsbd list defenses` has those that do")
    })?;
    let entry = tsbd_defense::find(&method.name)
        .ok_or_else(|| Failure::refused(format!("there is no defense named \"{name}\"")))?;
    let defense = entry.from_parameters(&method.parameters).map_err(workbench::parameter_failure)?;
    let facts = DatasetFacts::of(&workbench.dataset);
    defense.check(workbench.architecture.as_ref(), &facts).map_err(workbench::parameter_failure)?;
    let train = Arc::clone(&workbench.dataset.train);
    let clean = defense.clean_subset(train, cell.seed).map_err(workbench::parameter_failure)?;

    let begin = Instant::now();
    let mut watch = Watch::new(talk);
    let mut context = Context {
        // As in the cells of a grid, so that the same model and seed give the same repair.
        streams: workbench.streams.child(Unlearning::STREAMS),
        device: workbench.device.clone(),
        normalization: workbench.dataset.normalization,
        augmentation: workbench.dataset.augmentation(),
        clean_test: Arc::clone(&workbench.dataset.test) as _,
        evaluate: &|model| workbench.evaluate(model, &poisoner),
        unlearned: None,
        observer: &mut watch,
    };
    let mut trace = Vec::new();
    let unlearned = match defense.unlearning() {
        Some(of) => Some(context.unlearn(&of, &backdoored, &clean, &mut trace).map_err(workbench::failed)?),
        None => None,
    };
    context.unlearned = unlearned.as_ref();
    context.streams = workbench.streams.child(&method.name);
    let repaired = defense.repair(&backdoored, &clean, &mut context).map_err(workbench::failed)?;
    trace.extend(repaired.trace);
    watch.bar.finish_and_clear();
    let seconds = begin.elapsed().as_secs_f64();
    let after = workbench.evaluate(&repaired.model, &poisoner).map_err(workbench::failed)?;
    if let Some(path) = &out {
        repaired.model.save(path).map_err(workbench::failed)?;
    }
    let der = tsbd_analysis::der(&before, &after);
    if json {
        terminal::print_json(&json!({
            "defense": method, "model": model, "out": out, "attack": attack, "dataset": cell.dataset.name,
            "before": before, "after": after, "der": der, "clean_images": clean.len(),
            "device": computing.name(), "seconds": seconds, "facts": repaired.facts, "changed": repaired.changed,
            "trace": trace,
        }));
        return Ok(Exit::Done);
    }
    let mut columns = Columns::headed(&["percent", "ACC", "ASR", "RA", "DER"]);
    for (when, evaluation, der) in [("before".to_owned(), &before, None), (format!("after {name}"), &after, der)] {
        let percent = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{:.2}", rate * 100.0));
        let Evaluation { acc, asr, ra, .. } = evaluation;
        columns.row([when, percent(Some(*acc)), percent(*asr), percent(*ra), percent(der)]);
    }
    terminal::print(&columns.render(terminal::stdout_width()));
    terminal::print(&format!("{} neurons pruned or reset, {}\n", repaired.changed.len(), duration(seconds)));
    match &out {
        Some(path) => terminal::print(&format!("the repaired model is {}\n", path.display())),
        None => terminal::say("hint: --out FILE keeps the repaired model"),
    }
    Ok(Exit::Done)
}

/// Shows the stages of a repair on standard error.
struct Watch {
    bar: ProgressBar,
    stage: String,
    quiet: bool,
}

impl Watch {
    fn new(talk: &Talk) -> Self {
        let target = if talk.quiet || !terminal::stderr_is_terminal() {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos} of {len}");
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(style.expect("the template is a constant that indicatif reads"));
        Self { bar, stage: String::new(), quiet: talk.quiet }
    }
}

impl Keeper for Watch {}

impl DefenseObserver for Watch {
    fn stage(&mut self, stage: &str, steps: usize) {
        self.bar.set_message(stage.to_owned());
        self.bar.set_length(steps as u64);
        self.bar.set_position(0);
        if self.stage != stage && self.bar.is_hidden() && !self.quiet {
            terminal::say(format!("{stage}: at most {steps} steps"));
        }
        self.stage = stage.to_owned();
    }

    fn progress(&mut self, progress: &Progress) -> ControlFlow<()> {
        self.bar.set_position(progress.done as u64);
        ControlFlow::Continue(())
    }

    fn trace(&mut self, point: &TracePoint) {
        tracing::info!("{} {:?}: {:?}", point.stage, point.epoch, point.metrics);
    }
}
