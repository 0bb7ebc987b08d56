use std::ops::ControlFlow;

use serde_json::json;

use super::*;
use crate::tiny::{self, assert_close, in_context};
use crate::{DefenseObserver, NoObserver, Progress};

fn defense(own: Value) -> Box<dyn Defense> {
    (FP.configure)(&tiny::common(24), own).unwrap()
}

fn repaired(own: Value) -> Repaired {
    let defense = defense(own);
    in_context(&mut NoObserver, |context| defense.repair(&tiny::model("backdoored"), &tiny::clean(), context)).unwrap()
}

/// The features whose column of the last layer's weight is 0.
fn zero_columns(model: &Model) -> Vec<usize> {
    let rows = model.state.get("linear.weight").unwrap().to_vec2::<f32>().unwrap();
    (0..rows[0].len()).filter(|column| rows.iter().all(|row| row[*column] == 0.0)).collect()
}

fn golden(name: &str) -> Vec<usize> {
    tiny::numbers(name).into_iter().map(|number| number as usize).collect()
}

#[test]
fn features_are_ordered_by_their_mean_as_in_pytorch() {
    let order = in_context(&mut NoObserver, |context| {
        let source = context.augmented(tiny::clean().images(), "test", 5);
        activation_order(&tiny::model("backdoored"), &source, &mut |_| Ok(())).unwrap()
    });
    assert_eq!(order, golden("feature_order"));
}

#[test]
fn pruning_with_the_test_set_takes_the_features_and_accuracies_that_pytorch_takes() {
    let repaired = repaired(json!({"selection": "oracle", "epochs": 1}));
    let mut expected = golden("pruned");
    expected.sort_unstable();
    let changed: Vec<usize> = repaired.changed.iter().map(|neuron| neuron.neuron).collect();
    assert_eq!(changed, expected);
    let accuracies: Vec<f64> =
        repaired.trace.iter().filter_map(|point| point.metrics.get("selection_accuracy").copied()).collect();
    for (found, expected) in accuracies.iter().zip(tiny::numbers("pruning_accuracies")) {
        assert!((found - expected).abs() < 1e-6, "{accuracies:?}");
    }
    assert_eq!(accuracies.len(), tiny::numbers("pruning_accuracies").len());
}

#[test]
fn steps_of_several_features_prune_what_pytorch_prunes_for_both_variants() {
    for variant in ["reference", "paper"] {
        let golden = tiny::golden_in("fp")[variant].clone();
        let golden = |name: &str| -> Vec<f64> { serde_json::from_value(golden[name].clone()).unwrap() };
        let repaired = repaired(json!({"variant": variant, "step": 0.25, "selection": "oracle", "epochs": 1}));
        let found = |name: &str| -> Vec<f64> {
            repaired.trace.iter().filter_map(|point| point.metrics.get(name).copied()).collect()
        };
        assert_eq!(found("features_pruned"), golden("counts"), "{variant}");
        let (found, expected) = (found("selection_accuracy"), golden("accuracies"));
        assert!(found.len() == expected.len() && found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6));
        let mut pruned: Vec<usize> = golden("pruned").into_iter().map(|feature| feature as usize).collect();
        pruned.sort_unstable();
        assert_eq!(zero_columns(&repaired.model), pruned, "{variant}");
        assert_eq!(repaired.changed.iter().map(|neuron| neuron.neuron).collect::<Vec<_>>(), pruned, "{variant}");
    }
}

#[test]
fn fine_tuning_keeps_the_mask_and_ends_where_pytorchs_pruned_network_ends() {
    let repaired = repaired(json!({"selection": "oracle", "epochs": 5}));
    let mut expected = golden("pruned");
    expected.sort_unstable();
    assert_eq!(zero_columns(&repaired.model), expected);
    assert_close(&repaired.model.state, &tiny::model("fp").state, 2e-6);
}

#[test]
fn the_paper_variant_keeps_the_last_network_within_the_tolerance() {
    let reference = repaired(json!({"selection": "oracle", "epochs": 1}));
    let paper = repaired(json!({"selection": "oracle", "variant": "paper", "epochs": 1}));
    let accuracy = |repaired: &Repaired| repaired.facts["accuracy_after_pruning"].as_f64().unwrap();
    let first = reference.facts["accuracy_before_pruning"].as_f64().unwrap();
    assert!(accuracy(&reference) <= 0.9 * first, "the reference fine-tunes the network that lost too much");
    assert!(accuracy(&paper) > 0.9 * first);
    assert_eq!(paper.changed.len() + 1, reference.changed.len());
}

#[test]
fn selection_on_held_out_images_never_reads_the_test_set() {
    let defense = defense(json!({"epochs": 1, "validation_share": 0.5}));
    let repaired = in_context(&mut NoObserver, |context| {
        struct Unreadable;
        impl tsbd_data::ImageSource for Unreadable {
            fn len(&self) -> usize {
                unreachable!("the test set was read")
            }
            fn image(&self, _: usize) -> &[u8] {
                unreachable!("the test set was read")
            }
            fn label(&self, _: usize) -> u32 {
                unreachable!("the test set was read")
            }
            fn height(&self) -> usize {
                unreachable!("the test set was read")
            }
            fn width(&self) -> usize {
                unreachable!("the test set was read")
            }
        }
        context.clean_test = std::sync::Arc::new(Unreadable);
        context.evaluate = &|_| unreachable!("the test sets were measured");
        defense.repair(&tiny::model("backdoored"), &tiny::clean(), context)
    });
    let facts = repaired.unwrap().facts;
    assert_eq!((facts["selection"].as_str(), facts["selection_images"].as_u64()), (Some("validation"), Some(12)));
}

#[test]
fn too_few_images_to_hold_out_and_unknown_selections_are_refused() {
    let check = |own| defense(own).check(tiny::architecture().as_ref(), &tiny::facts());
    assert_eq!(check(json!({})).unwrap_err().field, "validation_share");
    assert!(check(json!({"validation_share": 0.5})).is_ok() && check(json!({"selection": "oracle"})).is_ok());
    let error = (FP.configure)(&tiny::common(24), json!({"selection": "test"})).unwrap_err();
    assert_eq!(error.field, "selection");
}

#[test]
fn parameters_are_canonical_and_configure_the_same_defense_again() {
    let parameters = defense(json!({"tolerance": 0.05})).parameters();
    assert_eq!((&parameters["selection"], &parameters["tolerance"]), (&json!("validation"), &json!(0.05)));
    assert_eq!(FP.from_parameters(&parameters).unwrap().parameters(), parameters);
}

/// The order of the last convolution's twelve filters by the weight change that PyTorch's unlearning makes.
fn golden_change_order() -> Vec<usize> {
    let change = &tiny::numbers("weight_change")[4..];
    let mut order: Vec<usize> = (0..change.len()).collect();
    order.sort_by(|a, b| change[*b].total_cmp(&change[*a]));
    order
}

#[test]
fn in_the_order_of_weight_changes_the_features_that_moved_most_are_pruned() {
    let own = json!({
        "order": "nwc", "selection": "oracle", "epochs": 1, "unlearning_learning_rate": 0.05, "unlearning_accuracy": 0.8,
    });
    let defense = (FP.configure)(&tiny::common(16), own).unwrap();
    let backdoored = tiny::model("backdoored");
    let whole = in_context(&mut NoObserver, |context| defense.repair(&backdoored, &tiny::clean(), context)).unwrap();
    let changed: Vec<usize> = whole.changed.iter().map(|neuron| neuron.neuron).collect();
    let mut expected = golden_change_order()[..changed.len()].to_vec();
    expected.sort_unstable();
    assert!(!changed.is_empty());
    assert_eq!(changed, expected);
    assert_ne!(golden_change_order(), golden("feature_order"));
    assert_eq!((whole.facts["order"].as_str(), whole.trace[0].stage.as_str()), (Some("nwc"), "unlearning"));

    // From a model that was unlearned before, the same without unlearning it again.
    let unlearned = in_context(&mut NoObserver, |context| {
        context.unlearn(&defense.unlearning().unwrap(), &backdoored, &tiny::clean(), &mut Vec::new()).unwrap()
    });
    let swept = in_context(&mut NoObserver, |context| {
        context.unlearned = Some(&unlearned);
        defense.repair(&backdoored, &tiny::clean(), context).unwrap()
    });
    assert_eq!(swept.model.state.digest().unwrap(), whole.model.state.digest().unwrap());
    assert_eq!(swept.trace[0].stage, "pruning");
}

#[test]
fn every_pass_over_images_is_announced_and_can_be_stopped_and_pruning_does_not_last_as_long_as_the_unlearning_before_it()
 {
    /// Notes the stages that begin, and stops in the first step of one of them.
    #[derive(Default)]
    struct Stages {
        begun: Vec<String>,
        stopped_in: &'static str,
    }
    impl tsbd_nn::Keeper for Stages {}
    impl DefenseObserver for Stages {
        fn stage(&mut self, stage: &str, steps: usize) {
            assert!(steps > 0);
            self.begun.push(stage.to_owned());
        }
        fn progress(&mut self, progress: &Progress) -> ControlFlow<()> {
            if progress.stage == self.stopped_in { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }
    let run = |own: Value, stopped_in: &'static str| {
        let mut stages = Stages { stopped_in, ..Stages::default() };
        let repaired = in_context(&mut stages, |context| {
            let common = tiny::common(8);
            (FP.configure)(&common, own).unwrap().repair(&tiny::model("backdoored"), &tiny::clean(), context)
        });
        (repaired, stages.begun)
    };
    let own = || json!({"selection": "oracle", "epochs": 1});
    assert_eq!(run(own(), "").1, ["activations", "features", "pruning", "fine-tuning"]);
    for stage in ["activations", "features"] {
        let (stopped, begun) = run(own(), stage);
        assert!(matches!(stopped, Err(Error::Stopped { stage: found }) if found == stage));
        assert_eq!(begun.last().map(String::as_str), Some(stage));
    }
    let nwc = json!({"selection": "oracle", "epochs": 1, "order": "nwc", "unlearning_epochs": 40, "unlearning_accuracy": 0.0});
    let (repaired, begun) = run(nwc, "");
    assert_eq!(begun, ["unlearning", "features", "pruning", "fine-tuning"]);
    let facts = repaired.unwrap().facts;
    let [pruning, unlearning] =
        [&facts["pruning_seconds"], &facts["unlearning"]["seconds"]].map(|of| of.as_f64().unwrap());
    assert!(pruning < unlearning, "{pruning} seconds, and {unlearning} of unlearning");
}

#[test]
fn the_order_of_activations_has_no_unlearning_whatever_is_written_about_it() {
    let plain = defense(json!({}));
    assert_eq!(plain.unlearning(), None);
    let written = defense(json!({"order": "activation", "unlearning_learning_rate": 0.1, "unlearning_epochs": 3}));
    assert_eq!(written.parameters(), plain.parameters());
    let nwc = defense(json!({"order": "nwc", "unlearning_epochs": 3}));
    assert_eq!(nwc.parameters()["unlearning_accuracy"], json!(0.1));
    let of_tsbd = (tsbd::TSBD.configure)(&tiny::common(24), json!({"unlearning_epochs": 3})).unwrap();
    assert_eq!(nwc.unlearning(), of_tsbd.unlearning(), "both start from the same unlearned model");
    let error = (FP.configure)(&tiny::common(24), json!({"order": "nwc", "unlearning_momentum": -1.0})).unwrap_err();
    assert_eq!(error.field, "unlearning_momentum");
}

#[test]
fn weight_changes_order_the_features_of_a_network_only_where_each_comes_from_one_filter() {
    let check = |architecture: &dyn Architecture| {
        let own = json!({"order": "nwc", "selection": "oracle"});
        defense(own).check(architecture, &tiny::facts())
    };
    assert!(check(tiny::architecture().as_ref()).is_ok());
    let mut modules = tiny::architecture().modules().to_vec();
    if let Some(last) = modules.last_mut() {
        last.layer = Layer::Linear { in_features: 48, out_features: 3 };
    }
    let flattened = tsbd_testing::network(modules, 3, |_, _| unreachable!("only its modules are looked at"));
    let error = check(flattened.as_ref()).unwrap_err();
    assert_eq!((error.field.as_str(), error.value.as_str()), ("order", "\"nwc\""));
}
