//! The gallery's figures are what this program draws of the results that lie beside them, and results that the documentation
//! speaks of can be read.

mod common;

use std::path::Path;

use common::{assert_contains, stderr, stdout, tsbd};

#[test]
fn figures_with_results_are_drawn_again_to_the_last_byte() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let gallery = root.join("docs/gallery");
    let mut names: Vec<_> =
        std::fs::read_dir(gallery.join("results")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert!(!names.is_empty());
    for name in names.iter().map(|name| name.to_str().unwrap()) {
        let folder = tempfile::tempdir().unwrap();
        let output = tsbd()
            .arg("figure")
            .arg(root.join(format!("experiments/{name}.toml")))
            .args(["--profile", "quick", "--data", "/nowhere", "--results"])
            .arg(gallery.join("results").join(name))
            .arg("--out")
            .arg(folder.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let drawn = std::fs::read(folder.path().join(format!("{name}-quick.png"))).unwrap();
        let committed = std::fs::read(gallery.join(format!("{name}.png"))).unwrap();
        assert!(drawn == committed, "docs/gallery/{name}.png is not what its results give now");
    }
}

/// Table 1 of the cells that a GPU has computed, as far as there are any.
fn table_of_a_gpu(flags: &[&str]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let settings = [
        r#"training.precision="bf16""#,
        r#"defense.precision="tf32""#,
        r#"grid.attack=["badnets"]"#,
        r#"grid.defense=["none", "clp"]"#,
    ];
    let output = tsbd()
        .arg("table")
        .arg(root.join("experiments/table1.toml"))
        .args(flags)
        .args(["--profile", "paper", "--data", "/nowhere", "--results"])
        .arg(root.join("docs/results/table1-paper-h200"))
        .args(settings.iter().flat_map(|setting| ["--set", setting]))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    stdout(&output)
}

#[test]
fn the_numbers_of_a_gpu_in_the_benchmarks_are_those_of_their_records() {
    assert_contains(&table_of_a_gpu(&["--format", "md"]), &["| BadNets | 91.50 | 95.38 | 89.99 | 64.12 | 64.87 |"]);
    let benchmarks = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/benchmarks.md");
    let text = std::fs::read_to_string(benchmarks).unwrap();
    assert_contains(&text, &["ACC 91.50, ASR 95.38", "ACC 89.99, ASR 64.12, DER 64.87"]);
}

#[test]
fn published_numbers_stand_below_ours_in_a_file_for_other_programs() {
    let table = table_of_a_gpu(&["--format", "csv", "--compare", "published"]);
    assert_contains(&table, &[",badnets,false,91.50,95.38,", ",badnets,true,91.82,93.79,"]);
}
