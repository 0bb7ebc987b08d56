//! Steps of optimisers, in place.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::kernels::cuda::gpu::{Gpu, GpuOperand};
use crate::kernels::cuda::{View, optimizer};
use crate::kernels::elementwise::AdamCoefficients;
use crate::operand::exact;
use crate::sgd::{Current, Sgd};

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

/// One number in the memory of the GPU.
fn one_number<'a>(
    gpu: &Gpu,
    operation: &'static str,
    argument: &'static str,
    tensor: &'a Tensor,
) -> Result<GpuOperand<'a>> {
    match tensor.elem_count() {
        1 => gpu.numbers(operation, argument, tensor),
        _ => Err(Error::shape(operation, argument, "one number", tensor.dims())),
    }
}

/// Refuses memory that belongs to two of `rows`, which are called `owner` and are arrays that are changed.
fn apart<const N: usize>(operation: &'static str, owner: [&'static str; 2], rows: &[[View; N]]) -> Result<()> {
    let mut all: Vec<_> = rows.iter().flatten().collect();
    all.sort_by_key(|view| view.address());
    match all.windows(2).any(|pair| pair[0].overlaps(pair[1])) {
        true => Err(Error::SharedStorage { operation, first: owner[0], second: owner[1] }),
        false => Ok(()),
    }
}

/// [`crate::sgd_steps`], in one launch.
pub(crate) fn sgd_steps(gpu: &Gpu, steps: &[[&Tensor; 3]], options: Sgd, current: Option<Current>) -> Result<()> {
    const OPERATION: &str = "sgd_steps";
    let operands = steps.iter().map(|&[parameter, velocity, gradient]| {
        let tensors = [("parameter", parameter), ("velocity", velocity), ("gradient", gradient)];
        separate(gpu, "sgd_step", &tensors)
    });
    let operands = operands.collect::<Result<Vec<_>>>()?;
    let views: Vec<_> = operands.iter().map(|of| [of[0].view(), of[1].view(), of[2].view()]).collect();
    apart(OPERATION, ["a tensor of one parameter", "a tensor of another one"], &views)?;
    let coefficients = [options.learning_rate, options.momentum, options.weight_decay].map(|value| value as f32);
    let current = match current {
        Some(Current { learning_rate, loss }) => Some([
            one_number(gpu, OPERATION, "learning_rate", learning_rate)?,
            one_number(gpu, OPERATION, "loss", loss)?,
        ]),
        None => None,
    };
    let current = current.as_ref().map(|current| current.each_ref().map(GpuOperand::view));
    optimizer::sgd(gpu, &views, coefficients, current)
}

/// [`crate::move_estimates`], in one launch.
pub(crate) fn move_estimates(gpu: &Gpu, pairs: &[[&Tensor; 2]], momentum: f64, loss: Option<&Tensor>) -> Result<()> {
    const OPERATION: &str = "move_estimates";
    let operands = pairs.iter().map(|[estimate, met]| {
        exact(OPERATION, "met", met, estimate.dims(), "the shape of the estimate")?;
        Ok([gpu.numbers(OPERATION, "estimate", estimate)?, gpu.numbers(OPERATION, "met", met)?])
    });
    let operands = operands.collect::<Result<Vec<_>>>()?;
    let views: Vec<_> = operands.iter().map(|pair| pair.each_ref().map(GpuOperand::view)).collect();
    apart(OPERATION, ["an estimate", "another one, or what was met"], &views)?;
    let loss = loss.map(|loss| one_number(gpu, OPERATION, "loss", loss)).transpose()?;
    optimizer::move_estimates(gpu, &views, momentum, loss.as_ref().map(GpuOperand::view))
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
