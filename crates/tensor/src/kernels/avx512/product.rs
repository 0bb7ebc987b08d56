//! Matrix products that are small and many, with 16 or 32 columns at a time in registers and nothing copied first.

use super::lanes::{LANES, Lanes};

/// Depth of a product taken at once, so that what is read again stays in the first-level cache.
const DEPTH: usize = 256;

/// A block of `ROWS × 16·COLUMNS` outputs over the whole depth, in registers.
///
/// # Safety
/// AVX-512; `a[row·a_row + step·a_step]`, `b[step·b_step ..+ 16·COLUMNS]` and `c[row·c_row ..+ 16·COLUMNS]` are
/// valid for all rows below `ROWS` and steps below `depth`.
#[target_feature(enable = "avx512f")]
#[allow(clippy::too_many_arguments)]
unsafe fn block<const ROWS: usize, const COLUMNS: usize>(
    depth: usize,
    a: *const f32,
    [a_row, a_step]: [usize; 2],
    b: *const f32,
    b_step: usize,
    c: *mut f32,
    c_row: usize,
    accumulate: bool,
) {
    // SAFETY: the caller vouches for AVX-512 and for all places.
    unsafe {
        let mut sums = [[Lanes::zero(); COLUMNS]; ROWS];
        if accumulate {
            for (row, sums) in sums.iter_mut().enumerate() {
                for (column, sum) in sums.iter_mut().enumerate() {
                    *sum = Lanes::load(c.add(row * c_row + LANES * column));
                }
            }
        }
        let (mut a, mut b) = (a, b);
        for _ in 0..depth {
            let mut right = [Lanes::zero(); COLUMNS];
            for (column, right) in right.iter_mut().enumerate() {
                *right = Lanes::load(b.add(LANES * column));
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let left = Lanes::splat(*a.add(row * a_row));
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = left.multiply_add(right, *sum);
                }
            }
            a = a.wrapping_add(a_step);
            b = b.wrapping_add(b_step);
        }
        for (row, sums) in sums.iter().enumerate() {
            for (column, sum) in sums.iter().enumerate() {
                sum.store(c.add(row * c_row + LANES * column));
            }
        }
    }
}

/// Runs `block` for a number of rows known at run time.
macro_rules! block_of {
    ($rows:expr, $columns:literal, [$($count:literal)*], $arguments:tt) => {
        match $rows {
            $($count => block::<$count, $columns> $arguments,)*
            other => unreachable!("a block of {other} rows"),
        }
    };
}

/// Rows of a block of two registers, and of one: as many sums as there are registers for.
fn rows_of_block(columns: usize) -> usize {
    if columns == 2 * LANES { 12 } else { 16 }
}

/// A block with `columns` (16 or 32) columns and at most [`rows_of_block`] rows.
///
/// # Safety
/// As [`block`].
#[target_feature(enable = "avx512f")]
#[allow(clippy::too_many_arguments)]
unsafe fn any_block(
    [rows, columns, depth]: [usize; 3],
    a: *const f32,
    a_strides: [usize; 2],
    b: *const f32,
    b_step: usize,
    c: *mut f32,
    c_row: usize,
    accumulate: bool,
) {
    // SAFETY: as for this function.
    unsafe {
        if columns == 2 * LANES {
            block_of!(rows, 2, [1 2 3 4 5 6 7 8 9 10 11 12], (depth, a, a_strides, b, b_step, c, c_row, accumulate));
        } else {
            block_of!(
                rows, 1, [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16],
                (depth, a, a_strides, b, b_step, c, c_row, accumulate)
            );
        }
    }
}

/// Where the column panel that holds column `column` of `n` begins, and how wide it is: panels of 32, the
/// last one of 16 if `n` is no multiple of 32.
pub(super) fn panel(column: usize, n: usize) -> (usize, usize) {
    let start = column / (2 * LANES) * (2 * LANES);
    (start, if n - start >= 2 * LANES { 2 * LANES } else { LANES })
}

/// The right-hand matrix of a product, `[k, n]`.
#[derive(Clone, Copy)]
pub(super) enum Right {
    /// In panels of columns (see [`panel`]), each with its rows one after the other.
    Panels(*const f32),
    /// In rows, this many elements apart.
    Rows(*const f32, usize),
}

/// `c = a · b`, added to `c` if `accumulate`; `c: [m, n]` in rows, `n` a multiple of 16, element `(row, step)` of
/// `a: [m, k]` at `a[row·a_row + step·a_step]`.
///
/// # Safety
/// AVX-512; all elements of the three matrices can be accessed; `c` overlaps neither of the others, and is
/// initialised if `accumulate`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn product(
    [m, n, k]: [usize; 3],
    a: *const f32,
    [a_row, a_step]: [usize; 2],
    b: Right,
    c: *mut f32,
    accumulate: bool,
) {
    let depth_at_once = if matches!(b, Right::Panels(_)) { DEPTH } else { DEPTH / 2 };
    for start in (0..k).step_by(depth_at_once) {
        let depth = depth_at_once.min(k - start);
        let mut column = 0;
        while column < n {
            let (_, width) = panel(column, n);
            // Sixteen rows of two registers are two blocks of eight rather than one of twelve and one of four.
            let rows = if width == 2 * LANES && m == LANES { 8 } else { rows_of_block(width) };
            for row in (0..m).step_by(rows) {
                let size = [rows.min(m - row), width, depth];
                // SAFETY: the block lies inside the three matrices, which the caller vouches for.
                unsafe {
                    let (b, b_step) = match b {
                        Right::Panels(b) => (b.add(column * k + start * width), width),
                        Right::Rows(b, stride) => (b.add(start * stride + column), stride),
                    };
                    let (a, c) = (a.add(row * a_row + start * a_step), c.add(row * n + column));
                    any_block(size, a, [a_row, a_step], b, b_step, c, n, accumulate || start > 0);
                }
            }
            column += width;
        }
    }
}
