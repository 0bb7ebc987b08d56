//! Elements copied to other places: channels beside channels, pixels repeated, borders of zeros. NHWC.

use super::Argument::{Integer, Natural, Read, Write};
use super::{Memory, Queue, View, integer, named, natural, one_each, width};
use crate::error::Result;
use crate::kernels::places::Frame;

/// Launches a kernel that reads `from` and writes `count` elements of `to`, a pack of them a thread. `strides` are the
/// sizes that it counts in packs, `sizes` its others.
///
/// # Safety
/// The arrays must have the sizes that are given.
unsafe fn launch<Q: Queue>(
    queue: &Q,
    kernel: &'static str,
    [from, to]: [View; 2],
    count: usize,
    strides: &[usize],
    sizes: &[i32],
) -> Result<()> {
    let width = strides.iter().map(|&stride| width(stride, &[from, to])).min().unwrap_or(1);
    let packs = count / width;
    let mut arguments = vec![Read(from), Write(to), Natural(natural(kernel, packs)?)];
    for stride in strides {
        arguments.push(Integer(integer(kernel, stride / width)?));
    }
    arguments.extend(sizes.iter().copied().map(Integer));
    // SAFETY: as the caller vouches; all strides are whole packs.
    unsafe { queue.launch(&named(kernel, from.element(), width), one_each(packs), &arguments) }
}

/// Copies all rows of `columns` elements, from column `from_start` of rows of `from_width` elements to column `to_start` of
/// rows of `to_width`.
fn copy_columns<Q: Queue>(
    queue: &Q,
    columns: usize,
    [from, to]: [View; 2],
    [from_width, to_width]: [usize; 2],
    [from_start, to_start]: [usize; 2],
) -> Result<()> {
    let rows = from.count() / from_width;
    assert!(rows == to.count() / to_width && from_start + columns <= from_width && to_start + columns <= to_width);
    let strides = [columns, from_width, from_start, to_width, to_start];
    // SAFETY: both have so many rows, and each of them the columns.
    unsafe { launch(queue, "copy_columns", [from, to], rows * columns, &strides, &[]) }
}

/// As [`crate::kernels::places::join_columns`], of at least one matrix.
pub(crate) fn join_columns<Q: Queue>(queue: &Q, parts: &[(View, usize)]) -> Result<Q::Memory> {
    let to_width = parts.iter().map(|(_, width)| width).sum();
    let joined = queue.allocate(parts[0].0.element(), parts[0].0.count() / parts[0].1 * to_width)?;
    let mut start = 0;
    for &(part, width) in parts {
        copy_columns(queue, width, [part, joined.view()], [width, to_width], [0, start])?;
        start += width;
    }
    Ok(joined)
}

/// As [`crate::kernels::places::take_columns`].
pub(crate) fn take_columns<Q: Queue>(
    queue: &Q,
    values: View,
    width: usize,
    start: usize,
    part: usize,
) -> Result<Q::Memory> {
    let taken = queue.allocate(values.element(), values.count() / width * part)?;
    copy_columns(queue, part, [values, taken.view()], [width, part], [start, 0])?;
    Ok(taken)
}

/// Every pixel of `x`, images of these heights, widths and channels, as a square of `factor` by `factor`.
pub(crate) fn repeat_pixels<Q: Queue>(queue: &Q, x: View, image: [usize; 3], factor: usize) -> Result<Q::Memory> {
    const OPERATION: &str = "repeat_pixels";
    let [height, width, channels] = image;
    let y = queue.allocate(x.element(), x.count() * factor * factor)?;
    let sizes = [integer(OPERATION, height)?, integer(OPERATION, width)?, integer(OPERATION, factor)?];
    // SAFETY: whole images, and `factor * factor` times as many pixels.
    unsafe { launch(queue, OPERATION, [x, y.view()], y.view().count(), &[channels], &sizes)? };
    Ok(y)
}

/// The gradient of [`repeat_pixels`].
pub(crate) fn repeat_pixels_backward<Q: Queue>(
    queue: &Q,
    dy: View,
    image: [usize; 3],
    factor: usize,
) -> Result<Q::Memory> {
    const OPERATION: &str = "repeat_pixels_backward";
    let [height, width, channels] = image;
    let dx = queue.allocate(dy.element(), dy.count() / (factor * factor))?;
    let sizes = [integer(OPERATION, height)?, integer(OPERATION, width)?, integer(OPERATION, factor)?];
    // SAFETY: as above, the other way.
    unsafe { launch(queue, OPERATION, [dy, dx.view()], dx.view().count(), &[channels], &sizes)? };
    Ok(dx)
}

/// Images with a border of zeros.
pub(crate) fn pad<Q: Queue>(queue: &Q, x: View, frame: Frame) -> Result<Q::Memory> {
    let [top, _, left, _] = frame.border;
    let place = [integer(PLACE, top)?, integer(PLACE, left)?];
    place_images(queue, x, frame.inner, frame.outer(), place)
}

/// What lies within the border of [`pad`]: its gradient.
pub(crate) fn cut<Q: Queue>(queue: &Q, y: View, frame: Frame) -> Result<Q::Memory> {
    let [top, _, left, _] = frame.border;
    let place = [-integer(PLACE, top)?, -integer(PLACE, left)?];
    place_images(queue, y, frame.outer(), frame.inner, place)
}

const PLACE: &str = "place_images";

/// Images of one size within those of another, `up` rows from the top and `left` columns from the left, also negative.
fn place_images<Q: Queue>(
    queue: &Q,
    x: View,
    [height, width, channels]: [usize; 3],
    [out_height, out_width, _]: [usize; 3],
    [up, left]: [i32; 2],
) -> Result<Q::Memory> {
    let images = x.count() / (height * width * channels);
    let y = queue.allocate(x.element(), images * out_height * out_width * channels)?;
    let sizes = [
        integer(PLACE, height)?,
        integer(PLACE, width)?,
        integer(PLACE, out_height)?,
        integer(PLACE, out_width)?,
        up,
        left,
    ];
    // SAFETY: as many images of both sizes.
    unsafe { launch(queue, PLACE, [x, y.view()], y.view().count(), &[channels], &sizes)? };
    Ok(y)
}
