//! Steps of optimisers, in place, for everybody who holds the tensors.

use super::Argument::{Natural, Read, Single, Write};
use super::{Memory, Queue, Stored, View, natural, one_each, one_row_each};
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

/// Addresses and lengths of arrays, those of equal length in one row, as kernels read them; and the longest length.
///
/// # Panics
/// If arrays of a row differ in length, or are not `f32`: nothing else would notice.
fn table<const N: usize>(rows: &[[View; N]]) -> (Vec<i64>, usize) {
    let row = |row: &[View; N]| {
        let count = row[0].count();
        assert!(row.iter().all(|view| view.element() == Stored::F32 && view.count() == count));
        row.iter().map(View::address).chain([count as u64]).collect::<Vec<_>>()
    };
    let numbers = rows.iter().flat_map(row).map(u64::cast_signed).collect();
    (numbers, rows.iter().map(|row| row[0].count()).max().unwrap_or(0))
}

/// For every parameter, velocity and gradient: `velocity = momentum·velocity + gradient + weight_decay·parameter`, then
/// `parameter -= learning_rate·velocity`, in place; coefficients in this order: learning rate, momentum, weight decay.
///
/// # Panics
/// If three that belong together differ in length, or overlap.
pub(crate) fn sgd<Q: Queue>(
    queue: &Q,
    steps: &[[View; 3]],
    [learning_rate, momentum, weight_decay]: [f32; 3],
) -> Result<()> {
    steps.iter().for_each(|step| assert_separate(step));
    let (numbers, longest) = table(steps);
    let descents = queue.upload(&numbers)?;
    let arguments = [Read(descents.view()), Single(learning_rate), Single(momentum), Single(weight_decay)];
    // SAFETY: arrays of the lengths beside them; what else is launched with them runs before or after.
    unsafe { queue.launch("sgd", one_row_each(steps.len(), longest), &arguments) }
}

/// What becomes of running estimates, of which the part `momentum` is replaced by what was met: pairs of the two.
///
/// # Panics
/// If the two differ in length.
pub(crate) fn move_estimates<Q: Queue>(queue: &Q, pairs: &[[View; 2]], momentum: f64) -> Result<Vec<Q::Memory>> {
    let moved = pairs.iter().map(|[old, _]| queue.allocate(Stored::F32, old.count()));
    let moved = moved.collect::<Result<Vec<_>>>()?;
    let rows: Vec<_> = pairs.iter().zip(&moved).map(|(&[old, met], moved)| [old, met, moved.view()]).collect();
    let (numbers, longest) = table(&rows);
    let estimates = queue.upload(&numbers)?;
    let arguments = [Read(estimates.view()), Single((1. - momentum) as f32), Single(momentum as f32)];
    // SAFETY: arrays of the lengths beside them.
    unsafe { queue.launch("move_estimates", one_row_each(rows.len(), longest), &arguments)? };
    Ok(moved)
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
