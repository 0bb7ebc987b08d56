//! Softmax and its logarithm over rows, computed in `f64` and rounded once.

use rayon::prelude::*;

use super::exponential::exp;
use super::simd::multiversion;
use super::{Element, rows, written};

multiversion! {
    /// Some rows of the softmax, or of its logarithm. `scratch` holds one row.
    fn piece<T>(x: &[T], logarithm: bool, scratch: &mut [f64], y: &mut [std::mem::MaybeUninit<T>]) {
        let columns = scratch.len();
        for (x, y) in x.chunks_exact(columns).zip(y.chunks_exact_mut(columns)) {
            for (value, &x) in scratch.iter_mut().zip(x) {
                *value = x.to_f64();
            }
            // A row with something that is not a number, or with a positive infinity, has no softmax: all of it
            // becomes NaN through the total, as in PyTorch.
            let largest = rows::largest(scratch);
            if logarithm {
                let normalizer = rows::sum(scratch, |value| exp(value - largest)).ln();
                for (y, &value) in y.iter_mut().zip(&*scratch) {
                    y.write(T::from_f64(value - largest - normalizer));
                }
            } else {
                for value in &mut *scratch {
                    *value = exp(*value - largest);
                }
                let total = rows::sum(scratch, |value| value);
                for (y, &value) in y.iter_mut().zip(&*scratch) {
                    y.write(T::from_f64(value / total));
                }
            }
        }
    }
}

/// The softmax of every row of `columns` elements, or its logarithm.
pub(crate) fn softmax<T: Element>(x: &[T], columns: usize, logarithm: bool) -> Vec<T> {
    let length = rows::per_piece(columns) * columns;
    // SAFETY: the pieces cover the output and consist of whole rows, each written whole.
    unsafe {
        written(x.len(), |y| {
            y.par_chunks_mut(length)
                .zip(x.par_chunks(length))
                .for_each_init(|| vec![0.; columns], |scratch, (y, x)| piece(x, logarithm, scratch, y));
        })
    }
}

multiversion! {
    fn backward_piece<T>(
        y: &[T], dy: &[T], logarithm: bool, scratch: &mut [f64], dx: &mut [std::mem::MaybeUninit<T>],
    ) {
        let columns = scratch.len();
        let rows = y.chunks_exact(columns).zip(dy.chunks_exact(columns));
        for ((y, dy), dx) in rows.zip(dx.chunks_exact_mut(columns)) {
            for ((value, &y), &dy) in scratch.iter_mut().zip(y).zip(dy) {
                *value = if logarithm { dy.to_f64() } else { dy.to_f64() * y.to_f64() };
            }
            let total = rows::sum(scratch, |value| value);
            for ((dx, &y), &dy) in dx.iter_mut().zip(y).zip(dy) {
                let (y, dy) = (y.to_f64(), dy.to_f64());
                dx.write(T::from_f64(if logarithm { dy - exp(y) * total } else { (dy - total) * y }));
            }
        }
    }
}

/// The gradient of [`softmax`], from its output `y`: `y·(dy - Σ dy·y)`, or of the logarithm: `dy - eʸ·Σ dy`.
pub(crate) fn softmax_backward<T: Element>(y: &[T], dy: &[T], columns: usize, logarithm: bool) -> Vec<T> {
    assert_eq!(y.len(), dy.len());
    let length = rows::per_piece(columns) * columns;
    // SAFETY: the pieces cover the output and consist of whole rows, each written whole.
    unsafe {
        written(y.len(), |dx| {
            dx.par_chunks_mut(length).zip(y.par_chunks(length).zip(dy.par_chunks(length))).for_each_init(
                || vec![0.; columns],
                |scratch, (dx, (y, dy))| backward_piece(y, dy, logarithm, scratch, dx),
            );
        })
    }
}
