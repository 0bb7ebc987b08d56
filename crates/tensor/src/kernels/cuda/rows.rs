//! Sums over single rows, and numbers spread over rows.

use super::Argument::{Double, Integer, Natural, Read, Single, Write};
use super::{Argument, Memory, Queue, Stored, THREADS, View, integer, named, natural, one_each, width};
use crate::error::Result;

/// How the rows of a matrix are given to threads; see `row.cuh`. Depends on the shape alone.
pub(super) struct Rows {
    /// How many there are, the last of which may be shorter.
    count: usize,
    /// Elements that a thread takes at once.
    pub width: usize,
    /// Packs of all rows, packs of one, and threads that share one.
    pub sizes: [Argument<'static>; 3],
    pub grid: [u32; 2],
}

impl Rows {
    pub fn of(operation: &'static str, columns: usize, views: &[View]) -> Result<Self> {
        let elements = views[0].count();
        // Every row begins at a whole pack, and the last one ends with one.
        let width = width(columns, views).min(width(elements, views));
        let (packs, columns) = (elements / width, columns / width);
        let lanes = columns.next_power_of_two().min(THREADS);
        let count = packs.div_ceil(columns);
        Ok(Self {
            count,
            width,
            sizes: [
                Natural(natural(operation, packs)?),
                Natural(natural(operation, columns)?),
                Integer(integer(operation, lanes)?),
            ],
            grid: [natural(operation, count.div_ceil(THREADS / lanes))?, 1],
        })
    }
}

/// `factor` times the sum over each row of `columns` elements, `f32`.
pub(crate) fn sums<Q: Queue>(queue: &Q, x: View, columns: usize, factor: f64) -> Result<Q::Memory> {
    const OPERATION: &str = "row_sums";
    let rows = Rows::of(OPERATION, columns, &[x])?;
    let sums = queue.allocate(Stored::F32, rows.count)?;
    let mut arguments = vec![Read(x), Write(sums.view())];
    arguments.extend(rows.sizes);
    arguments.push(Double(factor));
    // SAFETY: the rows are those of `x`, and there is a sum for each.
    unsafe { queue.launch(&named(OPERATION, x.element(), rows.width), rows.grid, &arguments)? };
    Ok(sums)
}

/// `factor` times the sum of all elements, `f32`.
pub(crate) fn total<Q: Queue>(queue: &Q, x: View, factor: f64) -> Result<Q::Memory> {
    /// Elements that a block sums; in an array of more than so many pieces, a multiple of that.
    const PIECE: usize = 4096;
    let piece = x.count().div_ceil(PIECE).next_multiple_of(PIECE);
    if x.count() <= piece {
        return sums(queue, x, piece, factor);
    }
    let partial = sums(queue, x, piece, 1.)?;
    sums(queue, partial.view(), partial.view().count(), factor)
}

/// Every row of `columns` elements divided by its Euclidean norm plus `epsilon`.
pub(crate) fn normalized<Q: Queue>(queue: &Q, x: View, columns: usize, epsilon: f64) -> Result<Q::Memory> {
    const OPERATION: &str = "normalized_rows";
    let rows = Rows::of(OPERATION, columns, &[x])?;
    let y = queue.allocate(x.element(), x.count())?;
    let mut arguments = vec![Read(x), Write(y.view())];
    arguments.extend(rows.sizes);
    arguments.push(Double(epsilon));
    // SAFETY: the rows are those of `x` and `y`.
    unsafe { queue.launch(&named(OPERATION, x.element(), rows.width), rows.grid, &arguments)? };
    Ok(y)
}

/// The gradient of [`normalized`].
pub(crate) fn normalized_backward<Q: Queue>(
    queue: &Q,
    dy: View,
    x: View,
    columns: usize,
    epsilon: f64,
) -> Result<Q::Memory> {
    const OPERATION: &str = "normalized_rows_backward";
    let rows = Rows::of(OPERATION, columns, &[x, dy])?;
    let dx = queue.allocate(x.element(), x.count())?;
    let mut arguments = vec![Read(dy), Read(x), Write(dx.view())];
    arguments.extend(rows.sizes);
    arguments.push(Double(epsilon));
    // SAFETY: the rows are those of all three.
    unsafe { queue.launch(&named(OPERATION, x.element(), rows.width), rows.grid, &arguments)? };
    Ok(dx)
}

/// A row of `columns` elements for each of `numbers`, all of them `factor` times the number.
pub(crate) fn filled<Q: Queue>(queue: &Q, numbers: View, columns: usize, factor: f32) -> Result<Q::Memory> {
    const OPERATION: &str = "filled_rows";
    let result = queue.allocate(numbers.element(), numbers.count() * columns)?;
    let width = width(columns, &[result.view()]);
    let packs = result.view().count() / width;
    let arguments = [
        Read(numbers),
        Write(result.view()),
        Natural(natural(OPERATION, packs)?),
        Natural(natural(OPERATION, columns / width)?),
        Single(factor),
    ];
    // SAFETY: as many rows as numbers.
    unsafe { queue.launch(&named(OPERATION, numbers.element(), width), one_each(packs), &arguments)? };
    Ok(result)
}

/// `row` as often as `times` says.
pub(crate) fn repeated<Q: Queue>(queue: &Q, row: View, times: usize) -> Result<Q::Memory> {
    const OPERATION: &str = "repeated_row";
    let result = queue.allocate(row.element(), row.count() * times)?;
    let width = width(row.count(), &[row]);
    let packs = result.view().count() / width;
    let arguments = [
        Read(row),
        Write(result.view()),
        Natural(natural(OPERATION, packs)?),
        Natural(natural(OPERATION, row.count() / width)?),
    ];
    // SAFETY: the result is whole rows of as many elements as `row` has.
    unsafe { queue.launch(&named(OPERATION, row.element(), width), one_each(packs), &arguments)? };
    Ok(result)
}
