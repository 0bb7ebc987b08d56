//! A file that this project saves, loaded by PyTorch itself: runs where `$TSBD_PYTHON` names a Python with PyTorch.

mod formula;

use formula::{batch, error, network, numbers};
use std::io::Write as _;
use std::process::Command;
use tsbd_nn::Mode;
use tsbd_tensor::DType;

#[test]
fn pytorch_loads_a_saved_model_strictly_and_computes_the_same_logits() {
    let Some(python) = std::env::var_os("TSBD_PYTHON") else {
        // Past the capture of `println!`: a skipped test should be seen.
        writeln!(std::io::stderr(), "skipped: set TSBD_PYTHON to a Python that has torch and safetensors").unwrap();
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let model = network(4, DType::F32);
    model.save(&path).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/reference/checkpoint.py");
    let mut command = Command::new(&python);
    let output = command.arg(script).arg(&path).env("PYTHONDONTWRITEBYTECODE", "1").output();
    let output = output.expect("TSBD_PYTHON cannot be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let logits: Vec<Vec<f64>> = serde_json::from_slice(&output.stdout).unwrap();
    let found = numbers(&model.logits(&batch(16, 1000, DType::F32).images, Mode::Eval).unwrap());
    assert!(error(&found, &logits.concat()) < 1e-4);
}
