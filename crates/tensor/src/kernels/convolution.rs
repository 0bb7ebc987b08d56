//! Two-dimensional convolution, NHWC and HWIO, as matrix products over unrolled patches (im2col).
//!
//! A piece of work is a run of output pixels (or, backward, a group of images): its patches are unrolled
//! into memory of the thread that stays in its cache, and multiplied at once, by the `gemm` crate. The layers of most
//! networks go elsewhere: in `f32`, with channels that fill registers, to the products of [`direct`], to Winograd's
//! algorithm where it is asked for, or to [`bf16`].

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::bf16;
use super::direct;
use super::matrix::{Matrix, add_product, product};
use super::simd::multiversion;
use super::winograd;
use super::{Element, assume_written, written};
use crate::ops::ConvolutionAlgorithm;

/// All sizes of one convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Geometry {
    pub images: usize,
    pub height: usize,
    pub width: usize,
    pub in_channels: usize,
    pub out_channels: usize,
    pub kernel_height: usize,
    pub kernel_width: usize,
    pub stride: usize,
    pub padding: usize,
    pub out_height: usize,
    pub out_width: usize,
}

impl Geometry {
    /// Elements of one patch: kernel height × kernel width × input channels.
    pub(super) fn patch(&self) -> usize {
        self.kernel_height * self.kernel_width * self.in_channels
    }

    /// Output pixels.
    pub(super) fn pixels(&self) -> usize {
        self.images * self.out_height * self.out_width
    }

    /// Elements of an input image.
    pub(super) fn image(&self) -> usize {
        self.height * self.width * self.in_channels
    }

    /// Whether the patches are the input itself.
    pub(super) fn is_pointwise(&self) -> bool {
        self.kernel_height == 1 && self.kernel_width == 1 && self.stride == 1 && self.padding == 0
    }

    /// Output pixels per piece of work: about half a megabyte of patches.
    fn pixels_per_piece(&self) -> usize {
        (128 * 1024 / self.patch() / 12 * 12).clamp(96, 1020)
    }

    /// The place of the first element of tap `(ky, kx)` of output pixel `pixel` in the input, or `None` in
    /// the padding.
    #[inline(always)]
    fn source(&self, pixel: Pixel, ky: usize, kx: usize) -> Option<usize> {
        let y = (pixel.y * self.stride + ky).wrapping_sub(self.padding);
        let x = (pixel.x * self.stride + kx).wrapping_sub(self.padding);
        (y < self.height && x < self.width)
            .then(|| ((pixel.image * self.height + y) * self.width + x) * self.in_channels)
    }

    #[inline(always)]
    fn pixel(&self, index: usize) -> Pixel {
        let (row, x) = (index / self.out_width, index % self.out_width);
        Pixel { image: row / self.out_height, y: row % self.out_height, x }
    }
}

#[derive(Clone, Copy)]
struct Pixel {
    image: usize,
    y: usize,
    x: usize,
}

/// What a convolution is added to.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a, T> {
    Nothing,
    /// One value per output channel.
    Bias(&'a [T]),
    /// One value per output element.
    Residual(&'a [T]),
}

impl<'a, T: Element> Start<'a, T> {
    /// The same for `f32`, if that is what the elements are.
    fn single(self) -> Option<Start<'a, f32>> {
        match self {
            Start::Nothing => Some(Start::Nothing),
            Start::Bias(bias) => T::single(bias).map(Start::Bias),
            Start::Residual(residual) => T::single(residual).map(Start::Residual),
        }
    }
}

/// Copies a pixel or a row of pixels; those of images with three channels are too short to be worth a call.
#[inline(always)]
fn copy<T: Copy>(from: &[T], to: &mut [T]) {
    #[inline(always)]
    fn short<T: Copy, const LENGTH: usize>(from: &[T], to: &mut [T]) {
        to[..LENGTH].copy_from_slice(&from[..LENGTH]);
    }
    match to.len() {
        3 => short::<T, 3>(from, to),
        9 => short::<T, 9>(from, to),
        _ => to.copy_from_slice(from),
    }
}

multiversion! {
    /// Writes the rows `kernel_rows` of the patches of the output pixels from `first` on, one patch each, until `patches` is
    /// full.
    pub(super) fn unroll<T>(g: &Geometry, x: &[T], kernel_rows: Range<usize>, first: usize, patches: &mut [T]) {
        let row = g.kernel_width * g.in_channels;
        for (index, patch) in patches.chunks_exact_mut(kernel_rows.len() * row).enumerate() {
            let pixel = g.pixel(first + index);
            for (ky, line) in kernel_rows.clone().zip(patch.chunks_exact_mut(row)) {
                match (g.source(pixel, ky, 0), g.source(pixel, ky, g.kernel_width - 1)) {
                    // Both ends inside: the row of taps is one run of memory.
                    (Some(start), Some(_)) => copy(&x[start..start + row], line),
                    _ => {
                        for (kx, tap) in line.chunks_exact_mut(g.in_channels).enumerate() {
                            match g.source(pixel, ky, kx) {
                                Some(start) => copy(&x[start..start + g.in_channels], tap),
                                None => tap.fill(T::zero()),
                            }
                        }
                    }
                }
            }
        }
    }
}

multiversion! {
    /// Adds patches back to where [`unroll`] took them from. `image` is the first image of `dx`.
    pub(super) fn roll<T>(g: &Geometry, patches: &[T], first: usize, image: usize, dx: &mut [T]) {
        let offset = image * g.image();
        let row = g.kernel_width * g.in_channels;
        for (index, patch) in patches.chunks_exact(g.patch()).enumerate() {
            let pixel = g.pixel(first + index);
            for (ky, line) in patch.chunks_exact(row).enumerate() {
                match (g.source(pixel, ky, 0), g.source(pixel, ky, g.kernel_width - 1)) {
                    (Some(start), Some(_)) => {
                        for (sum, &value) in dx[start - offset..][..row].iter_mut().zip(line) {
                            *sum += value;
                        }
                    }
                    _ => {
                        for (kx, tap) in line.chunks_exact(g.in_channels).enumerate() {
                            if let Some(start) = g.source(pixel, ky, kx) {
                                for (sum, &value) in dx[start - offset..][..g.in_channels].iter_mut().zip(tap) {
                                    *sum += value;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The patches of some output pixels, unrolled into `scratch` unless they lie in the input as they are.
pub(super) fn patches<'a, T: Element>(
    g: &Geometry,
    x: &'a [T],
    first: usize,
    pixels: usize,
    scratch: &'a mut [T],
) -> &'a [T] {
    let patch = g.patch();
    if g.is_pointwise() {
        &x[first * patch..][..pixels * patch]
    } else {
        let scratch = &mut scratch[..pixels * patch];
        unroll(g, x, 0..g.kernel_height, first, scratch);
        scratch
    }
}

/// Room that [`patches`] needs.
pub(super) fn scratch_length(g: &Geometry, pixels: usize) -> usize {
    if g.is_pointwise() { 0 } else { pixels * g.patch() }
}

/// The convolution of `x: [images, height, width, in]` with `weight: [kh, kw, in, out]`, plus `start`.
pub(crate) fn forward<T: Element>(
    g: &Geometry,
    algorithm: ConvolutionAlgorithm,
    x: &[T],
    weight: &[T],
    start: Start<T>,
) -> Vec<T> {
    let fast = matches!(algorithm, ConvolutionAlgorithm::Fast | ConvolutionAlgorithm::Split);
    if algorithm == ConvolutionAlgorithm::Bf16
        && let (Some(x), Some(weight), Some(start)) = (T::single(x), T::single(weight), start.single())
        && let Some(y) = T::from_single(bf16::forward(g, x, weight, start))
    {
        return y;
    }
    if let (Some(x), Some(weight), Some(start)) = (T::single(x), T::single(weight), start.single()) {
        let winograd = if fast { winograd::forward(g, x, weight, start) } else { None };
        if let Some(y) = winograd.or_else(|| direct::forward(g, fast, x, weight, start)).and_then(T::from_single) {
            return y;
        }
    }
    let (patch, out) = (g.patch(), g.out_channels);
    let piece = g.pixels_per_piece();
    // SAFETY: the chunks cover the output, and each is written whole, by the product or by `start`.
    unsafe {
        written(g.pixels() * out, |y| {
            y.par_chunks_mut(piece * out).enumerate().for_each(|(index, y)| {
                let (first, pixels) = (index * piece, y.len() / out);
                T::with_scratch(scratch_length(g, pixels), |scratch| {
                    let rows = Matrix::rows(patches(g, x, first, pixels, scratch), patch);
                    let (size, weight) = ([pixels, out, patch], Matrix::rows(weight, out));
                    match start {
                        Start::Nothing => return product(size, rows, weight, y),
                        Start::Bias(bias) => {
                            for pixel in y.chunks_exact_mut(out) {
                                pixel.write_copy_of_slice(bias);
                            }
                        }
                        Start::Residual(residual) => {
                            y.write_copy_of_slice(&residual[first * out..][..pixels * out]);
                        }
                    }
                    // Bias or residual have written all of `y`.
                    add_product(size, rows, weight, assume_written(y));
                });
            });
        })
    }
}

/// Images per piece of work in the backward pass to the input, and output pixels unrolled at once.
pub(super) fn backward_group(g: &Geometry) -> (usize, usize) {
    let pixels = 256usize;
    (pixels.div_ceil(g.out_height * g.out_width), pixels)
}

/// The gradient with respect to `x`, plus `existing`.
pub(crate) fn backward_input<T: Element>(
    g: &Geometry,
    algorithm: ConvolutionAlgorithm,
    dy: &[T],
    weight: &[T],
    existing: Option<&[T]>,
) -> Vec<T> {
    let fast = matches!(algorithm, ConvolutionAlgorithm::Fast | ConvolutionAlgorithm::Split);
    if algorithm == ConvolutionAlgorithm::Bf16
        && let (Some(dy), Some(weight)) = (T::single(dy), T::single(weight))
        && let Some(dx) = T::from_single(bf16::backward_input(g, dy, weight, existing.and_then(T::single)))
    {
        return dx;
    }
    if fast
        && let (Some(dy), Some(weight)) = (T::single(dy), T::single(weight))
        && let Some(dx) = winograd::backward_input(g, dy, weight, existing.and_then(T::single)).and_then(T::from_single)
    {
        return dx;
    }
    if let (Some(dy), Some(weight)) = (T::single(dy), T::single(weight))
        && let Some(dx) =
            direct::backward_input(g, fast, dy, weight, existing.and_then(T::single)).and_then(T::from_single)
    {
        return dx;
    }
    let (patch, out) = (g.patch(), g.out_channels);
    let (images, step) = backward_group(g);
    let group = images * g.image();
    let weight = Matrix::transposed(weight, out);
    // SAFETY: the chunks cover the output, and each is written whole, by `existing` or with zeros, before
    // anything is added to it.
    unsafe {
        written(g.images * g.image(), |dx| {
            dx.par_chunks_mut(group).enumerate().for_each(|(index, dx)| {
                let image = index * images;
                let count = dx.len() / g.image();
                let (first, pixels) = (image * g.out_height * g.out_width, count * g.out_height * g.out_width);
                if g.is_pointwise() {
                    let dy = Matrix::rows(&dy[first * out..][..pixels * out], out);
                    match existing {
                        None => product([pixels, patch, out], dy, weight, dx),
                        Some(existing) => {
                            let dx = dx.write_copy_of_slice(&existing[index * group..][..count * g.image()]);
                            add_product([pixels, patch, out], dy, weight, dx);
                        }
                    }
                    return;
                }
                let dx = match existing {
                    Some(existing) => dx.write_copy_of_slice(&existing[index * group..][..count * g.image()]),
                    None => {
                        dx.fill(MaybeUninit::new(T::zero()));
                        assume_written(dx)
                    }
                };
                T::with_scratch(step.min(pixels) * patch, |scratch| {
                    for start in (0..pixels).step_by(step) {
                        let count = step.min(pixels - start);
                        let scratch = &mut scratch[..count * patch];
                        let dy = Matrix::rows(&dy[(first + start) * out..][..count * out], out);
                        multiply_into(dy, weight, [count, patch, out], scratch);
                        roll(g, scratch, first + start, image, dx);
                    }
                });
            });
        })
    }
}

/// `output = a · b` where the output happens to be initialised already.
fn multiply_into<T: Element>(a: Matrix<T>, b: Matrix<T>, size: [usize; 3], output: &mut [T]) {
    // SAFETY: `MaybeUninit<T>` has the layout of `T`, and a product only writes initialised values.
    let output = unsafe { &mut *(std::ptr::from_mut(output) as *mut [MaybeUninit<T>]) };
    product(size, a, b, output);
}

/// How the pixels are grouped for the weight gradient: each group makes one partial sum, of which there are
/// few enough that together they stay small (about 16 MB of `f32`).
pub(super) fn weight_groups(g: &Geometry) -> usize {
    let size = g.patch() * g.out_channels;
    (4 * 1024 * 1024 / size).clamp(2, 16).min(g.pixels().div_ceil(512))
}

/// The gradient with respect to the weight.
pub(crate) fn backward_weight<T: Element>(g: &Geometry, algorithm: ConvolutionAlgorithm, x: &[T], dy: &[T]) -> Vec<T> {
    let fast = matches!(algorithm, ConvolutionAlgorithm::Fast | ConvolutionAlgorithm::Split);
    if algorithm == ConvolutionAlgorithm::Bf16
        && let (Some(x), Some(dy)) = (T::single(x), T::single(dy))
        && let Some(dw) = T::from_single(bf16::backward_weight(g, x, dy))
    {
        return dw;
    }
    if fast
        && let (Some(x), Some(dy)) = (T::single(x), T::single(dy))
        && let Some(dw) = winograd::backward_weight(g, x, dy).and_then(T::from_single)
    {
        return dw;
    }
    if let (Some(x), Some(dy)) = (T::single(x), T::single(dy))
        && let Some(dw) = direct::backward_weight(g, fast, x, dy).and_then(T::from_single)
    {
        return dw;
    }
    const STEP: usize = 512;
    let (patch, out) = (g.patch(), g.out_channels);
    let size = patch * out;
    let groups = weight_groups(g);
    let per_group = g.pixels().div_ceil(groups);
    // Rounding up can leave the last group without pixels.
    let groups = g.pixels().div_ceil(per_group);
    // SAFETY: every chunk is one group with at least one pixel; its first product writes the whole chunk.
    let partial = unsafe {
        written(groups * size, |partial| {
            partial.par_chunks_mut(size).enumerate().for_each(|(group, partial)| {
                let end = ((group + 1) * per_group).min(g.pixels());
                T::with_scratch(scratch_length(g, STEP.min(per_group)), |scratch| {
                    for first in (group * per_group..end).step_by(STEP) {
                        let pixels = STEP.min(end - first);
                        let columns = Matrix::transposed(patches(g, x, first, pixels, scratch), patch);
                        let dy = Matrix::rows(&dy[first * out..][..pixels * out], out);
                        if first == group * per_group {
                            product([patch, out, pixels], columns, dy, partial);
                        } else {
                            // The first product has written all of it.
                            add_product([patch, out, pixels], columns, dy, assume_written(partial));
                        }
                    }
                });
            });
        })
    };
    super::elementwise::sum_blocks(partial, size)
}
