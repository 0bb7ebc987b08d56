//! Softmax cross-entropy of `f32` logits `[rows, classes]`.
//!
//! Labels are not looked at by the host, which would have to wait for the GPU: one that is no class makes its loss not a
//! number.

use super::Argument::{Double, Integer, Read, Write};
use super::{Memory, Queue, Stored, View, integer, one_each};
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
