//! Convolution in `f32` for channels in multiples of the registers' size: the same patches as everywhere, multiplied with
//! weights that are packed once per convolution, where a general matrix product packs them again for each piece.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::convolution::{Geometry, Start, backward_group, patches, roll, scratch_length, unroll, weight_groups};
use super::lanes::{Lanes, with_widest_lanes};
use super::product::{LINE, Right, panel, product};
use super::{Element, assume_written, written};

/// Output pixels whose patches are unrolled at once: half a megabyte at most.
fn pixels_per_piece(g: &Geometry) -> usize {
    (128 * 1024 / g.patch() / 12 * 12).clamp(24, 192)
}

/// A matrix in panels of columns, on a cache line.
struct Panels {
    memory: Vec<f32>,
    start: usize,
}

impl Panels {
    fn zeros(length: usize) -> Self {
        let memory = vec![0.; length + LINE];
        let start = memory.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        Self { memory, start }
    }

    fn values_mut(&mut self) -> &mut [f32] {
        let end = self.memory.len() - LINE + self.start;
        &mut self.memory[self.start..end]
    }

    fn right(&self) -> Right {
        Right::Panels(self.memory[self.start..].as_ptr())
    }
}

/// The matrix `[k, n]` with element `(row, column)` at `values[row·row_stride + column·column_stride]` in panels of columns.
fn packed<L: Lanes>(k: usize, n: usize, values: &[f32], [row_stride, column_stride]: [usize; 2]) -> Panels {
    let mut panels = Panels::zeros(k * n);
    panels.values_mut().par_chunks_mut(2 * L::COUNT * k).enumerate().for_each(|(index, values_of_panel)| {
        let (start, width) = panel::<L>(index * 2 * L::COUNT, n);
        for (row, line) in values_of_panel.chunks_exact_mut(width).enumerate() {
            for (column, value) in line.iter_mut().enumerate() {
                *value = values[row * row_stride + (start + column) * column_stride];
            }
        }
    });
    panels
}

/// The convolution, plus `start`; `None` if the channels of the output do not fill registers.
pub(super) fn forward(g: &Geometry, x: &[f32], weight: &[f32], start: Start<f32>) -> Option<Vec<f32>> {
    with_widest_lanes!(|count| g.out_channels.is_multiple_of(count), L => {
        // SAFETY: the lanes are the machine's.
        unsafe { forward_with::<L>(g, x, weight, start) }
    })
}

/// # Safety
/// The lanes' instructions.
unsafe fn forward_with<L: Lanes>(g: &Geometry, x: &[f32], weight: &[f32], start: Start<f32>) -> Vec<f32> {
    let (patch, out) = (g.patch(), g.out_channels);
    let weight = packed::<L>(patch, out, weight, [out, 1]);
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
                f32::with_scratch(scratch_length(g, pixels), |scratch| {
                    let rows = patches(g, x, first, pixels, scratch);
                    let (weight, y) = (weight.right(), y.as_mut_ptr().cast());
                    let accumulate = !matches!(start, Start::Nothing);
                    product::<L>([pixels, out, patch], rows.as_ptr(), [patch, 1], weight, y, accumulate);
                });
            });
        })
    }
}

/// The gradient with respect to `x`, plus `existing`; `None` if the channels of the input do not fill registers.
pub(super) fn backward_input(g: &Geometry, dy: &[f32], weight: &[f32], existing: Option<&[f32]>) -> Option<Vec<f32>> {
    let fits = |count: usize| g.in_channels.is_multiple_of(count);
    with_widest_lanes!(fits, L => {
        // SAFETY: the lanes are the machine's.
        unsafe { backward_input_with::<L>(g, dy, weight, existing) }
    })
}

/// # Safety
/// The lanes' instructions.
unsafe fn backward_input_with<L: Lanes>(
    g: &Geometry,
    dy: &[f32],
    weight: &[f32],
    existing: Option<&[f32]>,
) -> Vec<f32> {
    let (patch, out) = (g.patch(), g.out_channels);
    let weight = packed::<L>(out, patch, weight, [1, out]);
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
                let multiply = |start: usize, count: usize, columns: *mut f32, accumulate: bool| {
                    let dy = &dy[(first + start) * out..][..count * out];
                    let weight = weight.right();
                    product::<L>([count, patch, out], dy.as_ptr(), [out, 1], weight, columns, accumulate);
                };
                if g.is_pointwise() && existing.is_none() {
                    return multiply(0, pixels, dx.as_mut_ptr().cast(), false);
                }
                let dx = match existing {
                    Some(existing) => dx.write_copy_of_slice(&existing[index * group..][..count * g.image()]),
                    None => {
                        dx.fill(MaybeUninit::new(0.));
                        assume_written(dx)
                    }
                };
                if g.is_pointwise() {
                    return multiply(0, pixels, dx.as_mut_ptr(), true);
                }
                f32::with_scratch(step.min(pixels) * patch, |scratch| {
                    for start in (0..pixels).step_by(step) {
                        let count = step.min(pixels - start);
                        let scratch = &mut scratch[..count * patch];
                        multiply(start, count, scratch.as_mut_ptr(), false);
                        roll(g, scratch, first + start, image, dx);
                    }
                });
            });
        })
    }
}

/// The gradient with respect to the weight; `None` if the channels of the output do not fill registers.
pub(super) fn backward_weight(g: &Geometry, x: &[f32], dy: &[f32]) -> Option<Vec<f32>> {
    with_widest_lanes!(|count| g.out_channels.is_multiple_of(count), L => {
        // SAFETY: the lanes are the machine's.
        unsafe { backward_weight_with::<L>(g, x, dy) }
    })
}

/// # Safety
/// The lanes' instructions.
unsafe fn backward_weight_with<L: Lanes>(g: &Geometry, x: &[f32], dy: &[f32]) -> Vec<f32> {
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
                f32::with_scratch(if g.is_pointwise() { 0 } else { STEP * rows }, |scratch| {
                    for first in (begin..end).step_by(STEP) {
                        let pixels = STEP.min(end - first);
                        let columns = if g.is_pointwise() {
                            &x[first * rows..][..pixels * rows]
                        } else {
                            let scratch = &mut scratch[..pixels * rows];
                            unroll(g, x, part * kernel_rows..(part + 1) * kernel_rows, first, scratch);
                            scratch
                        };
                        let dy = Right::Rows(dy[first * out..][..pixels * out].as_ptr(), out);
                        let partial = partial.as_mut_ptr().cast();
                        product::<L>([rows, out, pixels], columns.as_ptr(), [1, rows], dy, partial, first > begin);
                    }
                });
            });
        })
    };
    super::elementwise::sum_blocks(partial, pieces_of_kernel * size)
}
