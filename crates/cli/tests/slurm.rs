//! The small grid on a real Slurm: two nodes that `tools/slurm-lab.sh` starts on this machine. Skipped, visibly, where
//! Slurm's programs are missing.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Bench, GRID, assert_contains, skipped, stderr, stdout, tsbd, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The small grid as a cluster gets it: models that take some seconds.
fn grid() -> String {
    let slurm = "[slurm]\npoll_seconds = 1\ntime = 30\n\n[grid]";
    GRID.replace("epochs = 6", "epochs = 25").replace("[grid]", slurm)
}

/// A cluster of two nodes, gone with the test.
struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    /// `None`, said on the screen, where it cannot be had. `port` and the next two are its own.
    fn up(port: u16) -> Option<Self> {
        let on_path = |program: &str| {
            let path = std::env::var("PATH").unwrap_or_default();
            path.split(':').chain(["/usr/sbin", "/sbin"]).any(|folder| Path::new(folder).join(program).exists())
        };
        if let Some(missing) = ["munged", "slurmctld", "slurmd", "sbatch"].iter().find(|program| !on_path(program)) {
            skipped(&format!("{missing} is not on this machine (apt-get install slurmctld slurmd slurm-client munge)"));
            return None;
        }
        // Names of sockets are short.
        let lab = Self { folder: tempfile::Builder::new().prefix("lab").tempdir_in("/tmp").unwrap() };
        lab.start_what_is_missing(port);
        Some(lab)
    }

    fn start_what_is_missing(&self, port: u16) {
        let output = self.script("up").env("SLURM_LAB_PORT", port.to_string()).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }

    fn script(&self, what: &str) -> Command {
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/slurm-lab.sh"));
        command.arg(what).arg(self.folder.path());
        command
    }

    fn configuration(&self) -> PathBuf {
        self.folder.path().join("slurm.conf")
    }

    /// What one of Slurm's programs prints.
    fn ask(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program).args(arguments).env("SLURM_CONF", self.configuration()).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {}", stderr(&output));
        stdout(&output)
    }

    /// Tasks that run, as their array, index, node and number of their own.
    fn running(&self) -> Vec<[String; 4]> {
        let text = self.ask("squeue", &["-h", "-r", "-t", "running", "-o", "%F %K %N %A"]);
        let words = text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        words.filter_map(|words| words.try_into().ok()).collect()
    }

    fn kill_node(&self, node: &str) {
        let pid = std::fs::read_to_string(self.folder.path().join(format!("run/slurmd-{node}.pid"))).unwrap();
        kill(Pid::from_raw(pid.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.script("down").output();
    }
}

impl Bench {
    fn on(&self, lab: &Lab) -> Command {
        let mut command = self.command("run");
        command.args(["--executor", "slurm"]).env("SLURM_CONF", lab.configuration());
        command
    }

    fn start(&self, lab: &Lab) -> Child {
        self.on(lab).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn table(&self, results: &Path) -> String {
        let output = self.command_in("table", results).args(["--format", "csv"]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stdout(&output)
    }

    /// The same grid, computed here.
    fn table_of_a_local_run(&self) -> String {
        let results = self.folder.path().join("local");
        let output = self.command_in("run", &results).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        self.table(&results)
    }

    fn records(&self) -> BTreeMap<String, Vec<u8>> {
        let mut records = BTreeMap::new();
        for cell in std::fs::read_dir(self.results().join("cells")).into_iter().flatten().flatten() {
            if let Ok(bytes) = std::fs::read(cell.path().join("record.json")) {
                records.insert(cell.file_name().to_string_lossy().into_owned(), bytes);
            }
        }
        records
    }

    /// The key of the cell that a task works on.
    fn key_of(&self, task: &[String; 4]) -> String {
        for folder in std::fs::read_dir(self.results().join("slurm")).unwrap().flatten() {
            let text = std::fs::read_to_string(folder.path().join("submission.json")).unwrap_or_default();
            if text.contains(&format!("\"job\": {},", task[0])) {
                let cells = std::fs::read_to_string(folder.path().join("cells")).unwrap();
                return cells.lines().nth(task[1].parse().unwrap()).unwrap().to_owned();
            }
        }
        panic!("no submission is job {}", task[0])
    }

    fn has_checkpoint(&self, key: &str) -> bool {
        let attempts = std::fs::read_dir(self.results().join("cells").join(key).join("attempts"));
        attempts.into_iter().flatten().flatten().any(|attempt| attempt.path().join("checkpoint.safetensors").exists())
    }

    /// Jobs that were ever submitted, as `tsbd` told.
    fn submitted(text: &str) -> usize {
        text.lines().filter(|line| line.contains("submitted as job")).count()
    }
}

/// Processes of a cell, by `/proc`.
fn processes_of(key: &str) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<String> =
            line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into()).collect();
        if words.get(1).is_some_and(|word| word == "cell") && words.get(2).is_some_and(|word| word == key) {
            found.push(Pid::from_raw(pid));
        }
    }
    found
}

#[test]
fn a_node_that_dies_a_requeue_and_a_time_limit_change_nothing_about_the_table() {
    let Some(lab) = Lab::up(27800) else { return };
    let bench = Bench::new(&grid());
    let coordinator = bench.start(&lab);

    // Both models are being trained, one on each node, and each has got somewhere.
    let mut tasks = Vec::new();
    wait_until("both models at work with a checkpoint", || {
        tasks = lab.running();
        tasks.len() == 2 && tasks.iter().all(|task| bench.has_checkpoint(&bench.key_of(task)))
    });
    let (first, second) = (&tasks[0], &tasks[1]);
    assert_ne!(first[2], second[2], "{tasks:?}");

    // One runs out of time: it hangs, and its limit is a minute now.
    let hanging = bench.key_of(second);
    lab.ask("scontrol", &["update", &format!("jobid={}", second[3]), "timelimit=1"]);
    for process in processes_of(&hanging) {
        kill(process, Signal::SIGSTOP).unwrap();
    }
    // The other is put back into the queue by hand, and, once it runs again, its node dies.
    lab.ask("scontrol", &["requeue", &first[3]]);
    let mut again = None;
    wait_until("the requeued cell to run again", || {
        again = lab.running().into_iter().find(|task| task[0] == first[0] && task[1] == first[1]);
        again.is_some() && !processes_of(&bench.key_of(first)).is_empty()
    });
    let node = again.expect("it was just seen")[2].clone();
    lab.kill_node(&node);
    wait_until("the node to be missed", || {
        let nodes = lab.ask("sinfo", &["-h", "-N", "-p", "main", "-o", "%N %T"]);
        nodes.lines().any(|line| line.starts_with(&node) && line.contains("down"))
    });
    lab.start_what_is_missing(27800);

    let output = coordinator.wait_with_output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_contains(&said, &["10 cells: 10 done", "reached its limit of time; it goes on from its checkpoint"]);
    let records = bench.records();
    assert_eq!(records.len(), 10);
    let output = bench.on(&lab).output().unwrap();
    assert_contains(&stderr(&output), &["all 10 cells are done already"]);
    assert_eq!(bench.records(), records, "every cell ends exactly once");
    assert_eq!(bench.table(&bench.results()), bench.table_of_a_local_run());
}

#[test]
fn a_coordinator_that_is_killed_finds_its_jobs_again_and_submits_none_twice() {
    let Some(lab) = Lab::up(27810) else { return };
    // Models that are still trained when the controller goes away.
    let bench = Bench::new(&grid().replace("epochs = 25", "epochs = 150"));
    let mut coordinator = bench.start(&lab);
    wait_until("all arrays and a cell at work", || {
        let arrays = lab.ask("squeue", &["-h", "-o", "%F"]);
        let arrays: std::collections::BTreeSet<&str> = arrays.lines().collect();
        arrays.len() == 3 && !lab.running().is_empty()
    });
    coordinator.kill().unwrap();
    coordinator.wait().unwrap();
    let output = tsbd().arg("status").arg("--results").arg(bench.results()).output().unwrap();
    assert_contains(&stdout(&output), &["was killed"]);

    // Asked to stop, the next one leaves the jobs where they are.
    let next = bench.start(&lab);
    wait_until("the next coordinator", || {
        let output = tsbd().arg("status").arg("--results").arg(bench.results()).output().unwrap();
        stdout(&output).contains("is running")
    });
    kill(Pid::from_raw(next.id().cast_signed()), Signal::SIGINT).unwrap();
    let output = next.wait_with_output().unwrap();
    let said = stderr(&output);
    assert_eq!((output.status.code(), Bench::submitted(&said)), (Some(130), 0), "{said}");
    assert_contains(&said, &["were submitted before", "in the queue", "run the same command to follow them again"]);
    let output = tsbd().arg("status").arg("--results").arg(bench.results()).output().unwrap();
    assert_contains(&stdout(&output), &["left its jobs in the queue"]);

    // And so does a controller that goes away for a while.
    let last = bench.start(&lab);
    std::thread::sleep(Duration::from_secs(2));
    let pid = std::fs::read_to_string(lab.folder.path().join("run/slurmctld.pid")).unwrap();
    kill(Pid::from_raw(pid.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
    std::thread::sleep(Duration::from_secs(12));
    lab.start_what_is_missing(27810);
    let output = last.wait_with_output().unwrap();
    let said = stderr(&output);
    assert_eq!((output.status.code(), Bench::submitted(&said)), (Some(0), 0), "{said}");
    assert_contains(&said, &["does not answer", "answers again"]);
    assert_eq!(bench.records().len(), 10);
    assert_eq!(bench.table(&bench.results()), bench.table_of_a_local_run());
}

#[test]
fn what_slurm_would_not_take_is_refused_and_jobs_can_be_cancelled() {
    let Some(lab) = Lab::up(27820) else { return };
    let bench = Bench::new(&grid());
    let output = bench.on(&lab).args(["--set", "slurm.partition=gpu"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert_contains(&stderr(&output), &["partition", "[slurm]"]);
    assert_eq!(lab.ask("squeue", &["-h", "-t", "all"]), "");

    let coordinator = bench.start(&lab);
    wait_until("a cell at work", || !lab.running().is_empty());
    for _ in 0..2 {
        kill(Pid::from_raw(coordinator.id().cast_signed()), Signal::SIGINT).unwrap();
        std::thread::sleep(Duration::from_millis(500));
    }
    let output = coordinator.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert_contains(&stderr(&output), &["cancelling the jobs of 10 cells"]);
    wait_until("the queue to be empty", || lab.ask("squeue", &["-h"]).is_empty());
}

#[test]
fn exported_scripts_submit_the_grid_by_hand() {
    let Some(lab) = Lab::up(27830) else { return };
    let bench = Bench::new(&grid().replace("epochs = 25", "epochs = 2"));
    let out = bench.folder.path().join("jobs");
    let mut export = tsbd();
    export.args(["export", "slurm"]).arg(&bench.file).arg("--out").arg(&out).arg("--results").arg(bench.results());
    let output = export.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_contains(&stderr(&output), &["10 cells in 3 job arrays", "submit.sh"]);
    let readme = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert_contains(&readme, &["tsbd table grid.toml", "submit.sh"]);
    let refused = export.output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert_contains(&stderr(&refused), &["there are files already"]);

    let submit =
        Command::new("bash").arg(out.join("submit.sh")).env("SLURM_CONF", lab.configuration()).output().unwrap();
    assert!(submit.status.success(), "{}", stderr(&submit));
    wait_until("every cell", || bench.records().len() == 10);
    assert_eq!(bench.table(&bench.results()), bench.table_of_a_local_run());
}

#[test]
fn without_slurm_the_executor_is_refused_with_the_way_out() {
    let bench = Bench::new(&grid());
    let mut command = bench.command("run");
    let output = command.args(["--executor", "slurm"]).env("PATH", "/nowhere").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert_contains(&stderr(&output), &["cannot run scontrol", "--executor local"]);
    assert!(bench.records().is_empty());
}
