//! The Makefile's targets of several experiments, with a program that only writes down how it was called.

#![cfg(unix)]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

/// Runs a target without building anything; `run` of the first experiment file ends with `status`.
fn make(target: &str, first: &str, status: i32) -> Option<(Output, String)> {
    let folder = tempfile::tempdir().unwrap();
    let (program, calls) = (folder.path().join("tsbd"), folder.path().join("calls"));
    let script = format!(
        "#!/bin/sh\necho \"$@\" >> {}\ncase \"$1 $2\" in \"run experiments/{first}.toml\") exit {status};; esac\n",
        calls.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let made = Command::new("make")
        .args(["--no-print-directory", "-o", "build", target])
        .arg(format!("TSBD={}", program.display()))
        .current_dir(root)
        .env_remove("MAKEFLAGS")
        .output();
    match made {
        Ok(made) => Some((made, std::fs::read_to_string(calls).unwrap_or_default())),
        Err(_) => {
            common::skipped("there is no make");
            None
        }
    }
}

#[test]
fn a_failed_cell_of_one_experiment_does_not_keep_the_others_from_their_turn() {
    for (target, first, files) in [("ablations", "ablation-alpha", 6), ("fig1", "fig1-weight-changes", 2)] {
        let Some((made, calls)) = make(target, first, 1) else { return };
        assert!(!made.status.success(), "the worst status is that of the target");
        for command in ["run", "figure"] {
            let count = calls.lines().filter(|call| call.starts_with(command)).count();
            assert_eq!(count, files, "{target}, {command}:\n{calls}");
        }
        let Some((made, calls)) = make(target, "nothing", 1) else { return };
        assert!(made.status.success(), "{calls}");
    }
}

#[test]
fn an_interruption_ends_all_of_them() {
    let Some((made, calls)) = make("ablations", "ablation-alpha", 130) else { return };
    assert!(!made.status.success() && calls.lines().count() == 1, "{calls}");
}
