//! Convolution of numbers rounded to `bf16`, with sums in `f32`: what PyTorch's automatic mixed precision computes, beside the
//! rounding of its outputs.
//!
//! On tile registers (Intel AMX), with channels in multiples of 32, factors are `bf16` in memory too ([`tiled`]). Elsewhere
//! they are rounded first and go the way of other numbers, so that results agree up to the order of the sums.

use rayon::prelude::*;

use super::convolution::{self, Geometry, Start};
#[cfg(target_arch = "x86_64")]
use super::simd::{InstructionSet, instructions};
use super::written;
use crate::ops::ConvolutionAlgorithm;

#[cfg(target_arch = "x86_64")]
mod tiled;

/// Elements per piece of work.
const PIECE: usize = 64 * 1024;

/// The values, rounded to eight significant bits: to the nearest, and of two to the even one. What is not a number stays so;
/// numbers below 2^-126 become zero.
pub(super) fn rounded(values: &[f32]) -> Vec<f32> {
    // SAFETY: the chunks cover the output, and every element of theirs is written.
    unsafe {
        written(values.len(), |output| {
            output.par_chunks_mut(PIECE).zip(values.par_chunks(PIECE)).for_each(|(output, values)| {
                for (output, value) in output.iter_mut().zip(values) {
                    output.write(round(*value));
                }
            });
        })
    }
}

#[inline(always)]
fn round(value: f32) -> f32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    let kept = if value.abs() < f32::MIN_POSITIVE { bits & 0x8000_0000 } else { rounded };
    if value.is_nan() { f32::NAN } else { f32::from_bits(kept) }
}

/// Calls a function of [`tiled`] if the machine has tile registers and the channels fill them, else what comes second.
macro_rules! on_tiles {
    ($g:ident, $tiled:expr, $elsewhere:expr) => {{
        #[cfg(target_arch = "x86_64")]
        if $g.in_channels.is_multiple_of(tiled::CHANNELS)
            && $g.out_channels.is_multiple_of(tiled::CHANNELS)
            && instructions() == InstructionSet::Amx
        {
            // SAFETY: the machine has tile registers, and the channels fill them.
            return unsafe { $tiled };
        }
        $elsewhere
    }};
}

/// The convolution, plus `start`.
pub(super) fn forward(g: &Geometry, x: &[f32], weight: &[f32], start: Start<f32>) -> Vec<f32> {
    on_tiles!(g, tiled::forward(g, x, weight, start), {
        convolution::forward(g, ConvolutionAlgorithm::Fast, &rounded(x), &rounded(weight), start)
    })
}

/// The gradient with respect to the input, plus `existing`.
pub(super) fn backward_input(g: &Geometry, dy: &[f32], weight: &[f32], existing: Option<&[f32]>) -> Vec<f32> {
    on_tiles!(g, tiled::backward_input(g, dy, weight, existing), {
        convolution::backward_input(g, ConvolutionAlgorithm::Fast, &rounded(dy), &rounded(weight), existing)
    })
}

/// The gradient with respect to the weight.
pub(super) fn backward_weight(g: &Geometry, x: &[f32], dy: &[f32]) -> Vec<f32> {
    on_tiles!(g, tiled::backward_weight(g, x, dy), {
        convolution::backward_weight(g, ConvolutionAlgorithm::Fast, &rounded(x), &rounded(dy))
    })
}

#[cfg(test)]
mod tests;
