//! One JSON value with everything the table knows, for programs that want the wide form.

use serde_json::{Map, Value as Json, json};

use crate::error::Result;
use crate::table::{Entry, Line, Table, Unit, Value};

pub(super) fn render(table: &Table) -> Result<Vec<u8>> {
    let panels = table.panels.iter().map(|panel| {
        let choice: Map<String, Json> = panel.choice.iter().map(|(a, v)| (a.clone(), Json::from(v.as_str()))).collect();
        json!({
            "axes": choice,
            "rows": panel.lines.iter().map(|row| line(table, row)).collect::<Vec<_>>(),
            "averages": panel.averages.iter().map(|row| line(table, row)).collect::<Vec<_>>(),
        })
    });
    let columns = table.columns.iter().map(|column| {
        let metrics: Vec<&str> = column.metrics.iter().map(|metric| metric.name.as_str()).collect();
        json!({ "name": column.name, "title": column.title, "metrics": metrics })
    });
    let failed =
        table.failed.iter().map(|cell| json!({ "place": cell.place, "key": cell.key.as_str(), "reason": cell.reason }));
    let settings: Map<String, Json> =
        table.settings.iter().map(|set| (set.key.clone(), Json::from(set.value.as_str()))).collect();
    let value = json!({
        "experiment": table.experiment,
        "title": table.title,
        "profile": table.profile,
        "settings": settings,
        "datasets": table.datasets,
        "models": table.models,
        "seeds": table.seeds,
        "unit": match table.unit {
            Unit::Percent => "percent",
            Unit::Plain => "plain",
            Unit::Mixed => "percent of rates, measurements plain",
        },
        "cells": {
            "all": table.count.cells,
            "done": table.count.done,
            "missing": table.count.missing,
            "failed": table.count.failed,
        },
        "failures": failed.collect::<Vec<_>>(),
        "row_axis": table.row_axis,
        "column_axis": table.column_axis,
        "columns": columns.collect::<Vec<_>>(),
        "panels": panels.collect::<Vec<_>>(),
        "published": table.source,
    });
    let mut bytes = serde_json::to_vec_pretty(&value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn line(table: &Table, line: &Line) -> Json {
    let mut columns = Map::new();
    for (position, column) in table.columns.iter().enumerate() {
        let entries = column.metrics.iter().zip(&line.entries[position]);
        let entries: Map<String, Json> = entries.map(|(metric, shown)| (metric.name.clone(), entry(shown))).collect();
        columns.insert(column.name.clone().unwrap_or_else(|| "any".into()), Json::Object(entries));
    }
    json!({ "name": line.name, "title": line.title, "published": line.is_published, "columns": columns })
}

fn entry(entry: &Entry) -> Json {
    match entry.value {
        Value::Measured { mean, deviation, seeds, of } => json!({
            "state": if seeds == of { "done" } else { "partial" },
            "mean": mean,
            "deviation": deviation,
            "seeds": seeds,
            "of": of,
            "best": entry.best,
        }),
        Value::Missing => json!({ "state": "missing" }),
        Value::Failed => json!({ "state": "failed" }),
        Value::Undefined => json!({ "state": "undefined" }),
    }
}
