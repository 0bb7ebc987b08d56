//! `tsbd evaluate`: ACC, ASR and RA of a model in a file.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use tsbd_attack::Evaluation;

use crate::columns::Columns;
use crate::command_line::examples;
use crate::failure::{Exit, Outcome};
use crate::options::{Computing, Folders, LearnedTrigger, OnePoint};
use crate::planning;
use crate::terminal::{self, Talk};
use crate::workbench::{self, Workbench};

/// Measure a model: accuracy (ACC), attack success rate (ASR), recovery accuracy (RA)
///
/// ASR and RA are shares of the triggered test images whose own class is not the target. The model's network and data
/// set are those of the profile, changed with --dataset and --set.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd evaluate --model model.safetensors --attack badnets"
    "tsbd evaluate --model backdoored.safetensors --attack blended --profile paper --device cuda"
    "tsbd evaluate --model model.safetensors --attack none --dataset shapes --set model.width=8 --json"
))]
pub struct Arguments {
    /// The model: a state dict with PyTorch's names, as safetensors
    #[arg(long, value_name = "FILE")]
    model: PathBuf,

    /// Attack whose trigger is tried: one of `tsbd list attacks`; `none` measures ACC alone
    #[arg(long, value_name = "NAME")]
    attack: String,

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

/// Measures and prints.
pub fn run(arguments: Arguments, talk: &Talk) -> Outcome {
    let Arguments { model, attack, computing, json, learned_trigger, point, folders } = arguments;
    let open = computing.open()?;
    let plan = planning::one_point(&attack, "none", &point, &folders.data.root())?;
    let workbench = Workbench::of(&plan, &folders, open, talk)?;
    let weights = workbench.load_model(&model)?;
    let poisoner = workbench.poison(&learned_trigger, Some(&model))?;
    let evaluation = workbench.evaluate(&weights, &poisoner).map_err(workbench::failed)?;
    if json {
        terminal::print_json(&json!({
            "model": model, "attack": attack, "dataset": workbench.dataset.name, "device": computing.name(),
            "metrics": evaluation,
        }));
    } else {
        terminal::print(&describe(&evaluation));
    }
    Ok(Exit::Done)
}

/// The rates for a person, in percent.
pub fn describe(evaluation: &Evaluation) -> String {
    let Evaluation { acc, asr, ra, clean_images, triggered_images } = evaluation;
    let mut columns = Columns::default();
    let percent = |rate: &f64| format!("{:6.2} %", rate * 100.0);
    columns.row(["ACC".to_owned(), percent(acc), format!("of {clean_images} clean test images get their label")]);
    for (name, rate, what) in [("ASR", asr, "the target label"), ("RA", ra, "their true label")] {
        if let Some(rate) = rate {
            columns.row([
                name.to_owned(),
                percent(rate),
                format!("of {triggered_images} triggered test images get {what}"),
            ]);
        }
    }
    columns.render(terminal::stdout_width())
}
