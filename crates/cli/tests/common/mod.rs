//! What the tests of the whole program share.
#![allow(dead_code, reason = "every test program uses its own part of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// The binary, without anything of the caller's environment that changes what it does.
pub fn tsbd() -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("tsbd"));
    for variable in ["TSBD_RESULTS", "TSBD_DATA", "TSBD_LOG", "RUST_LOG", "NO_COLOR", "CLICOLOR_FORCE"] {
        command.env_remove(variable);
    }
    command
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Writes an experiment file into `folder`.
pub fn experiment(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Says that a test is skipped, past the capture of what tests print: it should be seen.
#[allow(clippy::explicit_write, reason = "`eprintln!` is captured")]
pub fn skipped(why: &str) {
    use std::io::Write as _;
    writeln!(std::io::stderr(), "skipped: {why}").unwrap();
}

/// Asserts that a text contains every part.
pub fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
}

/// 2 attacks x 4 methods and an unlearned model for each attack: 10 cells, a few steps each.
pub const GRID: &str = r#"
title = "A small grid"
profile = "smoke"

[data]
train_images = 600
test_images = 200

[model]
width = 4

[training]
epochs = 6

[defenses.ft]
epochs = 1

[defenses.fp]
epochs = 1

[defenses.tsbd]
unlearning_epochs = 2
fine_tuning_passes = 1

[grid]
attack = ["badnets", "blended"]
defense = ["none", "ft", "fp", "tsbd"]
"#;

/// One experiment file and a results folder.
pub struct Bench {
    pub folder: tempfile::TempDir,
    pub file: PathBuf,
}

impl Bench {
    pub fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = experiment(folder.path(), "grid.toml", text);
        Self { folder, file }
    }

    pub fn results(&self) -> PathBuf {
        self.folder.path().join("results")
    }

    pub fn command(&self, name: &str) -> Command {
        self.command_in(name, &self.results())
    }

    /// With another results folder.
    pub fn command_in(&self, name: &str, results: &Path) -> Command {
        let mut command = tsbd();
        command.arg(name).arg(&self.file).arg("--results").arg(results);
        command
    }
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(240), "waited 240 s for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
