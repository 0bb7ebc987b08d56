//! Which algorithm computes convolutions: one switch for the whole process.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{Error, Result};
use crate::kernels::simd::InstructionSet;
use crate::ops::{Manner, Precision};

/// How convolutions in `f32` are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvolutionAlgorithm {
    /// 3x3 convolutions with stride 1 and padding 1 by Winograd's F(4x4, 3x3) where the sizes allow it: a quarter of the
    /// products, with rounding errors about ten times as large (1e-6 relative to the largest output). What is not finite in an
    /// input spoils the whole tile of 4x4 outputs that it belongs to, and those around it.
    ///
    /// With [`InstructionSet::Amx`] the products of all convolutions with channels in multiples of 32 are done on tile
    /// registers, with errors of about 1e-5 relative to the largest output, and up to 3e-4 in the gradients of weights of
    /// maps with few pixels.
    Fast,
    /// Every convolution as a direct sum of products.
    Exact,
    /// Factors rounded to `bf16` (eight significant bits), products added in `f32`: what PyTorch's automatic mixed precision
    /// does, except that outputs are not rounded. Direct sums on tile registers with [`InstructionSet::Amx`] and channels
    /// in multiples of 32, which is what it is for; elsewhere [`Self::Fast`] on rounded factors, at its speed.
    Bf16,
    /// On a GPU, each factor as the sum of what TF32 (eleven significant bits) holds of it and of what is left, of whose four
    /// products the tensor cores add three: errors of a product of about 2^-21, in place of 2^-24. Sizes for which cuDNN has no
    /// algorithm on tensor cores are multiplied in `f32`. An infinite factor may give what is not a number. On a CPU
    /// [`Self::Fast`].
    Split,
}

const VARIABLE: &str = "TSBD_CONV";
const UNSET: u8 = 0;
static CHOSEN: AtomicU8 = AtomicU8::new(UNSET);

impl ConvolutionAlgorithm {
    const ALL: [Self; 4] = [Self::Fast, Self::Exact, Self::Bf16, Self::Split];

    /// The algorithm in use: what [`Self::set`] has chosen, else what the environment variable `TSBD_CONV` says
    /// (`exact`, `fast`, `bf16` or `split`, read once), else [`Self::Fast`].
    ///
    /// # Errors
    /// If the variable says something else.
    pub fn current() -> Result<Self> {
        static FROM_ENVIRONMENT: OnceLock<std::result::Result<ConvolutionAlgorithm, String>> = OnceLock::new();
        let chosen = CHOSEN.load(Ordering::Relaxed);
        if let Some(algorithm) = Self::ALL.into_iter().find(|algorithm| *algorithm as u8 + 1 == chosen) {
            return Ok(algorithm);
        }
        let read = || Self::parse(std::env::var_os(VARIABLE).map(|text| text.to_string_lossy().into_owned()));
        match FROM_ENVIRONMENT.get_or_init(read) {
            Ok(algorithm) => Ok(*algorithm),
            Err(text) => Err(Error::value(
                "convolution",
                VARIABLE,
                text,
                "set it to `fast`, `exact`, `bf16` or `split`, or unset it",
            )),
        }
    }

    /// Chooses the algorithm for all later convolutions of this process, whatever the environment says.
    pub fn set(self) {
        CHOSEN.store(self as u8 + 1, Ordering::Relaxed);
    }

    fn parse(text: Option<String>) -> std::result::Result<Self, String> {
        let Some(text) = text else { return Ok(Self::Fast) };
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == text).ok_or(text)
    }

    /// As in `TSBD_CONV`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Exact => "exact",
            Self::Bf16 => "bf16",
            Self::Split => "split",
        }
    }
}

/// The instruction set and the algorithm of convolutions of this precision on the CPU, for people and records:
/// `avx512, fast convolution`.
///
/// # Errors
/// If one of the environment variables says what it cannot say.
pub fn kernels_in_use(precision: Precision) -> Result<String> {
    let (instructions, convolution) = (InstructionSet::current()?, Manner::of(precision)?.algorithm);
    Ok(format!("{}, {} convolution", instructions.name(), convolution.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_variable_takes_four_words() {
        assert_eq!(ConvolutionAlgorithm::parse(None), Ok(ConvolutionAlgorithm::Fast));
        assert_eq!(ConvolutionAlgorithm::parse(Some("fast".into())), Ok(ConvolutionAlgorithm::Fast));
        assert_eq!(ConvolutionAlgorithm::parse(Some("exact".into())), Ok(ConvolutionAlgorithm::Exact));
        assert_eq!(ConvolutionAlgorithm::parse(Some("bf16".into())), Ok(ConvolutionAlgorithm::Bf16));
        assert_eq!(ConvolutionAlgorithm::parse(Some("split".into())), Ok(ConvolutionAlgorithm::Split));
        assert_eq!(ConvolutionAlgorithm::parse(Some("winograd".into())), Err("winograd".to_owned()));
    }
}
