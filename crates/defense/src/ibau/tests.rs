use std::ops::ControlFlow;

use serde_json::json;
use tsbd_nn::{Layer, Module};

use super::*;
use crate::tiny::{self, assert_close, in_context};
use crate::{DefenseObserver, NoObserver, Progress};

fn defense(own: Value) -> Box<dyn Defense> {
    (IBAU.configure)(&tiny::common(24), own).unwrap()
}

fn repaired(own: Value) -> Result<Repaired, Error> {
    let defense = defense(own);
    in_context(&mut NoObserver, |context| defense.repair(&tiny::model("backdoored"), &tiny::clean(), context))
}

/// The tiny network in double precision.
fn model() -> Model {
    let model = tiny::model("backdoored");
    Model { state: model.state.to_dtype(DType::F64).unwrap(), ..model }
}

/// The clean images in batches of 16 and 8, in double precision.
fn batches() -> Vec<Batch> {
    in_context(&mut NoObserver, |context| {
        let batches = context.plain(tiny::clean().images(), 16);
        let double = |batch: tsbd_nn::Result<Batch>| {
            let batch = batch.unwrap();
            // In double precision from the division by 255 on, as the reference.
            let levels = (batch.images.to_dtype(DType::F64).unwrap() * 255.0).unwrap().round().unwrap();
            let images = (levels / 255.0).unwrap().to_dtype(DType::F32).unwrap().to_dtype(DType::F64).unwrap();
            Batch { images, ..batch }
        };
        batches.epoch(0).map(double).collect()
    })
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn close(name: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.dims(), expected.dims(), "{name}");
    let (found, expected) = (numbers(found), numbers(expected));
    let scale = expected.iter().fold(1e-12f64, |scale, value| scale.max(value.abs()));
    let error =
        found.iter().zip(&expected).map(|(found, expected)| (found - expected).abs()).max_by(f64::total_cmp).unwrap();
    assert!(error < tolerance * scale, "{name} differs by {:e} of {scale:e}", error / scale);
}

#[test]
fn a_pass_of_perturbation_is_pytorchs_away_from_predictions_and_from_true_labels() {
    let (model, expected) = (model(), tiny::tensors("ibau/perturbations.safetensors"));
    let pass = |variant, start: Tensor| {
        let parameters = Parameters { variant, ..Parameters::default() };
        batches().iter().fold((start, vec![]), |(perturbation, mut losses), batch| {
            let (loss, gradient) = perturbation_gradient(&model, &perturbation, batch, &parameters).unwrap();
            losses.push(loss);
            ((perturbation - (gradient * parameters.perturbation_learning_rate).unwrap()).unwrap(), losses)
        })
    };
    let zeros = first_perturbation(&batches()[0]).unwrap();
    let (round0, losses) = pass(Variant::Reference, zeros.clone());
    close("round 0", &round0, &expected["round0"], 1e-9);
    close("round 1", &pass(Variant::Reference, round0).0, &expected["round1"], 1e-9);
    close("labels", &pass(Variant::Paper, zeros).0, &expected["labels"], 1e-9);
    for (found, expected) in losses.iter().zip(tiny::golden_in("ibau")["inner"].as_array().unwrap()) {
        assert!((found - expected.as_f64().unwrap()).abs() < 1e-12);
    }
}

#[test]
fn hypergradients_are_those_of_pytorchs_double_backward() {
    let (model, batches) = (model(), batches());
    let fixed = &tiny::tensors("ibau/perturbations.safetensors")["fixed"];
    for (number, inner) in batches.iter().enumerate() {
        let found = hypergradient(&model, fixed, inner, &batches[1], &[1, 6], &Parameters::default()).unwrap();
        let expected = tiny::tensors(&format!("ibau/hypergradient.{number}.safetensors"));
        assert_eq!((found.gradients.len(), found.iterations), (expected.len(), 5));
        for (name, gradient) in found.gradients.iter() {
            close(name, gradient, &expected[name], 1e-9);
        }
        let outer = tiny::golden_in("ibau")["outer"][number].as_f64().unwrap();
        assert!((found.loss - outer).abs() < 1e-12);
    }
}

#[test]
fn a_large_batch_is_differentiated_in_pieces_with_the_same_result() {
    let (model, batches) = (model(), batches());
    let fixed = &tiny::tensors("ibau/perturbations.safetensors")["fixed"];
    let (small, parameters) = (&batches[0], Parameters::default());
    // Every image ten times: the same means.
    let large = Batch {
        images: Tensor::cat(&[&small.images; 10], 0).unwrap(),
        labels: Tensor::cat(&[&small.labels; 10], 0).unwrap(),
        indices: small.indices.repeat(10),
    };
    assert_eq!(pieces(&large).unwrap().iter().map(|(piece, _)| piece.len()).collect::<Vec<_>>(), [128, 32]);
    let many: Vec<u32> = (0..10).flat_map(|copy| [1, 6].map(|image| copy * 16 + image)).collect();
    let few = hypergradient(&model, fixed, small, small, &[1, 6], &parameters).unwrap();
    let found = hypergradient(&model, fixed, &large, &large, &many, &parameters).unwrap();
    assert!((few.loss - found.loss).abs() < 1e-12);
    for (name, gradient) in found.gradients.iter() {
        close(name, gradient, few.gradients.get(name).unwrap(), 1e-10);
    }
    let [few, found] = [small, &large].map(|batch| perturbation_gradient(&model, fixed, batch, &parameters).unwrap());
    assert!((few.0 - found.0).abs() < 1e-12);
    close("perturbation", &found.1, &few.1, 1e-10);
}

/// With a penalty that makes the inner objective convex, gradient descent finds the perturbation that belongs to any
/// weights, and the outer objective there can be differenced.
#[test]
fn with_enough_iterations_the_hypergradient_is_the_slope_of_the_solved_problem() {
    let (model, batches) = (model(), batches());
    let parameters = Parameters { penalty: 0.3, inner_step: 0.5, iterations: 200, ..Parameters::default() };
    let solve = |model: &Model| {
        let mut perturbation = first_perturbation(&batches[0]).unwrap();
        for _ in 0..400 {
            let tape = Tape::new();
            let leaf = tape.leaf(&perturbation);
            let whole = (batches[0].clone(), 1.0);
            let loss = inner_objective(&whole, parameters.penalty)(&model.pass(Mode::Eval), &leaf).unwrap();
            let slope = tape.backward(&loss).unwrap().take(&leaf).unwrap();
            if norm(&slope).unwrap() < 1e-13 {
                break;
            }
            perturbation = (perturbation - (slope * parameters.inner_step).unwrap()).unwrap();
        }
        perturbation
    };
    let all: Vec<u32> = (0..8).collect();
    let outer = |model: &Model| outer_gradients(model, &solve(model), &batches[1], &all).unwrap().0;
    let found = hypergradient(&model, &solve(&model), &batches[0], &batches[1], &all, &parameters).unwrap();
    assert!(found.iterations > 10 && found.iterations < 200, "{} iterations", found.iterations);
    let (_, direct, _) = outer_gradients(&model, &solve(&model), &batches[1], &all).unwrap();

    let direction: ParameterGradients = model
        .state
        .parameters()
        .map(|(name, tensor)| {
            let values: Vec<f64> =
                (0..tensor.elem_count()).map(|place| ((place * 7 + name.len()) as f64).sin()).collect();
            (name.to_owned(), Tensor::from_vec(values, tensor.dims(), &Device::Cpu).unwrap())
        })
        .collect();
    let along = |gradients: &ParameterGradients| -> f64 {
        let products = direction.iter().map(|(name, direction)| {
            numbers(direction).iter().zip(numbers(gradients.get(name).unwrap())).map(|(a, b)| a * b).sum::<f64>()
        });
        products.sum()
    };
    const STEP: f64 = 1e-6;
    let at = |distance: f64| {
        let mut moved = model.clone();
        moved.state.add_scaled(&direction, |_| distance).unwrap();
        outer(&moved)
    };
    let numeric = (at(STEP) - at(-STEP)) / (2.0 * STEP);
    let (exact, explicit) = (along(&found.gradients), along(&direct));
    assert!((exact - numeric).abs() < 1e-6 * numeric.abs(), "{exact}, by differences {numeric}");
    assert!((explicit - numeric).abs() > 1e-3 * numeric.abs(), "the implicit part matters: {explicit}, {numeric}");
}

#[test]
fn a_whole_repair_ends_where_pytorch_ends_and_leaves_running_estimates_and_its_input_as_they_were() {
    let backdoored = tiny::model("backdoored");
    let digest = backdoored.state.digest().unwrap();
    let defense = defense(json!({"rounds": 2, "learning_rate": 0.001, "perturbed_share": 1.0}));
    let repaired = in_context(&mut NoObserver, |context| defense.repair(&backdoored, &tiny::clean(), context)).unwrap();
    assert_close(&repaired.model.state, &tiny::model_in("ibau", "repaired").state, 2e-5);
    for (name, before) in backdoored.state.buffers() {
        let after = repaired.model.state.get(name).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(after, before.to_vec1::<f32>().unwrap(), "{name}");
    }
    assert_eq!(backdoored.state.digest().unwrap(), digest);
    assert_eq!((&repaired.facts["steps"], &repaired.facts["mean_iterations"]), (&json!(2), &json!(5.0)));
    assert_eq!(repaired.trace.len(), 2);
    assert!(repaired.trace.iter().all(|point| point.metrics.contains_key("asr")));
}

#[test]
fn the_variants_differ_and_each_gives_the_same_bits_again() {
    let digest = |variant: &str| {
        let defense = (IBAU.configure)(&tiny::common(10), json!({"variant": variant, "rounds": 2})).unwrap();
        let repaired =
            in_context(&mut NoObserver, |context| defense.repair(&tiny::model("backdoored"), &tiny::clean(), context));
        repaired.unwrap().model.state.digest().unwrap()
    };
    assert_eq!(digest("reference"), digest("reference"));
    assert_ne!(digest("reference"), digest("paper"));
}

#[test]
fn a_hundredth_of_a_batch_carries_the_perturbation_and_at_least_one_image() {
    in_context(&mut NoObserver, |context| {
        let drawn = |count, number| perturbed(count, 0.01, number, context);
        for (count, carriers) in [(256, 2), (196, 1), (300, 3), (4, 1)] {
            let drawn = drawn(count, 0);
            assert_eq!(drawn.len(), carriers);
            assert!(drawn.windows(2).all(|pair| pair[0] < pair[1]) && drawn.iter().all(|image| *image < count as u32));
        }
        assert_eq!(drawn(256, 3), drawn(256, 3));
        assert_ne!(drawn(256, 3), drawn(256, 4));
    });
}

#[test]
fn a_network_without_second_derivatives_is_refused_before_anything_runs() {
    let linear = Module::new("linear", Layer::Linear { in_features: 3, out_features: 3 });
    let once = tsbd_testing::network(vec![linear], 3, |pass, images| {
        pass.linear("linear", &images.global_average_pool()?.sigmoid()?)
    });
    let error = defense(json!({})).check(once.as_ref(), &tiny::facts()).unwrap_err();
    assert_eq!((error.field.as_str(), error.way_out.as_str()), ("defense", "use another defense"));
    assert!(error.reason.starts_with("small cannot be differentiated twice: sigmoid"), "{error}");
    defense(json!({})).check(tiny::architecture().as_ref(), &tiny::facts()).unwrap();
}

#[test]
fn a_request_to_stop_and_a_rate_that_diverges_end_the_repair() {
    struct StopAfter(usize);
    impl tsbd_nn::Keeper for StopAfter {}
    impl DefenseObserver for StopAfter {
        fn progress(&mut self, progress: &Progress) -> ControlFlow<()> {
            assert_eq!((progress.stage, progress.total), ("unlearning", 10));
            if progress.done >= self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }
    let stopped = in_context(&mut StopAfter(3), |context| {
        defense(json!({})).repair(&tiny::model("backdoored"), &tiny::clean(), context)
    });
    assert_eq!(stopped.unwrap_err().to_string(), "stopped on request during unlearning, before the repair was done");
    let message = repaired(json!({"learning_rate": 1e30})).unwrap_err().to_string();
    assert!(message.starts_with("unlearning: "), "{message}");
}

#[test]
fn parameters_are_canonical_and_wrong_ones_are_refused_by_name() {
    let configured = (IBAU.configure)(&DefenseCommon::default(), json!({})).unwrap();
    let expected = json!({
        "clean_ratio": 0.05, "batch_size": 256, "variant": "reference", "rounds": 5, "learning_rate": 1e-4,
        "perturbation_learning_rate": 10.0, "penalty": 0.001, "iterations": 5, "inner_step": 0.1,
        "perturbed_share": 0.01,
    });
    assert_eq!(configured.parameters(), expected);
    assert_eq!(IBAU.from_parameters(&expected).unwrap().parameters(), expected);
    for (field, value) in [
        ("rounds", json!(0)),
        ("iterations", json!(0)),
        ("learning_rate", json!(0.0)),
        ("penalty", json!(-1.0)),
        ("perturbed_share", json!(1.5)),
        ("perturbed_share", json!(0.0)),
        ("round", json!(3)),
    ] {
        let error = (IBAU.configure)(&DefenseCommon::default(), json!({field: value})).unwrap_err();
        assert_eq!(error.field, field);
    }
}
