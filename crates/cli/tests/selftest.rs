//! `tsbd selftest` on the CPU, and what it says where there is no GPU.

mod common;

use common::{assert_contains, stderr, stdout, tsbd};
use serde_json::Value;

#[test]
fn the_cpu_is_right_at_odd_shapes_and_a_table_says_so() {
    let output = tsbd().args(["selftest", "--only", "odd"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let table = stdout(&output);
    assert_contains(&table, &["verdict", "conv2d", "batch_norm", "sgd_step", "are right on cpu"]);
    assert!(!table.contains("WRONG") && !table.contains("vgg19"), "{table}");
}

#[test]
fn json_has_the_error_of_every_result_and_gradient() {
    let output = tsbd().args(["selftest", "--only", "conv2d odd residual", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "odd shapes have biases, not residuals");
    let output = tsbd().args(["selftest", "--only", "conv2d odd", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let lines: Value = serde_json::from_str(&stdout(&output)).unwrap();
    for line in lines.as_array().unwrap() {
        assert_eq!((&line["verdict"], &line["type"]), (&"right".into(), &"f32".into()));
        for result in ["y", "dx", "dweight", "dbias"] {
            let error = line["errors"][result].as_f64().unwrap();
            assert!(error <= line["allowed"].as_f64().unwrap(), "{line}");
        }
    }
}

#[test]
fn a_device_that_is_not_there_is_refused_with_what_to_do() {
    for command in [&["selftest"][..], &["bench", "train", "--steps", "1"]] {
        // No machine has so many GPUs; the program may have been built with or without CUDA.
        let output = tsbd().args(command).args(["--device", "cuda:999"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert_contains(&stderr(&output), &["--device cuda:999", "hint: "]);
        assert!(stdout(&output).is_empty());
    }
    let output = tsbd().args(["selftest", "--device", "gpu"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_contains(&stderr(&output), &["--device gpu: there is no such device", "use `cpu`, `cuda` or `cuda:1`"]);
}
