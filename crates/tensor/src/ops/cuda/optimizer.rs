//! Steps of optimisers, in place.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::kernels::cuda::gpu::{Gpu, GpuOperand};
use crate::kernels::cuda::optimizer;
use crate::kernels::elementwise::AdamCoefficients;
use crate::operand::exact;
use crate::sgd::Sgd;

/// Refuses tensors of different shapes, of another element type than `f32`, and tensors that share their memory. The first
/// is the parameter.
fn separate<'a>(
    gpu: &Gpu,
    operation: &'static str,
    tensors: &[(&'static str, &'a Tensor)],
) -> Result<Vec<GpuOperand<'a>>> {
    let mut operands: Vec<GpuOperand> = Vec::with_capacity(tensors.len());
    for &(second, tensor) in tensors {
        exact(operation, second, tensor, tensors[0].1.dims(), "the shape of the parameter")?;
        let operand = gpu.numbers(operation, second, tensor)?;
        let shared = operands.iter().position(|earlier| earlier.view().overlaps(&operand.view()));
        if let Some(earlier) = shared {
            return Err(Error::SharedStorage { operation, first: tensors[earlier].0, second });
        }
        operands.push(operand);
    }
    Ok(operands)
}

/// [`crate::sgd_step`].
pub(crate) fn sgd_step(
    gpu: &Gpu,
    parameter: &Tensor,
    velocity: &Tensor,
    gradient: &Tensor,
    options: Sgd,
) -> Result<()> {
    let tensors = [("parameter", parameter), ("velocity", velocity), ("gradient", gradient)];
    let operands = separate(gpu, "sgd_step", &tensors)?;
    let coefficients = [options.learning_rate, options.momentum, options.weight_decay].map(|value| value as f32);
    optimizer::sgd(gpu, operands[0].view(), operands[1].view(), operands[2].view(), coefficients)
}

/// [`crate::adam_step`], with a fifth tensor [`crate::amsgrad_step`]; the tensors in this order: parameter, first and second
/// moment, gradient, largest second moment.
pub(crate) fn adam_step(
    gpu: &Gpu,
    operation: &'static str,
    tensors: &[(&'static str, &Tensor)],
    coefficients: AdamCoefficients<f32>,
) -> Result<()> {
    let operands = separate(gpu, operation, tensors)?;
    let views: Vec<_> = operands.iter().map(GpuOperand::view).collect();
    optimizer::adam(gpu, views[0], [views[1], views[2]], views.get(4).copied(), views[3], coefficients)
}
