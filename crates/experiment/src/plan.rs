//! A plan: the cells of an experiment and the grid points that tables are made of. What is left to do is a pure
//! function of the plan and of the outcomes found.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cell::{Cell, CellKey};
use crate::planning::{KnownImages, SlurmParameters};
use crate::record::OutcomeKind;
use crate::setting::Setting;

/// What an experiment is called and what is made of its results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Experiment {
    /// The file's stem, e.g. `table1`.
    pub name: String,
    /// A line for people.
    pub title: String,
    /// The profile in force.
    pub profile: String,
    /// What `--set` wrote over profile and file and whoever compares results has to know, by key: neither the title nor
    /// seeds, which are shown anyway, nor how tables, figures and jobs are made. Later ones come last, each key once.
    pub settings: Vec<Setting>,
    /// The table made of the results.
    pub table: TableSpec,
    /// The figure, if the file asks for one.
    pub figure: Option<FigureSpec>,
}

/// Which figure is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum FigureSpec {
    /// What each attack of the grid does to one image: the image, the triggered image, what changed.
    Triggers {
        /// Which of the test images that are triggered, from 0.
        image: usize,
    },
    /// The table as curves: its rows, which are numbers, along the axis, a curve for each column, a panel for each metric.
    Curves {
        /// Whether equal ratios of the rows' numbers are equally far apart.
        logarithmic: bool,
    },
    /// The table as bars: a group for each row, a bar for each column, a panel for each metric.
    Bars,
    /// What the measurement `nwc` found: weight changes in clean against those in poison unlearning.
    WeightChanges,
    /// What `activeness` found: gradient norms in the backdoored and in the clean model.
    Activeness,
    /// What `activations` found, on clean and on triggered images, before and after unlearning.
    Activations,
    /// What `coverage` found: a curve for each method.
    Coverage,
}

/// Which table is made of the results.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSpec {
    /// The axis that rows are made of.
    pub rows: String,
    /// The axis that columns are made of.
    pub columns: String,
    /// The metrics of each cell of the table.
    pub metrics: Vec<String>,
}

impl Default for TableSpec {
    fn default() -> Self {
        Self {
            rows: "attack".into(),
            columns: "defense".into(),
            metrics: ["acc", "asr", "der"].map(str::to_owned).to_vec(),
        }
    }
}

/// One point of the grid. Several points may share a cell: the backdoored model is trained once for all its defenses,
/// and a point with the defense `none` *is* the Train cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GridPoint {
    /// Name of the attack.
    pub attack: String,
    /// Name of the defense; `none` for the backdoored model itself.
    pub defense: String,
    /// Name of the measurement; `none` for the model and its rates.
    pub measure: String,
    /// Seed.
    pub seed: u64,
    /// The other axes of `[grid]` that apply to this point, by dotted key.
    pub axes: BTreeMap<String, Value>,
    /// The cell that has the point's result.
    pub cell: CellKey,
}

/// An experiment, checked and laid out.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Its name and table.
    pub experiment: Experiment,
    /// All cells, parents before their children.
    pub cells: IndexMap<CellKey, Cell>,
    /// All grid points, in the file's order: attacks outermost, then defenses, other axes, seeds.
    pub points: Vec<GridPoint>,
    /// The data sets of the cells, for [`crate::Store::note_images`].
    pub images: KnownImages,
    /// What jobs ask a cluster for, if the plan is run on one.
    pub slurm: SlurmParameters,
}

impl Plan {
    /// The cells that start from the result of `key`.
    pub fn children<'a>(&'a self, key: &'a CellKey) -> impl Iterator<Item = &'a CellKey> {
        self.cells.iter().filter(move |(_, cell)| cell.parents.contains(key)).map(|(child, _)| child)
    }

    /// The part of the plan that makes the result of `key`: the cell, its ancestors, and the cell as the only point.
    ///
    /// # Panics
    /// If the plan has no such cell.
    pub fn leading_to(&self, key: &CellKey) -> Plan {
        let cell = &self.cells[key];
        let mut wanted = BTreeSet::from([key]);
        // Parents come first in the plan, so one pass from its end reaches every ancestor.
        for (key, cell) in self.cells.iter().rev() {
            if wanted.contains(key) {
                wanted.extend(&cell.parents);
            }
        }
        let point = GridPoint {
            attack: cell.attack.name.clone(),
            defense: cell.defense_name().to_owned(),
            measure: cell.measurement_name().to_owned(),
            seed: cell.seed,
            axes: BTreeMap::new(),
            cell: key.clone(),
        };
        let cells = self.cells.iter().filter(|(key, _)| wanted.contains(key));
        Plan {
            cells: cells.map(|(key, cell)| (key.clone(), cell.clone())).collect(),
            points: vec![point],
            ..self.clone()
        }
    }
}

/// The cells that have to run, parents first: those that a grid point needs and that are not done, and their parents
/// as far as these are not done. A cell that failed before is outstanding again; a cell that nothing needs is not.
///
/// Pure: the same plan and the same outcomes give the same list, whatever happened before.
pub fn outstanding(plan: &Plan, found: &BTreeMap<CellKey, OutcomeKind>) -> Vec<CellKey> {
    let done = |key: &CellKey| found.get(key) == Some(&OutcomeKind::Done);
    let mut needed: BTreeSet<&CellKey> = plan.points.iter().map(|point| &point.cell).filter(|key| !done(key)).collect();
    // Parents come first in the plan, so one pass from its end reaches every ancestor.
    for (key, cell) in plan.cells.iter().rev() {
        if needed.contains(key) {
            needed.extend(cell.parents.iter().filter(|parent| !done(parent)));
        }
    }
    plan.cells.keys().filter(|key| needed.contains(key)).cloned().collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cell::tests::{defend_cell, train_cell};

    /// The plan of `attacks` x `defenses` (the defense `none` included) with one seed.
    pub(crate) fn grid(attacks: &[&str], defenses: &[&str]) -> Plan {
        let mut plan = Plan {
            experiment: Experiment {
                name: "test".into(),
                title: "A test".into(),
                profile: "smoke".into(),
                settings: Vec::new(),
                table: TableSpec::default(),
                figure: None,
            },
            cells: IndexMap::new(),
            points: Vec::new(),
            images: KnownImages::new(),
            slurm: SlurmParameters::default(),
        };
        for attack in attacks {
            let train = train_cell(attack, 0);
            plan.cells.insert(train.key(), train.clone());
            for defense in defenses {
                let cell = if *defense == "none" { train.clone() } else { defend_cell(&train, defense) };
                let key = cell.key();
                plan.points.push(GridPoint {
                    attack: (*attack).into(),
                    defense: (*defense).into(),
                    measure: "none".into(),
                    seed: 0,
                    axes: BTreeMap::new(),
                    cell: key.clone(),
                });
                plan.cells.entry(key).or_insert(cell);
            }
        }
        plan
    }

    /// A plan of any shape: cell `i` may have any earlier cells as parents, and any cells are points.
    fn any_plan() -> impl Strategy<Value = Plan> {
        let shape = (1_usize..12).prop_flat_map(|count| {
            (proptest::collection::vec(any::<u16>(), count), proptest::collection::vec(any::<bool>(), count))
        });
        shape.prop_map(|(parents, is_point)| {
            let mut plan = grid(&[], &[]);
            for (seed, (mask, point)) in parents.into_iter().zip(is_point).enumerate() {
                let mut cell = train_cell("badnets", seed as u64);
                let earlier = plan.cells.keys().enumerate().filter(|(position, _)| mask & (1 << position) != 0);
                cell.parents = earlier.take(2).map(|(_, key)| key.clone()).collect();
                let key = cell.key();
                plan.cells.insert(key.clone(), cell);
                if point {
                    plan.points.push(GridPoint {
                        attack: "badnets".into(),
                        defense: "none".into(),
                        measure: "none".into(),
                        seed: seed as u64,
                        axes: BTreeMap::new(),
                        cell: key,
                    });
                }
            }
            plan
        })
    }

    fn any_plan_and_outcomes() -> impl Strategy<Value = (Plan, BTreeMap<CellKey, OutcomeKind>)> {
        any_plan().prop_flat_map(|plan| {
            let count = plan.cells.len();
            let outcome = prop_oneof![
                Just(None),
                Just(Some(OutcomeKind::Done)),
                Just(Some(OutcomeKind::Failed)),
                Just(Some(OutcomeKind::Skipped))
            ];
            proptest::collection::vec(outcome, count).prop_map(move |outcomes| {
                let found = plan.cells.keys().cloned().zip(outcomes);
                (plan.clone(), found.filter_map(|(key, outcome)| Some((key, outcome?))).collect())
            })
        })
    }

    /// The definition, word by word: a cell is needed by a point, or by a child that has to run.
    fn has_to_run(plan: &Plan, found: &BTreeMap<CellKey, OutcomeKind>, key: &CellKey) -> bool {
        found.get(key) != Some(&OutcomeKind::Done)
            && (plan.points.iter().any(|point| &point.cell == key)
                || plan.children(key).any(|child| has_to_run(plan, found, child)))
    }

    proptest! {
        #[test]
        fn exactly_the_needed_cells_are_outstanding_parents_first((plan, found) in any_plan_and_outcomes()) {
            let cells = outstanding(&plan, &found);
            let expected: Vec<_> = plan.cells.keys().filter(|key| has_to_run(&plan, &found, key)).cloned().collect();
            prop_assert_eq!(&cells, &expected);
            for (position, key) in cells.iter().enumerate() {
                for parent in &plan.cells[key].parents {
                    let ready = found.get(parent) == Some(&OutcomeKind::Done) || cells[..position].contains(parent);
                    prop_assert!(ready, "{} comes before its parent {}", key, parent);
                }
            }
        }

        #[test]
        fn finishing_one_outstanding_cell_never_adds_another((plan, found) in any_plan_and_outcomes(), pick: usize) {
            let before = outstanding(&plan, &found);
            if !before.is_empty() {
                let mut found = found;
                found.insert(before[pick % before.len()].clone(), OutcomeKind::Done);
                let after = outstanding(&plan, &found);
                prop_assert!(after.len() < before.len());
                prop_assert!(after.iter().all(|key| before.contains(key)));
            }
        }

        #[test]
        fn running_what_is_outstanding_until_nothing_is_ends_with_every_point_done((plan, found) in any_plan_and_outcomes()) {
            let mut found = found;
            for _ in 0..=plan.cells.len() {
                let Some(first) = outstanding(&plan, &found).into_iter().next() else { break };
                found.insert(first, OutcomeKind::Done);
            }
            prop_assert!(plan.points.iter().all(|point| found.get(&point.cell) == Some(&OutcomeKind::Done)));
        }
    }

    #[test]
    fn the_part_of_a_plan_that_leads_to_a_cell_has_its_ancestors_and_nothing_else() {
        let plan = grid(&["badnets", "blended"], &["none", "ft", "tsbd"]);
        let point = plan.points.iter().find(|point| point.attack == "blended" && point.defense == "tsbd").unwrap();
        let part = plan.leading_to(&point.cell);
        let parent = plan.cells[&point.cell].parents[0].clone();
        assert_eq!(part.cells.keys().collect::<Vec<_>>(), [&parent, &point.cell]);
        assert_eq!(part.points, std::slice::from_ref(point));
        assert_eq!(outstanding(&part, &BTreeMap::new()).len(), 2);
    }

    #[test]
    fn a_backdoored_model_is_trained_once_for_all_its_defenses() {
        let plan = grid(&["badnets", "blended"], &["none", "ft", "tsbd"]);
        assert_eq!((plan.cells.len(), plan.points.len()), (6, 6));
        assert_eq!(outstanding(&plan, &BTreeMap::new()).len(), 6);
    }
}
