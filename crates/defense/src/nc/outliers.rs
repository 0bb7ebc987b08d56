//! Which masks are suspiciously small.

/// Makes the median absolute deviation of normally distributed numbers their standard deviation.
const CONSISTENCY: f64 = 1.4826;

/// The sizes of all classes' masks, judged against each other.
#[derive(Debug, Clone, PartialEq)]
pub struct Outliers {
    /// The median of the sizes, the lower one of two.
    pub median: f64,
    /// The (lower) median of the absolute differences from it, times 1.4826.
    pub deviation: f64,
    /// For each class the absolute difference of its size from the median in deviations: infinite or not a number where
    /// the deviation is 0.
    pub anomaly_indices: Vec<f64>,
    /// Classes whose size is at most the median and whose anomaly index is above the threshold, the smallest mask first.
    pub flagged: Vec<usize>,
}

impl Outliers {
    /// Judges the sizes of all classes' masks, at least one.
    pub fn of(sizes: &[f64], threshold: f64) -> Outliers {
        let median = lower_median(sizes.to_vec());
        let differences: Vec<f64> = sizes.iter().map(|size| (size - median).abs()).collect();
        let deviation = CONSISTENCY * lower_median(differences.clone());
        let anomaly_indices: Vec<f64> = differences.iter().map(|difference| difference / deviation).collect();
        let suspicious = |class: &usize| sizes[*class] <= median && anomaly_indices[*class] > threshold;
        let mut flagged: Vec<usize> = (0..sizes.len()).filter(suspicious).collect();
        flagged.sort_by(|a, b| sizes[*a].total_cmp(&sizes[*b]));
        Outliers { median, deviation, anomaly_indices, flagged }
    }
}

/// The lower of the two middle numbers if there are two, as PyTorch's `median`.
fn lower_median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[(numbers.len() - 1) / 2]
}
