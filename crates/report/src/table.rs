//! The table in wide form: what stands in each place, before it is written in any format.

use std::collections::HashSet;

use tsbd_experiment::{CellKey, Experiment, ResultRow, RowState, Setting};

use crate::aggregate::{Aggregate, Group, Means, aggregate};
use crate::axis::{self, Positions};
use crate::contest::mark_best;
use crate::error::{Error, Result};
use crate::metric::Metric;
use crate::neuron_figure;
use crate::titles::Titles;

/// A table of an experiment's results, complete or not.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Name of the experiment: the stem of its file.
    pub experiment: String,
    /// Its title.
    pub title: String,
    /// The profile that made the results.
    pub profile: String,
    /// What `--set` wrote over profile and file, by key, as far as results depend on it.
    pub settings: Vec<Setting>,
    /// Names of the data sets.
    pub datasets: Vec<String>,
    /// Names and widths of the models, `preact-resnet18/16`.
    pub models: Vec<String>,
    /// The same two for people, one line.
    pub material: String,
    /// Seeds, ascending. With more than one, values are means, with the sample standard deviation.
    pub seeds: Vec<u64>,
    /// How many cells have a result.
    pub count: Count,
    /// Cells that failed.
    pub failed: Vec<FailedCell>,
    /// What its numbers are.
    pub unit: Unit,
    /// The axis that rows are made of.
    pub row_axis: String,
    /// The axis that columns are made of.
    pub column_axis: String,
    /// The columns, each a group of metrics.
    pub columns: Vec<Column>,
    /// One panel for each choice of the remaining axes; nearly always one without a name.
    pub panels: Vec<Panel>,
    /// Where the numbers of the published lines are from, if there are such lines: [`Table::with_published`].
    pub source: Option<String>,
    /// What numbers of measurements are of, in sentences.
    pub definitions: Vec<String>,
}

/// What the numbers of a table are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Rates in percent.
    Percent,
    /// Numbers of measurements, as they are.
    Plain,
    /// Both.
    Mixed,
}

/// How many of the experiment's cells have a result. A cell that several points share counts once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// All cells that points of the grid need.
    pub cells: usize,
    /// With a result.
    pub done: usize,
    /// Without.
    pub missing: usize,
    /// Whose last attempt failed.
    pub failed: usize,
}

/// A cell that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedCell {
    /// Titles of attack and defense, and the seed.
    pub place: String,
    /// Its key.
    pub key: CellKey,
    /// Why.
    pub reason: String,
}

/// A group of columns of the table: one value of the column axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its value on the column axis, e.g. `ft`; `None` where the axis does not apply.
    pub name: Option<String>,
    /// For people.
    pub title: String,
    /// The metrics shown. Those that cannot exist (DER without a defense) are left out.
    pub metrics: Vec<Metric>,
}

/// The lines of one choice of the remaining axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// The choice, as `(axis, value)`; empty for the only panel of a plain grid.
    pub choice: Vec<(String, String)>,
    /// The same for people: `No defense`, `attack.poisoning_ratio = 0.05`; empty for the only panel of a plain grid.
    pub title: String,
    /// One line per value of the row axis.
    pub lines: Vec<Line>,
    /// Mean over the attacks, the line without attack left out, and below it perhaps that of the published numbers; present
    /// when rows are attacks and at least two of them remain. An entry is given only where all entries above it are complete.
    pub averages: Vec<Line>,
}

/// A line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Its value on the row axis; `average` for the average.
    pub name: Option<String>,
    /// For people.
    pub title: String,
    /// One entry per metric of each column.
    pub entries: Vec<Vec<Entry>>,
    /// Whether these are published numbers, of the line above.
    pub is_published: bool,
}

/// What stands in one place of the table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    /// The value or why there is none.
    pub value: Value,
    /// Whether it is the best of its contest, ties at the printed precision included.
    pub best: bool,
}

/// A value or why there is none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// A mean over the seeds that are done.
    Measured {
        /// In percent; of a measurement as it is.
        mean: f64,
        /// Sample standard deviation over the seeds in the same unit; `None` with one seed.
        deviation: Option<f64>,
        /// Seeds that have the value.
        seeds: usize,
        /// Seeds asked for.
        of: usize,
    },
    /// Not computed yet.
    Missing,
    /// The last attempt failed.
    Failed,
    /// It cannot exist, as the ASR of a model without a backdoor, or the grid has no such point.
    Undefined,
}

impl Value {
    /// The mean, if every seed is there.
    pub(crate) fn complete(&self) -> Option<f64> {
        match self {
            Self::Measured { mean, seeds, of, .. } if seeds == of => Some(*mean),
            _ => None,
        }
    }
}

impl Table {
    /// Every metric of every column, in order.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (usize, usize, &Column, &Metric)> {
        let metrics = |(c, column): (usize, _)| {
            let column: &Column = column;
            column.metrics.iter().enumerate().map(move |(m, metric)| (c, m, column, metric))
        };
        self.columns.iter().enumerate().flat_map(metrics)
    }

    /// All lines of a panel, averages last.
    pub(crate) fn lines<'a>(&self, panel: &'a Panel) -> impl Iterator<Item = &'a Line> {
        panel.lines.iter().chain(&panel.averages)
    }
}

/// Makes the table of an experiment from its rows, as its `[table]` says. Fractions become percent.
///
/// Seeds are averaged. What varies beside rows, columns and seeds makes panels and is never mixed. The best value per
/// metric is marked where every seed of every rival is there: along each line where the columns are defenses
/// (or settings of one), down each column where the rows are. The model without a defense does not compete.
pub fn table(rows: &[ResultRow], experiment: &Experiment, titles: &Titles) -> Result<Table> {
    let spec = &experiment.table;
    let first = rows.first().ok_or(Error::NoRows)?;
    for row in rows {
        same("experiment", &first.experiment, &row.experiment)?;
        same("profile", &first.profile, &row.profile)?;
    }
    let known = axis::known(rows);
    for (field, name) in [("rows", &spec.rows), ("columns", &spec.columns)] {
        if !known.contains(name) {
            return Err(Error::UnknownAxis { field, axis: name.clone(), known: known.join(", ") });
        }
    }
    if spec.rows == spec.columns {
        return Err(Error::SameAxis { axis: spec.rows.clone() });
    }
    if spec.metrics.is_empty() {
        return Err(Error::NoMetrics);
    }

    let mut metrics: Vec<Metric> = Vec::new();
    for name in &spec.metrics {
        if metrics.iter().all(|metric| &metric.name != name) {
            metrics.push(Metric::named(name));
        }
    }
    let title = |axis: &str, value: &Option<String>| match value {
        Some(value) => titles.of(axis, value),
        None => "any".to_owned(),
    };
    let row_values = axis::distinct(rows, &spec.rows);
    let columns: Vec<Column> = axis::distinct(rows, &spec.columns)
        .into_iter()
        .map(|name| {
            let of_this = |row: &&ResultRow| axis::value(row, &spec.columns).as_deref() == name.as_deref();
            let can_exist = |metric: &&Metric| {
                rows.iter()
                    .filter(of_this)
                    .any(|row| metric.is_defined(row) || row.metrics.contains_key(metric.name.as_str()))
            };
            let title = title(&spec.columns, &name);
            let metrics = metrics.iter().filter(can_exist).cloned().collect();
            Column { name, title, metrics }
        })
        .collect();

    let (count, failed) = survey(rows, titles);
    let mut panels = Vec::new();
    for choice in axis::panels(rows, &spec.rows, &spec.columns) {
        let mut row_at = Positions::new(&spec.rows, row_values.iter());
        let mut column_at = Positions::new(&spec.columns, columns.iter().map(|column| &column.name));
        let points = rows.iter().filter(|row| axis::belongs(row, &choice));
        let placed = points.filter_map(|row| Some(((row_at.of(row)?, column_at.of(row)?), row)));
        // A point that stands in the grid twice counts once.
        let mut seen = HashSet::new();
        let may_repeat = count.cells < rows.len();
        let distinct = placed.filter(|(at, row)| !may_repeat || seen.insert((*at, row.seed, &row.key)));
        let Aggregate { groups, averages } = aggregate(distinct, &metrics);
        let lines = row_values.iter().enumerate().map(|(r, name)| Line {
            title: title(&spec.rows, name),
            name: name.clone(),
            entries: columns
                .iter()
                .enumerate()
                .map(|(c, column)| entries(groups.get(&(r, c)), column, &metrics))
                .collect(),
            is_published: false,
        });
        let mut lines: Vec<Line> = lines.collect();
        let attacked = |line: &&Line| line.name.as_deref() != Some("none");
        let mut average = None;
        if spec.rows == "attack" && lines.iter().filter(attacked).count() > 1 {
            average = Some(average_line(&lines, &columns, &metrics, &averages));
        }
        mark_best(&mut lines, average.as_mut(), &columns, &spec.rows, &spec.columns);
        let title = choice.iter().map(|(axis, value)| titles.choice(axis, value)).collect::<Vec<_>>().join(", ");
        let averages = average.into_iter().collect();
        panels.push(Panel { choice: choice.into_iter().collect(), title, lines, averages });
    }

    let text = |axis: &str| axis::distinct(rows, axis).into_iter().flatten().collect::<Vec<_>>();
    let (datasets, models) = (text("dataset"), text("model"));
    let joined = |axis: &str, values: &[String]| {
        values.iter().map(|value| titles.of(axis, value)).collect::<Vec<_>>().join(" and ")
    };
    let material = format!("data {} · model {}", joined("dataset", &datasets), joined("model", &models));
    let mut seeds: Vec<u64> = rows.iter().map(|row| row.seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let unit = match (rows.iter().any(|row| row.measure == "none"), rows.iter().any(|row| row.measure != "none")) {
        (true, true) => Unit::Mixed,
        (false, true) => Unit::Plain,
        _ => Unit::Percent,
    };
    Ok(Table {
        experiment: first.experiment.clone(),
        title: experiment.title.clone(),
        profile: first.profile.clone(),
        settings: experiment.settings.clone(),
        datasets,
        models,
        material,
        seeds,
        count,
        failed,
        unit,
        row_axis: spec.rows.clone(),
        column_axis: spec.columns.clone(),
        columns,
        panels,
        source: None,
        definitions: neuron_figure::coverages(rows.iter()).into_iter().collect(),
    })
}

fn same(field: &'static str, first: &str, second: &str) -> Result<()> {
    if first == second {
        return Ok(());
    }
    Err(Error::Mixed { field, first: first.to_owned(), second: second.to_owned() })
}

/// The entries of one line in one column.
fn entries(group: Option<&Group>, column: &Column, metrics: &[Metric]) -> Vec<Entry> {
    let value = |metric: &Metric| {
        let Some(group) = group else { return Value::Undefined };
        let Some(position) = metrics.iter().position(|other| other == metric) else { return Value::Undefined };
        match group.metrics[position] {
            Some(((mean, deviation), seeds)) => Value::Measured { mean, deviation, seeds, of: group.points },
            None if group.done > 0 || !group.defined[position] => Value::Undefined,
            None if group.failed > 0 => Value::Failed,
            None => Value::Missing,
        }
    };
    column.metrics.iter().map(|metric| Entry { value: value(metric), best: false }).collect()
}

/// The line of averages. `means` gives mean and deviation per (column, metric of the table).
fn average_line(lines: &[Line], columns: &[Column], metrics: &[Metric], means: &Means) -> Line {
    let entry = |c: usize, m: usize, metric: &Metric| {
        let above =
            lines.iter().filter(|line| line.name.as_deref() != Some("none")).map(|line| line.entries[c][m].value);
        let above: Vec<Value> = above.collect();
        let position = metrics.iter().position(|other| other == metric);
        let mean = position.and_then(|position| means.get(&(c, position)));
        let value = match mean {
            Some(&(mean, deviation)) if above.iter().all(|value| value.complete().is_some()) => {
                let seeds = match above.first() {
                    Some(Value::Measured { seeds, .. }) => *seeds,
                    _ => 1,
                };
                Value::Measured { mean, deviation, seeds, of: seeds }
            }
            _ if above.contains(&Value::Undefined) => Value::Undefined,
            _ => Value::Missing,
        };
        Entry { value, best: false }
    };
    let entries = columns
        .iter()
        .enumerate()
        .map(|(c, column)| column.metrics.iter().enumerate().map(|(m, metric)| entry(c, m, metric)).collect());
    Line { name: Some("average".into()), title: "Average".into(), entries: entries.collect(), is_published: false }
}

/// Counts every cell once, and lists those that failed.
fn survey(rows: &[ResultRow], titles: &Titles) -> (Count, Vec<FailedCell>) {
    let mut seen = HashSet::new();
    let mut count = Count::default();
    let mut failed = Vec::new();
    for row in rows.iter().filter(|row| seen.insert(&row.key)) {
        count.cells += 1;
        match &row.state {
            RowState::Done => count.done += 1,
            RowState::Missing => count.missing += 1,
            RowState::Failed(reason) => {
                count.failed += 1;
                let (attack, defense) = (titles.of("attack", &row.attack), titles.of("defense", &row.defense));
                let measure = match row.measure.as_str() {
                    "none" => String::new(),
                    measure => format!(", {}", titles.of("measure", measure)),
                };
                let place = format!("{attack}, {defense}{measure}, seed {}", row.seed);
                failed.push(FailedCell { place, key: row.key.clone(), reason: reason.clone() });
            }
        }
    }
    (count, failed)
}

#[cfg(test)]
mod tests;
