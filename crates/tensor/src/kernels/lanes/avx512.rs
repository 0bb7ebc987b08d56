//! Sixteen `f32` at once: the registers of AVX-512.

use std::arch::x86_64::*;
use std::ops::{Add, Sub};

use super::Lanes;
use crate::kernels::simd::InstructionSet;

/// One register of AVX-512.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Avx512(__m512);

impl Lanes for Avx512 {
    const COUNT: usize = 16;
    const INSTRUCTIONS: InstructionSet = InstructionSet::Avx512;
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

impl Add for Avx512 {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: AVX-512 is there because `self` is.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }
}

impl Sub for Avx512 {
    type Output = Self;

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: AVX-512 is there because `self` is.
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }
}
