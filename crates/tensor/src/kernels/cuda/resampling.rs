//! Images in another size, and at given points: bilinear interpolation.

use super::Argument::{Integer, Natural, Read, Write};
use super::{Argument, Memory, Queue, Stored, THREADS, View, integer, named, natural, one_each, width};
use crate::error::Result;
use crate::kernels::grid_sample::Sampling;
use crate::kernels::resize::Resize;

fn integers(operation: &'static str, sizes: impl IntoIterator<Item = usize>) -> Result<Vec<Argument<'static>>> {
    sizes.into_iter().map(|size| Ok(Integer(integer(operation, size)?))).collect()
}

/// Launches a kernel of `resize.cuh` that makes `to` from `from`.
///
/// # Safety
/// The arrays must be images of the two sizes of `r`, as many of both.
unsafe fn change_size<Q: Queue>(queue: &Q, kernel: &str, r: &Resize, from: View, to: View) -> Result<()> {
    const OPERATION: &str = "resize_bilinear";
    let width = width(r.channels, &[from]);
    let packs = to.count() / width;
    let sizes = [r.height, r.width, r.channels, r.out_height, r.out_width, r.align_corners.into()];
    let mut arguments = vec![Read(from), Write(to), Natural(natural(OPERATION, packs)?)];
    arguments.extend(integers(OPERATION, sizes)?);
    // SAFETY: as the caller vouches.
    unsafe { queue.launch(&named(kernel, from.element(), width), one_each(packs), &arguments) }
}

/// The images `x: [images, height, width, channels]` in the other size.
pub(crate) fn resize<Q: Queue>(queue: &Q, r: &Resize, x: View) -> Result<Q::Memory> {
    let y = queue.allocate(x.element(), x.count() / r.image() * r.out_image())?;
    // SAFETY: images of the first size, and room for as many of the second.
    unsafe { change_size(queue, "resize", r, x, y.view())? };
    Ok(y)
}

/// The gradient of [`resize`].
pub(crate) fn resize_backward<Q: Queue>(queue: &Q, r: &Resize, dy: View) -> Result<Q::Memory> {
    let dx = queue.allocate(dy.element(), dy.count() / r.out_image() * r.image())?;
    // SAFETY: as above, the other way.
    unsafe { change_size(queue, "resize_backward", r, dy, dx.view())? };
    Ok(dx)
}

const OPERATION: &str = "grid_sample";

/// The sizes as the kernels take them.
fn sizes(s: &Sampling) -> Result<Vec<Argument<'static>>> {
    let options = [s.align_corners, s.clamp].map(usize::from);
    integers(OPERATION, [s.height, s.width, s.channels, s.points].into_iter().chain(options))
}

/// The images `x: [images, height, width, channels]` at the points `grid: [images, points, 2]`, which is `f32`.
pub(crate) fn sample<Q: Queue>(queue: &Q, s: &Sampling, x: View, grid: View) -> Result<Q::Memory> {
    let count = grid.count() / 2 * s.channels;
    let y = queue.allocate(x.element(), count)?;
    let mut arguments = vec![Read(x), Read(grid), Write(y.view()), Natural(natural(OPERATION, count)?)];
    arguments.extend(sizes(s)?);
    // SAFETY: as many images as grids, and a result of all channels for each point.
    unsafe { queue.launch(&named("grid_sample", x.element(), 1), one_each(count), &arguments)? };
    Ok(y)
}

/// The gradient of [`sample`] with respect to the grid, `f32`.
pub(crate) fn sample_backward_grid<Q: Queue>(
    queue: &Q,
    s: &Sampling,
    x: View,
    grid: View,
    dy: View,
) -> Result<Q::Memory> {
    let points = grid.count() / 2;
    let dgrid = queue.allocate(Stored::F32, grid.count())?;
    let mut arguments = vec![Read(x), Read(grid), Read(dy), Write(dgrid.view()), Natural(natural(OPERATION, points)?)];
    arguments.extend(sizes(s)?);
    // SAFETY: as above; `dy` is as large as the result.
    unsafe { queue.launch(&named("grid_sample_grid_gradient", x.element(), 1), one_each(points), &arguments)? };
    Ok(dgrid)
}

/// The gradient of [`sample`] with respect to the images.
pub(crate) fn sample_backward_images<Q: Queue>(queue: &Q, s: &Sampling, grid: View, dy: View) -> Result<Q::Memory> {
    let (images, size) = (grid.count() / 2 / s.points, s.height * s.width * s.channels);
    let dx = queue.allocate(dy.element(), images * size)?;
    let chunks = size.div_ceil(THREADS);
    let grid_of_blocks = [natural(OPERATION, images * chunks)?, 1];
    let mut arguments = vec![Read(grid), Read(dy), Write(dx.view()), Integer(integer(OPERATION, chunks)?)];
    arguments.extend(sizes(s)?);
    // SAFETY: as above; the blocks of every image cover its elements.
    unsafe { queue.launch(&named("grid_sample_image_gradient", dy.element(), 1), grid_of_blocks, &arguments)? };
    Ok(dx)
}
