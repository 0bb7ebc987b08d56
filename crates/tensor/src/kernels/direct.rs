//! Convolution in `f32` for channels in multiples of the registers' size: the same patches as everywhere, multiplied with
//! weights that are packed once per convolution, where a general matrix product packs them again for each piece. On tile
//! registers only where `fast` is asked for.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::convolution::{Geometry, Start, backward_group, patches, roll, scratch_length, unroll, weight_groups};
use super::lanes::with_widest_lanes;
use super::product::{Packed, Products, TILE_STEPS};
use super::{Element, assume_written, written};

/// Calls `$call` with `$L` standing for the widest lanes whose registers the columns of the products, the first of the channels,
/// fill. Products on tile registers, if `$fast`, need whole groups of both.
macro_rules! with_lanes {
    ($fast:expr, [$columns:expr, $others:expr], $L:ident => $call:expr) => {{
        let (columns, others): (usize, usize) = ($columns, $others);
        let tiles = $fast && others.is_multiple_of(TILE_STEPS);
        with_widest_lanes!(tiles, |count| columns.is_multiple_of(count), $L => $call)
    }};
}

/// Output pixels whose patches are unrolled at once: half a megabyte at most.
fn pixels_per_piece(g: &Geometry) -> usize {
    (128 * 1024 / g.patch() / 12 * 12).clamp(24, 192)
}

/// The convolution, plus `start`; `None` if the channels of the output do not fill registers.
pub(super) fn forward(g: &Geometry, fast: bool, x: &[f32], weight: &[f32], start: Start<f32>) -> Option<Vec<f32>> {
    with_lanes!(fast, [g.out_channels, g.in_channels], L => {
        // SAFETY: the lanes are the machine's.
        unsafe { forward_with::<L>(g, x, weight, start) }
    })
}

/// # Safety
/// The lanes' instructions.
unsafe fn forward_with<L: Products>(g: &Geometry, x: &[f32], weight: &[f32], start: Start<f32>) -> Vec<f32> {
    let (patch, out) = (g.patch(), g.out_channels);
    // SAFETY: the caller vouches for the lanes; the weight has these sizes.
    let weight = unsafe { Packed::of::<L>([patch, out], weight, [out, 1]) };
    let piece = pixels_per_piece(g);
    // SAFETY: the chunks cover the output, and each is written whole, by the product or by `start` before it. The caller
    // vouches for the lanes, and the matrices have the sizes that are said.
    unsafe {
        written(g.pixels() * out, |y| {
            y.par_chunks_mut(piece * out).enumerate().for_each(|(index, y)| {
                let (first, pixels) = (index * piece, y.len() / out);
                match start {
                    Start::Nothing => {}
                    Start::Bias(bias) => {
                        for pixel in y.chunks_exact_mut(out) {
                            pixel.write_copy_of_slice(bias);
                        }
                    }
                    Start::Residual(residual) => {
                        y.write_copy_of_slice(&residual[first * out..][..pixels * out]);
                    }
                }
                let length = if L::COPIES_LEFT { pixels * patch } else { scratch_length(g, pixels) };
                f32::with_scratch(length, |scratch| {
                    let room = scratch.as_mut_ptr();
                    let unrolled = std::slice::from_raw_parts_mut(room, length);
                    let rows = patches(g, x, first, pixels, unrolled).as_ptr();
                    // What is made in its own place is read and written through one pointer.
                    let rows = if std::ptr::addr_eq(rows, room) { room.cast_const() } else { rows };
                    let rows = L::left([pixels, patch], rows, room);
                    let accumulate = !matches!(start, Start::Nothing);
                    L::product([pixels, out, patch], rows, weight.right(), y.as_mut_ptr().cast(), accumulate);
                });
            });
        })
    }
}

/// The gradient with respect to `x`, plus `existing`; `None` if the channels of the input do not fill registers.
pub(super) fn backward_input(
    g: &Geometry,
    fast: bool,
    dy: &[f32],
    weight: &[f32],
    existing: Option<&[f32]>,
) -> Option<Vec<f32>> {
    with_lanes!(fast, [g.in_channels, g.out_channels], L => {
        // SAFETY: the lanes are the machine's.
        unsafe { backward_input_with::<L>(g, dy, weight, existing) }
    })
}

/// # Safety
/// The lanes' instructions.
unsafe fn backward_input_with<L: Products>(
    g: &Geometry,
    dy: &[f32],
    weight: &[f32],
    existing: Option<&[f32]>,
) -> Vec<f32> {
    let (patch, out) = (g.patch(), g.out_channels);
    // SAFETY: the caller vouches for the lanes; the weight has these sizes.
    let weight = unsafe { Packed::of::<L>([out, patch], weight, [1, out]) };
    let (images, step) = backward_group(g);
    let group = images * g.image();
    // SAFETY: the chunks cover the output, and each is written whole: by the product, or by `existing` or with zeros before
    // anything is added to it. The caller vouches for the lanes, and the matrices have the sizes that are said.
    unsafe {
        written(g.images * g.image(), |dx| {
            dx.par_chunks_mut(group).enumerate().for_each(|(index, dx)| {
                let image = index * images;
                let count = dx.len() / g.image();
                let (first, pixels) = (image * g.out_height * g.out_width, count * g.out_height * g.out_width);
                let multiply = |start: usize, count: usize, columns: *mut f32, accumulate: bool, room: *mut f32| {
                    let dy = &dy[(first + start) * out..][..count * out];
                    let dy = L::left([count, out], dy.as_ptr(), room);
                    L::product([count, patch, out], dy, weight.right(), columns, accumulate);
                };
                let room = |pixels: usize| if L::COPIES_LEFT { pixels * out } else { 0 };
                if g.is_pointwise() && existing.is_none() {
                    let dx = dx.as_mut_ptr().cast();
                    return f32::with_scratch(room(pixels), |room| multiply(0, pixels, dx, false, room.as_mut_ptr()));
                }
                let dx = match existing {
                    Some(existing) => dx.write_copy_of_slice(&existing[index * group..][..count * g.image()]),
                    None => {
                        dx.fill(MaybeUninit::new(0.));
                        assume_written(dx)
                    }
                };
                if g.is_pointwise() {
                    let dx = dx.as_mut_ptr();
                    return f32::with_scratch(room(pixels), |room| multiply(0, pixels, dx, true, room.as_mut_ptr()));
                }
                let step = step.min(pixels);
                f32::with_scratch(step * patch + room(step), |scratch| {
                    let (columns, room) = scratch.split_at_mut(step * patch);
                    for start in (0..pixels).step_by(step) {
                        let count = step.min(pixels - start);
                        let columns = &mut columns[..count * patch];
                        multiply(start, count, columns.as_mut_ptr(), false, room.as_mut_ptr());
                        roll(g, columns, first + start, image, dx);
                    }
                });
            });
        })
    }
}

/// The gradient with respect to the weight; `None` if the channels of the output do not fill registers.
pub(super) fn backward_weight(g: &Geometry, fast: bool, x: &[f32], dy: &[f32]) -> Option<Vec<f32>> {
    with_lanes!(fast, [g.out_channels, g.in_channels], L => {
        // SAFETY: the lanes are the machine's.
        unsafe { backward_weight_with::<L>(g, x, dy) }
    })
}

/// # Safety
/// The lanes' instructions.
unsafe fn backward_weight_with<L: Products>(g: &Geometry, x: &[f32], dy: &[f32]) -> Vec<f32> {
    /// Pixels multiplied at once: enough that the sums are not read and written again too often.
    const STEP: usize = 256;
    /// Sums of one piece of work, at most, unless a row of the kernel has more: half a megabyte.
    const SUMS: usize = 128 * 1024;
    let out = g.out_channels;
    // A piece of work is the whole kernel or one row of it, for one group of pixels.
    let kernel_rows = if g.patch() * out <= SUMS { g.kernel_height } else { 1 };
    let pieces_of_kernel = g.kernel_height / kernel_rows;
    let rows = kernel_rows * g.kernel_width * g.in_channels;
    let per_group = g.pixels().div_ceil(weight_groups(g));
    // Rounding up can leave the last group without pixels.
    let groups = g.pixels().div_ceil(per_group);
    let size = rows * out;
    // SAFETY: every chunk has a group with at least one pixel; its first product writes the whole chunk. The caller vouches for
    // the lanes, and the matrices have the sizes that are said.
    let partial = unsafe {
        written(groups * pieces_of_kernel * size, |partial| {
            partial.par_chunks_mut(size).enumerate().for_each(|(index, partial)| {
                let (group, part) = (index / pieces_of_kernel, index % pieces_of_kernel);
                let (begin, end) = (group * per_group, ((group + 1) * per_group).min(g.pixels()));
                let unrolled = if g.is_pointwise() { 0 } else { STEP * rows };
                f32::with_scratch(unrolled + L::scratch_of_columns([rows, out, STEP]), |scratch| {
                    let (unrolled, scratch) = scratch.split_at_mut(unrolled);
                    for first in (begin..end).step_by(STEP) {
                        let pixels = STEP.min(end - first);
                        let columns = if g.is_pointwise() {
                            &x[first * rows..][..pixels * rows]
                        } else {
                            let unrolled = &mut unrolled[..pixels * rows];
                            unroll(g, x, part * kernel_rows..(part + 1) * kernel_rows, first, unrolled);
                            unrolled
                        };
                        let factors = [columns.as_ptr(), dy[first * out..][..pixels * out].as_ptr()];
                        let (partial, scratch) = (partial.as_mut_ptr().cast(), scratch.as_mut_ptr());
                        let (size, accumulate) = ([rows, out, pixels], first > begin);
                        L::product_of_columns(size, factors, [rows, out], partial, accumulate, scratch);
                    }
                });
            });
        })
    };
    super::elementwise::sum_blocks(partial, pieces_of_kernel * size)
}
