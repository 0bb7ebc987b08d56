//! An experiment that cannot be right is refused with exit code 2, before anything is trained, with the file, the key,
//! the value and the way out.

mod common;

use std::path::Path;
use std::process::Output;

use common::{assert_contains, experiment, stderr, stdout, tsbd};

const GRID: &str = "profile = \"smoke\"\n[grid]\nattack = [\"badnets\"]\ndefense = [\"none\", \"ft\"]\n";

fn run(folder: &Path, text: &str, flags: &[&str]) -> Output {
    let file = experiment(folder, "trial.toml", text);
    tsbd().arg("run").arg(file).arg("--results").arg(folder.join("results")).args(flags).output().unwrap()
}

/// Runs the experiment and asserts that it is refused with all of `parts` on standard error, and nothing else happens.
fn assert_refused(text: &str, flags: &[&str], parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let output = run(folder.path(), text, flags);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert_contains(&stderr(&output), parts);
    assert!(!stderr(&output).contains('\x1b'), "colour where there is no terminal");
    assert_eq!(stdout(&output), "", "talk belongs on standard error");
    assert!(!folder.path().join("results").exists(), "something was started");
}

#[test]
fn an_unknown_key_is_shown_in_its_file_with_the_key_that_was_meant() {
    let text = format!("{GRID}[attack]\npoisonning_ratio = 0.1\n");
    assert_refused(
        &text,
        &[],
        &[
            "trial.toml:6",
            "poisonning_ratio = 0.1",
            "`attack.poisonning_ratio`",
            "hint:",
            "did you mean `poisoning_ratio`?",
        ],
    );
}

#[test]
fn a_ratio_of_one_and_a_half_is_refused_with_the_range() {
    let text = format!("{GRID}[attack]\npoisoning_ratio = 1.5\n");
    assert_refused(
        &text,
        &[],
        &["trial.toml:6", "`attack.poisoning_ratio` = 1.5", "out of range", "hint:", "greater than 0 and at most 1"],
    );
}

#[test]
fn a_wrong_value_on_the_command_line_is_shown_there() {
    assert_refused(GRID, &["--set", "attack.poisoning_ratio=1.5"], &["--set", "attack.poisoning_ratio=1.5", "hint:"]);
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let text =
        GRID.replace("\"ft\"", "\"fft\"") + "[attack]\npoisoning_ratio = 1.5\n[table]\nmetrics = [\"accuracy\"]\n";
    assert_refused(&text, &[], &["fft", "poisoning_ratio", "accuracy"]);
}

#[test]
fn a_text_that_is_no_toml_is_refused_with_its_line() {
    assert_refused("title = \"unfinished\n", &[], &["trial.toml:1", "hint:"]);
}

#[test]
fn a_missing_data_folder_says_where_it_looked_and_how_to_get_the_data() {
    let folder = tempfile::tempdir().unwrap();
    let file = experiment(folder.path(), "trial.toml", &GRID.replace("smoke", "quick"));
    let absent = folder.path().join("no-such-folder");
    let output = tsbd()
        .arg("run")
        .arg(file)
        .arg("--results")
        .arg(folder.path().join("results"))
        .arg("--data")
        .arg(&absent)
        .env("XDG_CACHE_HOME", folder.path().join("empty-cache"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert_contains(
        &unfolded(&stderr(&output)),
        &["cifar10", &absent.display().to_string(), "hint:", "tsbd data fetch cifar10"],
    );
}

/// An error is folded to the width of the page: undone, so that a long path is in one piece.
fn unfolded(text: &str) -> String {
    text.lines().map(|line| line.trim_start_matches([' ', '│', '|'])).collect()
}

#[test]
fn a_missing_experiment_file_is_refused_with_its_name() {
    let output = tsbd().args(["run", "no/such/file.toml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_contains(&stderr(&output), &["no/such/file.toml", "hint:", "tsbd list experiments"]);
}

#[test]
fn a_set_without_a_value_is_bad_usage_with_an_example() {
    let output = tsbd().args(["plan", "x.toml", "--set", "attack.poisoning_ratio"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_contains(&stderr(&output), &["attack.poisoning_ratio=0.05"]);
}

#[test]
fn parquet_is_not_written_to_a_terminal() {
    let output = tsbd().args(["table", "x.toml", "--format", "parquet"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_contains(&stderr(&output), &["--out table.parquet"]);
}

#[test]
fn a_ratio_of_nothing_a_ratio_that_poisons_nothing_and_a_class_that_is_not_there_are_refused() {
    let with = |line: &str| format!("{GRID}[attack]\n{line}\n");
    assert_refused(&with("poisoning_ratio = 0"), &[], &["`attack.poisoning_ratio` = 0", "out of range", "hint:"]);
    assert_refused(
        &with("poisoning_ratio = 1e-5"),
        &[],
        &["`attack.poisoning_ratio` = 1e-5", "poisons none of the 5000 training images", "hint:", "more than 1.00e-4"],
    );
    assert_refused(
        &with("target_class = 10"),
        &[],
        &["`attack.target_class` = 10", "the data set has 10 classes", "hint:", "from 0 to 9"],
    );
}

#[test]
fn a_clean_label_attack_says_the_largest_ratio_that_its_class_can_supply() {
    // 5000 drawn images of ten classes: 500 of each.
    let text = GRID.replace("badnets", "sig") + "[attack]\npoisoning_ratio = 0.3\n";
    assert_refused(
        &text,
        &[],
        &["`attack.poisoning_ratio` = 0.3", "needs 1500 images, and only 500 of the 5000", "hint:", "at most 0.1"],
    );
    let text = GRID.replace("badnets", "sig") + "[attack]\nlabels = \"all-to-all\"\n";
    assert_refused(&text, &[], &["`attack.labels`", "leaves the labels", "hint:"]);
}

#[test]
fn a_trigger_picture_that_is_missing_or_corrupt_is_refused_with_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trigger.png");
    for attack in ["badnets", "blended"] {
        let text = GRID.replace("badnets", attack) + &format!("[attacks.{attack}]\ntrigger = {path:?}\n");
        assert_refused(&text, &[], &[&format!("attacks.{attack}.trigger"), "trigger.png", "hint:"]);
    }
    // The head of a PNG, and nothing after it.
    std::fs::write(&path, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR").unwrap();
    for attack in ["badnets", "blended"] {
        let text = GRID.replace("badnets", attack) + &format!("[attacks.{attack}]\ntrigger = {path:?}\n");
        assert_refused(&text, &[], &[&format!("attacks.{attack}.trigger"), "trigger.png", "hint:"]);
    }
}

#[test]
fn images_that_the_encoder_of_ssba_cannot_take_are_refused() {
    let text = GRID.replace("badnets", "ssba") + "[data]\nimage_size = 24\n";
    assert_refused(&text, &[], &["multiples of 16", "hint:", "data.image_size"]);
}

#[test]
fn a_device_to_time_steps_on_that_is_not_there_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = experiment(folder.path(), "grid.toml", GRID);
    let output =
        tsbd().arg("plan").arg(&file).args(["--measure=gpu", "--results"]).arg(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert_contains(&stderr(&output), &["--device gpu", "hint:"]);
}

#[test]
fn devices_that_are_not_there_and_flags_that_do_not_go_with_them_are_refused() {
    assert_refused(GRID, &["--device", "gpu"], &["--device gpu"]);
    assert_refused(GRID, &["--device", "cuda:x"], &["--device cuda:x"]);
    assert_refused(GRID, &["--sharing", "mps"], &["--sharing with --device cpu", "--workers"]);
    assert_refused(GRID, &["--sharing", "threads"], &["`one-process`, `mps` or `turns`"]);
    let alone = ["--device", "cuda", "--sharing", "mps", "--cells-per-gpu", "1"];
    assert_refused(GRID, &alone, &["--sharing mps with --cells-per-gpu 1", "hint:"]);
    assert_refused(GRID, &["--cells-per-gpu", "2"], &["--cells-per-gpu with --device cpu", "--workers"]);
    assert_refused(
        GRID,
        &["--executor", "slurm", "--workers", "2"],
        &["--workers 2", "the cluster decides", "at_once"],
    );
    assert_refused(
        GRID,
        &["--executor", "slurm", "--device", "cuda"],
        &["--device cuda", "the cluster decides", "gpus"],
    );
    let folder = tempfile::tempdir().unwrap();
    let output = run(folder.path(), GRID, &["--device", "cuda", "--cells-per-gpu", "none"]);
    assert_contains(&stderr(&output), &["--cells-per-gpu", "`auto` or a number from 1 to 64"]);
}

#[test]
fn a_device_that_is_not_there_is_refused_before_an_attack_a_repair_or_an_evaluation() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent");
    let commands: [&[&str]; 3] = [
        &["attack", "badnets"],
        &["defend", "ft", "--model", "model.safetensors"],
        &["evaluate", "--attack", "badnets", "--model", "model.safetensors"],
    ];
    // No machine has so many GPUs; the program may have been built with or without CUDA.
    let (devices, way_out): (&[&str], _) = match cfg!(feature = "cuda") {
        true => (&["cuda:999"], "hint: "),
        false => (&["cuda", "cuda:999"], "hint: build it with `make build-cuda`"),
    };
    for (command, device) in commands.iter().flat_map(|command| devices.iter().map(move |device| (command, device))) {
        // Neither the data set nor the model is there: the device is looked at first.
        let mut tsbd = tsbd();
        tsbd.args(*command).args(["--device", device]).arg("--data").arg(&absent).arg("--results").arg(&absent);
        let output = tsbd.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{command:?}: {}", stderr(&output));
        assert_contains(&stderr(&output), &[&format!("--device {device}: "), way_out]);
        assert!(stdout(&output).is_empty() && !absent.exists(), "{command:?}");
    }
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_program_without_cuda_says_so_and_auto_takes_the_cpu() {
    assert_refused(
        GRID,
        &["--device", "cuda"],
        &["--device cuda: this program was built without CUDA", "make build-cuda"],
    );
    let flags = ["--device", "auto", "--set", "attack.poisoning_ratio=2"];
    assert_refused(GRID, &flags, &["attack.poisoning_ratio"]);
}
