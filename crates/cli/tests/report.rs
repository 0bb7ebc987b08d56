//! The report of a small grid of which half is missing, opened in a browser as `tools/check_report.py` does.

mod common;

use std::path::Path;
use std::process::Command;

use common::{assert_contains, experiment, skipped, stderr, stdout, tsbd};

/// A table and a figure. The table's rows have a long name, which on a phone must leave room for the other columns.
const GRID: &str = r#"
title = "A small grid"
profile = "smoke"

[data]
train_images = 300
test_images = 100

[model]
width = 4

[training]
epochs = 2

[defenses.tsbd]
unlearning_epochs = 1
fine_tuning_passes = 1

[grid]
attack = ["badnets", "blended"]
defense = ["tsbd"]
"defenses.tsbd.unlearning_learning_rate" = [1e-3, 1e-2]

[table]
rows = "defenses.tsbd.unlearning_learning_rate"
columns = "attack"
metrics = ["acc", "asr"]

[figure]
kind = "curves"
"#;

/// What the script says of itself where it cannot check.
const MISSING: i32 = 77;

#[test]
fn a_browser_finds_no_fault_in_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let file = experiment(folder.path(), "grid.toml", GRID);
    let [results, page] = ["results", "report.html"].map(|name| folder.path().join(name));
    let command = |name: &str| {
        let mut command = tsbd();
        command.arg(name).arg(&file).arg("--results").arg(&results);
        command
    };
    let part = command("run").args(["--set", "grid.attack=[\"badnets\"]"]).output().unwrap();
    assert!(part.status.success(), "{}", stderr(&part));
    // A name without a folder is one in the folder where the command is given.
    let written = command("report").current_dir(folder.path()).args(["--out", "report.html"]).output().unwrap();
    assert!(written.status.success(), "{}", stderr(&written));
    let html = std::fs::read_to_string(&page).unwrap();
    assert_contains(&html, &["A small grid", " not been run", "<svg", "Sort by"]);

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/check_report.py");
    let python = std::env::var_os("TSBD_PYTHON").unwrap_or_else(|| "python3".into());
    let checked = Command::new(&python).arg(script).arg(&page).output();
    match checked {
        Ok(checked) if checked.status.code() != Some(MISSING) => {
            assert!(checked.status.success(), "{}{}", stdout(&checked), stderr(&checked));
        }
        Ok(checked) => skipped(&format!("a report in a browser: {}", stderr(&checked).trim())),
        Err(error) => skipped(&format!("a report in a browser: {python:?}: {error}")),
    }
}
