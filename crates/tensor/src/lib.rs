//! Differentiable operations on Candle tensors.
//!
//! Candle's [`Tensor`] is the storage; its automatic differentiation is not used. Networks are built
//! from [`Var`]s: a value and, when a gradient is wanted, a place on a [`Tape`]. The operations are
//! methods of `Var`; each records one closure that turns the gradient of its output into the gradients
//! of its inputs. Gradients are moved from one operation to the next: the first contribution is taken as
//! it is, a second one is added (where possible inside the kernel that makes it), nothing is filled with
//! zeros first. What an operation keeps for its backward pass is freed as the backward pass goes on.
//!
//! Conventions, everywhere in the workspace:
//! - images and activations are `[batch, height, width, channels]` (NHWC), contiguous;
//! - convolution weights are `[kernel height, kernel width, in, out]` (HWIO), those of transposed convolutions
//!   `[kernel height, kernel width, out, in]`; linear weights `[out, in]`;
//! - `f32` for work, `f64` for references and gradient checks: every operation takes both, never mixed;
//! - results do not depend on the number of threads: work is cut into pieces of fixed size and partial
//!   sums are added in a fixed order;
//! - `f32` convolutions use a faster algorithm with slightly larger rounding errors where they can; the environment
//!   variable `TSBD_CONV=exact` (or [`ConvolutionAlgorithm::set`]) turns it off, `bf16` rounds their factors; a
//!   convolution may ask for that itself ([`Precision`]);
//! - kernels use the widest instructions that the machine has (on AMX with 16 bits of each factor of a convolution);
//!   `TSBD_SIMD=avx512`, `avx2` or `portable` chooses narrower ones ([`InstructionSet`]);
//! - with the feature `cuda`, tensors may be on an NVIDIA GPU ([`device`]), in `f32` or, activations and the weights of
//!   convolutions and linear layers, `bf16`. All arguments of an operation are on one device, and so is its result.
//!
//! ```
//! use tsbd_tensor::{Device, Tape, Tensor};
//!
//! # fn main() -> tsbd_tensor::Result<()> {
//! let tape = Tape::new();
//! let x = tape.leaf(&Tensor::new(&[1f32, -2., 3.], &Device::Cpu)?);
//! let loss = x.relu()?.mul(&x)?.sum()?; // relu(x)·x = 1 + 9
//! assert_eq!(loss.tensor().to_scalar::<f32>()?, 10.);
//! let gradients = tape.backward(&loss)?;
//! assert_eq!(gradients.get(&x).unwrap().to_vec1::<f32>()?, [2., 0., 6.]);
//! # Ok(())
//! # }
//! ```
//!
//! Second derivatives: a value may carry a tangent ([`Var::with_tangent`]), a direction in which it moves. What is
//! computed from it then has a tangent too, and the gradient of a loss's tangent is a Hessian-vector product. An operation
//! that has no rule for tangents (softmax and its logarithm, layer norm, GELU, sigmoid, tanh, quotients, roots, absolute
//! values, division by norms, sampling, bilinear change of size, transposed convolution, the losses per sample and of bits) refuses a value
//! that has one.
//!
//! ```
//! use tsbd_tensor::{Device, Tape, Tensor, Var};
//!
//! # fn main() -> tsbd_tensor::Result<()> {
//! let tape = Tape::new();
//! let x = tape.leaf(&Tensor::new(&[1f32, 2.], &Device::Cpu)?);
//! let moving = x.with_tangent(&Var::constant(Tensor::new(&[1f32, 10.], &Device::Cpu)?))?;
//! let loss = moving.mul(&moving)?.mul(&moving)?.sum()?; // Σ x³: gradient 3x², Hessian diag(6x)
//! let slope = loss.tangent().unwrap();
//! assert_eq!(slope.tensor().to_scalar::<f32>()?, 3. + 120.);
//! let gradients = tape.backward(slope)?;
//! assert_eq!(gradients.get(&x).unwrap().to_vec1::<f32>()?, [6., 120.]);
//! # Ok(())
//! # }
//! ```

#![deny(unsafe_code)]

pub use candle_core::{DType, Device, Tensor, TensorId};

mod adam;
pub mod check;
mod device;
mod error;
mod estimates;
mod in_place;
#[allow(unsafe_code)]
mod kernels;
pub mod memory;
mod operand;
mod ops;
mod readback;
mod recording;
pub mod selftest;
mod sgd;
mod tangent;
mod tape;
pub mod workload;

pub use adam::{Adam, adam_step, amsgrad_step};
pub use device::{
    GpuFacts, device, forget_peak_gpu_memory, give_back_gpu_memory, gpu_way_out, gpus, lacks_gpu_memory,
    peak_gpu_memory,
};
pub use error::{Error, Result};
pub use estimates::move_estimates;
pub use kernels::peak::{MachinePeak, machine_peak};
pub use kernels::simd::InstructionSet;
pub use ops::{
    BatchNorm, BatchStatistics, Conv2d, ConvTranspose2d, ConvolutionAlgorithm, CrossEntropy, GridPadding, GridSample,
    Placement, Precision, Statistics, augment, count_correct, kernels_in_use, predicted_classes, upload,
};
pub use readback::Readback;
pub use recording::Recording;
pub use sgd::{Current, Sgd, sgd_step, sgd_steps};
pub use tape::{Gradients, Tape, Var};
