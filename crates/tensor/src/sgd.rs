//! A step of stochastic gradient descent, in place.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Tensor};

use crate::error::Result;
use crate::in_place::{self, slice, slice_mut};
use crate::kernels::{Element, elementwise};
use crate::operand::{by_element, on_gpu};

/// Options of [`sgd_steps`], as PyTorch's `torch.optim.SGD`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Step size.
    pub learning_rate: f64,
    /// Share of the previous velocity that is kept, 0 to 1.
    pub momentum: f64,
    /// Multiple of the parameter added to its gradient (L2 penalty).
    pub weight_decay: f64,
}

/// One step of a parameter, in place: `velocity = momentum·velocity + gradient + weight_decay·parameter`, then
/// `parameter -= learning_rate·velocity`. With a velocity of zeros before the first step this is PyTorch's
/// rule without dampening and Nesterov.
///
/// Clones of the parameter and the velocity share their memory and see the change. All three have the
/// same shape and element type, and separate memory.
pub fn sgd_step(parameter: &Tensor, velocity: &Tensor, gradient: &Tensor, options: Sgd) -> Result<()> {
    sgd_steps(&[[parameter, velocity, gradient]], options, None)
}

/// What a step reads when it is done, and not when it is asked for: so one that was recorded ([`crate::Recording`]) can be
/// done again.
#[derive(Clone, Copy, Debug)]
pub struct Current<'a> {
    /// One number, `f32`: the step size, instead of [`Sgd::learning_rate`].
    pub learning_rate: &'a Tensor,
    /// One number, `f32`: the loss that the gradients are of. Where it is not finite nothing moves.
    pub loss: &'a Tensor,
}

impl Current<'_> {
    /// The options that are true now, or nothing where the loss is not finite.
    fn options(&self, options: Sgd) -> Result<Option<Sgd>> {
        let learning_rate = f64::from(self.learning_rate.reshape(())?.to_scalar::<f32>()?);
        Ok(is_finite(self.loss)?.then_some(Sgd { learning_rate, ..options }))
    }
}

/// Whether a loss, one `f32` on the CPU, is finite.
pub(crate) fn is_finite(loss: &Tensor) -> Result<bool> {
    Ok(loss.reshape(())?.to_scalar::<f32>()?.is_finite())
}

/// [`sgd_step`] of many parameters, each with its velocity and its gradient. Nothing of one parameter shares its memory with
/// anything of another. On a GPU all are moved at once.
pub fn sgd_steps(steps: &[[&Tensor; 3]], options: Sgd, current: Option<Current>) -> Result<()> {
    let steps: Vec<_> = steps.iter().copied().filter(|[parameter, ..]| parameter.elem_count() > 0).collect();
    if steps.is_empty() {
        return Ok(());
    }
    on_gpu!(steps[0][0], gpu => crate::ops::cuda::optimizer::sgd_steps(&gpu, &steps, options, current));
    let options = match current {
        Some(current) => current.options(options)?,
        None => Some(options),
    };
    let Some(options) = options else { return Ok(()) };
    steps.iter().try_for_each(|&[parameter, velocity, gradient]| step(parameter, velocity, gradient, options))
}

fn step(parameter: &Tensor, velocity: &Tensor, gradient: &Tensor, options: Sgd) -> Result<()> {
    const OPERATION: &str = "sgd_step";
    by_element!(OPERATION, "parameter", parameter, T => {
        in_place::check::<T>(OPERATION, &[("parameter", parameter), ("velocity", velocity), ("gradient", gradient)])?;
        let coefficients = [options.learning_rate as T, options.momentum as T, options.weight_decay as T];
        Ok(velocity.inplace_op1(&WithVelocity { parameter, gradient, coefficients })?)
    })
}

/// Holds the velocity's memory and goes on to the parameter's.
struct WithVelocity<'a, T> {
    parameter: &'a Tensor,
    gradient: &'a Tensor,
    coefficients: [T; 3],
}

impl<T: Element> InplaceOp1 for WithVelocity<'_, T> {
    fn name(&self) -> &'static str {
        "sgd_step"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let velocity = RefCell::new(slice_mut::<T>(storage, layout)?);
        self.parameter.inplace_op2(self.gradient, &Step { velocity, coefficients: self.coefficients })
    }
}

/// Holds all three.
struct Step<'a, T> {
    velocity: RefCell<&'a mut [T]>,
    coefficients: [T; 3],
}

impl<T: Element> InplaceOp2 for Step<'_, T> {
    fn name(&self) -> &'static str {
        "sgd_step"
    }

    fn cpu_fwd(
        &self,
        parameter: &mut CpuStorage,
        parameter_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let parameter = slice_mut::<T>(parameter, parameter_layout)?;
        let gradient = slice(gradient, gradient_layout)?;
        elementwise::sgd(parameter, &mut self.velocity.borrow_mut(), gradient, self.coefficients);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_current_step_takes_the_rate_that_is_in_memory_unless_the_loss_there_is_not_finite() {
        let values = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        let options = Sgd { learning_rate: f64::NAN, momentum: 0.9, weight_decay: 0. };
        for (loss, expected) in [(f32::NAN, [1., 2.]), (f32::INFINITY, [1., 2.]), (0.7, [0.5, 1.])] {
            let (parameter, velocity) = (values(&[1., 2.]), values(&[0., 0.]));
            let current = Current { learning_rate: &values(&[0.5]), loss: &values(&[loss]) };
            sgd_steps(&[[&parameter, &velocity, &values(&[1., 2.])]], options, Some(current)).unwrap();
            assert_eq!(parameter.to_vec1::<f32>().unwrap(), expected, "{loss}");
        }
    }
}
