//! The gallery's figures are what this program draws of the results that lie beside them.

mod common;

use std::path::Path;

use common::{stderr, tsbd};

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
