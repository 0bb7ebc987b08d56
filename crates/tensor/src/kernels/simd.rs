//! One source, several instruction sets.

/// Declares a function whose body is compiled for AVX-512, for AVX2 and for the baseline of the target;
/// the first the machine has is taken at run time. Multiplications and additions are not contracted, so
/// element-wise results are the same on all of them.
macro_rules! multiversion {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident<$T:ident>(
        $($argument:ident: $type:ty),* $(,)?
    ) $(-> $result:ty)? $body:block) => {
        $(#[$attribute])*
        #[allow(clippy::too_many_arguments)]
        $visibility fn $name<$T: $crate::kernels::Element>($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn portable<$T: $crate::kernels::Element>($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                #[allow(clippy::too_many_arguments)]
                fn avx512<$T: $crate::kernels::Element>($($argument: $type),*) $(-> $result)? {
                    portable($($argument),*)
                }
                #[target_feature(enable = "avx2")]
                #[allow(clippy::too_many_arguments)]
                fn avx2<$T: $crate::kernels::Element>($($argument: $type),*) $(-> $result)? {
                    portable($($argument),*)
                }
                match $crate::kernels::simd::instructions() {
                    // SAFETY: the machine has been asked for these instructions.
                    $crate::kernels::simd::Instructions::Avx512 => return unsafe { avx512($($argument),*) },
                    // SAFETY: the machine has been asked for these instructions.
                    $crate::kernels::simd::Instructions::Avx2 => return unsafe { avx2($($argument),*) },
                    $crate::kernels::simd::Instructions::Baseline => {}
                }
            }
            portable($($argument),*)
        }
    };
}
pub(super) use multiversion;

/// What this machine can do, as far as the kernels care.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Instructions {
    Avx512,
    Avx2,
    Baseline,
}

#[cfg(target_arch = "x86_64")]
pub(super) fn instructions() -> Instructions {
    use std::arch::is_x86_feature_detected as has;
    // The standard library caches the answers.
    if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
        Instructions::Avx512
    } else if has!("avx2") {
        Instructions::Avx2
    } else {
        Instructions::Baseline
    }
}
