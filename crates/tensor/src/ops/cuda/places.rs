//! Channels put side by side, pixels repeated, images framed with zeros.

use candle_core::Tensor;

use super::from_one;
use crate::error::Result;
use crate::kernels::cuda::gpu::Gpu;
use crate::kernels::cuda::places;
use crate::kernels::places::Frame;

/// The channels of all `parts`, which have so many, one after another.
pub(crate) fn join(
    gpu: &Gpu,
    operation: &'static str,
    parts: &[&Tensor],
    widths: &[usize],
    dims: &[usize],
) -> Result<Tensor> {
    let first = gpu.activations(operation, "parts", parts[0])?;
    let others = parts[1..].iter().map(|part| gpu.like(operation, "parts", part, &first));
    let others = others.collect::<Result<Vec<_>>>()?;
    let views = std::iter::once(&first).chain(&others).map(|part| part.view());
    let matrices: Vec<_> = views.zip(widths.iter().copied()).collect();
    Ok(gpu.tensor(places::join_columns(gpu, &matrices)?, dims))
}

/// Channels `start..start + width` of `all`.
pub(crate) fn columns(
    gpu: &Gpu,
    operation: &'static str,
    dy: &Tensor,
    all: usize,
    [start, width]: [usize; 2],
    dims: &[usize],
) -> Result<Tensor> {
    from_one(gpu, operation, ("dy", dy), dims, |dy| places::take_columns(gpu, dy, all, start, width))
}

/// Pixels of images of a height, a width and channels as squares of `factor` by `factor`.
pub(crate) fn repeat_pixels(
    gpu: &Gpu,
    operation: &'static str,
    x: &Tensor,
    image: [usize; 3],
    factor: usize,
    dims: &[usize],
) -> Result<Tensor> {
    from_one(gpu, operation, ("x", x), dims, |x| places::repeat_pixels(gpu, x, image, factor))
}

pub(crate) fn repeat_pixels_backward(
    gpu: &Gpu,
    operation: &'static str,
    dy: &Tensor,
    image: [usize; 3],
    factor: usize,
    dims: &[usize],
) -> Result<Tensor> {
    from_one(gpu, operation, ("dy", dy), dims, |dy| places::repeat_pixels_backward(gpu, dy, image, factor))
}

/// Images within a border of zeros.
pub(crate) fn pad(gpu: &Gpu, operation: &'static str, x: &Tensor, frame: Frame, dims: &[usize]) -> Result<Tensor> {
    from_one(gpu, operation, ("x", x), dims, |x| places::pad(gpu, x, frame))
}

/// What lies within the border.
pub(crate) fn cut(gpu: &Gpu, operation: &'static str, dy: &Tensor, frame: Frame, dims: &[usize]) -> Result<Tensor> {
    from_one(gpu, operation, ("dy", dy), dims, |dy| places::cut(gpu, dy, frame))
}
