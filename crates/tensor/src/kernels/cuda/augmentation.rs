//! Batches of a data set that lies on the GPU: cut out, mirrored, normalised.

use super::Argument::{Integer, Natural, Read, Write};
use super::{Memory, Queue, Stored, View, integer, natural, one_each};
use crate::error::Result;
use crate::kernels::augmentation::COLORS;

/// Normalised images `[batch, height, width, 3]`, `f32`, of the images `indices` (`u32`) of `pixels` (`u8`, as many images
/// as the indices need). Image number `i` is cut out as `placements[i]` says (`i32`: rows by which the window lies above the
/// image, columns by which it lies left of it, whether it is mirrored); `table` `[3][256]` has the value of every level.
pub(crate) fn augment<Q: Queue>(
    queue: &Q,
    [pixels, indices, placements, table]: [View; 4],
    [height, width]: [usize; 2],
) -> Result<Q::Memory> {
    const OPERATION: &str = "augment";
    let count = indices.count() * height * width * COLORS;
    let batch = queue.allocate(Stored::F32, count)?;
    let arguments = [
        Read(pixels),
        Read(indices),
        Read(placements),
        Read(table),
        Write(batch.view()),
        Natural(natural(OPERATION, count)?),
        Integer(integer(OPERATION, height)?),
        Integer(integer(OPERATION, width)?),
    ];
    // SAFETY: the caller has checked the indices; a placement for each, and a value for each of its pixels.
    unsafe { queue.launch(OPERATION, one_each(count), &arguments)? };
    Ok(batch)
}
