//! Element by element, sums over all rows of a matrix, transposed matrices.

use super::Argument::{Maybe, Natural, Read, Single, Write};
use super::normalization::Cut;
use super::{Argument, Memory, Queue, Stored, View, integer, named, natural, one_each, width};
use crate::error::Result;

/// A kernel of elements that all lie at the same place of their arrays, and of some numbers.
fn elementwise<Q: Queue>(
    queue: &Q,
    kernel: &'static str,
    inputs: &[View],
    numbers: &[Argument<'static>],
) -> Result<Q::Memory> {
    let (element, count) = (inputs[0].element(), inputs[0].count());
    let result = queue.allocate(element, count)?;
    let width = width(count, inputs);
    let packs = count / width;
    let mut arguments: Vec<Argument> = inputs.iter().copied().map(Read).collect();
    arguments.extend([Write(result.view()), Natural(natural(kernel, packs)?)]);
    arguments.extend(numbers);
    // SAFETY: all arrays have `count` elements, packs of `width` of them; the result is fresh.
    unsafe { queue.launch(&named(kernel, element, width), one_each(packs), &arguments)? };
    Ok(result)
}

/// The kernels of one or two arrays, of equal lengths and element types, and perhaps a number.
macro_rules! maps {
    ($($(#[$attribute:meta])* $name:ident($first:ident $(, $second:ident)?) $(of $number:ident)?;)*) => {$(
        $(#[$attribute])*
        pub(crate) fn $name<Q: Queue>(
            queue: &Q,
            $first: View,
            $($second: View,)?
            $($number: f32,)?
        ) -> Result<Q::Memory> {
            elementwise(queue, stringify!($name), &[$first $(, $second)?], &[$(Single($number))?])
        }
    )*};
}

maps! {
    /// `a + b`
    add(a, b);
    /// `a - b`
    subtract(a, b);
    /// `a * b`
    multiply(a, b);
    /// `a / b`
    divide(a, b);
    /// `x * factor`
    scale(x) of factor;
    /// `x + term`
    offset(x) of term;
    /// The square root.
    square_root(x);
    /// The gradient of [`square_root`], of its result `root`.
    square_root_backward(dy, root);
    /// `|x|`
    absolute(x);
    /// The gradient of [`absolute`]: 0 where `x` is.
    absolute_backward(dy, x);
    /// `max(x, 0)`; what is not a number stays so.
    relu(x);
    /// `dy` where `x` is above 0 (or is not a number).
    relu_backward(dy, x);
    /// `1 / (1 + exp(-x))`
    sigmoid(x);
    /// The gradient of [`sigmoid`], of its result `y`.
    sigmoid_backward(dy, y);
    /// `tanh x`
    tanh(x);
    /// The gradient of [`tanh`], of its result `y`.
    tanh_backward(dy, y);
    /// `x * P(X < x)` for a standard normal `X`.
    gelu(x);
    /// The gradient of [`gelu`].
    gelu_backward(dy, x);
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
    sum_columns(queue, x, None, channels)
}

/// The sum of `a * b` over all rows of `channels` elements, `f32`.
pub(crate) fn column_products<Q: Queue>(queue: &Q, a: View, b: View, channels: usize) -> Result<Q::Memory> {
    sum_columns(queue, a, Some(b), channels)
}

fn sum_columns<Q: Queue>(queue: &Q, x: View, factor: Option<View>, channels: usize) -> Result<Q::Memory> {
    const OPERATION: &str = "column_sums";
    let views: Vec<View> = [Some(x), factor].into_iter().flatten().collect();
    let cut = Cut::of(OPERATION, x.count(), channels, width(channels, &views))?;
    let partial = queue.allocate(Stored::F32, cut.blocks * channels)?;
    let result = queue.allocate(Stored::F32, channels)?;
    let [rows, channels, rows_per_block] = cut.sizes();
    // SAFETY: a line of `partial` for every block, rows that `x` and `factor` have, and a result for every channel.
    unsafe {
        let arguments = [Read(x), Maybe(factor), Write(partial.view()), rows, channels, rows_per_block];
        queue.launch(&named(OPERATION, x.element(), cut.width), cut.grid(), &arguments)?;
        let arguments = [Read(partial.view()), cut.lines(), channels, Write(result.view())];
        queue.launch("column_sums_finish", cut.channel_grid(), &arguments)?;
    }
    Ok(result)
}

/// Which of two factors: see [`split`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Factor {
    One,
    Other,
}

/// Of each row of `length` numbers of `f32` three rows side by side whose products with those of the other factor add up to the
/// products of the two, to the precision of `f32` or nearly so, also where each number is rounded to TF32.
pub(crate) fn split<Q: Queue>(queue: &Q, x: View, length: usize, factor: Factor) -> Result<Q::Memory> {
    const OPERATION: &str = "split";
    let result = queue.allocate(Stored::F32, 3 * x.count())?;
    let count = natural(OPERATION, x.count())?;
    let arguments = [
        Read(x),
        Write(result.view()),
        Natural(count),
        Natural(natural(OPERATION, length)?),
        Argument::Integer((factor == Factor::Other).into()),
    ];
    // SAFETY: `x` has whole rows of `length` numbers, and the result three times as many.
    unsafe { queue.launch(OPERATION, one_each(x.count()), &arguments)? };
    Ok(result)
}

/// `[rows, columns]` to `[columns, rows]` of element type `to`, `f32` or `bf16`.
pub(crate) fn transpose<Q: Queue>(queue: &Q, x: View, rows: usize, columns: usize, to: Stored) -> Result<Q::Memory> {
    const OPERATION: &str = "transpose";
    const TILE: usize = 32;
    let result = queue.allocate(to, rows * columns)?;
    let grid = [natural(OPERATION, columns.div_ceil(TILE))?, natural(OPERATION, rows.div_ceil(TILE))?];
    let (rows, columns) = (integer(OPERATION, rows)?, integer(OPERATION, columns)?);
    let arguments = [Read(x), Write(result.view()), Argument::Integer(rows), Argument::Integer(columns)];
    // SAFETY: both matrices have `rows * columns` elements.
    unsafe { queue.launch(&format!("transpose_{}_to_{}", x.element().name(), to.name()), grid, &arguments)? };
    Ok(result)
}
