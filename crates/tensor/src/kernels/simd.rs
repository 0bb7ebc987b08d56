//! One source, several instruction sets.

use std::sync::OnceLock;

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
                    $crate::kernels::simd::Instructions::Portable => {}
                }
            }
            portable($($argument),*)
        }
    };
}
pub(super) use multiversion;

/// The instruction sets that kernels are compiled for, from the narrowest to the widest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Instructions {
    /// What every machine of the target has (SSE2 on x86-64, NEON on AArch64).
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 (F, BW, DQ, VL).
    Avx512,
}

impl Instructions {
    /// The widest set that this machine has.
    fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
                return Self::Avx512;
            }
            if has!("avx2") && has!("fma") {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "portable" => Some(Self::Portable),
            "avx2" => Some(Self::Avx2),
            "avx512" => Some(Self::Avx512),
            _ => None,
        }
    }
}

/// The environment variable that chooses a narrower set than the machine has.
pub(crate) const VARIABLE: &str = "TSBD_SIMD";

/// The set in use: the widest of the machine, or what `$TSBD_SIMD` says, read once.
///
/// # Errors
/// What the variable says, if it names no set that this machine has.
pub(crate) fn chosen() -> Result<Instructions, &'static str> {
    static CHOSEN: OnceLock<Result<Instructions, String>> = OnceLock::new();
    let read = || {
        let detected = Instructions::detect();
        let Some(text) = std::env::var_os(VARIABLE) else { return Ok(detected) };
        let text = text.to_string_lossy().into_owned();
        Instructions::parse(&text).filter(|chosen| *chosen <= detected).ok_or(text)
    };
    CHOSEN.get_or_init(read).as_ref().copied().map_err(String::as_str)
}

/// [`chosen`], or the narrowest set where that is an error, which the operations report.
#[inline]
pub(super) fn instructions() -> Instructions {
    chosen().unwrap_or(Instructions::Portable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_variable_takes_the_names_of_the_sets() {
        assert_eq!(Instructions::parse("portable"), Some(Instructions::Portable));
        assert_eq!(Instructions::parse("avx2"), Some(Instructions::Avx2));
        assert_eq!(Instructions::parse("avx512"), Some(Instructions::Avx512));
        assert_eq!(Instructions::parse("sse"), None);
        assert!(Instructions::Portable < Instructions::Avx2 && Instructions::Avx2 < Instructions::Avx512);
    }
}
