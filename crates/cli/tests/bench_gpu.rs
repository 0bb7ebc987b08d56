//! `tools/bench_gpu.sh` with programs that only pretend: what it compares, and how it ends when something is missing or fails.

#![cfg(unix)]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use common::{assert_contains, stderr, stdout};

/// Which environment it was told of, and a speed of 10.
const TSBD: &str = r#"[ "$1" = selftest ] && { echo "environment $VIRTUAL_ENV"; exit; }
echo '{"precision": "f32", "batch": 8, "images_per_second": 10, "milliseconds_per_step": 800}'"#;

/// Twice as fast with tensors that are contiguous as with others.
const PYTHON: &str = r#"case "$*" in
*sys.prefix*) echo /pytorch ;;
*is_available*) ;;
*contiguous*) echo '{"precision": "f32", "batch": 8, "images_per_second": 20, "milliseconds_per_step": 400}' ;;
*) echo '{"precision": "f32", "batch": 8, "images_per_second": 10, "milliseconds_per_step": 800}' ;;
esac"#;

/// The script's runs in f32; `None` where it cannot be run.
fn bench(tsbd: &str, python: &str) -> Option<Output> {
    if Command::new("python3").arg("--version").output().is_err() {
        common::skipped("there is no Python 3");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = |name: &str, script: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/bench_gpu.sh");
    let mut command = Command::new(script);
    command.args(["--batches", "8", "--only", " f32", "--out"]).arg(folder.path().join("bench.jsonl"));
    command.env("TSBD", program("tsbd", tsbd)).env("TSBD_PYTHON", program("python", python));
    command.env("VIRTUAL_ENV", "/another").env_remove("CUDA_LAZY_PATH");
    Some(command.output().unwrap())
}

#[test]
fn tsbd_is_compared_with_the_faster_layout_of_pytorch_whose_libraries_it_uses() {
    let Some(output) = bench(TSBD, PYTHON) else { return };
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_contains(&stderr(&output), &["environment /pytorch\n"]);
    assert_contains(&stdout(&output), &["tsbd f32 is 0.50 times as fast as pytorch f32 contiguous\n"]);
}

#[test]
fn why_pytorch_is_left_out_is_said_once() {
    let Some(output) = bench(TSBD, "echo Traceback >&2; echo 'there is no torch' >&2; exit 1") else { return };
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(
        stderr(&output).matches("PyTorch is not measured: there is no torch\n").count(),
        1,
        "{}",
        stderr(&output)
    );
    assert!(!stdout(&output).contains("pytorch"), "{}", stdout(&output));
}

#[test]
fn runs_that_fail_are_counted_and_the_whole_fails() {
    let fails = r#"[ "$1" = selftest ]"#;
    let Some(output) = bench(fails, PYTHON) else { return };
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_contains(&stderr(&output), &["failed: tsbd f32: ", "4 runs failed: see above"]);
    assert_contains(&stdout(&output), &["pytorch f32 eager"]);
}
