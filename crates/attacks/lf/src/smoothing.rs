//! The Gaussian filter that keeps a pattern's low frequencies.

/// Taps of the filter, and its standard deviation in pixels.
const TAPS: usize = 30;
const DEVIATION: f64 = 6.0;
/// Pixels before an output's own that it is made of; with an even number of taps there is one more after it.
const BEFORE: usize = 14;

/// The channels of `values` `[height, width, channels]`, each filtered by the separable Gaussian of 30 taps and 6 pixels
/// deviation, with zeros around the image.
///
/// As the published code computes it, except that sums are in double precision: a cross-correlation with zero padding of
/// 14 before and 15 after, weights that add up to 1.
pub fn smooth(values: &[f32], (height, width, channels): (usize, usize, usize)) -> Vec<f32> {
    assert_eq!(values.len(), height * width * channels, "the values do not fit {height}x{width}x{channels}");
    let weights = weights();
    let along = |values: &[f64], place: usize, position: usize, length: usize, stride: usize| -> f64 {
        let from = BEFORE.saturating_sub(position);
        let to = TAPS.min(length + BEFORE - position);
        (from..to).map(|tap| weights[tap] * values[place + tap * stride - BEFORE * stride]).sum()
    };
    let values: Vec<f64> = values.iter().map(|value| f64::from(*value)).collect();
    let places = 0..values.len();
    let rows = places.clone().map(|place| along(&values, place, place / channels % width, width, channels));
    let rows: Vec<f64> = rows.collect();
    let row = width * channels;
    places.map(|place| along(&rows, place, place / row, height, row) as f32).collect()
}

fn weights() -> [f64; TAPS] {
    let weights: [f64; TAPS] = std::array::from_fn(|tap| {
        let distance = tap as f64 - (TAPS - 1) as f64 / 2.0;
        (-0.5 * (distance / DEVIATION).powi(2)).exp()
    });
    let sum: f64 = weights.iter().sum();
    weights.map(|weight| weight / sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_becomes_the_filter_reversed_around_it() {
        let (height, width) = (64, 64);
        let mut point = vec![0.0; height * width];
        point[32 * width + 32] = 1.0;
        let smoothed = smooth(&point, (height, width, 1));
        let total: f32 = smoothed.iter().sum();
        assert!((total - 1.0).abs() < 1e-5, "{total}");
        let weights = weights();
        // The output at row r meets the point at tap 32 - r + 14.
        for row in 0..height {
            let tap = (46 - row as i64).clamp(-1, TAPS as i64);
            let expected = if (0..TAPS as i64).contains(&tap) { weights[tap as usize] * weights[14] } else { 0.0 };
            assert!((f64::from(smoothed[row * width + 32]) - expected).abs() < 1e-9, "row {row}");
        }
    }

    #[test]
    fn channels_do_not_mix_and_an_image_smaller_than_the_filter_meets_only_its_own_pixels() {
        let mut values = vec![0.0; 8 * 8 * 3];
        values.iter_mut().skip(1).step_by(3).for_each(|value| *value = 2.0);
        let smoothed = smooth(&values, (8, 8, 3));
        assert!(smoothed.iter().step_by(3).chain(smoothed.iter().skip(2).step_by(3)).all(|value| *value == 0.0));
        assert!(smoothed.iter().skip(1).step_by(3).all(|value| (0.0..2.0).contains(value) && *value > 0.0));
    }
}
