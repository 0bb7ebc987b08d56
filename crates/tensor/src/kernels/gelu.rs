//! The Gaussian error linear unit, computed in `f64` and rounded once.

use rayon::prelude::*;

use super::normal::distribution;
use super::simd::multiversion;
use super::{Element, written};

/// Elements per piece of work.
const PIECE: usize = 4 * 1024;

multiversion! {
    fn piece<T>(x: &[T], y: &mut [std::mem::MaybeUninit<T>]) {
        for (y, &x) in y.iter_mut().zip(x) {
            let x = x.to_f64();
            let [below, _] = distribution::<T>(x);
            y.write(T::from_f64(x * below));
        }
    }
}

/// `x · P(X < x)` for a standard normal `X`.
pub(crate) fn gelu<T: Element>(x: &[T]) -> Vec<T> {
    // SAFETY: the pieces cover the output, and each is as long as its input.
    unsafe {
        written(x.len(), |y| {
            y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(y, x)| piece(x, y));
        })
    }
}

multiversion! {
    fn backward_piece<T>(x: &[T], dy: &[T], dx: &mut [std::mem::MaybeUninit<T>]) {
        for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
            let x = x.to_f64();
            let [below, density] = distribution::<T>(x);
            dx.write(T::from_f64(dy.to_f64() * (below + x * density)));
        }
    }
}

/// The gradient of [`gelu`].
pub(crate) fn gelu_backward<T: Element>(x: &[T], dy: &[T]) -> Vec<T> {
    assert_eq!(x.len(), dy.len());
    // SAFETY: the pieces cover the output, and each is as long as its two inputs.
    unsafe {
        written(x.len(), |dx| {
            dx.par_chunks_mut(PIECE)
                .zip(x.par_chunks(PIECE).zip(dy.par_chunks(PIECE)))
                .for_each(|(dx, (x, dy))| backward_piece(x, dy, dx));
        })
    }
}
