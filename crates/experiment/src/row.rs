//! One grid point joined with its record: what tables are made of.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use tsbd_analysis::{NeuronVectors, Unlearned, Unlearning};

use crate::cell::{CellKey, CellKind};
use crate::plan::Plan;
use crate::record::{CellRecord, NEURONS, NWC, RecordSummary};
use crate::store::{Found, Store, StoreError};

/// Whether a grid point has a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowState {
    /// It has.
    Done,
    /// Its last attempt failed, for this reason.
    Failed(String),
    /// It never ran, or is running, or its record is damaged.
    Missing,
}

/// One grid point with its result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultRow {
    /// Name of the experiment.
    pub experiment: String,
    /// The profile that made the result.
    pub profile: String,
    /// Name of the data set.
    pub dataset: String,
    /// Name and width of the network, e.g. `preact-resnet18/16`.
    pub model: String,
    /// Name of the attack.
    pub attack: String,
    /// Name of the defense; `none` for the backdoored model itself.
    pub defense: String,
    /// Name of the measurement; `none` for the model and its rates.
    pub measure: String,
    /// Seed.
    pub seed: u64,
    /// The other axes of the grid that apply, as text.
    pub axes: BTreeMap<String, String>,
    /// The cell.
    pub key: CellKey,
    /// Whether there is a result.
    pub state: RowState,
    /// Fractions; of a measurement numbers as they are. Empty unless done.
    pub metrics: BTreeMap<String, f64>,
    /// Counts and choices beside the metrics; empty unless done.
    pub facts: Map<String, Value>,
    /// Seconds the cell took.
    pub seconds: Option<f64>,
    /// Seconds of the unlearnings that it starts from: cells of their own, which others may start from too. `None` where it
    /// starts from none, or where the result of one is not there.
    pub shared_seconds: Option<f64>,
    /// Largest resident memory of its process, in MB (10^6 bytes).
    pub peak_memory_mb: Option<f64>,
}

impl ResultRow {
    /// A metric as it is shown: rates in percent, the numbers of measurements as they are.
    pub fn shown(&self, metric: &str) -> Option<f64> {
        let scale = if self.measure == "none" { 100.0 } else { 1.0 };
        self.metrics.get(metric).map(|value| value * scale)
    }
}

/// Whether the measurement `measure` gives a number named `metric`.
pub fn measurement_gives(measure: &str, metric: &str) -> bool {
    tsbd_analysis::find(measure).is_some_and(|entry| entry.gives(metric))
}

/// One vector of one finished cell.
#[derive(Debug, Clone, PartialEq)]
pub struct NeuronRows {
    /// The point of the grid.
    pub row: ResultRow,
    /// Its vectors by name.
    pub vectors: NeuronVectors,
}

/// What the finished cells among `rows` found out about each neuron; cells without such a file are left out, and a cell
/// that several rows share is there once. The weight changes of unlearned models are named after what was unlearned.
pub fn neuron_rows(rows: &[ResultRow], store: &Store) -> Result<Vec<NeuronRows>, StoreError> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for row in rows.iter().filter(|row| row.state == RowState::Done && seen.insert(&row.key)) {
        // Verified by its digest: the numbers are those that the record was sealed with.
        let record = store.result(&row.key)?;
        if !record.artefacts.contains_key(NEURONS) {
            continue;
        }
        let path = store.artefact(&row.key, NEURONS);
        let text = fs_err::read_to_string(&path).map_err(StoreError::File)?;
        let mut vectors: NeuronVectors = serde_json::from_str(&text).map_err(|error| {
            let reason =
                format!("{}: no vectors of neurons: {error}; remove the cell's folder and run again", path.display());
            StoreError::File(std::io::Error::other(reason))
        })?;
        if let (Some(of), Some(nwc)) = (what_was_unlearned(&record), vectors.remove(NWC)) {
            vectors.insert(of.nwc().to_owned(), nwc);
        }
        found.push(NeuronRows { row: row.clone(), vectors });
    }
    Ok(found)
}

fn what_was_unlearned(record: &CellRecord) -> Option<Unlearned> {
    let unlearning = record.cell.unlearning.as_ref().filter(|_| record.cell.kind == CellKind::Unlearn)?;
    Some(serde_json::from_value::<Unlearning>(unlearning.parameters.clone()).ok()?.of)
}

/// For each of `rows`, which are those of `plan`, a row for each unlearned model that its cell starts from: no point of the
/// grid, but a cell with a vector of its own. Its rates are left out.
pub fn unlearned_rows(plan: &Plan, rows: &[ResultRow], store: &Store) -> Result<Vec<ResultRow>, StoreError> {
    let starts = rows.iter().flat_map(|row| unlearned(&row.key, plan).map(move |key| (row, key)));
    let starts: Vec<(&ResultRow, &CellKey)> = starts.collect();
    let keys: BTreeSet<&CellKey> = starts.iter().map(|(_, key)| *key).collect();
    let found: HashMap<CellKey, _> = store.look_at_all(keys, |found| found)?.into_iter().collect();
    let row = |(row, key): (&ResultRow, &CellKey)| ResultRow {
        // Models are unlearned as they were trained, or after the repair that is measured.
        defense: plan.cells[key].defense_name().to_owned(),
        measure: "none".to_owned(),
        key: key.clone(),
        state: match &found[key] {
            Found::Done(_) => RowState::Done,
            Found::Failed(failure) => RowState::Failed(failure.reason.clone()),
            Found::Nothing | Found::Damaged(_) => RowState::Missing,
        },
        metrics: BTreeMap::new(),
        facts: Map::new(),
        seconds: None,
        shared_seconds: None,
        peak_memory_mb: None,
        ..row.clone()
    };
    Ok(starts.into_iter().map(row).collect())
}

/// The rows of a plan, in the order of its points; a damaged record counts as missing. As [`Store::look_at_all`], it writes
/// nothing but the index of very many records.
pub fn result_rows(plan: &Plan, store: &Store) -> Result<Vec<ResultRow>, StoreError> {
    let shown = plan.points.iter().map(|point| &point.cell);
    let cells: BTreeSet<&CellKey> = shown.flat_map(|key| std::iter::once(key).chain(unlearned(key, plan))).collect();
    let found: HashMap<CellKey, _> = store.look_at_all(cells, |found| found)?.into_iter().collect();
    let mut rows = Vec::with_capacity(plan.points.len());
    for point in &plan.points {
        let cell = &plan.cells[&point.cell];
        let mut row = ResultRow {
            experiment: plan.experiment.name.clone(),
            profile: cell.profile.clone(),
            dataset: cell.dataset.name.clone(),
            model: cell.model.as_ref().map_or(String::new(), |model| format!("{}/{}", model.name, model.width)),
            attack: point.attack.clone(),
            defense: point.defense.clone(),
            measure: point.measure.clone(),
            seed: point.seed,
            axes: point.axes.iter().map(|(axis, value)| (axis.clone(), plain(value))).collect(),
            key: point.cell.clone(),
            state: RowState::Missing,
            metrics: BTreeMap::new(),
            facts: Map::new(),
            seconds: None,
            shared_seconds: None,
            peak_memory_mb: None,
        };
        match &found[&point.cell] {
            Found::Done(record) => {
                row.state = RowState::Done;
                row.metrics = record.metrics.clone();
                row.facts = record.facts.clone();
                row.seconds = Some(record.seconds);
                row.shared_seconds = shared_seconds(unlearned(&point.cell, plan), &found);
                row.peak_memory_mb = Some(record.peak_memory_bytes as f64 / 1e6);
            }
            Found::Failed(failure) => row.state = RowState::Failed(failure.reason.clone()),
            Found::Nothing | Found::Damaged(_) => {}
        }
        rows.push(row);
    }
    Ok(rows)
}

/// The unlearnings that a cell starts from.
fn unlearned<'a>(key: &CellKey, plan: &'a Plan) -> impl Iterator<Item = &'a CellKey> {
    plan.cells[key].parents.iter().filter(|key| plan.cells[*key].kind == CellKind::Unlearn)
}

/// The seconds of these unlearnings; nothing if there is none, or one without a result.
fn shared_seconds<'a>(
    unlearned: impl Iterator<Item = &'a CellKey>,
    found: &HashMap<CellKey, Found<RecordSummary>>,
) -> Option<f64> {
    let mut seconds = None;
    for key in unlearned {
        let Found::Done(record) = &found[key] else { return None };
        seconds = Some(seconds.unwrap_or(0.0) + record.seconds);
    }
    seconds
}

/// A value without the quotes of JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
