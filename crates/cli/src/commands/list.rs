//! `tsbd list`: what there is to choose from, straight from the registries.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tsbd_analysis::Scalar;
use tsbd_attack::Poisoning;
use tsbd_data::{DATASETS, DatasetEntry};
use tsbd_defense::DefenseCommon;
use tsbd_experiment::planning::PROFILES;
use tsbd_models::{MODELS, ModelEntry, ModelError, ModelParameters};

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
    #[command(after_help = examples!("tsbd list models" "tsbd list models preact-resnet18" "tsbd list models --json"))]
    Models(Named),
    /// Data sets; `tsbd data list` says which are on this machine
    #[command(after_help = examples!("tsbd list datasets" "tsbd list datasets cifar10" "tsbd list datasets --json"))]
    Datasets(Named),
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
struct Named {
    /// Only this one, with its keys in an experiment file
    name: Option<String>,

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
        What::Models(wanted) => models(&wanted)?,
        What::Datasets(wanted) => datasets(&wanted)?,
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
    /// The numbers that a measurement gives.
    scalars: &'static [Scalar],
    schema: fn() -> schemars::Schema,
}

fn attacks() -> Methods {
    let entries = tsbd_experiment::ATTACKS.iter().map(|entry| Method {
        name: entry.name,
        title: entry.title,
        paper: entry.paper,
        summary: entry.summary,
        revision: entry.revision,
        scalars: &[],
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
        scalars: &[],
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
        scalars: entry.scalars,
        schema: entry.schema,
    });
    Methods { kind: "measure", shared: None, entries: entries.collect() }
}

fn methods(methods: &Methods, detail: &Detail) -> Result<(), Failure> {
    let chosen = chosen(&methods.entries, |method| method.name, methods.kind, detail.name.as_deref())?;
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
    let texts: Vec<_> = chosen.iter().map(|method| method_page(method, methods, detail.name.is_some())).collect();
    terminal::print(&texts.join("\n"));
    if let (None, Some(page)) = (&detail.name, shared_page(methods)) {
        terminal::print(&format!("\n{page}"));
    }
    Ok(())
}

/// The entry that has this name, or all of them if none is given.
fn chosen<'e, Entry>(
    entries: &'e [Entry],
    name_of: impl Fn(&Entry) -> &'static str,
    kind: &str,
    name: Option<&str>,
) -> Result<Vec<&'e Entry>, Failure> {
    let Some(name) = name else { return Ok(entries.iter().collect()) };
    let found = entries.iter().find(|entry| name_of(entry) == name).ok_or_else(|| {
        let known: Vec<_> = entries.iter().map(name_of).collect();
        Failure::refused(format!("there is no {kind} named \"{name}\""))
            .hint(format!("known are: {}", known.join(", ")))
    })?;
    Ok(vec![found])
}

/// One entry: what is to be said of it, and its parameters in their section of an experiment file.
fn page(name: &str, title: &str, about: &[&str], section: &str, parameters: &schemars::Schema) -> String {
    let width = terminal::stdout_width();
    let mut text = format!("{name}: {title}\n");
    for line in about {
        text.push_str(&format!("    {}\n", fold(line, width - 4, 4)));
    }
    let own = parameters::of_schema(parameters);
    if own.is_empty() {
        text.push_str("    no parameters of its own\n");
    } else {
        text.push_str(&format!("\n  [{section}]\n"));
        text.push_str(&parameters::render(&own, "", 2, width));
    }
    text
}

/// One method with its parameters, and the numbers that it gives if it is a measurement.
fn method_page(method: &Method, methods: &Methods, with_shared: bool) -> String {
    let Method { name, title, paper, summary, scalars, schema, .. } = method;
    let mut text = page(name, title, &[summary, paper], &format!("{}s.{name}", methods.kind), &schema());
    if !scalars.is_empty() {
        text.push_str(&format!("\n{}", numbers(scalars)));
    }
    if let (true, Some(page)) = (with_shared, shared_page(methods)) {
        text.push_str(&format!("\n{page}"));
    }
    text
}

/// The numbers that a measurement gives.
fn numbers(scalars: &[Scalar]) -> String {
    let width = terminal::stdout_width();
    let mut text =
        "  numbers that it gives: columns of tables, by default or as `metrics` of [table] names them\n".to_owned();
    for Scalar { name, meaning } in scalars {
        text.push_str(&format!("  {name}\n      {}\n", fold(&meaning.replace('`', ""), width - 6, 6)));
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
    let mut value = json!({
        "name": method.name,
        "title": method.title,
        "paper": method.paper,
        "summary": method.summary,
        "revision": method.revision,
        "parameters": (method.schema)(),
        "shared_parameters": shared,
    });
    if !method.scalars.is_empty() {
        let metric = |scalar: &Scalar| json!({ "name": scalar.name, "meaning": scalar.meaning });
        value["metrics"] = method.scalars.iter().map(metric).collect();
    }
    value
}

fn models(wanted: &Named) -> Result<(), Failure> {
    let chosen = chosen(MODELS, |model| model.name, "model", wanted.name.as_deref())?;
    if wanted.format.json {
        let list = chosen.iter().map(|model| {
            json!({
                "name": model.name, "title": model.title, "summary": model.summary,
                "smallest_image": model.smallest_image, "parameters": model_parameters(model),
            })
        });
        terminal::print_json(&list.collect());
        return Ok(());
    }
    if wanted.name.is_some() {
        for model in chosen {
            let images = format!("for images of at least {0}x{0} pixels", model.smallest_image);
            let parameters = model_parameters(model);
            terminal::print(&page(model.name, model.title, &[model.summary, &images], "model", &parameters));
        }
        return Ok(());
    }
    let mut columns = Columns::headed(&["NAME", "TITLE", "WHAT IT IS"]);
    for model in chosen {
        columns.row([model.name, model.title, model.summary]);
    }
    terminal::print(&columns.render(terminal::stdout_width()));
    Ok(())
}

/// The keys of `[model]` beside the name.
fn model_parameters(model: &ModelEntry) -> schemars::Schema {
    let widths: Vec<(&str, i64)> = PROFILES
        .iter()
        .filter_map(|(profile, text)| {
            let width = text.parse::<toml::Table>().ok()?.get("model")?.get("width")?.as_integer()?;
            Some((*profile, width))
        })
        .collect();
    let told: Vec<String> = widths.iter().map(|(profile, width)| format!("{profile} {width}")).collect();
    let mut width = json!({
        "type": "integer",
        "description": format!("Channels that the network begins with. In the profiles: {}.", told.join(", ")),
        // What is published is the default of everything.
        "default": widths.iter().find(|(profile, _)| *profile == "paper").map(|(_, width)| width),
    });
    // Who makes the network knows what it can be.
    let refused = |width| {
        let name = model.name.to_owned();
        tsbd_models::build(&ModelParameters { name, width, classes: 2, image_size: model.smallest_image }).err()
    };
    if let Some(ModelError::TooSmall { least, .. }) = refused(0) {
        width["minimum"] = json!(least);
    }
    if let Some(ModelError::TooLarge { most, .. }) = refused(usize::MAX) {
        width["maximum"] = json!(most);
    }
    schemars::json_schema!({ "type": "object", "properties": { "width": width } })
}

fn datasets(wanted: &Named) -> Result<(), Failure> {
    let chosen = chosen(DATASETS, |dataset| dataset.name, "data set", wanted.name.as_deref())?;
    if wanted.format.json {
        let list = chosen.iter().map(|dataset| {
            json!({
                "name": dataset.name, "title": dataset.title, "paper": dataset.paper, "summary": dataset.summary,
                "classes": dataset.classes, "train_images": dataset.train_images,
                "test_images": dataset.test_images, "image_size": dataset.image_size,
                "official": dataset.official.is_some(), "parameters": dataset_parameters(dataset),
            })
        });
        terminal::print_json(&list.collect());
        return Ok(());
    }
    if wanted.name.is_some() {
        for dataset in chosen {
            let classes = format!("{} classes", dataset.classes);
            let place = match dataset.official {
                Some(_) => "`tsbd data list` says whether it is on this machine",
                None => "nothing to download",
            };
            let about = [dataset.summary, dataset.paper, &classes, place];
            terminal::print(&page(dataset.name, dataset.title, &about, "data", &dataset_parameters(dataset)));
        }
        return Ok(());
    }
    let mut columns = Columns::headed(&["NAME", "CLASSES", "TRAIN", "TEST", "PIXELS", "WHAT IT IS"]);
    for dataset in chosen {
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
    Ok(())
}

/// The keys of `[data]` beside the name. Profiles may say otherwise than the data set.
fn dataset_parameters(dataset: &DatasetEntry) -> schemars::Schema {
    let is_drawn = dataset.official.is_none();
    let count = |images: usize, purpose: &str| {
        let which = if is_drawn { "as many are drawn" } else { "the first ones of the data set" };
        let description = format!("Images to {purpose} with: {which}.");
        let mut count = json!({ "type": "integer", "minimum": 1, "default": images, "description": description });
        if !is_drawn {
            count["maximum"] = json!(images);
        }
        count
    };
    let size = if is_drawn { "they are drawn at this size" } else { "they are resized to it" };
    let mut properties = json!({
        "train_images": count(dataset.train_images, "train"),
        "test_images": count(dataset.test_images, "measure"),
        "image_size": {
            "type": "integer", "default": dataset.image_size,
            "description": format!("Height and width of the images in pixels: {size}."),
        },
    });
    if is_drawn {
        properties["seed"] =
            json!({ "type": "integer", "minimum": 0, "default": 0, "description": "Seed of the drawing." });
    }
    schemars::json_schema!({ "type": "object", "properties": properties })
}
