//! From an experiment file to a checked [`Plan`].
//!
//! [`plan`] lays profile, file and `--set` over each other, spans the grid, and checks every point of it as it would
//! run: names against the registries, every parameter by the method that reads it, combinations against the data set
//! and the network. All that is wrong is told at once; nothing has run by then.

mod grid;
mod images;
mod layers;
mod methods;
mod section;
mod sections;

use std::path::PathBuf;
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value;
use tsbd_analysis::Unlearning;
use tsbd_attack::{AttackEntry, DatasetFacts, Groundwork, TrainingFacts};
use tsbd_data::DatasetParameters;
use tsbd_nn::Architecture;

pub use images::{ImagesFrom, ImagesIdentity, KnownImages};
pub use layers::PROFILES;

use crate::cell::{Cell, CellKey, CellKind};
use crate::diagnostic::{Place, Problems, Refusal};
use crate::document::{Content, Node, Table, lookup};
use crate::parameters::{MethodParameters, ModelParameters, TrainingParameters};
use crate::plan::{Experiment, FigureSpec, GridPoint, Plan, TableSpec};
use crate::registry;
use crate::setting::Setting;
use grid::{Choice, Grid};
use layers::Layers;
use section::Section;

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
    let grid = grid::read(&layers.table, &layers.start, &mut problems);
    let seeds = seeds(&layers.table, &mut problems);
    let experiment = Experiment {
        name: layers.name.clone(),
        title: text(&layers.table, "title", &mut problems).unwrap_or_else(|| layers.name.clone()),
        profile: layers.profile.clone(),
        table: table_spec(&layers, &grid, &mut problems),
        figure: figure_spec(&layers, &mut problems),
    };
    let mut planner = Planner {
        profile: &layers.profile,
        start: &layers.start,
        request,
        notes: request.images.notes(),
        images: KnownImages::new(),
        cells: IndexMap::new(),
        problems,
    };
    let points = planner.points(&layers.table, &grid, &seeds);
    planner.problems.refuse_if_any()?;
    // Each cell was added after its parents, and stays after them when all trained models come before all else.
    let is_trained = |cell: &Cell| matches!(cell.kind, CellKind::Prepare | CellKind::Train);
    let (models, repairs): (Vec<_>, Vec<_>) = planner.cells.into_iter().partition(|(_, cell)| is_trained(cell));
    Ok(Plan { experiment, cells: models.into_iter().chain(repairs).collect(), points, images: planner.images })
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
                Content::Integer(seed) => u64::try_from(seed).ok(),
                _ => None,
            })
            .collect(),
        _ => None,
    };
    let distinct = |seeds: &Vec<u64>| (1..seeds.len()).all(|position| !seeds[..position].contains(&seeds[position]));
    match seeds.filter(|seeds| !seeds.is_empty() && distinct(seeds)) {
        Some(seeds) => seeds,
        None => {
            let reason = "seeds are a list of different whole numbers of at least 0";
            problems.add(&node.place, "seeds", Some(node.written()), reason, "write seeds = [0, 1, 2]");
            vec![0]
        }
    }
}

/// Metrics that a table can show.
const METRICS: &[&str] = &["acc", "asr", "ra", "der"];

fn table_spec(layers: &Layers, grid: &Grid, problems: &mut Problems) -> TableSpec {
    let mut spec = TableSpec::default();
    let section = Section::open(&layers.table, "table", &["rows", "columns", "metrics"], &layers.start, problems);
    let axes: Vec<&str> =
        ["attack", "defense", "seed"].into_iter().chain(grid.axes.iter().map(|(axis, _)| axis.as_str())).collect();
    for (name, field) in [("rows", &mut spec.rows), ("columns", &mut spec.columns)] {
        let Some(axis) = section.text(name, problems) else { continue };
        if !axes.contains(&axis.as_str()) {
            let hint = crate::diagnostic::suggest(&axis, axes.iter().copied());
            section.refuse(name, "there is no such axis in the grid", hint, problems);
        }
        *field = axis;
    }
    if spec.rows == spec.columns {
        let hint = "choose two different axes for rows and columns";
        section.refuse("columns", format!("rows are already made of `{}`", spec.rows), hint, problems);
    }
    if let Some(metrics) = section.texts("metrics", problems) {
        if metrics.is_empty() {
            section.refuse(
                "metrics",
                "a table without metrics is empty",
                "write metrics = [\"acc\", \"asr\"]",
                problems,
            );
        }
        for unknown in metrics.iter().filter(|metric| !METRICS.contains(&metric.as_str())) {
            let hint = crate::diagnostic::suggest(unknown, METRICS.iter().copied());
            section.refuse("metrics", format!("there is no metric `{unknown}`"), hint, problems);
        }
        spec.metrics = metrics;
    }
    spec
}

fn figure_spec(layers: &Layers, problems: &mut Problems) -> Option<FigureSpec> {
    layers.table.get("figure")?;
    let section = Section::open(&layers.table, "figure", &["kind", "image"], &layers.start, problems);
    let image = section.integer("image", 0, problems).unwrap_or(0);
    match section.text("kind", problems).as_deref() {
        Some("triggers") => Some(FigureSpec::Triggers { image }),
        Some(_) => {
            section.refuse("kind", "there is no such figure", "write kind = \"triggers\"", problems);
            None
        }
        None => {
            if section.get("kind").is_none() {
                section.refuse("kind", "a figure is of some kind", "write kind = \"triggers\"", problems);
            }
            None
        }
    }
}

/// Makes the cells of all points, sharing those that are the same.
struct Planner<'a> {
    profile: &'a str,
    start: &'a Place,
    request: &'a Request,
    notes: KnownImages,
    images: KnownImages,
    cells: IndexMap<CellKey, Cell>,
    problems: Problems,
}

fn unlearning_method(unlearning: &Unlearning) -> MethodParameters {
    MethodParameters {
        name: Unlearning::NAME.to_owned(),
        revision: Unlearning::REVISION,
        parameters: serde_json::to_value(unlearning).expect("an unlearning consists of names and numbers"),
    }
}

/// What all points of one choice share.
struct Basis {
    root: Table,
    dataset: DatasetParameters,
    digest: String,
    facts: DatasetFacts,
    model: ModelParameters,
    architecture: Arc<dyn Architecture>,
    training: TrainingParameters,
}

impl Planner<'_> {
    fn points(&mut self, root: &Table, grid: &Grid, seeds: &[u64]) -> Vec<GridPoint> {
        let bases: Vec<(Choice<'_>, Option<Basis>)> = grid
            .choices()
            .into_iter()
            .map(|choice| {
                let basis = self.basis(choice.apply(root));
                (choice, basis)
            })
            .collect();
        let mut points: Vec<GridPoint> = Vec::new();
        for (attack, attack_at) in &grid.attacks {
            for (defense, defense_at) in &grid.defenses {
                for (choice, basis) in &bases {
                    let Some(basis) = basis else { continue };
                    for &seed in seeds {
                        let Some(cell) = self.cell(basis, (attack, attack_at), (defense, defense_at), seed) else {
                            continue;
                        };
                        let axes = choice.values.iter().filter(|(axis, _)| grid::applies(axis, attack, defense));
                        let axes = axes.map(|(axis, value)| ((*axis).to_owned(), value.to_json())).collect();
                        let point = GridPoint { attack: attack.clone(), defense: defense.clone(), seed, axes, cell };
                        // Choices that differ only in axes that do not apply are one point.
                        if !points.contains(&point) {
                            points.push(point);
                        }
                    }
                }
            }
        }
        points
    }

    fn basis(&mut self, root: Table) -> Option<Basis> {
        let dataset = sections::data(&root, self.start, &mut self.problems);
        let model = sections::model(&root, self.start, &mut self.problems);
        let training = sections::training(&root, self.start, &mut self.problems);
        let dataset = dataset?;
        let images = self.identify(&dataset, &root)?;
        let (model, training) = (model?, training?);
        let (digest, facts) = (images.digest, images.facts);
        let architecture = match tsbd_models::build(&model.for_images(facts.classes, facts.size)) {
            Ok(architecture) => architecture,
            Err(error) => {
                let key = match &error {
                    tsbd_models::ModelError::TooSmall { field: "image_size", .. } => "data.image_size",
                    tsbd_models::ModelError::TooSmall { field: "width", .. } => "model.width",
                    _ => "model.name",
                };
                self.refuse(&root, key, error.to_string(), "choose another network or other images");
                return None;
            }
        };
        if training.batch_size > facts.train_images {
            let reason =
                format!("a batch is larger than the {} training images, so no step is made", facts.train_images);
            let hint = format!("give at most {}, or use more images", facts.train_images);
            self.refuse(&root, "training.batch_size", reason, &hint);
            return None;
        }
        Some(Basis { root, dataset, digest, facts, model, architecture, training })
    }

    /// The identity of a data set: noted, known from another point, or found by loading it.
    fn identify(&mut self, dataset: &DatasetParameters, root: &Table) -> Option<ImagesIdentity> {
        let name = images::name(dataset);
        if let Some(known) = self.images.get(&name) {
            return Some(known.clone());
        }
        let identity = match self.notes.get(&name) {
            Some(noted) => noted.clone(),
            None => match images::identify(dataset, self.request.images.root()) {
                Ok(identity) => identity,
                Err(tsbd_data::Error::Parameter { field, reason, way_out, .. }) => {
                    self.refuse(root, field, reason, &way_out);
                    return None;
                }
                Err(error) => {
                    let message = error.to_string();
                    // An error about data ends with its way out.
                    let (reason, hint) = match message.rsplit_once("; ") {
                        Some((reason, hint)) => (reason.to_owned(), hint.to_owned()),
                        None => (message, format!("`tsbd data verify {}` tells more", dataset.name)),
                    };
                    self.refuse(root, "data.name", reason, &hint);
                    return None;
                }
            },
        };
        self.images.insert(name, identity.clone());
        Some(identity)
    }

    /// Tells that the value at a dotted key cannot be used.
    fn refuse(&mut self, root: &Table, key: &str, reason: String, hint: &str) {
        let node = lookup(root, key);
        let section = key.split('.').next().and_then(|section| root.get(section));
        let place = node.map(|node| &node.place).or(section.map(|node| &node.key_place)).unwrap_or(self.start).clone();
        self.problems.add(&place, key, node.map(Node::written), reason, hint);
    }

    /// The cell that has the result of a point; the cells that it starts from are made as well.
    fn cell(&mut self, basis: &Basis, attack: (&str, &Place), defense: (&str, &Place), seed: u64) -> Option<CellKey> {
        let (root, problems) = (&basis.root, &mut self.problems);
        let entry = registry::attack(attack.0)?;
        let configured = methods::attack(entry, root, attack.1, problems);
        // Both methods are checked even if one of them is refused.
        let repaired = tsbd_defense::find(defense.0).map(|entry| {
            let configured = methods::defense(entry, root, defense.1, problems)?;
            let checked = configured.check(basis.architecture.as_ref(), &basis.facts);
            methods::check(checked, &methods::DEFENSE, entry.name, root, defense.1, problems);
            let parameters = configured.parameters();
            let method = MethodParameters { name: entry.name.to_owned(), revision: entry.revision, parameters };
            Some((method, configured.unlearning()))
        });
        let configured = configured?;
        methods::check(configured.check(&basis.facts), &methods::ATTACK, entry.name, root, attack.1, problems);
        if let Some(groundwork) = configured.groundwork().filter(|groundwork| groundwork.needs_clean_model()) {
            let checked = groundwork.check(basis.architecture.as_ref());
            methods::check(checked, &methods::ATTACK, entry.name, root, attack.1, problems);
        }
        let training = TrainingFacts { epochs: basis.training.epochs, batch_size: basis.training.batch_size };
        let checked = configured.check_training(&training);
        methods::check(checked, &methods::ATTACK, entry.name, root, attack.1, problems);
        let prepare = configured.groundwork().map(|groundwork| self.groundwork(basis, entry, groundwork, seed));
        let train = Cell {
            parents: prepare.iter().cloned().collect(),
            ..self.train(basis, entry, configured.parameters(), seed)
        };
        let train_key = self.insert(train.clone());
        match repaired {
            None => Some(train_key),
            Some(None) => None,
            Some(Some((defense, unlearning))) => {
                let unlearned = unlearning.map(|unlearning| self.unlearn(&train, Vec::new(), &unlearning));
                Some(self.insert(Cell {
                    kind: CellKind::Defend,
                    training: None,
                    // What the trigger is made of is needed to measure the repaired model.
                    parents: std::iter::once(train_key).chain(prepare).chain(unlearned).collect(),
                    defense: Some(defense),
                    ..train
                }))
            }
        }
    }

    /// The cell that trains a model from nothing but the data set.
    fn train(&self, basis: &Basis, entry: &AttackEntry, parameters: Value, seed: u64) -> Cell {
        Cell {
            kind: CellKind::Train,
            profile: self.profile.to_owned(),
            seed,
            data_digest: basis.digest.clone(),
            parents: Vec::new(),
            dataset: basis.dataset.clone(),
            model: Some(basis.model.clone()),
            training: Some(basis.training.clone()),
            attack: MethodParameters { name: entry.name.to_owned(), revision: entry.revision, parameters },
            defense: None,
            unlearning: None,
            measurement: None,
        }
    }

    /// The cell in which the model of `subject` unlearns. What else it starts from is in `parents`.
    fn unlearn(&mut self, subject: &Cell, parents: Vec<CellKey>, unlearning: &Unlearning) -> CellKey {
        self.insert(Cell {
            kind: CellKind::Unlearn,
            training: None,
            parents: std::iter::once(subject.key()).chain(parents).collect(),
            unlearning: Some(unlearning_method(unlearning)),
            ..subject.clone()
        })
    }

    /// The cell that makes what an attack starts from, and the clean model below it if it needs one: the same cells for
    /// all points whose groundwork is the same.
    fn groundwork(&mut self, basis: &Basis, entry: &AttackEntry, groundwork: &dyn Groundwork, seed: u64) -> CellKey {
        let prepare =
            Cell { kind: CellKind::Prepare, training: None, ..self.train(basis, entry, groundwork.parameters(), seed) };
        if !groundwork.needs_clean_model() {
            return self.insert(Cell { model: None, ..prepare });
        }
        let parameters = Value::Object(serde_json::Map::new());
        let clean = self.insert(self.train(basis, &tsbd_attack::NONE, parameters, seed));
        self.insert(Cell { parents: vec![clean], ..prepare })
    }

    fn insert(&mut self, cell: Cell) -> CellKey {
        let key = cell.key();
        self.cells.entry(key.clone()).or_insert(cell);
        key
    }
}

#[cfg(test)]
mod tests;
