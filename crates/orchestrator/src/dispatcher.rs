//! The dispatcher: owns the state of a run, decides what starts, and tells everybody what happened.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use fs_err as fs;
use std::os::unix::process::ExitStatusExt;
use tokio::sync::mpsc;
use tsbd_experiment::store::LockHolder;
use tsbd_experiment::{CellKey, Failure, Found, Plan, RECORD_FORMAT, Store, StoreError, Verification, outstanding};

use crate::event::{RunEvent, RunSummary};
use crate::executor::{Executor, Launch, Order, Report, Started};
use crate::interrupt::Interrupts;
use crate::ledger::{Ending, Ledger};
use crate::protocol::{CellArguments, CellEvent, EXIT_STOPPED};
use crate::status::{RunStatus, RunningCell, StatusState, unix_now, write_status};

/// How a run is run.
#[derive(Debug)]
pub struct RunOptions {
    /// The program whose subcommand `cell` runs a cell; usually this program.
    pub program: PathBuf,
    /// Folder with the data sets, if the user named one.
    pub data: Option<PathBuf>,
    /// `cpu`, `cuda:0`, ...
    pub device: String,
    /// Cells at a time; at least 1. A cell on a CPU uses all cores, so 1 is right there.
    pub workers: usize,
    /// Threads that are divided among the workers.
    pub threads: usize,
    /// Where requests to stop come from.
    pub interrupts: Interrupts,
    /// A child that says nothing for so long is taken for hanging: it is killed and has failed. Never, if `None`.
    pub silence_limit: Option<Duration>,
    /// Variables added to the children's environment.
    pub environment: Vec<(String, String)>,
}

impl RunOptions {
    /// One worker with every core of this machine, children run by this program, no requests to stop but those of
    /// `interrupts`.
    pub fn new(interrupts: Interrupts) -> io::Result<Self> {
        Ok(Self {
            program: std::env::current_exe()?,
            data: None,
            device: "cpu".into(),
            workers: 1,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            interrupts,
            silence_limit: None,
            environment: Vec::new(),
        })
    }

    fn threads_per_worker(&self) -> usize {
        (self.threads / self.workers.max(1)).max(1)
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
}

/// Runs what is outstanding of `plan` until nothing is left that can run, and says what it has come to.
///
/// Fails only where nothing can be run at all, as when another coordinator has the folder. A cell that fails is told in
/// the summary and in `failure.json`, does not stop the others, and is outstanding again in the next run. Events that
/// nobody receives are dropped.
pub async fn run(
    plan: &Plan,
    store: &Store,
    options: RunOptions,
    events: mpsc::Sender<RunEvent>,
) -> Result<RunSummary, RunError> {
    let began = Instant::now();
    let _lock = store.lock()?;
    let coordinator = store.lock_holder()?.unwrap_or_default();
    store.note_images(&plan.images)?;
    let survey = store.survey(plan, Verification::Digests)?;
    for damage in survey.damaged {
        let aside = store.set_aside(&damage)?;
        let _ = events.send(RunEvent::Damaged { damage, aside }).await;
    }
    let todo = outstanding(plan, &survey.found);
    for key in &todo {
        store.describe(&plan.cells[key])?;
    }
    let (executor, reports) = Executor::new()?;
    let already_done = survey.found.values().filter(|outcome| **outcome == tsbd_experiment::OutcomeKind::Done).count();
    let planned = RunEvent::Planned {
        total: plan.cells.len(),
        done: already_done,
        outstanding: todo.clone(),
        workers: options.workers.max(1),
        threads: options.threads_per_worker(),
    };
    let dispatcher = Dispatcher {
        plan,
        store,
        ledger: Ledger::new(plan, &todo),
        executor,
        events,
        coordinator,
        running: BTreeMap::new(),
        summary: RunSummary { already_done, ..RunSummary::default() },
        status_is_written: true,
        options,
    };
    let mut summary = dispatcher.run(planned, reports).await?;
    summary.elapsed = began.elapsed();
    Ok(summary)
}

struct Dispatcher<'a> {
    plan: &'a Plan,
    store: &'a Store,
    options: RunOptions,
    ledger: Ledger,
    executor: Executor,
    events: mpsc::Sender<RunEvent>,
    coordinator: LockHolder,
    running: BTreeMap<CellKey, Running>,
    summary: RunSummary,
    /// Whether the last status could be written; a warning is given once.
    status_is_written: bool,
}

/// A child, as the dispatcher knows it.
struct Running {
    child: Started,
    log: PathBuf,
    /// The reason it gave for its failure.
    reason: Option<String>,
    status: RunningCell,
}

impl Dispatcher<'_> {
    /// How often the status is written.
    const STATUS_INTERVAL: Duration = Duration::from_secs(1);
    /// How much of a log is kept in `failure.json`.
    const TAIL_LINES: usize = 20;
    const TAIL_BYTES: i64 = 16 * 1024;

    async fn run(mut self, planned: RunEvent, mut reports: mpsc::Receiver<Report>) -> Result<RunSummary, RunError> {
        self.tell(planned).await;
        let mut clock = tokio::time::interval(Self::STATUS_INTERVAL);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            while !self.summary.interrupted && self.running.len() < self.options.workers.max(1) {
                let Some(key) = self.ledger.next().cloned() else { break };
                self.start(key).await;
            }
            if self.running.is_empty() {
                break;
            }
            tokio::select! {
                Some(report) = reports.recv() => self.take(report).await,
                () = self.options.interrupts.next() => self.interrupt().await,
                _ = clock.tick() => self.write_status(StatusState::Running).await,
            }
        }
        while self.summary.interrupted {
            let Some(key) = self.ledger.next().cloned() else { break };
            self.ledger.begin(&key);
            self.ledger.end(&key, Ending::Stopped);
            self.summary.stopped.push(key);
        }
        let state = if self.summary.interrupted { StatusState::Interrupted } else { StatusState::Finished };
        self.write_status(state).await;
        Ok(self.summary)
    }

    /// Starts the child of a cell, unless somebody else has finished the cell meanwhile.
    async fn start(&mut self, key: CellKey) {
        self.ledger.begin(&key);
        match self.store.look(&key, Verification::Digests) {
            Ok(Found::Done(_)) => return self.finish(key, None).await,
            Ok(_) => {}
            Err(error) => return self.fail(key, error.to_string(), Path::new("")).await,
        }
        match self.launch(&key).await {
            Ok(running) => {
                let event = RunEvent::CellStarted {
                    key: key.clone(),
                    cell: Box::new(self.plan.cells[&key].clone()),
                    pid: running.child.pid,
                    log: running.log.clone(),
                    continues: running.status.stage == "continue",
                };
                self.running.insert(key, running);
                self.tell(event).await;
            }
            Err(error) => self.fail(key, error.to_string(), Path::new("")).await,
        }
    }

    async fn launch(&mut self, key: &CellKey) -> Result<Running, RunError> {
        let resumable = self.store.resumable_attempt(key)?;
        let continues = resumable.is_some();
        let attempt = resumable.map_or_else(|| self.store.create_attempt(key), Ok)?;
        let log = self.store.attempt_directory(key, &attempt).join("log");
        let launch = Launch {
            program: self.options.program.clone(),
            arguments: CellArguments {
                key: key.clone(),
                results: self.store.root().to_owned(),
                data: self.options.data.clone(),
                device: self.options.device.clone(),
                threads: self.options.threads_per_worker(),
                attempt: Some(attempt.to_string()),
            },
            environment: self.options.environment.clone(),
            log: log.clone(),
            silence_limit: self.options.silence_limit,
        };
        let child = self.executor.start(launch).await?;
        let cell = &self.plan.cells[key];
        let status = RunningCell {
            key: key.clone(),
            kind: cell.kind,
            label: cell.label(),
            attack: cell.attack.name.clone(),
            defense: cell.defense_name().to_owned(),
            seed: cell.seed,
            pid: child.pid,
            started_unix: unix_now(),
            attempt: attempt.to_string(),
            stage: if continues { "continue" } else { "start" }.to_owned(),
            epoch: None,
            epochs: None,
            step: None,
            steps: None,
            loss: None,
            images_per_second: None,
        };
        Ok(Running { child, log, reason: None, status })
    }

    async fn take(&mut self, report: Report) {
        match report {
            Report::Said { key, event } => {
                if let Some(running) = self.running.get_mut(&key) {
                    running.hear(&event);
                }
                let is_step = matches!(event, CellEvent::Step { .. });
                let event = RunEvent::CellProgress { key, event };
                match is_step {
                    // Steps come often and the next one tells as much: a slow receiver must not hold the run up.
                    true => drop(self.events.try_send(event)),
                    false => self.tell(event).await,
                }
            }
            Report::Ended { key, status, silent } => {
                let Some(running) = self.running.remove(&key) else { return };
                self.conclude(key, running, status, silent).await;
            }
        }
    }

    /// A child has ended. What counts is what it published; its exit status only explains why it did not.
    async fn conclude(&mut self, key: CellKey, running: Running, status: io::Result<ExitStatus>, silent: bool) {
        match self.store.look(&key, Verification::Sizes) {
            Ok(Found::Done(_)) => return self.finish(key, Some(&running.log)).await,
            Ok(_) => {}
            Err(error) => return self.fail(key, error.to_string(), &running.log).await,
        }
        let stopped = status.as_ref().is_ok_and(|status| status.code() == Some(i32::from(EXIT_STOPPED)));
        let killed_on_request = self.summary.interrupted && running.reason.is_none();
        if stopped || killed_on_request {
            self.ledger.end(&key, Ending::Stopped);
            self.summary.stopped.push(key.clone());
            // A child that stops by itself was asked by somebody (a person, a batch system): so is the run.
            if !self.summary.interrupted {
                self.interrupt().await;
            }
            return self.tell(RunEvent::CellStopped { key }).await;
        }
        let reason = match (running.reason, silent) {
            (Some(reason), _) => reason,
            (None, true) => {
                let limit = self.options.silence_limit.unwrap_or_default().as_secs();
                format!("it told no progress for {limit} s and was killed")
            }
            (None, false) => explain(&status),
        };
        self.fail(key, reason, &running.log).await;
    }

    /// The cell has failed. `log` is empty if its child never started.
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
        for (key, parent) in skipped {
            self.summary.skipped.push((key.clone(), parent.clone()));
            self.tell(RunEvent::CellSkipped { key, parent }).await;
        }
    }

    /// The cell has its result.
    async fn finish(&mut self, key: CellKey, log: Option<&Path>) {
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
    fn tidy(&self, key: &CellKey, log: Option<&Path>) -> Result<(), StoreError> {
        if let Some(log) = log.filter(|log| log.exists()) {
            fs::rename(log, self.store.artefact(key, "log"))?;
        }
        self.store.remove_ended_attempts(key)
    }

    async fn interrupt(&mut self) {
        let kill = self.summary.interrupted;
        self.summary.interrupted = true;
        let order = if kill { Order::Kill } else { Order::Stop };
        for running in self.running.values() {
            // A child that has ended needs no order.
            let _ = running.child.orders.send(order);
        }
        self.tell(RunEvent::Interrupted { kill, running: self.running.len() }).await;
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
            skipped: self.ledger.skipped(),
            waiting: self.ledger.waiting(),
            running: self.running.values().map(|running| running.status.clone()).collect(),
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

impl Running {
    fn hear(&mut self, event: &CellEvent) {
        let status = &mut self.status;
        match event {
            CellEvent::Started { attempt, .. } => status.attempt.clone_from(attempt),
            CellEvent::Stage { stage } => {
                status.stage.clone_from(stage);
                (status.epoch, status.epochs, status.step, status.steps) = (None, None, None, None);
                (status.loss, status.images_per_second) = (None, None);
            }
            CellEvent::Step { stage, epoch, epochs, step, steps, loss, images_per_second } => {
                status.stage.clone_from(stage);
                (status.epoch, status.epochs) = (Some(*epoch), Some(*epochs));
                (status.step, status.steps) = (Some(*step), Some(*steps));
                (status.loss, status.images_per_second) = (*loss, *images_per_second);
            }
            CellEvent::Epoch { stage, epoch, epochs, .. } => {
                status.stage.clone_from(stage);
                (status.epoch, status.epochs) = (Some(*epoch), Some(*epochs));
            }
            CellEvent::Failed { reason } => self.reason = Some(reason.clone()),
            CellEvent::Note { .. } | CellEvent::Finished { .. } | CellEvent::Stopped => {}
        }
    }
}

/// Why a child that gave no reason has left no result.
fn explain(status: &io::Result<ExitStatus>) -> String {
    let status = match status {
        Ok(status) => status,
        Err(error) => return format!("its process was lost: {error}"),
    };
    match (status.code(), status.signal()) {
        (_, Some(9)) => {
            "its process was killed (signal 9); if nobody did that, it was the system because memory ran out: \
             use a smaller batch or fewer workers"
                .to_owned()
        }
        (_, Some(signal)) => format!("its process was ended by signal {signal}"),
        (Some(0), _) => "its process ended without a result".to_owned(),
        (Some(code), _) => format!("its process ended with exit code {code} and gave no reason"),
        (None, None) => "its process ended in an unknown way".to_owned(),
    }
}

/// The last lines of a log.
fn tail(log: &Path) -> io::Result<Vec<String>> {
    let mut file = fs::File::open(log)?;
    let length = file.metadata()?.len();
    let cut = length > Dispatcher::TAIL_BYTES.unsigned_abs();
    if cut {
        file.seek(SeekFrom::End(-Dispatcher::TAIL_BYTES))?;
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // The first line of a cut log has lost its beginning.
    let lines: Vec<&str> = text.lines().skip(usize::from(cut)).collect();
    Ok(lines[lines.len().saturating_sub(Dispatcher::TAIL_LINES)..].iter().map(|line| (*line).to_owned()).collect())
}
