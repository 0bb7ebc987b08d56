//! What the tests of the whole program share.
#![allow(dead_code, reason = "every test program uses its own part of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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

/// Asserts that a text contains every part.
pub fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
}
