//! The program on a GPU that does not exist (tools/cuda-simulator.sh): every line of its own runs, the kernels included, and
//! the CPU computes. `make test-cuda` runs these; without the feature `cuda` there is nothing here.

#![cfg(feature = "cuda")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use common::{assert_contains, experiment, stderr, stdout, tsbd};
use serde_json::Value;

/// As small as a grid can be: the simulated GPU does a thousandth of what a CPU does.
const GRID: &str = r#"
profile = "smoke"

[data]
train_images = 200
test_images = 40

[model]
width = 4

[training]
epochs = 2

[defense]
clean_ratio = 0.2

[defenses.ft]
epochs = 1

[grid]
attack = ["badnets"]
defense = ["none", "ft"]
"#;

/// The folder with the simulator's libraries; `None`, and a line on standard error, where there is no C++ compiler.
fn simulator() -> Option<&'static Path> {
    static MADE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        if Command::new("g++").arg("--version").output().is_err() {
            eprintln!("skipped: a simulated GPU needs g++");
            return None;
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simulator");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/cuda-simulator.sh");
        let output = Command::new(script).arg(&folder).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        Some(folder)
    });
    made.as_deref()
}

fn on(simulator: &Path, settings: &[(&str, &str)], arguments: &[&str]) -> Output {
    let settings = settings.iter().copied();
    tsbd().env("CUDA_LAZY_PATH", simulator).envs(settings).args(arguments).output().unwrap()
}

fn assert_done(output: &Output) {
    assert!(output.status.success(), "{}{}", stdout(output), stderr(output));
}

/// The records of a results folder.
fn records(results: &Path) -> Vec<Value> {
    let folders = std::fs::read_dir(results.join("cells")).unwrap();
    let read = |folder: std::io::Result<std::fs::DirEntry>| {
        serde_json::from_slice(&std::fs::read(folder.unwrap().path().join("record.json")).unwrap()).unwrap()
    };
    folders.map(read).collect()
}

#[test]
fn every_operation_is_right_at_odd_shapes() {
    let Some(simulator) = simulator() else { return };
    let output = on(simulator, &[], &["selftest", "--device", "cuda", "--only", "odd"]);
    assert_done(&output);
    assert_contains(&stdout(&output), &["batch_norm", "bf16", "are right on cuda"]);
}

#[test]
fn a_training_and_a_repair_are_those_of_the_cpu_but_for_rounding() {
    let Some(simulator) = simulator() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = experiment(folder.path(), "small.toml", GRID);
    let run = |device: &str| {
        let results = folder.path().join(device);
        let arguments = ["run", file.to_str().unwrap(), "--device", device, "--results", results.to_str().unwrap()];
        assert_done(&on(simulator, &[], &arguments));
        let mut records = records(&results);
        records.sort_by_key(|record| record["key"].to_string());
        records
    };
    let (here, there) = (run("cpu"), run("cuda"));
    assert_eq!((here.len(), there.len()), (2, 2));
    for (here, there) in here.iter().zip(&there) {
        assert_eq!(here["key"], there["key"], "the device is no part of a cell");
        assert_eq!(there["provenance"]["device"], "cuda:0");
        assert_eq!(there["provenance"]["kernels"], "Simulated GPU");
        assert!(there["provenance"]["peak_gpu_memory_bytes"].as_u64().unwrap() > 100_000);
        let losses = |record: &Value| -> Vec<f64> {
            let points = record["trace"].as_array().unwrap().iter();
            points.filter_map(|point| point["metrics"]["loss"].as_f64()).collect()
        };
        let (here, there) = (losses(here), losses(there));
        assert!(!here.is_empty() && here.len() == there.len());
        for (here, there) in here.iter().zip(&there) {
            assert!((here - there).abs() < 1e-3 * here.abs(), "{here} on the CPU, {there} on the simulated GPU");
        }
    }
}

#[test]
fn a_gpu_without_enough_memory_ends_the_cell_with_a_way_out() {
    let Some(simulator) = simulator() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = experiment(folder.path(), "small.toml", GRID);
    let results = folder.path().join("results");
    let arguments = ["run", file.to_str().unwrap(), "--device", "cuda", "--results", results.to_str().unwrap()];
    let output = on(simulator, &[("TSBD_SIMULATED_MEMORY", "1000000")], &arguments);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_contains(&stderr(&output), &["OUT_OF_MEMORY", "the GPU's memory is full", "--cells-per-gpu", "smaller batch"]);
}

#[test]
fn a_gpu_that_is_not_there_is_refused_with_what_there_is() {
    let Some(simulator) = simulator() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = experiment(folder.path(), "small.toml", GRID);
    let run = |devices: &str| on(simulator, &[("TSBD_SIMULATED_GPUS", "2")], &["run", file.to_str().unwrap(), "--device", devices]);
    for (devices, reason) in [("cuda:2", "the driver sees 2 of them"), ("cuda:0,cuda:0", "it is named twice")] {
        let output = run(devices);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert_contains(&stderr(&output), &[reason]);
    }
    let output = tsbd().env("CUDA_LAZY_PATH", folder.path()).args(["selftest", "--device", "cuda"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
