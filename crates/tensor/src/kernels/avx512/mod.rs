//! Kernels written for one instruction set: `f32` on AVX-512, where most training happens. Everything here has a
//! portable counterpart that computes the same thing.

mod lanes;
mod product;
mod transform;
pub(super) mod winograd;

/// Whether this machine has the instructions.
fn is_available() -> bool {
    super::simd::instructions() == super::simd::Instructions::Avx512
}
