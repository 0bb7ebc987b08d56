//! The standard normal distribution, without branches or calls, so that loops over it become vector loops.

use super::exponential::exp;

/// Coefficients of the power series in `u = (4 - x) / (4 + x)` of `Q(x)·exp(x²/2)·(4 + x) / 4` for `x >= 0`, where
/// `Q` is the upper tail of the distribution; made by `tools/reference/normal.py`. Relative error 4e-16.
const DOUBLE: [f64; 25] = [
    0.18882128260393788,
    0.15197416049297308,
    0.09678435018555373,
    0.04663046448990915,
    0.015099143722729469,
    0.001885047241846578,
    -0.0008699230917619934,
    -0.00040770461685247714,
    3.333607735295823e-05,
    5.777375434069372e-05,
    -4.770615878542051e-07,
    -8.7862779757101e-06,
    1.7916469103201863e-07,
    1.4804027614828878e-06,
    -1.5745918346765484e-07,
    -2.561962754172284e-07,
    6.811574238674262e-08,
    3.994349035958756e-08,
    -2.171661754970629e-08,
    -4.461231946168626e-09,
    5.356900967582911e-09,
    1.468406703424721e-10,
    -9.326612731319143e-10,
    2.9994454858087464e-11,
    8.5082808177573e-11,
];

/// As [`DOUBLE`], for results that are rounded to `f32`. Relative error 2e-9.
const SINGLE: [f64; 12] = [
    0.18882128262915143,
    0.15197415784155602,
    0.09678434846496078,
    0.04663053995998785,
    0.015099162069501234,
    0.001884429289920908,
    -0.00086998865936085,
    -0.00040551002638210704,
    3.341334677361033e-05,
    5.3893444071613026e-05,
    -4.3277057536885447e-07,
    -5.295746063806165e-06,
];

/// The distribution function `P(X < x)` and the density at `x`, good enough for results of type `T`. In the lower
/// tail, too, the error is relative to the value: it is not the difference of 1 and something close to it.
#[inline(always)]
pub(super) fn distribution<T>(x: f64) -> [f64; 2] {
    let coefficients: &[f64] = if size_of::<T>() == size_of::<f32>() { &SINGLE } else { &DOUBLE };
    let distance = x.abs();
    let bell = exp(-0.5 * x * x);
    let u = (4. - distance) / (4. + distance);
    // At infinity the quotient is not a number, and the tail is 0 whatever it is.
    let u = if distance > 1e9 { -1. } else { u };
    let mut series = 0.;
    for coefficient in coefficients.iter().rev() {
        series = series * u + coefficient;
    }
    let tail = series * bell * (4. / (4. + distance));
    let below = if x > 0. { 1. - tail } else { tail };
    const DENSITY_AT_0: f64 = 0.398_942_280_401_432_7; // 1/√(2π)
    [below, bell * DENSITY_AT_0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `tools/reference/normal.py`.
    const VALUES: [(f64, f64); 13] = [
        (-37.5, 4.605353009581955e-308),
        (-20.0, 2.7536241186062337e-89),
        (-9.25, 1.1224633591327982e-20),
        (-5.0, 2.866515718791939e-07),
        (-2.5, 0.006209665325776135),
        (-1.0, 0.15865525393145705),
        (-0.125, 0.4502617751698871),
        (0.0, 0.5),
        (0.125, 0.5497382248301129),
        (0.75, 0.7733726476231318),
        (1.5, 0.9331927987311419),
        (3.0, 0.9986501019683699),
        (8.0, 0.9999999999999993),
    ];

    #[test]
    fn the_distribution_function_is_exact_to_the_element_type_also_in_the_tail() {
        for (x, expected) in VALUES {
            // The exponent x²/2 is rounded, which counts as many times as it is large.
            let tolerance = 5e-16 + 1.2e-16 * x * x / 2.;
            let error = distribution::<f64>(x)[0] / expected - 1.;
            assert!(error.abs() < tolerance, "x = {x}: {error:e}");
            let error = distribution::<f32>(x)[0] / expected - 1.;
            assert!(error.abs() < 3e-9, "x = {x}, single: {error:e}");
        }
    }

    #[test]
    fn the_density_is_the_slope_of_the_distribution_function() {
        for x in [-3., -0.5, 0., 0.25, 2.] {
            let slope = (distribution::<f64>(x + 1e-5)[0] - distribution::<f64>(x - 1e-5)[0]) / 2e-5;
            assert!((slope - distribution::<f64>(x)[1]).abs() < 1e-9, "x = {x}");
        }
    }

    #[test]
    fn the_distribution_function_ends_at_0_and_1() {
        assert_eq!(distribution::<f64>(f64::NEG_INFINITY), [0., 0.]);
        assert_eq!(distribution::<f64>(f64::INFINITY), [1., 0.]);
        assert!(distribution::<f64>(f64::NAN).iter().all(|value| value.is_nan()));
    }
}
