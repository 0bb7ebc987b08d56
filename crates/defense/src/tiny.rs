//! The tiny network of `tools/reference/tsbd.py`, its data and its golden values: for tests.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use safetensors::SafeTensors;
use serde_json::{Map, Value};
use tsbd_attack::{DatasetFacts, Evaluation};
use tsbd_data::{Augmentation, Images, Normalization};
use tsbd_nn::{Architecture, Layer, Model, Module, Pass, StateDict, Streams};
use tsbd_tensor::{Device, Tensor, Var};

use crate::{CleanSubset, Context, DefenseCommon, DefenseObserver, Progress};

/// Two convolutions with a shortcut between them, a batch norm each, and a linear layer.
#[derive(Debug)]
struct Tiny(Vec<Module>);

impl Architecture for Tiny {
    fn name(&self) -> &str {
        "tiny"
    }
    fn modules(&self) -> &[Module] {
        &self.0
    }
    fn classes(&self) -> usize {
        3
    }
    fn head(&self) -> &str {
        "linear"
    }
    fn features(&self) -> &str {
        "features"
    }
    fn attention(&self) -> &[&str] {
        &["block", "features"]
    }
    fn forward(&self, pass: &Pass, images: &Var) -> tsbd_nn::Result<Var> {
        let x = pass.batch_norm_relu("bn1", &pass.conv("conv1", images)?)?;
        let x = pass.conv("conv2", &x)?.add(&pass.conv("shortcut", &x)?)?;
        pass.output("block", &x);
        let x = pass.batch_norm_relu("bn2", &x)?.global_average_pool()?;
        pass.output("features", &x);
        pass.linear("linear", &x)
    }
}

pub(crate) fn architecture() -> Arc<dyn Architecture> {
    let conv = |name, in_channels, out_channels, kernel, stride| {
        let padding = kernel / 2;
        Module::new(name, Layer::Conv2d { in_channels, out_channels, kernel, stride, padding, bias: false })
    };
    let norm = |name, channels| Module::new(name, Layer::BatchNorm2d { channels });
    Arc::new(Tiny(vec![
        conv("conv1", 3, 4, 3, 1),
        norm("bn1", 4),
        conv("conv2", 4, 12, 3, 2),
        conv("shortcut", 4, 12, 1, 2),
        norm("bn2", 12),
        Module::new("linear", Layer::Linear { in_features: 12, out_features: 3 }),
    ]))
}

fn path(file: &str) -> PathBuf {
    golden_path("tsbd").join(file)
}

/// A file that a program of `tools/reference` made.
pub(crate) fn golden_path(file: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/reference/golden")).join(file)
}

/// A JSON file that a program of `tools/reference` made.
pub(crate) fn golden_json(file: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(golden_path(file)).unwrap()).unwrap()
}

/// The tensors of a file in the folder of golden values, as they are in it.
pub(crate) fn tensors(file: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(golden_path(file), &Device::Cpu).unwrap()
}

/// The tiny model with the weights of a file in the folder of golden values.
pub(crate) fn model_in(folder: &str, name: &str) -> Model {
    model(&format!("../{folder}/{name}"))
}

/// golden.json of a folder.
pub(crate) fn golden_in(folder: &str) -> Value {
    golden_json(&format!("{folder}/golden.json"))
}

/// The model with the weights of a golden file.
pub(crate) fn model(name: &str) -> Model {
    Model::load(architecture(), path(&format!("{name}.safetensors"))).unwrap()
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
    let bytes = std::fs::read(path(&format!("{name}.safetensors"))).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor(tensor).unwrap().data().to_vec();
    data.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

pub(crate) fn images() -> Arc<Images> {
    let bytes = std::fs::read(path("images.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let labels = tensors.tensor("labels").unwrap().data().to_vec();
    let labels = labels.chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect();
    Arc::new(Images::new(tensors.tensor("images").unwrap().data().to_vec(), labels, (8, 8), 3))
}

pub(crate) fn facts() -> DatasetFacts {
    DatasetFacts { classes: 3, train_images: 24, images_per_class: vec![8; 3], size: 8 }
}

/// All images, in batches of `batch_size`.
pub(crate) fn common(batch_size: usize) -> DefenseCommon {
    DefenseCommon { clean_ratio: 1.0, batch_size }
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
