//! Vectors of neurons in long form: one row per neuron and vector, for figures and for other programs. Its columns are
//! documented in `docs/results-schema.md`.

use polars::prelude::*;
use tsbd_experiment::{NeuronRows, ResultRow};

use crate::axis::CellAxes;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::long::ColumnDescription;
use crate::render;

const fn column(name: &'static str, kind: &'static str, meaning: &'static str) -> ColumnDescription {
    ColumnDescription { name, kind, meaning }
}

/// The columns that are always there, in order. One `axis.<key>` for each other axis of the grid follows.
pub const NEURON_COLUMNS: &[ColumnDescription] = &[
    column("experiment", "string", "stem of the experiment file"),
    column("profile", "string", "profile that made the result"),
    column("dataset", "string", "name of the data set"),
    column("model", "string", "name and width of the network, `preact-resnet18/16`"),
    column("attack", "string", "name of the attack"),
    column("defense", "string", "name of the defense; `none` for the model as trained"),
    column("measure", "string", "name of the measurement; `none` for what a defense or an unlearning left"),
    column("seed", "uint64", "seed of the run"),
    column("key", "string", "the cell's key: its folder under `results/cells`"),
    column("vector", "string", "name of the vector, e.g. `nwc_clean` or `tac_clp`"),
    column(
        "layer",
        "string",
        "name of the convolution (of what a defense left perhaps a batch norm or the linear layer)",
    ),
    column("neuron", "uint64", "number of the filter in its layer, from 0"),
    column("value", "double", "the neuron's number, as it is"),
];

/// Vectors of neurons in long form.
#[derive(Debug, Clone)]
pub struct NeuronTable {
    frame: DataFrame,
}

/// One row per neuron and vector of `cells`, in the order of the grid and of the network.
///
/// `grid` are the rows of all its points, which tell the further axes. One that a cell does not depend on is empty.
pub fn neurons(cells: &[NeuronRows], grid: &[ResultRow]) -> Result<NeuronTable> {
    let rows: Vec<(&ResultRow, &str, &str, usize, f64)> = cells
        .iter()
        .flat_map(|cell| cell.vectors.iter().map(move |(name, vector)| (&cell.row, name.as_str(), vector)))
        .flat_map(|(row, name, vector)| {
            let of_layer = move |(layer, values): (_, &'_ [f64])| {
                let numbered = values.iter().enumerate().map(|(neuron, value)| (neuron, *value)).collect::<Vec<_>>();
                numbered.into_iter().map(move |(neuron, value)| (row, name, layer, neuron, value))
            };
            vector.layers().flat_map(of_layer).collect::<Vec<_>>()
        })
        .collect();
    let axes = CellAxes::of(grid);
    let of_axes = axes.names().map(|axis| {
        let values: Vec<Option<&str>> = rows.iter().map(|(row, ..)| axes.value(row, axis)).collect();
        Column::new(format!("axis.{axis}").into(), values)
    });
    let columns = NEURON_COLUMNS.iter().map(|description| {
        let name = description.name.into();
        match description.name {
            "seed" => Column::new(name, rows.iter().map(|(row, ..)| row.seed).collect::<Vec<u64>>()),
            "neuron" => Column::new(name, rows.iter().map(|(.., neuron, _)| *neuron as u64).collect::<Vec<u64>>()),
            "value" => Column::new(name, rows.iter().map(|(.., value)| *value).collect::<Vec<f64>>()),
            text => {
                let value = |&(row, vector, layer, ..): &(&'_ ResultRow, &'_ str, &'_ str, usize, f64)| match text {
                    "experiment" => row.experiment.clone(),
                    "profile" => row.profile.clone(),
                    "dataset" => row.dataset.clone(),
                    "model" => row.model.clone(),
                    "attack" => row.attack.clone(),
                    "defense" => row.defense.clone(),
                    "measure" => row.measure.clone(),
                    "key" => row.key.to_string(),
                    "vector" => vector.to_owned(),
                    _ => layer.to_owned(),
                };
                Column::new(name, rows.iter().map(value).collect::<Vec<String>>())
            }
        }
    });
    Ok(NeuronTable { frame: DataFrame::new(rows.len(), columns.chain(of_axes).collect())? })
}

impl NeuronTable {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.frame.height()
    }

    /// Whether no cell left a vector.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes it as CSV, Parquet or JSON: a vector has thousands of rows, so the forms for people are refused.
    pub fn render(&self, format: Format) -> Result<Vec<u8>> {
        match format {
            Format::Csv => render::frame::csv(&self.frame),
            Format::Parquet => render::frame::parquet(&self.frame),
            Format::Json => render::frame::json(&self.frame, &[]),
            Format::Text | Format::Markdown | Format::Latex => {
                Err(Error::Unsupported { format, way_out: "csv, parquet or json" })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::sample::done;

    fn cells() -> Vec<NeuronRows> {
        let vectors = serde_json::from_str(r#"{"nwc_clean": {"conv1": [0.5, 1e-9], "conv2": [0.1]}, "a": {"x": []}}"#);
        let row = ResultRow { measure: "nwc".into(), ..done("badnets", "none", 0, &[("pearson", 0.97)]) };
        vec![NeuronRows { row, vectors: vectors.unwrap() }]
    }

    #[test]
    fn each_neuron_of_each_vector_is_a_row_with_every_digit() {
        let table = neurons(&cells(), &[]).unwrap();
        let csv = String::from_utf8(table.render(Format::Csv).unwrap()).unwrap();
        let lines: Vec<&str> = csv.lines().collect();
        let names: Vec<&str> = NEURON_COLUMNS.iter().map(|column| column.name).collect();
        assert_eq!(lines[0], names.join(","));
        assert_eq!(lines.len(), 4);
        assert!(lines[1].starts_with("table1,smoke,shapes,preact-resnet18/8,badnets,none,nwc,0,"));
        assert!(lines[1].ends_with(",nwc_clean,conv1,0,0.5") && lines[3].ends_with(",nwc_clean,conv2,0,0.1"), "{csv}");
    }

    #[test]
    fn parquet_tells_layer_neuron_value_and_the_axes_a_cell_depends_on() {
        let (layer, ratio) = ("measures.nwc.layer", "defenses.tsbd.neuron_ratio");
        let at = |seed, values: [&str; 2]| {
            let mut row = ResultRow { measure: "nwc".into(), ..done("badnets", "none", seed, &[]) };
            row.axes.extend([layer, ratio].map(str::to_owned).into_iter().zip(values.map(str::to_owned)));
            row
        };
        // One cell for each seed, which both of its points share.
        let grid = [at(0, ["conv1", "0.1"]), at(0, ["conv1", "0.2"]), at(1, ["conv2", "0.1"]), at(1, ["conv2", "0.2"])];
        let of = |row: &ResultRow| NeuronRows { row: row.clone(), ..cells().remove(0) };
        let table = neurons(&[of(&grid[0]), of(&grid[2])], &grid).unwrap();
        let bytes = table.render(Format::Parquet).unwrap();
        let read = ParquetReader::new(Cursor::new(bytes)).finish().unwrap();
        assert!(read.equals_missing(&table.frame));
        let texts = |name: &str| {
            let column = read.column(name).unwrap().str().unwrap();
            column.iter().map(|text| text.unwrap_or("nothing").to_owned()).collect::<Vec<String>>()
        };
        assert_eq!(texts("layer"), ["conv1", "conv1", "conv2", "conv1", "conv1", "conv2"]);
        let neurons: Vec<u64> = read.column("neuron").unwrap().u64().unwrap().into_no_null_iter().collect();
        assert_eq!(neurons, [0, 1, 0, 0, 1, 0]);
        let values: Vec<f64> = read.column("value").unwrap().f64().unwrap().into_no_null_iter().collect();
        assert_eq!(values, [0.5, 1e-9, 0.1, 0.5, 1e-9, 0.1]);
        assert_eq!(texts(&format!("axis.{layer}")), ["conv1", "conv1", "conv1", "conv2", "conv2", "conv2"]);
        assert_eq!(texts(&format!("axis.{ratio}")), ["nothing"; 6], "they do not depend on it");
        assert_eq!(read.width(), NEURON_COLUMNS.len() + 2);
    }

    #[test]
    fn no_vector_gives_the_line_of_names_and_forms_for_people_are_refused() {
        assert!(neurons(&[], &[]).unwrap().is_empty());
        let message = neurons(&[], &[]).unwrap().render(Format::Text).unwrap_err().to_string();
        assert!(message.ends_with("use csv, parquet or json"), "{message}");
    }

    #[test]
    fn every_column_is_documented() {
        let page = include_str!("../../../docs/results-schema.md");
        for column in NEURON_COLUMNS {
            let line = format!("| `{}` | {} | {} |", column.name, column.kind, column.meaning);
            assert!(page.contains(&line), "docs/results-schema.md lacks the line\n{line}");
        }
    }
}
