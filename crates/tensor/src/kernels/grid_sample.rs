//! Sampling of images at the points of a grid, NHWC. One piece of work is one image.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::bilinear::{Taps, gather, scatter, slopes};
use super::{Element, assume_written, written};

/// Output pixels whose taps are computed at once.
const BLOCK: usize = 256;

/// All sizes and options of one sampling.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sampling {
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    /// Points per image.
    pub points: usize,
    /// Whether -1 and 1 are the middles of the outermost pixels rather than their outer edges.
    pub align_corners: bool,
    /// Whether points outside are moved to the border.
    pub clamp: bool,
}

impl Sampling {
    fn image(&self) -> usize {
        self.height * self.width * self.channels
    }

    fn out_image(&self) -> usize {
        self.points * self.channels
    }

    /// The place of a coordinate along a side of `size` pixels, in pixels, and the derivative of the one by the other.
    #[inline(always)]
    fn locate(&self, coordinate: f64, size: usize) -> [f64; 2] {
        let size = size as f64;
        let [place, slope] = if self.align_corners {
            [(coordinate + 1.) * 0.5 * (size - 1.), 0.5 * (size - 1.)]
        } else {
            [((coordinate + 1.) * size - 1.) * 0.5, 0.5 * size]
        };
        if !self.clamp {
            [place, slope]
        } else if place <= 0. {
            [0., 0.]
        } else if place >= size - 1. {
            [size - 1., 0.]
        } else {
            [place, slope]
        }
    }

    /// The pixels around a point of the grid, and the derivatives of the point's row and column by its coordinates.
    #[inline(always)]
    fn taps<T: Element>(&self, point: &[T; 2]) -> (Taps, [f64; 2]) {
        let [x, x_slope] = self.locate(point[0].to_f64(), self.width);
        let [y, y_slope] = self.locate(point[1].to_f64(), self.height);
        let (top, left) = (y.floor(), x.floor());
        let place = |row: f64, column: f64| {
            let inside = row >= 0. && row < self.height as f64 && column >= 0. && column < self.width as f64;
            inside.then(|| (row as usize * self.width + column as usize) * self.channels)
        };
        let places = [place(top, left), place(top, left + 1.), place(top + 1., left), place(top + 1., left + 1.)];
        (Taps { places, below: y - top, right: x - left }, [y_slope, x_slope])
    }

    /// Calls `visit` with blocks of an image's points: the number of the first, and the taps of all.
    fn for_each_block<T: Element>(&self, grid: &[T], mut visit: impl FnMut(usize, &[Taps])) {
        let mut taps = Vec::with_capacity(BLOCK);
        for (index, points) in grid.as_chunks().0.chunks(BLOCK).enumerate() {
            taps.clear();
            taps.extend(points.iter().map(|point| self.taps(point).0));
            visit(index * BLOCK, &taps);
        }
    }
}

/// The images `x: [images, height, width, channels]` at `grid: [images, points, 2]`.
pub(crate) fn sample<T: Element>(s: &Sampling, x: &[T], grid: &[T]) -> Vec<T> {
    let images = x.len() / s.image();
    // SAFETY: the chunks cover the output, and the blocks cover each chunk, all of whose pixels `gather` writes.
    unsafe {
        written(images * s.out_image(), |y| {
            y.par_chunks_mut(s.out_image()).zip(x.par_chunks(s.image()).zip(grid.par_chunks(2 * s.points))).for_each(
                |(y, (x, grid))| {
                    s.for_each_block(grid, |first, taps| {
                        gather(taps, s.channels, x, &mut y[first * s.channels..][..taps.len() * s.channels]);
                    });
                },
            );
        })
    }
}

/// The gradient of [`sample`] with respect to the images.
pub(crate) fn sample_backward_images<T: Element>(s: &Sampling, grid: &[T], dy: &[T]) -> Vec<T> {
    let images = dy.len() / s.out_image();
    // SAFETY: the chunks cover the output, and each is filled with zeros before anything is added.
    unsafe {
        written(images * s.image(), |dx| {
            dx.par_chunks_mut(s.image()).zip(dy.par_chunks(s.out_image()).zip(grid.par_chunks(2 * s.points))).for_each(
                |(dx, (dy, grid))| {
                    dx.fill(MaybeUninit::new(T::zero()));
                    let dx = assume_written(dx);
                    s.for_each_block(grid, |first, taps| {
                        scatter(taps, s.channels, &dy[first * s.channels..][..taps.len() * s.channels], dx);
                    });
                },
            );
        })
    }
}

/// The gradient of [`sample`] with respect to the grid.
pub(crate) fn sample_backward_grid<T: Element>(s: &Sampling, x: &[T], grid: &[T], dy: &[T]) -> Vec<T> {
    // SAFETY: the chunks cover the output, and both coordinates of every point are written.
    unsafe {
        written(grid.len(), |gradient| {
            gradient
                .par_chunks_mut(2 * s.points)
                .zip(grid.par_chunks(2 * s.points))
                .zip(x.par_chunks(s.image()).zip(dy.par_chunks(s.out_image())))
                .for_each(|((gradient, grid), (x, dy))| {
                    let points = gradient.as_chunks_mut::<2>().0.iter_mut().zip(grid.as_chunks().0);
                    for ((gradient, point), dy) in points.zip(dy.chunks_exact(s.channels)) {
                        let (taps, [y_slope, x_slope]) = s.taps(point);
                        let [down, right] = slopes(&taps, x, dy);
                        gradient[0].write(T::from_f64(right * x_slope));
                        gradient[1].write(T::from_f64(down * y_slope));
                    }
                });
        })
    }
}
