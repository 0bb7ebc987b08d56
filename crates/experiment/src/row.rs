//! One grid point joined with its record: what tables are made of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::cell::CellKey;
use crate::plan::Plan;
use crate::store::{Found, Store, StoreError, Verification};

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
    /// Seed.
    pub seed: u64,
    /// The other axes of the grid that apply, as text.
    pub axes: BTreeMap<String, String>,
    /// The cell.
    pub key: CellKey,
    /// Whether there is a result.
    pub state: RowState,
    /// Fractions; empty unless done.
    pub metrics: BTreeMap<String, f64>,
    /// Counts and choices beside the metrics; empty unless done.
    pub facts: Map<String, Value>,
    /// Seconds the cell took.
    pub seconds: Option<f64>,
    /// Largest resident memory of its process, in MB (10^6 bytes).
    pub peak_memory_mb: Option<f64>,
}

/// The rows of a plan, in the order of its points. Reads, never writes; a damaged record counts as missing.
pub fn result_rows(plan: &Plan, store: &Store) -> Result<Vec<ResultRow>, StoreError> {
    let mut found: BTreeMap<&CellKey, Found> = BTreeMap::new();
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
            seed: point.seed,
            axes: point.axes.iter().map(|(axis, value)| (axis.clone(), plain(value))).collect(),
            key: point.cell.clone(),
            state: RowState::Missing,
            metrics: BTreeMap::new(),
            facts: Map::new(),
            seconds: None,
            peak_memory_mb: None,
        };
        if !found.contains_key(&point.cell) {
            found.insert(&point.cell, store.look(&point.cell, Verification::Sizes)?);
        }
        match &found[&point.cell] {
            Found::Done(record) => {
                row.state = RowState::Done;
                row.metrics = record.metrics.clone();
                row.facts = record.facts.clone();
                row.seconds = Some(record.provenance.seconds);
                row.peak_memory_mb = Some(record.provenance.peak_memory_bytes as f64 / 1e6);
            }
            Found::Failed(failure) => row.state = RowState::Failed(failure.reason.clone()),
            Found::Nothing | Found::Damaged(_) => {}
        }
        rows.push(row);
    }
    Ok(rows)
}

/// A value without the quotes of JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
