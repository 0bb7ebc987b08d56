//! The axes of a grid as result rows show them, and how points fall into panels, rows and columns.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use tsbd_experiment::ResultRow;

/// Axes that every row has, in the order in which they name a panel.
const ALWAYS: [&str; 6] = ["attack", "defense", "measure", "dataset", "model", "seed"];

/// The value of a row on an axis; `None` where the axis does not apply to the point.
pub(crate) fn value<'a>(row: &'a ResultRow, axis: &str) -> Option<Cow<'a, str>> {
    let text = match axis {
        "attack" => &row.attack,
        "defense" => &row.defense,
        "measure" => &row.measure,
        "dataset" => &row.dataset,
        "model" => &row.model,
        "seed" => return Some(Cow::Owned(row.seed.to_string())),
        other => row.axes.get(other)?,
    };
    Some(Cow::Borrowed(text))
}

/// Every axis the rows know.
pub(crate) fn known(rows: &[ResultRow]) -> Vec<String> {
    let others: BTreeSet<&String> = rows.iter().flat_map(|row| row.axes.keys()).collect();
    ALWAYS.iter().map(|&axis| axis.to_owned()).chain(others.into_iter().cloned()).collect()
}

/// The distinct values of an axis, in the order of the grid. Points to which it does not apply are one value more.
pub(crate) fn distinct(rows: &[ResultRow], axis: &str) -> Vec<Option<String>> {
    let mut seen = HashSet::new();
    let mut values = Vec::new();
    let mut before = None;
    for row in rows {
        let value = value(row, axis);
        // In a grid's order most points have the value of the one before.
        if before.as_ref() != Some(&value) && seen.insert(value.clone()) {
            values.push(value.clone().map(Cow::into_owned));
        }
        before = Some(value);
    }
    values
}

/// Finds values of an axis among those that a table has.
pub(crate) struct Positions<'a> {
    axis: &'a str,
    positions: HashMap<Option<Cow<'a, str>>, usize>,
    /// What was found last: in a grid's order most points have the value of the one before.
    before: Option<(Option<Cow<'a, str>>, Option<usize>)>,
}

impl<'a> Positions<'a> {
    pub(crate) fn new(axis: &'a str, values: impl Iterator<Item = &'a Option<String>>) -> Self {
        let positions = values.enumerate().map(|(at, value)| (value.as_deref().map(Cow::Borrowed), at)).collect();
        Self { axis, positions, before: None }
    }

    /// The position of the value that `row` has.
    pub(crate) fn of(&mut self, row: &'a ResultRow) -> Option<usize> {
        let value = value(row, self.axis);
        match &self.before {
            Some((before, position)) if *before == value => *position,
            _ => {
                let position = self.positions.get(&value).copied();
                self.before = Some((value, position));
                position
            }
        }
    }
}

/// The further axes of a grid, and what its cells are on them.
pub(crate) struct CellAxes<'a> {
    names: BTreeSet<&'a str>,
    /// By experiment, key and axis: all values that a cell's points have, among them `None` for a point without it.
    values: BTreeMap<(&'a str, &'a str, &'a str), BTreeSet<Option<&'a str>>>,
}

impl<'a> CellAxes<'a> {
    pub(crate) fn of(rows: &'a [ResultRow]) -> Self {
        let names: BTreeSet<&str> = rows.iter().flat_map(|row| row.axes.keys()).map(String::as_str).collect();
        let mut values: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for row in rows {
            for axis in &names {
                let value = row.axes.get(*axis).map(String::as_str);
                values.entry((row.experiment.as_str(), row.key.as_str(), *axis)).or_default().insert(value);
            }
        }
        Self { names, values }
    }

    /// Every further axis that a row has, by name.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.names.iter().copied()
    }

    /// The value of the row's cell on an axis; `None` if it depends on none: points with different ones share it.
    pub(crate) fn value(&self, row: &ResultRow, axis: &str) -> Option<&'a str> {
        let mut values = self.values.get(&(row.experiment.as_str(), row.key.as_str(), axis))?.iter();
        match (values.next(), values.next()) {
            (Some(only), None) => *only,
            _ => None,
        }
    }
}

/// Whether the values of an axis are rivals, of which one is the best: defenses are, and so are the settings of one.
pub(crate) fn is_contest(axis: &str) -> bool {
    axis == "defense" || axis.starts_with("defense.") || axis.starts_with("defenses.")
}

/// A choice of values on the axes that are neither rows nor columns nor averaged over.
pub(crate) type Choice = BTreeMap<String, String>;

/// One choice per panel, in the order of the grid: whatever else varies never mixes inside one table.
///
/// A point to which an axis does not apply (no neuron ratio without TSBD) belongs to every panel of that axis.
pub(crate) fn panels(rows: &[ResultRow], row_axis: &str, column_axis: &str) -> Vec<Choice> {
    let spelled_out = |prefix: &str| rows.iter().any(|row| row.axes.keys().any(|axis| axis.starts_with(prefix)));
    let axes: Vec<String> = known(rows)
        .into_iter()
        .filter(|axis| axis != row_axis && axis != column_axis && axis != "seed")
        // A grid over `data.name` or `model.width` shows in both forms; the axis of the file names the panel.
        .filter(|axis| !(axis == "dataset" && spelled_out("data.") || axis == "model" && spelled_out("model.")))
        .filter(|axis| distinct(rows, axis).iter().flatten().count() > 1)
        .collect();
    let mut choices: Vec<Choice> = Vec::new();
    for row in rows {
        let choice = chosen(row, &axes);
        if !choices.contains(&choice) {
            choices.push(choice);
        }
    }
    let all = choices.clone();
    choices.retain(|choice| !all.iter().any(|other| other != choice && is_part_of(choice, other)));
    choices
}

/// Whether the point of `row` is shown in the panel of `panel`.
pub(crate) fn belongs(row: &ResultRow, panel: &Choice) -> bool {
    panel.iter().all(|(axis, wanted)| value(row, axis).is_none_or(|found| found == wanted.as_str()))
}

fn chosen(row: &ResultRow, axes: &[String]) -> Choice {
    axes.iter().filter_map(|axis| Some((axis.clone(), value(row, axis)?.into_owned()))).collect()
}

fn is_part_of(small: &Choice, large: &Choice) -> bool {
    small.iter().all(|(axis, value)| large.get(axis) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::done;

    #[test]
    fn without_other_axes_there_is_one_panel_without_a_name() {
        let rows = [done("badnets", "none", 0, &[]), done("blended", "ft", 0, &[])];
        assert_eq!(panels(&rows, "attack", "defense"), [Choice::new()]);
    }

    #[test]
    fn a_point_without_the_axis_is_in_every_panel() {
        let ratio = "defenses.tsbd.neuron_ratio";
        let mut low = done("badnets", "tsbd", 0, &[]);
        low.axes.insert(ratio.into(), "0.05".into());
        let mut high = low.clone();
        high.axes.insert(ratio.into(), "0.15".into());
        let rows = [done("badnets", "ft", 0, &[]), low, high];

        let panels = panels(&rows, "attack", "defense");

        let named = |value: &str| Choice::from([(ratio.to_owned(), value.to_owned())]);
        assert_eq!(panels, [named("0.05"), named("0.15")]);
        assert!(belongs(&rows[0], &panels[0]) && belongs(&rows[0], &panels[1]));
        assert!(belongs(&rows[1], &panels[0]) && !belongs(&rows[1], &panels[1]));
    }

    #[test]
    fn seeds_are_averaged_and_never_make_panels() {
        let rows = [done("badnets", "none", 0, &[]), done("badnets", "none", 1, &[])];
        assert_eq!(panels(&rows, "attack", "defense").len(), 1);
    }

    #[test]
    fn defenses_that_are_neither_rows_nor_columns_make_panels() {
        let rows = [done("badnets", "ft", 0, &[]), done("badnets", "fp", 0, &[])];
        assert_eq!(panels(&rows, "attack", "seed").len(), 2);
    }
}
