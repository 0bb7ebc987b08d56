//! Layer normalisation over rows, computed in `f64` and rounded once.

use rayon::prelude::*;

use super::simd::multiversion;
use super::{Element, rows, written};

/// What is kept of each row for the backward pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowMoments {
    pub mean: f64,
    /// `1 / √(variance + epsilon)`
    pub inverse_deviation: f64,
}

multiversion! {
    /// Mean and deviation of some rows, in two passes over a copy of each. `scratch` holds one row.
    fn moments_piece<T>(x: &[T], epsilon: f64, scratch: &mut [f64], moments: &mut [std::mem::MaybeUninit<RowMoments>]) {
        let columns = scratch.len();
        for (x, moments) in x.chunks_exact(columns).zip(moments) {
            for (value, &x) in scratch.iter_mut().zip(x) {
                *value = x.to_f64();
            }
            let mean = rows::sum(scratch, |value| value) / columns as f64;
            let variance = rows::sum(scratch, |value| (value - mean) * (value - mean)) / columns as f64;
            moments.write(RowMoments { mean, inverse_deviation: 1. / (variance + epsilon).sqrt() });
        }
    }
}

/// The moments of every row of `columns` elements, with the biased variance.
pub(crate) fn moments<T: Element>(x: &[T], columns: usize, epsilon: f64) -> Vec<RowMoments> {
    let rows = rows::per_piece(columns);
    // SAFETY: the pieces cover the output, and each has as many rows of `x` as elements.
    unsafe {
        written(x.len() / columns, |moments| {
            moments.par_chunks_mut(rows).zip(x.par_chunks(rows * columns)).for_each_init(
                || vec![0.; columns],
                |scratch, (moments, x)| moments_piece(x, epsilon, scratch, moments),
            );
        })
    }
}

multiversion! {
    fn apply_piece<T>(x: &[T], moments: &[RowMoments], weight: &[T], bias: &[T], y: &mut [std::mem::MaybeUninit<T>]) {
        let columns = weight.len();
        for ((x, y), m) in x.chunks_exact(columns).zip(y.chunks_exact_mut(columns)).zip(moments) {
            for ((y, &x), (&weight, &bias)) in y.iter_mut().zip(x).zip(weight.iter().zip(bias)) {
                let normalized = (x.to_f64() - m.mean) * m.inverse_deviation;
                y.write(T::from_f64(normalized * weight.to_f64() + bias.to_f64()));
            }
        }
    }
}

/// `(x - mean) / deviation · weight + bias`
pub(crate) fn apply<T: Element>(x: &[T], moments: &[RowMoments], weight: &[T], bias: &[T]) -> Vec<T> {
    let columns = weight.len();
    let rows = rows::per_piece(columns);
    // SAFETY: the pieces cover the output and consist of whole rows, each written whole.
    unsafe {
        written(x.len(), |y| {
            y.par_chunks_mut(rows * columns)
                .zip(x.par_chunks(rows * columns).zip(moments.par_chunks(rows)))
                .for_each(|(y, (x, moments))| apply_piece(x, moments, weight, bias, y));
        })
    }
}

multiversion! {
    /// `scratch` holds two rows: the gradient of the normalised row, and its product with the row.
    fn input_gradient_piece<T>(
        x: &[T], dy: &[T], moments: &[RowMoments], weight: &[T], scratch: &mut [f64],
        dx: &mut [std::mem::MaybeUninit<T>],
    ) {
        let columns = weight.len();
        let (gradients, products) = scratch.split_at_mut(columns);
        let rows = x.chunks_exact(columns).zip(dy.chunks_exact(columns)).zip(dx.chunks_exact_mut(columns));
        for (((x, dy), dx), m) in rows.zip(moments) {
            let scratch = gradients.iter_mut().zip(products.iter_mut());
            for ((gradient, product), ((&x, &dy), &weight)) in scratch.zip(x.iter().zip(dy).zip(weight)) {
                *gradient = dy.to_f64() * weight.to_f64();
                *product = *gradient * ((x.to_f64() - m.mean) * m.inverse_deviation);
            }
            let mean = rows::sum(gradients, |value| value) / columns as f64;
            let slope = rows::sum(products, |value| value) / columns as f64;
            for ((dx, &x), &gradient) in dx.iter_mut().zip(x).zip(&*gradients) {
                let normalized = (x.to_f64() - m.mean) * m.inverse_deviation;
                dx.write(T::from_f64((gradient - mean - normalized * slope) * m.inverse_deviation));
            }
        }
    }
}

/// The gradient with respect to `x`: with `g = dy·weight` and the normalised row `x̂`,
/// `(g - mean(g) - x̂·mean(g·x̂)) / deviation`.
pub(crate) fn input_gradient<T: Element>(x: &[T], dy: &[T], moments: &[RowMoments], weight: &[T]) -> Vec<T> {
    let columns = weight.len();
    let rows = rows::per_piece(columns);
    // SAFETY: the pieces cover the output and consist of whole rows, each written whole.
    unsafe {
        written(x.len(), |dx| {
            dx.par_chunks_mut(rows * columns)
                .zip(x.par_chunks(rows * columns).zip(dy.par_chunks(rows * columns)))
                .zip(moments.par_chunks(rows))
                .for_each_init(
                    || vec![0.; 2 * columns],
                    |scratch, ((dx, (x, dy)), moments)| input_gradient_piece(x, dy, moments, weight, scratch, dx),
                );
        })
    }
}

multiversion! {
    /// `sums` holds two rows: the gradients of weight and bias.
    fn parameter_gradients_piece<T>(x: &[T], dy: &[T], moments: &[RowMoments], sums: &mut [f64]) {
        let columns = sums.len() / 2;
        let (weight, bias) = sums.split_at_mut(columns);
        for ((x, dy), m) in x.chunks_exact(columns).zip(dy.chunks_exact(columns)).zip(moments) {
            for ((weight, bias), (&x, &dy)) in weight.iter_mut().zip(bias.iter_mut()).zip(x.iter().zip(dy)) {
                let dy = dy.to_f64();
                *weight += dy * ((x.to_f64() - m.mean) * m.inverse_deviation);
                *bias += dy;
            }
        }
    }
}

/// The gradients of weight (`Σ dy·x̂`) and bias (`Σ dy`), one after the other. Partial sums are added in the order
/// of the pieces.
pub(crate) fn parameter_gradients<T: Element>(x: &[T], dy: &[T], moments: &[RowMoments], columns: usize) -> Vec<f64> {
    let rows = rows::per_piece(columns);
    let partial: Vec<Vec<f64>> = x
        .par_chunks(rows * columns)
        .zip(dy.par_chunks(rows * columns))
        .zip(moments.par_chunks(rows))
        .map(|((x, dy), moments)| {
            let mut sums = vec![0.; 2 * columns];
            parameter_gradients_piece(x, dy, moments, &mut sums);
            sums
        })
        .collect();
    let mut total = vec![0.; 2 * columns];
    for sums in partial {
        for (total, sum) in total.iter_mut().zip(sums) {
            *total += sum;
        }
    }
    total
}
