//! Writing frames of Polars.

use comfy_table::{Cell, CellAlignment, presets};
use polars::prelude::*;
use serde_json::{Map, Value as Json};

use crate::error::Result;

/// Version of the columns of both forms, kept in the Parquet file under `tsbd.schema`. It is raised when a column
/// changes its name or meaning.
const SCHEMA_VERSION: &str = "1";

/// CSV with one line of names; empty for null.
pub(crate) fn csv(frame: &DataFrame) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    CsvWriter::new(&mut bytes).n_threads(1).with_float_scientific(Some(false)).finish(&mut frame.clone())?;
    Ok(bytes)
}

/// Parquet, one row group, compressed with Zstandard.
pub(crate) fn parquet(frame: &DataFrame) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let metadata = vec![("tsbd.schema".to_owned(), SCHEMA_VERSION.to_owned())];
    ParquetWriter::new(&mut bytes)
        .set_parallel(false)
        .with_key_value_metadata(Some(KeyValueMetadata::from_static(metadata)))
        .finish(&mut frame.clone())?;
    Ok(bytes)
}

/// An array of one object per row. The columns in `parsed` hold JSON text and become what it says.
pub(crate) fn json(frame: &DataFrame, parsed: &[&str]) -> Result<Vec<u8>> {
    let mut rows = Vec::with_capacity(frame.height());
    for index in 0..frame.height() {
        let mut row = Map::new();
        for column in frame.columns() {
            let mut value = json_value(column.get(index)?);
            if let (true, Json::String(text)) = (parsed.contains(&column.name().as_str()), &value) {
                value = serde_json::from_str(text)?;
            }
            row.insert(column.name().to_string(), value);
        }
        rows.push(Json::Object(row));
    }
    let mut bytes = serde_json::to_vec_pretty(&rows)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The columns `names` for a terminal; numbers with two decimals, to the right.
pub(crate) fn text(frame: &DataFrame, names: &[&str]) -> Result<Vec<u8>> {
    let mut grid = comfy_table::Table::new();
    grid.load_style(presets::UTF8_FULL_CONDENSED).force_no_tty();
    grid.set_header(names);
    for index in 0..frame.height() {
        let mut cells = Vec::with_capacity(names.len());
        for name in names {
            cells.push(match frame.column(name)?.get(index)? {
                AnyValue::Float64(number) => Cell::new(format!("{number:.2}")).set_alignment(CellAlignment::Right),
                AnyValue::UInt64(number) => Cell::new(number).set_alignment(CellAlignment::Right),
                AnyValue::Null => Cell::new("–").set_alignment(CellAlignment::Right),
                other => Cell::new(other.str_value()),
            });
        }
        grid.add_row(cells);
    }
    Ok(format!("{grid}\n").into_bytes())
}

fn json_value(value: AnyValue<'_>) -> Json {
    match value {
        AnyValue::Null => Json::Null,
        AnyValue::Float64(number) => Json::from(number),
        AnyValue::UInt64(number) => Json::from(number),
        other => Json::from(other.str_value().into_owned()),
    }
}
