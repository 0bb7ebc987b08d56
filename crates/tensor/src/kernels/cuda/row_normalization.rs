//! Rows that are normalised one by one: softmax, its logarithm, layer normalisation.

use super::Argument::{self, Double, Integer, Read, Write};
use super::normalization::Cut;
use super::rows::Rows;
use super::{Memory, Queue, Stored, View, integer, named, width};
use crate::error::Result;

/// Launches a kernel of `row_normalization.cuh` on rows that all `views` have, or one of which they have.
///
/// # Safety
/// As [`Queue::launch`]; `others` are the kernel's arguments but for the last, which say how rows are given to threads.
unsafe fn launch<Q: Queue>(
    queue: &Q,
    kernel: &'static str,
    columns: usize,
    views: &[View],
    others: &[Argument],
) -> Result<()> {
    let rows = Rows::of(kernel, columns, views)?;
    let arguments: Vec<Argument> = others.iter().chain(&rows.sizes).copied().collect();
    // SAFETY: as the caller vouches.
    unsafe { queue.launch(&named(kernel, views[0].element(), rows.width), rows.grid, &arguments) }
}

/// The softmax of every row of `columns` elements, or its logarithm.
pub(crate) fn softmax<Q: Queue>(queue: &Q, x: View, columns: usize, logarithm: bool) -> Result<Q::Memory> {
    let y = queue.allocate(x.element(), x.count())?;
    let arguments = [Read(x), Write(y.view()), Integer(logarithm.into())];
    // SAFETY: `x` and `y` have the same whole rows.
    unsafe { launch(queue, "softmax", columns, &[x], &arguments)? };
    Ok(y)
}

/// The gradient of [`softmax`], from its output.
pub(crate) fn softmax_backward<Q: Queue>(
    queue: &Q,
    y: View,
    dy: View,
    columns: usize,
    logarithm: bool,
) -> Result<Q::Memory> {
    let dx = queue.allocate(y.element(), y.count())?;
    let arguments = [Read(y), Read(dy), Write(dx.view()), Integer(logarithm.into())];
    // SAFETY: all three have the same whole rows.
    unsafe { launch(queue, "softmax_backward", columns, &[y, dy], &arguments)? };
    Ok(dx)
}

/// Normalised rows, and for each of them `[rows]`, `f32`, what its backward pass needs.
pub(crate) struct Normalized<M> {
    pub y: M,
    pub mean: M,
    /// `1 / √(variance + epsilon)`.
    pub inverse: M,
}

/// `(x - mean) / √(variance + epsilon) · weight + bias` for every row of `x`; weight and bias are `f32`.
pub(crate) fn layer_norm<Q: Queue>(
    queue: &Q,
    x: View,
    weight: View,
    bias: View,
    epsilon: f64,
) -> Result<Normalized<Q::Memory>> {
    let columns = weight.count();
    let per_row = || queue.allocate(Stored::F32, x.count() / columns);
    let normalized = Normalized { y: queue.allocate(x.element(), x.count())?, mean: per_row()?, inverse: per_row()? };
    let arguments = [
        Read(x),
        Read(weight),
        Read(bias),
        Write(normalized.y.view()),
        Write(normalized.mean.view()),
        Write(normalized.inverse.view()),
        Double(epsilon),
    ];
    // SAFETY: `x` and `y` have the same whole rows, of as many elements as `weight` and `bias`.
    unsafe { launch(queue, "layer_norm", columns, &[x, weight, bias], &arguments)? };
    Ok(normalized)
}

/// The gradient of [`layer_norm`] with respect to `x`; `mean` and `inverse` are what it has kept.
pub(crate) fn layer_norm_backward<Q: Queue>(
    queue: &Q,
    [x, dy]: [View; 2],
    weight: View,
    [mean, inverse]: [View; 2],
) -> Result<Q::Memory> {
    let dx = queue.allocate(x.element(), x.count())?;
    let arguments = [Read(x), Read(dy), Read(weight), Read(mean), Read(inverse), Write(dx.view())];
    // SAFETY: the large arrays have the same whole rows, for each of which there is a mean and a deviation.
    unsafe { launch(queue, "layer_norm_backward", weight.count(), &[x, dy, weight], &arguments)? };
    Ok(dx)
}

/// The gradients of weight and bias, one after the other: `[2, columns]`, `f32`.
pub(crate) fn layer_norm_sums<Q: Queue>(
    queue: &Q,
    [x, dy]: [View; 2],
    [mean, inverse]: [View; 2],
) -> Result<Q::Memory> {
    const OPERATION: &str = "layer_norm backward";
    let columns = x.count() / mean.count();
    let cut = Cut::of(OPERATION, x.count(), columns, width(columns, &[x, dy]))?;
    let partial = queue.allocate(Stored::F32, cut.blocks * 2 * columns)?;
    let sums = queue.allocate(Stored::F32, 2 * columns)?;
    let [rows, channels, rows_per_block] = cut.sizes();
    let arguments =
        [Read(x), Read(dy), Read(mean), Read(inverse), Write(partial.view()), rows, channels, rows_per_block];
    let both = Integer(integer(OPERATION, 2 * columns)?);
    let finish = [Read(partial.view()), cut.lines(), both, Write(sums.view())];
    // SAFETY: `x` and `dy` have the same whole rows, for each of which there is a mean and a deviation; two lines of
    // `partial` for every block, which are one line of twice as many columns.
    unsafe {
        queue.launch(&named("layer_norm_sums", x.element(), cut.width), cut.grid(), &arguments)?;
        queue.launch("column_sums_finish", Cut::column_grid(2 * columns), &finish)?;
    }
    Ok(sums)
}
