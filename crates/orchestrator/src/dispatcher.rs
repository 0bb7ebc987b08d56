//! The dispatcher: owns the state of a run, decides what starts, and tells everybody what happened.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fs_err as fs;
use tokio::sync::mpsc;
use tsbd_experiment::store::LockHolder;
use tsbd_experiment::{CellKey, Failure, Found, Plan, RECORD_FORMAT, Store, StoreError, Verification, outstanding};

use crate::devices::Devices;
use crate::event::{RunEvent, RunSummary};
use crate::executor::{End, Executor, Order, Report, Start};
use crate::interrupt::Interrupts;
use crate::ledger::{Ending, Ledger};
use crate::local::Local;
use crate::protocol::CellEvent;
use crate::slurm::{Slurm, SlurmError};
use crate::status::{RunStatus, RunningCell, StatusState, unix_now, write_status};

/// Where cells are computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In children of this process, on these devices of this machine.
    Local(Devices),
    /// In jobs of the cluster that this machine submits to, as the plan's section `[slurm]` says: on a GPU, if the section
    /// asks for one.
    Slurm,
}

/// How a run is run.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Where.
    pub place: Place,
    /// The program whose subcommands `cell` and `cells` run cells; usually this program.
    pub program: PathBuf,
    /// Folder with the data sets, if the user named one.
    pub data: Option<PathBuf>,
    /// Threads that are divided among the children at work.
    pub threads: usize,
    /// A cell that says nothing for so long is taken for hanging: its child is killed and it has failed. Never, if `None`.
    pub silence_limit: Option<Duration>,
    /// Variables added to the children's environment.
    pub environment: Vec<(String, String)>,
}

impl RunOptions {
    /// One cell at a time with every core of this machine, children run by this program.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            place: Place::Local(Devices::Cpu { workers: 1 }),
            program: std::env::current_exe()?,
            data: None,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            silence_limit: None,
            environment: Vec::new(),
        })
    }
}

/// Why a run could not begin, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The results folder.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system.
    #[error("cannot run cells: {0}")]
    System(#[from] io::Error),
    /// The cluster.
    #[error(transparent)]
    Slurm(#[from] SlurmError),
}

/// Runs what is outstanding of `plan` until nothing is left that can run, and says what it has come to.
///
/// Fails only where nothing can be run at all, as when another coordinator has the folder. A cell that fails is told in
/// the summary and in `failure.json`, does not stop the others, and is outstanding again in the next run. Requests to stop
/// come from `interrupts`. Events that nobody receives are dropped.
pub async fn run(
    plan: &Plan,
    store: &Store,
    options: RunOptions,
    interrupts: Interrupts,
    events: mpsc::Sender<RunEvent>,
) -> Result<RunSummary, RunError> {
    let began = Instant::now();
    let _lock = store.lock()?;
    let mut summary = match &options.place {
        Place::Local(devices) => {
            let (executor, reports) = Local::new(store, devices.clone(), &options)?;
            run_on(executor, reports, plan, store, interrupts, events).await?
        }
        Place::Slurm => {
            let (executor, reports) = Slurm::new(plan, store, &options).await?;
            run_on(executor, reports, plan, store, interrupts, events).await?
        }
    };
    // Of very many records, what plans and tables need is noted now, and not by the first who asks. It is a cache: who cannot read
    // it reads the records.
    let _ = store.look_at_all(plan.cells.keys(), drop);
    summary.elapsed = began.elapsed();
    Ok(summary)
}

/// [`run`] with the executor that was chosen.
pub(crate) async fn run_on<E: Executor>(
    executor: E,
    reports: mpsc::Receiver<Report>,
    plan: &Plan,
    store: &Store,
    interrupts: Interrupts,
    events: mpsc::Sender<RunEvent>,
) -> Result<RunSummary, RunError> {
    let coordinator = store.lock_holder()?.unwrap_or_default();
    store.note_images(&plan.images)?;
    store.note_run(&plan.experiment)?;
    let survey = store.survey(plan, Verification::Digests)?;
    for damage in survey.damaged {
        let aside = store.set_aside(&damage)?;
        let _ = events.send(RunEvent::Damaged { damage, aside }).await;
    }
    let todo = outstanding(plan, &survey.found);
    for key in &todo {
        store.describe(&plan.cells[key])?;
    }
    let already_done = survey.found.values().filter(|outcome| **outcome == tsbd_experiment::OutcomeKind::Done).count();
    let planned = RunEvent::Planned { total: plan.cells.len(), done: already_done, outstanding: todo.clone() };
    let dispatcher = Dispatcher {
        plan,
        store,
        ledger: Ledger::new(plan, &todo),
        executor,
        interrupts,
        events,
        coordinator,
        held: BTreeMap::new(),
        summary: RunSummary { already_done, ..RunSummary::default() },
        status_is_written: true,
    };
    dispatcher.run(planned, reports).await
}

struct Dispatcher<'a, E> {
    plan: &'a Plan,
    store: &'a Store,
    ledger: Ledger,
    executor: E,
    interrupts: Interrupts,
    events: mpsc::Sender<RunEvent>,
    coordinator: LockHolder,
    /// The cells that the executor holds.
    held: BTreeMap<CellKey, Held>,
    summary: RunSummary,
    /// Whether the last status could be written; a warning is given once.
    status_is_written: bool,
}

/// A cell that the executor holds, as the dispatcher knows it.
#[derive(Default)]
struct Held {
    /// Log of the last attempt; empty before it has one.
    log: PathBuf,
    /// The reason it gave for its failure.
    reason: Option<String>,
    /// What it does, if it runs.
    status: Option<RunningCell>,
}

impl<E: Executor> Dispatcher<'_, E> {
    /// How often the status is written.
    const STATUS_INTERVAL: Duration = Duration::from_secs(1);

    async fn run(mut self, planned: RunEvent, mut reports: mpsc::Receiver<Report>) -> Result<RunSummary, RunError> {
        self.tell(planned).await;
        let mut clock = tokio::time::interval(Self::STATUS_INTERVAL);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.hand_over().await;
            // An executor that has no place for any cell may have one later.
            if self.held.is_empty() && (self.summary.interrupted || self.next().is_none()) {
                break;
            }
            tokio::select! {
                Some(report) = reports.recv() => self.take(report).await,
                () = self.interrupts.next() => self.interrupt().await,
                _ = clock.tick() => self.write_status(StatusState::Running).await,
            }
        }
        while self.summary.interrupted {
            let Some(key) = self.ledger.next().cloned() else { break };
            self.ledger.begin(&key);
            self.ledger.end(&key, Ending::Stopped);
            self.summary.stopped.push(key);
        }
        let state = match (self.summary.interrupted, self.summary.left.is_empty()) {
            (true, true) => StatusState::Interrupted,
            (true, false) => StatusState::Left,
            (false, _) => StatusState::Finished,
        };
        self.write_status(state).await;
        Ok(self.summary)
    }

    /// Hands the executor as many cells as it takes.
    async fn hand_over(&mut self) {
        while !self.summary.interrupted && self.held.len() < self.executor.capacity() {
            let mut cells = Vec::new();
            while self.held.len() < self.executor.capacity() {
                let Some(key) = self.next() else { break };
                self.ledger.begin(&key);
                match self.store.look(&key, Verification::Digests) {
                    // Somebody else has finished it meanwhile.
                    Ok(Found::Done(_)) => {
                        self.executor.forget(&key);
                        self.finish(key, Path::new("")).await;
                    }
                    Ok(_) => {
                        self.held.insert(key.clone(), Held::default());
                        cells.push(key);
                    }
                    Err(error) => {
                        self.executor.forget(&key);
                        self.fail(key, error.to_string(), Path::new("")).await;
                    }
                }
            }
            if cells.is_empty() {
                break;
            }
            for report in self.executor.start(cells).await {
                self.take(report).await;
            }
        }
    }

    /// The cell whose turn is next.
    fn next(&self) -> Option<CellKey> {
        if E::KEEPS_ORDER { self.ledger.next_in_order() } else { self.ledger.next() }.cloned()
    }

    async fn take(&mut self, report: Report) {
        match report {
            Report::Started { key, start } => {
                let Some(held) = self.held.get_mut(&key) else { return };
                let cell = &self.plan.cells[&key];
                let Start { pid, job, attempt, log, continues } = start;
                held.log.clone_from(&log);
                held.status = Some(RunningCell::new(&key, cell, pid, job.clone(), attempt, continues));
                let cell = Box::new(cell.clone());
                self.tell(RunEvent::CellStarted { key, cell, pid, job, log, continues }).await;
            }
            Report::Said { key, event } => {
                if let Some(held) = self.held.get_mut(&key) {
                    held.hear(&event);
                }
                let is_step = matches!(event, CellEvent::Step { .. });
                let event = RunEvent::CellProgress { key, event };
                match is_step {
                    // Steps come often and the next one tells as much: a slow receiver must not hold the run up.
                    true => drop(self.events.try_send(event)),
                    false => self.tell(event).await,
                }
            }
            Report::Returned { key, reason } => {
                let Some(held) = self.held.get_mut(&key) else { return };
                let ran = held.status.take().is_some();
                self.tell(RunEvent::CellReturned { key, reason, ran }).await;
            }
            Report::Ended { key, end } => {
                let Some(held) = self.held.remove(&key) else { return };
                self.conclude(key, held, end).await;
            }
            Report::Note { text } => self.tell(RunEvent::Note { text }).await,
            Report::Warning { text } => self.warn(text).await,
        }
    }

    /// The executor has done with a cell. What counts is what the cell published; how it ended only explains why it did
    /// not.
    async fn conclude(&mut self, key: CellKey, held: Held, end: End) {
        match self.store.look(&key, Verification::Sizes) {
            Ok(Found::Done(_)) => {
                self.executor.forget(&key);
                return self.finish(key, &held.log).await;
            }
            Ok(_) => {}
            Err(error) => {
                self.executor.forget(&key);
                return self.fail(key, error.to_string(), &held.log).await;
            }
        }
        match end {
            End::Parent(parent) => {
                let further = self.ledger.end(&key, Ending::Skipped);
                self.skip(std::iter::once((key, parent)).chain(further)).await;
            }
            End::Left => {
                self.ledger.end(&key, Ending::Stopped);
                self.summary.left.push(key);
            }
            End::Again(_) if self.summary.interrupted => self.stop(key).await,
            End::Again(reason) => {
                self.ledger.again(&key);
                self.tell(RunEvent::CellReturned { key, reason, ran: held.status.is_some() }).await;
            }
            End::Because(reason) => {
                // Killed on request, unless it said otherwise.
                if self.summary.interrupted && held.reason.is_none() {
                    return self.stop(key).await;
                }
                self.fail(key, held.reason.unwrap_or(reason), &held.log).await;
            }
            End::Stopped => {
                self.stop(key).await;
                // A cell that stops by itself was asked by somebody (a person, a batch system): so is the run.
                if !self.summary.interrupted {
                    self.interrupt().await;
                }
            }
        }
    }

    async fn stop(&mut self, key: CellKey) {
        self.ledger.end(&key, Ending::Stopped);
        self.summary.stopped.push(key.clone());
        self.tell(RunEvent::CellStopped { key }).await;
    }

    async fn skip(&mut self, skipped: impl IntoIterator<Item = (CellKey, CellKey)>) {
        for (key, parent) in skipped {
            self.summary.skipped.push((key.clone(), parent.clone()));
            self.tell(RunEvent::CellSkipped { key, parent }).await;
        }
    }

    /// The cell has failed. `log` is empty if it never started.
    async fn fail(&mut self, key: CellKey, reason: String, log: &Path) {
        let log_tail = tail(log).unwrap_or_default();
        let attempt = log.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        let failure = Failure {
            format: RECORD_FORMAT,
            key: key.clone(),
            reason: reason.clone(),
            attempt: attempt.unwrap_or_default(),
            log_tail: log_tail.clone(),
            failed_unix: unix_now(),
        };
        if let Err(error) = self.store.write_failure(&failure) {
            self.warn(format!("the failure of cell {key} cannot be noted: {error}")).await;
        }
        let skipped = self.ledger.end(&key, Ending::Failed);
        self.summary.failed.push((key.clone(), reason.clone()));
        self.tell(RunEvent::CellFailed { key, reason, log: log.to_owned(), log_tail }).await;
        self.skip(skipped).await;
    }

    /// The cell has its result. `log` is empty if nobody here saw it run.
    async fn finish(&mut self, key: CellKey, log: &Path) {
        let (metrics, seconds) = match self.store.look(&key, Verification::Sizes) {
            Ok(Found::Done(record)) => (record.metrics, record.provenance.seconds),
            _ => Default::default(),
        };
        self.ledger.end(&key, Ending::Done);
        if let Err(error) = self.tidy(&key, log) {
            self.warn(format!("the attempts of cell {key} cannot be removed: {error}")).await;
        }
        self.summary.finished.push(key.clone());
        self.tell(RunEvent::CellFinished { key, metrics, seconds }).await;
    }

    /// Keeps the log of the attempt that finished beside the record, and removes the attempts with their checkpoints.
    fn tidy(&self, key: &CellKey, log: &Path) -> Result<(), StoreError> {
        if log.exists() {
            fs::rename(log, self.store.artefact(key, "log"))?;
        }
        self.store.remove_ended_attempts(key)
    }

    async fn interrupt(&mut self) {
        let kill = self.summary.interrupted;
        self.summary.interrupted = true;
        self.executor.order(if kill { Order::Kill } else { Order::Stop });
        self.tell(RunEvent::Interrupted { kill, running: self.held.len() }).await;
    }

    async fn write_status(&mut self, state: StatusState) {
        let status = RunStatus {
            state,
            experiment: self.plan.experiment.name.clone(),
            profile: self.plan.experiment.profile.clone(),
            coordinator: self.coordinator.clone(),
            updated_unix: unix_now(),
            total: self.plan.cells.len(),
            done: self.summary.already_done + self.ledger.ended(Ending::Done),
            failed: self.ledger.ended(Ending::Failed),
            skipped: self.ledger.ended(Ending::Skipped),
            waiting: self.ledger.waiting(),
            queued: self.held.values().filter(|held| held.status.is_none()).count() + self.summary.left.len(),
            running: self.held.values().filter_map(|held| held.status.clone()).collect(),
        };
        let written = write_status(self.store, &status);
        if let (Err(error), true) = (&written, self.status_is_written) {
            self.warn(format!("the status cannot be written: {error}")).await;
        }
        self.status_is_written = written.is_ok();
    }

    async fn warn(&self, text: String) {
        self.tell(RunEvent::Warning { text }).await;
    }

    async fn tell(&self, event: RunEvent) {
        // A receiver that has gone does not stop the run.
        let _ = self.events.send(event).await;
    }
}

impl Held {
    fn hear(&mut self, event: &CellEvent) {
        match event {
            // A cell may be started again where it is: what it said before counts no more.
            CellEvent::Started { .. } => self.reason = None,
            CellEvent::Failed { reason, .. } => self.reason = Some(reason.clone()),
            _ => {}
        }
        if let Some(status) = &mut self.status {
            status.hear(event);
        }
    }
}

/// How much of a log is kept in `failure.json`.
const TAIL_LINES: usize = 20;
const TAIL_BYTES: i64 = 16 * 1024;

/// The last lines of a log.
fn tail(log: &Path) -> io::Result<Vec<String>> {
    let mut file = fs::File::open(log)?;
    let length = file.metadata()?.len();
    let cut = length > TAIL_BYTES.unsigned_abs();
    if cut {
        file.seek(SeekFrom::End(-TAIL_BYTES))?;
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // The first line of a cut log has lost its beginning.
    let lines: Vec<&str> = text.lines().skip(usize::from(cut)).collect();
    Ok(lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|line| (*line).to_owned()).collect())
}
