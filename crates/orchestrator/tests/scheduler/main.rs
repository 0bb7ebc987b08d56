//! Whole runs with child processes that finish, fail, crash, hang, and are killed. The children are `fake-cell`, which
//! does everything that `tsbd cell` does except the work.

mod hosts;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{ALONE, BEHAVIOURS, FULL, GO, HUNGER, LOST, ROOM, grid};
use tokio::sync::mpsc;
use tsbd_experiment::{CellKey, CellRecord, Found, Plan, Store, Verification};
use tsbd_orchestrator::{
    CellEvent, CellsPerGpu, Devices, GpuSharing, Interrupts, Place, RunError, RunEvent, RunOptions, RunSummary,
    StatusState, read_status, run,
};
use tsbd_tensor::GpuFacts;

const PROGRAM: &str = env!("CARGO_BIN_EXE_fake-cell");
/// Nothing here takes longer, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    _folder: tempfile::TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("results"));
        Self { _folder: folder, store }
    }

    fn options(&self, behaviours: &str, workers: usize) -> RunOptions {
        RunOptions {
            program: PROGRAM.into(),
            place: Place::Local(Devices::Cpu { workers }),
            environment: vec![(BEHAVIOURS.into(), behaviours.into())],
            ..RunOptions::new().unwrap()
        }
    }

    /// Runs to the end, and gives all events.
    async fn run(&self, plan: &Plan, behaviours: &str, workers: usize) -> (RunSummary, Vec<RunEvent>) {
        let (_sender, interrupts) = Interrupts::channel();
        self.run_with(plan, self.options(behaviours, workers), interrupts).await
    }

    async fn run_with(&self, plan: &Plan, options: RunOptions, interrupts: Interrupts) -> (RunSummary, Vec<RunEvent>) {
        let (sender, mut receiver) = mpsc::channel(16);
        let listen = tokio::spawn(async move {
            let mut events = Vec::new();
            while let Some(event) = receiver.recv().await {
                events.push(event);
            }
            events
        });
        let run = run(plan, &self.store, options, interrupts, sender);
        let summary = tokio::time::timeout(PATIENCE, run).await.unwrap().unwrap();
        (summary, listen.await.unwrap())
    }

    fn record(&self, key: &CellKey) -> Option<CellRecord> {
        match self.store.look(key, Verification::Digests).unwrap() {
            Found::Done(record) => Some(*record),
            _ => None,
        }
    }

    /// The cells that were started so far, by label.
    fn starts(&self) -> Vec<String> {
        self.starts_in().into_iter().map(|(label, _)| label).collect()
    }

    /// The same, each with its process.
    fn starts_in(&self) -> Vec<(String, Pid)> {
        let text = std::fs::read_to_string(self.store.root().join("starts")).unwrap_or_default();
        let start = |line: &str| {
            let (label, pid) = line.split_once(' ')?;
            Some((label.to_owned(), Pid::from_raw(pid.parse().ok()?)))
        };
        text.lines().filter_map(start).collect()
    }

    /// The child that was started last.
    fn last_child(&self) -> Option<Pid> {
        self.starts_in().pop().map(|(_, pid)| pid)
    }
}

fn gpu(ordinal: usize) -> GpuFacts {
    GpuFacts { ordinal, name: "Test".into(), uuid: String::new(), memory_bytes: 1 << 30 }
}

fn key(plan: &Plan, attack: &str, defense: &str) -> CellKey {
    plan.points.iter().find(|point| point.attack == attack && point.defense == defense).unwrap().cell.clone()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn has_checkpoint(store: &Store, key: &CellKey) -> bool {
    let attempts = store.attempts(key).unwrap_or_default();
    attempts.iter().any(|id| store.attempt_directory(key, id).join("checkpoint.safetensors").exists())
}

fn is_alive(pid: Pid) -> bool {
    // A killed process whose parent has gone is soon reaped; until then it is a zombie, which does nothing any more.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[tokio::test]
async fn a_grid_runs_to_its_end_and_the_second_run_starts_nothing() {
    let bench = Bench::new();
    let plan = grid(&["badnets", "blended"], &["ft", "tsbd"]);
    let (summary, events) = bench.run(&plan, "", 1).await;
    assert_eq!((summary.finished.len(), summary.exit_code()), (6, 0));
    assert_eq!(bench.starts().len(), 6);
    let position = |label: &str| bench.starts().iter().position(|start| start == label).unwrap();
    assert!(position("badnets") < position("badnets+ft") && position("blended") < position("blended+tsbd"));
    assert!(matches!(&events[0], RunEvent::Planned { total: 6, done: 0, outstanding, .. } if outstanding.len() == 6));
    let stage = RunEvent::CellProgress {
        key: key(&plan, "badnets", "none"),
        event: CellEvent::Stage { stage: "train".into() },
    };
    assert!(events.contains(&stage));
    for cell in plan.cells.keys() {
        let record = bench.record(cell).unwrap();
        assert_eq!(record.metrics["acc"], 0.5);
        assert!(record.artefacts.contains_key("model.safetensors") && record.artefacts.contains_key("metrics.jsonl"));
        assert!(bench.store.attempts(cell).unwrap().is_empty(), "attempts of finished cells are removed");
        assert!(bench.store.artefact(cell, "log").exists());
    }
    let status = read_status(&bench.store).unwrap().unwrap();
    assert_eq!((status.state, status.done, status.total), (StatusState::Finished, 6, 6));

    let (again, _) = bench.run(&plan, "", 1).await;
    assert_eq!((again.already_done, again.finished.len(), bench.starts().len()), (6, 0, 6));
}

#[tokio::test]
async fn a_failed_cell_stops_nobody_but_its_descendants_and_runs_again_next_time() {
    let bench = Bench::new();
    let plan = grid(&["badnets", "blended"], &["ft", "tsbd"]);
    let (summary, events) = bench.run(&plan, "badnets=fail,blended+ft=panic", 1).await;
    assert_eq!((summary.finished.len(), summary.failed.len(), summary.skipped.len()), (2, 2, 2));
    assert_eq!(summary.exit_code(), 1);
    let failed = key(&plan, "badnets", "none");
    assert!(summary.skipped.iter().all(|(_, parent)| parent == &failed));
    let failure = bench.store.failure(&failed).unwrap().unwrap();
    assert_eq!(failure.reason, "the loss is NaN in epoch 3; lower the learning rate");
    assert!(failure.log_tail.iter().any(|line| line.contains("failed")), "{:?}", failure.log_tail);
    let panicked = bench.store.failure(&key(&plan, "blended", "ft")).unwrap().unwrap();
    assert!(panicked.reason.contains("an index is out of bounds"), "{}", panicked.reason);
    assert!(events.iter().any(|event| matches!(event, RunEvent::CellFailed { key, .. } if *key == failed)));

    let (again, _) = bench.run(&plan, "", 1).await;
    assert_eq!((again.already_done, again.finished.len(), again.exit_code()), (2, 4, 0));
    assert_eq!(bench.store.failure(&failed).unwrap(), None);
}

#[tokio::test]
async fn a_child_that_crashes_or_ends_without_a_result_is_explained() {
    let bench = Bench::new();
    let plan = grid(&["badnets", "blended"], &[]);
    let (summary, events) = bench.run(&plan, "badnets=abort,blended=vanish", 2).await;
    let reason = |attack| {
        let cell = key(&plan, attack, "none");
        summary.failed.iter().find(|(key, _)| *key == cell).unwrap().1.clone()
    };
    assert!(reason("badnets").contains("signal 6"), "{}", reason("badnets"));
    assert!(reason("blended").contains("ended without a result"), "{}", reason("blended"));
    let told = |event: &RunEvent| matches!(event, RunEvent::CellFailed { log_tail, .. } if log_tail.contains(&"last words".to_owned()));
    assert!(events.iter().any(told), "the log's end is told");
}

#[tokio::test]
async fn what_a_child_prints_besides_events_goes_to_its_log() {
    let bench = Bench::new();
    let plan = grid(&["badnets"], &[]);
    bench.run(&plan, "badnets=chatter", 1).await;
    let log = std::fs::read_to_string(bench.store.artefact(&key(&plan, "badnets", "none"), "log")).unwrap();
    assert!(log.contains("a library says hello"), "{log}");
}

#[tokio::test]
async fn a_child_that_hangs_is_killed_after_the_silence_limit() {
    let bench = Bench::new();
    let plan = grid(&["badnets", "blended"], &[]);
    let (_sender, interrupts) = Interrupts::channel();
    let mut options = bench.options("badnets=hang", 1);
    options.silence_limit = Some(Duration::from_secs(3));
    let (summary, _) = bench.run_with(&plan, options, interrupts).await;
    assert!(summary.failed[0].1.contains("no progress for 3 s"), "{:?}", summary.failed);
    assert_eq!(summary.finished, [key(&plan, "blended", "none")]);
}

#[tokio::test]
async fn an_interrupted_run_continues_from_its_checkpoints() {
    let bench = Bench::new();
    let plan = grid(&["badnets", "blended"], &[]);
    let cell = key(&plan, "badnets", "none");
    let (sender, interrupts) = Interrupts::channel();
    let options = bench.options("badnets=patient", 1);
    let interrupt = async {
        until("a checkpoint", || has_checkpoint(&bench.store, &cell)).await;
        sender.interrupt();
    };
    let ((summary, events), ()) = tokio::join!(bench.run_with(&plan, options, interrupts), interrupt);
    assert_eq!((summary.exit_code(), summary.finished.len(), summary.failed.len()), (130, 0, 0));
    assert_eq!(summary.stopped.len(), 2, "the running cell and the one that never started");
    assert!(events.iter().any(|event| matches!(event, RunEvent::Interrupted { kill: false, running: 1 })));
    assert_eq!(read_status(&bench.store).unwrap().unwrap().state, StatusState::Interrupted);

    let (summary, events) = bench.run(&plan, "badnets=patient", 1).await;
    assert_eq!((summary.exit_code(), summary.finished.len()), (0, 2));
    assert!(bench.record(&cell).unwrap().facts["first_epoch"].as_u64().unwrap() >= 1);
    assert!(events.iter().any(|event| matches!(event, RunEvent::CellStarted { continues: true, .. })));
}

#[tokio::test]
async fn a_second_interrupt_kills_a_child_that_does_not_listen() {
    let bench = Bench::new();
    let plan = grid(&["badnets"], &["ft"]);
    let (sender, interrupts) = Interrupts::channel();
    let options = bench.options("badnets=hang", 1);
    let interrupt = async {
        until("the start", || bench.last_child().is_some()).await;
        sender.interrupt();
        tokio::time::sleep(Duration::from_millis(200)).await;
        sender.interrupt();
    };
    let ((summary, _), ()) = tokio::join!(bench.run_with(&plan, options, interrupts), interrupt);
    assert_eq!((summary.exit_code(), summary.failed.len()), (130, 0));
    assert!(!is_alive(bench.last_child().unwrap()));
}

#[tokio::test]
async fn a_killed_child_costs_its_cell_only_and_is_continued_next_time() {
    let bench = Bench::new();
    let plan = grid(&["badnets", "blended"], &["ft"]);
    let cell = key(&plan, "badnets", "none");
    let killer = async {
        until("a checkpoint", || has_checkpoint(&bench.store, &cell)).await;
        kill(bench.last_child().unwrap(), Signal::SIGKILL).unwrap();
    };
    let ((summary, _), ()) = tokio::join!(bench.run(&plan, "badnets=patient", 1), killer);
    assert!(summary.failed[0].1.contains("signal 9"), "{:?}", summary.failed);
    assert_eq!((summary.finished.len(), summary.skipped.len()), (2, 1));

    let (summary, _) = bench.run(&plan, "badnets=patient", 1).await;
    assert_eq!((summary.exit_code(), summary.finished.len()), (0, 2));
    assert!(bench.record(&cell).unwrap().facts["first_epoch"].as_u64().unwrap() >= 1);
}

fn coordinator(results: &Path, behaviours: &str) -> Child {
    let mut command = Command::new(PROGRAM);
    command.arg("coordinate").arg(results).env(BEHAVIOURS, behaviours).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

#[tokio::test]
async fn a_killed_coordinator_takes_its_children_along_and_the_next_one_continues() {
    let bench = Bench::new();
    let plan = grid(&["badnets", "blended"], &["ft"]);
    let (badnets, blended) = (key(&plan, "badnets", "none"), key(&plan, "blended", "none"));
    let mut first = coordinator(bench.store.root(), "badnets=patient,blended=hang");
    until("a checkpoint", || has_checkpoint(&bench.store, &badnets) && bench.starts().len() == 2).await;
    let children: Vec<Pid> = bench.starts_in().into_iter().map(|(_, pid)| pid).collect();
    first.kill().unwrap();
    first.wait().unwrap();
    until("the children's end", || children.iter().all(|child| !is_alive(*child))).await;
    assert!(bench.record(&badnets).is_none() && bench.record(&blended).is_none());
    if let Some(status) = read_status(&bench.store).unwrap() {
        assert_eq!(status.state, StatusState::Gone);
    }

    let (summary, _) = bench.run(&plan, "badnets=patient", 2).await;
    assert_eq!((summary.exit_code(), summary.finished.len()), (0, 4));
    assert!(bench.record(&badnets).unwrap().facts["first_epoch"].as_u64().unwrap() >= 1);
}

#[tokio::test]
async fn a_second_coordinator_is_refused_with_the_process_of_the_first() {
    let bench = Bench::new();
    let mut first = coordinator(bench.store.root(), "badnets=hang,blended=hang");
    until("the start", || bench.last_child().is_some()).await;
    let (_sender, interrupts) = Interrupts::channel();
    let (events, _receiver) = mpsc::channel(1);
    let plan = grid(&["badnets"], &[]);
    let error = run(&plan, &bench.store, bench.options("", 1), interrupts, events).await.unwrap_err();
    assert!(matches!(error, RunError::Store(_)));
    assert!(error.to_string().contains(&format!("process {}", first.id())), "{error}");
    let second = coordinator(bench.store.root(), "").wait_with_output().unwrap();
    assert_eq!(second.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&second.stderr).contains(&format!("process {}", first.id())));
    first.kill().unwrap();
    first.wait().unwrap();
}

#[tokio::test]
async fn workers_run_side_by_side_and_cells_may_end_in_any_order() {
    let bench = Bench::new();
    let plan = grid(&["badnets", "blended", "none"], &["ft"]);
    let (summary, events) = bench.run(&plan, "badnets=slow,blended+ft=slow", 3).await;
    assert_eq!(summary.finished.len(), 6);
    assert_ne!(summary.finished[0], key(&plan, "badnets", "none"), "the slow one does not end first");
    let mut running = 0_usize;
    let mut most = 0;
    for event in &events {
        match event {
            RunEvent::CellStarted { .. } => running += 1,
            RunEvent::CellFinished { .. } => running -= 1,
            _ => {}
        }
        most = most.max(running);
    }
    assert_eq!(most, 3);
}

#[tokio::test]
async fn cells_are_spread_over_the_gpus_and_none_has_more_than_its_share() {
    let bench = Bench::new();
    let plan = grid(&["badnets", "blended", "none"], &["ft"]);
    let devices =
        Devices::Gpus { gpus: vec![gpu(0), gpu(3)], cells: CellsPerGpu::Exactly(1), sharing: GpuSharing::Turns };
    let mut options = RunOptions { place: Place::Local(devices), ..bench.options("badnets=slow,blended=slow", 1) };
    options.environment.push((ALONE.into(), "1".into()));
    let (_sender, interrupts) = Interrupts::channel();
    let (summary, _) = bench.run_with(&plan, options, interrupts).await;
    // One that had found another on its GPU would have failed.
    assert_eq!(summary.finished.len(), 6);
    let device_of = |key: &CellKey| bench.record(key).unwrap().provenance.device;
    let devices: Vec<String> = plan.cells.keys().map(device_of).collect();
    assert_eq!(BTreeSet::from_iter(devices), BTreeSet::from(["cuda:0".to_owned(), "cuda:3".to_owned()]));
}

#[tokio::test]
async fn a_gpu_that_is_lost_or_full_costs_no_cell_while_there_is_another() {
    for (sharing, variable) in [
        (GpuSharing::OneProcess, LOST),
        (GpuSharing::Turns, LOST),
        (GpuSharing::OneProcess, FULL),
        (GpuSharing::Turns, FULL),
    ] {
        let bench = Bench::new();
        let plan = grid(&["badnets", "blended", "none"], &["ft"]);
        let devices = Devices::Gpus { gpus: vec![gpu(0), gpu(3)], cells: CellsPerGpu::Exactly(1), sharing };
        let mut options = RunOptions { place: Place::Local(devices), ..bench.options("blended=slow", 1) };
        options.environment.push((variable.into(), "cuda:0".into()));
        let (_sender, interrupts) = Interrupts::channel();
        let (summary, events) = bench.run_with(&plan, options, interrupts).await;
        assert_eq!((summary.finished.len(), summary.failed.len()), (6, 0), "{sharing:?}: {:?}", summary.failed);
        let returned = events.iter().filter(|event| matches!(event, RunEvent::CellReturned { .. })).count();
        assert!((1..=2).contains(&returned), "it is left alone after that: {returned}");
        assert!(plan.cells.keys().all(|key| bench.record(key).unwrap().provenance.device == "cuda:3"));
    }
}

#[tokio::test]
async fn a_cell_that_no_gpu_can_be_opened_for_has_failed_with_the_reason() {
    for sharing in [GpuSharing::OneProcess, GpuSharing::Turns] {
        let bench = Bench::new();
        let plan = grid(&["badnets", "blended"], &["ft"]);
        let devices = Devices::Gpus { gpus: vec![gpu(0)], cells: CellsPerGpu::Auto, sharing };
        let mut options = RunOptions { place: Place::Local(devices), ..bench.options("", 1) };
        options.environment.push((LOST.into(), "cuda:0".into()));
        let (_sender, interrupts) = Interrupts::channel();
        let (summary, _) = bench.run_with(&plan, options, interrupts).await;
        assert_eq!((summary.failed.len(), summary.skipped.len()), (2, 2));
        assert!(summary.failed.iter().all(|(_, reason)| reason.contains("GPU is lost; use another one")));
    }
}

#[tokio::test]
async fn a_cell_whose_log_cannot_be_written_says_why_it_failed() {
    let bench = Bench::new();
    let plan = grid(&["badnets"], &[]);
    let cell = key(&plan, "badnets", "none");
    bench.store.describe(&plan.cells[&cell]).unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["cell", cell.as_str(), "--device", "cpu", "--threads", "1", "--results"]).arg(bench.store.root());
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = command.env(BEHAVIOURS, "badnets=fail").stderr(full).output().unwrap();
    let last = String::from_utf8(output.stdout).unwrap().lines().last().and_then(CellEvent::from_line);
    assert_eq!(output.status.code(), Some(1));
    assert!(matches!(&last, Some(CellEvent::Failed { reason, .. }) if reason.contains("the loss is NaN")), "{last:?}");
}

#[tokio::test]
async fn a_damaged_result_is_told_kept_aside_and_made_again_with_what_needs_it() {
    let bench = Bench::new();
    let plan = grid(&["badnets"], &["ft"]);
    bench.run(&plan, "", 1).await;
    let cell = key(&plan, "badnets", "none");
    std::fs::write(bench.store.artefact(&cell, "model.safetensors"), "Badnets").unwrap();
    let (summary, events) = bench.run(&plan, "", 1).await;
    assert_eq!(summary.finished, vec![cell.clone()]);
    let Some(RunEvent::Damaged { damage, aside: Some(aside) }) = events.first() else { panic!("{events:?}") };
    assert!(damage.to_string().contains("model.safetensors was changed") && aside.exists());
    assert!(bench.record(&cell).is_some());
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_named() {
    let bench = Bench::new();
    let plan = grid(&["badnets"], &["ft"]);
    let (_sender, interrupts) = Interrupts::channel();
    let options = RunOptions { program: "/nowhere/tsbd".into(), ..bench.options("", 1) };
    let (summary, _) = bench.run_with(&plan, options, interrupts).await;
    assert!(summary.failed[0].1.contains("cannot start /nowhere/tsbd"), "{:?}", summary.failed);
    assert_eq!(summary.skipped.len(), 1);
}
