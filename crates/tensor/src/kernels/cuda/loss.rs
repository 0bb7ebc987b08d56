//! Cross-entropy of `f32` logits: of the softmax of rows `[rows, classes]`, and of single bits.
//!
//! Labels and targets are not looked at by the host, which would have to wait for the GPU: one that is no class, or no
//! probability, makes its loss not a number.

use super::Argument::{Double, Integer, Natural, Read, Write};
use super::{Memory, Queue, Stored, View, integer, natural, one_each, rows};
use crate::error::Result;

const OPERATION: &str = "cross_entropy";

/// The loss of every row, and its mean over the rows.
pub(crate) struct Losses<M> {
    pub rows: M,
    pub mean: M,
}

/// The losses of `logits`, as many rows as `labels`.
pub(crate) fn cross_entropy<Q: Queue>(
    queue: &Q,
    logits: View,
    labels: View,
    smoothing: f64,
) -> Result<Losses<Q::Memory>> {
    let rows = labels.count();
    let losses = Losses { rows: queue.allocate(Stored::F32, rows)?, mean: queue.allocate(Stored::F32, 1)? };
    let (count, classes) = (integer(OPERATION, rows)?, integer(OPERATION, logits.count() / rows)?);
    let arguments =
        [Read(logits), Read(labels), Write(losses.rows.view()), Integer(count), Integer(classes), Double(smoothing)];
    // SAFETY: a label and a loss for every row of the logits.
    unsafe {
        queue.launch("cross_entropy", one_each(rows), &arguments)?;
        let arguments = [Read(losses.rows.view()), Write(losses.mean.view()), Integer(count)];
        queue.launch("mean", [1, 1], &arguments)?;
    }
    Ok(losses)
}

/// The gradient of the logits from that of the mean loss (one number) or of every row's loss.
pub(crate) fn cross_entropy_backward<Q: Queue>(
    queue: &Q,
    gradient: View,
    of_mean: bool,
    logits: View,
    labels: View,
    smoothing: f64,
) -> Result<Q::Memory> {
    let rows = labels.count();
    let dlogits = queue.allocate(Stored::F32, logits.count())?;
    let arguments = [
        Read(gradient),
        Read(logits),
        Read(labels),
        Write(dlogits.view()),
        Integer(of_mean.into()),
        Integer(integer(OPERATION, rows)?),
        Integer(integer(OPERATION, logits.count() / rows)?),
        Double(smoothing),
    ];
    // SAFETY: a label for every row of the logits, and a gradient, unless there is one for all.
    unsafe { queue.launch("cross_entropy_backward", one_each(rows), &arguments)? };
    Ok(dlogits)
}

/// Of how many rows of `logits` the largest is the label's: one number.
pub(crate) fn count_correct<Q: Queue>(queue: &Q, logits: View, labels: View) -> Result<Q::Memory> {
    const OPERATION: &str = "count_correct";
    let rows = labels.count();
    let count = queue.allocate(Stored::F32, 1)?;
    let arguments = [
        Read(logits),
        Read(labels),
        Write(count.view()),
        Integer(integer(OPERATION, rows)?),
        Integer(integer(OPERATION, logits.count() / rows)?),
    ];
    // SAFETY: a label for every row of the logits.
    unsafe { queue.launch(OPERATION, [1, 1], &arguments)? };
    Ok(count)
}

/// The mean loss of bits, by their logits and as many targets.
pub(crate) fn binary_cross_entropy<Q: Queue>(queue: &Q, logits: View, targets: View) -> Result<Q::Memory> {
    const OPERATION: &str = "binary_cross_entropy";
    let count = logits.count();
    let losses = queue.allocate(Stored::F32, count)?;
    let arguments = [Read(logits), Read(targets), Write(losses.view()), Natural(natural(OPERATION, count)?)];
    // SAFETY: arrays of `count` elements.
    unsafe { queue.launch(OPERATION, one_each(count), &arguments)? };
    rows::total(queue, losses.view(), 1. / count as f64)
}

/// The gradient of the logits from that of [`binary_cross_entropy`], one number.
pub(crate) fn binary_cross_entropy_backward<Q: Queue>(
    queue: &Q,
    gradient: View,
    logits: View,
    targets: View,
) -> Result<Q::Memory> {
    const OPERATION: &str = "binary_cross_entropy_backward";
    let count = logits.count();
    let dlogits = queue.allocate(Stored::F32, count)?;
    let arguments = [
        Read(gradient),
        Read(logits),
        Read(targets),
        Write(dlogits.view()),
        Natural(natural(OPERATION, count)?),
        Double(1. / count as f64),
    ];
    // SAFETY: arrays of `count` elements, but for the one gradient.
    unsafe { queue.launch(OPERATION, one_each(count), &arguments)? };
    Ok(dlogits)
}
