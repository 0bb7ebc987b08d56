//! The operations, one module per family. Each checks its arguments, calls its kernel, and records how
//! gradients flow back; inputs that want no gradient cost nothing in the backward pass.

mod activation;
mod algorithm;
mod arithmetic;
mod batch_norm_tangent;
mod broadcast;
mod channels;
mod convolution;
mod linear;
mod loss;
mod normalization;
mod pooling;

pub use algorithm::ConvolutionAlgorithm;
pub(crate) use arithmetic::add_tensors;
pub use convolution::Conv2d;
pub use loss::CrossEntropy;
pub use normalization::{BatchNorm, BatchStatistics, Statistics};
