//! `tsbd report`: one page with everything that was found.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use clap::Args;
use tsbd_experiment::planning::PROFILES;
use tsbd_experiment::store::{Found, Runs, Verification, write_atomically};
use tsbd_experiment::{CellKey, FigureSpec, Plan, RowState, Store, result_rows};
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
/// cell its configuration, its metrics over epochs, its cost and the end of its log. Cells that failed or have not been run are
/// listed. Experiments without any result are left out. A page of everything would be too large where there are very
/// many cells: it says what it leaves out. Tables of the paper come first, then its figures, then everything else.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd report                                       every file of experiments/, in the profiles it was run in"
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
    let runs = Store::new(&folders.results).runs().map_err(planning::store_failure)?;
    let mut chapters = Vec::new();
    for file in &files {
        let before = chapters.len();
        let mut refusals = Vec::new();
        let profiles = profiles(file, &overrides, &runs);
        for profile in &profiles {
            let overrides = Overrides { profile: profile.clone(), ..overrides.clone() };
            match planning::to_look(file, &overrides, &folders) {
                Ok(plan) => {
                    let overrides = Overrides { profile: Some(plan.experiment.profile.clone()), ..overrides };
                    chapters.extend(chapter(file, &plan, &figures, &overrides, &folders)?);
                }
                // Without a run in this profile, nothing may be known of its data.
                Err(refusal) => refusals.push(refusal),
            }
        }
        if chapters.len() == before {
            match refusals.pop().filter(|_| refusals.len() + 1 == profiles.len()) {
                Some(refusal) if named => return Err(refusal),
                Some(_) => {
                    let folder_flags = folders.as_typed();
                    terminal::say(format!("{0}: left out, try `tsbd plan {0}{folder_flags}`", file.display()));
                }
                None => terminal::say(format!("{}: left out, nothing of it has been run", file.display())),
            }
        }
    }
    if !named {
        chapters.sort_by_key(|chapter| place_in_the_paper(&chapter.table.title));
    }
    let page = Page { chapters }.html();
    write_atomically(&out, page.as_bytes()).map_err(planning::store_failure)?;
    terminal::print(&format!("{}\n", out.display()));
    Ok(Exit::Done)
}

/// Where readers look for a chapter: the paper's tables, its figures, then what it does not have.
fn place_in_the_paper(title: &str) -> usize {
    ["Table ", "Figure "].iter().position(|word| title.starts_with(word)).unwrap_or(2)
}

/// The profiles of which a file's results are shown: the one asked for, else those in which it was run, else its own. Cells
/// may be there in others too, but as results of another experiment.
fn profiles(file: &Path, overrides: &Overrides, runs: &Runs) -> Vec<Option<String>> {
    let name = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    match (&overrides.profile, runs.get(&name)) {
        (None, Some(run)) => {
            let rank = |profile: &String| PROFILES.iter().position(|(name, _)| name == profile);
            let mut run: Vec<&String> = run.iter().collect();
            run.sort_by_key(|profile| (rank(profile).is_none(), rank(profile)));
            run.into_iter().cloned().map(Some).collect()
        }
        (profile, _) => vec![profile.clone()],
    }
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
    let folder_flags = folders.as_typed();
    let figure = match plan.experiment.figure {
        None => None,
        // It takes the data to draw one.
        Some(FigureSpec::Triggers { image }) => {
            let picture = figure::left_picture(figures, plan, image);
            if picture.is_none() {
                let (file, flags) = (file.display(), overrides.as_typed());
                terminal::say(format!("{file}: without its picture, try `tsbd figure {file}{flags}{folder_flags}`"));
            }
            picture.map(Figure::Picture)
        }
        // A page without a figure is better than none.
        Some(spec) => match figure::draw(spec, plan, folders) {
            Ok(drawing) => Some(Figure::Chart(drawing)),
            Err(_) => {
                let (file, flags) = (file.display(), overrides.as_typed());
                terminal::say(format!("{file}: without its figure, try `tsbd figure {file}{flags}{folder_flags}`"));
                None
            }
        },
    };
    let labels = labels::of(plan);
    let (mut cells, mut missing) = (Vec::new(), Vec::new());
    // Parents come first: each cell that failed, or could not run, with the one that is to blame.
    let mut blamed: HashMap<&CellKey, &CellKey> = HashMap::new();
    for (key, cell) in &plan.cells {
        let state = match store.look(key, Verification::Sizes).map_err(planning::store_failure)? {
            Found::Done(record) => CellState::Done { record, log: end_of_log(&store.artefact(key, "log")) },
            Found::Failed(failure) => {
                blamed.insert(key, key);
                CellState::Failed(*failure)
            }
            Found::Nothing | Found::Damaged(_) => {
                let to_blame = cell.parents.iter().find_map(|parent| blamed.get(parent).copied());
                blamed.extend(to_blame.map(|parent| (key, parent)));
                let why = to_blame.map_or_else(String::new, |parent| format!(", because {} failed", labels[parent]));
                missing.push(format!("{}{why}", labels[key]));
                continue;
            }
        };
        cells.push(CellSheet { key: key.clone(), label: labels[key].clone(), parameters: cell.to_toml(), state });
    }
    let command = format!("tsbd run {}{}{folder_flags}", file.display(), overrides.as_typed());
    Ok(Some(Chapter { command, table, figure, rows, cells, missing }))
}

/// The last lines of a log; nothing where there is none.
fn end_of_log(path: &Path) -> Vec<String> {
    const LINES: usize = 15;
    let text = fs_err::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].iter().map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_come_before_figures_and_both_before_the_rest() {
        let mut titles = ["TSBD over the radius r", "Figure 4: coverage", "A small grid", "Figure 1: x", "Table 1: y"];
        titles.sort_by_key(|title| place_in_the_paper(title));
        assert_eq!(
            titles,
            ["Table 1: y", "Figure 4: coverage", "Figure 1: x", "TSBD over the radius r", "A small grid"]
        );
    }
}
