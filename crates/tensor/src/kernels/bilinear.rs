//! Bilinear interpolation in one image, NHWC: an output pixel is the weighted sum of four input pixels.

use std::mem::MaybeUninit;

use super::simd::multiversion;
use super::{Element, assume_written};

/// The four pixels around a point: top left, top right, bottom left, bottom right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taps {
    /// The first element of each pixel within its image; `None` outside the image.
    pub places: [Option<usize>; 4],
    /// How far the point lies below the upper pixels, and right of the left ones, in `[0, 1]`.
    pub below: f64,
    pub right: f64,
}

impl Taps {
    #[inline(always)]
    fn weights(&self) -> [f64; 4] {
        let (above, left) = (1. - self.below, 1. - self.right);
        [above * left, above * self.right, self.below * left, self.below * self.right]
    }
}

multiversion! {
    /// Writes one output pixel for each of `taps`.
    pub(super) fn gather<T>(taps: &[Taps], channels: usize, x: &[T], y: &mut [MaybeUninit<T>]) {
        for (taps, y) in taps.iter().zip(y.chunks_exact_mut(channels)) {
            let weights = taps.weights();
            if let [Some(a), Some(b), Some(c), Some(d)] = taps.places {
                let [a, b, c, d] = [a, b, c, d].map(|place| &x[place..][..channels]);
                let weights = weights.map(T::from_f64);
                for (channel, y) in y.iter_mut().enumerate() {
                    let above = a[channel] * weights[0] + b[channel] * weights[1];
                    y.write(above + (c[channel] * weights[2] + d[channel] * weights[3]));
                }
                continue;
            }
            // A pixel outside counts as zero, and zero times a weight that is not a number is not a number.
            let outside = taps.places.iter().zip(weights).filter(|(place, _)| place.is_none());
            let start: f64 = outside.map(|(_, weight)| 0. * weight).sum();
            y.fill(MaybeUninit::new(T::from_f64(start)));
            // SAFETY: the line above has written all of `y`.
            let y = unsafe { assume_written(y) };
            for (place, weight) in taps.places.into_iter().zip(weights) {
                let Some(place) = place else { continue };
                let weight = T::from_f64(weight);
                for (y, &x) in y.iter_mut().zip(&x[place..][..channels]) {
                    *y += x * weight;
                }
            }
        }
    }
}

multiversion! {
    /// The gradient of [`gather`] with respect to `x`, added to `dx`.
    pub(super) fn scatter<T>(taps: &[Taps], channels: usize, dy: &[T], dx: &mut [T]) {
        for (taps, dy) in taps.iter().zip(dy.chunks_exact(channels)) {
            for (place, weight) in taps.places.into_iter().zip(taps.weights()) {
                let Some(place) = place else { continue };
                let weight = T::from_f64(weight);
                for (dx, &dy) in dx[place..][..channels].iter_mut().zip(dy) {
                    *dx += dy * weight;
                }
            }
        }
    }
}

/// The gradient of one pixel of [`gather`] with respect to the place of its point: downwards and to the right.
#[inline(always)]
pub(super) fn slopes<T: Element>(taps: &Taps, x: &[T], dy: &[T]) -> [f64; 2] {
    let [a, b, c, d] = taps.places.map(|place| {
        let pixel = place.map_or(&[][..], |place| &x[place..][..dy.len()]);
        pixel.iter().zip(dy).map(|(x, dy)| x.to_f64() * dy.to_f64()).sum::<f64>()
    });
    let (above, left) = (1. - taps.below, 1. - taps.right);
    [left * (c - a) + taps.right * (d - b), above * (b - a) + taps.below * (d - c)]
}
