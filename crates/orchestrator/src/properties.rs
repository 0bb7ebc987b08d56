//! Whatever the order, the number of workers, kills and restarts: the records are the same. With an executor whose cells
//! end as a script says; [`crate::slurm`] has the same for a cluster.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::Map;
use tokio::sync::mpsc;
use tsbd_experiment::{
    CellKey, CellRecord, Outcome, Plan, Provenance, RECORD_FORMAT, ResultRow, RowState, Store, result_rows,
};

use crate::dispatcher::run_on;
use crate::executor::{End, Executor, Order, Report, Start};
use crate::interrupt::Interrupts;
use crate::ledger::tests::plan;

/// The result that a cell has wherever and whenever it is computed.
pub(crate) fn record(plan: &Plan, key: &CellKey) -> CellRecord {
    let cell = plan.cells[key].clone();
    let metrics = BTreeMap::from([("acc".to_owned(), cell.seed as f64 / 100.0)]);
    CellRecord {
        format: RECORD_FORMAT,
        key: key.clone(),
        cell,
        outcome: Outcome::Done,
        metrics,
        facts: Map::new(),
        trace: Vec::new(),
        artefacts: BTreeMap::new(),
        provenance: Provenance::default(),
    }
}

/// Computes a cell, as far as anybody can see.
pub(crate) fn compute(plan: &Plan, store: &Store, key: &CellKey) {
    let attempt = store.begin_attempt(key, None).unwrap();
    std::fs::write(attempt.directory().join("model"), key.as_str()).unwrap();
    attempt.publish(record(plan, key), &["model"]).unwrap();
}

/// The cells that have results in the end: those that do not fail and whose ancestors have results.
pub(crate) fn expected(plan: &Plan, fails: impl Fn(&CellKey) -> bool) -> BTreeSet<CellKey> {
    let mut done = BTreeSet::new();
    for (key, cell) in &plan.cells {
        if !fails(key) && cell.parents.iter().all(|parent| done.contains(parent)) {
            done.insert(key.clone());
        }
    }
    done
}

/// What a table is made of, without why something failed.
pub(crate) fn rows(plan: &Plan, store: &Store) -> Vec<ResultRow> {
    let mut rows = result_rows(plan, store).unwrap();
    rows.iter_mut().filter(|row| row.state != RowState::Done).for_each(|row| row.state = RowState::Missing);
    rows
}

/// Children that end in an order that a script gives, and a coordinator that is killed with them.
struct Scripted<'a> {
    plan: &'a Plan,
    store: Store,
    workers: usize,
    fails: &'a BTreeSet<CellKey>,
    /// Which of the children at work ends next.
    order: std::iter::Cycle<std::vec::IntoIter<usize>>,
    working: Vec<CellKey>,
    /// Those that another one has ended once.
    ended_by_others: BTreeSet<CellKey>,
    reports: mpsc::Sender<Report>,
    /// Children that end until everything is killed.
    life: usize,
}

impl Executor for Scripted<'_> {
    const KEEPS_ORDER: bool = false;

    fn capacity(&mut self) -> usize {
        self.workers
    }

    async fn start(&mut self, cells: Vec<CellKey>) -> Vec<Report> {
        self.working.extend(cells.clone());
        // One ends for each hand-over, and as many as make room when the last ones were handed over.
        let log = std::path::PathBuf::new();
        let start = Start { pid: 1, job: None, attempt: String::new(), log, continues: false };
        let mut reports: Vec<Report> =
            cells.into_iter().map(|key| Report::Started { key, start: start.clone() }).collect();
        while !self.working.is_empty() {
            if self.life == 0 {
                // Killed: what was at work has made a folder and perhaps a checkpoint, and nothing is told of it.
                for key in &self.working {
                    let attempt = self.store.begin_attempt(key, None).unwrap();
                    std::fs::write(attempt.checkpoint(), "half").unwrap();
                }
                std::future::pending::<()>().await;
            }
            self.life -= 1;
            let turn = self.order.next().expect("it has no end");
            let next = turn % self.working.len();
            let key = self.working.swap_remove(next);
            if turn.is_multiple_of(3) && self.ended_by_others.insert(key.clone()) {
                reports.push(Report::Ended { key, end: End::Again("of another one".into()) });
            } else if self.fails.contains(&key) {
                reports.push(Report::Ended { key, end: End::Because("it was told to".into()) });
            } else {
                compute(self.plan, &self.store, &key);
                reports.push(Report::Ended { key, end: End::Because("its result is not seen".into()) });
            }
            if next.is_multiple_of(2) {
                break;
            }
        }
        // What was left over ends on its own.
        if !self.working.is_empty() {
            let (reports, plan) = (self.reports.clone(), self.plan);
            for key in std::mem::take(&mut self.working) {
                let end = End::Because("it was told to".into());
                if !self.fails.contains(&key) {
                    compute(plan, &self.store, &key);
                }
                let reports = reports.clone();
                tokio::spawn(async move { reports.send(Report::Ended { key, end }).await });
            }
        }
        reports
    }

    fn order(&mut self, _: Order) {}
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn records_and_rows_do_not_depend_on_order_workers_kills_and_restarts(
        (shape, fails) in (1_usize..10).prop_flat_map(|count| {
            (proptest::collection::vec(any::<u16>(), count), proptest::collection::vec(proptest::bool::weighted(0.15), count))
        }),
        workers in proptest::collection::vec(1_usize..5, 1..4),
        order in proptest::collection::vec(0_usize..100, 16),
        lives in proptest::collection::vec(0_usize..6, 0..3),
    ) {
        let plan = plan(&shape);
        let keys: Vec<&CellKey> = plan.cells.keys().collect();
        let fails: BTreeSet<CellKey> =
            keys.iter().zip(&fails).filter(|(_, fails)| **fails).map(|(key, _)| (*key).clone()).collect();
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("results"));
        std::fs::create_dir_all(store.root()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut workers = workers.iter().cycle();
        for life in lives.iter().copied().chain([usize::MAX]) {
            let (reports, received) = mpsc::channel(64);
            let executor = Scripted {
                plan: &plan,
                store: store.clone(),
                workers: *workers.next().unwrap(),
                fails: &fails,
                order: order.clone().into_iter().cycle(),
                working: Vec::new(),
                ended_by_others: BTreeSet::new(),
                reports,
                life,
            };
            let (_sender, interrupts) = Interrupts::channel();
            let (events, _) = mpsc::channel(1);
            let run = run_on(executor, received, &plan, &store, interrupts, events);
            // A run that is killed never ends by itself.
            let patience = std::time::Duration::from_millis(if life == usize::MAX { 30_000 } else { 50 });
            let ended = runtime.block_on(async { tokio::time::timeout(patience, run).await });
            if life == usize::MAX {
                let summary = ended.expect("it ends").unwrap();
                prop_assert_eq!(summary.exit_code() == 0, fails.is_empty());
            }
        }
        let done = expected(&plan, |key| fails.contains(key));
        let found: BTreeSet<CellKey> =
            keys.iter().filter(|key| store.result(key).is_ok()).map(|key| (*key).clone()).collect();
        prop_assert_eq!(&found, &done);
        // The rows of a results folder where everything was computed once, in the plan's order.
        let other = Store::new(folder.path().join("other"));
        for key in plan.cells.keys().filter(|key| done.contains(*key)) {
            other.describe(&plan.cells[key]).unwrap();
            compute(&plan, &other, key);
        }
        prop_assert_eq!(rows(&plan, &store), rows(&plan, &other));
    }
}
