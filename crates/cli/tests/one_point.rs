//! The commands that do one thing: poison, evaluate, defend, data, bench.

mod common;

use std::path::Path;

use common::{assert_contains, stderr, stdout, tsbd};

/// Few, small drawn images.
const SMALL: &[&str] = &["--profile", "smoke", "--set", "data.train_images=200", "--set", "data.test_images=100"];

#[test]
fn poison_writes_the_poisoned_training_images_with_a_manifest_and_the_trigger() {
    let folder = tempfile::tempdir().unwrap();
    let (out, trigger) = (folder.path().join("poisoned"), folder.path().join("trigger.png"));
    let output = tsbd()
        .args(["poison", "badnets", "--split", "train", "--out"])
        .arg(&out)
        .arg("--export-trigger")
        .arg(&trigger)
        .args(SMALL)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let manifest = std::fs::read_to_string(out.join("manifest.csv")).unwrap();
    let mut lines = manifest.lines();
    assert_eq!(lines.next(), Some("file,index,original_label,given_label"));
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split(',').collect()).collect();
    assert_eq!(rows.len(), 20, "a tenth of 200 images");
    for row in &rows {
        let picture = tsbd_data::read_rgb(&out.join(row[0])).unwrap();
        assert_eq!((picture.height, picture.width), (16, 16));
        assert_eq!(row[3], "0", "the target class");
    }
    let trigger = tsbd_data::read_rgb(&trigger).unwrap();
    assert!(trigger.pixels.iter().any(|level| *level != 0));
}

#[test]
fn poison_writes_the_triggered_test_images_that_are_not_of_the_target_class() {
    let folder = tempfile::tempdir().unwrap();
    let output = tsbd()
        .args(["poison", "blended", "--split", "test", "--json", "--out"])
        .arg(folder.path())
        .args(SMALL)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let manifest = std::fs::read_to_string(folder.path().join("manifest.csv")).unwrap();
    assert_eq!(summary["images"].as_u64().unwrap() as usize, manifest.lines().count() - 1);
    assert!(manifest.lines().skip(1).all(|line| line.split(',').nth(2) != Some("0")));
}

#[test]
fn poison_refuses_a_folder_that_is_not_empty_and_an_attack_that_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mine.txt"), "precious").unwrap();
    let poison = |attack: &str, out: &Path| {
        tsbd().args(["poison", attack, "--split", "train", "--out"]).arg(out).args(SMALL).output().unwrap()
    };
    let output = poison("badnets", folder.path());
    assert_eq!(output.status.code(), Some(2));
    assert_contains(&stderr(&output), &["not empty", "hint:"]);
    let output = poison("none", &folder.path().join("new"));
    assert_eq!(output.status.code(), Some(2));
    assert_contains(&stderr(&output), &["changes no image", "hint:"]);
    let output = poison("badnetz", &folder.path().join("new"));
    assert_eq!(output.status.code(), Some(2));
    assert_contains(&stderr(&output), &["badnetz", "tsbd list attacks"]);
}

#[test]
fn attack_trains_a_model_that_evaluate_and_defend_take_and_a_second_attack_finds() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = |command: &mut std::process::Command| {
        command.args(SMALL).args([
            "--set",
            "training.epochs=1",
            "--set",
            "model.width=4",
            "--set",
            "defenses.ft.epochs=1",
        ]);
    };
    let train = || {
        let mut command = tsbd();
        command.args(["attack", "badnets", "--json", "--results"]).arg(folder.path());
        tiny(&mut command);
        command.output().unwrap()
    };
    let output = train();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let trained: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let model = trained["model"].as_str().unwrap();
    let written = std::fs::metadata(model).unwrap().modified().unwrap();

    let again = train();
    assert_eq!(again.stdout, output.stdout, "the same model, not another one");
    assert_eq!(std::fs::metadata(model).unwrap().modified().unwrap(), written);

    let mut command = tsbd();
    command.args(["evaluate", "--attack", "badnets", "--json", "--model", model]);
    tiny(&mut command);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let measured: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for rate in ["acc", "asr", "ra"] {
        assert_eq!(measured["metrics"][rate], trained["metrics"][rate], "{rate}");
    }

    let repaired = folder.path().join("repaired.safetensors");
    let mut command = tsbd();
    command.args(["defend", "ft", "--attack", "badnets", "--json", "--model", model, "--out"]).arg(&repaired);
    tiny(&mut command);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let defended: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(defended["before"]["asr"], trained["metrics"]["asr"]);
    assert!(repaired.exists() && defended["der"].is_number());

    let mut command = tsbd();
    command.args(["evaluate", "--attack", "none", "--model", model]).args(SMALL).args(["--set", "model.width=8"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "a model of another width");
    assert_contains(&stderr(&output), &["model.safetensors", "hint:", "--set model.width=4"]);
}

#[test]
fn a_model_of_other_shapes_is_refused_with_the_flags_that_fit_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let refused = |width: usize, classes: usize| {
        let parameters =
            tsbd_models::ModelParameters { name: "preact-resnet18".to_owned(), width, classes, image_size: 16 };
        let network = tsbd_models::build(&parameters).unwrap();
        let mut stream = tsbd_nn::Streams::new(0).stream("weights", 0);
        tsbd_nn::Model::new(network, &mut stream).unwrap().save(&path).unwrap();
        let mut command = tsbd();
        command.args(["evaluate", "--attack", "none", "--set", "model.width=4"]).args(SMALL).arg("--model").arg(&path);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        let talk = stderr(&output);
        talk.split_once("hint: ").unwrap_or_else(|| panic!("no hint in {talk}")).1.to_owned()
    };
    let hint = refused(2, 10);
    assert_contains(&hint, &["--set model.width=2"]);
    assert!(!hint.contains("--dataset") && !hint.contains("classes"), "{hint}");
    let hint = refused(4, 3);
    assert_contains(&hint, &["3 classes", "no data set here"]);
    assert!(!hint.contains("model.width"), "{hint}");
    assert_contains(&refused(2, 3), &["--set model.width=2", "3 classes"]);
}

#[test]
fn a_file_of_torch_save_is_refused_with_the_command_that_rewrites_it() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["x.pt", "x.pth", "x.pth.tar"] {
        let path = folder.path().join(name);
        std::fs::write(&path, [b"PK\x03\x04".as_slice(), &[0x7f; 60]].concat()).unwrap();
        let mut command = tsbd();
        command.args(["evaluate", "--attack", "none"]).args(SMALL).arg("--model").arg(&path);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        let read = format!("torch.load(\"{}\"", path.display());
        let written = format!("\"{}\")'", path.with_extension("safetensors").display());
        assert_contains(
            &stderr(&output),
            &["hint:", "python -c 'import torch, safetensors.torch as s", &read, &written],
        );
    }
}

#[test]
fn what_the_command_line_names_is_not_set_to_something_else() {
    let commands: [&[&str]; 5] = [
        &["attack", "badnets"],
        &["defend", "ft", "--model", "model.safetensors"],
        &["evaluate", "--attack", "badnets", "--model", "model.safetensors"],
        &["poison", "badnets", "--split", "test", "--out", "out"],
        &["bench", "poison", "badnets"],
    ];
    for command in commands {
        for (setting, way_out) in
            [("grid.attack=[\"none\"]", "tsbd run"), ("seeds=[1]", "--seed N"), ("profile=smoke", "--profile NAME")]
        {
            let output = tsbd().args(command).args(["--set", setting]).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{command:?} {setting}");
            assert_contains(&stderr(&output), &[setting, "the command line names", way_out]);
        }
    }
}

#[test]
fn data_list_says_where_data_sets_lie_and_verify_names_a_damaged_file() {
    let folder = tempfile::tempdir().unwrap();
    let data =
        |arguments: &[&str]| tsbd().arg("data").args(arguments).env("XDG_CACHE_HOME", folder.path()).output().unwrap();
    let output = data(&["list"]);
    assert_eq!(output.status.code(), Some(0));
    assert_contains(&stdout(&output), &["cifar10", "tsbd data fetch cifar10", "shapes"]);

    let output = data(&["verify", "cifar10"]);
    assert_eq!(output.status.code(), Some(2), "it is not there at all");
    assert_contains(&stderr(&output), &["hint:", "tsbd data fetch cifar10"]);

    let place = folder.path().join("tsbd/datasets/cifar-10-batches-bin");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join("test_batch.bin"), "not the official one").unwrap();
    let output = data(&["verify", "cifar10"]);
    assert_eq!(output.status.code(), Some(1));
    assert_contains(&stdout(&output), &["test_batch.bin", "20 bytes instead of"]);
    assert_contains(&stderr(&output), &["hint:", "tsbd data fetch cifar10"]);
}

#[test]
fn data_fetch_takes_no_name_that_is_unknown_and_shapes_needs_none() {
    let output = tsbd().args(["data", "fetch", "cifar11"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_contains(&stderr(&output), &["cifar11", "cifar10"]);
    let output = tsbd().args(["data", "fetch", "shapes"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_contains(&stderr(&output), &["shapes", "drawn"]);
}

#[test]
fn bench_measures_whole_steps_and_says_on_what() {
    for work in ["train", "inference"] {
        let output = tsbd()
            .args(["bench", work, "--width", "4", "--batch", "16", "--steps", "3", "--image-size", "16"])
            .args(["--threads", "1", "--json"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let measured: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let number = |name: &str| measured[name].as_f64().unwrap_or_else(|| panic!("{name} is no number"));
        let product = number("images_per_second") * number("milliseconds_per_step");
        assert!((product - 16_000.0).abs() < 1.0, "16 images a step: {product}");
        assert!(number("fastest_milliseconds_per_step") <= number("milliseconds_per_step"));
        assert!(number("data_milliseconds_per_step") > 0.0 && number("data_share") < 1.0);
        assert!(number("cpu_milliseconds_per_step") > 0.0 && number("peak_memory_mb") > 1.0);
        assert_eq!((number("threads"), number("batch"), number("width")), (1.0, 16.0, 4.0));
        assert_eq!((&measured["work"], &measured["precision"]), (&work.into(), &"f32".into()));
    }
}

#[test]
fn bench_trains_several_models_at_once_and_says_how_far_they_round() {
    let output = tsbd()
        .args([
            "bench",
            "train",
            "--width",
            "4",
            "--batch",
            "16",
            "--steps",
            "3",
            "--image-size",
            "16",
            "--threads",
            "1",
        ])
        .args(["--models", "2", "--precision", "bf16", "--json"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let measured: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&measured["models"], &measured["precision"]), (&2.into(), &"bf16".into()));
    assert!(measured["kernels"].as_str().unwrap().ends_with("bf16 convolution"), "{measured}");
    let [images, step] = ["images_per_second", "milliseconds_per_step"].map(|name| measured[name].as_f64().unwrap());
    // The sum of two speeds: by the mean of their times it is twice 16 images a step, or more where they differ.
    assert!(images * step > 2.0 * 16_000.0 - 1.0, "{measured}");
    let output = tsbd().args(["bench", "train", "--precision", "f16"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_contains(&stderr(&output), &["f32, tf32, bf16"]);
}

#[test]
fn bench_poison_measures_static_attacks_and_refuses_others() {
    let bench = |attack: &str| {
        tsbd().args(["bench", "poison", attack, "--rounds", "2", "--json"]).args(SMALL).output().unwrap()
    };
    let output = bench("sig");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let measured: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |name: &str| measured[name].as_f64().unwrap_or_else(|| panic!("{name} is no number"));
    assert_eq!((number("poisoned_train_images"), number("triggered_test_images")), (20.0, 90.0));
    assert!((number("images_per_second") * number("seconds") - 110.0).abs() < 1e-6);
    assert!(number("fastest_seconds") <= number("seconds") && number("processor_seconds") > 0.0);
    assert!(number("peak_memory_mb") >= number("peak_memory_before_mb"));
    for attack in ["none", "wanet"] {
        let output = bench(attack);
        assert_eq!(output.status.code(), Some(2));
        assert_contains(&stderr(&output), &["poisons no image before training", "hint:"]);
    }
}

#[test]
fn bench_ops_lists_each_operation_beside_the_peak() {
    let small = ["bench", "ops", "--width", "4", "--batch", "2", "--image-size", "8", "--seconds", "0"];
    let output = tsbd().args(small).args(["--only", "weight gradient", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let measured: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(measured["peak"]["gflops_per_second"].as_f64().unwrap() > 0.0);
    let operations = measured["operations"].as_array().unwrap();
    // Four stages with stride 1, three with stride 2 and as many shortcuts, the first convolution, the linear layer.
    assert_eq!(operations.len(), 12);
    for total in ["milliseconds_per_step", "images_per_second", "peak_memory_mb"] {
        assert!(measured[total].as_f64().unwrap() > 0.0, "{total}");
    }
    assert_eq!(measured["precision"], "f32");
    assert!(operations.iter().all(|operation| operation["gflops_per_second"].as_f64().unwrap() > 0.0));

    let output = tsbd().args(small).args(["--only", "conv"]).env("TSBD_CONV", "bf16").output().unwrap();
    assert_contains(&stdout(&output), &["bf16", "all operations above"]);
    assert_contains(&stdout(&output), &["conv 3x3 stride 2", "input gradient", "convolutions above, forward"]);

    let output = tsbd().args(small).args(["--only", "convolve"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_contains(&stderr(&output), &["--only 'convolve'", "hint:"]);
}

#[test]
fn poison_makes_what_an_attack_starts_from_and_finds_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let poison = |out: &str| {
        let mut command = tsbd();
        command.args(["poison", "ssba", "--split", "test", "--out"]).arg(folder.path().join(out));
        command.arg("--results").arg(folder.path().join("results")).args(SMALL);
        for setting in ["encoder_width=2", "decoder_width=2", "encoder_epochs=1"] {
            command.args(["--set", &format!("attacks.ssba.{setting}")]);
        }
        command.output().unwrap()
    };
    let (first, again) = (poison("first"), poison("again"));
    for output in [&first, &again] {
        assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    }
    assert_contains(&stderr(&first), &["ssba groundwork: done"]);
    assert!(!stderr(&again).contains("groundwork"), "{}", stderr(&again));
    let bytes = |out: &str, file: &str| std::fs::read(folder.path().join(out).join(file)).unwrap();
    let manifest = String::from_utf8(bytes("first", "manifest.csv")).unwrap();
    assert_eq!(bytes("again", "manifest.csv"), manifest.as_bytes());
    for line in manifest.lines().skip(1).take(5) {
        let (file, _) = line.split_once(',').unwrap();
        assert_eq!(bytes("first", file), bytes("again", file));
    }
}

#[test]
fn figure_draws_the_triggers_of_a_grid_with_the_same_bytes_each_time_and_refuses_files_without_a_figure() {
    let folder = tempfile::tempdir().unwrap();
    let grid = "profile = \"smoke\"\n[grid]\nattack = [\"none\", \"badnets\", \"sig\"]\ndefense = [\"none\"]\n";
    let figure = "[figure]\nkind = \"triggers\"\n";
    let draw = |text: &str, out: &str, flags: &[&str]| {
        let file = common::experiment(folder.path(), "triggers.toml", text);
        let mut command = tsbd();
        command.arg("figure").arg(file).arg("--out").arg(folder.path().join(out));
        command.arg("--results").arg(folder.path().join("results")).args(&SMALL[2..]).args(flags).output().unwrap()
    };
    for out in ["first", "again"] {
        let output = draw(&format!("{grid}{figure}"), out, &[]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_contains(&stdout(&output), &["triggers-smoke.png"]);
    }
    let [first, again] =
        ["first", "again"].map(|out| std::fs::read(folder.path().join(out).join("triggers-smoke.png")).unwrap());
    assert!(first == again);
    let picture = tsbd_data::read_rgb(&folder.path().join("first/triggers-smoke.png")).unwrap();
    assert!(picture.width > 2 * 128 && picture.height > 3 * 128, "{} x {}", picture.width, picture.height);

    // A report shows that picture, and none that shows something else.
    let embedded = |flags: &[&str]| {
        let mut command = tsbd();
        let page = folder.path().join("report.html");
        command.arg("report").arg(folder.path().join("triggers.toml")).arg("--out").arg(&page);
        command.arg("--figures").arg(folder.path().join("first"));
        let output =
            command.arg("--results").arg(folder.path().join("results")).args(&SMALL[2..]).args(flags).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        std::fs::read_to_string(page).unwrap().contains("data:image/png")
    };
    let mut command = tsbd();
    let trained = command.arg("run").arg(folder.path().join("triggers.toml")).args(&SMALL[2..]);
    let trained = trained.arg("--results").arg(folder.path().join("results")).output().unwrap();
    assert_eq!(trained.status.code(), Some(0), "{}", stderr(&trained));
    assert!(embedded(&[]) && !embedded(&["--set", "figure.image=1"]));

    let output = draw(&format!("{grid}{figure}"), "other", &["--set", "figure.image=100"]);
    assert_eq!(output.status.code(), Some(2));
    assert_contains(&stderr(&output), &["`figure.image` = 100", "hint:"]);
    let output = draw(grid, "none", &[]);
    assert_eq!(output.status.code(), Some(2));
    assert_contains(&stderr(&output), &["no section [figure]", "hint:"]);
    let output = draw(&format!("{grid}[figure]\nkind = \"trigers\"\n"), "none", &[]);
    assert_eq!(output.status.code(), Some(2));
    assert_contains(&stderr(&output), &["`figure.kind`", "hint:"]);
}

/// Attacks that take part in training, as small as they can be. The profile gives them epochs of their own.
const CONTROLLED: [(&str, &[&str]); 2] = [
    ("wanet", &["--set", "attack.poisoning_ratio=0.2", "--set", "attacks.wanet.epochs=2"]),
    (
        "input-aware",
        &[
            "--set",
            "attacks.input-aware.generator_width=2",
            "--set",
            "attacks.input-aware.epochs=2",
            "--set",
            "attacks.input-aware.mask_epochs=1",
        ],
    ),
];
const BRIEF: &[&str] = &["--set", "model.width=2"];

#[test]
fn an_attack_that_controls_the_training_is_trained_measured_and_repaired() {
    for (attack, settings) in CONTROLLED {
        let folder = tempfile::tempdir().unwrap();
        let run = |arguments: &[&str]| {
            let output = tsbd().args(arguments).args(settings).args(SMALL).args(BRIEF).output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
            serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
        };
        let results = folder.path().join("results");
        let trained = run(&["attack", attack, "--json", "--results", results.to_str().unwrap()]);
        assert!(trained["facts"]["poison_count"].as_u64().unwrap() > 0);
        assert_eq!(trained["facts"]["training"]["epochs"], 2);
        let model = trained["model"].as_str().unwrap();
        let learned = Path::new(model).with_file_name("attack.safetensors").exists();
        assert_eq!(learned, attack == "input-aware");

        let measured = run(&["evaluate", "--model", model, "--attack", attack, "--json"]);
        for rate in ["acc", "asr", "ra"] {
            assert_eq!(measured["metrics"][rate], trained["metrics"][rate], "{attack}: the same test images");
        }
        let ft = ["defend", "ft", "--model", model, "--attack", attack, "--json", "--set", "defenses.ft.epochs=1"];
        assert_eq!(run(&ft)["before"]["asr"], trained["metrics"]["asr"]);

        // In a grid, the defense gets the trigger from its parent's folder.
        let grid = folder.path().join("grid.toml");
        let text = format!("profile = \"smoke\"\n[grid]\nattack = [\"{attack}\"]\ndefense = [\"none\", \"ft\"]\n");
        std::fs::write(&grid, text).unwrap();
        let output = tsbd()
            .args([
                "run",
                grid.to_str().unwrap(),
                "--results",
                results.to_str().unwrap(),
                "--set",
                "defenses.ft.epochs=1",
            ])
            .args(settings)
            .args(&SMALL[2..])
            .args(BRIEF)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let table = ["table", grid.to_str().unwrap(), "--long", "--format", "json"];
        let output = tsbd()
            .args(table)
            .args(["--results", results.to_str().unwrap(), "--set", "defenses.ft.epochs=1"])
            .args(settings)
            .args(&SMALL[2..])
            .args(BRIEF)
            .output()
            .unwrap();
        let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let rows = rows.as_array().unwrap();
        assert_eq!(rows.len(), 2);
        for row in rows {
            assert_eq!(row["poison_count"], trained["facts"]["poison_count"]);
            assert!(row["asr"].is_number());
        }
    }
}

#[test]
fn a_learned_trigger_is_asked_for_where_it_is_missing_and_training_images_of_such_an_attack_do_not_exist() {
    let folder = tempfile::tempdir().unwrap();
    let poison = |attack: &str, split: &str, out: &str| {
        let out = folder.path().join(out);
        tsbd().args(["poison", attack, "--split", split, "--out"]).arg(&out).args(SMALL).output().unwrap()
    };
    let output = poison("input-aware", "test", "a");
    assert_eq!(output.status.code(), Some(2));
    assert_contains(&stderr(&output), &["learned with a model", "--learned-trigger FILE"]);
    for attack in ["wanet", "input-aware"] {
        let output = poison(attack, "train", "b");
        assert_eq!(output.status.code(), Some(2));
        assert_contains(&stderr(&output), &["no poisoned training images", "--split test"]);
    }
    let poison = |attack: &str, split: &str, out: &str, flags: &[&str]| {
        let out = folder.path().join(out);
        let mut command = tsbd();
        command.args(["poison", attack, "--split", split, "--out"]).arg(&out).args(SMALL).args(flags).output().unwrap()
    };
    let output = poison("wanet", "test", "c", &["--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(folder.path().join("c/manifest.csv").exists());
    let facts = &serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["facts"];
    assert!(facts["poison_count"].is_null() && facts["asr_denominator"].as_u64().unwrap() > 0, "{facts}");
    for (attack, split) in [("wanet", "test"), ("badnets", "test"), ("badnets", "train")] {
        let output = poison(attack, split, "d", &["--learned-trigger", "attack.safetensors"]);
        assert_eq!(output.status.code(), Some(2), "{attack}");
        assert_contains(&stderr(&output), &["--learned-trigger attack.safetensors", "leave the flag out"]);
    }
    // Before its encoder is trained.
    let results = folder.path().join("results");
    let results_flag = ["--results", results.to_str().unwrap()];
    let output = poison("ssba", "test", "d", &[&["--export-trigger", "trigger.png"][..], &results_flag].concat());
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert_contains(&stderr(&output), &["is no picture", "leave the flag out"]);
    assert!(!results.exists() && !folder.path().join("d").exists());
}
