use proptest::prelude::*;

use super::*;
use crate::InstructionSet;

/// Sizes of any kind: all of the kernel may lie in the padding, images may fill no group.
fn geometries() -> impl Strategy<Value = Geometry> {
    let channels = || prop::sample::select(vec![3, 16, 32, 32, 64, 96]);
    let sizes = (1..40usize, 1..12usize, 1..12usize, 1..5usize, 1..5usize);
    (sizes, channels(), channels(), 1..4usize, 0..3usize).prop_filter_map(
        "the kernel is larger than the image",
        |((images, height, width, kernel_height, kernel_width), in_channels, out_channels, stride, padding)| {
            let padding = padding.min(kernel_height.min(kernel_width) - 1);
            let out =
                |size: usize, kernel: usize| (size + 2 * padding).checked_sub(kernel).map(|room| room / stride + 1);
            let (out_height, out_width) = (out(height, kernel_height)?, out(width, kernel_width)?);
            Some(Geometry {
                images,
                height,
                width,
                in_channels,
                out_channels,
                kernel_height,
                kernel_width,
                stride,
                padding,
                out_height,
                out_width,
            })
        },
    )
}

/// Numbers between -1 and 1 that are not round.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 8_388_608. - 1.
    };
    (0..count).map(|_| next()).collect()
}

fn double(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

fn assert_close(what: &str, found: &[f32], expected: &[f64]) -> Result<(), TestCaseError> {
    let size = expected.iter().fold(0., |largest: f64, value| largest.max(value.abs()));
    prop_assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        // The factors are rounded alike; only the order of the sums differs, and beside tile registers Winograd's algorithm.
        let error = (f64::from(*found) - expected).abs();
        prop_assert!(error <= 5e-5 * size, "{}: {} for {}, at most {}", what, found, expected, size);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn convolutions_are_those_of_rounded_numbers(g in geometries(), seed: u64, addend in 0..3) {
        const EXACT: ConvolutionAlgorithm = ConvolutionAlgorithm::Exact;
        let x = numbers(g.images * g.image(), seed);
        let weight = numbers(g.patch() * g.out_channels, seed ^ 1);
        let dy = numbers(g.pixels() * g.out_channels, seed ^ 2);
        let [rounded_x, rounded_weight, rounded_dy] = [&x, &weight, &dy].map(|values| double(&rounded(values)));
        let (bias, residual) = (numbers(g.out_channels, seed ^ 3), numbers(dy.len(), seed ^ 4));
        let (bias_64, residual_64) = (double(&bias), double(&residual));
        let (start, start_64) = match addend {
            0 => (Start::Nothing, Start::Nothing),
            1 => (Start::Bias(&bias[..]), Start::Bias(&bias_64[..])),
            _ => (Start::Residual(&residual[..]), Start::Residual(&residual_64[..])),
        };
        let expected = convolution::forward(&g, EXACT, &rounded_x, &rounded_weight, start_64);
        assert_close("y", &forward(&g, &x, &weight, start), &expected)?;

        let existing = (addend == 1).then(|| numbers(x.len(), seed ^ 5));
        let existing_64 = existing.as_deref().map(double);
        let expected = convolution::backward_input(&g, EXACT, &rounded_dy, &rounded_weight, existing_64.as_deref());
        assert_close("dx", &backward_input(&g, &dy, &weight, existing.as_deref()), &expected)?;

        let expected = convolution::backward_weight(&g, EXACT, &rounded_x, &rounded_dy);
        assert_close("dw", &backward_weight(&g, &x, &dy), &expected)?;
    }
}

#[test]
fn gradients_of_weights_add_up_over_pieces_of_factors_and_any_number_of_threads() {
    let g = Geometry {
        images: 40,
        height: 32,
        width: 32,
        in_channels: 64,
        out_channels: 64,
        kernel_height: 3,
        kernel_width: 3,
        stride: 1,
        padding: 1,
        out_height: 32,
        out_width: 32,
    };
    let (x, dy) = (numbers(g.images * g.image(), 1), numbers(g.pixels() * g.out_channels, 2));
    let found = backward_weight(&g, &x, &dy);
    let [x_64, dy_64] = [&x, &dy].map(|values| double(&rounded(values)));
    let expected = convolution::backward_weight(&g, ConvolutionAlgorithm::Exact, &x_64, &dy_64);
    assert_close("dw", &found, &expected).unwrap();
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert!(pool.install(|| backward_weight(&g, &x, &dy)) == found, "{threads} threads");
    }
}

#[test]
fn numbers_are_rounded_to_the_nearest_and_to_the_even_one_of_two() {
    // Eight significant bits: beside 1 lie 1 + 1/128 and 1 + 2/128.
    let steps = [0., 0.49, 0.5, 0.51, 1.49, 1.5, 1.51].map(|steps| 1. + steps / 128.);
    let expected = [0., 0., 0., 1., 1., 2., 2.].map(|steps| 1. + steps / 128.);
    assert_eq!(rounded(&steps), expected);
    assert_eq!(rounded(&steps.map(|value| -value)), expected.map(|value: f32| -value));
    let special = rounded(&[f32::NAN, f32::INFINITY, -f32::INFINITY, f32::MAX, 1e-40, f32::from_bits(0x7f80_0001)]);
    assert!(special[0].is_nan() && special[5].is_nan());
    assert_eq!(special[1..5], [f32::INFINITY, -f32::INFINITY, f32::INFINITY, 0.]);
}

#[test]
fn what_is_not_finite_reaches_the_outputs_that_it_belongs_to_and_no_others() {
    let g = Geometry {
        images: 18,
        height: 5,
        width: 6,
        in_channels: 32,
        out_channels: 32,
        kernel_height: 3,
        kernel_width: 3,
        stride: 1,
        padding: 1,
        out_height: 5,
        out_width: 6,
    };
    let (mut x, weight) = (numbers(g.images * g.image(), 1), numbers(g.patch() * g.out_channels, 2));
    let [image, y, column] = [17, 2, 3];
    x[((image * g.height + y) * g.width + column) * g.in_channels + 5] = f32::NAN;
    let output = forward(&g, &x, &weight, Start::Nothing);
    if InstructionSet::current().unwrap() < InstructionSet::Amx {
        eprintln!("SKIPPED: this machine has no tile registers; elsewhere Winograd's algorithm spoils whole tiles");
        return;
    }
    for (index, value) in output.iter().enumerate() {
        let pixel = index / g.out_channels;
        let (row, x) = (pixel / g.width, pixel % g.width);
        let near = row / g.height == image && (row % g.height).abs_diff(y) < 2 && x.abs_diff(column) < 2;
        assert_eq!(value.is_nan(), near, "pixel {pixel}");
    }
}
