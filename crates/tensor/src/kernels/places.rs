//! Elements copied to other places: channels beside channels, pixels repeated, borders of zeros. NHWC.

use rayon::prelude::*;

use super::{Element, written};

/// Elements per piece of work.
const PIECE: usize = 32 * 1024;

/// The rows of several matrices side by side: row `r` of the result is row `r` of each. `parts` are the matrices with
/// their widths, all of the same number of rows.
pub(crate) fn join_columns<T: Element>(parts: &[(&[T], usize)]) -> Vec<T> {
    let width: usize = parts.iter().map(|(_, width)| width).sum();
    let rows = parts.first().map_or(0, |(values, width)| values.len() / width);
    let block = (PIECE / width).max(1);
    // SAFETY: the blocks cover the output, and each of their rows is filled from its first column to its last.
    unsafe {
        written(rows * width, |output| {
            output.par_chunks_mut(block * width).enumerate().for_each(|(index, output)| {
                let mut start = 0;
                for &(values, part) in parts {
                    let source = values[index * block * part..].chunks_exact(part);
                    for (row, source) in output.chunks_exact_mut(width).zip(source) {
                        row[start..start + part].write_copy_of_slice(source);
                    }
                    start += part;
                }
            });
        })
    }
}

/// Columns `start..start + part` of a matrix with rows of `width` elements.
pub(crate) fn take_columns<T: Element>(values: &[T], width: usize, start: usize, part: usize) -> Vec<T> {
    let block = (PIECE / part).max(1);
    // SAFETY: the blocks cover the output, and every row of theirs is copied whole.
    unsafe {
        written(values.len() / width * part, |output| {
            output.par_chunks_mut(block * part).zip(values.par_chunks(block * width)).for_each(|(output, values)| {
                for (row, source) in output.chunks_exact_mut(part).zip(values.chunks_exact(width)) {
                    row.write_copy_of_slice(&source[start..start + part]);
                }
            });
        })
    }
}

/// Every pixel of `x: [images, height, width, channels]` as a square of `factor` by `factor` pixels.
pub(crate) fn repeat_pixels<T: Element>(x: &[T], width: usize, channels: usize, factor: usize) -> Vec<T> {
    let (row, wide_row) = (width * channels, width * factor * channels);
    // SAFETY: the chunks cover the output; the first row of each is written pixel by pixel, the others are copies of it.
    unsafe {
        written(x.len() * factor * factor, |y| {
            y.par_chunks_mut(factor * wide_row).zip(x.par_chunks(row)).for_each(|(y, x)| {
                let (first, others) = y.split_at_mut(wide_row);
                for (y, pixel) in first.chunks_exact_mut(factor * channels).zip(x.chunks_exact(channels)) {
                    for y in y.chunks_exact_mut(channels) {
                        y.write_copy_of_slice(pixel);
                    }
                }
                for other in others.chunks_exact_mut(wide_row) {
                    other.copy_from_slice(first);
                }
            });
        })
    }
}

/// The gradient of [`repeat_pixels`]; `width` is that of the small images.
pub(crate) fn repeat_pixels_backward<T: Element>(dy: &[T], width: usize, channels: usize, factor: usize) -> Vec<T> {
    let (row, wide_row) = (width * channels, width * factor * channels);
    let mut dx = vec![T::zero(); dy.len() / (factor * factor)];
    dx.par_chunks_mut(row).zip(dy.par_chunks(factor * wide_row)).for_each(|(dx, dy)| {
        for dy in dy.chunks_exact(wide_row) {
            for (sum, dy) in dx.chunks_exact_mut(channels).zip(dy.chunks_exact(factor * channels)) {
                for dy in dy.chunks_exact(channels) {
                    for (sum, &value) in sum.iter_mut().zip(dy) {
                        *sum += value;
                    }
                }
            }
        }
    });
    dx
}

/// Where smaller images lie in larger ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    /// Height, width and channels of the smaller images.
    pub inner: [usize; 3],
    /// Rows above and below, columns to the left and to the right.
    pub border: [usize; 4],
}

impl Frame {
    fn inner_size(&self) -> usize {
        self.inner.iter().product()
    }

    pub fn outer(&self) -> [usize; 3] {
        let ([height, width, channels], [top, bottom, left, right]) = (self.inner, self.border);
        [top + height + bottom, left + width + right, channels]
    }

    fn outer_size(&self) -> usize {
        self.outer().iter().product()
    }

    /// The first element of row `row` of the smaller image within the larger one.
    fn start(&self, row: usize) -> usize {
        let [_, width, channels] = self.outer();
        ((self.border[0] + row) * width + self.border[2]) * channels
    }
}

/// Images with a border of zeros.
pub(crate) fn pad<T: Element>(x: &[T], frame: Frame) -> Vec<T> {
    let row = frame.inner[1] * frame.inner[2];
    let mut y = vec![T::zero(); x.len() / frame.inner_size() * frame.outer_size()];
    y.par_chunks_mut(frame.outer_size()).zip(x.par_chunks(frame.inner_size())).for_each(|(y, x)| {
        for (index, x) in x.chunks_exact(row).enumerate() {
            y[frame.start(index)..][..row].copy_from_slice(x);
        }
    });
    y
}

/// What lies within the border of [`pad`]: its gradient.
pub(crate) fn cut<T: Element>(y: &[T], frame: Frame) -> Vec<T> {
    let row = frame.inner[1] * frame.inner[2];
    // SAFETY: the chunks cover the output, and every row of theirs is copied whole.
    unsafe {
        written(y.len() / frame.outer_size() * frame.inner_size(), |x| {
            x.par_chunks_mut(frame.inner_size()).zip(y.par_chunks(frame.outer_size())).for_each(|(x, y)| {
                for (index, x) in x.chunks_exact_mut(row).enumerate() {
                    x.write_copy_of_slice(&y[frame.start(index)..][..row]);
                }
            });
        })
    }
}
