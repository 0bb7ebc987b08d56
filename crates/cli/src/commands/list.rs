//! `tsbd list`: what there is to choose from, straight from the registries.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tsbd_attack::Poisoning;
use tsbd_defense::DefenseCommon;

use crate::columns::{Columns, fold};
use crate::command_line::examples;
use crate::experiments;
use crate::failure::{Exit, Failure, Outcome};
use crate::parameters;
use crate::terminal;

/// List attacks, defenses, measurements, models, data sets or experiments
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd list attacks                       names and what they do"
    "tsbd list attacks badnets               one attack: its paper, parameters and defaults"
    "tsbd list defenses --parameters         the same for every defense"
    "tsbd list experiments                   the experiment files in ./experiments"
    "tsbd list attacks --json | jq '.[].name'"
))]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Attacks: how training images are poisoned
    #[command(after_help = examples!("tsbd list attacks" "tsbd list attacks blended" "tsbd list attacks --parameters"))]
    Attacks(Detail),
    /// Defenses: how a backdoored model is repaired
    #[command(after_help = examples!("tsbd list defenses" "tsbd list defenses tsbd" "tsbd list defenses --parameters"))]
    Defenses(Detail),
    /// Measurements: what can be found out about the neurons of a model
    #[command(after_help = examples!("tsbd list measures" "tsbd list measures nwc" "tsbd list measures --parameters"))]
    Measures(Detail),
    /// Networks
    #[command(after_help = examples!("tsbd list models" "tsbd list models --json"))]
    Models(Format),
    /// Data sets, and whether they are on this machine
    #[command(after_help = examples!("tsbd list datasets" "tsbd list datasets --json"))]
    Datasets(Format),
    /// Experiment files
    #[command(after_help = examples!("tsbd list experiments" "tsbd list experiments --folder my-experiments"))]
    Experiments(Experiments),
}

#[derive(Args, Debug)]
struct Detail {
    /// Only this one, with its parameters
    name: Option<String>,

    /// Show the parameters: kind, default and meaning
    #[arg(long)]
    parameters: bool,

    #[command(flatten)]
    format: Format,
}

#[derive(Args, Debug)]
struct Format {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct Experiments {
    /// Folder with experiment files
    #[arg(long, value_name = "DIR", default_value = "experiments")]
    folder: std::path::PathBuf,

    #[command(flatten)]
    format: Format,
}

/// Prints the list.
pub fn run(arguments: Arguments) -> Outcome {
    match arguments.what {
        What::Attacks(detail) => methods(&attacks(), &detail)?,
        What::Defenses(detail) => methods(&defenses(), &detail)?,
        What::Measures(detail) => methods(&measures(), &detail)?,
        What::Models(format) => models(&format),
        What::Datasets(format) => datasets(&format),
        What::Experiments(wanted) => experiments::list(&wanted.folder, wanted.format.json)?,
    }
    Ok(Exit::Done)
}

/// Attacks, defenses or measurements: what their registries have in common.
struct Methods {
    kind: &'static str,
    /// Section of an experiment file with the parameters that all share, and these, if they share any.
    shared: Option<(&'static str, schemars::Schema)>,
    entries: Vec<Method>,
}

/// One attack, defense or measurement.
struct Method {
    name: &'static str,
    title: &'static str,
    paper: &'static str,
    summary: &'static str,
    revision: u32,
    schema: fn() -> schemars::Schema,
}

fn attacks() -> Methods {
    let entries = tsbd_experiment::ATTACKS.iter().map(|entry| Method {
        name: entry.name,
        title: entry.title,
        paper: entry.paper,
        summary: entry.summary,
        revision: entry.revision,
        schema: entry.schema,
    });
    Methods { kind: "attack", shared: Some(("attack", schemars::schema_for!(Poisoning))), entries: entries.collect() }
}

fn defenses() -> Methods {
    let entries = tsbd_defense::DEFENSES.iter().map(|entry| Method {
        name: entry.name,
        title: entry.title,
        paper: entry.paper,
        summary: entry.summary,
        revision: entry.revision,
        schema: entry.schema,
    });
    Methods {
        kind: "defense",
        shared: Some(("defense", schemars::schema_for!(DefenseCommon))),
        entries: entries.collect(),
    }
}

fn measures() -> Methods {
    let entries = tsbd_analysis::MEASUREMENTS.iter().map(|entry| Method {
        name: entry.name,
        title: entry.title,
        paper: entry.paper,
        summary: entry.summary,
        revision: entry.revision,
        schema: entry.schema,
    });
    Methods { kind: "measure", shared: None, entries: entries.collect() }
}

fn methods(methods: &Methods, detail: &Detail) -> Result<(), Failure> {
    let chosen: Vec<&Method> = match &detail.name {
        None => methods.entries.iter().collect(),
        Some(name) => vec![methods.entries.iter().find(|method| method.name == name).ok_or_else(|| {
            let known: Vec<_> = methods.entries.iter().map(|method| method.name).collect();
            Failure::refused(format!("there is no {} named \"{name}\"", methods.kind))
                .hint(format!("known are: {}", known.join(", ")))
        })?],
    };
    if detail.format.json {
        let list =
            chosen.iter().map(|method| describe(method, methods.shared.as_ref().map(|(_, schema)| schema))).collect();
        terminal::print_json(&Value::Array(list));
        return Ok(());
    }
    if detail.name.is_none() && !detail.parameters {
        let mut columns = Columns::headed(&["NAME", "TITLE", "WHAT IT DOES"]);
        for method in chosen {
            columns.row([method.name, method.title, method.summary]);
        }
        terminal::print(&columns.render(terminal::stdout_width()));
        return Ok(());
    }
    let texts: Vec<_> = chosen.iter().map(|method| page(method, methods, detail.name.is_some())).collect();
    terminal::print(&texts.join("\n"));
    if let (None, Some(page)) = (&detail.name, shared_page(methods)) {
        terminal::print(&format!("\n{page}"));
    }
    Ok(())
}

/// One method with its parameters.
fn page(method: &Method, methods: &Methods, with_shared: bool) -> String {
    let width = terminal::stdout_width();
    let Method { name, title, paper, summary, schema, .. } = method;
    let mut text = format!("{name}: {title}\n    {}\n    {paper}\n", fold(summary, width - 4, 4));
    let own = parameters::of_schema(&schema());
    if own.is_empty() {
        text.push_str("    no parameters of its own\n");
    } else {
        text.push_str(&format!("\n  [{}s.{name}]\n", methods.kind));
        text.push_str(&parameters::render(&own, "", 2, width));
    }
    if let (true, Some(page)) = (with_shared, shared_page(methods)) {
        text.push_str(&format!("\n{page}"));
    }
    text
}

/// The parameters that all attacks, or all defenses, share.
fn shared_page(methods: &Methods) -> Option<String> {
    let (section, schema) = methods.shared.as_ref()?;
    let shared = parameters::of_schema(schema);
    let parameters = parameters::render(&shared, "", 2, terminal::stdout_width());
    Some(format!("  [{section}]    shared by every {}\n{parameters}", methods.kind))
}

fn describe(method: &Method, shared: Option<&schemars::Schema>) -> Value {
    json!({
        "name": method.name,
        "title": method.title,
        "paper": method.paper,
        "summary": method.summary,
        "revision": method.revision,
        "parameters": (method.schema)(),
        "shared_parameters": shared,
    })
}

fn models(format: &Format) {
    if format.json {
        let list = tsbd_models::MODELS
            .iter()
            .map(|model| json!({ "name": model.name, "title": model.title, "summary": model.summary }));
        return terminal::print_json(&list.collect());
    }
    let mut columns = Columns::headed(&["NAME", "TITLE", "WHAT IT IS"]);
    for model in tsbd_models::MODELS {
        columns.row([model.name, model.title, model.summary]);
    }
    terminal::print(&columns.render(terminal::stdout_width()));
}

fn datasets(format: &Format) {
    if format.json {
        let list = tsbd_data::DATASETS.iter().map(|dataset| {
            json!({
                "name": dataset.name, "title": dataset.title, "summary": dataset.summary,
                "classes": dataset.classes, "train_images": dataset.train_images,
                "test_images": dataset.test_images, "image_size": dataset.image_size,
                "downloaded": dataset.official.is_some(),
            })
        });
        return terminal::print_json(&list.collect());
    }
    let mut columns = Columns::headed(&["NAME", "CLASSES", "TRAIN", "TEST", "PIXELS", "WHAT IT IS"]);
    for dataset in tsbd_data::DATASETS {
        columns.row([
            dataset.name.to_owned(),
            dataset.classes.to_string(),
            dataset.train_images.to_string(),
            dataset.test_images.to_string(),
            format!("{0}x{0}", dataset.image_size),
            dataset.summary.to_owned(),
        ]);
    }
    terminal::print(&columns.render(terminal::stdout_width()));
}
