//! The table in wide form: what stands in each place, before it is written in any format.

use std::collections::BTreeSet;

use tsbd_experiment::{CellKey, Experiment, ResultRow, RowState};

use crate::aggregate::{Group, averages, groups};
use crate::axis;
use crate::error::{Error, Result};
use crate::metric::{Better, Metric};
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
    /// The axis that rows are made of.
    pub row_axis: String,
    /// The axis that columns are made of.
    pub column_axis: String,
    /// The columns, each a group of metrics.
    pub columns: Vec<Column>,
    /// One panel for each choice of the remaining axes; nearly always one without a name.
    pub panels: Vec<Panel>,
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
    /// One line per value of the row axis.
    pub lines: Vec<Line>,
    /// Mean over the attacks, the line without attack left out; present when rows are attacks and at least two of
    /// them remain. An entry is given only where all entries above it are complete.
    pub average: Option<Line>,
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
        /// In percent.
        mean: f64,
        /// Sample standard deviation over the seeds in percentage points; `None` with one seed.
        deviation: Option<f64>,
        /// Seeds with a result.
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

    /// All lines of a panel, the average last.
    pub(crate) fn lines<'a>(&self, panel: &'a Panel) -> impl Iterator<Item = &'a Line> {
        panel.lines.iter().chain(&panel.average)
    }
}

/// Makes the table of an experiment from its rows, as its `[table]` says. Fractions become percent.
///
/// Seeds are averaged. What varies beside rows, columns and seeds makes panels and is never mixed. The best value per
/// metric is marked among the entries for which every seed is there: along each line where the columns are defenses
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
            let of_this = |row: &&ResultRow| axis::value(row, &spec.columns) == name;
            let can_exist = |metric: &&Metric| {
                rows.iter().filter(of_this).any(|row| {
                    metric.is_defined(&row.attack, &row.defense) || row.metrics.contains_key(metric.name.as_str())
                })
            };
            let title = title(&spec.columns, &name);
            let metrics = metrics.iter().filter(can_exist).cloned().collect();
            Column { name, title, metrics }
        })
        .collect();

    let mut panels = Vec::new();
    for choice in axis::panels(rows, &spec.rows, &spec.columns) {
        let points: Vec<&ResultRow> = rows.iter().filter(|row| axis::belongs(row, &choice)).collect();
        let place = |row: &ResultRow| {
            let r = row_values.iter().position(|value| value == &axis::value(row, &spec.rows))?;
            let c = columns.iter().position(|column| column.name == axis::value(row, &spec.columns))?;
            Some((r, c))
        };
        let found = groups(&points, &metrics, place)?;
        let lines = row_values.iter().enumerate().map(|(r, name)| Line {
            title: title(&spec.rows, name),
            name: name.clone(),
            entries: columns
                .iter()
                .enumerate()
                .map(|(c, column)| entries(found.get(&(r, c)), column, &metrics))
                .collect(),
        });
        let mut lines: Vec<Line> = lines.collect();
        let attacked = |line: &&Line| line.name.as_deref() != Some("none");
        let mut average = None;
        if spec.rows == "attack" && lines.iter().filter(attacked).count() > 1 {
            let means = averages(&points, &metrics, place)?;
            average = Some(average_line(&lines, &columns, &metrics, &means));
        }
        mark_best(&mut lines, average.as_mut(), &columns, &spec.rows, &spec.columns);
        panels.push(Panel { choice: choice.into_iter().collect(), lines, average });
    }

    let text = |axis: &str| axis::distinct(rows, axis).into_iter().flatten().collect::<Vec<_>>();
    let (datasets, models) = (text("dataset"), text("model"));
    let joined = |axis: &str, values: &[String]| {
        values.iter().map(|value| titles.of(axis, value)).collect::<Vec<_>>().join(" and ")
    };
    let material = format!("data {} · model {}", joined("dataset", &datasets), joined("model", &models));
    let seeds: BTreeSet<u64> = rows.iter().map(|row| row.seed).collect();
    let (count, failed) = survey(rows, titles);
    Ok(Table {
        experiment: first.experiment.clone(),
        title: experiment.title.clone(),
        profile: first.profile.clone(),
        datasets,
        models,
        material,
        seeds: seeds.into_iter().collect(),
        count,
        failed,
        row_axis: spec.rows.clone(),
        column_axis: spec.columns.clone(),
        columns,
        panels,
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
            Some((mean, deviation)) => Value::Measured { mean, deviation, seeds: group.done, of: group.points },
            None if group.done > 0 || !group.defined[position] => Value::Undefined,
            None if group.failed > 0 => Value::Failed,
            None => Value::Missing,
        }
    };
    column.metrics.iter().map(|metric| Entry { value: value(metric), best: false }).collect()
}

/// The line of averages. `means` gives mean and deviation per (column, metric of the table).
fn average_line(lines: &[Line], columns: &[Column], metrics: &[Metric], means: &crate::aggregate::Means) -> Line {
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
    Line { name: Some("average".into()), title: "Average".into(), entries: entries.collect() }
}

/// Marks the best entries. Values are compared as they are printed, so that equal numbers are equally bold.
fn mark_best(lines: &mut [Line], average: Option<&mut Line>, columns: &[Column], row_axis: &str, column_axis: &str) {
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

/// Positions of the best complete values; none where fewer than two are there to be compared.
fn winners(values: &[Value], better: Option<Better>) -> Vec<usize> {
    let printed = |value: &Value| value.complete().map(|mean| (mean * 100.0).round() as i64);
    let all = || values.iter().filter_map(printed);
    let best = match better {
        Some(Better::Higher) => all().max(),
        Some(Better::Lower) => all().min(),
        None => None,
    };
    if best.is_none() || all().count() < 2 {
        return Vec::new();
    }
    (0..values.len()).filter(|&position| printed(&values[position]) == best).collect()
}

/// Counts every cell once, and lists those that failed.
fn survey(rows: &[ResultRow], titles: &Titles) -> (Count, Vec<FailedCell>) {
    let mut seen = BTreeSet::new();
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
                let place = format!("{attack}, {defense}, seed {}", row.seed);
                failed.push(FailedCell { place, key: row.key.clone(), reason: reason.clone() });
            }
        }
    }
    (count, failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{done, experiment, failed, grid, missing, titles};

    fn made(rows: &[ResultRow]) -> Table {
        table(rows, &experiment(), &titles()).unwrap()
    }

    fn entry<'a>(table: &'a Table, row: &str, column: &str, metric: &str) -> &'a Entry {
        let panel = &table.panels[0];
        let line = table.lines(panel).find(|line| line.name.as_deref() == Some(row)).unwrap();
        let (c, column) =
            table.columns.iter().enumerate().find(|(_, other)| other.name.as_deref() == Some(column)).unwrap();
        &line.entries[c][column.metrics.iter().position(|other| other.name == metric).unwrap()]
    }

    #[test]
    fn every_cell_is_counted_once_and_failures_keep_their_reason() {
        let mut rows = grid();
        rows.push(rows[0].clone());
        let table = made(&rows);
        assert_eq!(table.count, Count { cells: 12, done: 10, missing: 1, failed: 1 });
        assert_eq!(table.failed.len(), 1);
        assert_eq!(table.failed[0].place, "Blended, TSBD, seed 0");
        assert!(table.failed[0].reason.contains("NaN"));
    }

    #[test]
    fn missing_failed_and_undefined_are_three_things() {
        let table = made(&grid());
        assert_eq!(entry(&table, "badnets", "fp", "asr").value, Value::Missing);
        assert_eq!(entry(&table, "blended", "tsbd", "asr").value, Value::Failed);
        assert_eq!(entry(&table, "none", "ft", "asr").value, Value::Undefined);
    }

    #[test]
    fn a_rating_that_cannot_exist_has_no_column() {
        let table = made(&grid());
        let metrics = |c: usize| table.columns[c].metrics.iter().map(|m| m.name.as_str()).collect::<Vec<_>>();
        assert_eq!(metrics(0), ["acc", "asr"], "no defense, nothing to rate");
        assert_eq!(metrics(1), ["acc", "asr", "der"]);
    }

    #[test]
    fn the_average_leaves_the_clean_model_out_and_wants_every_attack() {
        let table = made(&grid());
        let Value::Measured { mean, .. } = entry(&table, "average", "ft", "acc").value else { panic!() };
        assert!((mean - (90.11 + 91.11) / 2.0).abs() < 1e-9);
        assert_eq!(entry(&table, "average", "fp", "acc").value, Value::Missing);
        assert_eq!(entry(&table, "average", "tsbd", "der").value, Value::Missing);
    }

    #[test]
    fn one_attack_has_no_average() {
        let table = made(&[done("none", "ft", 0, &[("acc", 0.9)]), done("badnets", "ft", 0, &[("acc", 0.9)])]);
        assert_eq!(table.panels[0].average, None);
    }

    #[test]
    fn the_best_is_the_highest_accuracy_and_the_lowest_success_rate_of_the_defenses() {
        let table = made(&grid());
        assert!(entry(&table, "badnets", "ft", "acc").best);
        assert!(entry(&table, "badnets", "tsbd", "asr").best);
        assert!(entry(&table, "badnets", "tsbd", "der").best);
        assert!(!entry(&table, "badnets", "none", "acc").best, "the undefended model does not compete");
        assert!(!entry(&table, "badnets", "ft", "asr").best);
    }

    #[test]
    fn values_that_print_the_same_are_equally_good() {
        let table = made(&grid());
        assert!(entry(&table, "none", "ft", "acc").best && entry(&table, "none", "fp", "acc").best);
        let close = made(&[
            done("badnets", "ft", 0, &[("acc", 0.900_001)]),
            done("badnets", "fp", 0, &[("acc", 0.900_002)]),
            done("badnets", "tsbd", 0, &[("acc", 0.8999)]),
        ]);
        assert!(entry(&close, "badnets", "ft", "acc").best && entry(&close, "badnets", "fp", "acc").best);
        assert!(!entry(&close, "badnets", "tsbd", "acc").best);
    }

    #[test]
    fn a_defense_without_rivals_is_not_the_best() {
        let alone = [done("badnets", "none", 0, &[("acc", 0.9)]), done("badnets", "ft", 0, &[("acc", 0.8)])];
        assert!(!entry(&made(&alone), "badnets", "ft", "acc").best);
        let [undefended, ft] = alone;
        let rival_missing = [undefended, ft, missing("badnets", "fp", 0)];
        assert!(!entry(&made(&rival_missing), "badnets", "ft", "acc").best);
    }

    #[test]
    fn seeds_become_mean_and_sample_deviation() {
        let table = made(&[
            done("badnets", "ft", 0, &[("acc", 0.90)]),
            done("badnets", "ft", 1, &[("acc", 0.92)]),
            done("badnets", "ft", 2, &[("acc", 0.94)]),
        ]);
        let Value::Measured { mean, deviation, seeds, of } = entry(&table, "badnets", "ft", "acc").value else {
            panic!()
        };
        assert!((mean - 92.0).abs() < 1e-9);
        // Sample standard deviation of 90, 92, 94: sqrt((4 + 0 + 4) / 2).
        assert!((deviation.unwrap() - 2.0).abs() < 1e-9);
        assert_eq!((seeds, of), (3, 3));
    }

    #[test]
    fn a_mean_over_part_of_the_seeds_neither_wins_nor_enters_the_average() {
        let table = made(&[
            done("badnets", "ft", 0, &[("acc", 0.99)]),
            missing("badnets", "ft", 1),
            done("badnets", "fp", 0, &[("acc", 0.90)]),
            done("badnets", "fp", 1, &[("acc", 0.90)]),
            done("blended", "ft", 0, &[("acc", 0.9)]),
            done("blended", "ft", 1, &[("acc", 0.9)]),
            done("blended", "fp", 0, &[("acc", 0.8)]),
            done("blended", "fp", 1, &[("acc", 0.8)]),
            done("badnets", "tsbd", 0, &[("acc", 0.80)]),
            done("badnets", "tsbd", 1, &[("acc", 0.80)]),
        ]);
        let partial = entry(&table, "badnets", "ft", "acc");
        assert_eq!(partial.value, Value::Measured { mean: 99.0, deviation: None, seeds: 1, of: 2 });
        assert!(!partial.best);
        assert!(entry(&table, "badnets", "fp", "acc").best);
        assert_eq!(entry(&table, "average", "ft", "acc").value, Value::Missing);
    }

    #[test]
    fn the_deviation_of_the_average_is_that_of_the_averages_per_seed() {
        let table = made(&[
            done("badnets", "ft", 0, &[("acc", 0.90)]),
            done("badnets", "ft", 1, &[("acc", 0.80)]),
            done("blended", "ft", 0, &[("acc", 0.80)]),
            done("blended", "ft", 1, &[("acc", 0.90)]),
        ]);
        let Value::Measured { mean, deviation, .. } = entry(&table, "average", "ft", "acc").value else { panic!() };
        assert!((mean - 85.0).abs() < 1e-9);
        assert!(deviation.unwrap() < 1e-9, "both seeds average to 85");
    }

    #[test]
    fn settings_of_a_defense_as_rows_compete_down_the_column() {
        let ratio = "defenses.tsbd.neuron_ratio";
        let mut rows = Vec::new();
        for (value, asr) in [("0.05", 0.5), ("0.15", 0.1)] {
            let mut row = done("badnets", "tsbd", 0, &[("asr", asr)]);
            row.axes.insert(ratio.into(), value.into());
            rows.push(row);
        }
        let mut experiment = experiment();
        experiment.table.rows = ratio.into();
        experiment.table.columns = "attack".into();
        let table = table(&rows, &experiment, &titles()).unwrap();
        let best: Vec<bool> = table.panels[0].lines.iter().map(|line| line.entries[0][1].best).collect();
        assert_eq!(best, [false, true]);
        assert_eq!(table.panels[0].average, None);
    }

    #[test]
    fn an_axis_beside_rows_and_columns_makes_panels() {
        let ratio = "attack.poisoning_ratio";
        let mut rows = Vec::new();
        for (value, asr) in [("0.1", 0.9), ("0.01", 0.3)] {
            for defense in ["none", "ft"] {
                let mut row = done("badnets", defense, 0, &[("asr", asr)]);
                row.axes.insert(ratio.into(), value.into());
                rows.push(row);
            }
        }
        let table = made(&rows);
        let choices: Vec<&str> = table.panels.iter().map(|panel| panel.choice[0].1.as_str()).collect();
        assert_eq!(choices, ["0.1", "0.01"]);
        let means: Vec<Option<f64>> =
            table.panels.iter().map(|panel| panel.lines[0].entries[0][1].value.complete()).collect();
        assert_eq!(means, [Some(90.0), Some(30.0)]);
    }

    #[test]
    fn what_cannot_be_a_table_is_refused_with_the_way_out() {
        let refused = |change: fn(&mut Experiment, &mut Vec<ResultRow>)| {
            let (mut experiment, mut rows) = (experiment(), grid());
            change(&mut experiment, &mut rows);
            table(&rows, &experiment, &titles()).unwrap_err().to_string()
        };
        assert!(refused(|_, rows| rows.clear()).contains("grid is empty"));
        assert!(
            refused(|_, rows| rows[3].profile = "paper".into()).contains("two different profiles, `smoke` and `paper`")
        );
        assert!(
            refused(|e, _| e.table.rows = "attacks".into()).contains("it has attack, defense, dataset, model, seed")
        );
        assert!(refused(|e, _| e.table.columns = "attack".into()).contains("give two different axes"));
        assert!(refused(|e, _| e.table.metrics.clear()).contains("metrics = [\"acc\", \"asr\", \"der\"]"));
    }

    #[test]
    fn a_grid_that_only_failed_is_still_a_table() {
        let table = made(&[failed("badnets", "none", 0, "out of memory"), missing("badnets", "ft", 0)]);
        assert_eq!(entry(&table, "badnets", "none", "acc").value, Value::Failed);
        assert_eq!(entry(&table, "badnets", "ft", "der").value, Value::Missing);
    }
}
