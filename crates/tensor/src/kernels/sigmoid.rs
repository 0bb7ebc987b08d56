//! The logistic function and the hyperbolic tangent, computed in `f64` and rounded once.

use rayon::prelude::*;

use super::exponential::exp;
use super::simd::multiversion;
use super::{Element, written};

/// Elements per piece of work.
const PIECE: usize = 4 * 1024;

/// Below it [`hyperbolic_tangent`] is a polynomial: the quotient of exponentials loses digits there.
const SMALL: f64 = 0.02;

/// `1 / (1 + exp(-x))`.
#[inline(always)]
fn logistic(x: f64) -> f64 {
    1. / (1. + exp(-x))
}

/// `(exp(2x) - 1) / (exp(2x) + 1)`.
#[inline(always)]
fn hyperbolic_tangent(x: f64) -> f64 {
    // Of the absolute value, so that the exponential stays below 1.
    let decayed = exp(-2. * x.abs());
    let quotient = ((1. - decayed) / (1. + decayed)).copysign(x);
    // The Taylor series to x⁹: the next term is below 2e-19 of x.
    let square = x * x;
    let series = x * (1. + square * (-1. / 3. + square * (2. / 15. + square * (-17. / 315. + square * (62. / 2835.)))));
    if x.abs() < SMALL { series } else { quotient }
}

macro_rules! elementwise {
    ($(#[$attribute:meta])* $name:ident, $function:ident) => {
        $(#[$attribute])*
        pub(crate) fn $name<T: Element>(x: &[T]) -> Vec<T> {
            multiversion! {
                fn piece<T>(x: &[T], y: &mut [std::mem::MaybeUninit<T>]) {
                    for (y, &x) in y.iter_mut().zip(x) {
                        y.write(T::from_f64($function(x.to_f64())));
                    }
                }
            }
            // SAFETY: the pieces cover the output, and each is as long as its input.
            unsafe {
                written(x.len(), |y| {
                    y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(y, x)| piece(x, y));
                })
            }
        }
    };
}

elementwise!(
    /// `1 / (1 + exp(-x))`
    sigmoid, logistic
);
elementwise!(
    /// `tanh x`
    tanh, hyperbolic_tangent
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_those_of_the_standard_library_to_four_units_in_the_last_place() {
        for step in -60_000..=60_000 {
            // From tiny to large: the steps grow with the number.
            let x = f64::from(step).powi(3) * 1e-13;
            let close = |found: f64, expected: f64| (found - expected).abs() <= 4. * f64::EPSILON * expected.abs();
            // Where the quotient takes over, its numerator has lost log2(1 / 0.04) bits.
            let tolerance = if x.abs() < 0.5 { 32. * f64::EPSILON } else { 4. * f64::EPSILON };
            let (found, expected) = (hyperbolic_tangent(x), x.tanh());
            assert!((found - expected).abs() <= tolerance * expected.abs(), "tanh({x}) = {found:e} for {expected:e}");
            let (found, expected) = (logistic(x), 1. / (1. + (-x).exp()));
            assert!(close(found, expected), "sigmoid({x}) = {found:e} for {expected:e}");
        }
    }

    #[test]
    fn they_reach_their_ends_and_keep_what_is_not_a_number() {
        assert_eq!([logistic(f64::NEG_INFINITY), logistic(0.), logistic(f64::INFINITY)], [0., 0.5, 1.]);
        assert_eq!([f64::NEG_INFINITY, 0., f64::INFINITY].map(hyperbolic_tangent), [-1., 0., 1.]);
        assert!(logistic(f64::NAN).is_nan() && hyperbolic_tangent(f64::NAN).is_nan());
    }
}
