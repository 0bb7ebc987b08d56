//! The state of a run: which cells wait, run, or have ended, and which may start next. Pure bookkeeping; the dispatcher
//! owns the only one.

use indexmap::IndexMap;
use tsbd_experiment::{CellKey, Plan};

/// How a cell's child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// There is a result.
    Done,
    /// There is none, and there is a reason.
    Failed,
    /// On request.
    Stopped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    Ended(Ending),
    Skipped,
}

/// The cells of a run with their states, in the order of the plan.
#[derive(Debug, Clone)]
pub struct Ledger {
    cells: IndexMap<CellKey, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    state: State,
    /// Those parents that are part of this run; others have their results.
    parents: Vec<CellKey>,
}

impl Ledger {
    /// All of `outstanding` waiting.
    pub fn new(plan: &Plan, outstanding: &[CellKey]) -> Self {
        let entry = |key: &CellKey| {
            let parents = plan.cells[key].parents.iter().filter(|parent| outstanding.contains(parent));
            (key.clone(), Entry { state: State::Waiting, parents: parents.cloned().collect() })
        };
        Self { cells: outstanding.iter().map(entry).collect() }
    }

    /// The first cell of the plan that waits and whose parents are done.
    pub fn next(&self) -> Option<&CellKey> {
        let ready = |entry: &&Entry| {
            let done = |parent: &CellKey| self.cells[parent].state == State::Ended(Ending::Done);
            entry.state == State::Waiting && entry.parents.iter().all(done)
        };
        self.cells.iter().find(|(_, entry)| ready(entry)).map(|(key, _)| key)
    }

    /// The cell's child was started.
    pub fn begin(&mut self, key: &CellKey) {
        self.set(key, State::Waiting, State::Running);
    }

    /// The cell's child ended. Gives the cells that are skipped because of it, each with the parent that is to blame.
    pub fn end(&mut self, key: &CellKey, ending: Ending) -> Vec<(CellKey, CellKey)> {
        self.set(key, State::Running, State::Ended(ending));
        let mut skipped: Vec<(CellKey, CellKey)> = Vec::new();
        if ending != Ending::Failed {
            return skipped;
        }
        // Parents come before their children, so one pass reaches every descendant.
        for position in 0..self.cells.len() {
            let (child, entry) = self.cells.get_index(position).expect("position is below the length");
            let to_blame = |parent: &&CellKey| *parent == key || skipped.iter().any(|(skipped, _)| skipped == *parent);
            let parent = (entry.state == State::Waiting).then(|| entry.parents.iter().find(to_blame)).flatten();
            if let Some(parent) = parent.cloned() {
                let child = child.clone();
                self.set(&child, State::Waiting, State::Skipped);
                skipped.push((child, parent));
            }
        }
        skipped
    }

    /// Number of cells whose child runs.
    pub fn running(&self) -> usize {
        self.count(|state| state == State::Running)
    }

    /// Number of cells that wait.
    pub fn waiting(&self) -> usize {
        self.count(|state| state == State::Waiting)
    }

    /// Number of cells that ended so.
    pub fn ended(&self, ending: Ending) -> usize {
        self.count(|state| state == State::Ended(ending))
    }

    /// Number of cells that never run because a parent failed.
    pub fn skipped(&self) -> usize {
        self.count(|state| state == State::Skipped)
    }

    fn count(&self, wanted: impl Fn(State) -> bool) -> usize {
        self.cells.values().filter(|entry| wanted(entry.state)).count()
    }

    fn set(&mut self, key: &CellKey, from: State, to: State) {
        let entry = &mut self.cells[key];
        assert_eq!(entry.state, from, "cell {key} cannot become {to:?}");
        entry.state = to;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use tsbd_experiment::{
        Augmentation, Cell, CellKind, DatasetParameters, Experiment, MethodParameters, ModelParameters, Schedule,
        TableSpec, TrainingParameters,
    };

    use super::*;

    /// Cell `i` has up to two earlier cells as parents, as the bits of `shape[i]` say.
    fn plan(shape: &[u16]) -> Plan {
        let experiment = Experiment {
            name: "test".into(),
            title: "A test".into(),
            profile: "smoke".into(),
            table: TableSpec::default(),
            figure: None,
        };
        let mut plan = Plan { experiment, cells: IndexMap::new(), points: Vec::new(), images: Default::default() };
        for (seed, mask) in shape.iter().enumerate() {
            let earlier = plan.cells.keys().enumerate().filter(|(position, _)| mask & (1 << position) != 0);
            let parents = earlier.take(2).map(|(_, key)| key.clone()).collect();
            let cell = Cell {
                kind: CellKind::Train,
                profile: "smoke".into(),
                seed: seed as u64,
                data_digest: "none".into(),
                parents,
                dataset: DatasetParameters::new("shapes"),
                model: Some(ModelParameters { name: "preact-resnet18".into(), width: 4 }),
                training: Some(TrainingParameters {
                    epochs: 1,
                    batch_size: 2,
                    learning_rate: 0.1,
                    momentum: 0.0,
                    weight_decay: 0.0,
                    schedule: Schedule::Constant,
                    augmentation: Augmentation::None,
                }),
                attack: MethodParameters { name: "none".into(), revision: 1, parameters: serde_json::json!({}) },
                defense: None,
                unlearning: None,
                measurement: None,
            };
            plan.cells.insert(cell.key(), cell);
        }
        plan
    }

    proptest! {
        /// Runs a plan in which some cells fail, children ending in any order, and compares with the definition: a
        /// cell is done if it does not fail and all its ancestors are done.
        #[test]
        fn exactly_the_descendants_of_failed_cells_are_skipped_in_any_order_of_endings(
            (shape, fails) in (1_usize..12).prop_flat_map(|count| {
                (proptest::collection::vec(any::<u16>(), count), proptest::collection::vec(proptest::bool::weighted(0.2), count))
            }),
            workers in 1_usize..5,
            order in proptest::collection::vec(any::<usize>(), 12),
        ) {
            let plan = plan(&shape);
            let keys: Vec<CellKey> = plan.cells.keys().cloned().collect();
            let fails = |key: &CellKey| fails[plan.cells.get_index_of(key).unwrap()];
            let mut ledger = Ledger::new(&plan, &keys);
            let mut running: Vec<CellKey> = Vec::new();
            let (mut done, mut skipped) = (BTreeSet::new(), BTreeSet::new());
            let mut order = order.into_iter().cycle();
            loop {
                while running.len() < workers && let Some(key) = ledger.next().cloned() {
                    prop_assert!(plan.cells[&key].parents.iter().all(|parent| done.contains(parent)));
                    ledger.begin(&key);
                    running.push(key);
                }
                prop_assert_eq!(ledger.running(), running.len());
                if running.is_empty() {
                    break;
                }
                let key = running.swap_remove(order.next().unwrap() % running.len());
                let ending = if fails(&key) { Ending::Failed } else { Ending::Done };
                for (child, parent) in ledger.end(&key, ending) {
                    prop_assert!(plan.cells[&child].parents.contains(&parent));
                    prop_assert!(skipped.insert(child));
                }
                if ending == Ending::Done {
                    done.insert(key);
                }
            }
            let mut expected = BTreeSet::new();
            for key in &keys {
                if !fails(key) && plan.cells[key].parents.iter().all(|parent| expected.contains(parent)) {
                    expected.insert(key.clone());
                }
            }
            prop_assert_eq!(&done, &expected);
            prop_assert_eq!(ledger.waiting(), 0);
            prop_assert_eq!(ledger.skipped(), skipped.len());
            prop_assert_eq!(done.len() + ledger.ended(Ending::Failed) + skipped.len(), keys.len());
        }

        #[test]
        fn parents_that_already_have_results_hold_nobody_up(shape in proptest::collection::vec(any::<u16>(), 2..12), from in 0_usize..12) {
            let plan = plan(&shape);
            let todo: Vec<CellKey> = plan.cells.keys().skip(from).cloned().collect();
            let ledger = Ledger::new(&plan, &todo);
            prop_assert_eq!(ledger.next(), todo.first());
        }
    }
}
