//! The state of a run: which cells wait, run, or have ended, and which may start next. Pure bookkeeping; the dispatcher
//! owns the only one.

use std::collections::BTreeSet;

use indexmap::IndexMap;
use tsbd_experiment::{CellKey, Plan};

/// How a cell's turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// There is a result.
    Done,
    /// There is none, and there is a reason.
    Failed,
    /// On request.
    Stopped,
    /// It could not run, because a parent has no result.
    Skipped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    Ended(Ending),
}

/// The cells of a run with their states, in the order of the plan. Every operation takes time in proportion to the cells
/// that it concerns, not to all cells.
#[derive(Debug, Clone)]
pub struct Ledger {
    cells: IndexMap<CellKey, Entry>,
    /// Positions of those that wait.
    waiting: BTreeSet<usize>,
    /// Positions of those that wait and whose parents are done.
    ready: BTreeSet<usize>,
    /// Positions of those of them whose turn has begun before.
    returned: BTreeSet<usize>,
}

#[derive(Debug, Clone)]
struct Entry {
    state: State,
    /// Positions of those parents that are part of this run; others have their results.
    parents: Vec<usize>,
    children: Vec<usize>,
    /// How many of the parents are not done.
    held_up_by: usize,
}

impl Ledger {
    /// All of `outstanding` waiting; parents come before their children.
    pub fn new(plan: &Plan, outstanding: &[CellKey]) -> Self {
        let mut cells: IndexMap<CellKey, Entry> = IndexMap::with_capacity(outstanding.len());
        for (position, key) in outstanding.iter().enumerate() {
            let parents = plan.cells[key].parents.iter();
            let parents: Vec<usize> = parents.filter_map(|parent| cells.get_index_of(parent)).collect();
            for &parent in &parents {
                cells[parent].children.push(position);
            }
            let held_up_by = parents.len();
            cells.insert(key.clone(), Entry { state: State::Waiting, parents, children: Vec::new(), held_up_by });
        }
        let ready = (0..cells.len()).filter(|position| cells[*position].held_up_by == 0).collect();
        Self { waiting: (0..cells.len()).collect(), ready, returned: BTreeSet::new(), cells }
    }

    /// The first cell of the plan that waits and whose parents are done; before others, one whose turn has begun already.
    pub fn next(&self) -> Option<&CellKey> {
        self.returned.first().or(self.ready.first()).map(|position| self.key(*position))
    }

    /// The first cell of the plan that waits, done parents or not: for somebody who keeps the order himself.
    pub fn next_in_order(&self) -> Option<&CellKey> {
        self.waiting.first().map(|position| self.key(*position))
    }

    /// The cell's turn begins.
    pub fn begin(&mut self, key: &CellKey) {
        let position = self.position(key);
        self.set(position, State::Waiting, State::Running);
    }

    /// The cell's turn ended as if it had not begun.
    pub fn again(&mut self, key: &CellKey) {
        let position = self.position(key);
        self.set(position, State::Running, State::Waiting);
        self.waiting.insert(position);
        if self.cells[position].held_up_by == 0 {
            self.ready.insert(position);
            self.returned.insert(position);
        }
    }

    /// The cell's turn ended. Gives the cells that are skipped because of it, each with the parent that is to blame; those
    /// whose turn has already begun are not among them.
    pub fn end(&mut self, key: &CellKey, ending: Ending) -> Vec<(CellKey, CellKey)> {
        let position = self.position(key);
        self.set(position, State::Running, State::Ended(ending));
        match ending {
            Ending::Done => {
                for child in self.cells[position].children.clone() {
                    let entry = &mut self.cells[child];
                    entry.held_up_by -= 1;
                    if entry.held_up_by == 0 && entry.state == State::Waiting {
                        self.ready.insert(child);
                    }
                }
                Vec::new()
            }
            Ending::Stopped => Vec::new(),
            Ending::Failed | Ending::Skipped => self.skip_descendants(position),
        }
    }

    fn skip_descendants(&mut self, position: usize) -> Vec<(CellKey, CellKey)> {
        let mut skipped = Vec::new();
        let mut without_result = BTreeSet::from([position]);
        let mut reached: BTreeSet<usize> = self.cells[position].children.iter().copied().collect();
        // Parents come before their children, so the first in order has all its parents settled.
        while let Some(child) = reached.pop_first() {
            if self.cells[child].state != State::Waiting {
                continue;
            }
            let to_blame = self.cells[child].parents.iter().find(|parent| without_result.contains(parent));
            let parent = self.key(*to_blame.expect("it was reached from one of its parents")).clone();
            self.set(child, State::Waiting, State::Ended(Ending::Skipped));
            skipped.push((self.key(child).clone(), parent));
            without_result.insert(child);
            reached.extend(&self.cells[child].children);
        }
        skipped
    }

    /// Number of cells whose turn it is.
    pub fn running(&self) -> usize {
        self.count(State::Running)
    }

    /// Number of cells that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Number of cells that ended so.
    pub fn ended(&self, ending: Ending) -> usize {
        self.count(State::Ended(ending))
    }

    fn count(&self, wanted: State) -> usize {
        self.cells.values().filter(|entry| entry.state == wanted).count()
    }

    fn key(&self, position: usize) -> &CellKey {
        self.cells.get_index(position).expect("positions are those of cells").0
    }

    fn position(&self, key: &CellKey) -> usize {
        self.cells.get_index_of(key).expect("the cell is part of the run")
    }

    fn set(&mut self, position: usize, from: State, to: State) {
        let state = self.cells[position].state;
        assert_eq!(state, from, "cell {} cannot become {to:?}", self.key(position));
        self.cells[position].state = to;
        self.waiting.remove(&position);
        self.ready.remove(&position);
        self.returned.remove(&position);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use tsbd_experiment::{
        Augmentation, Cell, CellKind, DatasetParameters, Experiment, GridPoint, MethodParameters, ModelParameters,
        Precision, Schedule, TableSpec, TrainingParameters,
    };

    use super::*;

    /// Cell `i` has up to two earlier cells as parents, as the bits of `shape[i]` say. Each is a point of its own.
    pub(crate) fn plan(shape: &[u16]) -> Plan {
        let experiment = Experiment {
            name: "test".into(),
            title: "A test".into(),
            profile: "smoke".into(),
            settings: Vec::new(),
            table: TableSpec::default(),
            figure: None,
        };
        let mut plan = Plan {
            experiment,
            cells: IndexMap::new(),
            points: Vec::new(),
            images: Default::default(),
            slurm: Default::default(),
        };
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
                    precision: Precision::F32,
                }),
                attack: MethodParameters::new("none", 1, serde_json::json!({})),
                defense: None,
                unlearning: None,
                measurement: None,
            };
            plan.points.push(GridPoint {
                attack: "none".into(),
                defense: "none".into(),
                measure: "none".into(),
                seed: cell.seed,
                axes: Default::default(),
                cell: cell.key(),
            });
            plan.cells.insert(cell.key(), cell);
        }
        plan
    }

    #[test]
    fn a_cell_whose_turn_ended_as_if_it_had_not_begun_is_the_next_one() {
        let plan = plan(&[0, 0, 0]);
        let keys: Vec<CellKey> = plan.cells.keys().cloned().collect();
        let mut ledger = Ledger::new(&plan, &keys);
        ledger.begin(&keys[2]);
        ledger.again(&keys[2]);
        assert_eq!(ledger.next(), Some(&keys[2]));
        ledger.begin(&keys[2]);
        assert_eq!(ledger.next(), Some(&keys[0]));
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
            prop_assert_eq!(ledger.ended(Ending::Skipped), skipped.len());
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
