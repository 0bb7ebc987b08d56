//! Transposed convolution: the passes of the convolution whose transpose it is, in another order.

use candle_core::Tensor;

use super::{biased, written};
use crate::error::Result;
use crate::kernels::convolution::Geometry;
use crate::kernels::cuda::convolution;
use crate::kernels::cuda::gpu::Gpu;
use crate::ops::Manner;

/// The transposed convolution of `x`, plus a bias; `g` is that of the convolution.
pub(in crate::ops) fn products(
    gpu: &Gpu,
    operation: &'static str,
    g: &Geometry,
    manner: Manner,
    [x, weight]: [&Tensor; 2],
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let image = gpu.activations(operation, "x", x)?;
    let filter = gpu.like(operation, "weight", weight, &image)?;
    let fresh = convolution::backward_input(gpu, (g, manner), image.view(), filter.view(), None)?;
    let y = written(gpu, fresh, None, &[g.images, g.height, g.width, g.in_channels])?;
    bias.map_or(Ok(y.clone()), |bias| biased(gpu, operation, &y, bias))
}

pub(in crate::ops) fn input_gradient(
    gpu: &Gpu,
    operation: &'static str,
    (g, manner): (&Geometry, Manner),
    dy: &Tensor,
    weight: &Tensor,
    existing: Option<Tensor>,
) -> Result<Tensor> {
    let gradient = gpu.activations(operation, "dy", dy)?;
    let filter = gpu.like(operation, "weight", weight, &gradient)?;
    // The sum so far may be somebody's retained gradient.
    let start = existing.map(|existing| existing.copy()).transpose()?;
    let fresh = {
        let start = start.as_ref().map(|start| gpu.like(operation, "dx", start, &gradient)).transpose()?;
        let start = start.as_ref().map(|start| start.view());
        convolution::forward(gpu, (g, manner), gradient.view(), filter.view(), start)?
    };
    written(gpu, fresh, start, &[g.images, g.out_height, g.out_width, g.out_channels])
}
