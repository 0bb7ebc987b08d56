//! Element-by-element operations and sums.

use rayon::prelude::*;

use super::simd::multiversion;
use super::{Element, written};
use crate::adam::Adam;

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

macro_rules! unary {
    ($(#[$attribute:meta])* $name:ident($($factor:ident)?), |$a:ident| $value:expr) => {
        $(#[$attribute])*
        pub(crate) fn $name<T: Element>(a: &[T] $(, $factor: T)?) -> Vec<T> {
            multiversion! {
                fn piece<T>(a: &[T], output: &mut [std::mem::MaybeUninit<T>] $(, $factor: T)?) {
                    for (output, &$a) in output.iter_mut().zip(a) {
                        output.write($value);
                    }
                }
            }
            // SAFETY: the pieces cover the output, and each is as long as its input.
            unsafe {
                written(a.len(), |output| {
                    output
                        .par_chunks_mut(PIECE)
                        .zip(a.par_chunks(PIECE))
                        .for_each(|(output, a)| piece(a, output $(, $factor)?));
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
    /// `a / b`
    divide, |a, b| a / b
);
binary!(
    /// The gradient of [`absolute`]: 0 where `x` is.
    absolute_backward, |gradient, x| {
        if x > T::zero() {
            gradient
        } else if x < T::zero() {
            T::zero() - gradient
        } else {
            T::zero()
        }
    }
);
binary!(
    /// The gradient of [`square_root`], of its result `root`.
    square_root_backward, |gradient, root| gradient / (root + root)
);
binary!(
    /// The gradient of the logistic function, of its result `y`.
    sigmoid_backward, |gradient, y| gradient * (y * (T::one() - y))
);
binary!(
    /// The gradient of the hyperbolic tangent, of its result `y`.
    tanh_backward, |gradient, y| gradient * (T::one() - y * y)
);
binary!(
    /// The gradient of [`relu`]: `gradient` where `x > 0` (or is not a number), else 0.
    relu_backward, |gradient, x| if x <= T::zero() { T::zero() } else { gradient }
);

unary!(
    /// `a * factor`
    scale(factor), |a| a * factor
);
unary!(
    /// `a + term`
    offset(term), |a| a + term
);
unary!(
    /// `max(a, 0)`; what is not a number stays so.
    relu(), |a| if a <= T::zero() { T::zero() } else { a }
);
unary!(
    /// `|a|`
    absolute(), |a| T::from_f64(a.to_f64().abs())
);
unary!(
    /// The square root, rounded once also in `f32`.
    square_root(), |a| T::from_f64(a.to_f64().sqrt())
);

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

/// The sum of each row of `columns` elements.
pub(crate) fn row_sums<T: Element>(a: &[T], columns: usize) -> Vec<f64> {
    a.par_chunks_exact(columns).map(sum).collect()
}

/// Rows of `columns` elements, each filled with its value.
pub(crate) fn filled_rows<T: Element>(values: &[T], columns: usize) -> Vec<T> {
    let mut rows = Vec::with_capacity(values.len() * columns);
    for &value in values {
        rows.extend(std::iter::repeat_n(value, columns));
    }
    rows
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

/// What a step of [`adam`] needs, in the element type of the parameters.
#[derive(Clone, Copy)]
pub(crate) struct AdamCoefficients<T> {
    /// Learning rate over the first moment's bias correction.
    pub step_size: T,
    /// Share of each moment that is kept.
    pub betas: [T; 2],
    /// The square root of the second moment's bias correction.
    pub root_correction: T,
    /// Added to the root of the second moment.
    pub epsilon: T,
}

impl<T: Element> AdamCoefficients<T> {
    /// Of the step of this number, the first of which is 1.
    pub fn of_step(step: u64, options: Adam) -> Self {
        let Adam { learning_rate, betas, epsilon } = options;
        let correction = betas.map(|beta| 1. - beta.powf(step as f64));
        Self {
            step_size: T::from_f64(learning_rate / correction[0]),
            betas: betas.map(T::from_f64),
            root_correction: T::from_f64(correction[1].sqrt()),
            epsilon: T::from_f64(epsilon),
        }
    }
}

/// One step of Adam, as PyTorch's `Adam` without weight decay and AMSGrad:
/// `m += (1 - beta1)·(gradient - m)`, `v = beta2·v + (1 - beta2)·gradient²`, then
/// `p -= step_size·m / (√v / root_correction + epsilon)`.
pub(crate) fn adam<T: Element>(
    parameter: &mut [T],
    first: &mut [T],
    second: &mut [T],
    gradient: &[T],
    coefficients: AdamCoefficients<T>,
) {
    multiversion! {
        fn piece<T>(parameter: &mut [T], first: &mut [T], second: &mut [T], gradient: &[T], c: AdamCoefficients<T>) {
            let [new_first, new_second] = [T::one() - c.betas[0], T::one() - c.betas[1]];
            for (((p, m), v), &gradient) in parameter.iter_mut().zip(first).zip(second).zip(gradient) {
                *m += new_first * (gradient - *m);
                *v = c.betas[1] * *v + new_second * (gradient * gradient);
                let root = T::from_f64(v.to_f64().sqrt());
                *p -= c.step_size * (*m / (root / c.root_correction + c.epsilon));
            }
        }
    }
    parameter
        .par_chunks_mut(PIECE)
        .zip(first.par_chunks_mut(PIECE))
        .zip(second.par_chunks_mut(PIECE))
        .zip(gradient.par_chunks(PIECE))
        .for_each(|(((p, m), v), g)| piece(p, m, v, g, coefficients));
}

/// [`adam`] with the largest `v` there was so far in place of `v`, as PyTorch's `amsgrad=True`.
pub(crate) fn amsgrad<T: Element>(
    parameter: &mut [T],
    first: &mut [T],
    second: &mut [T],
    largest: &mut [T],
    gradient: &[T],
    coefficients: AdamCoefficients<T>,
) {
    multiversion! {
        fn piece<T>(
            parameter: &mut [T],
            first: &mut [T],
            second: &mut [T],
            largest: &mut [T],
            gradient: &[T],
            c: AdamCoefficients<T>,
        ) {
            let [new_first, new_second] = [T::one() - c.betas[0], T::one() - c.betas[1]];
            let kept = first.iter_mut().zip(second).zip(largest);
            for ((p, ((m, v), l)), &gradient) in parameter.iter_mut().zip(kept).zip(gradient) {
                *m += new_first * (gradient - *m);
                *v = c.betas[1] * *v + new_second * (gradient * gradient);
                if *v > *l {
                    *l = *v;
                }
                let root = T::from_f64(l.to_f64().sqrt());
                *p -= c.step_size * (*m / (root / c.root_correction + c.epsilon));
            }
        }
    }
    parameter
        .par_chunks_mut(PIECE)
        .zip(first.par_chunks_mut(PIECE))
        .zip(second.par_chunks_mut(PIECE))
        .zip(largest.par_chunks_mut(PIECE))
        .zip(gradient.par_chunks(PIECE))
        .for_each(|((((p, m), v), l), g)| piece(p, m, v, l, g, coefficients));
}

/// Every row of `columns` elements divided by its Euclidean norm plus `epsilon`.
pub(crate) fn normalized_rows<T: Element>(x: &[T], columns: usize, epsilon: f64) -> Vec<T> {
    x.par_chunks_exact(columns)
        .flat_map_iter(|row| {
            let divisor = T::from_f64(norm(row) + epsilon);
            row.iter().map(move |&value| value / divisor)
        })
        .collect()
}

/// The gradient of [`normalized_rows`]. A norm of 0 has a gradient of 0, as in PyTorch.
pub(crate) fn normalized_rows_backward<T: Element>(dy: &[T], x: &[T], columns: usize, epsilon: f64) -> Vec<T> {
    dy.par_chunks_exact(columns)
        .zip(x.par_chunks_exact(columns))
        .flat_map_iter(|(dy, x)| {
            let norm = norm(x);
            let divisor = norm + epsilon;
            let along: f64 = dy.iter().zip(x).map(|(dy, x)| dy.to_f64() * x.to_f64()).sum();
            let pull = if norm > 0. { along / (norm * divisor * divisor) } else { 0. };
            dy.iter().zip(x).map(move |(dy, x)| T::from_f64(dy.to_f64() / divisor - x.to_f64() * pull))
        })
        .collect()
}

fn norm<T: Element>(row: &[T]) -> f64 {
    row.iter().map(|value| value.to_f64() * value.to_f64()).sum::<f64>().sqrt()
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
