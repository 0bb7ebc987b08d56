//! Element-by-element operations and sums.

use rayon::prelude::*;

use super::simd::multiversion;
use super::{Element, written};

/// Elements per piece of work.
const PIECE: usize = 32 * 1024;
/// Elements summed in the element type before the sum goes on in `f64`.
const RUN: usize = 1024;

macro_rules! binary {
    ($(#[$attribute:meta])* $name:ident, |$a:ident, $b:ident| $value:expr) => {
        $(#[$attribute])*
        pub(crate) fn $name<T: Element>(a: &[T], b: &[T]) -> Vec<T> {
            multiversion! {
                fn piece<T>(a: &[T], b: &[T], output: &mut [std::mem::MaybeUninit<T>]) {
                    for ((output, &$a), &$b) in output.iter_mut().zip(a).zip(b) {
                        output.write($value);
                    }
                }
            }
            assert_eq!(a.len(), b.len());
            // SAFETY: the pieces cover the output, and each is as long as its two inputs.
            unsafe {
                written(a.len(), |output| {
                    output
                        .par_chunks_mut(PIECE)
                        .zip(a.par_chunks(PIECE))
                        .zip(b.par_chunks(PIECE))
                        .for_each(|((output, a), b)| piece(a, b, output));
                })
            }
        }
    };
}

binary!(
    /// `a + b`
    add, |a, b| a + b
);
binary!(
    /// `a - b`
    subtract, |a, b| a - b
);
binary!(
    /// `a * b`
    multiply, |a, b| a * b
);
binary!(
    /// The gradient of [`relu`]: `gradient` where `x > 0` (or is not a number), else 0.
    relu_backward, |gradient, x| if x <= T::zero() { T::zero() } else { gradient }
);

/// `a * factor`
pub(crate) fn scale<T: Element>(a: &[T], factor: T) -> Vec<T> {
    multiversion! {
        fn piece<T>(a: &[T], factor: T, output: &mut [std::mem::MaybeUninit<T>]) {
            for (output, &a) in output.iter_mut().zip(a) {
                output.write(a * factor);
            }
        }
    }
    // SAFETY: the pieces cover the output, and each is as long as its input.
    unsafe {
        written(a.len(), |output| {
            output.par_chunks_mut(PIECE).zip(a.par_chunks(PIECE)).for_each(|(output, a)| piece(a, factor, output));
        })
    }
}

/// `max(a, 0)`; what is not a number stays so.
pub(crate) fn relu<T: Element>(a: &[T]) -> Vec<T> {
    multiversion! {
        fn piece<T>(a: &[T], output: &mut [std::mem::MaybeUninit<T>]) {
            for (output, &a) in output.iter_mut().zip(a) {
                output.write(if a <= T::zero() { T::zero() } else { a });
            }
        }
    }
    // SAFETY: the pieces cover the output, and each is as long as its input.
    unsafe {
        written(a.len(), |output| {
            output.par_chunks_mut(PIECE).zip(a.par_chunks(PIECE)).for_each(|(output, a)| piece(a, output));
        })
    }
}

/// The sum of all elements.
pub(crate) fn sum<T: Element>(a: &[T]) -> f64 {
    multiversion! {
        fn piece<T>(a: &[T]) -> f64 {
            let mut total = 0.;
            for run in a.chunks(RUN) {
                // Sixteen lanes, so that the sum is a vector sum of fixed order.
                let mut lanes = [T::zero(); 16];
                let mut blocks = run.chunks_exact(16);
                for block in &mut blocks {
                    for (lane, &value) in lanes.iter_mut().zip(block) {
                        *lane += value;
                    }
                }
                for (lane, &value) in lanes.iter_mut().zip(blocks.remainder()) {
                    *lane += value;
                }
                total += lanes.iter().map(|lane| lane.to_f64()).sum::<f64>();
            }
            total
        }
    }
    a.par_chunks(PIECE).map(|a| piece(a)).collect::<Vec<_>>().into_iter().sum()
}

/// The sum over the rows of a matrix with rows of `columns` elements.
pub(crate) fn column_sums<T: Element>(a: &[T], columns: usize) -> Vec<T> {
    multiversion! {
        fn piece<T>(a: &[T], columns: usize) -> Vec<T> {
            let mut sums = vec![T::zero(); columns];
            for row in a.chunks_exact(columns) {
                for (sum, &value) in sums.iter_mut().zip(row) {
                    *sum += value;
                }
            }
            sums
        }
    }
    let rows = (PIECE / columns).clamp(1, RUN);
    let partial: Vec<Vec<T>> = a.par_chunks(rows * columns).map(|a| piece(a, columns)).collect();
    let mut total = vec![0f64; columns];
    for sums in partial {
        for (total, sum) in total.iter_mut().zip(sums) {
            *total += sum.to_f64();
        }
    }
    total.into_iter().map(T::from_f64).collect()
}

/// One step of stochastic gradient descent with momentum, as PyTorch's `SGD` (no dampening, no Nesterov):
/// `v = momentum·v + gradient + weight_decay·p`, then `p = p - learning_rate·v`.
pub(crate) fn sgd<T: Element>(
    parameter: &mut [T],
    velocity: &mut [T],
    gradient: &[T],
    [learning_rate, momentum, weight_decay]: [T; 3],
) {
    multiversion! {
        fn piece<T>(parameter: &mut [T], velocity: &mut [T], gradient: &[T], rate: T, momentum: T, decay: T) {
            for ((parameter, velocity), &gradient) in parameter.iter_mut().zip(velocity).zip(gradient) {
                *velocity = momentum * *velocity + (gradient + decay * *parameter);
                *parameter -= rate * *velocity;
            }
        }
    }
    parameter
        .par_chunks_mut(PIECE)
        .zip(velocity.par_chunks_mut(PIECE))
        .zip(gradient.par_chunks(PIECE))
        .for_each(|((p, v), g)| piece(p, v, g, learning_rate, momentum, weight_decay));
}

/// The sum of the blocks of `size` elements of which `blocks` consists, first to last.
pub(crate) fn sum_blocks<T: Element>(mut blocks: Vec<T>, size: usize) -> Vec<T> {
    multiversion! {
        fn piece<T>(sum: &mut [T], block: &[T]) {
            for (sum, &value) in sum.iter_mut().zip(block) {
                *sum += value;
            }
        }
    }
    let (sum, others) = blocks.split_at_mut(size);
    sum.par_chunks_mut(PIECE).enumerate().for_each(|(index, sum)| {
        for other in others.chunks_exact(size) {
            let length = sum.len();
            piece(sum, &other[index * PIECE..][..length]);
        }
    });
    blocks.truncate(size);
    blocks.shrink_to_fit();
    blocks
}
