//! Several `f32` at once: one source for the registers of every instruction set.
//!
//! Code that is generic over [`Lanes`] runs on a set only through a function declared with [`for_lanes`], which compiles its
//! body for that set.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::ops::{Add, Sub};

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::{Amx, Avx512, transposed};
pub(super) use portable::Portable;

use super::simd::InstructionSet;

/// One register of some instruction set. Values are made by the unsafe functions only, whose callers vouch that the
/// machine has the instructions, so the existence of a value shows that the safe operations on it may run.
pub(super) trait Lanes: Copy + Add<Output = Self> + Sub<Output = Self> {
    /// Numbers in a register.
    const COUNT: usize;
    /// The set that the register belongs to.
    const INSTRUCTIONS: InstructionSet;
    /// How many rows of sums, one and two registers wide, fit into the registers beside the factors.
    const ROWS: [usize; 2];

    /// # Safety
    /// The machine has the instructions, and the caller is compiled for them.
    unsafe fn splat(value: f32) -> Self;

    /// # Safety
    /// As [`Self::splat`].
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: as for this function.
        unsafe { Self::splat(0.) }
    }

    /// # Safety
    /// As [`Self::splat`], and [`Self::COUNT`] elements can be read at `place`.
    unsafe fn load(place: *const f32) -> Self;

    /// # Safety
    /// [`Self::COUNT`] elements can be written at `place`.
    unsafe fn store(self, place: *mut f32);

    /// Exchanges rows and columns of a square of [`Self::COUNT`] rows, `stride` apart at `from` and without gaps at `to`.
    ///
    /// # Safety
    /// As [`Self::splat`]; the rows can be read and written.
    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32) {
        for row in 0..Self::COUNT {
            for column in 0..Self::COUNT {
                // SAFETY: as for this function.
                unsafe { *to.add(column * Self::COUNT + row) = *from.add(row * stride + column) };
            }
        }
    }

    /// `self · factor + addend`, lane by lane, rounded once where the machine can.
    fn multiply_add(self, factor: Self, addend: Self) -> Self;

    /// `self · factor + addend`, rounded as [`Self::multiply_add`].
    fn times_add(self, factor: f32, addend: Self) -> Self;

    /// `self · factor`
    fn times(self, factor: f32) -> Self;
}

/// Declares an unsafe function that is generic over [`Lanes`] and whose body is compiled for the set of its lanes. Its
/// caller vouches for the instructions, beside what the function itself asks for.
macro_rules! for_lanes {
    ($(#[$attribute:meta])* $visibility:vis unsafe fn $name:ident<$L:ident: $Lanes:ident $(, const $N:ident: $kind:ident)*>(
        $($argument:ident: $type:ty),* $(,)?
    ) $body:block) => {
        $(#[$attribute])*
        #[inline(always)]
        #[allow(clippy::too_many_arguments)]
        $visibility unsafe fn $name<$L: $Lanes $(, const $N: $kind)*>($($argument: $type),*) {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            unsafe fn body<$L: $Lanes $(, const $N: $kind)*>($($argument: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                use $crate::kernels::lanes::{Amx, Avx2, Avx512};
                use $crate::kernels::simd::InstructionSet;

                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                #[allow(clippy::too_many_arguments)]
                unsafe fn amx<$(const $N: $kind),*>($($argument: $type),*) {
                    // SAFETY: as for the function that is declared.
                    unsafe { body::<Amx $(, $N)*>($($argument),*) }
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                #[allow(clippy::too_many_arguments)]
                unsafe fn avx512<$(const $N: $kind),*>($($argument: $type),*) {
                    // SAFETY: as for the function that is declared.
                    unsafe { body::<Avx512 $(, $N)*>($($argument),*) }
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                unsafe fn avx2<$(const $N: $kind),*>($($argument: $type),*) {
                    // SAFETY: as for the function that is declared.
                    unsafe { body::<Avx2 $(, $N)*>($($argument),*) }
                }
                match <$L as $crate::kernels::lanes::Lanes>::INSTRUCTIONS {
                    // SAFETY: as for the function that is declared.
                    InstructionSet::Amx => return unsafe { amx::<$($N),*>($($argument),*) },
                    // SAFETY: as for the function that is declared.
                    InstructionSet::Avx512 => return unsafe { avx512::<$($N),*>($($argument),*) },
                    // SAFETY: as for the function that is declared.
                    InstructionSet::Avx2 => return unsafe { avx2::<$($N),*>($($argument),*) },
                    InstructionSet::Portable => {}
                }
            }
            // SAFETY: as for the function that is declared.
            unsafe { body::<$L $(, $N)*>($($argument),*) }
        }
    };
}
pub(super) use for_lanes;

/// Calls a function that is generic over [`Lanes`] with the widest lanes that the machine has and that `$fits` accepts
/// (a closure over their count); `None` if there are none. Tile registers only if `$tiles`, and
/// if `$fits` accepts the steps that their products take at once.
macro_rules! with_widest_lanes {
    ($tiles:expr, $fits:expr, $L:ident => $call:expr) => {{
        use $crate::kernels::lanes::{Lanes, Portable};
        use $crate::kernels::simd::instructions;

        let (best, fits) = (instructions(), $fits);
        #[cfg(target_arch = "x86_64")]
        use $crate::kernels::lanes::{Amx, Avx2, Avx512};
        #[cfg(target_arch = "x86_64")]
        let wide = if best >= Amx::INSTRUCTIONS && $tiles && fits($crate::kernels::product::TILE_STEPS) {
            type $L = Amx;
            Some($call)
        } else if best >= Avx512::INSTRUCTIONS && fits(Avx512::COUNT) {
            type $L = Avx512;
            Some($call)
        } else if best >= Avx2::INSTRUCTIONS && fits(Avx2::COUNT) {
            type $L = Avx2;
            Some($call)
        } else {
            None
        };
        #[cfg(not(target_arch = "x86_64"))]
        let wide = {
            let _ = $tiles;
            None
        };
        if wide.is_none() && best >= Portable::INSTRUCTIONS && fits(Portable::COUNT) {
            type $L = Portable;
            Some($call)
        } else {
            wide
        }
    }};
}
pub(super) use with_widest_lanes;

/// Asks for the cache line at `place`, which may be any address.
#[inline(always)]
pub(super) fn prefetch(place: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing; a wrong address is ignored.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Asks for the cache line at `place`, which may be any address, to be brought to the second-level cache.
#[inline(always)]
pub(super) fn prefetch_far(place: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing; a wrong address is ignored.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}
