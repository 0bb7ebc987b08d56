//! Measurements as a user asks for them: planned, run, shared with repairs, printed and exported. Everything on drawn
//! images, seconds per run.

mod common;

use std::path::Path;
use std::process::Command;

use common::{assert_contains, experiment, stderr, stdout, tsbd};
use serde_json::Value;

const GRID: &str = r#"
title = "What a backdoor leaves"
profile = "smoke"

[data]
train_images = 600
test_images = 100

[model]
width = 4

[training]
epochs = 2

[defenses.tsbd]
unlearning_epochs = 2
fine_tuning_passes = 1

[defenses.anp]
iterations = 2

[defenses.rnp]
unlearning_epochs = 1
recovering_epochs = 1

[measures.coverage]
neuron_ratios = [0.1, 0.5, 1.0]
tac = "clp"

[grid]
attack = ["badnets"]
measure = ["nwc", "activeness", "activations", "tac", "coverage"]
"#;

fn command(name: &str, file: &Path) -> Command {
    let mut command = tsbd();
    command.arg(name).arg(file).arg("--results").arg(file.with_file_name("results"));
    command
}

fn ran(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    stdout(&output)
}

#[test]
fn every_measurement_runs_and_its_numbers_and_vectors_are_printed_and_exported() {
    let folder = tempfile::tempdir().unwrap();
    let file = experiment(folder.path(), "grid.toml", GRID);
    ran(&mut command("run", &file));

    let long: Value = serde_json::from_str(&ran(command("table", &file).args(["--long", "--format", "json"]))).unwrap();
    let rows = long.as_array().unwrap();
    let measures: Vec<&str> = rows.iter().map(|row| row["measure"].as_str().unwrap()).collect();
    assert_eq!(measures, ["nwc", "activeness", "activations", "tac", "coverage"]);
    assert!(rows[0]["pearson_all"].as_f64().unwrap().abs() <= 1.0, "a correlation is no percentage");
    assert!(rows[0]["acc"].is_null() && rows[1]["pearson_all"].is_null());
    assert!(rows[1]["activeness_median"].as_f64().unwrap() > 0.0);
    assert_eq!(rows[4]["coverage_nwc_at_1"], 1.0, "all neurons are all neurons");
    assert_eq!((&rows[4]["facts"]["tac"], &rows[0]["facts"]["layer"]), (&"clp".into(), &"layer4.1.conv2".into()));
    let epochs = |row: &Value| row["facts"]["unlearning_epochs"].as_u64().unwrap();
    let unlearned = epochs(&rows[0]);
    assert!((1..=2).contains(&unlearned));

    let text = ran(&mut command("table", &file));
    assert_contains(&text, &["NWC", "TAC", "Coverage", "pearson", "Numbers as they are"]);
    assert!(!text.contains("percent") && !text.contains("missing"), "{text}");

    let neurons: Value =
        serde_json::from_str(&ran(command("table", &file).args(["--neurons", "--format", "json"]))).unwrap();
    let of = |measure: &str, vector: &str| {
        let belongs = |row: &&Value| row["measure"] == measure && row["vector"] == vector;
        neurons.as_array().unwrap().iter().filter(belongs).cloned().collect::<Vec<Value>>()
    };
    // A sixteenth of the paper's network.
    for (measure, vector) in [("nwc", "nwc_clean"), ("nwc", "nwc_poison"), ("tac", "tac_clp")] {
        assert_eq!(of(measure, vector).len(), 3904 / 16, "{measure}, {vector}");
    }
    let last = of("nwc", "nwc_clean").pop().unwrap();
    assert_eq!((&last["layer"], &last["neuron"]), (&"layer4.1.conv2".into(), &31.into()));
    assert!(last["value"].as_f64().unwrap() > 0.0);
    // What was unlearned has its vectors, from which those of the measurement were taken.
    let values = |rows: Vec<Value>| rows.into_iter().map(|row| row["value"].clone()).collect::<Vec<Value>>();
    for vector in ["nwc_clean", "nwc_poison"] {
        assert_eq!(values(of("none", vector)), values(of("nwc", vector)), "{vector}");
        assert_ne!(of("none", vector)[0]["key"], of("nwc", vector)[0]["key"], "{vector}");
    }
    // Batch norms, which CLP, ANP and RNP score, stand behind every convolution but the last.
    let compared = of("tac", "tac_clp").into_iter().filter(|row| row["layer"] != "layer4.1.conv2").collect();
    assert_eq!(values(of("coverage", "tac_clp")), values(compared), "the same images are drawn");
    for method in ["fp", "clp", "anp", "rnp", "nwc"] {
        assert!((0.0..=1.0).contains(&rows[4][format!("coverage_{method}")].as_f64().unwrap()), "{method}");
        assert_eq!(of("coverage", &format!("score_{method}")).len(), 3904 / 16 - 32, "{method}");
    }
    let parquet = folder.path().join("neurons.parquet");
    ran(command("table", &file).args(["--neurons", "--format", "parquet", "--out"]).arg(&parquet));
    assert!(std::fs::read(&parquet).unwrap().starts_with(b"PAR1"));
    let refused = command("table", &file).arg("--neurons").output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));

    let exported = folder.path().join("exported");
    ran(tsbd()
        .args(["export", "results"])
        .arg(&file)
        .arg("--out")
        .arg(&exported)
        .args(["--results"])
        .arg(file.with_file_name("results")));
    let from_exported = |what: &[&str]| ran(tsbd().arg("table").arg(&file).arg("--results").arg(&exported).args(what));
    assert_eq!(from_exported(&[]), text);
    let exported_neurons: Value = serde_json::from_str(&from_exported(&["--neurons", "--format", "json"])).unwrap();
    assert!(exported_neurons == neurons);
    let refused = tsbd().arg("run").arg(&file).arg("--results").arg(&exported).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    assert_contains(&stderr(&refused), &["without their models", "--results"]);

    // TSBD and FP in the order of weight changes start from the unlearned model that is there.
    let more =
        GRID.replace("measure = [", "defense = [\"tsbd\", \"fp\", \"ft\"]\n\"defenses.fp.order\" = [\"nwc\"]\n#");
    let more = more.replace(
        "[defenses.tsbd]",
        "[defenses.ft]\nepochs = 1\n[defenses.fp]\nepochs = 1\nselection = \"oracle\"\nunlearning_epochs = 2\n[defenses.tsbd]",
    );
    std::fs::write(&file, more).unwrap();
    let plan: Value = serde_json::from_str(&ran(command("plan", &file).arg("--json"))).unwrap();
    let line = |cell: &Value| format!("{} {}", cell["label"].as_str().unwrap(), cell["state"].as_str().unwrap());
    let lines: Vec<String> = plan["cells"].as_array().unwrap().iter().map(line).collect();
    assert_eq!(
        lines,
        [
            "badnets done",
            "badnets after unlearning done",
            "badnets + tsbd to do",
            "badnets + fp, order nwc to do",
            "badnets + ft to do"
        ]
    );
    ran(&mut command("run", &file));
    let long: Value = serde_json::from_str(&ran(command("table", &file).args(["--long", "--format", "json"]))).unwrap();
    assert_eq!((epochs(&long[0]), &long[1]["facts"]["order"]), (unlearned, &"nwc".into()));
    let shared = |row: usize| long[row]["shared_seconds"].as_f64().unwrap();
    assert!(shared(0) > 0.0 && shared(0) == shared(1), "the seconds of the one unlearning");
    assert!(rows[0]["shared_seconds"].as_f64().unwrap() > shared(0), "that and the poison unlearning");
    assert!(rows[3]["shared_seconds"].is_null(), "TAC unlearns nothing");
    assert_eq!(long[2]["selection"], "last epoch", "a defense that chooses nothing");
    assert_eq!((&long[0]["selection"], &long[1]["clean_count"]), (&"fixed".into(), &60.into()));

    // Which neurons were set to 0: filters of convolutions, features of the last layer; fine-tuning prunes none.
    let neurons: Value =
        serde_json::from_str(&ran(command("table", &file).args(["--neurons", "--format", "json"]))).unwrap();
    let of = |defense: &str, vector: &str| {
        let belongs = |row: &&Value| row["defense"] == defense && row["vector"] == vector;
        neurons.as_array().unwrap().iter().filter(belongs).cloned().collect::<Vec<Value>>()
    };
    let zeroed = |row: usize, defense: &str| {
        let rows = of(defense, "zeroed");
        let changed = rows.iter().filter(|row| row["value"].as_f64().unwrap() > 0.0).count();
        assert_eq!(long[row]["facts"]["changed_neurons"], changed, "{defense}");
        (rows.len(), rows.iter().map(|row| row["value"].as_f64().unwrap()).sum::<f64>())
    };
    let weights = long[0]["facts"]["weights_zeroed"].as_f64().unwrap();
    assert_eq!(zeroed(0, "tsbd"), (3904 / 16, weights));
    let features = long[1]["facts"]["features_pruned"].as_f64().unwrap();
    assert!(features > 0.0);
    assert_eq!((zeroed(1, "fp"), of("fp", "zeroed")[0]["layer"].as_str()), ((32, 10.0 * features), Some("linear")));
    assert!(of("ft", "zeroed").is_empty());
    assert_eq!(of("none", "nwc_clean").len(), 3904 / 16, "the unlearned model that two repairs share");
}

#[test]
fn measurements_are_listed_with_their_parameters() {
    let output = tsbd().args(["list", "measures"]).output().unwrap();
    assert_contains(&stdout(&output), &["nwc", "activeness", "activations", "tac", "coverage"]);
    let output = tsbd().args(["list", "measures", "coverage"]).output().unwrap();
    assert_contains(&stdout(&output), &["[measures.coverage]", "neuron_ratios", "backdoor-bench"]);
}
