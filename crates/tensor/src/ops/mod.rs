//! The operations, one module per family. Each checks its arguments, calls its kernel, and records how
//! gradients flow back; inputs that want no gradient cost nothing in the backward pass.

mod activation;
mod algorithm;
mod arithmetic;
mod augmentation;
mod batch_norm_tangent;
mod broadcast;
mod channels;
mod conv_transpose;
mod convolution;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod gelu;
mod grid_sample;
mod layer_norm;
mod linear;
mod loss;
mod normalization;
mod places;
mod pooling;
mod precision;
mod resize;
mod softmax;

pub use algorithm::{ConvolutionAlgorithm, kernels_in_use};
pub(crate) use arithmetic::add_tensors;
pub use augmentation::{Placement, augment, upload};
pub use conv_transpose::ConvTranspose2d;
pub use convolution::Conv2d;
pub use grid_sample::{GridPadding, GridSample};
pub use loss::{CrossEntropy, count_correct, predicted_classes};
pub use normalization::{BatchNorm, BatchStatistics, Statistics};
pub(crate) use precision::Manner;
pub use precision::Precision;
