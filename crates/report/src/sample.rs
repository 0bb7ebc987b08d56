//! Result rows made by hand, for the tests of this crate.

use std::collections::BTreeMap;

use serde_json::Map;
use tsbd_experiment::{CellKey, Experiment, ResultRow, RowState, TableSpec};

use crate::titles::Titles;

/// A finished point; metrics are fractions.
pub(crate) fn done(attack: &str, defense: &str, seed: u64, metrics: &[(&str, f64)]) -> ResultRow {
    let mut row = missing(attack, defense, seed);
    row.state = RowState::Done;
    row.metrics = metrics.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    row.seconds = Some(12.5);
    row.peak_memory_mb = Some(256.0);
    row
}

/// A point without a result.
pub(crate) fn missing(attack: &str, defense: &str, seed: u64) -> ResultRow {
    ResultRow {
        experiment: "table1".into(),
        profile: "smoke".into(),
        dataset: "shapes".into(),
        model: "preact-resnet18/8".into(),
        attack: attack.into(),
        defense: defense.into(),
        measure: "none".into(),
        seed,
        axes: BTreeMap::new(),
        key: key(attack, defense, seed),
        state: RowState::Missing,
        metrics: BTreeMap::new(),
        facts: Map::new(),
        seconds: None,
        shared_seconds: None,
        peak_memory_mb: None,
    }
}

/// A point whose cell failed.
pub(crate) fn failed(attack: &str, defense: &str, seed: u64, reason: &str) -> ResultRow {
    ResultRow { state: RowState::Failed(reason.into()), ..missing(attack, defense, seed) }
}

/// Some key that depends on the arguments alone.
pub(crate) fn key(attack: &str, defense: &str, seed: u64) -> CellKey {
    let digits = format!("{attack} {defense} {seed}").bytes().fold(7_u128, |sum, byte| sum * 257 + u128::from(byte));
    format!("{digits:032x}").parse().expect("32 hexadecimal digits are a key")
}

pub(crate) fn experiment() -> Experiment {
    Experiment {
        name: "table1".into(),
        title: "Table 1: defenses".into(),
        profile: "smoke".into(),
        settings: Vec::new(),
        table: TableSpec::default(),
        figure: None,
    }
}

pub(crate) fn titles() -> Titles {
    Titles::new()
        .attacks([("badnets", "BadNets"), ("blended", "Blended")])
        .defenses([("ft", "FT"), ("fp", "FP"), ("tsbd", "TSBD")])
        .datasets([("shapes", "shapes")])
        .models([("preact-resnet18", "PreAct-ResNet18")])
}

/// Two attacks and a clean model, four methods, one seed: FP on BadNets is missing, TSBD on Blended failed.
pub(crate) fn grid() -> Vec<ResultRow> {
    vec![
        done("none", "none", 0, &[("acc", 0.9312)]),
        done("none", "ft", 0, &[("acc", 0.9250)]),
        done("none", "fp", 0, &[("acc", 0.9250)]),
        done("none", "tsbd", 0, &[("acc", 0.9101)]),
        done("badnets", "none", 0, &[("acc", 0.9123), ("asr", 0.9990), ("ra", 0.0010)]),
        done("badnets", "ft", 0, &[("acc", 0.9011), ("asr", 0.4567), ("ra", 0.5), ("der", 0.7655)]),
        missing("badnets", "fp", 0),
        done("badnets", "tsbd", 0, &[("acc", 0.8956), ("asr", 0.0123), ("ra", 0.88), ("der", 0.985)]),
        done("blended", "none", 0, &[("acc", 0.9234), ("asr", 0.9876), ("ra", 0.0100)]),
        done("blended", "ft", 0, &[("acc", 0.9111), ("asr", 0.8765), ("ra", 0.1), ("der", 0.5494)]),
        done("blended", "fp", 0, &[("acc", 0.9000), ("asr", 0.7654), ("ra", 0.2), ("der", 0.5994)]),
        failed("blended", "tsbd", 0, "the loss is NaN at epoch 3, step 17"),
    ]
}
