//! Matrix products that are small and many, as each kind of lanes does them (see [`Products`]): with one or two registers of
//! columns at a time and nothing copied first, unless it is said otherwise.

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};
use super::lanes::{Lanes, Portable, for_lanes, prefetch_far};

/// Elements of a cache line.
pub(super) const LINE: usize = 16;
/// Steps between two lines of the next panel that are asked for.
const STEPS_PER_LINE: usize = 4;

/// Depth of a product taken at once, so that what is read again stays in the first-level cache.
const DEPTH: usize = 256;

/// The pointer itself, in a way that the compiler does not see through: left alone, it makes a chain of additions of the
/// rows' addresses, which takes longer than the products.
#[inline(always)]
#[allow(clippy::pointers_in_nomem_asm_block)] // nothing is read or written
fn opaque(mut pointer: *const f32) -> *const f32 {
    // SAFETY: there is no instruction.
    unsafe { std::arch::asm!("/* {0} */", inout(reg) pointer, options(pure, nomem, nostack, preserves_flags)) };
    pointer
}

for_lanes! {
    /// A block of `ROWS × COLUMNS registers` of outputs over the whole depth, in registers.
    ///
    /// # Safety
    /// The lanes' instructions; with `w` numbers in a register, `a[row·a_row + step·a_step]`,
    /// `b[step·b_step ..+ w·COLUMNS]` and `c[row·c_row ..+ w·COLUMNS]` are valid for all rows below `ROWS` and steps below
    /// `depth`.
    unsafe fn block<L: Lanes, const ROWS: usize, const COLUMNS: usize>(
        depth: usize, a: *const f32, a_strides: [usize; 2], b: *const f32, b_step: usize, c: *mut f32, c_row: usize,
        accumulate: bool, next: *const f32,
    ) {
        let [a_row, a_step] = a_strides;
        // SAFETY: the caller vouches for the instructions and for all places.
        unsafe {
            let mut sums = [[L::zero(); COLUMNS]; ROWS];
            if accumulate {
                for (row, sums) in sums.iter_mut().enumerate() {
                    for (column, sum) in sums.iter_mut().enumerate() {
                        *sum = L::load(c.add(row * c_row + L::COUNT * column));
                    }
                }
            }
            // Four rows are reached from one pointer, so that all pointers stay in registers.
            let mut fours: [*const f32; 4] = std::array::from_fn(|four| a.wrapping_add(four * 4 * a_row));
            let mut b = b;
            for step in 0..depth {
                if step % STEPS_PER_LINE == 0 {
                    prefetch_far(next.wrapping_add(step / STEPS_PER_LINE * LINE));
                }
                let mut right = [L::zero(); COLUMNS];
                for (column, right) in right.iter_mut().enumerate() {
                    *right = L::load(b.add(L::COUNT * column));
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let left = L::splat(*fours[row / 4].add(row % 4 * a_row));
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum = left.multiply_add(right, *sum);
                    }
                }
                for four in &mut fours[..ROWS.div_ceil(4)] {
                    *four = opaque(four.wrapping_add(a_step));
                }
                b = b.wrapping_add(b_step);
            }
            for (row, sums) in sums.iter().enumerate() {
                for (column, sum) in sums.iter().enumerate() {
                    sum.store(c.add(row * c_row + L::COUNT * column));
                }
            }
        }
    }
}

/// Runs `block` for a number of rows known at run time.
macro_rules! block_of {
    ($L:ident, $rows:expr, $columns:literal, [$($count:literal)*], $arguments:tt) => {
        match $rows {
            $($count => block::<$L, $count, $columns> $arguments,)*
            other => unreachable!("a block of {other} rows"),
        }
    };
}

/// A block of one or two registers of columns and at most as many rows as [`Lanes::ROWS`] says for them.
///
/// # Safety
/// As [`block`].
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn any_block<L: Lanes>(
    [rows, registers, depth]: [usize; 3],
    a: *const f32,
    a_strides: [usize; 2],
    b: *const f32,
    b_step: usize,
    c: *mut f32,
    c_row: usize,
    accumulate: bool,
    next: *const f32,
) {
    // SAFETY: as for this function.
    unsafe {
        if registers == 2 {
            block_of!(L, rows, 2, [1 2 3 4 5 6 7 8 9 10 11 12], (depth, a, a_strides, b, b_step, c, c_row, accumulate, next));
        } else {
            block_of!(
                L, rows, 1, [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16],
                (depth, a, a_strides, b, b_step, c, c_row, accumulate, next)
            );
        }
    }
}

/// Where the column panel that holds column `column` of `n` begins, and how wide it is: panels of two registers, the last
/// one of one register if `n` is an odd multiple of its size.
#[inline(always)]
fn panel<L: Lanes>(column: usize, n: usize) -> (usize, usize) {
    let start = column / (2 * L::COUNT) * (2 * L::COUNT);
    (start, if n - start >= 2 * L::COUNT { 2 * L::COUNT } else { L::COUNT })
}

/// The right-hand matrix of a product, `[k, n]`.
#[derive(Clone, Copy)]
enum Right {
    /// In panels of columns (see [`panel`]), each with its rows one after the other.
    Panels(*const f32),
    /// In rows, this many elements apart.
    Rows(*const f32, usize),
}

/// `c = a · b`, added to `c` if `accumulate`; `c: [m, n]` in rows, `n` a multiple of the lanes' count, element
/// `(row, step)` of `a: [m, k]` at `a[row·a_row + step·a_step]`.
///
/// # Safety
/// The lanes' instructions; `k > 0`, without which nothing is written; all elements of the three matrices can be accessed;
/// `c` overlaps neither of the others, and is initialised if `accumulate`.
unsafe fn product<L: Lanes>(
    [m, n, k]: [usize; 3],
    a: *const f32,
    [a_row, a_step]: [usize; 2],
    right: Right,
    c: *mut f32,
    accumulate: bool,
) {
    let depth_at_once = if matches!(right, Right::Panels(_)) { DEPTH } else { DEPTH / 2 };
    for start in (0..k).step_by(depth_at_once) {
        let depth = depth_at_once.min(k - start);
        let mut column = 0;
        while column < n {
            let (_, width) = panel::<L>(column, n);
            let registers = width / L::COUNT;
            let rows = L::ROWS[registers - 1];
            // Equal blocks rather than full ones and a small rest: sixteen rows are two of eight, not one of twelve
            // and one of four.
            let rows = m.div_ceil(m.div_ceil(rows));
            // While one panel is multiplied, the next is fetched from further away: by each block of rows the beginning of
            // its share.
            let share = (depth * width).div_ceil(m.div_ceil(rows)).next_multiple_of(LINE);
            for (index, row) in (0..m).step_by(rows).enumerate() {
                let size = [rows.min(m - row), registers, depth];
                // SAFETY: the block lies inside the three matrices, which the caller vouches for.
                unsafe {
                    let (b, b_step) = match right {
                        Right::Panels(b) => (b.add(column * k + start * width), width),
                        Right::Rows(b, stride) => (b.add(start * stride + column), stride),
                    };
                    let (a, c) = (a.add(row * a_row + start * a_step), c.add(row * n + column));
                    let next = match right {
                        Right::Panels(_) => b.wrapping_add(k * width + index * share),
                        Right::Rows(..) => b,
                    };
                    any_block::<L>(size, a, [a_row, a_step], b, b_step, c, n, accumulate || start > 0, next);
                }
            }
            column += width;
        }
    }
}

/// Steps that products on tile registers take at once.
pub(super) const TILE_STEPS: usize = 32;

/// How lanes of some kind multiply matrices. Factors are laid out as the products read them; every layout takes the room of
/// the numbers themselves.
///
/// All columns are multiples of [`Lanes::COUNT`]. On tile registers so are the rows of [`Self::product_of_columns`], and the steps
/// of other products are multiples of [`TILE_STEPS`]. The safety of every function depends on it.
pub(super) trait Products: Lanes {
    /// Rows of the left that are multiplied at once.
    const BLOCK_ROWS: usize = Self::ROWS[1];
    /// Whether [`Self::left`] needs room of its own.
    const COPIES_LEFT: bool = false;

    /// Stores a register as elements `step ..` of a row of a matrix on the left.
    ///
    /// # Safety
    /// The lanes' instructions; the row can be written.
    #[inline(always)]
    unsafe fn store_left(self, row: *mut f32, step: usize) {
        // SAFETY: as for this function.
        unsafe { self.store(row.add(step)) }
    }

    /// A matrix `[m, k]` on the left, from the numbers in rows; written to `room`, which may be the place of the rows, if
    /// [`Self::COPIES_LEFT`].
    ///
    /// # Safety
    /// The lanes' instructions; the rows can be read, and `room` written if it is needed.
    unsafe fn left(_size: [usize; 2], rows: *const f32, _room: *mut f32) -> *const f32 {
        rows
    }

    /// Stores a register of columns of one or two rows, from `[row, column]` on, of a matrix `[k, n]` on the right. Two rows,
    /// the first of them even, unless only one is left.
    ///
    /// # Safety
    /// The lanes' instructions; the matrix can be written.
    #[inline(always)]
    unsafe fn store_right(rows: &[Self], right: *mut f32, [row, column]: [usize; 2], [k, n]: [usize; 2]) {
        let (start, width) = panel::<Self>(column, n);
        for (index, values) in rows.iter().enumerate() {
            // SAFETY: the register lies inside its panel, and the panel inside the matrix.
            unsafe { values.store(right.wrapping_add(start * k + (row + index) * width + (column - start))) };
        }
    }

    /// `c = left · right`, added to `c` if `accumulate`; `[m, n, k]` are the sizes, `c` is in rows.
    ///
    /// # Safety
    /// The lanes' instructions; `k > 0`, without which nothing is written; all elements of the three matrices can be
    /// accessed; `c` overlaps neither of the others, and is initialised if `accumulate`.
    unsafe fn product(size: [usize; 3], left: *const f32, right: *const f32, c: *mut f32, accumulate: bool) {
        // SAFETY: as for this function.
        unsafe { product::<Self>(size, left, [size[2], 1], Right::Panels(right), c, accumulate) }
    }

    /// Elements of scratch memory that [`Self::product_of_columns`] needs.
    fn scratch_of_columns(_size: [usize; 3]) -> usize {
        0
    }

    /// `c = aᵀ · b`, added to `c` if `accumulate`; `a: [k, m]` and `b: [k, n]` are in rows that are `strides` apart, `c: [m, n]` in
    /// rows.
    ///
    /// # Safety
    /// As [`Self::product`]; the scratch memory can be written and overlaps none of the matrices.
    unsafe fn product_of_columns(
        size: [usize; 3],
        [a, b]: [*const f32; 2],
        strides: [usize; 2],
        c: *mut f32,
        accumulate: bool,
        _scratch: *mut f32,
    ) {
        // SAFETY: as for this function.
        unsafe { product::<Self>(size, a, [1, strides[0]], Right::Rows(b, strides[1]), c, accumulate) }
    }
}

impl Products for Portable {}
#[cfg(target_arch = "x86_64")]
impl Products for Avx2 {}
#[cfg(target_arch = "x86_64")]
impl Products for Avx512 {}

/// A matrix on the right, on a cache line.
pub(super) struct Packed {
    memory: Vec<f32>,
    start: usize,
}

impl Packed {
    /// The matrix `[k, n]` with element `(row, column)` at `values[row·row_stride + column·column_stride]`.
    ///
    /// # Safety
    /// The lanes' instructions; all elements are in `values`, and `k` and `n` are such as [`Products`] takes.
    pub(super) unsafe fn of<L: Products>([k, n]: [usize; 2], values: &[f32], strides: [usize; 2]) -> Self {
        let memory = vec![0.; k * n + LINE];
        let start = memory.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        let mut packed = Self { memory, start };
        let two_registers = 2 * L::COUNT;
        packed.memory[start..][..k * n].par_chunks_mut(two_registers * k).enumerate().for_each(|(index, columns)| {
            let first = index * two_registers;
            let right = columns.as_mut_ptr().wrapping_sub(first * k);
            for column in (first..n.min(first + two_registers)).step_by(L::COUNT) {
                // SAFETY: as the caller vouches; two registers of columns lie together.
                unsafe { pack_columns::<L>(values.as_ptr(), strides, right, column, [k, n]) };
            }
        });
        packed
    }

    /// The matrix.
    pub(super) fn right(&self) -> *const f32 {
        self.memory[self.start..].as_ptr()
    }
}

for_lanes! {
    /// Packs one register of columns from `column` on of a matrix on the right.
    ///
    /// # Safety
    /// The lanes' instructions; all elements can be read, and the columns written.
    unsafe fn pack_columns<L: Products>(
        values: *const f32, strides: [usize; 2], right: *mut f32, column: usize, size: [usize; 2],
    ) {
        let [row_stride, column_stride] = strides;
        let mut lines = [[0f32; LINE]; 2];
        for row in (0..size[0]).step_by(2) {
            let rows = 2.min(size[0] - row);
            // SAFETY: as for this function; a register is not longer than a line.
            unsafe {
                for (index, line) in lines[..rows].iter_mut().enumerate() {
                    let first = values.add((row + index) * row_stride + column * column_stride);
                    for (lane, value) in line[..L::COUNT].iter_mut().enumerate() {
                        *value = *first.add(lane * column_stride);
                    }
                }
                let registers = [L::load(lines[0].as_ptr()), L::load(lines[1].as_ptr())];
                L::store_right(&registers[..rows], right, [row, column], size);
            }
        }
    }
}
