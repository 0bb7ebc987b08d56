//! Eight `f32` at once: the registers of AVX2 with FMA.

use std::arch::x86_64::*;
use std::ops::{Add, Sub};

use super::Lanes;
use crate::kernels::simd::InstructionSet;

/// One register of AVX2 with FMA.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Avx2(__m256);

impl Lanes for Avx2 {
    const COUNT: usize = 8;
    const INSTRUCTIONS: InstructionSet = InstructionSet::Avx2;
    const ROWS: [usize; 2] = [12, 6];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller vouches for AVX2 with FMA.
        Self(unsafe { _mm256_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load(place: *const f32) -> Self {
        // SAFETY: the caller vouches for AVX2 with FMA and for the place.
        Self(unsafe { _mm256_loadu_ps(place) })
    }

    #[inline(always)]
    unsafe fn store(self, place: *mut f32) {
        // SAFETY: the caller vouches for the place; AVX2 with FMA is there because `self` is.
        unsafe { _mm256_storeu_ps(place, self.0) }
    }

    #[inline(always)]
    fn multiply_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: AVX2 with FMA is there because `self` is.
        Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, addend.0) })
    }

    #[inline(always)]
    fn times_add(self, factor: f32, addend: Self) -> Self {
        // SAFETY: AVX2 with FMA is there because `self` is.
        self.multiply_add(unsafe { Self::splat(factor) }, addend)
    }

    #[inline(always)]
    fn times(self, factor: f32) -> Self {
        // SAFETY: AVX2 with FMA is there because `self` is.
        Self(unsafe { _mm256_mul_ps(_mm256_set1_ps(factor), self.0) })
    }
}

impl Add for Avx2 {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: AVX2 with FMA is there because `self` is.
        Self(unsafe { _mm256_add_ps(self.0, other.0) })
    }
}

impl Sub for Avx2 {
    type Output = Self;

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: AVX2 with FMA is there because `self` is.
        Self(unsafe { _mm256_sub_ps(self.0, other.0) })
    }
}
