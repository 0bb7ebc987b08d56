//! How two vectors go together: correlation, slope, median.

/// Pearson's correlation, from -1 to 1. `None` with fewer than two pairs, or where one of the vectors is constant or
/// has a value that is no number.
///
/// # Panics
/// If the vectors differ in length.
pub fn pearson(x: &[f64], y: &[f64]) -> Option<f64> {
    let Moments { xx, xy, yy } = Moments::of(x, y)?;
    let scale = (xx * yy).sqrt();
    (scale > 0.0 && scale.is_finite()).then(|| (xy / scale).clamp(-1.0, 1.0))
}

/// Spearman's rank correlation, from -1 to 1: Pearson's of the ranks, tied values sharing the mean of theirs. `None` as
/// with [`pearson`].
///
/// # Panics
/// If the vectors differ in length.
pub fn spearman(x: &[f64], y: &[f64]) -> Option<f64> {
    let comparable = |values: &[f64]| values.iter().all(|value| !value.is_nan());
    (comparable(x) && comparable(y)).then(|| pearson(&ranks(x), &ranks(y))).flatten()
}

/// The slope of the line through the pairs that leaves the least squares of `y`. `None` as with [`pearson`], but `y` may
/// be constant.
///
/// # Panics
/// If the vectors differ in length.
pub fn slope(x: &[f64], y: &[f64]) -> Option<f64> {
    let Moments { xx, xy, .. } = Moments::of(x, y)?;
    let slope = xy / xx;
    (xx > 0.0 && slope.is_finite()).then_some(slope)
}

/// The median: of an even number of values the mean of the two in the middle. `None` of no values.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[half]),
        _ => Some((sorted[half - 1] + sorted[half]) / 2.0),
    }
}

/// Ranks from 1, ascending; equal values get the mean of the ranks they take together.
pub fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for tied in order.chunk_by(|a, b| values[*a] == values[*b]) {
        // The mean of first + 1 ..= first + tied.
        let rank = first as f64 + (tied.len() + 1) as f64 / 2.0;
        tied.iter().for_each(|place| ranks[*place] = rank);
        first += tied.len();
    }
    ranks
}

/// Sums of products of the deviations from the means.
struct Moments {
    xx: f64,
    xy: f64,
    yy: f64,
}

impl Moments {
    fn of(x: &[f64], y: &[f64]) -> Option<Moments> {
        assert_eq!(x.len(), y.len(), "a correlation needs pairs");
        if x.len() < 2 {
            return None;
        }
        let mean = |values: &[f64]| {
            // The mean of equal values is their value, and no neighbour of it by rounding.
            let constant = values.iter().all(|value| *value == values[0]);
            if constant { values[0] } else { values.iter().sum::<f64>() / values.len() as f64 }
        };
        let (mean_x, mean_y) = (mean(x), mean(y));
        let mut moments = Moments { xx: 0.0, xy: 0.0, yy: 0.0 };
        for (x, y) in x.iter().zip(y) {
            let (x, y) = (x - mean_x, y - mean_y);
            moments.xx += x * x;
            moments.xy += x * y;
            moments.yy += y * y;
        }
        Some(moments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn correlations_and_slopes_are_those_of_numpy_and_of_ranks_counted_by_hand() {
        let cases = golden::value("correlations");
        let cases = cases.as_array().unwrap();
        assert!(cases.len() >= 4);
        for case in cases {
            let numbers = |name: &str| golden::list(&case[name]);
            let (x, y) = (numbers("x"), numbers("y"));
            for (found, name) in
                [(pearson(&x, &y), "pearson"), (spearman(&x, &y), "spearman"), (slope(&x, &y), "slope")]
            {
                let (found, expected) = (found.unwrap(), case[name].as_f64().unwrap());
                assert!((found - expected).abs() < 1e-12, "{name}: {found}, not {expected}");
            }
        }
    }

    #[test]
    fn tied_values_share_their_rank() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 0.0, 3.0]), [4.0, 2.0, 4.0, 1.0, 4.0]);
        assert_eq!(ranks(&[]), Vec::<f64>::new());
    }

    #[test]
    fn what_has_no_correlation_gives_none() {
        assert_eq!(pearson(&[1.0], &[2.0]), None);
        assert_eq!(pearson(&[1.0, 2.0, 4.0], &[0.1, 0.1, 0.1]), None);
        assert_eq!(spearman(&[4.0, 4.0], &[1.0, 2.0]), None);
        assert_eq!(spearman(&[4.0, f64::NAN], &[1.0, 2.0]), None);
        assert_eq!(slope(&[4.0, 4.0], &[1.0, 2.0]), None);
        assert_eq!(slope(&[1.0, 2.0], &[5.0, 5.0]), Some(0.0));
    }

    #[test]
    fn a_median_is_the_value_in_the_middle_or_between_the_two_there() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
