//! The wide form as a frame: one row per line of the table, one column per method and metric, and in every row what
//! the heading of the other formats says.

use polars::prelude::*;

use super::printed;
use crate::error::Result;
use crate::table::{Line, Panel, Table, Value};

/// Everything as text: two decimals, and `missing` or `failed` where a number would be.
pub(super) fn texts(table: &Table) -> Result<DataFrame> {
    let mut columns = heading(table);
    let with_deviations = table.seeds.len() > 1;
    for (c, m, column, metric) in table.slots() {
        let name = format!("{}_{}", column.name.as_deref().unwrap_or("any"), metric.name);
        let means = lines(table).map(|(_, line)| match line.entries[c][m].value {
            Value::Undefined => None,
            Value::Measured { mean, .. } => Some(format!("{mean:.2}")),
            other => Some(printed(&other, "")),
        });
        columns.push(Column::new(name.as_str().into(), means.collect::<Vec<Option<String>>>()));
        if with_deviations {
            let deviations = lines(table).map(|(_, line)| match line.entries[c][m].value {
                Value::Measured { deviation, .. } => deviation.map(|deviation| format!("{deviation:.2}")),
                _ => None,
            });
            columns.push(Column::new(format!("{name}_std").into(), deviations.collect::<Vec<Option<String>>>()));
            columns.push(Column::new(format!("{name}_seeds").into(), seeds_done(table, c, m)));
        }
    }
    Ok(DataFrame::new_infer_height(columns)?)
}

/// Numbers as numbers, null where there is none.
pub(super) fn numbers(table: &Table) -> Result<DataFrame> {
    let mut columns = heading(table);
    let with_deviations = table.seeds.len() > 1;
    for (c, m, column, metric) in table.slots() {
        let name = format!("{}_{}", column.name.as_deref().unwrap_or("any"), metric.name);
        let pairs: Vec<(Option<f64>, Option<f64>)> = lines(table)
            .map(|(_, line)| match line.entries[c][m].value {
                Value::Measured { mean, deviation, .. } => (Some(mean), deviation),
                _ => (None, None),
            })
            .collect();
        columns.push(Column::new(name.as_str().into(), pairs.iter().map(|pair| pair.0).collect::<Vec<_>>()));
        if with_deviations {
            let deviations = pairs.iter().map(|pair| pair.1).collect::<Vec<_>>();
            columns.push(Column::new(format!("{name}_std").into(), deviations));
            columns.push(Column::new(format!("{name}_seeds").into(), seeds_done(table, c, m)));
        }
    }
    Ok(DataFrame::new_infer_height(columns)?)
}

/// Seeds that a value was averaged over; 0 where there is none.
fn seeds_done(table: &Table, c: usize, m: usize) -> Vec<u64> {
    let seeds = lines(table).map(|(_, line)| match line.entries[c][m].value {
        Value::Measured { seeds, .. } => seeds as u64,
        _ => 0,
    });
    seeds.collect()
}

fn lines(table: &Table) -> impl Iterator<Item = (&Panel, &Line)> {
    table.panels.iter().flat_map(|panel| table.lines(panel).map(move |line| (panel, line)))
}

/// The columns before the first metric: what made the table, the choice of the panel, the name of the line.
fn heading(table: &Table) -> Vec<Column> {
    let height = lines(table).count();
    let joined = |values: &[String]| values.join(" ");
    let seeds = joined(&table.seeds.iter().map(u64::to_string).collect::<Vec<_>>());
    let texts = [
        ("experiment", table.experiment.clone()),
        ("profile", table.profile.clone()),
        ("dataset", joined(&table.datasets)),
        ("model", joined(&table.models)),
        ("seeds", seeds),
    ];
    let counts =
        [("cells", table.count.cells), ("cells_missing", table.count.missing), ("cells_failed", table.count.failed)];
    let axes: Vec<&String> = table.panels.iter().flat_map(|panel| panel.choice.iter().map(|(axis, _)| axis)).collect();
    let in_use = |name: &str| name == table.row_axis || axes.iter().any(|axis| *axis == name);
    let mut columns = Vec::new();
    for (name, value) in texts.into_iter().filter(|(name, _)| !in_use(name)) {
        columns.push(Column::new(name.into(), vec![value; height]));
    }
    if !table.settings.is_empty() {
        let settings: Vec<String> =
            table.settings.iter().map(|setting| format!("{}={}", setting.key, setting.value)).collect();
        columns.push(Column::new("settings".into(), vec![joined(&settings); height]));
    }
    for (name, count) in counts {
        columns.push(Column::new(name.into(), vec![count as u64; height]));
    }
    let mut seen: Vec<&String> = Vec::new();
    for axis in axes {
        if !seen.contains(&axis) {
            seen.push(axis);
            let value =
                |panel: &Panel| panel.choice.iter().find(|(name, _)| name == axis).map(|(_, value)| value.clone());
            let values: Vec<Option<String>> = lines(table).map(|(panel, _)| value(panel)).collect();
            columns.push(Column::new(axis.as_str().into(), values));
        }
    }
    let names: Vec<Option<String>> = lines(table).map(|(_, line)| line.name.clone()).collect();
    columns.push(Column::new(table.row_axis.as_str().into(), names));
    if table.source.is_some() {
        let published: Vec<bool> = lines(table).map(|(_, line)| line.is_published).collect();
        columns.push(Column::new("published".into(), published));
    }
    columns
}
