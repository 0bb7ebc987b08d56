//! `tsbd table`: tables from results, in any format.

use std::path::PathBuf;

use clap::Args;
use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser;
use tsbd_experiment::{Plan, ResultRow, RowState, Store, neuron_rows, result_rows, unlearned_rows};
use tsbd_report::{Emphasis, Error, Format, Table, Titles};

use crate::command_line::examples;
use crate::failure::{Exit, Failure, Outcome};
use crate::options::{Folders, Overrides};
use crate::{planning, terminal};

/// Print the table of an experiment from the results there are
///
/// Nothing is trained: cells without a result are marked as missing. Rates are percentages, numbers of measurements are
/// printed as they are.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd table experiments/demo.toml                           on the terminal"
    "tsbd table experiments/table1.toml --format tex --out table1.tex"
    "tsbd table experiments/table1.toml --profile paper --format md"
    "tsbd table experiments/table1.toml --compare published     with the nearest published numbers below each line"
    "tsbd table experiments/table1.toml --long --format csv     one row per finished result, for other programs"
    "tsbd table experiments/table1.toml --long --format parquet --out table1.parquet"
    "tsbd table nwc.toml --neurons --format parquet --out nwc.parquet    what measurements found of each neuron"
))]
pub struct Arguments {
    /// Experiment file
    file: PathBuf,

    /// Format: text (for a terminal, in blocks that fit it), md, csv, tex (booktabs), parquet or json
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = format_parser())]
    format: Format,

    /// One row per finished model, repair or measurement of the grid with every metric, instead of the experiment's own table
    #[arg(long)]
    long: bool,

    /// One row per neuron and vector that measurements, unlearnings and defenses left (layer, neuron, value), as csv, parquet
    /// or json
    #[arg(long, conflicts_with = "long")]
    neurons: bool,

    /// Add the nearest published numbers below each line, and their source
    #[arg(long, value_name = "WHAT", value_parser = ["published"], conflicts_with_all = ["long", "neurons"])]
    compare: Option<String>,

    /// Write to this file instead of standard output
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,

    #[command(flatten)]
    overrides: Overrides,

    #[command(flatten)]
    folders: Folders,
}

fn format_parser() -> impl TypedValueParser<Value = Format> {
    PossibleValuesParser::new(Format::ALL.map(Format::name)).try_map(|name| name.parse::<Format>())
}

/// Renders and prints, or writes.
pub fn run(arguments: Arguments) -> Outcome {
    let Arguments { file, format, long, neurons, compare, out, overrides, folders } = arguments;
    if format.is_binary() && out.is_none() {
        return Err(Failure::refused(format!("--format {format}: not for a terminal"))
            .hint(format!("name a file: --out table.{format}")));
    }
    let plan = planning::to_look(&file, &overrides, &folders)?;
    let store = Store::new(&folders.results);
    let rows = result_rows(&plan, &store).map_err(planning::store_failure)?;
    let bold = out.is_none() && terminal::colour_on_stdout();
    let emphasis = if bold { Emphasis::Bold } else { Emphasis::Star };
    let mut without_comparison = None;
    let bytes = if neurons {
        let mut grid = rows.clone();
        grid.extend(unlearned_rows(&plan, &rows, &store).map_err(planning::store_failure)?);
        let cells = neuron_rows(&grid, &store).map_err(planning::store_failure)?;
        tsbd_report::neurons(&cells, &grid).and_then(|table| table.render(format))
    } else if long {
        tsbd_report::long(&rows).and_then(|table| table.render(format))
    } else {
        let table = tsbd_report::table(&rows, &plan.experiment, &titles());
        table.and_then(|mut table| {
            match compare.as_ref().map(|_| table.clone().with_published()) {
                None => {}
                Some(Ok(published)) => table = published,
                // Our own numbers are there all the same.
                Some(Err(error)) => without_comparison = Some(error),
            }
            match format {
                Format::Text if out.is_none() => Ok(table.text(emphasis, terminal::width_of_stdout()).into_bytes()),
                _ => table.render(format, emphasis),
            }
        })
    };
    let bytes = bytes.map_err(|error| {
        let exit = if matches!(error, Error::Unsupported { .. }) { Exit::Refused } else { Exit::Failed };
        Failure::from_error(exit, error)
    })?;
    match &out {
        None => terminal::print(&String::from_utf8_lossy(&bytes)),
        Some(path) => {
            tsbd_experiment::store::write_atomically(path, &bytes).map_err(planning::store_failure)?;
            terminal::say(format!("wrote {}", path.display()));
        }
    }
    if let Some(error) = without_comparison {
        terminal::say(format!("warning: no comparison: {error}"));
        terminal::say("hint: published are rates of attacks against defenses on cifar10 and tiny-imagenet");
    }
    let missing = rows.iter().filter(|row| row.state != RowState::Done).count();
    if missing > 0 {
        terminal::say(format!("{missing} of {} grid points have no result yet", rows.len()));
        terminal::say(format!("hint: tsbd run {}{}{}", file.display(), overrides.as_typed(), folders.as_typed()));
    }
    Ok(Exit::Done)
}

/// The experiment's table of these rows.
pub fn of_rows(rows: &[ResultRow], plan: &Plan) -> Result<Table, Failure> {
    let table = tsbd_report::table(rows, &plan.experiment, &titles());
    table.map_err(|error| Failure::from_error(Exit::Failed, error))
}

/// What the registries call things.
pub fn titles() -> Titles {
    Titles::new()
        .attacks(tsbd_experiment::ATTACKS.iter().map(|entry| (entry.name, entry.title)))
        .defenses(tsbd_defense::DEFENSES.iter().map(|entry| (entry.name, entry.title)))
        .measures(tsbd_analysis::MEASUREMENTS.iter().map(|entry| (entry.name, entry.title)))
        .datasets(tsbd_data::DATASETS.iter().map(|entry| (entry.name, entry.title)))
        .models(tsbd_models::MODELS.iter().map(|entry| (entry.name, entry.title)))
        // As Figure 8 of the TSBD paper names the two.
        .choices("defenses.fp.order", [("activation", "FP"), ("nwc", "NWC-FP")])
}
