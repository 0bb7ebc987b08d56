//! Which values of a table are the best of their contest.

use std::collections::BTreeSet;

use crate::axis;
use crate::metric::Better;
use crate::render::decimals;
use crate::table::{Column, Line, Value};

/// Marks the best entries. Values are compared as they are printed, so that equal numbers are equally bold.
pub(crate) fn mark_best(
    lines: &mut [Line],
    average: Option<&mut Line>,
    columns: &[Column],
    row_axis: &str,
    column_axis: &str,
) {
    let competes = |axis: &str, name: &Option<String>| axis != "defense" || name.as_deref() != Some("none");
    if axis::is_contest(column_axis) {
        let rivals: Vec<usize> = (0..columns.len()).filter(|&c| competes(column_axis, &columns[c].name)).collect();
        for line in lines.iter_mut().chain(average) {
            let names: BTreeSet<&str> = columns.iter().flat_map(|c| &c.metrics).map(|m| m.name.as_str()).collect();
            for name in names {
                let slot = |c: &usize| Some((*c, columns[*c].metrics.iter().position(|metric| metric.name == name)?));
                let slots: Vec<(usize, usize)> = rivals.iter().filter_map(slot).collect();
                let Some(&(c, m)) = slots.first() else { continue };
                let values: Vec<Value> = slots.iter().map(|&(c, m)| line.entries[c][m].value).collect();
                for winner in winners(&values, columns[c].metrics[m].better) {
                    let (c, m) = slots[winner];
                    line.entries[c][m].best = true;
                }
            }
        }
    } else if axis::is_contest(row_axis) {
        let rivals: Vec<usize> = (0..lines.len()).filter(|&r| competes(row_axis, &lines[r].name)).collect();
        for (c, column) in columns.iter().enumerate() {
            for (m, metric) in column.metrics.iter().enumerate() {
                let values: Vec<Value> = rivals.iter().map(|&r| lines[r].entries[c][m].value).collect();
                for winner in winners(&values, metric.better) {
                    lines[rivals[winner]].entries[c][m].best = true;
                }
            }
        }
    }
}

/// Positions of the best values; none where fewer than two are there to be compared, or where one is still to come: what
/// is best now need not be best then.
fn winners(values: &[Value], better: Option<Better>) -> Vec<usize> {
    if values.iter().any(|value| *value != Value::Undefined && value.complete().is_none()) {
        return Vec::new();
    }
    // Through the text, which rounds halves by the bits below them.
    let printed = |value: &Value| decimals(value.complete()?).parse::<f64>().ok();
    let printed: Vec<Option<f64>> = values.iter().map(printed).collect();
    let all = || printed.iter().copied().flatten();
    let best = match better {
        Some(Better::Higher) => all().reduce(f64::max),
        Some(Better::Lower) => all().reduce(f64::min),
        None => None,
    };
    if best.is_none() || all().count() < 2 {
        return Vec::new();
    }
    (0..values.len()).filter(|&position| printed[position] == best).collect()
}
