//! What a finished cell leaves, and what a failed one leaves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use tsbd_defense::TracePoint;

use crate::cell::{Cell, CellKey, canonical_json};

/// Version of the record on disk. A record of another version is treated as not there.
pub const RECORD_FORMAT: u32 = 1;

/// Name of the file with what a cell found out about each neuron: a JSON object of vectors by name, each an object of
/// numbers by layer.
pub const NEURONS: &str = "neurons.json";

/// Name of the vector in it that an Unlearn cell leaves: how far each neuron's weights moved.
pub const NWC: &str = "nwc";

/// A cell's result, published as `record.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellRecord {
    /// [`RECORD_FORMAT`].
    pub format: u32,
    /// The cell's name, recomputed from `cell` whenever the record is read.
    pub key: CellKey,
    /// The cell.
    pub cell: Cell,
    /// How it ended. A published record is always [`Outcome::Done`].
    pub outcome: Outcome,
    /// Fractions in [0, 1]: `acc`, `asr`, `ra`; for Defend cells also `der`, `acc_before`, `asr_before`.
    /// What is undefined (the ASR of a clean model) is left out. Of Measure cells the numbers of the measurement, which
    /// need not be fractions.
    pub metrics: BTreeMap<String, f64>,
    /// What a reader wants to know beside the metrics: `poison_count`, `poison_per_class`, `asr_denominator`,
    /// `clean_count`, `train_images`, `test_images`, `selection`, ...
    pub facts: Map<String, Value>,
    /// Metrics on the way: per stage and epoch.
    pub trace: Vec<TracePoint>,
    /// Files published with the record, by name.
    pub artefacts: BTreeMap<String, Artefact>,
    /// Where, when and by what the cell was run. Not part of the key.
    pub provenance: Provenance,
}

/// What plans and tables need of a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordSummary {
    /// As in the record.
    pub metrics: BTreeMap<String, f64>,
    /// As in the record.
    pub facts: Map<String, Value>,
    /// Seconds of computing.
    pub seconds: f64,
    /// Largest resident memory of the process.
    pub peak_memory_bytes: u64,
    /// Whether a GPU computed it.
    pub on_gpu: bool,
    /// Start of the attempt that finished, in seconds since 1970.
    pub started_unix: u64,
}

impl From<CellRecord> for RecordSummary {
    fn from(record: CellRecord) -> Self {
        let CellRecord { metrics, facts, provenance, .. } = record;
        let Provenance { seconds, peak_memory_bytes, started_unix, .. } = provenance;
        let on_gpu = provenance.device != "cpu";
        Self { metrics, facts, seconds, peak_memory_bytes, on_gpu, started_unix }
    }
}

/// How a cell ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Outcome {
    /// With a result.
    Done,
    /// With an error; it is outstanding again on the next run.
    Failed {
        /// What went wrong.
        reason: String,
    },
    /// It never ran, because a parent failed.
    Skipped {
        /// The parent.
        parent: CellKey,
    },
}

/// [`Outcome`] without its details.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutcomeKind {
    /// There is a result.
    Done,
    /// The last attempt failed.
    Failed,
    /// A parent failed.
    Skipped,
}

/// A file that belongs to a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artefact {
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3, hexadecimal.
    pub blake3: String,
}

/// Where, when and by what a cell was run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Provenance {
    /// `cpu`, `cuda:0`, ...
    pub device: String,
    /// What computed: on a CPU the instruction set and the algorithm of convolutions, as `avx512, fast convolution`; of a GPU its
    /// name. With other ones results differ by rounding. Empty in records from before it was kept.
    #[serde(default)]
    pub kernels: String,
    /// Threads the cell computed with, together with those that were in its process.
    pub threads: usize,
    /// Wall-clock seconds of computing, those of interrupted attempts that it continued included.
    pub seconds: f64,
    /// The most other cells that its process computed at a time, since it last had none or after: the peaks are those of all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub other_cells: usize,
    /// Largest resident memory of the process.
    pub peak_memory_bytes: u64,
    /// Most memory that tensors took on a GPU; `None` of a cell that ran on a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_gpu_memory_bytes: Option<u64>,
    /// Start of the attempt that finished, in seconds since 1970.
    pub started_unix: u64,
    /// Programs.
    pub versions: Versions,
    /// Name of the machine.
    pub host: String,
    /// The job of a cluster that it ran in, and how often that was started again: `812_3, restart 1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// Versions of the programs that made a record.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Versions {
    /// Version of this program.
    pub tsbd: String,
    /// `git describe` of its source.
    pub revision: String,
    /// Version of Candle.
    pub candle: String,
}

/// What a failed attempt leaves: `failure.json`. The newest replaces the one before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// [`RECORD_FORMAT`].
    pub format: u32,
    /// The cell.
    pub key: CellKey,
    /// What went wrong, in a sentence.
    pub reason: String,
    /// The attempt's folder, inside `attempts/`.
    pub attempt: String,
    /// The last lines of the attempt's log.
    pub log_tail: Vec<String>,
    /// When, in seconds since 1970.
    pub failed_unix: u64,
}

/// Why a file is no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Cut off, or never JSON.
    #[error("it is no complete JSON: {0}")]
    Json(String),
    /// Written by another version.
    #[error("its format is {found}, this program reads format {RECORD_FORMAT}")]
    Format {
        /// What the file says.
        found: String,
    },
    /// Changed since it was written.
    #[error("its seal does not match its contents: it was changed after it was written")]
    Seal,
    /// The parameters inside are those of another cell.
    #[error("it belongs to cell {found}")]
    Key {
        /// The key of the parameters inside.
        found: CellKey,
    },
    /// A metric that JSON cannot hold.
    #[error("the metric `{name}` is {value}, and a result must be a finite number")]
    NotFinite {
        /// The metric.
        name: String,
        /// Its value.
        value: String,
    },
}

impl CellRecord {
    /// The record as it is written: JSON with a `seal`, the BLAKE3 of the canonical JSON of everything else, so that
    /// a changed digit is noticed. Refuses a metric that is not finite, which JSON cannot hold.
    pub fn to_json(&self) -> Result<String, RecordError> {
        let traced = self.trace.iter().flat_map(|point| &point.metrics);
        for (name, value) in self.metrics.iter().chain(traced) {
            if !value.is_finite() {
                return Err(RecordError::NotFinite { name: name.clone(), value: value.to_string() });
            }
        }
        let mut value = serde_json::to_value(self).map_err(|error| RecordError::Json(error.to_string()))?;
        value["seal"] = Value::from(seal(&value));
        let mut text = serde_json::to_string_pretty(&value).map_err(|error| RecordError::Json(error.to_string()))?;
        text.push('\n');
        Ok(text)
    }

    /// Reads a record and checks that it is whole, unchanged, of this format, and that its parameters have the key
    /// `expected`.
    pub fn from_json(text: &str, expected: &CellKey) -> Result<Self, RecordError> {
        let json = |error: serde_json::Error| RecordError::Json(error.to_string());
        let mut value: Value = serde_json::from_str(text).map_err(json)?;
        let format = value.get("format").cloned().unwrap_or(Value::Null);
        if format != RECORD_FORMAT {
            return Err(RecordError::Format { found: format.to_string() });
        }
        let found = value.as_object_mut().and_then(|fields| fields.remove("seal"));
        if found != Some(Value::from(seal(&value))) {
            return Err(RecordError::Seal);
        }
        // As it is written it usually has the right key; it counts as it is read, though, with what is left out filled in.
        let is_expected = value.get("cell").is_some_and(|cell| &CellKey::of(cell) == expected);
        let record: Self = serde_json::from_value(value).map_err(json)?;
        let key = if is_expected { expected.clone() } else { record.cell.key() };
        if &key != expected || &record.key != expected {
            return Err(RecordError::Key { found: key });
        }
        Ok(record)
    }
}

fn seal(value: &Value) -> String {
    blake3::hash(canonical_json(value).as_bytes()).to_hex().to_string()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cell::tests::train_cell;

    pub(crate) fn record(cell: &Cell, acc: f64) -> CellRecord {
        CellRecord {
            format: RECORD_FORMAT,
            key: cell.key(),
            cell: cell.clone(),
            outcome: Outcome::Done,
            metrics: BTreeMap::from([("acc".to_owned(), acc)]),
            facts: Map::new(),
            trace: Vec::new(),
            artefacts: BTreeMap::new(),
            provenance: Provenance { seconds: 1.5, ..Provenance::default() },
        }
    }

    #[test]
    fn a_record_survives_its_json_form() {
        let record = record(&train_cell("badnets", 0), 0.1 + 0.2);
        assert_eq!(CellRecord::from_json(&record.to_json().unwrap(), &record.key).unwrap(), record);
    }

    #[test]
    fn every_truncation_is_noticed() {
        let record = record(&train_cell("badnets", 0), 0.875);
        let text = record.to_json().unwrap();
        for length in 0..text.trim_end().len() {
            assert!(CellRecord::from_json(&text[..length], &record.key).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_changed_digit_is_noticed() {
        let record = record(&train_cell("badnets", 0), 0.875);
        let text = record.to_json().unwrap().replace("0.875", "0.975");
        assert_eq!(CellRecord::from_json(&text, &record.key), Err(RecordError::Seal));
    }

    #[test]
    fn a_record_of_another_cell_is_refused() {
        let record = record(&train_cell("badnets", 0), 0.5);
        let other = train_cell("badnets", 1).key();
        let error = CellRecord::from_json(&record.to_json().unwrap(), &other).unwrap_err();
        assert_eq!(error, RecordError::Key { found: record.key });
    }

    #[test]
    fn a_metric_that_is_no_number_is_never_written() {
        let error = record(&train_cell("badnets", 0), f64::NAN).to_json().unwrap_err();
        assert!(error.to_string().contains("`acc` is NaN"), "{error}");
    }
}
