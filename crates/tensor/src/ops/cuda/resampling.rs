//! Images in another size, and at given points. The grid of the points is `f32`, also of `bf16` images.

use candle_core::Tensor;

use crate::error::Result;
use crate::kernels::cuda::gpu::Gpu;
use crate::kernels::cuda::resampling;
use crate::kernels::grid_sample::Sampling;
use crate::kernels::resize::Resize;

pub(in crate::ops) fn resize(
    gpu: &Gpu,
    operation: &'static str,
    change: &Resize,
    x: &Tensor,
    dims: &[usize],
) -> Result<Tensor> {
    let values = gpu.activations(operation, "x", x)?;
    Ok(gpu.tensor(resampling::resize(gpu, change, values.view())?, dims))
}

pub(in crate::ops) fn resize_backward(
    gpu: &Gpu,
    operation: &'static str,
    change: &Resize,
    dy: &Tensor,
    dims: &[usize],
) -> Result<Tensor> {
    let gradient = gpu.activations(operation, "dy", dy)?;
    Ok(gpu.tensor(resampling::resize_backward(gpu, change, gradient.view())?, dims))
}

pub(in crate::ops) fn sample(
    gpu: &Gpu,
    operation: &'static str,
    sampling: &Sampling,
    x: &Tensor,
    grid: &Tensor,
    dims: &[usize],
) -> Result<Tensor> {
    let values = gpu.activations(operation, "x", x)?;
    let points = gpu.numbers(operation, "grid", grid)?;
    Ok(gpu.tensor(resampling::sample(gpu, sampling, values.view(), points.view())?, dims))
}

pub(in crate::ops) fn sample_backward_grid(
    gpu: &Gpu,
    operation: &'static str,
    sampling: &Sampling,
    x: &Tensor,
    grid: &Tensor,
    dy: &Tensor,
) -> Result<Tensor> {
    let values = gpu.activations(operation, "x", x)?;
    let points = gpu.numbers(operation, "grid", grid)?;
    let gradient = gpu.like(operation, "dy", dy, &values)?;
    let dgrid = resampling::sample_backward_grid(gpu, sampling, values.view(), points.view(), gradient.view())?;
    Ok(gpu.tensor(dgrid, grid.dims()))
}

pub(in crate::ops) fn sample_backward_images(
    gpu: &Gpu,
    operation: &'static str,
    sampling: &Sampling,
    grid: &Tensor,
    dy: &Tensor,
    dims: &[usize],
) -> Result<Tensor> {
    let gradient = gpu.activations(operation, "dy", dy)?;
    let points = gpu.numbers(operation, "grid", grid)?;
    Ok(gpu.tensor(resampling::sample_backward_images(gpu, sampling, points.view(), gradient.view())?, dims))
}
