//! The tangent of the mean cross-entropy, and its gradients.

use candle_core::Tensor;

use crate::error::Result;
use crate::kernels::cuda::gpu::Gpu;
use crate::kernels::cuda::{Stored, curvature as kernels};

pub(in crate::ops) fn slope(
    gpu: &Gpu,
    operation: &'static str,
    [logits, tangent]: [&Tensor; 2],
    labels: &Tensor,
    smoothing: f64,
) -> Result<Tensor> {
    let values = gpu.numbers(operation, "logits", logits)?;
    let slopes = gpu.numbers(operation, "tangent", tangent)?;
    let classes = gpu.read(operation, "labels", labels, &[Stored::U32])?;
    Ok(gpu.tensor(kernels::tangent(gpu, values.view(), slopes.view(), classes.view(), smoothing)?, &[]))
}

pub(in crate::ops) fn curvature(
    gpu: &Gpu,
    operation: &'static str,
    gradient: &Tensor,
    [logits, tangent]: [&Tensor; 2],
) -> Result<Tensor> {
    let gradient = gpu.numbers(operation, "gradient", gradient)?;
    let values = gpu.numbers(operation, "logits", logits)?;
    let slopes = gpu.numbers(operation, "tangent", tangent)?;
    let rows = logits.dims()[0];
    let curved = kernels::curvature(gpu, gradient.view(), values.view(), slopes.view(), rows)?;
    Ok(gpu.tensor(curved, logits.dims()))
}
