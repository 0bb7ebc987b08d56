use std::ops::ControlFlow;

use serde_json::json;
use tsbd_analysis::UnlearnedModel;
use tsbd_attack::Evaluation;
use tsbd_nn::Architecture;

use super::parameters::{FineTuning, GradientNorm, Reinitialisation};
use super::*;
use crate::tiny::{self, assert_close, in_context};
use crate::{DefenseObserver, NoObserver, Progress};

/// The numbers of `tools/reference/tsbd.py`.
fn parameters() -> Parameters {
    Parameters {
        neuron_ratio: 0.5,
        unlearning_learning_rate: 0.05,
        unlearning_accuracy: 0.8,
        unlearning_epochs: 100,
        fine_tuning_passes: 3,
        ..Parameters::default()
    }
}

fn unlearned(parameters: &Parameters) -> (UnlearnedModel, Vec<TracePoint>) {
    let mut trace = Vec::new();
    let unlearning = parameters.unlearning(&tiny::common(16));
    let unlearned = in_context(&mut NoObserver, |context| {
        context.unlearn(&unlearning, &tiny::model("backdoored"), &tiny::clean(), &mut trace)
    });
    (unlearned.unwrap(), trace)
}

fn fine_tune(model: &mut Model, batch_size: usize, parameters: &Parameters, context: &mut Context) {
    let (images, common, trace) = (tiny::clean().images(), tiny::common(batch_size), &mut Vec::new());
    activeness::fine_tune(model, images, &common, parameters, true, context, trace).unwrap();
}

fn golden_change() -> WeightChange {
    let architecture = tiny::architecture();
    let (before, after) = (tiny::model("backdoored"), tiny::model("unlearned"));
    weight_change(architecture.as_ref(), &before.state, &after.state).unwrap()
}

fn select(change: &WeightChange, neuron_ratio: f64, round_changes: bool) -> Vec<Neuron> {
    reinitialisation::select(&change.neurons, &change.of_neurons(), neuron_ratio, round_changes)
}

#[test]
fn unlearning_stops_where_pytorch_stops_and_leaves_the_same_model() {
    let (unlearned, trace) = unlearned(&parameters());
    let expected = tiny::numbers("unlearning_accuracies");
    assert_eq!(unlearned.rates.len(), expected.len());
    for (epoch, (found, expected)) in unlearned.rates.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() < 1e-9, "epoch {epoch}");
        assert!((trace[epoch].metrics["clean_accuracy"] - expected).abs() < 1e-9);
    }
    assert!(unlearned.reached);
    assert_close(&unlearned.model.state, &tiny::model("unlearned").state, 1e-4);
}

#[test]
fn unlearning_that_never_gets_there_says_so() {
    let few = Parameters { unlearning_epochs: 2, ..parameters() };
    let (unlearned, _) = unlearned(&few);
    assert!(!unlearned.reached);
    assert_eq!(unlearned.rates.len(), 2);
}

#[test]
fn neuron_weight_changes_are_pytorchs() {
    let change = golden_change();
    let expected = tiny::numbers("weight_change");
    assert_eq!((change.neurons.len(), expected.len()), (16, 16), "the shortcut's filters are no neurons");
    for (neuron, (found, expected)) in change.of_neurons().values().zip(expected).enumerate() {
        assert!((found - expected).abs() < 1e-5 * expected, "neuron {neuron}: {found}, not {expected}");
    }
}

#[test]
fn the_weights_set_to_zero_are_pytorchs_for_three_pairs_of_ratios() {
    let change = golden_change();
    let backdoored = tiny::model("backdoored");
    let zeroings = tiny::golden()["zeroings"].as_array().unwrap().clone();
    assert_eq!(zeroings.len(), 3);
    for (number, zeroing) in zeroings.iter().enumerate() {
        let [n, m] = ["neuron_ratio", "weight_ratio"].map(|name| zeroing[name].as_f64().unwrap());
        let selected = select(&change, n, true);
        let found = reinitialisation::zero(&backdoored.state, &change, &selected, m, Reinitialisation::V3).unwrap();
        assert_eq!(found.zeroed() as u64, zeroing["zeroed"].as_u64().unwrap());
        for name in ["conv1.weight", "conv2.weight"] {
            let weights: Vec<f32> = found.state.filter_rows(name).unwrap().concat();
            assert_eq!(weights, tiny::weights(&format!("zeroed.{number}"), name), "{name} of pair {number}");
        }
        for (name, entry) in backdoored.state.entries() {
            if !["conv1.weight", "conv2.weight"].contains(&name) {
                let same = found.state.get(name).unwrap().flatten_all().unwrap();
                let text = |tensor: &tsbd_tensor::Tensor| format!("{tensor}");
                assert_eq!(text(&same), text(&entry.tensor.flatten_all().unwrap()), "{name} is not touched");
            }
        }
    }
}

#[test]
fn v1_zeroes_whole_neurons_and_v2_the_same_share_of_each() {
    let change = golden_change();
    let backdoored = tiny::model("backdoored");
    let selected = select(&change, 0.5, true);
    let zero = |scheme| reinitialisation::zero(&backdoored.state, &change, &selected, 0.7, scheme).unwrap();
    let sizes = |neuron: &Neuron| change.neurons.layers()[neuron.layer].weights_per_filter;
    assert_eq!(zero(Reinitialisation::V1).selected.len(), 8);
    for (neuron, zeroed) in zero(Reinitialisation::V1).selected {
        assert_eq!(zeroed, sizes(&neuron));
    }
    for (neuron, zeroed) in zero(Reinitialisation::V2).selected {
        assert_eq!(zeroed, (sizes(&neuron) as f64 * 0.7) as usize);
    }
    let shares: Vec<usize> = zero(Reinitialisation::V3).selected.iter().map(|(_, zeroed)| *zeroed).collect();
    assert!(shares.iter().any(|zeroed| *zeroed != shares[0]), "V3 takes more of some neurons than of others");
}

#[test]
fn one_pass_of_fine_tuning_is_pytorchs_for_both_norms() {
    for (gradient_norm, name) in [(GradientNorm::PerTensor, "per-tensor"), (GradientNorm::Global, "global")] {
        let parameters = Parameters { gradient_norm, fine_tuning_passes: 1, ..parameters() };
        let mut model = tiny::model("backdoored");
        in_context(&mut NoObserver, |context| {
            fine_tune(&mut model, 16, &parameters, context);
        });
        assert_close(&model.state, &tiny::model(&format!("step.{name}")).state, 1e-6);
    }
}

#[test]
fn the_two_norms_and_plain_fine_tuning_are_three_different_updates() {
    let after = |fine_tuning, gradient_norm| {
        let parameters = Parameters { gradient_norm, fine_tuning, fine_tuning_passes: 1, ..parameters() };
        let mut model = tiny::model("backdoored");
        in_context(&mut NoObserver, |context| {
            fine_tune(&mut model, 16, &parameters, context);
        });
        model.state.digest().unwrap()
    };
    let aware = after(FineTuning::ActivenessAware, GradientNorm::PerTensor);
    let vanilla = after(FineTuning::Vanilla, GradientNorm::PerTensor);
    let none = after(FineTuning::None, GradientNorm::PerTensor);
    assert_ne!(aware, after(FineTuning::ActivenessAware, GradientNorm::Global));
    assert_ne!(aware, vanilla);
    assert_eq!(vanilla, after(FineTuning::Vanilla, GradientNorm::Global));
    assert_eq!(none, tiny::model("backdoored").state.digest().unwrap());
}

#[test]
fn a_tensor_whose_gradient_is_zero_is_not_divided_by_its_norm() {
    // A last layer of zeros lets no gradient through to the layers before it.
    let mut model = tiny::model("backdoored");
    let zeros = model.state.get("linear.weight").unwrap().zeros_like().unwrap();
    model.state.set("linear.weight", &zeros).unwrap();
    let parameters = Parameters { fine_tuning_passes: 1, ..parameters() };
    in_context(&mut NoObserver, |context| {
        fine_tune(&mut model, 24, &parameters, context);
    });
    for (name, tensor) in model.state.parameters() {
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(values.iter().all(|value| value.is_finite()), "{name}");
    }
}

#[test]
fn the_whole_repair_ends_where_pytorch_ends() {
    let defense = Tsbd::new(tiny::common(16), parameters()).unwrap();
    let backdoored = tiny::model("backdoored");
    let before = backdoored.state.digest().unwrap();
    let repaired = in_context(&mut NoObserver, |context| defense.repair(&backdoored, &tiny::clean(), context)).unwrap();
    assert_close(&repaired.model.state, &tiny::model("repaired").state, 2e-4);
    assert_eq!(backdoored.state.digest().unwrap(), before, "the backdoored model is not changed");

    let epochs = tiny::numbers("unlearning_accuracies").len();
    let stages: Vec<&str> = repaired.trace.iter().map(|point| point.stage.as_str()).collect();
    assert_eq!(stages[..epochs], vec!["unlearning"; epochs]);
    assert_eq!(stages[epochs..], ["reinitialisation", "fine-tuning", "fine-tuning", "fine-tuning"]);
    let measured: Vec<bool> = repaired.trace[epochs..].iter().map(|point| point.metrics.contains_key("asr")).collect();
    assert_eq!(measured, [true, true, false, true], "zeroed; first, second and last pass");
    assert_eq!(repaired.facts["neurons_selected"], 8);
    assert_eq!(repaired.facts["unlearning_epochs"], epochs);
    let zeroed: usize = repaired.facts["weights_zeroed"].as_u64().unwrap() as usize;
    assert!(zeroed > 0 && repaired.changed.len() <= 8);
    assert!(repaired.changed.iter().all(|neuron| ["conv1", "conv2"].contains(&neuron.layer.as_str())));
}

#[test]
fn a_sweep_from_one_unlearned_model_gives_what_whole_repairs_give() {
    let backdoored = tiny::model("backdoored");
    let (unlearned, unlearning_trace) = unlearned(&parameters());
    for changed in [
        Parameters { neuron_ratio: 0.2, ..parameters() },
        Parameters { neuron_ratio: 0.9, reinitialisation: Reinitialisation::V1, ..parameters() },
        Parameters { weight_ratio: 0.2, radius: 0.5, alpha: 0.3, ..parameters() },
    ] {
        let defense = Tsbd::new(tiny::common(16), changed).unwrap();
        assert_eq!(defense.unlearning(), Some(parameters().unlearning(&tiny::common(16))));
        let whole =
            in_context(&mut NoObserver, |context| defense.repair(&backdoored, &tiny::clean(), context)).unwrap();
        let swept = in_context(&mut NoObserver, |context| {
            context.unlearned = Some(&unlearned);
            defense.repair(&backdoored, &tiny::clean(), context)
        });
        let swept = swept.unwrap();
        assert_eq!(whole.model.state.digest().unwrap(), swept.model.state.digest().unwrap());
        assert_eq!(whole.trace, [unlearning_trace.clone(), swept.trace].concat());
    }
}

#[test]
fn neurons_are_ordered_by_the_weight_changes_that_came_with_the_unlearned_model() {
    let taken = |unlearned: &UnlearnedModel| {
        let repaired = in_context(&mut NoObserver, |context| {
            context.unlearned = Some(unlearned);
            let defense = Tsbd::new(tiny::common(16), Parameters { weight_ratio: 1.0, ..parameters() }).unwrap();
            defense.repair(&tiny::model("backdoored"), &tiny::clean(), context).unwrap()
        });
        let neurons = repaired.changed.iter().map(|change| (change.layer.clone(), change.neuron));
        neurons.collect::<std::collections::BTreeSet<_>>()
    };
    let (mut unlearned, _) = unlearned(&parameters());
    let usual = taken(&unlearned);
    let opposite = |(name, values): (&str, &[f64])| (name.to_owned(), values.iter().map(|change| -change).collect());
    unlearned.nwc = unlearned.nwc.layers().map(opposite).collect();
    let backwards = taken(&unlearned);
    assert_eq!((usual.len(), backwards.len()), (8, 8));
    assert!(usual.is_disjoint(&backwards), "half of the neurons, and the other half");
}

#[test]
fn what_the_unlearning_depends_on_changes_it_and_nothing_else_does() {
    let of = |parameters: Parameters| parameters.unlearning(&DefenseCommon::default());
    let usual = of(Parameters::default());
    let same = Parameters {
        neuron_ratio: 0.5,
        weight_ratio: 0.5,
        round_changes: false,
        fine_tuning_passes: 3,
        fine_tuning: FineTuning::None,
        ..Parameters::default()
    };
    assert_eq!(of(same), usual);
    assert_ne!(of(Parameters { unlearning_learning_rate: 1.0, ..Parameters::default() }), usual);
    assert_ne!(of(Parameters { unlearning_momentum: 0.5, ..Parameters::default() }), usual);
    assert_ne!(of(Parameters { unlearning_accuracy: 0.5, ..Parameters::default() }), usual);
    assert_ne!(of(Parameters { unlearning_epochs: 5, ..Parameters::default() }), usual);
    assert_ne!(
        Parameters::default().unlearning(&DefenseCommon { clean_ratio: 0.1, ..DefenseCommon::default() }),
        usual
    );
    assert_ne!(Parameters::default().unlearning(&DefenseCommon { batch_size: 1, ..DefenseCommon::default() }), usual);
}

#[test]
fn a_request_to_stop_ends_the_repair_and_names_the_stage() {
    struct StopAfter(usize);
    impl tsbd_nn::Keeper for StopAfter {}
    impl DefenseObserver for StopAfter {
        fn progress(&mut self, progress: &Progress) -> ControlFlow<()> {
            assert!(progress.done <= progress.total && progress.stage == "unlearning");
            if progress.done >= self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }
    let defense = Tsbd::new(tiny::common(16), parameters()).unwrap();
    let stopped =
        in_context(&mut StopAfter(3), |context| defense.repair(&tiny::model("backdoored"), &tiny::clean(), context));
    assert_eq!(stopped.unwrap_err().to_string(), "stopped on request during unlearning, before the repair was done");
}

#[test]
fn a_learning_rate_that_diverges_is_an_error_that_names_it() {
    let wild = Parameters { unlearning_learning_rate: 1e30, unlearning_accuracy: 0.0, ..parameters() };
    let defense = Tsbd::new(tiny::common(16), wild).unwrap();
    let error =
        in_context(&mut NoObserver, |context| defense.repair(&tiny::model("backdoored"), &tiny::clean(), context));
    let message = error.unwrap_err().to_string();
    assert!(message.starts_with("unlearning: ") && message.ends_with("lower `unlearning_learning_rate`"), "{message}");
}

#[test]
fn parameters_are_canonical_and_out_of_range_ones_are_refused_by_name() {
    let configured = (TSBD.configure)(&DefenseCommon::default(), json!({})).unwrap();
    let parameters = configured.parameters();
    assert_eq!(parameters["neuron_ratio"], 0.15);
    assert_eq!(parameters["reinitialisation"], "v3");
    assert_eq!(parameters["gradient_norm"], "per-tensor");
    assert_eq!(parameters["clean_ratio"], 0.05);
    assert_eq!(TSBD.from_parameters(&parameters).unwrap().parameters(), parameters);
    for (field, value) in [
        ("neuron_ratio", json!(0.0)),
        ("weight_ratio", json!(1.5)),
        ("radius", json!(0.0)),
        ("alpha", json!(-0.1)),
        ("fine_tuning_passes", json!(0)),
        ("unlearning_learning_rate", json!(-1.0)),
        ("gradient_norm", json!("l1")),
        ("selection", json!("test")),
        ("validation_share", json!(1.0)),
        ("tolerance", json!(0.0)),
        ("neuron_ration", json!(0.1)),
    ] {
        let error = (TSBD.configure)(&DefenseCommon::default(), json!({field: value})).unwrap_err();
        assert_eq!(error.field, field);
    }
}

#[test]
fn a_ratio_that_selects_no_neuron_is_refused_before_anything_runs() {
    let architecture = tiny::architecture();
    let check = |neuron_ratio| {
        let defense = Tsbd::new(tiny::common(16), Parameters { neuron_ratio, ..parameters() }).unwrap();
        defense.check(architecture.as_ref() as &dyn Architecture, &tiny::facts())
    };
    assert!(check(0.1).is_ok());
    assert_eq!(check(0.05).unwrap_err().field, "neuron_ratio");
}

/// The ratios that select at least one of sixteen neurons.
const SWEPT: [f64; 9] = [0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9];

fn repaired(parameters: Parameters, evaluate: &dyn Fn(&Model) -> Result<Evaluation, tsbd_attack::Error>) -> Repaired {
    let defense = Tsbd::new(tiny::common(16), parameters).unwrap();
    in_context(&mut NoObserver, |context| {
        context.evaluate = evaluate;
        defense.repair(&tiny::model("backdoored"), &tiny::clean(), context).unwrap()
    })
}

fn selecting(selection: ThresholdSelection) -> Parameters {
    Parameters { selection: Some(selection), ..parameters() }
}

fn swept_ratios(repaired: &Repaired) -> Vec<f64> {
    let points = repaired.trace.iter().filter(|point| point.stage == "selection");
    points.map(|point| point.metrics["neuron_ratio"]).collect()
}

#[test]
fn the_test_sets_choose_the_ratio_with_the_lowest_success_rate_and_the_network_is_that_of_a_fixed_ratio() {
    // The network before, then each ratio's: the fourth has the lowest rate but loses too much accuracy.
    let rates = [(0.9, 0.9), (0.9, 0.8), (0.88, 0.3), (0.86, 0.2), (0.7, 0.0), (0.9, 0.9), (0.9, 0.5), (0.9, 0.4)];
    let measured = std::cell::Cell::new(0);
    let oracle = repaired(selecting(ThresholdSelection::Oracle), &|_| {
        let (acc, asr) = rates.get(measured.replace(measured.get() + 1)).copied().unwrap_or((0.2, 0.1));
        Ok(Evaluation { acc, asr: Some(asr), ..Evaluation::default() })
    });
    assert_eq!(swept_ratios(&oracle), SWEPT);
    assert_eq!(measured.get(), 1 + SWEPT.len(), "once before and once for each ratio");
    assert_eq!(
        (oracle.facts["selection"].as_str(), oracle.facts["neuron_ratio"].as_f64()),
        (Some("oracle"), Some(0.2))
    );
    let usual = |_: &Model| Ok(Evaluation::default());
    let fixed = repaired(Parameters { neuron_ratio: 0.2, ..parameters() }, &usual);
    assert_eq!(oracle.model.state.digest().unwrap(), fixed.model.state.digest().unwrap());
    assert_eq!((&oracle.changed, &oracle.facts["weights_zeroed"]), (&fixed.changed, &fixed.facts["weights_zeroed"]));
    assert_eq!((fixed.facts["selection"].as_str(), fixed.facts["neuron_ratio"].as_f64()), (Some("fixed"), Some(0.2)));
    assert!(swept_ratios(&fixed).is_empty());
}

#[test]
fn held_out_images_choose_the_greatest_ratio_that_keeps_their_accuracy_and_the_test_sets_are_not_measured() {
    let own =
        Parameters { validation_share: Some(0.5), tolerance: Some(0.3), ..selecting(ThresholdSelection::Validation) };
    let found = repaired(own.clone(), &|_| unreachable!("the test sets were measured"));
    assert_eq!(swept_ratios(&found), SWEPT);
    assert_eq!(
        (found.facts["images_used"].as_u64(), found.facts["selection"].as_str()),
        (Some(12), Some("validation"))
    );
    let (_, held_out) = tiny::clean().hold_out(0.5);
    let accuracy = |model: &Model| {
        in_context(&mut NoObserver, |context| model.predict(&context.plain(held_out.clone(), 16)).unwrap().accuracy())
    };
    let before = accuracy(&tiny::model("backdoored"));
    let point = found.trace.iter().rfind(|point| {
        point.stage == "selection" && (before - point.metrics["selection_accuracy"]).abs() < 0.3 * before
    });
    let chosen = point.unwrap();
    assert_eq!(found.facts["neuron_ratio"].as_f64(), Some(chosen.metrics["neuron_ratio"]));
    assert_eq!(accuracy(&found.model), chosen.metrics["selection_accuracy"], "the network is that of the ratio");

    let check = |own| Tsbd::new(tiny::common(16), own).unwrap().check(tiny::architecture().as_ref(), &tiny::facts());
    assert!(check(own).is_ok());
    let error = check(selecting(ThresholdSelection::Validation)).unwrap_err();
    assert_eq!(error.field, "validation_share", "a fifth of 24 images is too few");
    assert!(check(selecting(ThresholdSelection::Oracle)).is_ok());
}

#[test]
fn where_no_ratio_is_good_enough_the_network_stays_as_it_is() {
    let unmoved = |_: &Model| Ok(Evaluation { acc: 0.5, asr: Some(0.25), ..Evaluation::default() });
    let found = repaired(selecting(ThresholdSelection::Oracle), &unmoved);
    assert_eq!(found.model.state.digest().unwrap(), tiny::model("backdoored").state.digest().unwrap());
    assert!(found.changed.is_empty() && found.facts["neuron_ratio"].is_null() && found.facts["neurons_selected"] == 0);
}

#[test]
fn fields_that_a_scheme_does_not_use_make_no_difference() {
    let of = |own| (TSBD.configure)(&DefenseCommon::default(), own).unwrap().parameters();
    let idle = json!({"alpha": 0.1, "radius": 0.2, "gradient_norm": "global"});
    let tuning = json!({"fine_tuning_passes": 3, "fine_tuning_momentum": 0.5, "fine_tuning_learning_rate": 0.1});
    let with = |scheme: Value, fields: &Value| {
        let mut own = scheme;
        own.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        of(own)
    };
    for scheme in [json!({"fine_tuning": "vanilla"}), json!({"fine_tuning": "none"})] {
        assert_eq!(with(scheme.clone(), &idle), of(scheme));
    }
    let (vanilla, none) = (json!({"fine_tuning": "vanilla"}), json!({"fine_tuning": "none"}));
    assert_eq!(with(none.clone(), &tuning), of(none));
    assert_eq!(
        with(json!({"reinitialisation": "v1"}), &json!({"weight_ratio": 0.3})),
        of(json!({"reinitialisation": "v1"}))
    );
    // Where they are used they do.
    for (scheme, fields) in
        [(json!({}), &idle), (vanilla, &tuning), (json!({"reinitialisation": "v2"}), &json!({"weight_ratio": 0.3}))]
    {
        for (field, value) in fields.as_object().unwrap() {
            assert_ne!(with(scheme.clone(), &json!({field: value})), of(scheme.clone()), "{field}");
        }
    }
}

/// What is mapped on one key must be one result: here nothing has been mapped yet.
#[test]
fn without_a_share_of_the_second_gradient_the_bits_are_those_of_vanilla_fine_tuning() {
    let tuned = |parameters: Parameters| {
        let mut model = tiny::model("backdoored");
        in_context(&mut NoObserver, |context| fine_tune(&mut model, 10, &parameters, context));
        model.state.digest().unwrap()
    };
    let vanilla = tuned(Parameters { fine_tuning: FineTuning::Vanilla, ..parameters() });
    assert_eq!(
        tuned(Parameters { alpha: 0.0, radius: 0.3, gradient_norm: GradientNorm::Global, ..parameters() }),
        vanilla
    );
    assert_ne!(tuned(parameters()), vanilla);
    let of = |own| (TSBD.configure)(&DefenseCommon::default(), own).unwrap().parameters();
    assert_eq!(of(json!({"alpha": 0.0, "radius": 0.3})), of(json!({"fine_tuning": "vanilla"})));
    assert_ne!(of(json!({"alpha": 0.01})), of(json!({"fine_tuning": "vanilla"})));
}

#[test]
fn with_all_weights_of_a_neuron_the_bits_are_the_same_whichever_scheme_takes_them() {
    let (change, backdoored) = (golden_change(), tiny::model("backdoored"));
    let selected = select(&change, 0.5, true);
    let zero = |scheme, ratio| {
        let found = reinitialisation::zero(&backdoored.state, &change, &selected, ratio, scheme).unwrap();
        (found.state.digest().unwrap(), found.threshold, found.selected)
    };
    let of = |own| (TSBD.configure)(&DefenseCommon::default(), own).unwrap().parameters();
    let whole = zero(Reinitialisation::V1, 0.7);
    for (name, scheme) in [("v2", Reinitialisation::V2), ("v3", Reinitialisation::V3)] {
        assert_eq!(zero(scheme, 1.0), whole, "{name}");
        assert_ne!(zero(scheme, 0.7), whole, "{name}");
        assert_eq!(of(json!({"reinitialisation": name, "weight_ratio": 1.0})), of(json!({"reinitialisation": "v1"})));
    }
}

#[test]
fn the_usual_selection_leaves_no_trace_in_the_parameters_and_what_is_not_used_makes_no_difference() {
    let of = |own| (TSBD.configure)(&DefenseCommon::default(), own).unwrap().parameters();
    let usual = of(json!({}));
    for field in ["selection", "validation_share", "tolerance"] {
        assert!(usual[field].is_null(), "{field}: nulls are left out of a cell's key");
    }
    assert_eq!(of(json!({"selection": "fixed", "validation_share": 0.3, "tolerance": 0.2})), usual);
    let oracle = of(json!({"selection": "oracle"}));
    assert_eq!((&oracle["tolerance"], &oracle["validation_share"]), (&json!(0.1), &json!(null)));
    assert_eq!(of(json!({"selection": "oracle", "neuron_ratio": 0.3, "validation_share": 0.3})), oracle);
    let validation = of(json!({"selection": "validation"}));
    assert_eq!(validation["validation_share"], 0.2);
    assert_ne!(of(json!({"selection": "validation", "tolerance": 0.2})), validation);
    for parameters in [oracle, validation] {
        assert_eq!(TSBD.from_parameters(&parameters).unwrap().parameters(), parameters);
    }
}
