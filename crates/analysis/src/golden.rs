//! The golden values of `tools/reference/analysis.py` and the tiny network they belong to: for tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use tsbd_data::{Augmentation, ImageSource, Images, Loader, Normalization};
use tsbd_nn::{Model, Streams};
use tsbd_tensor::Device;
pub(crate) use tsbd_testing::tiny::architecture;
use tsbd_testing::{Golden, tiny};

use crate::context::{Context, NoObserver, Observer};
use crate::{
    Measured, MeasurementEntry, NeuronVector, Pairs, Subject, Unlearned, UnlearnedModel, Unlearning, weight_change,
};

/// The model with the weights of a golden file.
pub(crate) fn model(name: &str) -> Model {
    tiny::model(&format!("analysis/{name}"))
}

/// A value of golden.json.
pub(crate) fn value(name: &str) -> Value {
    tsbd_testing::numbers("analysis/golden.json")[name].clone()
}

/// A list of numbers.
pub(crate) fn list(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// A list of numbers of golden.json.
pub(crate) fn numbers(name: &str) -> Vec<f64> {
    list(&value(name))
}

/// `images`, `triggered` (the same with a trigger), or `poison` (the triggered ones of other classes than 0, labelled 0).
pub(crate) fn images(name: &str) -> Arc<dyn ImageSource> {
    let all = |name: &str| tiny::images("analysis/images", name);
    match name {
        "poison" => {
            let triggered = all("triggered");
            let of_others = (0..triggered.len() as u32).filter(|&index| triggered.label(index as usize) != 0).collect();
            let relabelled = Golden::read("analysis/images").bytes("triggered");
            let relabelled = Images::new(relabelled, vec![0; triggered.len()], (8, 8), 3);
            Arc::new(tsbd_data::Subset::new(Arc::new(relabelled), of_others))
        }
        name => Arc::new(all(name)),
    }
}

pub(crate) fn loader(name: &str, batch_size: usize) -> Loader {
    Loader::evaluation(images(name), Normalization::IDENTITY, batch_size)
}

/// Runs `with` in a context without augmentation.
pub(crate) fn in_context<T>(observer: &mut dyn Observer, with: impl FnOnce(&mut Context) -> T) -> T {
    with(&mut Context {
        streams: Streams::new(0),
        device: Device::Cpu,
        normalization: Normalization::IDENTITY,
        augmentation: Augmentation { crop_padding: 0, flip: false },
        observer,
    })
}

/// Fails unless every number differs by at most `tolerance` times the expected one (or `tolerance` itself, below 1).
pub(crate) fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= tolerance * expected.abs().max(1.0), "{place}: {found}, not {expected}");
    }
}

/// The triggered images of other classes than 0, and the same without the trigger.
pub(crate) fn pairs() -> Pairs {
    let clean = images("images");
    let others = (0..clean.len() as u32).filter(|index| clean.label(*index as usize) != 0).collect();
    Pairs { clean: Arc::new(tsbd_data::Subset::new(clean, others)), triggered: images("poison") }
}

/// Scores of three defenses: two by batch norm, one by convolution.
pub(crate) fn subject_scores() -> BTreeMap<String, NeuronVector> {
    let scores = |first: &str, second: &str, sign: f64| {
        let part =
            |name: &str, count: i32| (name.to_owned(), (0..count).map(|place| sign * f64::from(place)).collect());
        [part(first, 4), part(second, 12)].into_iter().collect()
    };
    let of = [
        ("clp", scores("bn1", "bn2", 1.0)),
        ("anp", scores("conv1", "conv2", -1.0)),
        ("rnp", scores("bn1", "bn2", -2.0)),
    ];
    of.into_iter().map(|(name, vector)| (name.to_owned(), vector)).collect()
}

/// Gives the backdoored model `planted` with everything that a measurement may need to `with`.
pub(crate) fn with_subject<T>(with: impl FnOnce(&Subject) -> T) -> T {
    let [planted, clean] = ["planted", "backdoored"].map(model);
    let [unlearned, poison_unlearned] = ["unlearned", "poison-unlearned"].map(|name| {
        let model = model(name);
        let change = weight_change(planted.architecture.as_ref(), &planted.state, &model.state).unwrap();
        UnlearnedModel { model, nwc: change.of_neurons(), rates: Vec::new(), reached: true, seconds: 0.0 }
    });
    let unlearning = Unlearning {
        of: Unlearned::Clean,
        clean_ratio: Some(1.0),
        batch_size: 16,
        learning_rate: 0.05,
        momentum: 0.9,
        stop_at: 0.5,
        epochs: 50,
    };
    with(&Subject {
        model: Some(&planted),
        clean_model: Some(&clean),
        unlearning: Some((&unlearning, images("images"))),
        unlearned: Some(&unlearned),
        poison_unlearned: Some(&poison_unlearned),
        pairs: Some(pairs()),
        scores: subject_scores(),
    })
}

/// What a measurement with these parameters finds out about that model.
pub(crate) fn measured(entry: &MeasurementEntry, own: Value) -> Measured {
    let measurement = (entry.configure)(&own).unwrap();
    with_subject(|subject| in_context(&mut NoObserver, |context| measurement.measure(subject, context).unwrap()))
}
