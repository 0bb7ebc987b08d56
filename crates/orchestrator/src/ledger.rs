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
