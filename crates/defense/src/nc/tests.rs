use std::ops::ControlFlow;

use serde::Deserialize;
use serde_json::json;
use tsbd_data::Normalization;
use tsbd_nn::{BatchSource, Precision};
use tsbd_tensor::{Device, Tensor};
use tsbd_testing::Golden;

use super::search::{Bookkeeping, Slope, Trigger, Verdict};
use super::stamping::{Stamp, stretched};
use super::*;
use crate::tiny::{self, in_context};
use crate::{DefenseObserver, NoObserver, Progress};

fn defense(own: Value) -> Box<dyn Defense> {
    (NC.configure)(&tiny::common(16), own).unwrap()
}

fn repaired(own: Value) -> Repaired {
    let defense = defense(own);
    in_context(&mut NoObserver, |context| defense.repair(&tiny::model("backdoored"), &tiny::clean(), context)).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn close(name: &str, found: &[f32], expected: &Tensor, tolerance: f32) {
    let expected = numbers(expected);
    assert_eq!(found.len(), expected.len(), "{name}");
    let error =
        found.iter().zip(&expected).map(|(found, expected)| (found - expected).abs()).max_by(f32::total_cmp).unwrap();
    assert!(error < tolerance, "{name} differs by {error:e}");
}

/// What `tools/reference/nc.py` normalises with.
const NORMALIZATION: Normalization = Normalization { mean: [0.4, 0.5, 0.45], std: [0.25, 0.2, 0.3] };

#[test]
fn losses_gradients_and_steps_of_a_search_are_pytorchs() {
    let golden: Vec<[f64; 4]> = serde_json::from_value(tiny::golden_in("nc")["steps"].clone()).unwrap();
    let expected = Golden::read("nc/steps");
    let model = tiny::model("backdoored");
    in_context(&mut NoObserver, |context| {
        context.normalization = NORMALIZATION;
        let batches: Vec<_> =
            context.plain(tiny::clean().images(), 16).epoch(0).collect::<tsbd_nn::Result<_>>().unwrap();
        let mut trigger = Trigger::new(8, 8, NORMALIZATION, &Device::Cpu).unwrap();
        let before = trigger.values().unwrap();
        assert!(before.iter().flatten().all(|value| (value - 0.880_797).abs() < 1e-6));
        for (number, [cost, cross_entropy, size, loss]) in golden.into_iter().enumerate() {
            let batch = &batches[number % 2];
            let Slope { met, gradients } = trigger.slope(&model, 1, batch, cost).unwrap();
            let near = |name: &str, found: f64, expected: f64| {
                assert!((found - expected).abs() < 1e-6 * expected, "{name} {number}: {found}, not {expected}");
            };
            near("size", met.size, size);
            near("loss", met.loss, loss);
            near("cross-entropy", met.loss - cost * met.size, cross_entropy);
            for (name, gradient) in ["mask_gradient", "pattern_gradient"].into_iter().zip(&gradients) {
                let name = format!("{name}.{number}");
                tiny::assert_near(&name, &numbers(gradient), &expected.doubles(&name), 1e-6);
            }
            assert_eq!(trigger.step(&model, 1, batch, cost, 0.1).unwrap(), met, "a step descends this slope");
            for (name, found) in ["mask", "pattern"].into_iter().zip(trigger.values().unwrap()) {
                let name = format!("{name}.{number}");
                tiny::assert_near(&name, &found, &expected.doubles(&name), 1e-6);
            }
        }
    });
}

#[test]
fn a_search_ends_by_itself_and_has_pytorchs_accuracies_sizes_and_costs_and_keeps_the_same_mask() {
    let golden: Vec<[f64; 3]> = serde_json::from_value(tiny::golden_in("nc")["search"].clone()).unwrap();
    let expected = tiny::tensors("nc/search.safetensors");
    let parameters =
        Parameters { search_epochs: golden.len() + 2, cost_patience: 2, initial_cost: 0.01, ..Parameters::default() };
    let model = tiny::model("backdoored");
    in_context(&mut NoObserver, |context| {
        context.normalization = NORMALIZATION;
        let source = context.plain(tiny::clean().images(), 16);
        let mut search = Search::new(&model, 1, &source, &parameters).unwrap();
        let mut found = None;
        for (epoch, [accuracy, size, cost]) in golden.iter().enumerate() {
            assert!(found.is_none());
            found = search.epoch(&mut |_| Ok(())).unwrap();
            let report = search.history()[epoch];
            assert!((report.success_rate - accuracy / 100.0).abs() < 1e-9, "epoch {epoch}: {report:?}");
            assert!((report.size - size).abs() < 2e-3 * size, "epoch {epoch}: {report:?}, not {size}");
            assert!((report.cost - cost).abs() < 1e-9 * cost, "epoch {epoch}: {report:?}, not {cost}");
        }
        let found = found.unwrap();
        close("mask", &found.mask, &expected["mask"], 2e-3);
        close("pattern", &found.pattern, &expected["pattern"], 2e-3);
        assert!(found.successful && found.success_rate == 1.0 && found.epochs == golden.len());
        let norm: f32 = found.mask.iter().sum();
        assert!((found.norm - f64::from(norm)).abs() < 1e-3);
    });
}

/// A made-up sequence and what the reference makes of it.
#[derive(Deserialize)]
struct Sequence {
    sequence: Vec<[f64; 2]>,
    kept: Vec<usize>,
    costs: Vec<f64>,
    last: usize,
}

#[test]
fn masks_are_kept_costs_changed_and_searches_ended_as_in_the_reference() {
    let golden = tiny::golden_in("nc")["bookkeeping"].clone();
    let golden: std::collections::BTreeMap<String, Sequence> = serde_json::from_value(golden).unwrap();
    assert_eq!(golden.len(), 5);
    for (name, Sequence { sequence, kept, costs, last }) in golden {
        let mut bookkeeping = Bookkeeping::new(&Parameters::default());
        let mut found = vec![];
        for (epoch, [accuracy, size]) in sequence.into_iter().enumerate() {
            let Verdict { keep, stop } = bookkeeping.epoch_end(accuracy / 100.0, size);
            found.extend(keep.then_some(epoch));
            assert!((bookkeeping.cost - costs[epoch]).abs() <= 1e-12 * costs[epoch], "{name}: epoch {epoch}");
            if stop {
                assert_eq!(epoch, last, "{name}");
                break;
            }
            assert!(epoch <= last, "{name} should have stopped");
        }
        assert_eq!(found, kept, "{name}");
    }
}

#[test]
fn outliers_are_those_of_pytorchs_lower_median() {
    #[derive(Deserialize)]
    struct Case {
        norms: Vec<f64>,
        median: f64,
        deviation: f64,
        flagged: Vec<usize>,
    }
    let cases: Vec<Case> = serde_json::from_value(tiny::golden_in("nc")["outliers"].clone()).unwrap();
    assert_eq!(cases.iter().filter(|case| case.flagged.is_empty()).count(), 3);
    for case in cases {
        let found = Outliers::of(&case.norms, 2.0);
        assert_eq!(found.flagged, case.flagged, "{:?}", case.norms);
        assert_eq!(found.median, case.median);
        assert!((found.deviation - case.deviation).abs() < 1e-12);
        for (class, index) in found.anomaly_indices.iter().enumerate() {
            let expected = (case.norms[class] - case.median).abs() / case.deviation;
            assert!((index - expected).abs() < 1e-12 || case.deviation == 0.0);
        }
    }
}

#[test]
fn stamped_images_are_bit_for_bit_those_that_went_through_image_files() {
    let golden = tiny::tensors("nc/stamping.safetensors");
    let bytes = |name: &str| golden[name].flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let (masks, patterns) = (numbers(&golden["masks"]), numbers(&golden["patterns"]));
    let (images, levels, stamped) = (bytes("images"), bytes("levels"), bytes("stamped"));
    let mut wrapped = 0;
    for trigger in 0..3 {
        let reversed = reversed(&masks[trigger * 64..][..64], &patterns[trigger * 192..][..192]);
        let product: Vec<f32> =
            reversed.pattern.iter().enumerate().map(|(place, value)| reversed.mask[place / 3] * value).collect();
        assert_eq!(stretched(&product), levels[(2 * trigger + 1) * 192..][..192]);
        let stamp = Stamp::new(&reversed, Variant::Reference);
        for image in 0..4 {
            let clean = &images[image * 192..][..192];
            let found = stamp.on(clean);
            assert_eq!(found, stamped[(trigger * 4 + image) * 192..][..192], "trigger {trigger}, image {image}");
            let added = &levels[(2 * trigger + 1) * 192..][..192];
            wrapped += found.iter().zip(added).filter(|(found, added)| found < added).count();
        }
    }
    assert!(wrapped > 0, "some sums are above 255");
}

fn reversed(mask: &[f32], pattern: &[f32]) -> Reversed {
    Reversed {
        mask: mask.to_vec(),
        pattern: pattern.to_vec(),
        norm: 0.0,
        successful: true,
        success_rate: 1.0,
        epochs: 1,
    }
}

#[test]
fn the_paper_variant_blends_mask_and_pattern_as_they_were_found() {
    let stamp = Stamp::new(&reversed(&[0.25; 64], &[0.5; 192]), Variant::Paper);
    assert_eq!(stamp.on(&[0; 192]), [32; 192], "0.25 * 0.5 * 255 = 31.9");
    assert_eq!(stamp.on(&[255; 192]), [223; 192], "and 0.75 * 255 = 191.25");
    // Of a mask that is the same everywhere the reference's files hold nothing: zeros.
    let stamp = Stamp::new(&reversed(&[0.25; 64], &[0.5; 192]), Variant::Reference);
    assert_eq!(stamp.on(&[200; 192]), [200; 192]);
}

#[test]
fn four_fifths_stay_clean_and_the_last_fifth_is_stamped_once_for_each_trigger_with_true_labels() {
    let clean = tiny::clean();
    let triggers = [reversed(&[1.0; 64], &[0.0; 192]), reversed(&[1.0; 64], &[1.0; 192])];
    let set = stamping::unlearning_set(&clean, 0.2, &triggers, Variant::Paper, 3);
    assert_eq!(set.len(), 19 + 5 + 5);
    let images = clean.images();
    for index in 0..set.len() {
        let (original, expected) = match index {
            0..19 => (index, images.image(index).to_vec()),
            19..24 => (index, vec![0; 192]),
            _ => (index - 5, vec![255; 192]),
        };
        assert_eq!(set.image(index), expected, "{index}");
        assert_eq!(set.label(index), images.label(original), "{index}");
    }
}

#[test]
fn without_an_outlier_the_network_stays_as_it_is_and_with_one_it_is_fine_tuned() {
    let digest = tiny::model("backdoored").state.digest().unwrap();
    let short = |threshold: f64| {
        repaired(json!({"search_epochs": 6, "epochs": 2, "outlier_threshold": threshold, "success_threshold": 0.5}))
    };
    let unsuspicious = short(1e9);
    assert_eq!(unsuspicious.model.state.digest().unwrap(), digest);
    assert_eq!(unsuspicious.facts["flagged_classes"], json!([]));
    assert_eq!(unsuspicious.facts["fine_tuned"], false);
    assert_eq!(unsuspicious.trace.len(), 3);

    let suspicious = short(1e-9);
    assert_ne!(suspicious.model.state.digest().unwrap(), digest, "the fine-tuned network is the result");
    assert_eq!(suspicious.facts["fine_tuned"], true);
    assert_eq!(suspicious.facts["search_epochs_used"], json!([6, 6, 6]));
    let norms: Vec<f64> = serde_json::from_value(suspicious.facts["mask_norms"].clone()).unwrap();
    let smallest = (0..3).min_by(|a, b| norms[*a].total_cmp(&norms[*b])).unwrap();
    assert_eq!(suspicious.facts["flagged_classes"][0], smallest);
    let stages: Vec<&str> = suspicious.trace.iter().map(|point| point.stage.as_str()).collect();
    assert_eq!(stages[..3], ["trigger search"; 3]);
    assert_eq!(stages[3..], ["fine-tuning"; 2]);
    assert_eq!(short(1e-9).model.state.digest().unwrap(), suspicious.model.state.digest().unwrap());
    assert_eq!(tiny::model("backdoored").state.digest().unwrap(), digest);
}

#[test]
fn the_search_rounds_as_the_defense_does() {
    let norms = |precision| -> Vec<f64> {
        let common = DefenseCommon { precision, ..tiny::common(16) };
        let own = json!({"search_epochs": 6, "outlier_threshold": 1e9, "success_threshold": 0.5});
        let defense = (NC.configure)(&common, own).unwrap();
        let model = tiny::model("backdoored");
        let repair = |context: &mut Context| defense.repair(&model, &tiny::clean(), context);
        let repaired = in_context(&mut NoObserver, repair).unwrap();
        serde_json::from_value(repaired.facts["mask_norms"].clone()).unwrap()
    };
    let (full, rounded) = (norms(Precision::F32), norms(Precision::Bf16));
    for (full, rounded) in full.iter().zip(&rounded) {
        let moved = (rounded - full).abs() / full;
        assert!(0.0 < moved && moved < 0.05, "{rounded} and {full}");
    }
}

#[test]
fn a_mask_that_never_succeeds_is_that_of_the_first_epoch() {
    let model = tiny::model("backdoored");
    // A network whose last layer says class 0 whatever it sees.
    let mut stubborn = model.clone();
    let zeros = model.state.get("linear.weight").unwrap().zeros_like().unwrap();
    stubborn.state.set("linear.weight", &zeros).unwrap();
    stubborn.state.set("linear.bias", &Tensor::new(&[5f32, 0.0, 0.0], &Device::Cpu).unwrap()).unwrap();
    in_context(&mut NoObserver, |context| {
        let source = context.plain(tiny::clean().images(), 16);
        let found = |epochs| {
            let parameters = Parameters { search_epochs: epochs, ..Parameters::default() };
            let mut search = Search::new(&stubborn, 1, &source, &parameters).unwrap();
            loop {
                if let Some(found) = search.epoch(&mut |_| Ok(())).unwrap() {
                    break found;
                }
            }
        };
        let (first, last) = (found(1), found(9));
        assert_eq!((first.mask, first.norm), (last.mask, last.norm));
        assert!(!last.successful && last.success_rate == 0.0 && last.epochs == 9);
    });
}

#[test]
fn a_request_to_stop_ends_the_search() {
    struct StopAfter(usize);
    impl tsbd_nn::Keeper for StopAfter {}
    impl DefenseObserver for StopAfter {
        fn progress(&mut self, progress: &Progress) -> ControlFlow<()> {
            assert_eq!((progress.stage, progress.total), ("trigger search", 3 * 80 * 2));
            if progress.done >= self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }
    let stopped = in_context(&mut StopAfter(5), |context| {
        defense(json!({})).repair(&tiny::model("backdoored"), &tiny::clean(), context)
    });
    let message = "stopped on request during trigger search, before the repair was done";
    assert_eq!(stopped.unwrap_err().to_string(), message);
}

#[test]
fn parameters_are_canonical_and_wrong_ones_are_refused_by_name() {
    let configured = (NC.configure)(&DefenseCommon::default(), json!({})).unwrap();
    let expected = json!({
        "clean_ratio": 0.05, "batch_size": 256, "variant": "reference", "search_epochs": 80,
        "search_learning_rate": 0.1, "initial_cost": 1e-3, "success_threshold": 0.98, "cost_patience": 5,
        "cost_multiplier": 2.0, "early_stop_threshold": 0.99, "early_stop_patience": 25, "outlier_threshold": 2.0,
        "unlearning_share": 0.2, "epochs": 100, "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4,
        "schedule": null, "cosine_period": 100,
    });
    assert_eq!(configured.parameters(), expected);
    assert_eq!(NC.from_parameters(&expected).unwrap().parameters(), expected);
    for (field, value) in [
        ("search_epochs", json!(0)),
        ("success_threshold", json!(0.0)),
        ("cost_multiplier", json!(1.0)),
        ("early_stop_threshold", json!(1.5)),
        ("unlearning_share", json!(1.0)),
        ("epochs", json!(0)),
        ("variant", json!("code")),
        ("masks", json!(3)),
    ] {
        let error = (NC.configure)(&DefenseCommon::default(), json!({field: value})).unwrap_err();
        assert_eq!(error.field, field);
    }
    defense(json!({})).check(tiny::architecture().as_ref(), &tiny::facts()).unwrap();
    let error = defense(json!({})).check(tsbd_models::preact_resnet18(2, 2).as_ref(), &tiny::facts()).unwrap_err();
    assert_eq!(
        (error.field.as_str(), error.value.as_str()),
        ("defense", "\"nc\""),
        "of two classes none is an outlier"
    );
}
