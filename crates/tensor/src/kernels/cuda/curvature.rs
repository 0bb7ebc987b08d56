//! The mean softmax cross-entropy of `f32` logits `[rows, classes]` that move. Labels as in [`super::loss`].

use super::Argument::{Double, Integer, Read, Write};
use super::{Memory, Queue, Stored, View, integer, one_each};
use crate::error::Result;

const OPERATION: &str = "cross_entropy tangent";

/// How the mean loss moves when the logits move along `tangent`: one number.
pub(crate) fn tangent<Q: Queue>(
    queue: &Q,
    logits: View,
    tangent: View,
    labels: View,
    smoothing: f64,
) -> Result<Q::Memory> {
    let rows = labels.count();
    let (slopes, mean) = (queue.allocate(Stored::F32, rows)?, queue.allocate(Stored::F32, 1)?);
    let (count, classes) = (integer(OPERATION, rows)?, integer(OPERATION, logits.count() / rows)?);
    let arguments = [
        Read(logits),
        Read(tangent),
        Read(labels),
        Write(slopes.view()),
        Integer(count),
        Integer(classes),
        Double(smoothing),
    ];
    // SAFETY: a label and a slope for every row of the logits, which the tangent is as large as.
    unsafe {
        queue.launch("cross_entropy_tangent", one_each(rows), &arguments)?;
        queue.launch("mean", [1, 1], &[Read(slopes.view()), Write(mean.view()), Integer(count)])?;
    }
    Ok(mean)
}

/// The gradient of [`tangent`] with respect to the logits, from its own, one number. (With respect to the tangent it is that
/// of the loss: [`super::loss::cross_entropy_backward`].)
pub(crate) fn curvature<Q: Queue>(
    queue: &Q,
    gradient: View,
    logits: View,
    tangent: View,
    rows: usize,
) -> Result<Q::Memory> {
    let dlogits = queue.allocate(Stored::F32, logits.count())?;
    let arguments = [
        Read(gradient),
        Read(logits),
        Read(tangent),
        Write(dlogits.view()),
        Integer(integer(OPERATION, rows)?),
        Integer(integer(OPERATION, logits.count() / rows)?),
    ];
    // SAFETY: logits, tangent and result have so many rows.
    unsafe { queue.launch("cross_entropy_curvature", one_each(rows), &arguments)? };
    Ok(dlogits)
}
