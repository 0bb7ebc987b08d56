//! Whole runs on a cluster that is made up: its controller goes away, its jobs are lost, forgotten, put back and run twice as
//! a script says, and coordinators are killed. Only the queue is made up; the store, the dispatcher, the follower and what it
//! keeps on the disk are real.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use tokio::sync::mpsc;
use tsbd_experiment::{CellKey, Plan, Store};

use super::Slurm;
use super::arrays::Template;
use super::follower::Follower;
use super::queue::{JobId, QueueError, Scheduler, Task, TaskId, Tasks};
use crate::dispatcher::{RunOptions, run_on};
use crate::event::RunSummary;
use crate::interrupt::Interrupts;
use crate::ledger::tests::plan;
use crate::properties::{compute, expected, record, rows};
use crate::protocol::CellEvent;

/// What happens to a task when it would end. Those that are no ends happen before the cell is computed, unless they say
/// otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    NodeFails,
    Preempted,
    /// Slurm puts it back into its queue, and starts it again.
    Requeued,
    /// The same after the result was published: it runs twice.
    RequeuedWhenDone,
    /// Slurm holds it though its result was published.
    HeldWhenDone,
    /// Slurm holds it after a fault.
    Held,
    /// Slurm knows it no more, though its result was published.
    ForgottenWhenDone,
    Forgotten,
    /// It leaves a newer checkpoint.
    OutOfTime,
    /// Its process is killed when it has left a newer checkpoint.
    Killed,
    /// Its process ends without a word and without a checkpoint.
    Crashes,
    BootFails,
}

/// Those that cost no more than time.
const FATES: [Fate; 11] = [
    Fate::NodeFails,
    Fate::Preempted,
    Fate::Requeued,
    Fate::RequeuedWhenDone,
    Fate::HeldWhenDone,
    Fate::Held,
    Fate::ForgottenWhenDone,
    Fate::Forgotten,
    Fate::OutOfTime,
    Fate::Killed,
    Fate::BootFails,
];

/// What happens to a call of one of Slurm's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Answered,
    /// The controller is away.
    Unanswered,
    /// It did what it was asked, and the answer was lost.
    AnswerLost,
}

struct World {
    plan: Plan,
    store: Store,
    /// Cells that fail whenever they are computed.
    fails: BTreeSet<CellKey>,
    /// What is still to happen to each cell, before it simply ends.
    fates: BTreeMap<CellKey, Vec<Fate>>,
    /// What happens to the calls to come; then all are answered.
    calls: Vec<Call>,
    /// Which tasks make a step when the queue is looked at, repeated; at each look it begins one later, so that no task waits
    /// for ever.
    steps: Vec<bool>,
    looks: usize,
    jobs: BTreeMap<JobId, Job>,
    /// Cells that get no result: their jobs are cancelled, and may stay if the controller is away just then.
    given_up: BTreeSet<CellKey>,
}

struct Job {
    name: String,
    after: Vec<JobId>,
    folder: PathBuf,
    tasks: Vec<(CellKey, Option<Task>)>,
}

fn task(state: &str, reason: &str) -> Option<Task> {
    Some(Task { state: state.into(), reason: reason.into(), node: "n1".into(), name: String::new() })
}

fn is_live(task: &Option<Task>) -> bool {
    task.as_ref().is_some_and(|task| ["PENDING", "RUNNING"].contains(&task.state.as_str()))
}

impl World {
    fn call(&mut self) -> Call {
        self.calls.pop().unwrap_or(Call::Answered)
    }

    /// Everything that may happen between two looks at the queue.
    fn pass(&mut self) {
        let over: BTreeSet<JobId> = self
            .jobs
            .iter()
            .filter(|(_, job)| !job.tasks.iter().any(|(_, task)| is_live(task)))
            .map(|(id, _)| *id)
            .collect();
        let ids: Vec<JobId> = self.jobs.keys().copied().collect();
        self.looks += 1;
        let mut place = self.looks;
        for id in ids {
            let job = &self.jobs[&id];
            // What Slurm does not know it does not wait for.
            let waits = job.after.iter().any(|earlier| self.jobs.contains_key(earlier) && !over.contains(earlier));
            for index in 0..job.tasks.len() {
                let (key, task) = self.jobs[&id].tasks[index].clone();
                let Some(state) = task.as_ref().map(|task| (task.state.clone(), task.reason.clone())) else { continue };
                place += 1;
                let next = match (state.0.as_str(), state.1.as_str()) {
                    _ if !self.steps[place % self.steps.len()] => continue,
                    ("PENDING", reason) if reason.contains("held") => continue,
                    ("PENDING", _) if waits => continue,
                    ("PENDING", _) => self.begin(id, index),
                    ("RUNNING", _) => self.finish(id, index, &key),
                    _ => continue,
                };
                self.jobs.get_mut(&id).expect("it is there").tasks[index].1 = next;
            }
        }
    }

    fn say(&self, id: JobId, index: usize, event: &CellEvent) {
        use std::io::Write;
        let path = self.jobs[&id].folder.join(format!("{index}.out"));
        // The folder may have been removed: whoever removed it is not interested.
        if let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(path) {
            writeln!(file, "{}", event.to_line()).unwrap();
        }
    }

    fn begin(&self, id: JobId, index: usize) -> Option<Task> {
        self.say(id, index, &CellEvent::Started { pid: 1, attempt: "1-1".into(), continues: false });
        task("RUNNING", "None")
    }

    /// The end of a task, or what comes in its place.
    fn finish(&mut self, id: JobId, index: usize, key: &CellKey) -> Option<Task> {
        if self.store.result(key).is_ok() {
            self.say(id, index, &CellEvent::Finished { metrics: BTreeMap::new(), seconds: 0.0 });
            return task("COMPLETED", "None");
        }
        let missing = self.plan.cells[key].parents.iter().find(|parent| self.store.result(parent).is_err());
        if let Some(parent) = missing {
            self.say(
                id,
                index,
                &CellEvent::Failed { reason: format!("cell {parent} has no result"), no_device: false },
            );
            return task("FAILED", "NonZeroExitCode");
        }
        let fate = self.fates.get_mut(key).and_then(Vec::pop);
        let done = matches!(fate, Some(Fate::RequeuedWhenDone | Fate::HeldWhenDone | Fate::ForgottenWhenDone) | None);
        if done && self.fails.contains(key) {
            self.say(id, index, &CellEvent::Failed { reason: "the loss is NaN".into(), no_device: false });
            return task("FAILED", "NonZeroExitCode");
        }
        if done {
            compute(&self.plan, &self.store, key);
            self.say(id, index, &CellEvent::Finished { metrics: BTreeMap::new(), seconds: 0.0 });
        }
        match fate {
            None => task("COMPLETED", "None"),
            Some(Fate::NodeFails) => task("NODE_FAIL", "NodeDown"),
            Some(Fate::BootFails) => task("BOOT_FAIL", "None"),
            Some(Fate::Preempted) => task("PREEMPTED", "None"),
            Some(Fate::Requeued | Fate::RequeuedWhenDone) => task("PENDING", "BeginTime"),
            Some(Fate::Held | Fate::HeldWhenDone) => task("PENDING", "launch_failed_requeued_held"),
            Some(Fate::Forgotten | Fate::ForgottenWhenDone) => None,
            Some(Fate::Crashes) => task("FAILED", "NonZeroExitCode"),
            Some(fate @ (Fate::OutOfTime | Fate::Killed)) => {
                let attempt = self.store.begin_attempt(key, None).unwrap();
                std::fs::write(attempt.checkpoint(), "further").unwrap();
                if fate == Fate::Killed { task("FAILED", "NonZeroExitCode") } else { task("TIMEOUT", "TimeLimit") }
            }
        }
    }
}

/// The made-up queue. Everybody who has it sees the same cluster.
#[derive(Clone)]
struct Cluster(Arc<Mutex<World>>);

impl Cluster {
    async fn call<T>(&self, act: impl FnOnce(&mut World) -> Result<T, QueueError>) -> Result<T, QueueError> {
        let away = QueueError::Unreachable { reason: "no answer".into() };
        // A coordinator may be killed before and after Slurm has done what it was asked.
        tokio::task::yield_now().await;
        let answer = {
            let mut world = self.0.lock().unwrap();
            match world.call() {
                Call::Answered => act(&mut world),
                Call::Unanswered => Err(away),
                Call::AnswerLost => act(&mut world).and(Err(away)),
            }
        };
        tokio::task::yield_now().await;
        answer
    }
}

impl Scheduler for Cluster {
    async fn submit(&mut self, script: &Path, name: &str, after: &[JobId]) -> Result<JobId, QueueError> {
        let folder = script.parent().expect("a script lies in a folder").to_owned();
        let cells = std::fs::read_to_string(folder.join("cells")).unwrap();
        let keys: Vec<CellKey> = cells.lines().map(|line| line.parse().unwrap()).collect();
        self.call(|world| {
            assert!(world.jobs.values().all(|job| job.name != name), "an array is submitted twice");
            for key in &keys {
                let twice =
                    world.jobs.values().flat_map(|job| &job.tasks).any(|(other, task)| other == key && is_live(task));
                assert!(!twice || world.given_up.contains(key), "cell {key} is in the queue twice");
            }
            let id = 10 + world.jobs.len() as JobId;
            let tasks = keys.into_iter().map(|key| (key, task("PENDING", "Resources"))).collect();
            world.jobs.insert(id, Job { name: name.to_owned(), after: after.to_vec(), folder, tasks });
            Ok(id)
        })
        .await
    }

    async fn find(&mut self, name: &str) -> Result<Option<JobId>, QueueError> {
        self.call(|world| Ok(world.jobs.iter().find(|(_, job)| job.name == name).map(|(id, _)| *id))).await
    }

    async fn tasks(&mut self, jobs: &[JobId]) -> Result<Tasks, QueueError> {
        self.call(|world| {
            world.pass();
            let mut tasks = Tasks::new();
            for &job in jobs {
                let name = &world.jobs[&job].name;
                for (index, (_, task)) in world.jobs[&job].tasks.iter().enumerate() {
                    let id = TaskId { job, index: index as u32 };
                    tasks.extend(task.clone().map(|task| (id, Task { name: name.clone(), ..task })));
                }
            }
            Ok(tasks)
        })
        .await
    }

    async fn cancel(&mut self, tasks: &[TaskId]) -> Result<(), QueueError> {
        self.call(|world| {
            for id in tasks {
                let slot = &mut world.jobs.get_mut(&id.job).unwrap().tasks[id.index as usize].1;
                if is_live(slot) {
                    *slot = task("CANCELLED", "None");
                }
            }
            Ok(())
        })
        .await
    }

    async fn release(&mut self, id: TaskId) -> Result<(), QueueError> {
        self.call(|world| {
            world.jobs.get_mut(&id.job).unwrap().tasks[id.index as usize].1 = task("PENDING", "Resources");
            Ok(())
        })
        .await
    }
}

struct Bench {
    _folder: tempfile::TempDir,
    plan: Plan,
    store: Store,
    cluster: Cluster,
}

impl Bench {
    fn new(mut plan: Plan, script: Script) -> Self {
        plan.slurm.array_size = Some(script.array_size);
        plan.slurm.resubmit = 8;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("results"));
        let keys: Vec<CellKey> = plan.cells.keys().cloned().collect();
        let mut fates: BTreeMap<CellKey, Vec<Fate>> = BTreeMap::new();
        for (cell, fate) in script.fates {
            fates.entry(keys[cell % keys.len()].clone()).or_default().push(fate);
        }
        let fails: BTreeSet<CellKey> =
            keys.iter().zip(script.fails).filter(|(_, fails)| *fails).map(|(key, _)| key.clone()).collect();
        let done = expected(&plan, |key| fails.contains(key));
        let world = World {
            plan: plan.clone(),
            store: store.clone(),
            fails,
            fates,
            calls: script.calls,
            steps: script.steps,
            looks: 0,
            jobs: BTreeMap::new(),
            given_up: keys.into_iter().filter(|key| !done.contains(key)).collect(),
        };
        Self { _folder: folder, plan, store, cluster: Cluster(Arc::new(Mutex::new(world))) }
    }

    /// A coordinator, killed after `life` if that is given.
    fn coordinate(&self, life: Option<Duration>) -> Option<RunSummary> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let options = RunOptions { program: "/bin/true".into(), ..RunOptions::new().unwrap() };
            let template = Template::new(&self.plan, &self.store, &options).unwrap();
            let (sender, reports) = mpsc::channel(256);
            let (requests, received) = mpsc::unbounded_channel();
            let follower = Follower::new(self.cluster.clone(), &self.plan, &self.store, template, 1000, sender);
            let follower = tokio::spawn(follower.every(Duration::from_micros(200)).run(received));
            let (_interrupt, interrupts) = Interrupts::channel();
            let (events, _) = mpsc::channel(1);
            let run = run_on(Slurm { requests }, reports, &self.plan, &self.store, interrupts, events);
            let ended = tokio::time::timeout(life.unwrap_or(Duration::from_secs(60)), run).await;
            follower.abort();
            ended.ok().map(Result::unwrap)
        })
    }
}

#[derive(Debug, Clone)]
struct Script {
    fates: Vec<(usize, Fate)>,
    fails: Vec<bool>,
    calls: Vec<Call>,
    steps: Vec<bool>,
    array_size: usize,
}

fn any_script(cells: usize) -> impl Strategy<Value = Script> {
    let call = prop_oneof![6 => Just(Call::Answered), 1 => Just(Call::Unanswered), 1 => Just(Call::AnswerLost)];
    (
        proptest::collection::vec((0..cells, proptest::sample::select(FATES.to_vec())), 0..8),
        proptest::collection::vec(proptest::bool::weighted(0.15), cells),
        proptest::collection::vec(call, 0..30),
        proptest::collection::vec(any::<bool>(), 1..20),
        1_usize..5,
    )
        .prop_map(|(fates, fails, calls, mut steps, array_size)| {
            // Something happens in the end.
            steps.push(true);
            Script { fates, fails, calls, steps, array_size }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn records_and_rows_do_not_depend_on_what_happens_to_the_jobs(
        (shape, script) in (1_usize..9).prop_flat_map(|count| {
            (proptest::collection::vec(any::<u16>(), count), any_script(count))
        }),
        lives in proptest::collection::vec(0_u64..6000, 0..3),
    ) {
        let bench = Bench::new(plan(&shape), script);
        for life in lives {
            bench.coordinate(Some(Duration::from_micros(life)));
        }
        let fails = bench.cluster.0.lock().unwrap().fails.clone();
        let done = expected(&bench.plan, |key| fails.contains(key));
        let summary = bench.coordinate(None).expect("it ends");
        prop_assert_eq!(summary.exit_code() == 0, done.len() == bench.plan.cells.len(), "{:?}", summary);
        let found = |key: &&CellKey| bench.store.result(key).is_ok();
        let found: BTreeSet<CellKey> = bench.plan.cells.keys().filter(found).cloned().collect();
        prop_assert_eq!(&found, &done, "{:?}", summary);
        for key in &done {
            prop_assert_eq!(&bench.store.result(key).unwrap().metrics, &record(&bench.plan, key).metrics);
        }
        let alone = tempfile::tempdir().unwrap();
        let alone = Store::new(alone.path());
        for key in bench.plan.cells.keys().filter(|key| done.contains(*key)) {
            alone.describe(&bench.plan.cells[key]).unwrap();
            compute(&bench.plan, &alone, key);
        }
        prop_assert_eq!(rows(&bench.plan, &bench.store), rows(&bench.plan, &alone));
    }
}

fn quiet(fates: Vec<(usize, Fate)>) -> Script {
    Script { fates, fails: Vec::new(), calls: Vec::new(), steps: vec![true], array_size: 1000 }
}

#[test]
fn a_cell_that_is_lost_too_often_fails_with_the_last_reason_and_skips_what_starts_from_it() {
    let mut plan = plan(&[0, 1]);
    plan.slurm.resubmit = 2;
    let mut bench = Bench::new(plan, quiet(vec![(0, Fate::NodeFails); 9]));
    bench.plan.slurm.resubmit = 2;
    let summary = bench.coordinate(None).unwrap();
    assert_eq!((summary.failed.len(), summary.skipped.len()), (1, 1), "{summary:?}");
    let reason = &summary.failed[0].1;
    assert!(reason.contains("lost 3 times") && reason.contains("its node failed"), "{reason}");
    // The same command tries again, from the beginning.
    bench.cluster.0.lock().unwrap().fates.clear();
    let summary = bench.coordinate(None).unwrap();
    assert_eq!((summary.finished.len(), summary.exit_code()), (2, 0), "{summary:?}");
}

#[test]
fn a_cell_whose_process_is_killed_goes_on_from_a_new_checkpoint_as_often_as_there_is_one() {
    let mut plan = plan(&[0]);
    plan.slurm.resubmit = 0;
    let bench = Bench::new(plan.clone(), quiet(vec![(0, Fate::Killed); 3]));
    let summary = bench.coordinate(None).unwrap();
    assert_eq!((summary.finished.len(), summary.failed.len()), (1, 0), "{summary:?}");
    let bench = Bench::new(plan, quiet(vec![(0, Fate::Crashes)]));
    let summary = bench.coordinate(None).unwrap();
    assert_eq!(summary.finished.len(), 0, "nothing to go on from: {summary:?}");
    assert!(summary.failed[0].1.contains("gave no reason"), "{summary:?}");
}

#[test]
fn a_job_that_somebody_cancels_is_not_submitted_again_by_this_run() {
    let bench = Bench::new(plan(&[0, 0]), quiet(Vec::new()));
    // Cancelled between two looks, while it runs.
    bench.cluster.0.lock().unwrap().steps = vec![false];
    assert_eq!(bench.coordinate(Some(Duration::from_millis(100))), None);
    {
        let mut world = bench.cluster.0.lock().unwrap();
        assert_eq!(world.jobs.len(), 1);
        world.jobs.get_mut(&10).unwrap().tasks[0].1 = task("CANCELLED", "None");
        world.steps = vec![true];
    }
    // Nobody followed it then: whoever runs the command again wants it to run.
    let summary = bench.coordinate(None).unwrap();
    assert_eq!((summary.finished.len(), summary.exit_code()), (2, 0), "{summary:?}");
    assert_eq!(bench.cluster.0.lock().unwrap().jobs.len(), 2);
}
