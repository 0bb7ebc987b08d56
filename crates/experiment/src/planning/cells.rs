//! The cells of a grid: each point is checked as it would run, and points share the cells that are the same.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value;
use tsbd_analysis::{Measurement, MeasurementEntry, Needs, Unlearning};
use tsbd_attack::{Attack, AttackEntry, DatasetFacts, Groundwork, TrainingFacts};
use tsbd_data::DatasetParameters;
use tsbd_defense::{Defense, DefenseEntry};
use tsbd_nn::Architecture;

use super::grid::{self, Choice, Grid, Named};
use super::images::{self, ImagesFrom, ImagesIdentity, KnownImages};
use super::layers::Layers;
use super::{methods, sections};
use crate::cell::{Cell, CellKey, CellKind};
use crate::diagnostic::{Place, Problems, Refusal};
use crate::document::{Node, Table, lookup};
use crate::parameters::{MethodParameters, ModelParameters, TrainingParameters};
use crate::plan::GridPoint;
use crate::registry;

/// A grid laid out.
pub(super) struct Cells {
    /// All points, as [`crate::Plan::points`].
    pub points: Vec<GridPoint>,
    /// The cells that points have their results from, and those that these start from; each after its parents.
    pub cells: IndexMap<CellKey, Cell>,
    /// The data sets of the cells.
    pub images: KnownImages,
}

/// Lays a grid out, or tells everything that is wrong with it, `problems` found before included.
pub(super) fn of_grid(
    layers: &Layers,
    grid: &Grid,
    seeds: &[u64],
    images: &ImagesFrom,
    problems: Problems,
) -> Result<Cells, Refusal> {
    let mut planner = Planner {
        profile: &layers.profile,
        start: &layers.start,
        images_from: images,
        notes: images.notes(),
        images: KnownImages::new(),
        cells: IndexMap::new(),
        problems,
    };
    let points = planner.points(&layers.table, grid, seeds);
    planner.problems.refuse_if_any()?;
    Ok(Cells { points, cells: planner.cells, images: planner.images })
}

/// Makes the cells of all points, sharing those that are the same.
struct Planner<'a> {
    profile: &'a str,
    start: &'a Place,
    images_from: &'a ImagesFrom,
    notes: KnownImages,
    images: KnownImages,
    cells: IndexMap<CellKey, Cell>,
    problems: Problems,
}

fn unlearning_method(unlearning: &Unlearning) -> Arc<MethodParameters> {
    let parameters = serde_json::to_value(unlearning).expect("an unlearning consists of names and numbers");
    MethodParameters::new(unlearning.of.stage(), Unlearning::REVISION, parameters)
}

/// The methods and the seed of a point.
#[derive(Clone, Copy)]
struct Asked<'a> {
    attack: Named<'a>,
    defense: Named<'a>,
    measure: Named<'a>,
    seed: u64,
}

/// A model that is trained, and what its attack starts from.
struct Trained {
    key: CellKey,
    cell: Cell,
    prepare: Option<CellKey>,
}

/// What was worked out for a name, for all points that ask for it.
type Known<Key, Found> = RefCell<HashMap<Key, Found>>;

/// A method with its checked parameters, and these as all its cells share them.
struct Configured<M: ?Sized> {
    method: Rc<M>,
    shared: Arc<MethodParameters>,
}

impl<M: ?Sized> Clone for Configured<M> {
    fn clone(&self) -> Self {
        Self { method: Rc::clone(&self.method), shared: Arc::clone(&self.shared) }
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
    // Reading a method's parameters takes longer than everything else about a point.
    attacks: Known<&'static str, Option<Configured<dyn Attack>>>,
    defenses: Known<&'static str, Option<Configured<dyn Defense>>>,
    measurements: Known<&'static str, Option<Configured<dyn Measurement>>>,
    trained: Known<(&'static str, u64), Rc<Trained>>,
}

impl Planner<'_> {
    fn points(&mut self, root: &Table, grid: &Grid, seeds: &[u64]) -> Vec<GridPoint> {
        let bases: Vec<(Choice<'_>, Basis)> = grid
            .choices()
            .into_iter()
            .filter_map(|choice| self.basis(choice.apply(root)).map(|basis| (choice, basis)))
            .collect();
        let mut points = Vec::new();
        for (attack, defense, measure) in grid.methods() {
            // Choices that differ only in axes that do not apply are one point.
            let mut seen: HashSet<(CellKey, String)> = HashSet::new();
            for ((choice, basis), &seed) in bases.iter().flat_map(|basis| seeds.iter().map(move |seed| (basis, seed))) {
                let Some((cell, needs)) = self.cell(basis, &Asked { attack, defense, measure, seed }) else { continue };
                let [attack, defense, measure] = [attack, defense, measure].map(|(name, _)| name.to_owned());
                let applies = |axis: &str| grid::applies(axis, &attack, &defense, (&measure, &needs));
                let axes = choice.values.iter().filter(|(axis, _)| applies(axis));
                let axes: BTreeMap<String, Value> =
                    axes.map(|(axis, value)| ((*axis).to_owned(), value.to_json())).collect();
                let place = serde_json::to_string(&axes).expect("axes have string keys only");
                if seen.insert((cell.clone(), place)) {
                    points.push(GridPoint { attack, defense, measure, seed, axes, cell });
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
                    tsbd_models::ModelError::TooSmall { field: "width", .. }
                    | tsbd_models::ModelError::TooLarge { .. } => "model.width",
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
        Some(Basis {
            root,
            dataset,
            digest,
            facts,
            model,
            architecture,
            training,
            attacks: Known::default(),
            defenses: Known::default(),
            measurements: Known::default(),
            trained: Known::default(),
        })
    }

    /// The identity of a data set: noted, known from another point, or found by loading it.
    fn identify(&mut self, dataset: &DatasetParameters, root: &Table) -> Option<ImagesIdentity> {
        let name = images::name(dataset);
        if let Some(known) = self.images.get(&name) {
            return Some(known.clone());
        }
        let identity = match self.notes.get(&name) {
            Some(noted) => noted.clone(),
            None => match images::identify(dataset, self.images_from.root()) {
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

    /// The cell that has the result of a point, and what its measurement needs; the cells that it starts from are made as
    /// well.
    fn cell(&mut self, basis: &Basis, asked: &Asked<'_>) -> Option<(CellKey, Needs)> {
        let Asked { attack, defense, measure, seed } = *asked;
        let entry = registry::attack(attack.0)?;
        // Both methods are checked even if one of them is refused.
        let configured = self.attack(basis, entry, attack.1);
        let repaired = tsbd_defense::find(defense.0).map(|entry| self.defense(basis, entry, defense.1));
        let trained = self.trained(basis, entry, &configured?, seed);
        let subject = match repaired {
            None => trained.key.clone(),
            Some(repaired) => self.defend(&trained, &repaired?),
        };
        match tsbd_analysis::find(measure.0) {
            None => Some((subject, Needs::default())),
            Some(entry) => self.measure(basis, entry, subject, &trained, asked),
        }
    }

    /// An attack with its checked parameters.
    fn attack(
        &mut self,
        basis: &Basis,
        entry: &'static AttackEntry,
        asked_at: &Place,
    ) -> Option<Configured<dyn Attack>> {
        if let Some(known) = basis.attacks.borrow().get(entry.name) {
            return known.clone();
        }
        let (root, problems) = (&basis.root, &mut self.problems);
        let configured = methods::attack(entry, root, asked_at, problems);
        if let Some(configured) = &configured {
            methods::check(configured.check(&basis.facts), &methods::ATTACK, entry.name, root, asked_at, problems);
            if let Some(groundwork) = configured.groundwork().filter(|groundwork| groundwork.needs_clean_model()) {
                let checked = groundwork.check(basis.architecture.as_ref());
                methods::check(checked, &methods::ATTACK, entry.name, root, asked_at, problems);
            }
            let training = TrainingFacts { epochs: basis.training.epochs, batch_size: basis.training.batch_size };
            let checked = configured.check_training(&training);
            methods::check(checked, &methods::ATTACK, entry.name, root, asked_at, problems);
        }
        let configured = configured.map(|attack| Configured {
            shared: MethodParameters::new(entry.name, entry.revision, attack.parameters()),
            method: Rc::from(attack),
        });
        basis.attacks.borrow_mut().insert(entry.name, configured.clone());
        configured
    }

    /// The cell that trains a model under an attack, after those that it starts from.
    fn trained(
        &mut self,
        basis: &Basis,
        entry: &'static AttackEntry,
        configured: &Configured<dyn Attack>,
        seed: u64,
    ) -> Rc<Trained> {
        if let Some(known) = basis.trained.borrow().get(&(entry.name, seed)) {
            return Rc::clone(known);
        }
        let groundwork = configured.method.groundwork();
        let prepare = groundwork.map(|groundwork| self.groundwork(basis, entry, groundwork, seed));
        let cell = Cell {
            parents: prepare.iter().cloned().collect(),
            ..self.train(basis, Arc::clone(&configured.shared), seed)
        };
        let trained = Rc::new(Trained { key: self.insert(cell.clone()), cell, prepare });
        basis.trained.borrow_mut().insert((entry.name, seed), Rc::clone(&trained));
        trained
    }

    /// A defense with its checked parameters.
    fn defense(
        &mut self,
        basis: &Basis,
        entry: &'static DefenseEntry,
        asked_at: &Place,
    ) -> Option<Configured<dyn Defense>> {
        if let Some(known) = basis.defenses.borrow().get(entry.name) {
            return known.clone();
        }
        let (root, problems) = (&basis.root, &mut self.problems);
        let configured = methods::defense(entry, root, &basis.facts, asked_at, problems).filter(|configured| {
            let before = problems.len();
            let checked = configured.check(basis.architecture.as_ref(), &basis.facts);
            methods::check(checked, &methods::DEFENSE, entry.name, root, asked_at, problems);
            problems.len() == before
        });
        let configured = configured.map(|defense| Configured {
            shared: MethodParameters::new(entry.name, entry.revision, defense.parameters()),
            method: Rc::from(defense),
        });
        basis.defenses.borrow_mut().insert(entry.name, configured.clone());
        configured
    }

    /// A measurement with its checked parameters.
    fn measurement(
        &mut self,
        basis: &Basis,
        entry: &'static MeasurementEntry,
        asked_at: &Place,
    ) -> Option<Configured<dyn Measurement>> {
        if let Some(known) = basis.measurements.borrow().get(entry.name) {
            return known.clone();
        }
        let (root, problems) = (&basis.root, &mut self.problems);
        let configured = methods::measurement(entry, root, asked_at, problems);
        if let Some(configured) = &configured {
            let checked = configured.check(basis.architecture.as_ref());
            methods::check(checked, &methods::MEASURE, entry.name, root, asked_at, problems);
        }
        let configured = configured.map(|measurement| Configured {
            shared: MethodParameters::new(entry.name, entry.revision, measurement.parameters()),
            method: Rc::from(measurement),
        });
        basis.measurements.borrow_mut().insert(entry.name, configured.clone());
        configured
    }

    /// The cell in which a trained model is repaired, after those that it starts from.
    fn defend(&mut self, trained: &Trained, configured: &Configured<dyn Defense>) -> CellKey {
        let Trained { key, cell, prepare } = trained;
        let unlearning = configured.method.unlearning();
        let unlearned = unlearning.map(|unlearning| self.unlearn((key, cell), Vec::new(), &unlearning));
        self.insert(Cell {
            kind: CellKind::Defend,
            training: None,
            // What the trigger is made of is needed to measure the repaired model.
            parents: std::iter::once(key.clone()).chain(prepare.clone()).chain(unlearned).collect(),
            defense: Some(Arc::clone(&configured.shared)),
            ..cell.clone()
        })
    }

    /// The cell that measures the model of `subject`, after those that it starts from.
    fn measure(
        &mut self,
        basis: &Basis,
        entry: &'static MeasurementEntry,
        subject_key: CellKey,
        trained: &Trained,
        asked: &Asked<'_>,
    ) -> Option<(CellKey, Needs)> {
        let asked_at = asked.measure.1;
        let configured = self.measurement(basis, entry, asked_at)?;
        let needs = configured.method.needs();
        let mut refuse = |value: &str, reason: String, hint: &str| {
            self.problems.add(asked_at, "grid.measure", Some(value.to_owned()), reason, hint);
        };
        if asked.attack.0 == "none" {
            let reason = "it measures what a backdoor does, and a model without an attack has none".to_owned();
            refuse(entry.name, reason, "take \"none\" out of grid.attack");
            return None;
        }
        if !needs.scores.is_empty() && asked.defense.0 != "none" {
            let reason = format!("it compares defenses on the backdoored model, not after {}", asked.defense.0);
            refuse(entry.name, reason, "write defense = [\"none\"]");
            return None;
        }
        let subject = self.cells[&subject_key].clone();
        // What the trigger is made of.
        let model = (subject.kind != CellKind::Train).then(|| trained.key.clone());
        let trigger: Vec<CellKey> = model.into_iter().chain(trained.prepare.clone()).collect();
        let mut parents = vec![subject_key.clone()];
        parents.extend(trigger.clone());
        let mut numbers = None;
        if needs.unlearning || needs.unlearned || needs.poison_unlearned.is_some() {
            let unlearning = self.defense(basis, &tsbd_defense::tsbd::TSBD, asked_at)?.method.unlearning()?;
            if needs.unlearned {
                parents.push(self.unlearn((&subject_key, &subject), Vec::new(), &unlearning));
            }
            if let Some(asr) = needs.poison_unlearned {
                parents.push(self.unlearn((&subject_key, &subject), trigger, &unlearning.of_poison(asr)));
            }
            numbers = needs.unlearning.then(|| unlearning_method(&unlearning));
        }
        if needs.clean_model {
            let attack = registry::attack(asked.attack.0)?.from_parameters(&trained.cell.attack.parameters).ok()?;
            let training = basis.training.lasting(attack.clean_epochs(basis.training.epochs));
            parents.push(self.clean_model(basis, training, asked.seed));
        }
        let mut scored = BTreeMap::new();
        for name in &needs.scores {
            // All that cannot be compared is told at once.
            let Some((layers, defense)) = self.scoring(basis, entry, name, asked_at) else { continue };
            scored.insert(name.clone(), layers);
            parents.push(self.defend(trained, &defense));
        }
        if scored.len() < needs.scores.len() {
            return None;
        }
        let checked = configured.method.check_scores(basis.architecture.as_ref(), &scored);
        methods::check(checked, &methods::MEASURE, entry.name, &basis.root, asked_at, &mut self.problems);
        let measure = self.insert(Cell {
            kind: CellKind::Measure,
            training: None,
            parents,
            unlearning: numbers,
            measurement: Some(configured.shared),
            ..subject
        });
        Some((measure, needs))
    }

    /// The layers whose neurons a compared defense orders, and that defense; tells of one that orders none.
    fn scoring(
        &mut self,
        basis: &Basis,
        entry: &MeasurementEntry,
        name: &str,
        asked_at: &Place,
    ) -> Option<(Vec<String>, Configured<dyn Defense>)> {
        let architecture = basis.architecture.as_ref();
        let defense = match tsbd_defense::find(name) {
            Some(defense) => Some(self.defense(basis, defense, asked_at)?),
            None => None,
        };
        let scoring = defense.map(|defense| (defense.method.scored_layers(architecture), defense));
        let scoring = scoring.filter(|(layers, _)| !layers.is_empty());
        if scoring.is_none() {
            methods::refuse_compared(entry, name, architecture, &basis.root, asked_at, &mut self.problems);
        }
        scoring
    }

    /// The cell that trains the clean model with the images and network of a point.
    fn clean_model(&mut self, basis: &Basis, training: TrainingParameters, seed: u64) -> CellKey {
        let none = &tsbd_attack::NONE;
        let attack = MethodParameters::new(none.name, none.revision, Value::Object(serde_json::Map::new()));
        let train = self.train(basis, attack, seed);
        self.insert(Cell { training: Some(training), ..train })
    }

    /// The cell that trains a model from nothing but the data set.
    fn train(&self, basis: &Basis, attack: Arc<MethodParameters>, seed: u64) -> Cell {
        Cell {
            kind: CellKind::Train,
            profile: self.profile.to_owned(),
            seed,
            data_digest: basis.digest.clone(),
            parents: Vec::new(),
            dataset: basis.dataset.clone(),
            model: Some(basis.model.clone()),
            training: Some(basis.training.clone()),
            attack,
            defense: None,
            unlearning: None,
            measurement: None,
        }
    }

    /// The cell in which the model of `subject` unlearns. What else it starts from is in `parents`.
    fn unlearn(&mut self, subject: (&CellKey, &Cell), parents: Vec<CellKey>, unlearning: &Unlearning) -> CellKey {
        let (key, subject) = subject;
        self.insert(Cell {
            kind: CellKind::Unlearn,
            training: None,
            parents: std::iter::once(key.clone()).chain(parents).collect(),
            unlearning: Some(unlearning_method(unlearning)),
            ..subject.clone()
        })
    }

    /// The cell that makes what an attack starts from, and the clean model below it if it needs one: the same cells for
    /// all points whose groundwork is the same.
    fn groundwork(&mut self, basis: &Basis, entry: &AttackEntry, groundwork: &dyn Groundwork, seed: u64) -> CellKey {
        let attack = MethodParameters::new(entry.name, entry.revision, groundwork.parameters());
        let prepare = Cell { kind: CellKind::Prepare, training: None, ..self.train(basis, attack, seed) };
        if !groundwork.needs_clean_model() {
            return self.insert(Cell { model: None, ..prepare });
        }
        let clean = self.clean_model(basis, basis.training.clone(), seed);
        self.insert(Cell { parents: vec![clean], ..prepare })
    }

    fn insert(&mut self, cell: Cell) -> CellKey {
        let key = cell.key();
        self.cells.entry(key.clone()).or_insert(cell);
        key
    }
}
