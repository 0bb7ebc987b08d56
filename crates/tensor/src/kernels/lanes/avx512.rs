//! Sixteen `f32` at once: the registers of AVX-512.

use std::arch::x86_64::*;
use std::ops::{Add, Sub};

use super::Lanes;
use crate::kernels::simd::InstructionSet;

/// One register of AVX-512, whose products are left to tile registers if `TILES`.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Wide<const TILES: bool>(pub(in crate::kernels) __m512);

/// Products by multiply-adds.
pub(in crate::kernels) type Avx512 = Wide<false>;
/// Products on tile registers.
pub(in crate::kernels) type Amx = Wide<true>;

impl<const TILES: bool> Lanes for Wide<TILES> {
    const COUNT: usize = 16;
    const INSTRUCTIONS: InstructionSet = if TILES { InstructionSet::Amx } else { InstructionSet::Avx512 };
    const ROWS: [usize; 2] = [16, 12];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller vouches for AVX-512.
        Self(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load(place: *const f32) -> Self {
        // SAFETY: the caller vouches for AVX-512 and for the place.
        Self(unsafe { _mm512_loadu_ps(place) })
    }

    #[inline(always)]
    unsafe fn store(self, place: *mut f32) {
        // SAFETY: the caller vouches for the place; AVX-512 is there because `self` is.
        unsafe { _mm512_storeu_ps(place, self.0) }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32) {
        // SAFETY: the caller vouches for AVX-512 and for the places.
        unsafe {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (row, values) in rows.iter_mut().enumerate() {
                *values = _mm512_loadu_si512(from.add(row * stride).cast());
            }
            for (row, values) in transposed(rows).into_iter().enumerate() {
                _mm512_storeu_si512(to.add(row * Self::COUNT).cast(), values);
            }
        }
    }

    #[inline(always)]
    fn multiply_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: AVX-512 is there because `self` is.
        Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, addend.0) })
    }

    #[inline(always)]
    fn times_add(self, factor: f32, addend: Self) -> Self {
        // SAFETY: AVX-512 is there because `self` is.
        self.multiply_add(unsafe { Self::splat(factor) }, addend)
    }

    #[inline(always)]
    fn times(self, factor: f32) -> Self {
        // SAFETY: AVX-512 is there because `self` is.
        Self(unsafe { _mm512_mul_ps(_mm512_set1_ps(factor), self.0) })
    }
}

impl<const TILES: bool> Add for Wide<TILES> {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: AVX-512 is there because `self` is.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }
}

impl<const TILES: bool> Sub for Wide<TILES> {
    type Output = Self;

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: AVX-512 is there because `self` is.
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }
}

/// The transpose of a square of sixteen rows of sixteen numbers of 32 bits.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::kernels) fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut pairs = rows;
    for i in (0..16).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // Register `4·i + j` holds, in each quarter `q`, column `4·q + j` of rows `4·i ..+ 4`.
    let mut fours = pairs;
    for i in (0..16).step_by(4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    let mut columns = fours;
    for j in 0..4 {
        let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
        // Even and odd quarters of the first and of the second half of the rows.
        let (even_1, odd_1) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (even_2, odd_2) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
        columns[j] = _mm512_shuffle_i32x4::<0x88>(even_1, even_2);
        columns[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd_1, odd_2);
        columns[8 + j] = _mm512_shuffle_i32x4::<0xdd>(even_1, even_2);
        columns[12 + j] = _mm512_shuffle_i32x4::<0xdd>(odd_1, odd_2);
    }
    columns
}
