//! `tsbd report`: one page with everything that was found.

use std::path::{Path, PathBuf};

use clap::Args;
use tsbd_experiment::planning::PROFILES;
use tsbd_experiment::store::{Found, Verification, write_atomically};
use tsbd_experiment::{FigureSpec, Plan, RowState, Store, result_rows};
use tsbd_report::page::{CellSheet, CellState, Chapter, Figure, Page};

use crate::command_line::examples;
use crate::commands::{figure, table};
use crate::experiments;
use crate::failure::{Exit, Failure, Outcome};
use crate::options::{Folders, Overrides};
use crate::{labels, planning, terminal};

/// Write one HTML page with every table and figure found
///
/// Nothing is trained. The page needs no network and can be sent to others: tables that are sorted and filtered, figures, and for each
/// cell its configuration, its metrics over epochs, its cost and the end of its log. Cells that failed or have not been run are listed.
/// Experiments without any result are left out.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd report                                       every file of experiments/, every profile: report.html"
    "tsbd report experiments/table1.toml --profile quick --out table1.html"
))]
pub struct Arguments {
    /// Experiment files [default: all files of experiments/]
    files: Vec<PathBuf>,

    /// The page
    #[arg(long, value_name = "PATH", default_value = "report.html")]
    out: PathBuf,

    /// Folder in which `tsbd figure` left pictures of triggers, which take the data to draw
    #[arg(long, value_name = "DIR", default_value = "figures")]
    figures: PathBuf,

    #[command(flatten)]
    overrides: Overrides,

    #[command(flatten)]
    folders: Folders,
}

/// Collects and writes.
pub fn run(arguments: Arguments) -> Outcome {
    let Arguments { files, out, figures, overrides, folders } = arguments;
    let named = !files.is_empty();
    let files = if named { files } else { experiments::files(Path::new("experiments"))? };
    let profiles = match &overrides.profile {
        Some(profile) => vec![profile.clone()],
        None => PROFILES.iter().map(|(name, _)| (*name).to_owned()).collect(),
    };
    let mut chapters = Vec::new();
    for file in &files {
        let before = chapters.len();
        let mut refusals = Vec::new();
        for profile in &profiles {
            let overrides = Overrides { profile: Some(profile.clone()), ..overrides.clone() };
            match planning::to_look(file, &overrides, &folders) {
                Ok(plan) => chapters.extend(chapter(file, &plan, &figures, &overrides, &folders)?),
                // Without a run in this profile, nothing may be known of its data.
                Err(refusal) => refusals.push(refusal),
            }
        }
        if chapters.len() == before {
            match refusals.pop().filter(|_| refusals.len() + 1 == profiles.len()) {
                Some(refusal) if named => return Err(refusal),
                Some(_) => terminal::say(format!("{0}: left out, try `tsbd plan {0}`", file.display())),
                None => terminal::say(format!("{}: left out, nothing of it has been run", file.display())),
            }
        }
    }
    let page = Page { chapters }.html();
    write_atomically(&out, page.as_bytes()).map_err(planning::store_failure)?;
    terminal::print(&format!("{}\n", out.display()));
    Ok(Exit::Done)
}

/// The chapter of an experiment, if anything of it has been run.
fn chapter(
    file: &Path,
    plan: &Plan,
    figures: &Path,
    overrides: &Overrides,
    folders: &Folders,
) -> Result<Option<Chapter>, Failure> {
    let store = Store::new(&folders.results);
    let rows = result_rows(plan, &store).map_err(planning::store_failure)?;
    if rows.iter().all(|row| row.state == RowState::Missing) {
        return Ok(None);
    }
    let table = table::of_rows(&rows, plan)?;
    let figure = match plan.experiment.figure {
        None => None,
        // It takes the data to draw one.
        Some(FigureSpec::Triggers { .. }) => fs_err::read(figure::path(figures, plan, "png")).ok().map(Figure::Picture),
        // A page without a figure is better than none.
        Some(spec) => match figure::draw(spec, plan, folders) {
            Ok(drawing) => Some(Figure::Chart(drawing)),
            Err(_) => {
                terminal::say(format!("{0}: without its figure, try `tsbd figure {0}`", file.display()));
                None
            }
        },
    };
    let labels = labels::of(plan);
    let mut cells = Vec::with_capacity(plan.cells.len());
    for (key, cell) in &plan.cells {
        let state = match store.look(key, Verification::Sizes).map_err(planning::store_failure)? {
            Found::Done(record) => CellState::Done { record, log: end_of_log(&store.artefact(key, "log")) },
            Found::Failed(failure) => CellState::Failed(*failure),
            Found::Nothing | Found::Damaged(_) => CellState::Missing,
        };
        cells.push(CellSheet { key: key.clone(), label: labels[key].clone(), parameters: cell.to_toml(), state });
    }
    let command = format!("tsbd run {}{}", file.display(), overrides.as_typed());
    Ok(Some(Chapter { command, table, figure, rows, cells }))
}

/// The last lines of a log; nothing where there is none.
fn end_of_log(path: &Path) -> Vec<String> {
    const LINES: usize = 15;
    let text = fs_err::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].iter().map(|line| (*line).to_owned()).collect()
}
