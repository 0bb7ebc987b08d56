use serde_json::json;
use tsbd_data::Images;

use super::*;
use crate::NoObserver;
use crate::tiny::{self, assert_close, in_context};

/// The settings of `tools/reference/ft_sam.py`: one batch of all images, so that their order does not matter.
fn own(adaptive: bool) -> Value {
    json!({"epochs": 6, "learning_rate": 0.1, "cosine_period": 4, "radius": 0.5, "adaptive": adaptive})
}

fn repaired(own: Value) -> Repaired {
    let defense = (FT_SAM.configure)(&tiny::common(24), own).unwrap();
    in_context(&mut NoObserver, |context| defense.repair(&tiny::model("backdoored"), &tiny::clean(), context)).unwrap()
}

#[test]
fn six_steps_end_where_pytorch_ends_with_and_without_adaptation() {
    for (name, adaptive) in [("adaptive", true), ("plain", false)] {
        let repaired = repaired(own(adaptive));
        let path = tiny::golden_path(&format!("ft_sam/{name}.safetensors"));
        let expected = Model::load(tiny::architecture(), path).unwrap();
        assert_close(&repaired.model.state, &expected.state, 2e-6);
        let losses = tiny::golden_json("ft_sam/golden.json")[format!("losses_{name}")].clone();
        let losses: Vec<f64> = serde_json::from_value(losses).unwrap();
        // The reference's loss is the divergence from the smoothed labels: less by their entropy, a constant.
        let entropy = -(0.9f64 * 0.9f64.ln() + 2.0 * 0.05 * 0.05f64.ln());
        for (point, expected) in repaired.trace.iter().zip(&losses) {
            let found = point.metrics["loss"] - entropy;
            assert!((found - expected).abs() < 1e-5, "epoch {}: {found}, not {expected}", point.epoch);
        }
    }
}

#[test]
fn the_schedule_is_stepped_after_every_batch_or_as_configured_after_every_epoch() {
    let after = |own| repaired(own).model.state.digest().unwrap();
    let several = |variant| {
        let defense = (FT_SAM.configure)(
            &tiny::common(8),
            json!({"variant": variant, "epochs": 2, "cosine_period": 3, "radius": 0.5}),
        );
        let defense = defense.unwrap();
        let model = in_context(&mut NoObserver, |context| {
            defense.repair(&tiny::model("backdoored"), &tiny::clean(), context).unwrap().model
        });
        model.state.digest().unwrap()
    };
    assert_ne!(several("reference"), several("paper"), "three steps an epoch");
    let mut paper = own(true);
    paper["variant"] = json!("paper");
    assert_eq!(after(own(true)), after(paper), "one step an epoch");
}

#[test]
fn every_class_has_as_many_images_as_numpy_draws() {
    let golden = tiny::golden_json("ft_sam/golden.json")["by_class"].clone();
    let [labels, drawn]: [Vec<u32>; 2] =
        ["labels", "drawn"].map(|name| serde_json::from_value(golden[name].clone()).unwrap());
    let train = Arc::new(Images::new(vec![0; 300], labels, (1, 1), 4));
    let common = DefenseCommon { clean_ratio: 0.13, ..tiny::common(4) };
    let defense = (FT_SAM.configure)(&common, json!({})).unwrap();
    let subset = defense.clean_subset(train.clone(), 0).unwrap();
    assert_eq!(subset.indices(), drawn);
    assert_ne!(defense.clean_subset(train, 1).unwrap().indices(), drawn);
}

#[test]
fn a_share_that_a_class_cannot_supply_is_refused() {
    let defense = (FT_SAM.configure)(&DefenseCommon { clean_ratio: 0.5, ..tiny::common(4) }, json!({})).unwrap();
    let facts = |images_per_class: Vec<usize>| {
        let train_images = images_per_class.iter().sum();
        DatasetFacts { train_images, images_per_class, ..DatasetFacts::balanced(3, 0, 30, 8) }
    };
    let check = |counts| defense.check(tiny::architecture().as_ref(), &facts(counts));
    assert!(check(vec![20, 20, 20]).is_ok());
    let error = check(vec![40, 11, 9]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`clean_ratio` = 0.5: 10 images of each class, and the smallest class has 9; give 0.45"
    );
    let suggested = |counts: Vec<usize>, clean_ratio| {
        let common = DefenseCommon { clean_ratio, ..tiny::common(4) };
        (FT_SAM.configure)(&common, json!({})).unwrap().check(tiny::architecture().as_ref(), &facts(counts))
    };
    // A class without images counts neither as one that has none to give, nor among those that share the images.
    assert!(check(vec![20, 20, 0]).is_ok());
    // The last needs three images, and one of each class that occurs are two.
    for counts in [vec![40, 11, 9], vec![32, 9, 0], vec![40, 1, 0]] {
        let way_out = check(counts.clone()).unwrap_err().way_out;
        let ratio = way_out.trim_start_matches("give ").parse().unwrap();
        assert!(suggested(counts, ratio).is_ok(), "{way_out}");
    }
    let single = suggested(vec![1, 50, 0], 1.0).unwrap_err();
    assert!(single.way_out.starts_with("give 0.05"), "3 of 51: {single}");
    let labels = [vec![0; 40], vec![1; 11], vec![2; 9]].concat();
    let train = Arc::new(Images::new(vec![0; 180], labels, (1, 1), 3));
    assert_eq!(defense.clean_subset(train, 0).unwrap_err().field, "clean_ratio");
}

#[test]
fn gtsrb_has_half_the_epochs_and_parameters_are_canonical() {
    let parameters = (FT_SAM.configure)(&DefenseCommon::default(), json!({})).unwrap().parameters();
    let expected = json!({
        "clean_ratio": 0.05, "batch_size": 256, "variant": "reference", "epochs": null, "learning_rate": 0.01,
        "momentum": 0.9, "weight_decay": 5e-4, "cosine_period": 100, "radius": 2.0, "adaptive": true,
        "label_smoothing": 0.1,
    });
    assert_eq!(parameters, expected);
    assert_eq!([10, 43, 200].map(|classes| Parameters::default().epochs(classes)), [100, 50, 100]);
    for (field, value) in [
        ("epochs", json!(0)),
        ("radius", json!(0.0)),
        ("cosine_period", json!(0)),
        ("label_smoothing", json!(0.5)),
        ("learning_rate", json!(-1.0)),
        ("rho", json!(2.0)),
    ] {
        let error = (FT_SAM.configure)(&DefenseCommon::default(), json!({field: value})).unwrap_err();
        assert_eq!(error.field, field);
    }
}
