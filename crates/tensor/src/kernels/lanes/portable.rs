//! Eight `f32` at once in plain Rust, for machines without AVX2; the compiler uses what registers there are.

use std::array::from_fn;
use std::ops::{Add, Sub};

use super::Lanes;
use crate::kernels::simd::InstructionSet;

const COUNT: usize = 8;

/// Eight numbers. Products are rounded before they are added, unlike on the other sets.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Portable([f32; COUNT]);

impl Lanes for Portable {
    const COUNT: usize = COUNT;
    const INSTRUCTIONS: InstructionSet = InstructionSet::Portable;
    const ROWS: [usize; 2] = [6, 4];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; COUNT])
    }

    #[inline(always)]
    unsafe fn load(place: *const f32) -> Self {
        // SAFETY: the caller vouches for the place; an array has the alignment of its elements.
        Self(unsafe { place.cast::<[f32; COUNT]>().read() })
    }

    #[inline(always)]
    unsafe fn store(self, place: *mut f32) {
        // SAFETY: as in `load`.
        unsafe { place.cast::<[f32; COUNT]>().write(self.0) }
    }

    #[inline(always)]
    fn multiply_add(self, factor: Self, addend: Self) -> Self {
        Self(from_fn(|lane| self.0[lane] * factor.0[lane] + addend.0[lane]))
    }

    #[inline(always)]
    fn times_add(self, factor: f32, addend: Self) -> Self {
        Self(from_fn(|lane| self.0[lane] * factor + addend.0[lane]))
    }

    #[inline(always)]
    fn times(self, factor: f32) -> Self {
        Self(self.0.map(|value| value * factor))
    }
}

impl Add for Portable {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(from_fn(|lane| self.0[lane] + other.0[lane]))
    }
}

impl Sub for Portable {
    type Output = Self;

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(from_fn(|lane| self.0[lane] - other.0[lane]))
    }
}
