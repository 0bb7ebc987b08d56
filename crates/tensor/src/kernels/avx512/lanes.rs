//! Sixteen `f32` at once: the registers of AVX-512.

use std::arch::x86_64::*;
use std::ops::{Add, Sub};

/// One register. It is made only by the unsafe functions below, on machines that have AVX-512, so the
/// existence of a value shows that the safe operations on it may run.
#[derive(Clone, Copy)]
pub(super) struct Lanes(__m512);

/// Lanes of a register.
pub(super) const LANES: usize = 16;

impl Lanes {
    /// # Safety
    /// The machine has AVX-512, and the caller is compiled for it.
    #[inline(always)]
    pub unsafe fn zero() -> Self {
        // SAFETY: as for this function.
        Self(unsafe { _mm512_setzero_ps() })
    }

    /// # Safety
    /// As [`Self::zero`].
    #[inline(always)]
    pub unsafe fn splat(value: f32) -> Self {
        // SAFETY: as for this function.
        Self(unsafe { _mm512_set1_ps(value) })
    }

    /// # Safety
    /// As [`Self::zero`], and 16 elements can be read at `place`.
    #[inline(always)]
    pub unsafe fn load(place: *const f32) -> Self {
        // SAFETY: as for this function.
        Self(unsafe { _mm512_loadu_ps(place) })
    }

    /// # Safety
    /// 16 elements can be written at `place`.
    #[inline(always)]
    pub unsafe fn store(self, place: *mut f32) {
        // SAFETY: as for this function; AVX-512 is there because `self` is.
        unsafe { _mm512_storeu_ps(place, self.0) }
    }

    /// `self · factor + addend`, rounded once.
    #[inline(always)]
    pub fn times_add(self, factor: f32, addend: Self) -> Self {
        // SAFETY: AVX-512 is there because `self` is.
        Self(unsafe { _mm512_fmadd_ps(_mm512_set1_ps(factor), self.0, addend.0) })
    }

    /// `self · factor + addend`, lane by lane, rounded once.
    #[inline(always)]
    pub fn multiply_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: AVX-512 is there because `self` is.
        Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, addend.0) })
    }

    /// `self · factor`.
    #[inline(always)]
    pub fn times(self, factor: f32) -> Self {
        // SAFETY: AVX-512 is there because `self` is.
        Self(unsafe { _mm512_mul_ps(_mm512_set1_ps(factor), self.0) })
    }
}

impl Add for Lanes {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: AVX-512 is there because `self` is.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }
}

impl Sub for Lanes {
    type Output = Self;

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: AVX-512 is there because `self` is.
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }
}

/// Asks for the cache line at `place`, which may be any address.
#[inline(always)]
pub(super) fn prefetch(place: *const f32) {
    // SAFETY: a prefetch reads nothing; a wrong address is ignored.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) }
}
