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

#[test]
fn the_numbers_of_a_gpu_in_the_benchmarks_are_those_of_their_records() {
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
        .args(["--profile", "paper", "--data", "/nowhere", "--format", "md", "--results"])
        .arg(root.join("docs/results/table1-paper-h200"))
        .args(settings.iter().flat_map(|setting| ["--set", setting]))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_contains(&stdout(&output), &["| BadNets | 91.50 | 95.38 | 89.99 | 64.12 | 64.87 |"]);
    let text = std::fs::read_to_string(root.join("docs/benchmarks.md")).unwrap();
    assert_contains(&text, &["ACC 91.50, ASR 95.38", "ACC 89.99, ASR 64.12, DER 64.87"]);
}
