use serde_json::json;
use tsbd_nn::{BatchSource, Layer, Module};
use tsbd_tensor::Tensor;

use super::*;
use crate::NoObserver;
use crate::tiny::{self, assert_close, in_context};

fn defense(own: Value) -> Box<dyn Defense> {
    (NAD.configure)(&tiny::common(24), own).unwrap()
}

fn repaired(backdoored: &Model, own: Value) -> Repaired {
    let defense = defense(own);
    in_context(&mut NoObserver, |context| defense.repair(backdoored, &tiny::clean(), context)).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn attentions_of_maps_and_of_features_are_pytorchs() {
    let (model, expected) = (tiny::model("backdoored"), tiny::tensors("nad/attention.safetensors"));
    in_context(&mut NoObserver, |context| {
        let batch = context.plain(tiny::clean().images(), 24).epoch(0).next().unwrap().unwrap();
        let (_, maps) = model.tapped(&batch.images, Mode::Eval, &["block", "features"]).unwrap();
        for (name, map) in maps {
            let found = attention(&Var::constant(map)).unwrap();
            assert_eq!(found.dims(), expected[&name].dims());
            for (found, expected) in numbers(found.tensor()).iter().zip(numbers(&expected[&name])) {
                assert!((found - expected).abs() < 1e-6, "{name}: {found}, not {expected}");
            }
        }
    });
}

#[test]
fn a_step_and_a_whole_distillation_end_where_pytorch_ends_running_estimates_included() {
    for (epochs, variant, expected, moved) in
        [(1, "reference", "step", [3, 2]), (4, "reference", "student", [3, 2]), (4, "paper", "once", [1, 1])]
    {
        let backdoored = tiny::model("backdoored");
        let repaired = repaired(&backdoored, json!({"teacher_epochs": 3, "epochs": epochs, "variant": variant}));
        assert_close(&repaired.model.state, &tiny::model_in("nad", expected).state, 5e-6);
        for (norm, moved) in ["bn1", "bn2"].into_iter().zip(moved) {
            let name = format!("{norm}.num_batches_tracked");
            let count = |model: &Model| model.state.get(&name).unwrap().to_scalar::<i64>().unwrap();
            assert_eq!(count(&repaired.model) - count(&backdoored), epochs * moved, "{variant}: {norm}");
        }
    }
}

#[test]
fn losses_are_the_cross_entropy_and_the_weighted_attention_terms() {
    let terms: Vec<[f64; 3]> = serde_json::from_value(tiny::golden_in("nad")["terms"].clone()).unwrap();
    for (weights, effective) in [(json!([500, 1000, 1000]), 1000.0), (json!([7, 0]), 7.0), (json!([0, 0]), 0.0)] {
        let repaired = repaired(
            &tiny::model("backdoored"),
            json!({"teacher_epochs": 3, "epochs": 1, "attention_weights": weights}),
        );
        let point = repaired.trace.last().unwrap();
        let expected = terms[0][0] + effective * terms[0][1];
        assert_eq!((point.stage.as_str(), point.epoch), ("distillation", 0));
        assert!((point.metrics["loss"] - expected).abs() < 1e-4, "{point:?}, not {expected}");
    }
}

#[test]
fn the_teacher_is_fine_tuned_measured_and_left_as_it_is() {
    let repaired = repaired(&tiny::model("backdoored"), json!({"teacher_epochs": 3, "epochs": 2}));
    let stages: Vec<&str> = repaired.trace.iter().map(|point| point.stage.as_str()).collect();
    assert_eq!(stages, ["teacher", "teacher", "teacher", "distillation", "distillation"]);
    let measured: Vec<bool> = repaired.trace.iter().map(|point| point.metrics.contains_key("asr")).collect();
    assert_eq!(measured, [false, false, true, false, false]);
    assert_eq!(repaired.facts["variant"], "reference");
    assert_eq!(repaired.facts["attention_maps"], json!(["block", "features"]));
    assert_eq!(repaired.facts["attention_weights"], json!([1000.0, 1000.0]));

    let mut teacher = tiny::model("backdoored");
    in_context(&mut NoObserver, |context| {
        let source = context.shuffled(tiny::clean().images(), "test", 24);
        let stage = Parameters::default().fine_tuning(3).stage(tsbd_nn::Precision::F32);
        let mut rule = CrossEntropyStep::default();
        stage.train(&mut rule, &mut teacher, &source, context, &mut Vec::new(), &mut nothing).unwrap();
    });
    assert_close(&teacher.state, &tiny::model_in("nad", "teacher").state, 2e-6);
}

#[test]
fn a_map_of_zeros_leaves_every_weight_finite() {
    let mut dead = tiny::model("backdoored");
    for name in ["conv2.weight", "shortcut.weight"] {
        let zeros = dead.state.get(name).unwrap().zeros_like().unwrap();
        dead.state.set(name, &zeros).unwrap();
    }
    let repaired = repaired(&dead, json!({"teacher_epochs": 1, "epochs": 2}));
    for (name, tensor) in repaired.model.state.parameters() {
        assert!(numbers(tensor).iter().all(|value| value.is_finite()), "{name}");
    }
}

#[test]
fn a_network_without_attention_maps_or_with_too_many_is_refused_before_anything_runs() {
    let linear = Module::new("linear", Layer::Linear { in_features: 3, out_features: 3 });
    let silent =
        tsbd_testing::network(vec![linear], 3, |pass, images| pass.linear("linear", &images.global_average_pool()?));
    let error = defense(json!({})).check(silent.as_ref(), &tiny::facts()).unwrap_err();
    assert_eq!((error.field.as_str(), error.value.as_str()), ("defense", "\"nad\""));
    assert_eq!(error.reason, "small names no layers whose attention could be distilled");
    let check = |own| defense(own).check(tiny::architecture().as_ref(), &tiny::facts());
    assert!(check(json!({})).is_ok() && check(json!({"attention_weights": [1, 2]})).is_ok());
    let error = check(json!({"attention_weights": [1]})).unwrap_err();
    assert_eq!((error.field.as_str(), error.way_out.as_str()), ("attention_weights", "give at least 2 numbers"));
}

#[test]
fn parameters_are_canonical_and_wrong_ones_are_refused_by_name() {
    let configured = (NAD.configure)(&DefenseCommon::default(), json!({})).unwrap();
    let expected = json!({
        "clean_ratio": 0.05, "batch_size": 256, "variant": "reference", "teacher_epochs": 10, "epochs": 10,
        "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "cosine_period": 100,
        "attention_weights": [500.0, 1000.0, 1000.0],
    });
    assert_eq!(configured.parameters(), expected);
    assert_eq!(NAD.from_parameters(&expected).unwrap().parameters(), expected);
    for (field, value) in [
        ("epochs", json!(0)),
        ("teacher_epochs", json!(0)),
        ("learning_rate", json!(-0.1)),
        ("attention_weights", json!([1.0, -1.0])),
        ("variant", json!("code")),
        ("attention_weight", json!([1.0])),
    ] {
        let error = (NAD.configure)(&DefenseCommon::default(), json!({field: value})).unwrap_err();
        assert_eq!(error.field, field);
    }
}
