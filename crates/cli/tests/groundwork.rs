//! Attacks that need something made before they can poison: planned, run, shared, killed and failed as a user sees it.
//! Everything on drawn images, seconds per run.

mod common;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{assert_contains, experiment, stderr, stdout, tsbd};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const SMALL: &str = r#"
title = "A small grid"
profile = "smoke"

[data]
train_images = 200
test_images = 100

[model]
width = 4

[training]
epochs = 1

[defenses.ft]
epochs = 1

"#;

/// The same for commands without a file.
const POINT: &[&str] = &[
    "--profile",
    "smoke",
    "--set",
    "data.train_images=200",
    "--set",
    "data.test_images=100",
    "--set",
    "model.width=4",
    "--set",
    "training.epochs=1",
];

fn command(name: &str, file: &Path) -> Command {
    let mut command = tsbd();
    command.arg(name).arg(file).arg("--results").arg(results(file));
    command
}

fn results(file: &Path) -> PathBuf {
    file.with_file_name("results")
}

fn json(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The cells of a plan as `kind label state`.
fn plan(file: &Path) -> Vec<String> {
    let plan = json(&command("plan", file).arg("--json").output().unwrap());
    let text = |cell: &Value, field: &str| cell[field].as_str().unwrap().to_owned();
    let line = |cell: &Value| format!("{} {} {}", text(cell, "kind"), text(cell, "label"), text(cell, "state"));
    plan["cells"].as_array().unwrap().iter().map(line).collect()
}

#[test]
fn two_ratios_share_one_groundwork_on_the_clean_model_and_tables_do_not_show_it() {
    let folder = tempfile::tempdir().unwrap();
    let grid = "[grid]\nattack = [\"trojan\"]\ndefense = [\"none\", \"ft\"]\n\"attack.poisoning_ratio\" = [0.1, 0.2]\n";
    let file = experiment(folder.path(), "grid.toml", &format!("{SMALL}{grid}[attacks.trojan]\nsteps = 20\n"));
    let planned = plan(&file);
    assert_eq!(planned.len(), 6, "{planned:?}");
    assert_eq!(planned[..2], ["train none to do", "prepare trojan groundwork to do"]);

    let output = command("run", &file).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(plan(&file).iter().all(|cell| cell.ends_with(" done")), "{:?}", plan(&file));
    let output = command("table", &file).args(["--long", "--format", "csv"]).output().unwrap();
    assert_eq!(stdout(&output).lines().count(), 1 + 4, "{}", stdout(&output));
    assert!(!stdout(&output).contains("groundwork") && !stdout(&output).contains("none,none"), "{}", stdout(&output));
    let output = command("status", &file).output().unwrap();
    assert_contains(&stdout(&output), &["6 of 6 cells done", "trojan groundwork"]);

    // One more ratio needs neither a clean model nor a groundwork; the attack `none` is there already.
    let text = std::fs::read_to_string(&file)
        .unwrap()
        .replace("[0.1, 0.2]", "[0.3]")
        .replace("[\"trojan\"]", "[\"none\", \"trojan\"]");
    std::fs::write(&file, text).unwrap();
    let to_do: Vec<String> = plan(&file).into_iter().filter(|cell| cell.ends_with("to do")).collect();
    assert_eq!(
        to_do,
        [
            "train trojan, poisoning_ratio 0.3 to do",
            "defend none + ft to do",
            "defend trojan + ft, poisoning_ratio 0.3 to do"
        ]
    );
}

#[test]
fn what_an_attack_trains_by_itself_is_timed_for_a_plan_and_a_search_on_a_trained_model_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let grid = "[grid]\nattack = [\"ssba\", \"trojan\"]\ndefense = [\"none\"]\n";
    let file = experiment(folder.path(), "grid.toml", &format!("{SMALL}{grid}"));
    let seconds = |flags: &[&str]| -> Vec<(String, Option<f64>)> {
        let plan = json(&command("plan", &file).arg("--json").args(flags).output().unwrap());
        let groundworks = plan["cells"].as_array().unwrap().iter().filter(|cell| cell["kind"] == "prepare");
        groundworks
            .map(|cell| (cell["label"].as_str().unwrap().to_owned(), cell["estimated_seconds"].as_f64()))
            .collect()
    };
    let [ssba, trojan] = ["ssba groundwork", "trojan groundwork"].map(str::to_owned);
    assert_eq!(seconds(&[]), [(ssba.clone(), None), (trojan.clone(), None)]);
    let timed = seconds(&["--measure"]);
    assert!(matches!(&timed[..], [(_, Some(seconds)), (_, None)] if *seconds > 0.0), "{timed:?}");
    assert_eq!(plan(&file)[0], "prepare ssba groundwork to do", "beginning it has left nothing");
}

#[test]
fn commands_for_one_point_make_the_groundwork_once_and_reuse_it() {
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("results");
    let out = folder.path().join("poisoned");
    let trigger = folder.path().join("trigger.png");
    let run = |arguments: &[&str]| {
        let mut command = tsbd();
        command
            .args(arguments)
            .args(POINT)
            .args(["--set", "attacks.lf.search_images=10"])
            .arg("--results")
            .arg(&results);
        command.output().unwrap()
    };
    let poison = |split: &str, to: &Path| {
        let (to, trigger) = (to.to_str().unwrap(), trigger.to_str().unwrap());
        run(&["poison", "lf", "--split", split, "--json", "--out", to, "--export-trigger", trigger])
    };
    let exported = poison("train", &out);
    assert_eq!(json(&exported)["images"], 20, "a tenth of 200 images");
    assert_contains(&stderr(&exported), &["none: done", "lf groundwork: done"]);
    let pattern = tsbd_data::read_rgb(&trigger).unwrap();
    assert_eq!((pattern.height, *pattern.pixels.iter().max().unwrap()), (16, 51));

    let attacked = run(&["attack", "lf", "--json"]);
    let model = json(&attacked)["model"].as_str().unwrap().to_owned();
    assert!(!stderr(&attacked).contains("groundwork"), "it was made before: {}", stderr(&attacked));

    let again = poison("test", &folder.path().join("triggered"));
    assert!(json(&again)["images"].as_u64().unwrap() > 80);
    assert!(!stderr(&again).contains("starts"), "{}", stderr(&again));
    assert_eq!(tsbd_data::read_rgb(&trigger).unwrap(), pattern);

    let evaluated = json(&run(&["evaluate", "--attack", "lf", "--json", "--model", &model]));
    assert_eq!(evaluated["metrics"]["asr"], json(&attacked)["metrics"]["asr"]);
    let defended = json(&run(&["defend", "ft", "--attack", "lf", "--json", "--model", &model]));
    assert_eq!(defended["before"]["asr"], json(&attacked)["metrics"]["asr"]);
}

#[test]
fn a_signal_ends_a_repair_also_after_the_groundwork_that_it_began_with() {
    let folder = tempfile::tempdir().unwrap();
    let mut attack = tsbd();
    attack.args(["attack", "badnets", "--json"]).args(POINT).arg("--results").arg(folder.path().join("badnets"));
    let model = json(&attack.output().unwrap())["model"].as_str().unwrap().to_owned();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut repair = tsbd();
        // Hours, if nothing ends it.
        repair.args(["defend", "ft", "--attack", "trojan", "--model", &model]).args(POINT);
        repair.args(["--set", "attacks.trojan.steps=20", "--set", "defenses.ft.epochs=1000000"]);
        repair.arg("--results").arg(folder.path().join(signal.as_str()));
        let mut repair = repair.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut talk = BufReader::new(repair.stderr.take().unwrap()).lines();
        assert!(talk.any(|line| line.unwrap().contains("trojan groundwork: done")), "the groundwork was not made");
        let begin = Instant::now();
        let ended = loop {
            // The first ones may still reach the run that has made it, which has nothing left to stop.
            kill(Pid::from_raw(repair.id() as i32), signal).unwrap();
            std::thread::sleep(Duration::from_millis(100));
            match repair.try_wait().unwrap() {
                None if begin.elapsed() < Duration::from_secs(30) => {}
                ended => break ended,
            }
        };
        let _ = repair.kill();
        assert_eq!(ended.and_then(|status| status.code()), Some(130), "{signal}");
    }
}

#[test]
fn a_groundwork_that_fails_skips_what_starts_from_it_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let grid = "[grid]\nattack = [\"none\", \"ssba\"]\ndefense = [\"none\", \"ft\"]\n";
    // After one step at this rate no loss is finite.
    let own = "[attacks.ssba]\nlearning_rate = 1e30\nencoder_width = 2\ndecoder_width = 2\nencoder_epochs = 1\n";
    let file = experiment(folder.path(), "grid.toml", &format!("{SMALL}{grid}{own}"));
    let output = command("run", &file).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_contains(
        &stderr(&output),
        &["the loss is", "ssba groundwork: FAILED", "ssba: skipped", "ssba + ft: skipped"],
    );
    let states = plan(&file);
    for done in ["train none done", "defend none + ft done", "prepare ssba groundwork failed", "train ssba to do"] {
        assert!(states.iter().any(|state| state == done), "{done}: {states:?}");
    }
}

#[test]
fn a_groundwork_that_is_killed_leaves_nothing_and_is_made_by_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    // Some seconds of steps, so that there is something to kill.
    let own = "[grid]\nattack = [\"trojan\"]\n[attacks.trojan]\nsteps = 4000\n";
    let file = experiment(folder.path(), "grid.toml", &format!("{SMALL}{own}"));
    let begin = Instant::now();
    let mut coordinator = command("run", &file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let child = loop {
        assert!(begin.elapsed() < Duration::from_secs(60), "the groundwork never began");
        std::thread::sleep(Duration::from_millis(5));
        let status = std::fs::read(results(&file).join("status.json")).unwrap_or_default();
        let status: Value = serde_json::from_slice(&status).unwrap_or_default();
        let running = &status["running"][0];
        if running["kind"] == "prepare" && running["stage"] == "optimise trigger" {
            break running["pid"].as_i64().unwrap();
        }
    };
    kill(Pid::from_raw(child as i32), Signal::SIGKILL).unwrap();
    assert_eq!(coordinator.wait().unwrap().code(), Some(1));
    let states = plan(&file);
    assert_eq!(states, ["train none done", "prepare trojan groundwork failed", "train trojan to do"]);
    let materials = std::fs::read_dir(results(&file).join("cells")).unwrap();
    let materials = materials.filter(|cell| cell.as_ref().unwrap().path().join("material.safetensors").exists());
    assert_eq!(materials.count(), 0);

    let output = command("run", &file).args(["--json"]).output().unwrap();
    assert_eq!(json(&output)["finished"].as_array().unwrap().len(), 2, "{}", stderr(&output));
    assert!(plan(&file).iter().all(|state| state.ends_with(" done")));
}
