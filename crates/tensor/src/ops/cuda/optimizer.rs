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

/// [`crate::sgd_steps`], in one launch.
pub(crate) fn sgd_steps(gpu: &Gpu, steps: &[[&Tensor; 3]], options: Sgd) -> Result<()> {
    let operands = steps.iter().map(|&[parameter, velocity, gradient]| {
        let tensors = [("parameter", parameter), ("velocity", velocity), ("gradient", gradient)];
        separate(gpu, "sgd_step", &tensors)
    });
    let operands = operands.collect::<Result<Vec<_>>>()?;
    let views: Vec<_> = operands.iter().map(|of| [of[0].view(), of[1].view(), of[2].view()]).collect();
    let mut all: Vec<_> = views.iter().flatten().collect();
    all.sort_by_key(|view| view.address());
    if all.windows(2).any(|pair| pair[0].overlaps(pair[1])) {
        let (first, second) = ("a tensor of one parameter", "a tensor of another one");
        return Err(Error::SharedStorage { operation: "sgd_steps", first, second });
    }
    let coefficients = [options.learning_rate, options.momentum, options.weight_decay].map(|value| value as f32);
    optimizer::sgd(gpu, &views, coefficients)
}

/// [`crate::move_estimates`], in one launch.
pub(crate) fn move_estimates(gpu: &Gpu, pairs: &[[&Tensor; 2]], momentum: f64) -> Result<Vec<Tensor>> {
    const OPERATION: &str = "move_estimates";
    let operands = pairs.iter().map(|[old, met]| {
        exact(OPERATION, "met", met, old.dims(), "the shape of the estimate")?;
        Ok([gpu.numbers(OPERATION, "estimate", old)?, gpu.numbers(OPERATION, "met", met)?])
    });
    let operands = operands.collect::<Result<Vec<_>>>()?;
    let views: Vec<_> = operands.iter().map(|pair| pair.each_ref().map(GpuOperand::view)).collect();
    let moved = optimizer::move_estimates(gpu, &views, momentum)?;
    Ok(moved.into_iter().zip(pairs).map(|(moved, [old, _])| gpu.tensor(moved, old.dims())).collect())
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
