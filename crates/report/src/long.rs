//! The long form: one row per finished cell, for other programs. Its columns are documented in
//! `docs/results-schema.md`.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};

use polars::prelude::*;
use rayon::prelude::*;
use serde_json::Value as Json;
use tsbd_experiment::{ResultRow, RowState};

use crate::axis::CellAxes;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::render;

/// A column of the long form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColumnDescription {
    /// Its name.
    pub name: &'static str,
    /// Its Parquet type: `string`, `uint64` or `double`.
    pub kind: &'static str,
    /// What it holds, with the unit.
    pub meaning: &'static str,
}

const fn column(name: &'static str, kind: &'static str, meaning: &'static str) -> ColumnDescription {
    ColumnDescription { name, kind, meaning }
}

/// The columns that are always there, in order. Further metrics follow by name, then one `axis.<key>` for each other
/// axis of the grid.
pub const COLUMNS: &[ColumnDescription] = &[
    column("experiment", "string", "stem of the experiment file"),
    column("profile", "string", "profile that made the result"),
    column("dataset", "string", "name of the data set"),
    column("model", "string", "name and width of the network, `preact-resnet18/16`"),
    column("attack", "string", "name of the attack; `none` for a clean model"),
    column("defense", "string", "name of the defense; `none` for the model as trained"),
    column("seed", "uint64", "seed of the run"),
    column("acc", "double", "accuracy on clean test images, in percent"),
    column("asr", "double", "triggered test images (target class left out) classified as the target, in percent"),
    column("ra", "double", "the same images classified as what they show, in percent"),
    column("der", "double", "defense effectiveness rating against the model before repair, in percent"),
    column("seconds", "double", "wall-clock seconds the cell took"),
    column(
        "peak_memory_mb",
        "double",
        "largest resident memory of the cell's process, in MB (10^6 bytes); on a GPU other cells may share it",
    ),
    column("key", "string", "the cell's key: its folder under `results/cells`"),
    column("acc_before", "double", "accuracy of the model before repair, in percent"),
    column("asr_before", "double", "attack success rate of the model before repair, in percent"),
    column("poison_count", "uint64", "training images poisoned"),
    column("poison_per_class", "string", "the same by original class, as JSON"),
    column("asr_denominator", "uint64", "triggered test images that ASR and RA are counted over"),
    column("clean_count", "uint64", "clean training images the defense was given"),
    column("train_images", "uint64", "training images"),
    column("test_images", "uint64", "test images"),
    column("selection", "string", "how the defense chose among its candidates, e.g. `oracle` or `validation`"),
    column("facts", "string", "everything the cell noted beside its metrics, as one JSON object"),
    column("measure", "string", "name of the measurement; `none` for a model and its rates"),
    column(
        "shared_seconds",
        "double",
        "seconds of the unlearning that it starts from, a cell of its own that others share",
    ),
    column("variant", "string", "`reference` or `paper`, where a defense has both: whose steps it took"),
];

/// Results in long form.
#[derive(Debug, Clone)]
pub struct LongTable {
    frame: DataFrame,
}

/// One row per cell with a result, in the order of the grid. Rows of several experiments may be mixed.
///
/// A cell that several points of the grid share gives one row; an axis that it does not depend on is empty there.
pub fn long(rows: &[ResultRow]) -> Result<LongTable> {
    let mut seen = HashSet::new();
    let finished: Vec<&ResultRow> =
        rows.iter().filter(|row| row.state == RowState::Done && seen.insert((&row.experiment, &row.key))).collect();
    let mut columns: Vec<Column> = COLUMNS
        .par_iter()
        .map(|description| match description.kind {
            "double" => doubles(description.name, &finished, |row| double(row, description.name)),
            "uint64" => counts(description.name, &finished, |row| match description.name {
                "seed" => Some(row.seed),
                fact => row.facts.get(fact)?.as_u64(),
            }),
            _ => texts(description.name, &finished, |row| text(row, description.name)),
        })
        .collect();
    let known: BTreeSet<&str> = COLUMNS.iter().map(|description| description.name).collect();
    let further: BTreeSet<&str> = finished
        .iter()
        .flat_map(|row| row.metrics.keys())
        .map(String::as_str)
        .filter(|name| !known.contains(name))
        .collect();
    columns.extend(further.into_iter().map(|name| doubles(name, &finished, |row| double(row, name))));
    let axes = CellAxes::of(rows);
    columns.extend(
        axes.names()
            .map(|axis| texts(&format!("axis.{axis}"), &finished, |row| axes.value(row, axis).map(Cow::Borrowed))),
    );
    Ok(LongTable { frame: DataFrame::new(finished.len(), columns)? })
}

impl LongTable {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.frame.height()
    }

    /// Whether nothing is finished.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes it. CSV has one line of names, empty fields for what is not there, and no quotes where none are needed.
    /// The text form leaves columns out; Markdown and LaTeX are refused.
    pub fn render(&self, format: Format) -> Result<Vec<u8>> {
        match format {
            Format::Csv => render::frame::csv(&self.frame),
            Format::Parquet => render::frame::parquet(&self.frame),
            Format::Json => render::frame::json(&self.frame, &["facts", "poison_per_class"]),
            Format::Text => render::frame::text(&self.frame, &NARROW),
            Format::Markdown | Format::Latex => {
                Err(Error::Unsupported { format, way_out: "csv, parquet, json or text" })
            }
        }
    }
}

/// What fits on a terminal.
const NARROW: [&str; 12] = [
    "dataset",
    "model",
    "attack",
    "defense",
    "seed",
    "acc",
    "asr",
    "ra",
    "der",
    "seconds",
    "shared_seconds",
    "peak_memory_mb",
];

fn text<'a>(row: &'a ResultRow, name: &str) -> Option<Cow<'a, str>> {
    Some(Cow::Borrowed(match name {
        "experiment" => &row.experiment,
        "profile" => &row.profile,
        "dataset" => &row.dataset,
        "model" => &row.model,
        "attack" => &row.attack,
        "defense" => &row.defense,
        "measure" => &row.measure,
        "key" => row.key.as_str(),
        "facts" => {
            let json = serde_json::to_string(&row.facts).expect("facts have string keys only");
            return Some(Cow::Owned(json));
        }
        fact => match row.facts.get(fact)? {
            Json::Null => return None,
            Json::String(text) => text,
            other => return Some(Cow::Owned(other.to_string())),
        },
    }))
}

fn double(row: &ResultRow, name: &str) -> Option<f64> {
    match name {
        "seconds" => row.seconds.map(|value| rounded(value, 1e3)),
        "shared_seconds" => row.shared_seconds.map(|value| rounded(value, 1e3)),
        "peak_memory_mb" => row.peak_memory_mb.map(|value| rounded(value, 1e3)),
        // Metrics are counts over counts: six decimals of a percent lose nothing and hide 91.23000000000002.
        metric if row.measure == "none" => row.shown(metric).map(|percent| rounded(percent, 1e6)),
        number => row.shown(number),
    }
}

fn rounded(value: f64, steps: f64) -> f64 {
    (value * steps).round() / steps
}

fn doubles(name: &str, rows: &[&ResultRow], value: impl Fn(&ResultRow) -> Option<f64>) -> Column {
    Column::new(name.into(), rows.iter().map(|row| value(row)).collect::<Vec<Option<f64>>>())
}

fn counts(name: &str, rows: &[&ResultRow], value: impl Fn(&ResultRow) -> Option<u64>) -> Column {
    Column::new(name.into(), rows.iter().map(|row| value(row)).collect::<Vec<Option<u64>>>())
}

fn texts<'a>(name: &str, rows: &[&'a ResultRow], value: impl Fn(&'a ResultRow) -> Option<Cow<'a, str>>) -> Column {
    let values: StringChunked = rows.iter().map(|row| value(row)).collect();
    values.with_name(name.into()).into_column()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use serde_json::json;

    use super::*;
    use crate::sample::{done, grid};

    fn csv(rows: &[ResultRow]) -> String {
        String::from_utf8(long(rows).unwrap().render(Format::Csv).unwrap()).unwrap()
    }

    #[test]
    fn csv_has_one_row_per_finished_cell_in_percent() {
        let mut rows = grid();
        rows.truncate(7);
        for row in &mut rows {
            row.facts.insert("poison_count".into(), json!(200));
        }
        let text = csv(&rows);
        let mut lines = text.lines();
        assert!(lines.next().unwrap().starts_with(
            "experiment,profile,dataset,model,attack,defense,seed,acc,asr,ra,der,seconds,peak_memory_mb,key,"
        ));
        let starts: Vec<String> = lines.map(|line| line.split(',').take(13).collect::<Vec<_>>().join(",")).collect();
        assert_eq!(
            starts,
            [
                "table1,smoke,shapes,preact-resnet18/8,none,none,0,93.12,,,,12.5,256",
                "table1,smoke,shapes,preact-resnet18/8,none,ft,0,92.5,,,,12.5,256",
                "table1,smoke,shapes,preact-resnet18/8,none,fp,0,92.5,,,,12.5,256",
                "table1,smoke,shapes,preact-resnet18/8,none,tsbd,0,91.01,,,,12.5,256",
                "table1,smoke,shapes,preact-resnet18/8,badnets,none,0,91.23,99.9,0.1,,12.5,256",
                "table1,smoke,shapes,preact-resnet18/8,badnets,ft,0,90.11,45.67,50,76.55,12.5,256",
            ]
        );
    }

    #[test]
    fn without_a_result_there_is_the_line_of_names_alone() {
        let nothing = csv(&[]);
        assert_eq!(nothing.lines().count(), 1);
        let names: Vec<&str> = COLUMNS.iter().map(|column| column.name).collect();
        assert_eq!(nothing.trim_end(), names.join(","));
        assert!(long(&[]).unwrap().is_empty());
    }

    #[test]
    fn a_shared_cell_is_one_row_and_empty_on_axes_it_does_not_depend_on() {
        let ratio = "defenses.tsbd.neuron_ratio";
        let mut rows = Vec::new();
        for value in ["0.05", "0.15"] {
            let mut shared = done("badnets", "ft", 0, &[("acc", 0.9)]);
            shared.axes.insert(ratio.into(), value.into());
            let mut own = done("badnets", "tsbd", value.len() as u64 + u64::from(value == "0.05"), &[("acc", 0.8)]);
            own.axes.insert(ratio.into(), value.into());
            rows.extend([shared, own]);
        }
        let long = long(&rows).unwrap();
        assert_eq!(long.len(), 3);
        let axis = long.frame.column(&format!("axis.{ratio}")).unwrap().str().unwrap();
        assert_eq!(axis.iter().collect::<Vec<_>>(), [None, Some("0.05"), Some("0.15")]);
    }

    #[test]
    fn parquet_is_read_back_as_it_was() {
        let mut rows = grid();
        rows[5].facts.insert("selection".into(), json!("validation"));
        rows[5].facts.insert("variant".into(), json!("paper"));
        rows[5].facts.insert("poison_per_class".into(), json!([1, 2, 3]));
        rows[5].facts.insert("clean_count".into(), json!(100));
        rows[5].metrics.insert("acc_first_epoch".into(), 0.5);
        let long = long(&rows).unwrap();
        let bytes = long.render(Format::Parquet).unwrap();
        let read = ParquetReader::new(Cursor::new(bytes)).finish().unwrap();
        assert!(read.equals_missing(&long.frame));
        assert_eq!(read.height(), 10);
        assert_eq!(read.column("selection").unwrap().str().unwrap().get(5), Some("validation"));
        let variants = read.column("variant").unwrap().str().unwrap();
        assert_eq!((variants.get(5), variants.get(4)), (Some("paper"), None));
        assert_eq!(read.column("poison_per_class").unwrap().str().unwrap().get(5), Some("[1,2,3]"));
        assert_eq!(read.column("clean_count").unwrap().u64().unwrap().get(5), Some(100));
        assert_eq!(read.column("acc_first_epoch").unwrap().f64().unwrap().get(5), Some(50.0));
        assert_eq!(read.column("acc_first_epoch").unwrap().f64().unwrap().get(4), None);
    }

    #[test]
    fn the_seconds_of_a_shared_unlearning_stand_beside_those_of_the_repair() {
        let mut repaired = done("badnets", "tsbd", 0, &[("acc", 0.9)]);
        repaired.shared_seconds = Some(61.25);
        let plain = done("badnets", "ft", 1, &[("acc", 0.9)]);
        let long = long(&[repaired, plain]).unwrap();
        let of = |name: &str| long.frame.column(name).unwrap().f64().unwrap().iter().collect::<Vec<_>>();
        assert_eq!((of("seconds"), of("shared_seconds")), (vec![Some(12.5); 2], vec![Some(61.25), None]));
        let text = String::from_utf8(long.render(Format::Text).unwrap()).unwrap();
        assert!(text.contains("shared_seconds") && text.contains("61.25"), "{text}");
    }

    #[test]
    fn json_gives_objects_with_numbers_and_facts_as_objects() {
        let mut rows = grid();
        rows.truncate(1);
        rows[0].facts.insert("train_images".into(), json!(2000));
        let bytes = long(&rows).unwrap().render(Format::Json).unwrap();
        let value: Json = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(value[0]["acc"], json!(93.12));
        assert_eq!(value[0]["asr"], Json::Null);
        assert_eq!(value[0]["train_images"], json!(2000));
        assert_eq!(value[0]["facts"], json!({ "train_images": 2000 }));
    }

    #[test]
    fn the_same_rows_give_the_same_bytes() {
        for format in [Format::Csv, Format::Parquet, Format::Json, Format::Text] {
            let bytes = || long(&grid()).unwrap().render(format).unwrap();
            assert_eq!(bytes(), bytes(), "{format}");
        }
    }

    #[test]
    fn latex_is_refused_with_the_way_out() {
        let message = long(&grid()).unwrap().render(Format::Latex).unwrap_err().to_string();
        assert_eq!(message, "the long form cannot be written as tex: use csv, parquet, json or text");
    }

    #[test]
    fn every_column_is_documented() {
        let page = include_str!("../../../docs/results-schema.md");
        for column in COLUMNS {
            let line = format!("| `{}` | {} | {} |", column.name, column.kind, column.meaning);
            assert!(page.contains(&line), "docs/results-schema.md lacks the line\n{line}");
        }
    }
}
