//! Steps of optimisers, in place, for everybody who holds the tensors.

use super::Argument::{Maybe, Natural, Read, Single, Table, Write};
use super::{Queue, Stored, View, natural, one_each, one_row_each};
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

/// Rows of a `Table` in `optimizer.cuh`.
const ROWS_AT_ONCE: usize = 120;

/// Addresses and lengths of arrays, those of equal length in one row, as kernels read them: a whole table, of which only the
/// first rows say something; and the longest length.
///
/// # Panics
/// If there are too many rows, or arrays of a row differ in length, or are not `f32`: nothing else would notice.
fn table<const N: usize>(rows: &[[View; N]]) -> (Vec<i64>, usize) {
    assert!(rows.len() <= ROWS_AT_ONCE);
    let row = |row: &[View; N]| {
        let count = row[0].count();
        assert!(row.iter().all(|view| view.element() == Stored::F32 && view.count() == count));
        row.iter().map(View::address).chain([count as u64]).collect::<Vec<_>>()
    };
    let mut numbers: Vec<i64> = rows.iter().flat_map(row).map(u64::cast_signed).collect();
    numbers.resize(ROWS_AT_ONCE * (N + 1), 0);
    (numbers, rows.iter().map(|row| row[0].count()).max().unwrap_or(0))
}

/// For every parameter, velocity and gradient: `velocity = momentum·velocity + gradient + weight_decay·parameter`, then
/// `parameter -= learning_rate·velocity`, in place; coefficients in this order: learning rate, momentum, weight decay. With
/// `current`, a learning rate and a loss in memory, that rate is taken, and nothing happens if that loss is not finite.
///
/// # Panics
/// If three that belong together differ in length, or overlap.
pub(crate) fn sgd<Q: Queue>(
    queue: &Q,
    steps: &[[View; 3]],
    [learning_rate, momentum, weight_decay]: [f32; 3],
    current: Option<[View; 2]>,
) -> Result<()> {
    steps.iter().for_each(|step| assert_separate(step));
    let [current_rate, loss] = current.map_or([None; 2], |current| current.map(Some));
    for steps in steps.chunks(ROWS_AT_ONCE) {
        let (descents, longest) = table(steps);
        let arguments = [
            Table(&descents),
            Single(learning_rate),
            Single(momentum),
            Single(weight_decay),
            Maybe(current_rate),
            Maybe(loss),
        ];
        // SAFETY: arrays of the lengths beside them; what else is launched with them runs before or after.
        unsafe { queue.launch("sgd", one_row_each(steps.len(), longest), &arguments)? };
    }
    Ok(())
}

/// Of running estimates the part `momentum` is replaced, in place, by what was met: pairs of the two. Nothing happens if
/// `loss` is one that is not finite.
///
/// # Panics
/// If the two differ in length, or overlap.
pub(crate) fn move_estimates<Q: Queue>(
    queue: &Q,
    pairs: &[[View; 2]],
    momentum: f64,
    loss: Option<View>,
) -> Result<()> {
    pairs.iter().for_each(|pair| assert_separate(pair));
    for pairs in pairs.chunks(ROWS_AT_ONCE) {
        let (estimates, longest) = table(pairs);
        let arguments = [Table(&estimates), Single((1. - momentum) as f32), Single(momentum as f32), Maybe(loss)];
        // SAFETY: arrays of the lengths beside them; what else is launched with them runs before or after.
        unsafe { queue.launch("move_estimates", one_row_each(pairs.len(), longest), &arguments)? };
    }
    Ok(())
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
