//! Weights and images from a formula that `tools/reference/model.py` computes too, and the goldens made there.
#![allow(dead_code, reason = "each test program uses a part")]

use std::path::PathBuf;
use tsbd_models::preact_resnet18;
use tsbd_nn::{Batch, Layout, Model, Role, Streams};
use tsbd_tensor::{DType, Device, Tensor};

/// `count` numbers in [-1, 1): SplitMix64 of (stream, position); `values` in the Python program.
pub fn values(stream: u64, count: usize) -> Vec<f64> {
    let number = |position: u64| {
        let z = ((stream << 32) + position).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (1..=count as u64).map(number).collect()
}

/// PreAct-ResNet18 with the formula's weights; `fill` in the Python program.
pub fn network(width: usize, dtype: DType) -> Model {
    let mut model = Model::new(preact_resnet18(width, 10), &mut Streams::new(0).stream("weights", 0)).unwrap();
    let entries: Vec<_> = model
        .state
        .entries()
        .map(|(name, entry)| (name.to_owned(), entry.role, entry.layout, entry.tensor.dims().to_vec()))
        .collect();
    for (stream, (name, role, layout, dims)) in entries.into_iter().enumerate() {
        if role == Role::Counter {
            continue;
        }
        let file_dims = layout.file_dims(&dims);
        let fan_in: usize = file_dims.iter().skip(1).product();
        let shift_and_scale = |value: f64| {
            if file_dims.len() > 1 {
                value * (3.0 / fan_in as f64).sqrt()
            } else if name.ends_with("running_var") || (name.ends_with("weight") && name.contains("bn")) {
                1.0 + 0.3 * value
            } else {
                0.2 * value
            }
        };
        let numbers: Vec<f32> = values(stream as u64, dims.iter().product())
            .into_iter()
            .map(|value| shift_and_scale(value) as f32)
            .collect();
        let tensor = Tensor::from_vec(numbers, file_dims.as_slice(), &Device::Cpu).unwrap();
        match layout {
            Layout::Convolution => {
                let filters = tensor.reshape((file_dims[0], fan_in)).unwrap();
                model.state.set_filters(&name, &filters).unwrap();
            }
            Layout::Same => model.state.set(&name, &tensor).unwrap(),
        }
    }
    model.state = model.state.to_dtype(dtype).unwrap();
    model
}

/// The formula's four images with their labels.
pub fn batch(size: usize, stream: u64, dtype: DType) -> Batch {
    let pixels: Vec<f32> = values(stream, 4 * size * size * 3).into_iter().map(|value| value as f32).collect();
    Batch {
        images: Tensor::from_vec(pixels, (4, size, size, 3), &Device::Cpu).unwrap().to_dtype(dtype).unwrap(),
        labels: Tensor::new(&[1u32, 4, 7, 0], &Device::Cpu).unwrap(),
        indices: vec![0, 1, 2, 3],
    }
}

/// A file below `tools/reference/golden`.
pub fn golden(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/reference/golden")).join(path)
}

/// The tensors of a golden file.
pub fn tensors(path: &str) -> std::collections::HashMap<String, Tensor> {
    candle_core::safetensors::load(golden(path), &Device::Cpu).unwrap()
}

/// All numbers of a tensor.
pub fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// Norm, dot product with the values of stream 2000, and 16 elements, in PyTorch's layout; `summary` in the Python program.
pub fn summary(tensor: &Tensor) -> Vec<f64> {
    let tensor =
        if tensor.rank() == 4 { tensor.permute((3, 2, 0, 1)).unwrap().contiguous().unwrap() } else { tensor.clone() };
    let flat = numbers(&tensor);
    let norm = flat.iter().map(|value| value * value).sum::<f64>().sqrt();
    let dot = flat.iter().zip(values(2000, flat.len())).map(|(a, b)| a * b).sum();
    let picks = (0..16).map(|pick| flat[pick * flat.len() / 16]);
    [norm, dot].into_iter().chain(picks).collect()
}

/// The largest difference, relative to the largest number expected.
pub fn error(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(1e-300, |largest: f64, value| largest.max(value.abs()));
    found.iter().zip(expected).fold(0.0, |worst: f64, (found, expected)| {
        let difference = (found - expected).abs();
        if difference.is_nan() { f64::INFINITY } else { worst.max(difference / scale) }
    })
}

/// Holds each tensor's summary against a row of a golden's table, relative to the tensor's norm.
pub fn compare<'a>(found: impl Iterator<Item = (&'a str, &'a Tensor)>, table: &Tensor, tolerance: f64) {
    let rows = table.to_vec2::<f64>().unwrap();
    let found: Vec<_> = found.collect();
    assert_eq!(found.len(), rows.len());
    for ((name, tensor), row) in found.into_iter().zip(rows) {
        let error = error(&summary(tensor), &row);
        assert!(error < tolerance, "{name}: differs from PyTorch by {error:e} of its norm");
    }
}
