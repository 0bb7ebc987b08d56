//! Matrix products on tile registers (Intel AMX), which multiply `bf16` and add in `f32`: five times as many products in a
//! cycle as AVX-512 in `f32`, after three of them have been spent on one.
//!
//! A factor is split into two `bf16`, `x = high + low` up to 2^-17 of itself, and a product is
//! `high·high + high·low + low·high`: its error is about 2^-16 of it, between those of `f32` (2^-24) and of TF32 (2^-11) or
//! `bf16` (2^-8). Sums are of `f32`. Parts below 2^-126 count as zeros, so that numbers below 2^-110 lose their low part;
//! what rounds to infinity in `bf16` (from 3.396e38 on) is not a number in the product.
//!
//! A matrix on the left is kept in rows, a matrix on the right in columns of tiles; both take the room of the `f32` they are
//! made of, so that pieces of work are cut as for other instructions:
//!
//! - left: the row's steps in groups of 32; of each group first all high parts, then all low ones;
//! - right: sixteen columns after each other; of these the groups of steps; of a group the tile of the high parts, then that
//!   of the low ones; a row of a tile holds sixteen columns of two steps, two by two.

use std::arch::asm;
use std::arch::x86_64::*;

use super::lanes::{Amx, transposed};
use super::product::{Products, TILE_STEPS};

/// Rows of a tile, and columns of sums.
pub(super) const SIDE: usize = 16;
/// Steps that are multiplied at once: products have whole groups of them.
const GROUP: usize = TILE_STEPS;

/// Whether this machine has tile registers and the system lends them to this process, which is asked for them. From then on
/// all threads of the process and what it forks may use them, and alternate signal stacks have to have room for them
/// (those of the standard library have).
pub(super) fn available() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        const AMX_BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
        // Every processor with AVX-512 has the leaf.
        std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512bf16")
            && __cpuid_count(7, 0).edx & AMX_BF16_AND_TILE == AMX_BF16_AND_TILE
            && {
                // SAFETY: the call takes two numbers and changes what the process may use, no memory.
                let answer = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) };
                answer == 0
            }
    }
    #[cfg(not(target_os = "linux"))]
    {
        false
    }
}

/// The parts of sixteen numbers, each in the upper half of its place; what the lower halves hold is left over.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn split(x: __m512) -> (__m512i, __m512i) {
    let half = _mm512_set1_epi32(0x8000);
    let high = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), half), _mm512_set1_epi32(!0xffff));
    // The addition turns some of what is not a number into zeros.
    let not_a_number = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    let high = _mm512_mask_mov_epi32(high, not_a_number, _mm512_set1_epi32(0x7fc0_0000));
    let rest = _mm512_sub_ps(x, _mm512_castsi512_ps(high));
    (high, _mm512_add_epi32(_mm512_castps_si512(rest), half))
}

/// Stores sixteen numbers as steps `step ..`, a multiple of sixteen, of a row on the left.
///
/// # Safety
/// AVX-512; the row has room for the whole group of steps.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn store_left(x: __m512, row: *mut f32, step: usize) {
    const ODD: __m512i = {
        let mut words = [0u16; 32];
        let mut index = 0;
        while index < 32 {
            words[index] = 2 * index as u16 + 1;
            index += 1;
        }
        // SAFETY: both are 64 bytes without padding or forbidden values.
        unsafe { std::mem::transmute(words) }
    };
    let (high, low) = split(x);
    let parts = _mm512_permutex2var_epi16(high, ODD, low);
    // SAFETY: a group takes as many places as it has steps, and the caller vouches for the row.
    unsafe {
        let place = row.add(step / GROUP * GROUP).cast::<u16>().add(step % GROUP);
        _mm256_storeu_si256(place.cast(), _mm512_castsi512_si256(parts));
        _mm256_storeu_si256(place.add(GROUP).cast(), _mm512_extracti64x4_epi64::<1>(parts));
    }
}

/// Makes rows on the left of `m` rows of `k` numbers; `to` may be `from`.
///
/// # Safety
/// AVX-512; both places hold `m·k` elements; `k` is a multiple of [`GROUP`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn left_rows(m: usize, k: usize, from: *const f32, to: *mut f32) {
    for row in 0..m {
        // SAFETY: as the caller vouches; a group is read whole before any of it is written.
        unsafe {
            let (from, to) = (from.add(row * k), to.add(row * k));
            for step in (0..k).step_by(GROUP) {
                let (first, second) = (_mm512_loadu_ps(from.add(step)), _mm512_loadu_ps(from.add(step + SIDE)));
                store_left(first, to, step);
                store_left(second, to, step + SIDE);
            }
        }
    }
}

/// Stores two registers of columns, of steps `step` and `step + 1`, in a matrix on the right with `k` steps.
///
/// # Safety
/// AVX-512; the matrix has room for the columns; `column` is a multiple of sixteen, `k` of [`GROUP`], `step` is even.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn store_right(pair: [__m512; 2], right: *mut f32, step: usize, column: usize, k: usize) {
    let (high, low) = paired(pair);
    // SAFETY: as the caller vouches.
    unsafe {
        let tile = right.add(column * k + step / GROUP * GROUP * SIDE + step % GROUP / 2 * SIDE);
        _mm512_storeu_si512(tile.cast(), high);
        _mm512_storeu_si512(tile.add(SIDE * SIDE).cast(), low);
    }
}

/// The parts of two registers, two by two: the first register's in the lower halves.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn paired([first, second]: [__m512; 2]) -> (__m512i, __m512i) {
    let ((high_1, low_1), (high_2, low_2)) = (split(first), split(second));
    let upper = _mm512_set1_epi32(!0xffff);
    let high = _mm512_or_si512(_mm512_srli_epi32::<16>(high_1), high_2);
    let low = _mm512_or_si512(_mm512_srli_epi32::<16>(low_1), _mm512_and_si512(low_2, upper));
    (high, low)
}

/// Makes a matrix on the right, `[k, n]` with `k` rounded up to whole groups by zeros, of `k` rows that are
/// `stride` apart.
///
/// # Safety
/// AVX-512; the rows hold `n` elements each, a multiple of sixteen, and `right` has room.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn right_of_rows(k: usize, n: usize, rows: *const f32, stride: usize, right: *mut f32) {
    let padded = k.next_multiple_of(GROUP);
    for column in (0..n).step_by(SIDE) {
        for step in (0..padded).step_by(2) {
            // SAFETY: as the caller vouches.
            unsafe {
                let first = rows.add(column);
                let pair = [row_or_zeros(first, stride, step, k), row_or_zeros(first, stride, step + 1, k)];
                store_right(pair, right, step, column, padded);
            }
        }
    }
}

/// Sixteen numbers of row `row`, or zeros from row `rows` on.
///
/// # Safety
/// AVX-512; row `row` can be read if it is below `rows`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn row_or_zeros(first: *const f32, stride: usize, row: usize, rows: usize) -> __m512 {
    // SAFETY: as the caller vouches.
    if row < rows { unsafe { _mm512_loadu_ps(first.add(row * stride)) } } else { _mm512_setzero_ps() }
}

/// Makes rows on the left, `[m, k]` with `k` rounded up to whole groups by zeros, of the transpose: `k` rows of `m`
/// numbers that are `stride` apart.
///
/// # Safety
/// AVX-512; the rows hold `m` elements each, a multiple of sixteen, and `left` has room.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn left_of_columns(m: usize, k: usize, rows: *const f32, stride: usize, left: *mut f32) {
    let padded = k.next_multiple_of(GROUP);
    for row in (0..m).step_by(SIDE) {
        for start in (0..padded).step_by(GROUP) {
            // SAFETY: as the caller vouches.
            unsafe {
                let (mut high, mut low) = ([_mm512_setzero_si512(); SIDE], [_mm512_setzero_si512(); SIDE]);
                let first = rows.add(row);
                for pair in 0..SIDE {
                    let step = start + 2 * pair;
                    let steps = [row_or_zeros(first, stride, step, k), row_or_zeros(first, stride, step + 1, k)];
                    (high[pair], low[pair]) = paired(steps);
                }
                let place = left.add(row * padded + start);
                for (parts, offset) in [(high, 0), (low, SIDE)] {
                    for (index, parts) in transposed(parts).into_iter().enumerate() {
                        _mm512_storeu_si512(place.add(index * padded + offset).cast(), parts);
                    }
                }
            }
        }
    }
}

/// The shapes of the eight tile registers: four of sums, two of the left (`rows` of them, like the sums) and two of the right.
#[repr(C, align(64))]
pub(super) struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

impl Configuration {
    pub(super) fn of(rows: usize) -> Self {
        let (mut bytes_per_row, mut tile_rows) = ([0; 16], [0; 16]);
        bytes_per_row[..8].fill(64);
        tile_rows[..6].fill(rows as u8);
        tile_rows[6..8].fill(SIDE as u8);
        Self { palette: 1, start_row: 0, reserved: [0; 14], bytes_per_row, rows: tile_rows }
    }

    /// # Safety
    /// The machine has tile registers, and the process may use them.
    pub(super) unsafe fn load(&self) {
        // SAFETY: the configuration is one that the machine takes, and the caller vouches for the machine.
        unsafe {
            asm!(
                "ldtilecfg [{0}]",
                in(reg) self,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        }
    }
}

/// Empties the tile registers, so that the system need not keep them.
///
/// # Safety
/// As [`Configuration::load`].
pub(super) unsafe fn release() {
    // SAFETY: as for this function.
    unsafe {
        asm!(
            "tilerelease",
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, nomem),
        );
    }
}

/// The text if all the numbers are 2.
macro_rules! of_two {
    ($(2)+, $text:literal) => {
        $text
    };
    ($($number:literal)+, $text:literal) => {
        ""
    };
}
pub(super) use of_two;

/// A block of `$ROWS × $COLUMNS` tiles of sums over `groups` groups of steps.
macro_rules! block {
    ($name:ident, $ROWS:tt, $COLUMNS:tt) => {
        /// # Safety
        /// Tile registers that are configured; all places can be accessed. Strides are in bytes, `b_column` is the way to
        /// the next tile of columns.
        #[allow(clippy::too_many_arguments)]
        unsafe fn $name(
            groups: usize,
            a: *const f32,
            a_row: usize,
            b: *const f32,
            b_column: usize,
            c: *mut f32,
            c_row: usize,
            accumulate: bool,
        ) {
            // SAFETY: the caller vouches for the registers and for all places; nothing else uses tile registers.
            unsafe {
                asm!(
                    "test {accumulate:e}, {accumulate:e}",
                    "jnz 3f",
                    "tilezero tmm0",
                    of_two!($COLUMNS, "tilezero tmm1"),
                    of_two!($ROWS, "tilezero tmm2"),
                    of_two!($ROWS $COLUMNS, "tilezero tmm3"),
                    "jmp 2f",
                    "3:",
                    "tileloadd tmm0, [{c} + {c_row}]",
                    of_two!($COLUMNS, "tileloadd tmm1, [{c} + {c_row} + 64]"),
                    of_two!($ROWS, "tileloadd tmm2, [{c_2} + {c_row}]"),
                    of_two!($ROWS $COLUMNS, "tileloadd tmm3, [{c_2} + {c_row} + 64]"),
                    "2:",
                    // High parts on the left, low ones on the right.
                    "tileloadd tmm4, [{a} + {a_row}]",
                    "tileloadd tmm6, [{b} + {line} + {b_low}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    of_two!($ROWS, "tileloadd tmm5, [{a_2} + {a_row}]"),
                    of_two!($ROWS, "tdpbf16ps tmm2, tmm5, tmm6"),
                    of_two!($COLUMNS, "tileloadd tmm7, [{b_2} + {line} + {b_low}]"),
                    of_two!($COLUMNS, "tdpbf16ps tmm1, tmm4, tmm7"),
                    of_two!($ROWS $COLUMNS, "tdpbf16ps tmm3, tmm5, tmm7"),
                    // High parts on both sides.
                    "tileloadd tmm6, [{b} + {line}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    of_two!($ROWS, "tdpbf16ps tmm2, tmm5, tmm6"),
                    of_two!($COLUMNS, "tileloadd tmm7, [{b_2} + {line}]"),
                    of_two!($COLUMNS, "tdpbf16ps tmm1, tmm4, tmm7"),
                    of_two!($ROWS $COLUMNS, "tdpbf16ps tmm3, tmm5, tmm7"),
                    // Low parts on the left, high ones on the right.
                    "tileloadd tmm4, [{a} + {a_row} + {a_low}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    of_two!($COLUMNS, "tdpbf16ps tmm1, tmm4, tmm7"),
                    of_two!($ROWS, "tileloadd tmm5, [{a_2} + {a_row} + {a_low}]"),
                    of_two!($ROWS, "tdpbf16ps tmm2, tmm5, tmm6"),
                    of_two!($ROWS $COLUMNS, "tdpbf16ps tmm3, tmm5, tmm7"),
                    "add {a}, {a_step}",
                    "add {a_2}, {a_step}",
                    "add {b}, {b_step}",
                    "add {b_2}, {b_step}",
                    "dec {groups}",
                    "jnz 2b",
                    "tilestored [{c} + {c_row}], tmm0",
                    of_two!($COLUMNS, "tilestored [{c} + {c_row} + 64], tmm1"),
                    of_two!($ROWS, "tilestored [{c_2} + {c_row}], tmm2"),
                    of_two!($ROWS $COLUMNS, "tilestored [{c_2} + {c_row} + 64], tmm3"),
                    "/* {c_2} */",
                    groups = inout(reg) groups => _,
                    a = inout(reg) a => _,
                    a_2 = inout(reg) a.wrapping_byte_add(SIDE * a_row) => _,
                    b = inout(reg) b => _,
                    b_2 = inout(reg) b.wrapping_byte_add(b_column) => _,
                    c = in(reg) c,
                    c_2 = in(reg) c.wrapping_byte_add(SIDE * c_row),
                    a_row = in(reg) a_row,
                    c_row = in(reg) c_row,
                    line = in(reg) 64usize,
                    accumulate = in(reg) u32::from(accumulate),
                    a_low = const 2 * GROUP,
                    a_step = const 4 * GROUP,
                    b_low = const 32 * GROUP,
                    b_step = const 64 * GROUP,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

block!(block_2_2, 2, 2);
block!(block_2_1, 2, 1);
block!(block_1_2, 1, 2);
block!(block_1_1, 1, 1);

/// Steps taken at once, so that a column of the right stays in the first-level cache.
const DEPTH: usize = 256;

/// `c = left · right`, added to `c` if `accumulate`; `c: [m, n]` in rows, `n` a multiple of sixteen, `k` of [`GROUP`].
///
/// # Safety
/// The process may use tile registers; `k > 0`; the matrices can be accessed, and `c` overlaps neither of the others.
unsafe fn product([m, n, k]: [usize; 3], left: *const f32, right: *const f32, c: *mut f32, accumulate: bool) {
    debug_assert!(k > 0 && k.is_multiple_of(GROUP) && n.is_multiple_of(SIDE));
    let whole = m / SIDE * SIDE;
    // SAFETY: the blocks lie inside the matrices, which the caller vouches for.
    unsafe {
        if whole > 0 {
            Configuration::of(SIDE).load();
            for start in (0..k).step_by(DEPTH) {
                let groups = DEPTH.min(k - start) / GROUP;
                let accumulate = accumulate || start > 0;
                for column in (0..n).step_by(2 * SIDE) {
                    let two_columns = column + SIDE < n;
                    let b = right.add(column * k + start * SIDE);
                    for row in (0..whole).step_by(2 * SIDE) {
                        let block = match (row + SIDE < whole, two_columns) {
                            (true, true) => block_2_2,
                            (true, false) => block_2_1,
                            (false, true) => block_1_2,
                            (false, false) => block_1_1,
                        };
                        let (a, c) = (left.add(row * k + start), c.add(row * n + column));
                        block(groups, a, 4 * k, b, 4 * SIDE * k, c, 4 * n, accumulate);
                    }
                }
            }
        }
        if whole < m {
            Configuration::of(m - whole).load();
            let (a, c) = (left.add(whole * k), c.add(whole * n));
            for column in (0..n).step_by(SIDE) {
                block_1_1(k / GROUP, a, 4 * k, right.add(column * k), 0, c.add(column), 4 * n, accumulate);
            }
        }
        release();
    }
}

impl Products for Amx {
    const BLOCK_ROWS: usize = 2 * SIDE;
    const COPIES_LEFT: bool = true;

    #[inline(always)]
    unsafe fn store_left(self, row: *mut f32, step: usize) {
        // SAFETY: as for this function.
        unsafe { store_left(self.0, row, step) }
    }

    unsafe fn left([m, k]: [usize; 2], rows: *const f32, room: *mut f32) -> *const f32 {
        // SAFETY: as for this function.
        unsafe { left_rows(m, k, rows, room) };
        room
    }

    #[inline(always)]
    unsafe fn store_right(rows: &[Self], right: *mut f32, [row, column]: [usize; 2], [k, _]: [usize; 2]) {
        // SAFETY: as for this function; `k` is even, so that there are two rows.
        unsafe { store_right([rows[0].0, rows[1].0], right, row, column, k) }
    }

    unsafe fn product(size: [usize; 3], left: *const f32, right: *const f32, c: *mut f32, accumulate: bool) {
        // SAFETY: as for this function.
        unsafe { product(size, left, right, c, accumulate) }
    }

    fn scratch_of_columns([m, n, k]: [usize; 3]) -> usize {
        k.next_multiple_of(GROUP) * (m + n)
    }

    unsafe fn product_of_columns(
        [m, n, k]: [usize; 3],
        [a, b]: [*const f32; 2],
        strides: [usize; 2],
        c: *mut f32,
        accumulate: bool,
        scratch: *mut f32,
    ) {
        let padded = k.next_multiple_of(GROUP);
        // SAFETY: as for this function.
        unsafe {
            let (left, right) = (scratch, scratch.add(padded * m));
            left_of_columns(m, k, a, strides[0], left);
            right_of_rows(k, n, b, strides[1], right);
            product([m, n, padded], left, right, c, accumulate);
        }
    }
}

#[cfg(test)]
mod tests;
