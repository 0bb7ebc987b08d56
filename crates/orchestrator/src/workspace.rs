//! The child's side: where a cell works, how it tells its progress, and how its result is published.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fs_err as fs;
use indexmap::IndexMap;
use serde_json::{Map, Value};
use tsbd_experiment::store::{AttemptId, write_atomically};
use tsbd_experiment::{
    Attempt, Cell, CellKey, CellKind, CellRecord, Found, Outcome, Provenance, Published, RECORD_FORMAT, Store,
    StoreError, TracePoint, Verification, Versions,
};
use tsbd_nn::{load_tensors, save_tensors};
use tsbd_tensor::{ConvolutionAlgorithm, Precision, Tensor};

use crate::lifeline;
use crate::protocol::{CellArguments, CellEvent, EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, HostEvent};

/// Any error of the work inside a cell: its text, with the causes below it, is the reason in `failure.json`.
pub type CellError = Box<dyn std::error::Error + Send + Sync>;

/// How the work of a cell ended.
#[derive(Debug)]
pub enum Conclusion {
    /// With a result.
    Done(Findings),
    /// On request. The checkpoint stays, and the next run continues from it.
    Stopped,
}

/// What a cell found out.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// Fractions: `acc`, `asr`, `ra`, ...; what is undefined is left out. All must be finite.
    pub metrics: BTreeMap<String, f64>,
    /// Counts and choices beside the metrics.
    pub facts: Map<String, Value>,
    /// Metrics per stage and epoch; published as `metrics.jsonl` too.
    pub trace: Vec<TracePoint>,
    /// Names of the files in [`CellWorkspace::directory`] that are published with the record.
    pub artefacts: Vec<String>,
}

/// What a cell has of the process that it is computed in.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    pub reporter: ProgressReporter,
    pub cancellation: Cancellation,
    /// The most other cells that the process has computed at a time, since it last had none.
    pub others: Arc<AtomicUsize>,
}

impl Surroundings {
    /// A process that has one cell: standard output is for its events, standard error is its log.
    fn own() -> Self {
        let reporter = ProgressReporter::to(Box::new(std::io::stdout()));
        Self { reporter, cancellation: Cancellation::default(), others: Arc::default() }
    }
}

/// Where one cell is worked on. The folder is its own for as long as this lives.
#[derive(Debug)]
pub struct CellWorkspace {
    store: Store,
    cell: Cell,
    attempt: Attempt,
    arguments: CellArguments,
    surroundings: Surroundings,
    began: Instant,
    /// Seconds that earlier processes spent in this attempt up to its checkpoint.
    earlier_seconds: f64,
    savings: Mutex<Savings>,
}

/// Which stages have just been saved. What is as short as saving it, as epochs on a GPU are, is saved less often.
#[derive(Debug, Default)]
struct Savings {
    /// When a stage is due again.
    due: HashMap<String, Instant>,
}

impl Savings {
    /// By how much the work between two savings of a stage takes longer, at least, than saving it does.
    const WORK_PER_SAVING: u32 = 20;

    fn is_due(&self, stage: &str, now: Instant) -> bool {
        self.due.get(stage).is_none_or(|due| now >= *due)
    }

    fn saved(&mut self, stage: &str, now: Instant, took: Duration) {
        self.due.insert(stage.to_owned(), now + took * Self::WORK_PER_SAVING);
    }
}

impl CellWorkspace {
    /// The record's trace, one point a line.
    const METRICS: &'static str = "metrics.jsonl";

    /// Begins to work on the cell: in the attempt that the arguments name if it is free, else in one whose process has
    /// ended and left a checkpoint, else in a new one.
    fn open(arguments: &CellArguments, surroundings: Surroundings) -> Result<Self, StoreError> {
        let store = Store::new(&arguments.results);
        let cell = store.read_cell(&arguments.key)?;
        let wanted: Option<AttemptId> = arguments.attempt.as_deref().and_then(|id| id.parse().ok());
        let attempt = store.begin_attempt(&arguments.key, wanted.as_ref())?;
        let seconds = fs::read_to_string(attempt.directory().join(Attempt::SECONDS)).ok();
        let earlier_seconds = match attempt.has_checkpoint() {
            true => seconds.and_then(|text| text.trim().parse().ok()).unwrap_or(0.0),
            false => 0.0,
        };
        Ok(Self {
            store,
            cell,
            attempt,
            arguments: arguments.clone(),
            surroundings,
            began: Instant::now(),
            earlier_seconds,
            savings: Mutex::default(),
        })
    }

    /// What to do.
    pub fn cell(&self) -> &Cell {
        &self.cell
    }

    /// How the process was started: device, threads, data folder.
    pub fn arguments(&self) -> &CellArguments {
        &self.arguments
    }

    /// The private folder. Files that are to be published are written here.
    pub fn directory(&self) -> &Path {
        self.attempt.directory()
    }

    /// Path of the checkpoint, in the private folder. If the file is there, the work continues from it.
    pub fn checkpoint(&self) -> PathBuf {
        self.attempt.checkpoint()
    }

    /// Saves how far a stage of the work has come (the training of a model has no name), and the time spent, so that the record
    /// of a cell that was interrupted tells what it took as a whole. Does nothing shortly after the stage's last saving:
    /// what a stop costs at most is twenty times what saving takes, and the epoch at work.
    pub fn save<E>(&self, stage: &str, save: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let begin = Instant::now();
        let mut savings = self.savings.lock().unwrap_or_else(PoisonError::into_inner);
        if !savings.is_due(stage, begin) {
            return Ok(());
        }
        save()?;
        let seconds = self.seconds().to_string();
        if let Err(error) = write_atomically(&self.directory().join(Attempt::SECONDS), seconds.as_bytes()) {
            self.surroundings.reporter.log(format!("the seconds spent so far could not be kept: {error}"));
        }
        savings.saved(stage, Instant::now(), begin.elapsed());
        Ok(())
    }

    /// Keeps how far a stage of the work has come, as [`tsbd_nn::Keeper::keep`].
    pub fn keep(&self, stage: &str, run: &str, state: &IndexMap<String, Tensor>) -> tsbd_nn::Result<()> {
        self.save(stage, || save_tensors(&self.attempt.stage_checkpoint(stage), run, state))
    }

    /// What [`Self::keep`] kept last of this stage and run. A damaged state costs the work that it held and nothing else.
    pub fn kept(&self, stage: &str, run: &str) -> Option<IndexMap<String, Tensor>> {
        match load_tensors(&self.attempt.stage_checkpoint(stage), run) {
            Ok(kept) => kept,
            // The stage has begun with something else since.
            Err(tsbd_nn::Error::ForeignCheckpoint { .. }) => None,
            Err(error) => {
                self.surroundings.reporter.note(format!("{error}; {stage} begins again"));
                None
            }
        }
    }

    /// The result of a cell that this one starts from, its files verified.
    pub fn parent(&self, key: &CellKey) -> Result<CellRecord, StoreError> {
        self.store.result(key)
    }

    /// The results of all cells that this one starts from, in the cell's order, their files verified.
    pub fn parents(&self) -> Result<Vec<CellRecord>, StoreError> {
        self.cell.parents.iter().map(|key| self.parent(key)).collect()
    }

    /// The result of the first parent that is of kind `kind`, its files verified; `None` if no parent is.
    pub fn parent_of_kind(&self, kind: CellKind) -> Result<Option<CellRecord>, StoreError> {
        Ok(self.parents()?.into_iter().find(|record| record.cell.kind == kind))
    }

    /// Path of a published file of a parent, e.g. `model.safetensors`. Verified by [`CellWorkspace::parent`].
    pub fn parent_artefact(&self, key: &CellKey, name: &str) -> PathBuf {
        self.store.artefact(key, name)
    }

    /// Tells progress.
    pub fn reporter(&self) -> ProgressReporter {
        self.surroundings.reporter.clone()
    }

    /// Whether to stop.
    pub fn cancellation(&self) -> Cancellation {
        self.surroundings.cancellation.clone()
    }

    /// Wall-clock seconds spent on the cell, those before the checkpoint included.
    pub fn seconds(&self) -> f64 {
        self.earlier_seconds + self.began.elapsed().as_secs_f64()
    }

    /// Publishes what was found. An existing result wins.
    fn publish(&self, findings: Findings, versions: Versions) -> Result<Published, StoreError> {
        let lines: String = findings
            .trace
            .iter()
            .map(|point| serde_json::to_string(point).expect("a point has string keys only") + "\n")
            .collect();
        write_atomically(&self.directory().join(Self::METRICS), lines.as_bytes())?;
        let elapsed = self.began.elapsed();
        let started = SystemTime::now() - elapsed;
        let record = CellRecord {
            format: RECORD_FORMAT,
            key: self.arguments.key.clone(),
            cell: self.cell.clone(),
            outcome: Outcome::Done,
            metrics: findings.metrics,
            facts: findings.facts,
            trace: findings.trace,
            artefacts: BTreeMap::new(),
            provenance: Provenance {
                device: self.arguments.device.clone(),
                kernels: kernels(&self.arguments.device, self.cell.precision()),
                threads: self.arguments.threads,
                seconds: self.earlier_seconds + elapsed.as_secs_f64(),
                other_cells: self.surroundings.others.load(Ordering::Relaxed),
                peak_memory_bytes: peak_memory_bytes(),
                peak_gpu_memory_bytes: tsbd_tensor::peak_gpu_memory(&self.arguments.device),
                started_unix: started.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
                versions,
                host: tsbd_experiment::store::host_name(),
                job: job(|name| std::env::var(name).ok()),
            },
        };
        let mut artefacts: Vec<&str> = findings.artefacts.iter().map(String::as_str).collect();
        if !artefacts.contains(&Self::METRICS) {
            artefacts.push(Self::METRICS);
        }
        self.attempt.publish(record, &artefacts)
    }
}

/// The life of a child that has one cell: opens the workspace, does the work, publishes, and gives the exit code.
///
/// The process ends with its coordinator, and its [`Cancellation`] is set on SIGTERM. A panic is a failure like any
/// other. A cell that is already published is not worked on again.
pub fn run_cell<F>(arguments: &CellArguments, versions: Versions, execute: F) -> u8
where
    F: FnOnce(&CellWorkspace) -> Result<Conclusion, CellError>,
{
    let surroundings = Surroundings::own();
    let tied = lifeline::die_with_coordinator()
        .and_then(|()| lifeline::stop_on_request(Arc::clone(&surroundings.cancellation.flag)));
    let event = match tied {
        Ok(()) => live(arguments, versions, &surroundings, execute),
        Err(error) => CellEvent::Failed { reason: error.to_string(), no_device: false },
    };
    // The coordinator hears of it whatever becomes of the log.
    surroundings.reporter.send(&event);
    surroundings.reporter.log_failure(&arguments.key, &event);
    match event {
        CellEvent::Stopped => EXIT_STOPPED,
        CellEvent::Failed { .. } => EXIT_FAILED,
        _ => EXIT_DONE,
    }
}

/// The life of a cell in a process that is ready for it. Its last event is returned, neither sent nor logged.
pub(crate) fn live<F>(
    arguments: &CellArguments,
    versions: Versions,
    surroundings: &Surroundings,
    execute: F,
) -> CellEvent
where
    F: FnOnce(&CellWorkspace) -> Result<Conclusion, CellError>,
{
    let lived = catch_unwind(AssertUnwindSafe(|| try_to_live(arguments, versions, surroundings, execute)));
    let error = match lived {
        Ok(Ok(event)) => return event,
        Ok(Err(error)) => error,
        Err(panic) => format!("a defect of this program: {}", panic_message(panic.as_ref())).into(),
    };
    let no_device = matches!(error.downcast_ref(), Some(tsbd_tensor::Error::NoDevice { .. }));
    let mut reason = with_causes(error.as_ref());
    if let Some(way_out) = tsbd_tensor::gpu_way_out(&reason).filter(|way_out| !reason.contains(way_out)) {
        reason = format!("{reason}; {way_out}");
    }
    CellEvent::Failed { reason, no_device }
}

fn try_to_live<F>(
    arguments: &CellArguments,
    versions: Versions,
    surroundings: &Surroundings,
    execute: F,
) -> Result<CellEvent, CellError>
where
    F: FnOnce(&CellWorkspace) -> Result<Conclusion, CellError>,
{
    let store = Store::new(&arguments.results);
    if let Found::Done(record) = store.look(&arguments.key, Verification::Digests)? {
        return Ok(CellEvent::Finished { metrics: record.metrics, seconds: record.provenance.seconds });
    }
    let workspace = CellWorkspace::open(arguments, surroundings.clone())?;
    surroundings.reporter.send(&CellEvent::Started {
        pid: std::process::id(),
        attempt: workspace.attempt.id().to_string(),
        continues: workspace.attempt.has_checkpoint(),
    });
    match execute(&workspace)? {
        Conclusion::Stopped => Ok(CellEvent::Stopped),
        Conclusion::Done(findings) => {
            let metrics = findings.metrics.clone();
            workspace.publish(findings, versions)?;
            Ok(CellEvent::Finished { metrics, seconds: workspace.seconds() })
        }
    }
}

/// Tells progress to the coordinator, as lines of JSON on standard output. Cheap to clone; usable from any thread.
///
/// A coordinator that no longer listens does not disturb the work.
#[derive(Clone)]
pub struct ProgressReporter {
    shared: Arc<Mutex<Reporter>>,
}

struct Reporter {
    output: Box<dyn Write + Send>,
    /// Whose events these are, if the output has those of several cells.
    key: Option<CellKey>,
    last_step: Option<Instant>,
}

impl Reporter {
    /// One write per line, so lines of several threads do not mix; if nobody listens, the work goes on.
    fn write(&mut self, line: &str) {
        // Of several cells, what a library has begun to print must not spoil the event of one of them.
        let begin = if self.key.is_some() { "\n" } else { "" };
        let _ = self.output.write_all(format!("{begin}{line}\n").as_bytes()).and_then(|()| self.output.flush());
    }
}

impl std::fmt::Debug for ProgressReporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProgressReporter")
    }
}

impl ProgressReporter {
    /// Steps are told at most so often.
    const STEP_INTERVAL: Duration = Duration::from_millis(100);

    /// Writes to `output`; in a child, that is standard output.
    pub fn to(output: Box<dyn Write + Send>) -> Self {
        Self { shared: Arc::new(Mutex::new(Reporter { output, key: None, last_step: None })) }
    }

    /// Tells the coordinator of one cell of several in this process.
    pub(crate) fn of(key: CellKey) -> Self {
        let output = Box::new(std::io::stdout());
        Self { shared: Arc::new(Mutex::new(Reporter { output, key: Some(key), last_step: None })) }
    }

    /// Tells nobody: for work outside of a grid.
    pub fn silent() -> Self {
        Self::to(Box::new(std::io::sink()))
    }

    /// A stage begins.
    pub fn stage(&self, stage: &str) {
        self.send(&CellEvent::Stage { stage: stage.to_owned() });
    }

    /// A step is done: `epoch` of `epochs` (from 0), `step` of `steps` (from 1). May be called for every step: those
    /// that follow each other too closely are left out.
    pub fn step(
        &self,
        stage: &str,
        epoch: (usize, usize),
        step: (usize, usize),
        loss: Option<f64>,
        speed: Option<f64>,
    ) {
        {
            let mut reporter = self.lock();
            if reporter.last_step.is_some_and(|last| last.elapsed() < Self::STEP_INTERVAL) {
                return;
            }
            reporter.last_step = Some(Instant::now());
        }
        self.send(&CellEvent::Step {
            stage: stage.to_owned(),
            epoch: epoch.0,
            epochs: epoch.1,
            step: step.0,
            steps: step.1,
            loss,
            images_per_second: speed,
        });
    }

    /// An epoch is done, with these metrics (those that are not finite are left out).
    pub fn epoch(&self, stage: &str, epoch: usize, epochs: usize, metrics: &BTreeMap<String, f64>) {
        let finite = metrics.iter().filter(|(_, value)| value.is_finite());
        let metrics = finite.map(|(name, value)| (name.clone(), *value)).collect();
        self.send(&CellEvent::Epoch { stage: stage.to_owned(), epoch, epochs, metrics });
    }

    /// Something worth telling the user; in the log as well.
    pub fn note(&self, text: impl Into<String>) {
        let text = text.into();
        self.log(text.clone());
        self.send(&CellEvent::Note { text });
    }

    /// A line for the log.
    pub fn log(&self, text: impl Into<String>) {
        let text = text.into();
        let mut reporter = self.lock();
        match reporter.key.clone() {
            // Standard error is the log; one that cannot be written (a full disk) must not end the cell.
            None => drop(writeln!(std::io::stderr(), "{text}")),
            Some(key) => reporter.write(&HostEvent::Log { key, text }.to_line()),
        }
    }

    /// The line of a cell that has failed.
    pub(crate) fn log_failure(&self, key: &CellKey, event: &CellEvent) {
        if let CellEvent::Failed { reason, .. } = event {
            self.log(format!("cell {key} failed: {reason}"));
        }
    }

    pub(crate) fn send(&self, event: &CellEvent) {
        let mut reporter = self.lock();
        let line = match reporter.key.clone() {
            None => event.to_line(),
            Some(key) => HostEvent::Said { key, event: event.clone() }.to_line(),
        };
        reporter.write(&line);
    }

    fn lock(&self) -> MutexGuard<'_, Reporter> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the work should stop: set once the coordinator (or a person) asked for it.
#[derive(Debug, Clone, Default)]
pub struct Cancellation {
    pub(crate) flag: Arc<AtomicBool>,
}

impl Cancellation {
    /// Whether to stop at the next opportunity.
    pub fn is_cancelled(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }
}

pub(crate) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&str>().copied();
    literal.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it gave no message")
}

/// The job of Slurm that this process runs in, by its environment, as [`Provenance::job`] says it.
fn job(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let array = || Some(format!("{}_{}", variable("SLURM_ARRAY_JOB_ID")?, variable("SLURM_ARRAY_TASK_ID")?));
    let job = array().or_else(|| variable("SLURM_JOB_ID"))?;
    Some(match variable("SLURM_RESTART_COUNT").filter(|count| count != "0") {
        Some(count) => format!("{job}, restart {count}"),
        None => job,
    })
}

/// What computed, as [`Provenance::kernels`] says it.
fn kernels(device: &str, precision: Precision) -> String {
    let found = match device {
        "cpu" => tsbd_tensor::kernels_in_use(precision),
        gpu => tsbd_tensor::gpus(gpu).and_then(|gpus| {
            let name = gpus.first().map_or_else(String::new, |gpu| gpu.name.clone());
            // Of the algorithms the one that a GPU knows.
            let is_split = ConvolutionAlgorithm::current()? == ConvolutionAlgorithm::Split;
            Ok(if is_split { format!("{name}, split convolution") } else { name })
        }),
    };
    found.unwrap_or_else(|error| error.to_string())
}

/// Largest resident memory of this process so far; 0 where the system does not tell.
fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes: Option<u64> = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    kibibytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_named_as_its_cluster_names_it() {
        let of = |variables: &[(&str, &str)]| {
            job(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
        };
        let array = [("SLURM_JOB_ID", "815"), ("SLURM_ARRAY_JOB_ID", "812"), ("SLURM_ARRAY_TASK_ID", "3")];
        assert_eq!(of(&[]), None);
        assert_eq!(of(&array[..1]).unwrap(), "815");
        assert_eq!(of(&[&array[..], &[("SLURM_RESTART_COUNT", "0")]].concat()).unwrap(), "812_3");
        assert_eq!(of(&[&array[..], &[("SLURM_RESTART_COUNT", "2")]].concat()).unwrap(), "812_3, restart 2");
    }

    #[test]
    fn a_stage_rests_for_twenty_times_what_saving_it_took_and_others_do_not() {
        let (mut savings, begin) = (Savings::default(), Instant::now());
        let at = |milliseconds| begin + Duration::from_millis(milliseconds);
        assert!(savings.is_due("fine-tuning", at(0)));
        savings.saved("fine-tuning", at(10), Duration::from_millis(10));
        assert!(!savings.is_due("fine-tuning", at(209)));
        // That of a sweep, whose ratios each end with a fine-tuning that has just been saved.
        assert!(savings.is_due("selection", at(11)));
        savings.saved("selection", at(12), Duration::from_millis(1));
        assert!(!savings.is_due("selection", at(31)) && savings.is_due("selection", at(32)));
        assert!(savings.is_due("fine-tuning", at(210)));
        savings.saved("fine-tuning", at(300), Duration::ZERO);
        assert!(savings.is_due("fine-tuning", at(300)));
    }

    #[test]
    fn steps_that_follow_each_other_closely_are_told_once() {
        let told = Arc::new(Mutex::new(Vec::new()));
        struct Shared(Arc<Mutex<Vec<u8>>>);
        impl Write for Shared {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let reporter = ProgressReporter::to(Box::new(Shared(Arc::clone(&told))));
        for step in 1..=1000 {
            reporter.step("train", (0, 1), (step, 1000), Some(1.0), None);
        }
        reporter.epoch("train", 0, 1, &BTreeMap::from([("loss".into(), f64::NAN), ("acc".into(), 0.5)]));
        let text = String::from_utf8(told.lock().unwrap().clone()).unwrap();
        let events: Vec<_> = text.lines().map(|line| CellEvent::from_line(line).unwrap()).collect();
        assert!(events.len() < 10, "{}", events.len());
        let CellEvent::Epoch { metrics, .. } = events.last().unwrap() else { panic!("no epoch") };
        assert_eq!(metrics, &BTreeMap::from([("acc".to_owned(), 0.5)]));
    }

    #[test]
    fn the_largest_memory_of_this_process_is_known_on_linux() {
        if cfg!(target_os = "linux") {
            assert!(peak_memory_bytes() > 1 << 20);
        }
    }

    #[test]
    fn a_cause_that_the_error_already_tells_is_not_told_twice() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer: {0}")]
        struct Telling(#[source] std::io::Error);
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Silent(#[source] std::io::Error);
        assert_eq!(with_causes(&Telling(std::io::Error::other("inner"))), "outer: inner");
        assert_eq!(with_causes(&Silent(std::io::Error::other("inner"))), "outer: inner");
    }
}
