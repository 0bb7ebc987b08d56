//! `tsbd list` walks the registries.

mod common;

use common::{assert_contains, stderr, stdout, tsbd};

#[test]
fn every_attack_of_the_registry_is_listed() {
    let output = tsbd().args(["list", "attacks"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    for entry in tsbd_experiment::ATTACKS {
        assert_contains(&stdout(&output), &[entry.name, entry.title]);
    }
}

#[test]
fn every_defense_of_the_registry_is_listed() {
    let output = tsbd().args(["list", "defenses"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    for entry in tsbd_defense::DEFENSES {
        assert_contains(&stdout(&output), &[entry.name, entry.title]);
    }
}

#[test]
fn every_data_set_and_every_model_is_listed() {
    let output = tsbd().args(["list", "datasets"]).output().unwrap();
    for entry in tsbd_data::DATASETS {
        assert_contains(&stdout(&output), &[entry.name]);
    }
    let output = tsbd().args(["list", "models"]).output().unwrap();
    for entry in tsbd_models::MODELS {
        assert_contains(&stdout(&output), &[entry.name, entry.title]);
    }
}

#[test]
fn one_attack_is_shown_with_its_paper_and_every_parameter_with_its_default() {
    let output = tsbd().args(["list", "attacks", "badnets"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_contains(
        &stdout(&output),
        &["BadNets", "1708.06733", "[attacks.badnets]", "trigger = \"square\"", "[attack]", "poisoning_ratio = 0.1"],
    );
    assert_contains(&stdout(&output), &["all-to-one | all-to-all", "whole number of at least 0"]);
    assert!(!stdout(&output).contains("Blended"));
}

#[test]
fn a_name_that_is_not_in_the_registry_is_refused_with_those_that_are() {
    let output = tsbd().args(["list", "defenses", "fpp"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_contains(&stderr(&output), &["fpp", "hint:", "tsbd"]);
}

#[test]
fn one_measurement_is_shown_with_the_numbers_that_it_gives() {
    let list = |name: &str, flags: &[&str]| tsbd().args(["list", "measures", name]).args(flags).output().unwrap();
    for entry in tsbd_analysis::MEASUREMENTS {
        let output = list(entry.name, &[]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let output_json = list(entry.name, &["--json"]);
        let json: serde_json::Value = serde_json::from_slice(&output_json.stdout).unwrap();
        let metrics = json[0]["metrics"].as_array().unwrap();
        assert_eq!(metrics.len(), entry.scalars.len(), "{}", entry.name);
        for (scalar, metric) in entry.scalars.iter().zip(metrics) {
            assert_contains(&stdout(&output), &[&format!("\n  {}\n", scalar.name)]);
            assert_eq!((&metric["name"], &metric["meaning"]), (&scalar.name.into(), &scalar.meaning.into()));
        }
    }
    assert_contains(&stdout(&list("nwc", &[])), &["Pearson correlation of the two weight changes in layer"]);
}

#[test]
fn one_model_and_one_data_set_are_shown_with_their_keys_and_what_these_may_be() {
    let list = |what: &str, name: &str, flags: &[&str]| {
        let output = tsbd().args(["list", what, name]).args(flags).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stdout(&output)
    };
    for entry in tsbd_models::MODELS {
        assert_contains(&list("models", entry.name, &[]), &[entry.name, entry.title, "[model]"]);
    }
    let model = list("models", "preact-resnet18", &[]);
    assert_contains(&model, &["width = 64    (whole number from 1 to 1024)", "smoke 8, quick 16, paper 64"]);
    let json = |what: &str, name: &str| {
        serde_json::from_str::<serde_json::Value>(&list(what, name, &["--json"])).unwrap()[0].take()
    };
    assert_eq!(json("models", "preact-resnet18")["parameters"]["properties"]["width"]["maximum"], 1024);

    for entry in tsbd_data::DATASETS {
        assert_contains(&list("datasets", entry.name, &[]), &[entry.name, entry.title, "[data]", "train_images = "]);
        let entry_json = json("datasets", entry.name);
        assert_eq!(entry_json["official"], entry.official.is_some(), "whether there is a source to fetch it from");
        assert_eq!(entry_json.get("downloaded"), None, "`tsbd data list` says what is on this machine");
    }
    let cifar10 = list("datasets", "cifar10", &[]);
    assert_contains(&cifar10, &["train_images = 50000    (whole number from 1 to 50000)", "tsbd data list"]);
    assert!(!cifar10.contains("seed") && list("datasets", "shapes", &[]).contains("seed = 0"), "{cifar10}");

    for (what, name) in [("models", "resnet"), ("datasets", "cifar11")] {
        let output = tsbd().args(["list", what, name]).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert_contains(&stderr(&output), &[name, "hint: known are: "]);
    }
}

#[test]
fn json_holds_the_schema_for_other_programs() {
    let output = tsbd().args(["list", "attacks", "--json"]).output().unwrap();
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<_> = list.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    let registry: Vec<_> = tsbd_experiment::ATTACKS.iter().map(|entry| entry.name).collect();
    assert_eq!(names, registry);
    assert_eq!(list[1]["shared_parameters"]["properties"]["poisoning_ratio"]["default"], 0.1);
}

#[test]
fn experiments_are_listed_with_every_axis_of_their_grids() {
    let folder = tempfile::tempdir().unwrap();
    let grid = |text: &str| format!("title = \"A\"\nprofile = \"smoke\"\n[grid]\n{text}");
    let files = [
        ("measured", grid("attack = [\"badnets\"]\nmeasure = [\"activations\"]\n")),
        ("over", grid("attack = [\"a\", \"b\"]\ndefense = [\"tsbd\"]\n\"defenses.tsbd.alpha\" = [0.0, 0.5, 1.0]\n")),
    ];
    for (name, text) in files {
        common::experiment(folder.path(), &format!("{name}.toml"), &text);
    }
    let output = tsbd().args(["list", "experiments", "--folder"]).arg(folder.path()).output().unwrap();
    assert_contains(&stdout(&output), &["1 attack x 1 measurement", "2 attacks x 1 defense x 3 alpha"]);
}
