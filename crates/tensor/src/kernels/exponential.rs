//! The exponential function, without branches or calls, so that loops over it become vector loops and give the same
//! bits on every machine.

/// Adding it to a number of size below 2^51 rounds the number to a whole one, which then stands in the low bits.
const ROUNDER: f64 = 6_755_399_441_055_744.; // 1.5·2^52

/// The natural logarithm of 2 in two parts, the first with 20 trailing zero bits: whole multiples of it are exact.
const LN_2: [f64; 2] = [0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10];

/// The inverse factorials of 13 to 2: the Taylor series, cut where it is below the rounding error of `f64`.
const SERIES: [f64; 12] = [
    1. / 6_227_020_800.,
    1. / 479_001_600.,
    1. / 39_916_800.,
    1. / 3_628_800.,
    1. / 362_880.,
    1. / 40_320.,
    1. / 5_040.,
    1. / 720.,
    1. / 120.,
    1. / 24.,
    1. / 6.,
    1. / 2.,
];

/// `eˣ` to two units in the last place; also for infinities, for results that are denormal, and what is not a number
/// stays so.
#[inline(always)]
pub(super) fn exp(x: f64) -> f64 {
    // Beyond these the result is infinity and 0. Comparisons, because `clamp` keeps loops from becoming vector loops.
    let x = if x > 710. { 710. } else { x };
    let x = if x < -746. { -746. } else { x };
    // x = count·ln 2 + rest
    let count = (x * std::f64::consts::LOG2_E + ROUNDER) - ROUNDER;
    let rest = (x - count * LN_2[0]) - count * LN_2[1];
    let mut tail = SERIES[0];
    for coefficient in &SERIES[1..] {
        tail = tail * rest + coefficient;
    }
    let value = 1. + (rest + rest * rest * tail);
    // In two steps, because 2^count itself can lie outside the range.
    let half = (count * 0.5 + ROUNDER) - ROUNDER;
    value * power_of_two(half) * power_of_two(count - half)
}

/// `2^exponent` for a whole number from -1022 to 1023.
#[inline(always)]
fn power_of_two(exponent: f64) -> f64 {
    f64::from_bits(((exponent + ROUNDER).to_bits().wrapping_add(1023)) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_that_of_the_standard_library_to_two_units_in_the_last_place() {
        for step in -71_000..=71_000 {
            let x = f64::from(step) * 0.009_973;
            let (found, expected) = (exp(x), x.exp());
            assert!((found - expected).abs() <= 2. * f64::EPSILON * expected, "exp({x}) = {found:e} for {expected:e}");
        }
    }

    #[test]
    fn exp_goes_to_the_ends_of_the_range_and_keeps_what_is_not_a_number() {
        assert_eq!([exp(0.), exp(-0.), exp(f64::NEG_INFINITY), exp(-800.)], [1., 1., 0., 0.]);
        assert_eq!([exp(f64::INFINITY), exp(800.), exp(709.79)], [f64::INFINITY; 3]);
        assert!(exp(f64::NAN).is_nan());
        // Denormal: 2^-1074 is the unit.
        for x in [-708.5, -720., -740., -745.] {
            assert!((exp(x) - x.exp()).abs() <= f64::from_bits(1), "exp({x}) = {:e} for {:e}", exp(x), x.exp());
        }
    }
}
