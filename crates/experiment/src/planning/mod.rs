//! From an experiment file to a checked [`Plan`].
//!
//! [`plan`] lays profile, file and `--set` over each other, spans the grid, and checks every point of it as it would
//! run: names against the registries, every parameter by the method that reads it, combinations against the data set
//! and the network. All that is wrong is told at once; nothing has run by then.

mod cells;
mod grid;
pub(crate) mod images;
mod layers;
mod methods;
mod presentation;
mod section;
mod sections;
mod slurm;

use std::collections::HashSet;
use std::path::PathBuf;

pub use images::{ImagesFrom, ImagesIdentity, KnownImages};
pub use layers::PROFILES;
pub use slurm::SlurmParameters;

use crate::cell::{Cell, CellKind};
use crate::diagnostic::{Problems, Refusal};
use crate::document::{Content, Table};
use crate::plan::{Experiment, Plan};
use crate::setting::Setting;
use cells::Cells;

/// What is to be planned.
#[derive(Debug, Clone)]
pub struct Request {
    /// The experiment.
    pub source: ExperimentSource,
    /// `--profile`, which comes before the file's.
    pub profile: Option<String>,
    /// `--set`, later ones over earlier ones.
    pub set: Vec<Setting>,
    /// Where data sets are looked up.
    pub images: ImagesFrom,
}

/// Where an experiment is written.
#[derive(Debug, Clone)]
pub enum ExperimentSource {
    /// In a file. Profiles are looked for in the folder `profiles` beside it, then among those of this program.
    File(PathBuf),
    /// In this text, under this name. For experiments that a program makes.
    Text {
        /// Name of the experiment.
        name: String,
        /// TOML.
        text: String,
    },
}

/// Checks an experiment and lays it out, or tells everything that is wrong with it.
pub fn plan(request: &Request) -> Result<Plan, Refusal> {
    let layers = layers::read(request)?;
    let mut problems = Problems::default();
    methods::ATTACK.refuse_unknown(&layers.table, &mut problems);
    methods::DEFENSE.refuse_unknown(&layers.table, &mut problems);
    methods::MEASURE.refuse_unknown(&layers.table, &mut problems);
    let grid = grid::read(&layers.table, &layers.start, &mut problems);
    let seeds = seeds(&layers.table, &mut problems);
    let experiment = Experiment {
        name: layers.name.clone(),
        title: text(&layers.table, "title", &mut problems).unwrap_or_else(|| layers.name.clone()),
        profile: layers.profile.clone(),
        settings: told(&request.set),
        table: presentation::table(&layers, &grid, &mut problems),
        figure: presentation::figure(&layers, &mut problems),
    };
    let slurm = slurm::read(&layers.table, &layers.start, &mut problems);
    let Cells { points, cells, images } = cells::of_grid(&layers, &grid, &seeds, &request.images, problems)?;
    // Each cell was added after its parents, and stays after them when all trained models come before all else.
    let is_trained = |cell: &Cell| matches!(cell.kind, CellKind::Prepare | CellKind::Train);
    let (models, repairs): (Vec<_>, Vec<_>) = cells.into_iter().partition(|(_, cell)| is_trained(cell));
    Ok(Plan { experiment, cells: models.into_iter().chain(repairs).collect(), points, images, slurm })
}

/// What a reader of the results has to be told of these settings: of each key the last.
fn told(set: &[Setting]) -> Vec<Setting> {
    let changes = || set.iter().filter(|setting| setting.changes_results());
    let last = |&(place, setting): &(usize, &Setting)| changes().skip(place + 1).all(|later| later.key != setting.key);
    changes().enumerate().filter(last).map(|(_, setting)| setting.clone()).collect()
}

fn text(root: &Table, key: &str, problems: &mut Problems) -> Option<String> {
    let node = root.get(key)?;
    if let Content::Text(text) = &node.content {
        return Some(text.clone());
    }
    let reason = format!("{} where a text is expected", node.kind());
    problems.add(&node.place, key, Some(node.written()), reason, "write a text in quotes");
    None
}

fn seeds(root: &Table, problems: &mut Problems) -> Vec<u64> {
    let Some(node) = root.get("seeds") else { return vec![0] };
    let seeds: Option<Vec<u64>> = match &node.content {
        Content::List(items) => items
            .iter()
            .map(|item| match item.content {
                // The generators of numpy, which draw what is poisoned, take no larger ones.
                Content::Integer(seed) => u32::try_from(seed).ok().map(u64::from),
                _ => None,
            })
            .collect(),
        _ => None,
    };
    let distinct = |seeds: &Vec<u64>| seeds.iter().collect::<HashSet<_>>().len() == seeds.len();
    match seeds.filter(|seeds| !seeds.is_empty() && distinct(seeds)) {
        Some(seeds) => seeds,
        None => {
            let reason = "seeds are a list of different whole numbers from 0 to 4294967295";
            problems.add(&node.place, "seeds", Some(node.written()), reason, "write seeds = [0, 1, 2]");
            vec![0]
        }
    }
}

#[cfg(test)]
mod tests;
