//! Sums, products, roots and activation functions, element by element; sums over everything, rows and channels.

use candle_core::Tensor;

use super::{from_one, from_two};
use crate::error::Result;
use crate::kernels::cuda::gpu::{Allocation, Gpu};
use crate::kernels::cuda::{View, elementwise, normalization, rows};

/// Sums, which kernels give in `f32`, in the element type of `x`.
fn sums(
    gpu: &Gpu,
    operation: &'static str,
    x: &Tensor,
    dims: &[usize],
    kernel: impl FnOnce(View) -> Result<Allocation>,
) -> Result<Tensor> {
    Ok(from_one(gpu, operation, ("self", x), dims, kernel)?.to_dtype(x.dtype())?)
}

/// `factor` times the sum of all elements, a scalar.
pub(crate) fn total(gpu: &Gpu, operation: &'static str, x: &Tensor, factor: f64) -> Result<Tensor> {
    sums(gpu, operation, x, &[], |x| rows::total(gpu, x, factor))
}

/// The mean of each row of `size` elements.
pub(crate) fn row_means(gpu: &Gpu, operation: &'static str, x: &Tensor, size: usize) -> Result<Tensor> {
    let count = x.elem_count() / size;
    sums(gpu, operation, x, &[count], |x| rows::sums(gpu, x, size, 1. / size as f64))
}

/// `factor` times each number of `gradient` at all places of a row: `dims`, as many rows as numbers.
pub(crate) fn filled(
    gpu: &Gpu,
    operation: &'static str,
    gradient: &Tensor,
    factor: f64,
    dims: &[usize],
) -> Result<Tensor> {
    let columns = dims.iter().product::<usize>() / gradient.elem_count();
    from_one(gpu, operation, ("gradient", gradient), dims, |numbers| rows::filled(gpu, numbers, columns, factor as f32))
}

/// Each row of `size` elements divided by its norm plus `epsilon`.
pub(crate) fn divide_by_norm(
    gpu: &Gpu,
    operation: &'static str,
    x: &Tensor,
    size: usize,
    epsilon: f64,
) -> Result<Tensor> {
    from_one(gpu, operation, ("self", x), x.dims(), |x| rows::normalized(gpu, x, size, epsilon))
}

pub(crate) fn divide_by_norm_backward(
    gpu: &Gpu,
    operation: &'static str,
    dy: &Tensor,
    x: &Tensor,
    size: usize,
    epsilon: f64,
) -> Result<Tensor> {
    from_two(gpu, operation, [("dy", dy), ("self", x)], |dy, x| rows::normalized_backward(gpu, dy, x, size, epsilon))
}

/// `x`, a batch of one, as often as the batch `dims` has elements.
pub(crate) fn repeated(gpu: &Gpu, operation: &'static str, x: &Tensor, dims: &[usize]) -> Result<Tensor> {
    from_one(gpu, operation, ("self", x), dims, |row| rows::repeated(gpu, row, dims[0]))
}

/// The sum over rows of as many elements as `dims` has.
pub(crate) fn column_sums(gpu: &Gpu, operation: &'static str, x: &Tensor, dims: &[usize]) -> Result<Tensor> {
    sums(gpu, operation, x, dims, |x| elementwise::column_sums(gpu, x, dims.iter().product()))
}

/// `Σ a · b` per channel, of equal shapes.
pub(crate) fn channel_products(gpu: &Gpu, operation: &'static str, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let channels = a.dim(candle_core::D::Minus1)?;
    let left = gpu.activations(operation, "self", a)?;
    let right = gpu.like(operation, "other", b, &left)?;
    let products = elementwise::column_products(gpu, left.view(), right.view(), channels)?;
    Ok(gpu.tensor(products, &[channels]).to_dtype(a.dtype())?)
}

/// `x · scale + shift` per channel, all of one element type.
pub(crate) fn scale_channels(
    gpu: &Gpu,
    operation: &'static str,
    x: &Tensor,
    scale: &Tensor,
    shift: Option<&Tensor>,
) -> Result<Tensor> {
    let values = gpu.activations(operation, "x", x)?;
    gpu.like(operation, "scale", scale, &values)?;
    if let Some(shift) = shift {
        gpu.like(operation, "shift", shift, &values)?;
    }
    // The kernel takes both in `f32`: nothing happens to what is.
    let single = |vector: &Tensor| vector.to_dtype(candle_core::DType::F32);
    let (scale, shift) = (single(scale)?, shift.map(single).transpose()?);
    let scale = gpu.numbers(operation, "scale", &scale)?;
    let shift = shift.as_ref().map(|shift| gpu.numbers(operation, "shift", shift)).transpose()?;
    let shift = shift.as_ref().map(|shift| shift.view());
    Ok(gpu.tensor(normalization::apply(gpu, values.view(), scale.view(), shift, false)?, x.dims()))
}
