//! Bilinear resizing of 8-bit images, equal to Pillow's in every bit.
//!
//! BackdoorBench resizes triggers and GTSRB's images with `Image.resize(size, BILINEAR)`, whose support grows when an image shrinks
//! (antialiasing). Pillow works in two passes, horizontal then vertical; each multiplies by weights rounded to 22 fractional bits
//! and rounds its result to 8 bits. An axis whose length does not change is skipped. To be the same, so do we.
//!
//! This is the order of passes of every Pillow up to version 12, and so of the published results. Since version 13, Pillow takes
//! the vertical pass first where the height shrinks much more than the width, which moves some pixels by one level.

use std::borrow::Cow;

/// Fractional bits of a weight: 32, less 8 of the pixel and 2 for the sign and the sum.
const PRECISION_BITS: u32 = 22;

/// The weights of one output position: which inputs they start at, and one per input.
struct Taps {
    start: usize,
    weights: Vec<i32>,
}

/// Resizes an image `[height, width, channels]`, 8 bits per value, to `[to_height, to_width, channels]`.
///
/// # Panics
/// If `pixels` does not hold a whole number of channels or a length is zero.
pub fn bilinear(pixels: &[u8], (height, width): (usize, usize), (to_height, to_width): (usize, usize)) -> Vec<u8> {
    assert!(height * width > 0 && to_height * to_width > 0, "an image needs at least one pixel");
    assert_eq!(pixels.len() % (height * width), 0, "{} values are no {height} x {width} image", pixels.len());
    let channels = pixels.len() / (height * width);
    let mut image = Cow::Borrowed(pixels);
    if to_width != width {
        let taps = taps(width, to_width);
        let mut resized = Vec::with_capacity(height * to_width * channels);
        for row in image.chunks_exact(width * channels) {
            for tap in &taps {
                for channel in 0..channels {
                    resized.push(tap.apply(|offset| row[(tap.start + offset) * channels + channel]));
                }
            }
        }
        image = Cow::Owned(resized);
    }
    if to_height != height {
        let row = to_width * channels;
        let mut resized = Vec::with_capacity(to_height * row);
        for tap in &taps(height, to_height) {
            for column in 0..row {
                resized.push(tap.apply(|offset| image[(tap.start + offset) * row + column]));
            }
        }
        image = Cow::Owned(resized);
    }
    image.into_owned()
}

impl Taps {
    fn apply(&self, pixel: impl Fn(usize) -> u8) -> u8 {
        let half = 1 << (PRECISION_BITS - 1);
        let sum =
            self.weights.iter().enumerate().fold(half, |sum, (offset, weight)| sum + i32::from(pixel(offset)) * weight);
        (sum >> PRECISION_BITS).clamp(0, 255) as u8
    }
}

/// The triangle filter for every output position of one axis, normalised in f64 and then rounded to fixed point.
fn taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let support = scale.max(1.0);
    let inverse = 1.0 / support;
    let position = |output: usize| {
        let center = (output as f64 + 0.5) * scale;
        let start = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let weight = |input: usize| (1.0 - ((input as f64 - center + 0.5) * inverse).abs()).max(0.0);
        let sum: f64 = (start..end).map(weight).sum();
        let fixed = |weight: f64| (0.5 + weight / sum * f64::from(1 << PRECISION_BITS)) as i32;
        Taps { start, weights: (start..end).map(|input| fixed(weight(input))).collect() }
    };
    (0..to).map(position).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    /// A white 3 x 3 square in the corner of a black 32 x 32 image, at 64 x 64: values measured with Pillow (BadNets' trigger on
    /// Tiny ImageNet).
    #[test]
    fn the_badnets_trigger_at_64_pixels_has_pillows_soft_edge() {
        let mut trigger = vec![0u8; 32 * 32];
        for row in 29..32 {
            trigger[row * 32 + 29..row * 32 + 32].fill(255);
        }
        let resized = bilinear(&trigger, (32, 32), (64, 64));
        let corner = |row: usize| &resized[row * 64 + 57..row * 64 + 64];
        assert_eq!(corner(57), [16, 48, 64, 64, 64, 64, 64]);
        assert_eq!(corner(58), [48, 143, 191, 191, 191, 191, 191]);
        for row in 59..64 {
            assert_eq!(corner(row), [64, 191, 255, 255, 255, 255, 255]);
        }
        assert_eq!(resized.iter().filter(|&&value| value > 0).count(), 49);
    }

    #[test]
    fn shrinking_growing_and_uneven_resizes_equal_pillows() {
        let tensors = golden::tensors("resize.safetensors");
        for case in 0..tensors.len() / 2 {
            let [input, output] = ["input", "output"].map(|part| &tensors[&format!("{case}.{part}")]);
            let size = |tensor: &candle_core::Tensor| (tensor.dims()[0], tensor.dims()[1]);
            let pixels = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<u8>().unwrap();
            let resized = bilinear(&pixels(input), size(input), size(output));
            assert!(resized == pixels(output), "{:?} -> {:?} differs from Pillow's", size(input), size(output));
        }
    }

    #[test]
    fn the_same_size_is_the_same_image() {
        let pixels: Vec<u8> = (0..5 * 4 * 3).map(|value| (value * 7) as u8).collect();
        assert_eq!(bilinear(&pixels, (5, 4), (5, 4)), pixels);
    }
}
