//! Pooling over windows, NHWC. One piece of work is one image.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::simd::multiversion;
use super::{Element, assume_written, written};

/// All sizes of one pooling.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Windows {
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    pub kernel: usize,
    pub stride: usize,
    /// At most half the kernel, so that no window lies in the padding.
    pub padding: usize,
    pub out_height: usize,
    pub out_width: usize,
}

impl Windows {
    pub fn image(&self) -> usize {
        self.height * self.width * self.channels
    }

    pub fn out_image(&self) -> usize {
        self.out_height * self.out_width * self.channels
    }

    /// The rows (or columns) of the window number `index` that lie inside an image of `size` rows; never none.
    #[inline(always)]
    fn inside(&self, index: usize, size: usize) -> Range<usize> {
        let start = index * self.stride;
        start.saturating_sub(self.padding)..(start + self.kernel - self.padding).min(size)
    }

    /// Calls `visit` with the place of every tap of every window that is not in the padding: the output pixel's
    /// first element, and the input pixel's first element, window by window, rows first.
    #[inline(always)]
    fn for_each_tap(&self, mut visit: impl FnMut(usize, usize, bool)) {
        for oy in 0..self.out_height {
            let rows = self.inside(oy, self.height);
            for ox in 0..self.out_width {
                let columns = self.inside(ox, self.width);
                let output = (oy * self.out_width + ox) * self.channels;
                for y in rows.clone() {
                    for x in columns.clone() {
                        let is_first = y == rows.start && x == columns.start;
                        visit(output, (y * self.width + x) * self.channels, is_first);
                    }
                }
            }
        }
    }
}

multiversion! {
    /// One image; `from` gets the place of each maximum in the image.
    fn max_image<T>(w: &Windows, x: &[T], y: &mut [T], from: &mut [u32]) {
        w.for_each_tap(|output, input, is_first| {
            let channels = w.channels;
            let (y, from) = (&mut y[output..][..channels], &mut from[output..][..channels]);
            let x = &x[input..][..channels];
            for channel in 0..channels {
                let value = x[channel];
                // As PyTorch: the first of equal maxima, and what is not a number wins.
                #[allow(clippy::eq_op)]
                let is_nan = value != value;
                if is_first || value > y[channel] || is_nan {
                    y[channel] = value;
                    from[channel] = (input + channel) as u32;
                }
            }
        });
    }
}

/// The maximum of every window, and its place within its image.
pub(crate) fn max<T: Element>(w: &Windows, x: &[T]) -> (Vec<T>, Vec<u32>) {
    let length = x.len() / w.image() * w.out_image();
    let mut y = vec![T::zero(); length];
    let mut from = vec![0; length];
    y.par_chunks_mut(w.out_image())
        .zip(from.par_chunks_mut(w.out_image()))
        .zip(x.par_chunks(w.image()))
        .for_each(|((y, from), x)| max_image(w, x, y, from));
    (y, from)
}

/// The elements at the places that [`max`] found: what its result changes by when `x` is the change of its input.
pub(crate) fn gather<T: Element>(w: &Windows, x: &[T], from: &[u32]) -> Vec<T> {
    // SAFETY: the chunks cover the output, and each is as long as its places.
    unsafe {
        written(from.len(), |y| {
            y.par_chunks_mut(w.out_image()).zip(x.par_chunks(w.image()).zip(from.par_chunks(w.out_image()))).for_each(
                |(y, (x, from))| {
                    for (y, &from) in y.iter_mut().zip(from) {
                        y.write(x[from as usize]);
                    }
                },
            );
        })
    }
}

/// The gradient of [`max`]: each goes to where its maximum came from.
pub(crate) fn max_backward<T: Element>(w: &Windows, dy: &[T], from: &[u32]) -> Vec<T> {
    let images = dy.len() / w.out_image();
    // SAFETY: the chunks cover the output, and each is filled with zeros before anything is added.
    unsafe {
        written(images * w.image(), |dx| {
            dx.par_chunks_mut(w.image())
                .zip(dy.par_chunks(w.out_image()).zip(from.par_chunks(w.out_image())))
                .for_each(|(dx, (dy, from))| {
                    dx.fill(MaybeUninit::new(T::zero()));
                    let dx = assume_written(dx);
                    for (&dy, &from) in dy.iter().zip(from) {
                        dx[from as usize] += dy;
                    }
                });
        })
    }
}

multiversion! {
    fn average_image<T>(w: &Windows, x: &[T], y: &mut [T], factor: T) {
        w.for_each_tap(|output, input, is_first| {
            let (y, x) = (&mut y[output..][..w.channels], &x[input..][..w.channels]);
            for (y, &x) in y.iter_mut().zip(x) {
                *y = if is_first { x } else { *y + x };
            }
        });
        for y in y {
            *y *= factor;
        }
    }
}

/// The mean of every window; the padding counts as zeros.
pub(crate) fn average<T: Element>(w: &Windows, x: &[T]) -> Vec<T> {
    let factor = T::from_f64(1. / (w.kernel * w.kernel) as f64);
    let mut y = vec![T::zero(); x.len() / w.image() * w.out_image()];
    y.par_chunks_mut(w.out_image()).zip(x.par_chunks(w.image())).for_each(|(y, x)| average_image(w, x, y, factor));
    y
}

multiversion! {
    fn average_image_backward<T>(w: &Windows, dy: &[T], dx: &mut [T], factor: T) {
        w.for_each_tap(|output, input, _| {
            let (dy, dx) = (&dy[output..][..w.channels], &mut dx[input..][..w.channels]);
            for (dx, &dy) in dx.iter_mut().zip(dy) {
                *dx += dy * factor;
            }
        });
    }
}

/// The gradient of [`average`].
pub(crate) fn average_backward<T: Element>(w: &Windows, dy: &[T]) -> Vec<T> {
    let factor = T::from_f64(1. / (w.kernel * w.kernel) as f64);
    let images = dy.len() / w.out_image();
    // SAFETY: the chunks cover the output, and each is filled with zeros before anything is added.
    unsafe {
        written(images * w.image(), |dx| {
            dx.par_chunks_mut(w.image()).zip(dy.par_chunks(w.out_image())).for_each(|(dx, dy)| {
                dx.fill(MaybeUninit::new(T::zero()));
                average_image_backward(w, dy, assume_written(dx), factor);
            });
        })
    }
}

/// The mean over all `pixels` of each image, `[images, pixels, channels]` to `[images, channels]`.
pub(crate) fn global_average<T: Element>(x: &[T], pixels: usize, channels: usize) -> Vec<T> {
    let mut y = vec![T::zero(); x.len() / pixels];
    y.par_chunks_mut(channels).zip(x.par_chunks(pixels * channels)).for_each(|(y, x)| {
        for pixel in x.chunks_exact(channels) {
            for (y, &x) in y.iter_mut().zip(pixel) {
                *y += x;
            }
        }
        let factor = T::from_f64(1. / pixels as f64);
        y.iter_mut().for_each(|y| *y *= factor);
    });
    y
}

/// The gradient of [`global_average`].
pub(crate) fn global_average_backward<T: Element>(dy: &[T], pixels: usize, channels: usize) -> Vec<T> {
    let factor = T::from_f64(1. / pixels as f64);
    // SAFETY: the chunks cover the output; an image consists of whole pixels, each written whole.
    unsafe {
        written(dy.len() * pixels, |dx| {
            dx.par_chunks_mut(pixels * channels).zip(dy.par_chunks(channels)).for_each(|(dx, dy)| {
                for pixel in dx.chunks_exact_mut(channels) {
                    for (dx, &dy) in pixel.iter_mut().zip(dy) {
                        dx.write(dy * factor);
                    }
                }
            });
        })
    }
}
