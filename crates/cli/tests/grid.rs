//! A small grid as a user runs it: killed, resumed, disturbed. Everything on drawn images, seconds per run.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use common::{Bench, GRID, assert_contains, stderr, stdout, tsbd, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tsbd_experiment::Store;

impl Bench {
    fn start(&self) -> Child {
        self.command("run").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Published records with their bytes and times of writing.
    fn records(&self) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
        let mut records = BTreeMap::new();
        for cell in std::fs::read_dir(self.results().join("cells")).into_iter().flatten() {
            let record = cell.unwrap().path().join("record.json");
            if let Ok(bytes) = std::fs::read(&record) {
                let written = std::fs::metadata(&record).unwrap().modified().unwrap();
                records.insert(record, (bytes, written));
            }
        }
        records
    }

    /// Processes of cells that work in this results folder, by `/proc`.
    fn cell_processes(&self) -> Vec<Pid> {
        let results = self.results().display().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            if line.split('\0').nth(1) == Some("cell") && line.contains(&results) {
                found.push(Pid::from_raw(pid));
            }
        }
        found
    }

    fn long_table(&self) -> Vec<Vec<String>> {
        let output = self.command("table").args(["--long", "--format", "csv"]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let text = stdout(&output);
        text.lines().skip(1).map(|line| line.split(',').map(str::to_owned).collect()).collect()
    }
}

/// The checkpoint of a training.
fn a_checkpoint(folder: &Path) -> Option<PathBuf> {
    checkpoint_named(folder, "checkpoint.safetensors")
}

fn checkpoint_named(folder: &Path, name: &str) -> Option<PathBuf> {
    let cells = std::fs::read_dir(folder.join("cells")).ok()?;
    let attempts = cells.flatten().filter_map(|cell| std::fs::read_dir(cell.path().join("attempts")).ok());
    let mut checkpoints = attempts.flatten().flatten().map(|attempt| attempt.path().join(name));
    checkpoints.find(|checkpoint| checkpoint.exists())
}

#[test]
fn a_grid_that_is_killed_continues_where_it_was_and_published_results_stay_untouched() {
    let bench = Bench::new(GRID);
    let mut coordinator = bench.start();
    wait_until("two results and a third cell at work", || {
        bench.records().len() >= 2 && !bench.cell_processes().is_empty()
    });
    coordinator.kill().unwrap();
    coordinator.wait().unwrap();
    let before = bench.records();
    assert!(before.len() < 10, "the whole grid was done before it could be killed");
    wait_until("the children to end with their coordinator", || bench.cell_processes().is_empty());

    let output = bench.command("status").output().unwrap();
    assert_contains(&stdout(&output), &["was killed"]);
    let output = bench.command("table").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_contains(&stderr(&output), &["have no result yet", "hint: tsbd run"]);

    let output = bench.command("run").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_contains(&stderr(&output), &["hint: tsbd table"]);
    let after = bench.records();
    assert_eq!(after.len(), 10);
    for (path, record) in &before {
        assert!(after[path] == *record, "{} was touched", path.display());
    }
    let rows = bench.long_table();
    assert_eq!(rows.len(), 8);
    let text = stdout(&bench.command("table").output().unwrap());
    assert_contains(&text, &["BadNets", "Blended", "TSBD"]);
    assert!(!text.contains("missing"), "{text}");

    // Everything is done: a second run does nothing, quickly.
    let begin = Instant::now();
    let output = bench.command("run").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert_contains(&stderr(&output), &["all 10 cells are done already"]);
    assert!(bench.records() == after);
}

#[test]
fn the_table_and_the_models_do_not_depend_on_workers_or_on_a_kill() {
    let run = |bench: &Bench, workers: &str| {
        let output = bench.command("run").args(["--workers", workers]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    };
    let (alone, beside) = (Bench::new(GRID), Bench::new(GRID));
    run(&alone, "1");
    let mut command = beside.command("run");
    let mut coordinator = command.args(["--workers", "3"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("a result and others at work", || !beside.records().is_empty() && !beside.cell_processes().is_empty());
    coordinator.kill().unwrap();
    coordinator.wait().unwrap();
    wait_until("the children to end with their coordinator", || beside.cell_processes().is_empty());
    assert!(beside.records().len() < 10, "the whole grid was done before it could be killed");
    run(&beside, "3");

    let table = |bench: &Bench| bench.command("table").args(["--format", "csv"]).output().unwrap().stdout;
    assert_eq!(String::from_utf8(table(&alone)).unwrap(), String::from_utf8(table(&beside)).unwrap());
    // By cell: its model's digest, as the record was sealed with.
    let models = |bench: &Bench| {
        let digest = |(path, (bytes, _)): (PathBuf, (Vec<u8>, SystemTime))| {
            let record: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            let cell = path.parent().unwrap().file_name().unwrap().to_owned();
            (cell, record["artefacts"]["model.safetensors"].clone())
        };
        bench.records().into_iter().map(digest).collect::<BTreeMap<_, _>>()
    };
    let digests = models(&alone);
    assert!(digests.len() == 10 && digests.values().all(|digest| !digest.is_null()), "{digests:?}");
    assert_eq!(digests, models(&beside));
}

#[test]
fn a_comparison_without_published_numbers_prints_our_own_and_says_why_and_hints_lead_to_the_same_folder() {
    let bench = Bench::new(GRID);
    let output = bench.command("table").args(["--compare", "published"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_contains(&stdout(&output), &["A small grid", "missing"]);
    let results = bench.results().display().to_string();
    assert_contains(
        &stderr(&output),
        &["no comparison", "none of shapes", "hint: tsbd run", &format!("--results {results}")],
    );
}

#[test]
fn costs_are_those_on_a_cpu_or_those_on_a_gpu_as_the_newest_was_computed() {
    let bench = Bench::new(GRID);
    let grid = ["--set", "grid.attack=[\"badnets\"]", "--set", "grid.defense=[\"ft\"]"];
    assert!(bench.command("run").args(grid).status().unwrap().success());
    // Seconds or estimates of training and repair: those of seed 0, then those of seed 1.
    let costs = |more: &[&str]| -> Vec<Option<f64>> {
        let output =
            bench.command("plan").args(grid).args(["--set", "seeds=[0, 1]", "--json"]).args(more).output().unwrap();
        let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let cells = |state: &str| {
            let cells = plan["cells"].as_array().unwrap().iter().filter(|cell| cell["state"] == state);
            let seconds = |cell: &serde_json::Value| cell["seconds"].as_f64().or(cell["estimated_seconds"].as_f64());
            cells.map(seconds).collect::<Vec<_>>()
        };
        [cells("done"), cells("to do")].concat()
    };
    let [Some(training), Some(repair), of_next @ ..] = &costs(&[])[..] else { panic!("two are done") };
    assert_eq!(of_next, [Some(*training), Some(*repair)]);
    // As if the repair had been computed on a GPU.
    let store = Store::new(bench.results());
    let is_repair = |path: &PathBuf| std::fs::read_to_string(path).unwrap().contains("\"kind\": \"defend\"");
    let path = bench.records().into_keys().find(is_repair).unwrap();
    let key = path.parent().unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap();
    let mut record = store.result(&key).unwrap();
    record.provenance.device = "cuda:0".into();
    record.provenance.seconds = 0.001;
    record.provenance.started_unix += 3600;
    std::fs::write(&path, record.to_json().unwrap()).unwrap();
    assert_eq!(costs(&[]), [Some(*training), Some(0.001), None, Some(0.001)], "no training on a GPU is known");
    let measured = costs(&["--measure"]);
    assert_eq!(measured[..3], [Some(*training), Some(0.001), Some(*training)]);
    assert!(measured[3].unwrap() > 0.001, "it is counted from the speed of the training on the CPU");
}

/// One cell that trains for a while.
fn one_cell(epochs: usize) -> Bench {
    let grid = GRID.replace("epochs = 6", &format!("epochs = {epochs}"));
    let grid = grid.replace("[\"badnets\", \"blended\"]", "[\"badnets\"]");
    Bench::new(&grid.replace("[\"none\", \"ft\", \"fp\", \"tsbd\"]", "[\"none\", \"ft\"]"))
}

#[test]
fn a_cell_that_is_killed_is_told_with_its_children_and_made_by_the_next_run() {
    let bench = one_cell(40);
    let coordinator = bench.start();
    wait_until("a cell at work", || !bench.cell_processes().is_empty());
    for cell in bench.cell_processes() {
        // It may have ended by itself: then the assertions below say so.
        let _ = kill(cell, Signal::SIGKILL);
    }
    let output = coordinator.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_contains(&stderr(&output), &["badnets: FAILED", "signal 9", "badnets + ft: skipped", "hint:"]);
    assert_eq!(bench.records().len(), 0);

    let output = bench.command("run").args(["--set", "training.epochs=40"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(bench.records().len(), 2);
}

/// The bytes of the model that a cell with this defense has published.
fn repaired_model(bench: &Bench, defense: &str) -> Vec<u8> {
    let row = bench.long_table().into_iter().find(|row| row[5] == defense).unwrap();
    std::fs::read(bench.results().join("cells").join(&row[13]).join("model.safetensors")).unwrap()
}

#[test]
fn a_repair_and_an_unlearning_that_are_killed_go_on_from_their_last_epoch_and_end_with_the_same_bits() {
    let long = |defense: &str| {
        let grid = GRID.replace("[\"badnets\", \"blended\"]", "[\"badnets\"]").replace("epochs = 6", "epochs = 1");
        let grid = grid.replace("[defenses.ft]\nepochs = 1", "[defenses.ft]\nepochs = 80");
        // An accuracy that is never reached.
        let grid = grid.replace("unlearning_epochs = 2", "unlearning_epochs = 80\nunlearning_accuracy = 0.0");
        Bench::new(&grid.replace("[\"none\", \"ft\", \"fp\", \"tsbd\"]", &format!("[\"{defense}\"]")))
    };
    for (defense, stage) in [("ft", "fine-tuning"), ("tsbd", "unlearning")] {
        let whole = long(defense);
        assert_eq!(whole.command("run").output().unwrap().status.code(), Some(0));
        let killed = long(defense);
        let mut coordinator = killed.start();
        let name = format!("checkpoint.{stage}.safetensors");
        wait_until(&name, || checkpoint_named(&killed.results(), &name).is_some());
        coordinator.kill().unwrap();
        coordinator.wait().unwrap();
        wait_until("the children to end", || killed.cell_processes().is_empty());
        assert!(checkpoint_named(&killed.results(), &name).is_some(), "{stage} was done before it could be killed");
        let output = killed.command("run").output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_contains(&stderr(&output), &["continues"]);
        assert!(repaired_model(&killed, defense) == repaired_model(&whole, defense), "{defense}");
    }
}

#[test]
fn a_second_coordinator_is_refused_and_the_first_goes_on() {
    let bench = one_cell(40);
    let first = bench.start();
    wait_until("a cell at work", || !bench.cell_processes().is_empty());
    let output = bench.command("run").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert_contains(&stderr(&output), &["in use by", &format!("process {}", first.id()), "hint:", "--results"]);
    let output = first.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(bench.records().len(), 2);
}

#[test]
fn ctrl_c_stops_with_130_and_the_same_command_continues() {
    let bench = one_cell(200);
    let coordinator = bench.start();
    wait_until("a checkpoint", || a_checkpoint(&bench.results()).is_some());
    kill(Pid::from_raw(coordinator.id().cast_signed()), Signal::SIGINT).unwrap();
    let output = coordinator.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert_contains(&stderr(&output), &["stopped; run the same command to continue"]);
    assert!(bench.cell_processes().is_empty());
    let output = bench.command("status").output().unwrap();
    assert_contains(&stdout(&output), &["was interrupted"]);

    let coordinator = bench.start();
    wait_until("a cell at work", || !bench.cell_processes().is_empty());
    std::thread::sleep(Duration::from_millis(300));
    kill(Pid::from_raw(coordinator.id().cast_signed()), Signal::SIGTERM).unwrap();
    let output = coordinator.wait_with_output().unwrap();
    assert_contains(&stderr(&output), &["badnets: continues"]);
}

#[test]
fn a_truncated_checkpoint_costs_its_epochs_and_nothing_else() {
    let bench = one_cell(40);
    let mut coordinator = bench.start();
    wait_until("a checkpoint", || a_checkpoint(&bench.results()).is_some());
    coordinator.kill().unwrap();
    coordinator.wait().unwrap();
    wait_until("the children to end", || bench.cell_processes().is_empty());
    let checkpoint = a_checkpoint(&bench.results()).expect("there was one");
    let bytes = std::fs::read(&checkpoint).unwrap();
    std::fs::write(&checkpoint, &bytes[..bytes.len() / 2]).unwrap();

    let output = bench.command("run").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_contains(&stderr(&output), &["checkpoint.safetensors", "begins again"]);
    assert_eq!(bench.records().len(), 2);
}

#[test]
fn a_full_disk_fails_with_a_reason_and_a_later_run_completes() {
    let Some(disk) = SmallDisk::mount() else {
        println!("skipped: a full disk needs the right to mount a tmpfs (root)");
        return;
    };
    let bench = one_cell(1);
    let run = |results: &Path| tsbd().arg("run").arg(&bench.file).arg("--results").arg(results).output().unwrap();
    let output = run(&disk.folder.path().join("results"));
    assert_ne!(output.status.code(), Some(0), "a model of width 4 has more than {} bytes", SmallDisk::BYTES);
    assert_contains(&stderr(&output), &["No space left on device"]);
    let published = disk.folder.path().join("results/cells");
    let records = std::fs::read_dir(published).into_iter().flatten().flatten();
    assert!(records.filter(|cell| cell.path().join("record.json").exists()).count() < 2);

    disk.grow();
    let output = run(&disk.folder.path().join("results"));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

/// A file system in memory that is soon full.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    const BYTES: usize = 128 * 1024;

    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={}", Self::BYTES);
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output().ok()?;
        mount.status.success().then_some(Self { folder })
    }

    fn grow(&self) {
        let mount = Command::new("mount").args(["-o", "remount,size=64m"]).arg(self.folder.path()).status().unwrap();
        assert!(mount.success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Left to the system if it cannot be done.
        let _ = Command::new("umount").arg(self.folder.path()).status();
    }
}

#[test]
fn every_defense_runs_as_a_cell_of_its_own() {
    // What makes them short. A defense without a line here runs as the profile has it.
    const SHORT: &str = r#"
title = "All defenses"
profile = "smoke"

[data]
train_images = 600
test_images = 100

[model]
width = 4

[training]
epochs = 1

[defenses]
ft = { epochs = 1 }
fp = { epochs = 1 }
nad = { teacher_epochs = 1, epochs = 1 }
nc = { search_epochs = 1, epochs = 1 }
anp = { iterations = 2 }
i-bau = { rounds = 1, iterations = 1 }
rnp = { unlearning_epochs = 1, recovering_epochs = 1 }
ft-sam = { epochs = 1 }
tsbd = { unlearning_epochs = 1, fine_tuning_passes = 1 }

[grid]
attack = ["badnets"]
"#;
    let defenses: Vec<&str> = tsbd_defense::DEFENSES.iter().map(|entry| entry.name).collect();
    let bench = Bench::new(&format!("{SHORT}defense = {defenses:?}\n"));
    let output = bench.command("run").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let rows = bench.long_table();
    let repaired: Vec<&str> = rows.iter().map(|row| row[5].as_str()).collect();
    assert_eq!(repaired, defenses);
    for row in rows {
        let acc: f64 = row[7].parse().unwrap();
        assert!((0.0..=100.0).contains(&acc), "{row:?}");
    }
}
