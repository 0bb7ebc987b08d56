//! One source, several instruction sets.

use std::sync::OnceLock;

use crate::error::{Error, Result};

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
                    $crate::kernels::simd::InstructionSet::Avx512 | $crate::kernels::simd::InstructionSet::Amx => {
                        // SAFETY: the machine has been asked for these instructions.
                        return unsafe { avx512($($argument),*) };
                    }
                    // SAFETY: the machine has been asked for these instructions.
                    $crate::kernels::simd::InstructionSet::Avx2 => return unsafe { avx2($($argument),*) },
                    $crate::kernels::simd::InstructionSet::Portable => {}
                }
            }
            portable($($argument),*)
        }
    };
}
pub(super) use multiversion;

/// The instruction sets that kernels are compiled for, from the narrowest to the widest.
///
/// Sums are cut alike on all of them, but a fused multiply-add is rounded once and the width of a register decides which
/// sums a convolution takes together: the bits of a result are those of one set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum InstructionSet {
    /// What every machine of the target has (SSE2 on x86-64, NEON on AArch64).
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 (F, BW, DQ, VL).
    Avx512,
    /// AVX-512, and for the products of fast convolutions AMX with factors split in two `bf16`: the error of a product is
    /// about 2^-16 of it, where the other sets have 2^-24.
    Amx,
}

const VARIABLE: &str = "TSBD_SIMD";

impl InstructionSet {
    /// The set in use: what the environment variable `TSBD_SIMD` says (`portable`, `avx2`, `avx512` or `amx`, read once), else
    /// the widest that this machine has.
    ///
    /// # Errors
    /// If the variable names no set that this machine has. Operations that do not ask use the narrowest set then; a
    /// program asks once at its start.
    pub fn current() -> Result<Self> {
        chosen().map_err(|text| {
            let way_out = "set it to `portable`, `avx2`, `avx512` or `amx`, not wider than this machine, or unset it";
            Error::value("instruction set", VARIABLE, text, way_out)
        })
    }

    /// As in `TSBD_SIMD`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }

    /// The widest set that this machine has, tile registers left out. Each set includes the narrower ones.
    fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") {
                if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
                    return Self::Avx512;
                }
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Portable, Self::Avx2, Self::Avx512, Self::Amx].into_iter().find(|set| set.name() == text)
    }
}

fn chosen() -> std::result::Result<InstructionSet, &'static str> {
    static CHOSEN: OnceLock<std::result::Result<InstructionSet, String>> = OnceLock::new();
    // Tile registers have to be asked for, so only if they are wanted.
    #[cfg(target_arch = "x86_64")]
    let tiles = || InstructionSet::detect() == InstructionSet::Avx512 && super::tiles::available();
    #[cfg(not(target_arch = "x86_64"))]
    let tiles = || false;
    let read = || {
        let Some(text) = std::env::var_os(VARIABLE) else {
            return Ok(if tiles() { InstructionSet::Amx } else { InstructionSet::detect() });
        };
        let text = text.to_string_lossy().into_owned();
        match InstructionSet::parse(&text) {
            Some(InstructionSet::Amx) if tiles() => Ok(InstructionSet::Amx),
            Some(set) if set <= InstructionSet::detect() => Ok(set),
            _ => Err(text),
        }
    };
    CHOSEN.get_or_init(read).as_ref().copied().map_err(String::as_str)
}

/// [`InstructionSet::current`], or the narrowest set where that is an error.
#[inline]
pub(super) fn instructions() -> InstructionSet {
    chosen().unwrap_or(InstructionSet::Portable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_variable_takes_the_names_of_the_sets() {
        assert_eq!(InstructionSet::parse("portable"), Some(InstructionSet::Portable));
        assert_eq!(InstructionSet::parse("avx2"), Some(InstructionSet::Avx2));
        assert_eq!(InstructionSet::parse("avx512"), Some(InstructionSet::Avx512));
        assert_eq!(InstructionSet::parse("amx"), Some(InstructionSet::Amx));
        assert_eq!(InstructionSet::parse("sse"), None);
        assert!(InstructionSet::Portable < InstructionSet::Avx2 && InstructionSet::Avx2 < InstructionSet::Avx512);
        assert!(InstructionSet::Avx512 < InstructionSet::Amx);
    }
}
