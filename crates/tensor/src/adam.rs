//! A step of Adam (Kingma and Ba 2015), in place.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Tensor};

use crate::error::{Error, Result};
use crate::in_place::{self, slice, slice_mut};
use crate::kernels::Element;
use crate::kernels::elementwise::{self, AdamCoefficients};
use crate::operand::{by_element, on_gpu};

/// Options of [`adam_step`], as PyTorch's `torch.optim.Adam`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// Step size.
    pub learning_rate: f64,
    /// Share of the first and of the second moment that each step keeps, at least 0 and below 1.
    pub betas: [f64; 2],
    /// Added to the root of the second moment, so that nothing is divided by 0.
    pub epsilon: f64,
}

/// Step number `step` (the first is 1), in place: `m = beta1·m + (1 - beta1)·gradient`,
/// `v = beta2·v + (1 - beta2)·gradient²`, then
/// `parameter -= learning_rate · m/(1 - beta1^step) / (√(v/(1 - beta2^step)) + epsilon)`. With moments of zeros before the
/// first step this is PyTorch's rule without weight decay and AMSGrad.
///
/// Clones of the parameter and the moments share their memory and see the change. All four tensors have the same shape
/// and element type, and separate memory.
pub fn adam_step(
    parameter: &Tensor,
    first_moment: &Tensor,
    second_moment: &Tensor,
    gradient: &Tensor,
    step: u64,
    options: Adam,
) -> Result<()> {
    take_step("adam_step", [parameter, first_moment, second_moment, gradient], None, step, options)
}

/// [`adam_step`] whose steps never grow because the second moment shrinks: `largest = max(largest, v)`, and the parameter
/// moves by `largest` in place of `v`. PyTorch's `amsgrad=True` (Reddi, Kale, Kumar 2018); begin with `largest` of zeros.
pub fn amsgrad_step(
    parameter: &Tensor,
    first_moment: &Tensor,
    second_moment: &Tensor,
    largest: &Tensor,
    gradient: &Tensor,
    step: u64,
    options: Adam,
) -> Result<()> {
    take_step("amsgrad_step", [parameter, first_moment, second_moment, gradient], Some(largest), step, options)
}

fn take_step(
    operation: &'static str,
    [parameter, first_moment, second_moment, gradient]: [&Tensor; 4],
    largest: Option<&Tensor>,
    step: u64,
    options: Adam,
) -> Result<()> {
    if step == 0 {
        return Err(Error::value(operation, "step", step, "the first step is 1"));
    }
    if options.betas.iter().any(|beta| !(0. ..1.).contains(beta)) {
        let betas = format!("{:?}", options.betas);
        return Err(Error::value(operation, "betas", betas, "use numbers of at least 0 and below 1"));
    }
    if parameter.elem_count() == 0 {
        return Ok(());
    }
    let mut tensors = vec![
        ("parameter", parameter),
        ("first_moment", first_moment),
        ("second_moment", second_moment),
        ("gradient", gradient),
    ];
    tensors.extend(largest.map(|largest| ("largest", largest)));
    on_gpu!(parameter, gpu => {
        let coefficients = AdamCoefficients::of_step(step, options);
        crate::ops::cuda::optimizer::adam_step(&gpu, operation, &tensors, coefficients)
    });
    by_element!(operation, "parameter", parameter, T => {
        in_place::check::<T>(operation, &tensors)?;
        let coefficients = AdamCoefficients::<T>::of_step(step, options);
        Ok(first_moment.inplace_op1(&WithFirst { second_moment, largest, parameter, gradient, coefficients })?)
    })
}

/// Holds the first moment's memory and goes on to the second's.
struct WithFirst<'a, T> {
    second_moment: &'a Tensor,
    largest: Option<&'a Tensor>,
    parameter: &'a Tensor,
    gradient: &'a Tensor,
    coefficients: AdamCoefficients<T>,
}

impl<T: Element> InplaceOp1 for WithFirst<'_, T> {
    fn name(&self) -> &'static str {
        "adam_step"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let first = RefCell::new(slice_mut::<T>(storage, layout)?);
        self.second_moment.inplace_op1(&WithMoments { first, step: self })
    }
}

/// Holds both moments' memory and goes on to that of the largest second moment, if it is kept, and to the parameter's.
struct WithMoments<'a, T> {
    first: RefCell<&'a mut [T]>,
    step: &'a WithFirst<'a, T>,
}

impl<T: Element> InplaceOp1 for WithMoments<'_, T> {
    fn name(&self) -> &'static str {
        "adam_step"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let mut first = self.first.borrow_mut();
        let (first, second) = (&mut **first, slice_mut::<T>(storage, layout)?);
        let WithFirst { largest, parameter, gradient, coefficients, .. } = *self.step;
        match largest {
            None => {
                parameter.inplace_op2(gradient, &Step { moments: RefCell::new((first, second, None)), coefficients })
            }
            Some(largest) => {
                largest.inplace_op1(&WithLargest { moments: RefCell::new((first, second)), step: self.step })
            }
        }
    }
}

/// Holds the memory of everything that is kept between steps and goes on to the parameter's.
struct WithLargest<'a, T> {
    moments: RefCell<(&'a mut [T], &'a mut [T])>,
    step: &'a WithFirst<'a, T>,
}

impl<T: Element> InplaceOp1 for WithLargest<'_, T> {
    fn name(&self) -> &'static str {
        "amsgrad_step"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (first, second) = &mut *self.moments.borrow_mut();
        let moments = RefCell::new((&mut **first, &mut **second, Some(slice_mut::<T>(storage, layout)?)));
        let WithFirst { parameter, gradient, coefficients, .. } = *self.step;
        parameter.inplace_op2(gradient, &Step { moments, coefficients })
    }
}

/// First and second moment, and the largest second one where it is kept.
type Moments<'a, T> = (&'a mut [T], &'a mut [T], Option<&'a mut [T]>);

/// Holds all of it.
struct Step<'a, T> {
    moments: RefCell<Moments<'a, T>>,
    coefficients: AdamCoefficients<T>,
}

impl<T: Element> InplaceOp2 for Step<'_, T> {
    fn name(&self) -> &'static str {
        "adam_step"
    }

    fn cpu_fwd(
        &self,
        parameter: &mut CpuStorage,
        parameter_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (parameter, gradient) = (slice_mut::<T>(parameter, parameter_layout)?, slice(gradient, gradient_layout)?);
        match &mut *self.moments.borrow_mut() {
            (first, second, None) => elementwise::adam(parameter, first, second, gradient, self.coefficients),
            (first, second, Some(largest)) => {
                elementwise::amsgrad(parameter, first, second, largest, gradient, self.coefficients);
            }
        }
        Ok(())
    }
}
