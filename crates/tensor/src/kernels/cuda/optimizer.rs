//! Steps of optimisers, in place, for everybody who holds the tensors.

use super::Argument::{Natural, Read, Single, Write};
use super::{Queue, View, natural, one_each};
use crate::error::Result;
use crate::kernels::elementwise::AdamCoefficients;

/// # Panics
/// If the arrays differ in length, or overlap.
fn assert_separate(arrays: &[View]) {
    for (index, array) in arrays.iter().enumerate() {
        assert_eq!(array.count(), arrays[0].count());
        assert!(!arrays[..index].iter().any(|earlier| earlier.overlaps(array)));
    }
}

/// `velocity = momentum·velocity + gradient + weight_decay·parameter`, then `parameter -= learning_rate·velocity`, in
/// place; coefficients in this order: learning rate, momentum, weight decay.
///
/// # Panics
/// If the three differ in length, or overlap.
pub(crate) fn sgd<Q: Queue>(
    queue: &Q,
    parameter: View,
    velocity: View,
    gradient: View,
    [learning_rate, momentum, weight_decay]: [f32; 3],
) -> Result<()> {
    let count = parameter.count();
    assert_separate(&[parameter, velocity, gradient]);
    let arguments = [
        Write(parameter),
        Write(velocity),
        Read(gradient),
        Single(learning_rate),
        Single(momentum),
        Single(weight_decay),
        Natural(natural("sgd_step", count)?),
    ];
    // SAFETY: three arrays of `count` elements; what else is launched with them runs before or after.
    unsafe { queue.launch("sgd", one_each(count), &arguments) }
}

/// One step of Adam, or with `largest` of AMSGrad, as [`crate::kernels::elementwise::adam`] and
/// [`crate::kernels::elementwise::amsgrad`].
///
/// # Panics
/// If the arrays differ in length, or overlap.
pub(crate) fn adam<Q: Queue>(
    queue: &Q,
    parameter: View,
    [first, second]: [View; 2],
    largest: Option<View>,
    gradient: View,
    coefficients: AdamCoefficients<f32>,
) -> Result<()> {
    let count = parameter.count();
    let mut changed = vec![parameter, first, second];
    changed.extend(largest);
    assert_separate(&[&changed[..], &[gradient]].concat());
    let AdamCoefficients { step_size, betas, root_correction, epsilon } = coefficients;
    let mut arguments: Vec<_> = changed.into_iter().map(Write).collect();
    arguments.push(Read(gradient));
    arguments.extend([step_size, betas[0], betas[1], root_correction, epsilon].map(Single));
    arguments.push(Natural(natural("adam_step", count)?));
    let kernel = if largest.is_some() { "amsgrad" } else { "adam" };
    // SAFETY: arrays of `count` elements; what else is launched with them runs before or after.
    unsafe { queue.launch(kernel, one_each(count), &arguments) }
}
