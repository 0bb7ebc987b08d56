use serde_json::json;
use tsbd_nn::Module;

use super::*;
use crate::NoObserver;
use crate::pruning::Channel;
use crate::tiny::{self, in_context};

fn golden(variant: &str) -> Value {
    tiny::golden_json("channel_pruning.json")["clp"][variant].clone()
}

fn repaired(own: Value) -> Repaired {
    let defense = (CLP.configure)(&tiny::common(24), own).unwrap();
    in_context(&mut NoObserver, |context| defense.repair(&tiny::model("backdoored"), &tiny::clean(), context)).unwrap()
}

#[test]
fn channel_bounds_are_pytorchs_singular_values_for_both_pairings() {
    let (reference, paper) = (golden("reference"), golden("paper"));
    assert_ne!(reference["bounds"][1], paper["bounds"][1], "the shortcut stands between conv2 and bn2");
    for (variant, golden) in [(Variant::Reference, reference), (Variant::Paper, paper)] {
        let bounds = channel_bounds(&tiny::model("backdoored"), variant).unwrap();
        let expected: Vec<Vec<f64>> = serde_json::from_value(golden["bounds"].clone()).unwrap();
        assert_eq!(bounds.layers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["bn1", "bn2"]);
        for ((_, found), expected) in bounds.layers.iter().zip(&expected) {
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-12 * expected, "{found}, not {expected}");
            }
        }
    }
}

#[test]
fn the_pruned_channels_are_pytorchs_for_three_numbers_of_deviations() {
    for variant in ["reference", "paper"] {
        for (deviations, channels) in golden(variant)["pruned"].as_object().unwrap() {
            let channels: Vec<Vec<usize>> = serde_json::from_value(channels.clone()).unwrap();
            let deviations: f64 = deviations.parse().unwrap();
            let repaired = repaired(json!({"variant": variant, "deviations": deviations}));
            for (norm, expected) in ["bn1", "bn2"].into_iter().zip(channels) {
                let changed = repaired.changed.iter().filter(|change| change.layer == norm);
                assert_eq!(changed.map(|change| change.neuron).collect::<Vec<_>>(), expected, "{norm}, {deviations}");
                for tensor in ["weight", "bias"] {
                    let name = format!("{norm}.{tensor}");
                    let values = repaired.model.state.get(&name).unwrap().to_vec1::<f32>().unwrap();
                    let zeros: Vec<usize> = (0..values.len()).filter(|channel| values[*channel] == 0.0).collect();
                    assert_eq!(zeros, expected, "{name}");
                }
            }
        }
    }
}

/// A network in which one channel of each batch norm stands out, as `tools/reference/channel_pruning.py` makes it: of 4
/// channels none can be further than 1.5 deviations from the mean, of 12 none further than 3.18.
#[test]
fn with_a_channel_that_stands_out_the_pruned_channels_are_pytorchs_on_both_sides_of_three_deviations() {
    let golden = tiny::golden_json("channel_pruning.json")["clp_outstanding"].clone();
    let mut model = tiny::model("backdoored");
    for (norm, channel) in [("bn1", 2), ("bn2", 5)] {
        let name = format!("{norm}.weight");
        let mut values = model.state.get(&name).unwrap().to_vec1::<f32>().unwrap();
        values[channel] *= 40.0;
        let weight = tsbd_tensor::Tensor::new(values, &tsbd_tensor::Device::Cpu).unwrap();
        model.state.set(&name, &weight).unwrap();
    }
    let mut seen = std::collections::BTreeSet::new();
    for (deviations, channels) in golden.as_object().unwrap() {
        let expected: Vec<Vec<usize>> = serde_json::from_value(channels.clone()).unwrap();
        let deviations: f64 = deviations.parse().unwrap();
        let defense = (CLP.configure)(&tiny::common(24), json!({"deviations": deviations})).unwrap();
        let repaired = in_context(&mut NoObserver, |context| defense.repair(&model, &tiny::clean(), context).unwrap());
        for (norm, expected) in ["bn1", "bn2"].into_iter().zip(&expected) {
            let changed = repaired.changed.iter().filter(|change| change.layer == norm);
            assert_eq!(changed.map(|change| change.neuron).collect::<Vec<_>>(), *expected, "{norm}, {deviations}");
        }
        seen.insert(expected);
    }
    // Both, the second alone, and none: each is among the expectations.
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[test]
fn in_preact_resnet_three_norms_are_paired_with_shortcuts_unless_the_variant_is_the_papers() {
    let network = tsbd_models::preact_resnet18(2, 10);
    let all = |variant| {
        let pairs = pairs(network.as_ref(), variant).unwrap().into_iter();
        pairs.map(|pair| (pair.norm.to_owned(), pair.convolution.to_owned())).collect::<Vec<_>>()
    };
    let (reference, paper) = (all(Variant::Reference), all(Variant::Paper));
    assert_eq!((reference.len(), paper.len()), (16, 16));
    assert_eq!(reference[0], ("layer1.0.bn1".to_owned(), "conv1".to_owned()));
    let differing = reference.iter().zip(&paper).filter(|(a, b)| a != b);
    let differing: Vec<_> = differing.map(|(a, b)| (a.0.as_str(), a.1.as_str(), b.1.as_str())).collect();
    let expected = [
        ("layer2.1.bn1", "layer2.0.shortcut.0", "layer2.0.conv2"),
        ("layer3.1.bn1", "layer3.0.shortcut.0", "layer3.0.conv2"),
        ("layer4.1.bn1", "layer4.0.shortcut.0", "layer4.0.conv2"),
    ];
    assert_eq!(differing, expected);
}

#[test]
fn u_is_3_and_5_for_large_images_unless_it_is_given() {
    let of = |deviations| {
        let parameters = Parameters { deviations, ..Parameters::default() };
        [8, 32, 64].map(|size| parameters.deviations(size))
    };
    assert_eq!((of(None), of(Some(2.0))), ([3.0, 3.0, 5.0], [2.0; 3]));
    assert_eq!(repaired(json!({})).facts["threshold"], 3.0);
}

#[test]
fn a_sweep_goes_from_10_deviations_down_to_0_and_takes_what_it_measured() {
    // The test sets are measured as the same whatever is pruned: no candidate lowers the success rate.
    let oracle = repaired(json!({"selection": "oracle"}));
    let swept: Vec<f64> = oracle.trace.iter().map(|point| point.metrics["threshold"]).collect();
    assert_eq!((swept.len(), swept[0], swept[1], swept[20]), (21, 10.0, 9.5, 0.0));
    assert!(oracle.changed.is_empty() && oracle.facts["threshold"].is_null());
    assert_eq!(oracle.model.state.digest().unwrap(), tiny::model("backdoored").state.digest().unwrap());
    let validated = repaired(json!({"selection": "validation"}));
    let chosen = validated.facts["threshold"].as_f64().unwrap();
    let accuracy = |point: &crate::TracePoint| point.metrics["selection_accuracy"];
    let kept = validated.trace.iter().rfind(|point| accuracy(point) > 0.9).unwrap();
    assert_eq!((chosen, validated.facts["selection"].as_str()), (kept.metrics["threshold"], Some("validation")));
    assert_eq!(validated.facts["channels_pruned"], validated.changed.len());
}

#[test]
fn a_running_variance_of_0_and_a_layer_of_one_channel_do_not_end_in_nan() {
    let mut model = tiny::model("backdoored");
    let zeros = model.state.get("bn1.running_var").unwrap().zeros_like().unwrap();
    model.state.set("bn1.running_var", &zeros).unwrap();
    let bounds = channel_bounds(&model, Variant::Reference).unwrap();
    assert!(bounds.layers.iter().all(|(_, bounds)| bounds.iter().all(|bound| bound.is_finite())));
    let alone = ChannelScores { layers: vec![("bn".to_owned(), vec![2.0])] };
    assert_eq!(candidate(&alone, 0.0).channels, []);
    let two = ChannelScores { layers: vec![("bn".to_owned(), vec![2.0, 1.0])] };
    assert_eq!(candidate(&two, 0.5).channels, [Channel { norm: "bn".to_owned(), channel: 0 }]);
}

#[test]
fn networks_without_batch_norms_are_refused_with_a_way_out_by_every_defense_that_prunes_them() {
    let linear = Module::new("linear", Layer::Linear { in_features: 3, out_features: 3 });
    let norm = Module::new("bn", Layer::BatchNorm2d { channels: 3 });
    let check = |entry: &DefenseEntry, modules: &[&Module]| {
        let modules = modules.iter().copied().cloned().collect();
        let architecture = tsbd_testing::network(modules, 3, |_, _| unreachable!("a network that is refused"));
        let own = if entry.name == "clp" { json!({}) } else { json!({"selection": "fixed"}) };
        let facts = DatasetFacts::balanced(3, 3_000, 300, 32);
        (entry.configure)(&DefenseCommon::default(), own).unwrap().check(architecture.as_ref(), &facts)
    };
    for entry in [&CLP, &crate::anp::ANP, &crate::rnp::RNP] {
        let message = check(entry, &[&linear]).unwrap_err().to_string();
        assert!(message.contains("small has none") && message.contains(entry.name), "{message}");
        assert!(message.contains("another defense"), "{message}");
    }
    let message = check(&CLP, &[&norm, &linear]).unwrap_err().to_string();
    assert!(message.contains("no convolution of 3 channels stands before bn"), "{message}");
    assert!(check(&crate::anp::ANP, &[&norm, &linear]).is_ok());
}

#[test]
fn parameters_are_canonical_and_wrong_ones_are_refused_by_name() {
    let parameters = (CLP.configure)(&DefenseCommon::default(), json!({})).unwrap().parameters();
    let expected = json!({
        "clean_ratio": 0.05, "batch_size": 256, "selection": "fixed", "variant": "reference", "deviations": null,
        "tolerance": 0.1,
    });
    assert_eq!(parameters, expected);
    for (field, value) in [("deviations", json!(-1.0)), ("tolerance", json!(0.0)), ("u", json!(3.0))] {
        let error = (CLP.configure)(&DefenseCommon::default(), json!({field: value})).unwrap_err();
        assert_eq!(error.field, field);
    }
    for selection in ["validation", "oracle"] {
        let own = json!({"selection": selection, "deviations": 2.0});
        let error = (CLP.configure)(&DefenseCommon::default(), own).unwrap_err();
        assert_eq!((error.field.as_str(), error.value.as_str()), ("deviations", "2"), "u is chosen, not given");
    }
    let tolerant = (CLP.configure)(&DefenseCommon::default(), json!({"tolerance": 0.5})).unwrap();
    assert_eq!(tolerant.parameters(), expected, "nothing is tolerated where nothing is chosen");
}
