//! Bilinear interpolation of whole images to another size, NHWC. One piece of work is one image.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::bilinear::{Taps, gather, scatter};
use super::{Element, assume_written, written};

/// The place of an output row (or column) between two of the input.
#[derive(Clone, Copy, Debug)]
struct Between {
    low: usize,
    high: usize,
    /// The share of `high`.
    share: f64,
}

/// All sizes of one change of size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resize {
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    pub out_height: usize,
    pub out_width: usize,
    /// Whether the middles of the outermost pixels coincide, rather than their outer edges.
    pub align_corners: bool,
}

impl Resize {
    pub fn image(&self) -> usize {
        self.height * self.width * self.channels
    }

    fn out_row(&self) -> usize {
        self.out_width * self.channels
    }

    pub fn out_image(&self) -> usize {
        self.out_height * self.out_row()
    }

    /// Calls `visit` with the taps of every output row.
    fn for_each_row(&self, mut visit: impl FnMut(usize, &[Taps])) {
        let (rows, columns) = (
            axis(self.height, self.out_height, self.align_corners),
            axis(self.width, self.out_width, self.align_corners),
        );
        let mut taps = Vec::with_capacity(columns.len());
        for (index, row) in rows.iter().enumerate() {
            taps.clear();
            taps.extend(columns.iter().map(|column| {
                let place = |y, x| Some((y * self.width + x) * self.channels);
                let (above, below) = (row.low, row.high);
                let (left, right) = (column.low, column.high);
                let places = [place(above, left), place(above, right), place(below, left), place(below, right)];
                Taps { places, below: row.share, right: column.share }
            }));
            visit(index, &taps);
        }
    }
}

fn axis(size: usize, to: usize, align_corners: bool) -> Vec<Between> {
    (0..to)
        .map(|index| {
            let place = if !align_corners {
                ((index as f64 + 0.5) * (size as f64 / to as f64) - 0.5).max(0.)
            } else if to > 1 {
                index as f64 * ((size - 1) as f64 / (to - 1) as f64)
            } else {
                0.
            };
            let low = (place as usize).min(size - 1);
            Between { low, high: (low + 1).min(size - 1), share: (place - low as f64).clamp(0., 1.) }
        })
        .collect()
}

/// The images `x: [images, height, width, channels]` in the other size.
pub(crate) fn resize<T: Element>(r: &Resize, x: &[T]) -> Vec<T> {
    // SAFETY: the chunks cover the output, and the rows cover each chunk, all of whose pixels `gather` writes.
    unsafe {
        written(x.len() / r.image() * r.out_image(), |y| {
            y.par_chunks_mut(r.out_image()).zip(x.par_chunks(r.image())).for_each(|(y, x)| {
                r.for_each_row(|row, taps| gather(taps, r.channels, x, &mut y[row * r.out_row()..][..r.out_row()]));
            });
        })
    }
}

/// The gradient of [`resize`].
pub(crate) fn resize_backward<T: Element>(r: &Resize, dy: &[T]) -> Vec<T> {
    // SAFETY: the chunks cover the output, and each is filled with zeros before anything is added.
    unsafe {
        written(dy.len() / r.out_image() * r.image(), |dx| {
            dx.par_chunks_mut(r.image()).zip(dy.par_chunks(r.out_image())).for_each(|(dx, dy)| {
                dx.fill(MaybeUninit::new(T::zero()));
                let dx = assume_written(dx);
                r.for_each_row(|row, taps| scatter(taps, r.channels, &dy[row * r.out_row()..][..r.out_row()], dx));
            });
        })
    }
}
