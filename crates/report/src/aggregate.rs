//! Means and deviations, in Polars: the points of one panel become a frame of one row per point, which is split by
//! place in the table and averaged over seeds.

use std::collections::{BTreeMap, BTreeSet};

use polars::prelude::*;
use tsbd_experiment::{ResultRow, RowState};

use crate::error::Result;
use crate::metric::Metric;

/// A mean and a sample standard deviation (`None` over fewer than two values), as shown.
pub(crate) type Mean = (f64, Option<f64>);

/// The points of one place in the table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Group {
    pub(crate) points: usize,
    pub(crate) done: usize,
    pub(crate) failed: usize,
    /// Per metric of the table, over the points that are done.
    pub(crate) metrics: Vec<Option<Mean>>,
    /// Per metric, whether it can exist for these points.
    pub(crate) defined: Vec<bool>,
}

/// Averages over attacks by (column, metric).
pub(crate) type Means = BTreeMap<(usize, usize), Mean>;

const DONE: u32 = 0;
const FAILED: u32 = 1;
const MISSING: u32 = 2;

/// The groups of a panel by (line, column).
pub(crate) fn groups(
    points: &[&ResultRow],
    metrics: &[Metric],
    place: impl Fn(&ResultRow) -> Option<(usize, usize)>,
) -> Result<BTreeMap<(usize, usize), Group>> {
    let mut groups = BTreeMap::new();
    for part in frame(points, metrics, place)?.partition_by_stable(["line", "column"], true)? {
        let at = (first(&part, "line")?, first(&part, "column")?);
        let state = part.column("state")?.u32()?;
        let count = |wanted: u32| state.iter().flatten().filter(|&state| state == wanted).count();
        let mut group = Group {
            points: part.height(),
            done: count(DONE),
            failed: count(FAILED),
            metrics: Vec::with_capacity(metrics.len()),
            defined: Vec::with_capacity(metrics.len()),
        };
        for position in 0..metrics.len() {
            group.metrics.push(mean(part.column(&metric_column(position))?.f64()?));
            group.defined.push(part.column(&defined_column(position))?.bool()?.any());
        }
        groups.insert(at, group);
    }
    Ok(groups)
}

/// Per column and metric: the mean over the attacks for each seed, then mean and deviation over the seeds. The model
/// without an attack is left out.
pub(crate) fn averages(
    points: &[&ResultRow],
    metrics: &[Metric],
    place: impl Fn(&ResultRow) -> Option<(usize, usize)>,
) -> Result<Means> {
    let attacked: Vec<&ResultRow> = points.iter().copied().filter(|row| row.attack != "none").collect();
    let mut per_seed: BTreeMap<(usize, usize), Vec<f64>> = BTreeMap::new();
    for part in frame(&attacked, metrics, place)?.partition_by_stable(["column", "seed"], true)? {
        let column = first(&part, "column")?;
        for position in 0..metrics.len() {
            if let Some((mean, _)) = mean(part.column(&metric_column(position))?.f64()?) {
                per_seed.entry((column, position)).or_default().push(mean);
            }
        }
    }
    let over_seeds = per_seed.into_iter().filter_map(|(at, means)| {
        let means = Float64Chunked::from_vec("mean".into(), means);
        Some((at, mean(&means)?))
    });
    Ok(over_seeds.collect())
}

/// One row per point: `line`, `column`, `seed`, `state`, and for each metric its value as shown and whether it can exist.
/// A point that stands in the grid twice counts once.
fn frame(
    points: &[&ResultRow],
    metrics: &[Metric],
    place: impl Fn(&ResultRow) -> Option<(usize, usize)>,
) -> Result<DataFrame> {
    let mut seen = BTreeSet::new();
    let placed: Vec<((usize, usize), &ResultRow)> = points
        .iter()
        .filter_map(|&row| Some((place(row)?, row)))
        .filter(|(at, row)| seen.insert((*at, row.seed, &row.key)))
        .collect();
    let state = |row: &ResultRow| match row.state {
        RowState::Done => DONE,
        RowState::Failed(_) => FAILED,
        RowState::Missing => MISSING,
    };
    let mut columns = vec![
        Column::new("line".into(), placed.iter().map(|((line, _), _)| *line as u32).collect::<Vec<_>>()),
        Column::new("column".into(), placed.iter().map(|((_, column), _)| *column as u32).collect::<Vec<_>>()),
        Column::new("seed".into(), placed.iter().map(|(_, row)| row.seed).collect::<Vec<_>>()),
        Column::new("state".into(), placed.iter().map(|(_, row)| state(row)).collect::<Vec<_>>()),
    ];
    for (position, metric) in metrics.iter().enumerate() {
        let shown = placed.iter().map(|(_, row)| row.shown(&metric.name));
        columns.push(Column::new(metric_column(position).into(), shown.collect::<Vec<Option<f64>>>()));
        let defined = placed.iter().map(|(_, row)| metric.is_defined(row));
        columns.push(Column::new(defined_column(position).into(), defined.collect::<Vec<bool>>()));
    }
    Ok(DataFrame::new(placed.len(), columns)?)
}

fn metric_column(position: usize) -> String {
    format!("metric {position}")
}

fn defined_column(position: usize) -> String {
    format!("defined {position}")
}

fn mean(values: &Float64Chunked) -> Option<Mean> {
    let deviation = if values.len() - values.null_count() > 1 { values.std(1) } else { None };
    Some((values.mean()?, deviation))
}

fn first(part: &DataFrame, name: &str) -> Result<usize> {
    // A part of a partition has at least one row.
    Ok(part.column(name)?.u32()?.get(0).unwrap_or_default() as usize)
}
