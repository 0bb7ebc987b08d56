use serde_json::json;
use tsbd_data::python_random::PythonRandom;

use super::*;
use crate::NoObserver;
use crate::tiny::{self, assert_close, in_context};

/// The settings of `tools/reference/channel_pruning.py`.
fn own(variant: &str) -> Value {
    let paper = variant == "paper";
    let [unlearning, recovering, accuracy] = if paper { [0.01, 0.005, 0.2] } else { [1.0, 0.3, 0.7] };
    let [milestone, epochs] = if paper { [2, 4] } else { [7, 20] };
    json!({
        "variant": variant, "clean_share": 1.0, "unlearning_learning_rate": unlearning,
        "unlearning_accuracy": accuracy, "unlearning_milestones": [milestone], "unlearning_epochs": epochs,
        "recovering_learning_rate": recovering, "recovering_epochs": 6,
    })
}

/// The model that the program begins with.
fn backdoored(variant: &str) -> Model {
    let mut model = tiny::model("backdoored");
    if variant == "paper" {
        let weight = model.state.get("linear.weight").unwrap();
        let exchanged = tsbd_tensor::Tensor::new(&[1u32, 0, 2], weight.device()).unwrap();
        let weight = (weight.index_select(&exchanged, 0).unwrap() * 30.0).unwrap();
        model.state.set("linear.weight", &weight).unwrap();
    }
    model
}

fn defense(own: Value) -> Rnp {
    Rnp::new(tiny::common(24), read(&own).unwrap()).unwrap()
}

fn with(mut own: Value, field: &str, value: usize) -> Value {
    own[field] = json!(value);
    own
}

/// The model after unlearning, and the accuracies during the epochs.
fn unlearned(defense: &Rnp, backdoored: &Model) -> (Model, Vec<f64>) {
    let mut trace = Vec::new();
    let unlearned = in_context(&mut NoObserver, |context| {
        defense.unlearn(backdoored, tiny::clean().images(), context, &mut trace).unwrap()
    });
    (unlearned.model, trace.iter().filter_map(|point| point.metrics.get("train_accuracy").copied()).collect())
}

#[track_caller]
fn assert_same(found: &[f64], expected: &Value) {
    let expected: Vec<f64> = serde_json::from_value(expected.clone()).unwrap();
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?}, not {expected:?}");
}

#[test]
fn unlearned_weights_and_statistics_are_pytorchs_after_one_three_and_all_epochs_for_both_variants() {
    for variant in ["reference", "paper"] {
        for epochs in [1, 3] {
            let defense = defense(with(own(variant), "unlearning_epochs", epochs));
            let expected = tiny::model_in("rnp", &format!("{variant}.{epochs}"));
            assert_close(&unlearned(&defense, &backdoored(variant)).0.state, &expected.state, 1e-5);
        }
        let (model, accuracies) = unlearned(&defense(own(variant)), &backdoored(variant));
        assert_close(&model.state, &tiny::model_in("rnp", &format!("{variant}.all")).state, 1e-5);
        assert_same(&accuracies, &tiny::golden_json("channel_pruning.json")["rnp"][variant]["accuracies"]);
    }
}

#[test]
fn unlearning_in_shuffled_batches_is_pytorchs_with_the_accuracy_of_all_batches_of_an_epoch() {
    let golden = tiny::golden_json("channel_pruning.json")["rnp_batches"].clone();
    let own = json!({
        "clean_share": 1.0, "unlearning_learning_rate": 1.5, "unlearning_milestones": [2], "unlearning_epochs": 3,
    });
    let defense = Rnp::new(tiny::common(16), read(&own).unwrap()).unwrap();
    in_context(&mut NoObserver, |context| {
        let source = context.shuffled(tiny::clean().images(), "rnp/unlearning", 16);
        let orders: Vec<Vec<u32>> = (0..3)
            .map(|epoch| source.clone().into_epoch(epoch).flat_map(|batch| batch.unwrap().indices).collect())
            .collect();
        assert_eq!(json!(orders), golden["orders"], "what the program of the reference takes for the orders");
    });
    let (model, accuracies) = unlearned(&defense, &backdoored("reference"));
    assert_close(&model.state, &tiny::model_in("rnp", "batches.3").state, 1e-5);
    assert_same(&accuracies, &golden["accuracies"]);
}

#[test]
fn masks_are_pytorchs_after_each_epoch_of_recovering_from_the_same_unlearned_network() {
    for variant in ["reference", "paper"] {
        let golden = tiny::golden_json("channel_pruning.json")["rnp"][variant]["masks"].clone();
        let golden: Vec<Vec<Vec<f64>>> = serde_json::from_value(golden).unwrap();
        let unlearned = tiny::model_in("rnp", &format!("{variant}.all"));
        assert_eq!(golden.len(), 6);
        for (epoch, expected) in golden.iter().enumerate() {
            let defense = defense(with(own(variant), "recovering_epochs", epoch + 1));
            let masks = in_context(&mut NoObserver, |context| {
                defense.recover(&unlearned, tiny::clean().images(), context, &mut Vec::new()).unwrap().0
            });
            assert_eq!(masks.layers.len(), expected.len());
            for ((norm, found), expected) in masks.layers.iter().zip(expected) {
                for (found, expected) in found.iter().zip(expected) {
                    // Four decimals of numbers that differ by rounding.
                    let close = (found - expected).abs() < 0.5e-4 + 1e-5;
                    assert!(close, "{variant} {epoch} {norm}: {found}, not {expected}");
                }
            }
        }
        let moving = golden[5].iter().flatten().filter(|mask| (0.0..1.0).contains(*mask) && **mask > 0.0);
        assert!(moving.count() >= 8, "{variant}: half of the masks are at neither end");
    }
}

#[test]
fn the_channels_that_pytorch_prunes_are_pruned_for_both_variants() {
    for variant in ["reference", "paper"] {
        let golden = tiny::golden_json("channel_pruning.json")["rnp"][variant]["pruned"].clone();
        let pruned: Vec<Vec<usize>> = serde_json::from_value(golden).unwrap();
        assert!(pruned.iter().any(|channels| !channels.is_empty()));
        let repaired = in_context(&mut NoObserver, |context| {
            defense(own(variant)).repair(&backdoored(variant), &tiny::clean(), context).unwrap()
        });
        for (norm, expected) in ["bn1", "bn2"].into_iter().zip(&pruned) {
            let changed = repaired.changed.iter().filter(|change| change.layer == norm);
            assert_eq!(changed.map(|change| change.neuron).collect::<Vec<_>>(), *expected, "{variant} {norm}");
        }
    }
}

#[test]
fn only_the_variant_paper_shortens_long_gradients() {
    let batch = in_context(&mut NoObserver, |context| {
        context.plain(tiny::clean().images(), 24).into_epoch(0).next().unwrap().unwrap()
    });
    let golden = tiny::golden_json("channel_pruning.json")["rnp"]["paper"]["gradient_norms"][0].as_f64().unwrap();
    let plain = CrossEntropyStep { loss: LossOptions::ascent(), mode: Mode::Train };
    let norm = |model: &Model, largest_norm| {
        Ascent { plain, largest_norm }.compute(model, &batch).unwrap().gradients.global_norm().unwrap()
    };
    let (long, short) = (backdoored("paper"), backdoored("reference"));
    assert!((norm(&long, f64::INFINITY) - golden).abs() < 1e-5 * golden);
    assert!((norm(&long, LARGEST_NORM) - 20.0).abs() < 1e-4);
    assert_eq!(norm(&short, LARGEST_NORM), norm(&short, f64::INFINITY));
}

#[test]
fn a_repair_prunes_the_original_network_and_records_its_stages() {
    let repaired = in_context(&mut NoObserver, |context| {
        defense(own("reference")).repair(&backdoored("reference"), &tiny::clean(), context).unwrap()
    });
    let original = backdoored("reference");
    for (name, entry) in original.state.entries() {
        if !name.ends_with("bn1.weight") && !name.ends_with("bn2.weight") {
            let text = |tensor: &tsbd_tensor::Tensor| format!("{}", tensor.flatten_all().unwrap());
            assert_eq!(text(repaired.model.state.get(name).unwrap()), text(&entry.tensor), "{name}");
        }
    }
    let facts = &repaired.facts;
    assert_eq!((&facts["threshold"], &facts["images_used"]), (&json!(0.7), &json!(24)));
    assert_eq!((facts["unlearning_reached"].as_bool(), facts["unlearning_epochs"].as_u64()), (Some(true), Some(8)));
    assert_eq!((facts["selection"].as_str(), facts["variant"].as_str()), (Some("fixed"), Some("reference")));
}

#[test]
fn a_fifth_of_the_usual_subset_is_the_draw_that_is_published_with_one_per_cent() {
    for (train, clean_count, published) in [(50_000, 2_500, 500), (39_209, 1_960, 392), (100_000, 5_000, 1_000)] {
        let defense = Rnp::new(DefenseCommon::default(), Parameters::default()).unwrap();
        assert_eq!(defense.used(clean_count), published);
        let draw = |count| PythonRandom::new(0).sample(train, count).unwrap();
        assert_eq!(draw(clean_count as u32)[..published], draw(published as u32)[..]);
    }
}

#[test]
fn held_out_images_are_not_used_and_too_few_are_refused() {
    let mut with = own("reference");
    with["selection"] = json!("validation");
    with["validation_share"] = json!(0.5);
    with["clean_share"] = json!(0.5);
    let repaired = in_context(&mut NoObserver, |context| {
        context.evaluate = &|_| unreachable!("the test sets were measured");
        defense(with.clone()).repair(&backdoored("reference"), &tiny::clean(), context).unwrap()
    });
    assert_eq!(repaired.facts["images_used"], 12, "all that are not held out");
    let pruning = repaired.trace.iter().filter(|point| point.stage == "pruning");
    assert_eq!(pruning.count(), 19);
    let check = |own| defense(own).check(tiny::architecture().as_ref(), &tiny::facts());
    assert!(check(with.clone()).is_ok());
    with["validation_share"] = json!(0.2);
    assert_eq!(check(with.clone()).unwrap_err().field, "validation_share");
    with["validation_share"] = json!(0.6);
    let error = (RNP.configure)(&DefenseCommon::default(), with).unwrap_err();
    assert_eq!((error.field.as_str(), error.way_out.as_str()), ("clean_share", "give at most 0.4, or hold out fewer"));
    assert_eq!(check(json!({"clean_share": 0.1})).unwrap_err().field, "clean_share");
}

#[test]
fn parameters_are_canonical_and_wrong_ones_are_refused_by_name() {
    let parameters = (RNP.configure)(&DefenseCommon::default(), json!({})).unwrap().parameters();
    let expected = json!({
        "clean_ratio": 0.05, "batch_size": 256, "selection": "fixed", "variant": "reference", "clean_share": 0.2,
        "validation_share": 0.2, "threshold": 0.7, "tolerance": 0.1, "unlearning_learning_rate": 0.01,
        "unlearning_milestones": [10, 20], "unlearning_weight_decay": 5e-4, "unlearning_epochs": 20,
        "unlearning_accuracy": 0.2, "recovering_learning_rate": 0.2, "recovering_epochs": 20, "momentum": 0.9,
        "alpha": 0.2,
    });
    assert_eq!(parameters, expected);
    assert_eq!(RNP.from_parameters(&parameters).unwrap().parameters(), parameters);
    for (field, value) in [
        ("clean_share", json!(0.0)),
        ("validation_share", json!(1.0)),
        ("threshold", json!(1.5)),
        ("unlearning_epochs", json!(0)),
        ("recovering_epochs", json!(0)),
        ("recovering_learning_rate", json!(0.0)),
        ("unlearning_accuracy", json!(-0.1)),
        ("alpha", json!(0.0)),
        ("ratio", json!(0.01)),
    ] {
        let error = (RNP.configure)(&DefenseCommon::default(), json!({field: value})).unwrap_err();
        assert_eq!(error.field, field);
    }
}
