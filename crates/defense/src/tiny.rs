//! The tiny network of `tsbd_testing` with the golden values of `tools/reference/tsbd.py` and others: for tests.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use serde_json::{Map, Value};
use tsbd_attack::{DatasetFacts, Evaluation};
use tsbd_data::{Augmentation, Images, Normalization};
use tsbd_nn::{Model, StateDict, Streams};
use tsbd_tensor::{Device, Tensor};
use tsbd_testing::Golden;
pub(crate) use tsbd_testing::golden_path;
pub(crate) use tsbd_testing::tiny::architecture;

use crate::{CleanSubset, Context, DefenseCommon, DefenseObserver, Progress};

/// A JSON file that a program of `tools/reference` made.
pub(crate) fn golden_json(file: &str) -> Value {
    tsbd_testing::numbers(file)
}

/// The tensors of a file in the folder of golden values, as they are in it.
pub(crate) fn tensors(file: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(golden_path(file), &Device::Cpu).unwrap()
}

/// The tiny model with the weights of a file in the folder of golden values.
pub(crate) fn model_in(folder: &str, name: &str) -> Model {
    tsbd_testing::tiny::model(&format!("{folder}/{name}"))
}

/// golden.json of a folder.
pub(crate) fn golden_in(folder: &str) -> Value {
    golden_json(&format!("{folder}/golden.json"))
}

/// The model with the weights of a golden file.
pub(crate) fn model(name: &str) -> Model {
    model_in("tsbd", name)
}

/// The numbers of golden.json.
pub(crate) fn golden() -> Map<String, Value> {
    serde_json::from_value(golden_in("tsbd")).unwrap()
}

/// A list of numbers of golden.json.
pub(crate) fn numbers(name: &str) -> Vec<f64> {
    serde_json::from_value(golden()[name].clone()).unwrap()
}

/// The convolutions' weights of a golden file, `[out, in, kh, kw]` flattened.
pub(crate) fn weights(name: &str, tensor: &str) -> Vec<f32> {
    Golden::read(&format!("tsbd/{name}")).floats(tensor)
}

pub(crate) fn images() -> Arc<Images> {
    Arc::new(tsbd_testing::tiny::images("tsbd/images", "images"))
}

pub(crate) fn facts() -> DatasetFacts {
    DatasetFacts::balanced(3, 24, 24, 8)
}

/// All images, in batches of `batch_size`.
pub(crate) fn common(batch_size: usize) -> DefenseCommon {
    DefenseCommon { clean_ratio: 1.0, batch_size, ..DefenseCommon::default() }
}

/// All images in the order of seed 0.
pub(crate) fn clean() -> CleanSubset {
    CleanSubset::draw(images(), &common(1), 0).unwrap()
}

/// Runs `with` in a context without augmentation. Test sets are measured as `acc` 0.5, `asr` 0.25.
pub(crate) fn in_context<'a, T>(observer: &'a mut dyn DefenseObserver, with: impl FnOnce(&mut Context<'a>) -> T) -> T {
    with(&mut Context {
        streams: Streams::new(0),
        device: Device::Cpu,
        normalization: Normalization::IDENTITY,
        augmentation: Augmentation { crop_padding: 0, flip: false },
        clean_test: images(),
        evaluate: &|_: &Model| Ok(Evaluation { acc: 0.5, asr: Some(0.25), ..Evaluation::default() }),
        unlearned: None,
        observer,
    })
}

/// Stops a repair in the step with this number of whatever stage gets so far.
pub(crate) struct StopAfter(pub(crate) usize);

impl tsbd_nn::Keeper for StopAfter {}

impl DefenseObserver for StopAfter {
    fn progress(&mut self, progress: &Progress) -> ControlFlow<()> {
        assert!(progress.done <= progress.total, "{progress:?}");
        if progress.done >= self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// Fails unless every number of two state dicts differs by less than `tolerance`.
pub(crate) fn assert_close(found: &StateDict, expected: &StateDict, tolerance: f64) {
    for (name, entry) in expected.entries() {
        let [a, b] = [found.get(name).unwrap(), &entry.tensor].map(|tensor| {
            let flat = tensor.flatten_all().unwrap().to_dtype(tsbd_tensor::DType::F64).unwrap();
            flat.to_vec1::<f64>().unwrap()
        });
        let largest = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(largest < tolerance, "{name} differs by {largest:e}");
    }
}

/// Fails unless every number differs by less than `tolerance` times the largest of `expected`.
#[track_caller]
pub(crate) fn assert_near(name: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let largest = expected.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    for (place, (&found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found) - expected).abs();
        assert!(error < tolerance * largest, "{name}, {place}: {found}, not {expected} ({:e})", error / largest);
    }
}
