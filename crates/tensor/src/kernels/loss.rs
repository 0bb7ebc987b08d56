//! Softmax cross-entropy, row by row, and that of single bits, computed in `f64`: the tensors are small and the sums
//! delicate.

use super::Element;

/// `ln Σ exp(row)`, with the largest element taken out first.
fn log_sum_exp<T: Element>(row: &[T]) -> f64 {
    let largest = row.iter().map(|value| value.to_f64()).fold(f64::NEG_INFINITY, f64::max);
    largest + row.iter().map(|value| (value.to_f64() - largest).exp()).sum::<f64>().ln()
}

/// The loss of every row of `logits: [rows, classes]`. With smoothing `s` the target is `1 - s` on the
/// label plus `s / classes` everywhere. The labels have been checked.
pub(crate) fn cross_entropy<T: Element>(logits: &[T], labels: &[u32], classes: usize, smoothing: f64) -> Vec<f64> {
    logits
        .chunks_exact(classes)
        .zip(labels)
        .map(|(row, &label)| {
            let normalizer = log_sum_exp(row);
            let on_label = normalizer - row[label as usize].to_f64();
            if smoothing == 0. {
                return on_label;
            }
            let everywhere = normalizer - row.iter().map(|value| value.to_f64()).sum::<f64>() / classes as f64;
            (1. - smoothing) * on_label + smoothing * everywhere
        })
        .collect()
}

/// Where the largest element of a row is: the first of equals, as PyTorch's argmax; what is not a number is larger than all
/// that is.
pub(crate) fn largest<T: Element>(row: &[T]) -> usize {
    let is_nan = |value: T| value.to_f64().is_nan();
    let is_larger = |a: T, b: T| a > b || (is_nan(a) && !is_nan(b));
    (1..row.len()).fold(0, |best, index| if is_larger(row[index], row[best]) { index } else { best })
}

/// The gradient of `Σ factor(row) ·` [`cross_entropy`]: `factor · (softmax - target)`.
pub(crate) fn cross_entropy_backward<T: Element>(
    logits: &[T],
    labels: &[u32],
    classes: usize,
    smoothing: f64,
    factor: impl Fn(usize) -> f64,
) -> Vec<T> {
    let mut gradient = Vec::with_capacity(logits.len());
    for (index, (row, &label)) in logits.chunks_exact(classes).zip(labels).enumerate() {
        let factor = factor(index);
        let normalizer = log_sum_exp(row);
        gradient.extend(row.iter().enumerate().map(|(class, value)| {
            let on_label = if class == label as usize { 1. - smoothing } else { 0. };
            let target = on_label + smoothing / classes as f64;
            T::from_f64(factor * ((value.to_f64() - normalizer).exp() - target))
        }));
    }
    gradient
}

/// The change of every row's loss when its logits change along `tangent`: `⟨softmax - target, tangent⟩`.
pub(crate) fn cross_entropy_tangent<T: Element>(
    logits: &[T],
    tangent: &[T],
    labels: &[u32],
    classes: usize,
    smoothing: f64,
) -> Vec<f64> {
    logits
        .chunks_exact(classes)
        .zip(tangent.chunks_exact(classes))
        .zip(labels)
        .map(|((row, tangent), &label)| {
            let everywhere = tangent.iter().map(|slope| slope.to_f64()).sum::<f64>() / classes as f64;
            let target = (1. - smoothing) * tangent[label as usize].to_f64() + smoothing * everywhere;
            softmax_mean(row, tangent, log_sum_exp(row)) - target
        })
        .collect()
}

/// The gradient of `factor · Σ` [`cross_entropy_tangent`] with respect to the logits, that is `factor` times the
/// Hessian of the loss times `tangent`: `factor · softmax · (tangent - ⟨softmax, tangent⟩)`.
pub(crate) fn cross_entropy_curvature<T: Element>(logits: &[T], tangent: &[T], classes: usize, factor: f64) -> Vec<T> {
    let mut curvature = Vec::with_capacity(logits.len());
    for (row, tangent) in logits.chunks_exact(classes).zip(tangent.chunks_exact(classes)) {
        let normalizer = log_sum_exp(row);
        let mean = softmax_mean(row, tangent, normalizer);
        curvature.extend(
            row.iter().zip(tangent).map(|(value, slope)| {
                T::from_f64(factor * (value.to_f64() - normalizer).exp() * (slope.to_f64() - mean))
            }),
        );
    }
    curvature
}

/// `⟨softmax(row), values⟩`.
fn softmax_mean<T: Element>(row: &[T], values: &[T], normalizer: f64) -> f64 {
    row.iter().zip(values).map(|(logit, value)| (logit.to_f64() - normalizer).exp() * value.to_f64()).sum()
}

/// The sum of `-t·ln σ(x) - (1 - t)·ln(1 - σ(x))` over logits `x` and targets `t`.
pub(crate) fn binary_cross_entropy<T: Element>(logits: &[T], targets: &[T]) -> f64 {
    let losses = logits.iter().zip(targets).map(|(logit, target)| {
        let (logit, target) = (logit.to_f64(), target.to_f64());
        // Never the exponential of a large number.
        let log_sigmoid = logit.min(0.) - (-logit.abs()).exp().ln_1p();
        (1. - target) * logit - log_sigmoid
    });
    losses.sum()
}

/// The gradient of `factor ·` [`binary_cross_entropy`] with respect to the logits: `factor · (σ(x) - t)`.
pub(crate) fn binary_cross_entropy_backward<T: Element>(logits: &[T], targets: &[T], factor: f64) -> Vec<T> {
    let gradients = logits.iter().zip(targets).map(|(logit, target)| {
        let sigmoid = 1. / (1. + (-logit.to_f64()).exp());
        T::from_f64(factor * (sigmoid - target.to_f64()))
    });
    gradients.collect()
}
