//! Pooling over windows and over whole images.

use super::Argument::{Integer, Natural, Read, Write};
use super::{Argument, Memory, Queue, Stored, View, integer, named, natural, one_each};
use crate::error::Result;
use crate::kernels::pooling::Windows;

const OPERATION: &str = "pooling";

/// The sizes as the kernels take them.
fn sizes(w: &Windows) -> Result<Vec<Argument<'static>>> {
    let sizes = [w.height, w.width, w.channels, w.kernel, w.stride, w.padding, w.out_height, w.out_width];
    sizes.into_iter().map(|size| Ok(Integer(integer(OPERATION, size)?))).collect()
}

/// Launches a kernel with a thread for each of `count` results.
///
/// # Safety
/// The arrays must have the sizes of `w` for as many images as there are results.
unsafe fn launch<Q: Queue>(
    queue: &Q,
    kernel: &str,
    element: Stored,
    arrays: &[Argument],
    count: usize,
    sizes: &[Argument],
) -> Result<()> {
    let mut arguments = arrays.to_vec();
    arguments.push(Natural(natural(OPERATION, count)?));
    arguments.extend(sizes);
    // SAFETY: as the caller vouches.
    unsafe { queue.launch(&named(kernel, element, 1), one_each(count), &arguments) }
}

/// The maximum of every window, and its place within its image (`u32`).
pub(crate) fn max<Q: Queue>(queue: &Q, w: &Windows, x: View) -> Result<(Q::Memory, Q::Memory)> {
    let count = x.count() / w.image() * w.out_image();
    let y = queue.allocate(x.element(), count)?;
    let from = queue.allocate(Stored::U32, count)?;
    let arrays = [Read(x), Write(y.view()), Write(from.view())];
    // SAFETY: images and results of the sizes of `w`.
    unsafe { launch(queue, "max_pool", x.element(), &arrays, count, &sizes(w)?)? };
    Ok((y, from))
}

/// The gradient of [`max`].
pub(crate) fn max_backward<Q: Queue>(queue: &Q, w: &Windows, dy: View, from: View) -> Result<Q::Memory> {
    let count = dy.count() / w.out_image() * w.image();
    let dx = queue.allocate(dy.element(), count)?;
    let arrays = [Read(dy), Read(from), Write(dx.view())];
    // SAFETY: as above.
    unsafe { launch(queue, "max_pool_backward", dy.element(), &arrays, count, &sizes(w)?)? };
    Ok(dx)
}

/// The elements of `x` at the places `from` that [`max`] has found; [`max_backward`] is the gradient of this too.
pub(crate) fn gather<Q: Queue>(queue: &Q, w: &Windows, x: View, from: View) -> Result<Q::Memory> {
    let count = from.count();
    let y = queue.allocate(x.element(), count)?;
    let sizes = [w.image(), w.out_image()].map(|size| Ok(Integer(integer(OPERATION, size)?)));
    let sizes: Vec<Argument> = sizes.into_iter().collect::<Result<_>>()?;
    let arrays = [Read(x), Read(from), Write(y.view())];
    // SAFETY: as above; every place is one in its image.
    unsafe { launch(queue, "max_pool_gather", x.element(), &arrays, count, &sizes)? };
    Ok(y)
}

/// The mean of every window.
pub(crate) fn average<Q: Queue>(queue: &Q, w: &Windows, x: View) -> Result<Q::Memory> {
    let count = x.count() / w.image() * w.out_image();
    let y = queue.allocate(x.element(), count)?;
    // SAFETY: as above.
    unsafe { launch(queue, "average_pool", x.element(), &[Read(x), Write(y.view())], count, &sizes(w)?)? };
    Ok(y)
}

/// The gradient of [`average`].
pub(crate) fn average_backward<Q: Queue>(queue: &Q, w: &Windows, dy: View) -> Result<Q::Memory> {
    let count = dy.count() / w.out_image() * w.image();
    let dx = queue.allocate(dy.element(), count)?;
    let arrays = [Read(dy), Write(dx.view())];
    // SAFETY: as above.
    unsafe { launch(queue, "average_pool_backward", dy.element(), &arrays, count, &sizes(w)?)? };
    Ok(dx)
}

/// The mean over all `pixels` of each image, `[images, pixels, channels]` to `[images, channels]`.
pub(crate) fn global_average<Q: Queue>(queue: &Q, x: View, pixels: usize, channels: usize) -> Result<Q::Memory> {
    let count = x.count() / pixels;
    let y = queue.allocate(x.element(), count)?;
    let sizes = [Integer(integer(OPERATION, pixels)?), Integer(integer(OPERATION, channels)?)];
    let arrays = [Read(x), Write(y.view())];
    // SAFETY: `x` has `pixels` times as many elements as `y`.
    unsafe { launch(queue, "global_average_pool", x.element(), &arrays, count, &sizes)? };
    Ok(y)
}

/// The gradient of [`global_average`].
pub(crate) fn global_average_backward<Q: Queue>(
    queue: &Q,
    dy: View,
    pixels: usize,
    channels: usize,
) -> Result<Q::Memory> {
    let count = dy.count() * pixels;
    let dx = queue.allocate(dy.element(), count)?;
    let sizes = [Integer(integer(OPERATION, pixels)?), Integer(integer(OPERATION, channels)?)];
    let arrays = [Read(dy), Write(dx.view())];
    // SAFETY: as above.
    unsafe { launch(queue, "global_average_pool_backward", dy.element(), &arrays, count, &sizes)? };
    Ok(dx)
}
