//! Element by element, sums over rows, transposed matrices, and the optimiser's step.

use super::Argument::{Natural, Read, Single, Write};
use super::normalization::Cut;
use super::{Argument, Memory, Queue, Stored, View, integer, named, natural, one_each, width};
use crate::error::Result;

/// A kernel of elements that all lie at the same place of their arrays.
pub(super) fn elementwise<Q: Queue>(queue: &Q, kernel: &'static str, inputs: &[View]) -> Result<Q::Memory> {
    let (element, count) = (inputs[0].element(), inputs[0].count());
    let result = queue.allocate(element, count)?;
    let width = width(count, inputs);
    let packs = count / width;
    let mut arguments: Vec<Argument> = inputs.iter().copied().map(Read).collect();
    arguments.extend([Write(result.view()), Natural(natural(kernel, packs)?)]);
    // SAFETY: all arrays have `count` elements, packs of `width` of them; the result is fresh.
    unsafe { queue.launch(&named(kernel, element, width), one_each(packs), &arguments)? };
    Ok(result)
}

/// `a + b`, of equal lengths and element types.
pub(crate) fn add<Q: Queue>(queue: &Q, a: View, b: View) -> Result<Q::Memory> {
    elementwise(queue, "add", &[a, b])
}

/// `max(x, 0)`.
pub(crate) fn relu<Q: Queue>(queue: &Q, x: View) -> Result<Q::Memory> {
    elementwise(queue, "relu", &[x])
}

/// `dy` where `x` is above 0.
pub(crate) fn relu_backward<Q: Queue>(queue: &Q, dy: View, x: View) -> Result<Q::Memory> {
    elementwise(queue, "relu_backward", &[dy, x])
}

/// `x + bias` for every row of `x`.
pub(crate) fn add_bias<Q: Queue>(queue: &Q, x: View, bias: View) -> Result<Q::Memory> {
    const OPERATION: &str = "add_bias";
    let channels = bias.count();
    let result = queue.allocate(x.element(), x.count())?;
    let width = width(channels, &[x, bias]);
    let packs = x.count() / width;
    let arguments = [
        Read(x),
        Read(bias),
        Write(result.view()),
        Natural(natural(OPERATION, packs)?),
        Argument::Integer(integer(OPERATION, channels)?),
    ];
    // SAFETY: `x` and the result have whole rows of `channels` elements, as many as `bias` has.
    unsafe { queue.launch(&named(OPERATION, x.element(), width), one_each(packs), &arguments)? };
    Ok(result)
}

/// The sum over all rows of `channels` elements, `f32`.
pub(crate) fn column_sums<Q: Queue>(queue: &Q, x: View, channels: usize) -> Result<Q::Memory> {
    const OPERATION: &str = "column_sums";
    let cut = Cut::of(OPERATION, x.count(), channels, width(channels, &[x]))?;
    let partial = queue.allocate(Stored::F32, cut.blocks * channels)?;
    let result = queue.allocate(Stored::F32, channels)?;
    let [rows, channels, rows_per_block] = cut.sizes();
    // SAFETY: a line of `partial` for every block, rows that `x` has, and a result for every channel.
    unsafe {
        let arguments = [Read(x), Write(partial.view()), rows, channels, rows_per_block];
        queue.launch(&named(OPERATION, x.element(), cut.width), cut.grid(), &arguments)?;
        let arguments = [Read(partial.view()), cut.lines(), channels, Write(result.view())];
        queue.launch("column_sums_finish", cut.channel_grid(), &arguments)?;
    }
    Ok(result)
}

/// `[rows, columns]` to `[columns, rows]`.
pub(crate) fn transpose<Q: Queue>(queue: &Q, x: View, rows: usize, columns: usize) -> Result<Q::Memory> {
    const OPERATION: &str = "transpose";
    const TILE: usize = 32;
    let result = queue.allocate(x.element(), rows * columns)?;
    let grid = [natural(OPERATION, columns.div_ceil(TILE))?, natural(OPERATION, rows.div_ceil(TILE))?];
    let (rows, columns) = (integer(OPERATION, rows)?, integer(OPERATION, columns)?);
    let arguments = [Read(x), Write(result.view()), Argument::Integer(rows), Argument::Integer(columns)];
    // SAFETY: both matrices have `rows * columns` elements.
    unsafe { queue.launch(&named(OPERATION, x.element(), 1), grid, &arguments)? };
    Ok(result)
}

/// `velocity = momentum·velocity + gradient + weight_decay·parameter`, then `parameter -= learning_rate·velocity`, in
/// place, for everybody who holds them; coefficients in this order: learning rate, momentum, weight decay.
///
/// # Panics
/// If the three differ in length, or overlap.
pub(crate) fn sgd<Q: Queue>(
    queue: &Q,
    parameter: View,
    velocity: View,
    gradient: View,
    [learning_rate, momentum, weight_decay]: [f32; 3],
) -> Result<()> {
    let count = parameter.count();
    assert!(velocity.count() == count && gradient.count() == count);
    let overlap = parameter.overlaps(&velocity) || parameter.overlaps(&gradient) || velocity.overlaps(&gradient);
    assert!(!overlap);
    let arguments = [
        Write(parameter),
        Write(velocity),
        Read(gradient),
        Single(learning_rate),
        Single(momentum),
        Single(weight_decay),
        Natural(natural("sgd_step", count)?),
    ];
    // SAFETY: three arrays of `count` elements; what else is launched with them runs before or after.
    unsafe { queue.launch("sgd", one_each(count), &arguments) }
}
