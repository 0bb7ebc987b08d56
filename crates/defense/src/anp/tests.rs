use serde_json::json;

use super::*;
use crate::NoObserver;
use crate::tiny::{self, in_context};

/// The settings of `tools/reference/channel_pruning.py`.
fn defense(own: Value) -> Anp {
    let mut parameters = json!({"learning_rate": 0.3, "iterations": 6});
    parameters.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
    Anp::new(tiny::common(16), read(&parameters).unwrap()).unwrap()
}

fn tensors(lists: &[Vec<f32>]) -> Vec<Tensor> {
    lists.iter().map(|list| Tensor::new(list.as_slice(), &tsbd_tensor::Device::Cpu).unwrap()).collect()
}

fn repaired(own: Value) -> Repaired {
    let defense = defense(own);
    in_context(&mut NoObserver, |context| defense.repair(&tiny::model("backdoored"), &tiny::clean(), context)).unwrap()
}

#[test]
fn perturbations_of_one_and_of_three_steps_gradients_and_masks_are_pytorchs_for_both_variants() {
    for (variant, steps, golden, count) in [
        ("reference", 1, "anp", 6),
        ("paper", 1, "anp", 6),
        ("reference", 3, "anp_three_steps", 3),
        ("paper", 3, "anp_three_steps", 3),
    ] {
        let defense = defense(json!({"variant": variant, "perturbation_steps": steps}));
        let model = tiny::model("backdoored");
        let digest = model.state.digest().unwrap();
        let mut masks = ChannelMasks::ones(&model).unwrap();
        let iterations = tiny::golden_json("channel_pruning.json")[golden][variant].as_array().unwrap().clone();
        assert_eq!(iterations.len(), count);
        for (number, golden) in iterations.iter().enumerate() {
            let indices: Vec<u32> = serde_json::from_value(golden["batch"].clone()).unwrap();
            let source = Arc::new(Subset::new(tiny::clean().images(), indices));
            let batch =
                in_context(&mut NoObserver, |context| context.plain(source, 16).into_epoch(0).next().unwrap().unwrap());
            let lists = |name: &str| -> Vec<Vec<f64>> { serde_json::from_value(golden[name].clone()).unwrap() };
            let drawn: Vec<Vec<f32>> = serde_json::from_value(golden["noise"].clone()).unwrap();
            let [bn1, bn1_bias, bn2, bn2_bias] = &tensors(&drawn)[..] else { panic!("two batch norms") };
            let drawn =
                Noise { weights: vec![bn1.clone(), bn2.clone()], biases: vec![bn1_bias.clone(), bn2_bias.clone()] };
            let near = |what: &str, found: &[&Tensor], tolerance| {
                for (norm, (found, expected)) in found.iter().zip(lists(what)).enumerate() {
                    let name = format!("{variant} {steps} {number} {what} {norm}");
                    tiny::assert_near(&name, &found.to_vec1::<f32>().unwrap(), &expected, tolerance);
                }
            };
            let adversarial = defense.adversarial(&model, &masks, &batch, drawn.clone()).unwrap();
            let Noise { weights, biases } = &adversarial;
            near("perturbation", &[&weights[0], &biases[0], &weights[1], &biases[1]], 1e-6);
            let Slope { loss, gradients } = defense.slope(&model, &masks, &batch, &adversarial).unwrap();
            let expected = golden["loss"].as_f64().unwrap();
            assert!(
                (loss - expected).abs() < 1e-6 * expected,
                "{variant} {steps} {number}: loss {loss}, not {expected}"
            );
            near("gradients", &[&gradients[0], &gradients[1]], 1e-5);
            assert_eq!(defense.step(&model, &mut masks, &batch, drawn).unwrap(), loss, "a step descends this slope");
            for ((norm, found), expected) in masks.rounded().unwrap().layers.iter().zip(&lists("masks")) {
                for (found, expected) in found.iter().zip(expected) {
                    // Four decimals of numbers that differ by rounding.
                    let close = (found - expected).abs() < 0.5e-4 + 1e-5;
                    assert!(close, "{variant} {steps} {number} {norm}: {found}, not {expected}");
                }
            }
        }
        assert_eq!(model.state.digest().unwrap(), digest, "the network rests while masks are trained");
    }
}

#[test]
fn the_gradients_of_masks_and_noise_are_those_of_finite_differences() {
    let model = tiny::model("backdoored");
    let batch = in_context(&mut NoObserver, |context| {
        context.plain(tiny::clean().images(), 24).into_epoch(0).next().unwrap().unwrap()
    });
    let masks = ChannelMasks::ones(&model).unwrap();
    let noise = Noise::draw(&model, 0.4, &mut Streams::new(0).stream("test", 0)).unwrap();
    let slope = masks.noise_slope(&model, &batch, &noise).unwrap();
    let of_masks = masks.slope(&model, &batch, Some(&noise)).unwrap();
    assert!((slope.loss - of_masks.loss).abs() < 1e-6);
    // γ (m + δ): masks and their noise have the same gradient.
    for (mask, noise) in of_masks.gradients.iter().zip(&slope.gradients.weights) {
        assert_eq!(mask.to_vec1::<f32>().unwrap(), noise.to_vec1::<f32>().unwrap());
    }
    for (layer, channel, of_bias) in [(0, 1, false), (1, 8, false), (0, 2, true), (1, 3, true)] {
        let part = |noise: &Noise| if of_bias { noise.biases.clone() } else { noise.weights.clone() };
        let loss = |by: f32| {
            let mut moved = part(&noise);
            let mut values = moved[layer].to_vec1::<f32>().unwrap();
            values[channel] += by;
            moved[layer] = Tensor::new(values, &tsbd_tensor::Device::Cpu).unwrap();
            let noise = match of_bias {
                true => Noise { biases: moved, ..noise.clone() },
                false => Noise { weights: moved, ..noise.clone() },
            };
            masks.slope(&model, &batch, Some(&noise)).unwrap().loss
        };
        let found = f64::from(part(&slope.gradients)[layer].to_vec1::<f32>().unwrap()[channel]);
        let expected = (loss(0.02) - loss(-0.02)) / 0.04;
        assert!((found - expected).abs() < 2e-2 * expected.abs() + 1e-4, "{layer} {channel}: {found}, not {expected}");
    }
}

#[test]
fn the_paper_cuts_perturbations_off_where_the_reference_lets_them_go() {
    let noise = Noise { weights: tensors(&[vec![0.3, -0.3, 0.1]]), biases: tensors(&[vec![-0.39, 0.0, 0.39]]) };
    let slope = Noise { weights: tensors(&[vec![2.0, -1e-9, 0.0]]), biases: tensors(&[vec![-1.0, 1.0, -1.0]]) };
    let moved = noise.uphill(&slope, 0.4).unwrap();
    let near = |tensor: &Tensor, expected: [f32; 3]| {
        let found = tensor.to_vec1::<f32>().unwrap();
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
    };
    near(&moved.weights[0], [0.7, -0.7, 0.1]);
    near(&moved.biases[0], [-0.79, 0.4, -0.01]);
    near(&moved.within(0.4).unwrap().weights[0], [0.4, -0.4, 0.1]);
}

#[test]
fn images_are_drawn_with_replacement_and_differently_in_each_epoch() {
    in_context(&mut NoObserver, |context| {
        let loader = context.augmented(tiny::clean().images(), "anp/augmentation", 16);
        let source = WithReplacement { batches: 500, streams: context.streams, loader };
        let labels = |epoch| {
            let batches: Vec<Batch> = source.epoch(epoch).map(Result::unwrap).collect();
            assert!(batches.len() == 500 && batches.iter().all(|batch| batch.len() == 16));
            batches.iter().flat_map(|batch| batch.labels.to_vec1::<u32>().unwrap()).collect::<Vec<_>>()
        };
        let first = labels(0);
        assert_eq!(first, labels(0));
        assert_ne!(first, labels(1));
        let of_class_0 = first.iter().filter(|label| **label == 0).count() as f64 / 8000.0;
        assert!((of_class_0 - 1.0 / 3.0).abs() < 0.02, "{of_class_0}");
    });
}

#[test]
fn the_chosen_threshold_prunes_weights_alone_and_is_in_the_record() {
    let repaired = repaired(json!({"selection": "fixed", "threshold": 0.99, "iterations": 12}));
    assert!(!repaired.changed.is_empty());
    let original = tiny::model("backdoored");
    for (norm, channels) in [("bn1", 4), ("bn2", 12)] {
        let values = |model: &Model, tensor: &str| {
            model.state.get(&format!("{norm}.{tensor}")).unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(values(&repaired.model, "bias"), values(&original, "bias"));
        for channel in 0..channels {
            let pruned = repaired.changed.iter().any(|change| change.layer == norm && change.neuron == channel);
            let expected = if pruned { 0.0 } else { values(&original, "weight")[channel] };
            assert_eq!(values(&repaired.model, "weight")[channel], expected);
        }
    }
    let facts = &repaired.facts;
    assert_eq!((facts["selection"].as_str(), facts["variant"].as_str()), (Some("fixed"), Some("reference")));
    assert_eq!((&facts["threshold"], &facts["images_used"]), (&json!(0.99), &json!(24)));
}

#[test]
fn selection_on_held_out_images_never_measures_the_test_sets_and_keeps_them_from_the_masks() {
    let defense = defense(json!({"validation_share": 0.5}));
    let repaired = in_context(&mut NoObserver, |context| {
        context.evaluate = &|_| unreachable!("the test sets were measured");
        defense.repair(&tiny::model("backdoored"), &tiny::clean(), context).unwrap()
    });
    assert_eq!((repaired.facts["images_used"].as_u64(), repaired.trace.len()), (Some(12), 1 + 19));
    let check = |own| self::defense(own).check(tiny::architecture().as_ref(), &tiny::facts());
    assert_eq!(check(json!({})).unwrap_err().field, "validation_share");
    assert!(check(json!({"selection": "oracle"})).is_ok());
}

#[test]
fn a_request_to_stop_ends_the_training_of_masks_and_a_wild_rate_is_named() {
    let defense = defense(json!({}));
    let stopped = in_context(&mut tiny::StopAfter(3), |context| {
        defense.repair(&tiny::model("backdoored"), &tiny::clean(), context)
    });
    assert_eq!(stopped.unwrap_err().to_string(), "stopped on request during masks, before the repair was done");
    let mut broken = tiny::model("backdoored");
    let infinite = (broken.state.get("linear.bias").unwrap() * f64::INFINITY).unwrap();
    broken.state.set("linear.bias", &infinite).unwrap();
    let error = in_context(&mut NoObserver, |context| defense.repair(&broken, &tiny::clean(), context)).unwrap_err();
    assert!(
        error.to_string().starts_with("masks: ") && error.to_string().ends_with("lower `learning_rate`"),
        "{error}"
    );
}

#[test]
fn parameters_are_canonical_and_wrong_ones_are_refused_by_name() {
    let parameters = (ANP.configure)(&DefenseCommon::default(), json!({})).unwrap().parameters();
    assert_eq!((&parameters["iterations"], &parameters["epsilon"]), (&json!(2000), &json!(0.4)));
    assert_eq!((&parameters["learning_rate"], &parameters["selection"]), (&json!(0.01), &json!("validation")));
    assert_eq!(ANP.from_parameters(&parameters).unwrap().parameters(), parameters);
    let iterations = |own| (ANP.configure)(&DefenseCommon::default(), own).unwrap().parameters()["iterations"].clone();
    for (asked, made) in [(160, 160), (500, 500), (501, 1000), (1000, 1000)] {
        assert_eq!(iterations(json!({"iterations": asked})), json!(made), "as many as are made");
    }
    for (field, value) in [
        ("iterations", json!(0)),
        ("perturbation_steps", json!(0)),
        ("epsilon", json!(-0.1)),
        ("alpha", json!(1.1)),
        ("threshold", json!(2.0)),
        ("validation_share", json!(1.0)),
        ("tolerance", json!(0.0)),
        ("learning_rate", json!(0.0)),
        ("selection", json!("test")),
        ("eps", json!(0.4)),
    ] {
        let error = (ANP.configure)(&DefenseCommon::default(), json!({field: value})).unwrap_err();
        assert_eq!(error.field, field);
    }
}
