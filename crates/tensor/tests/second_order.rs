//! Tangents of every operation that has a rule for them, and the second derivatives that follow, against central
//! finite differences in `f64`.

mod sequence;

use sequence::values;
use tsbd_tensor::check::second_order;
use tsbd_tensor::{BatchNorm, Conv2d, CrossEntropy, DType, Device, Error, Result, Statistics, Tape, Tensor, Var};

/// Central differences in `f64` with a step of 1e-5 are good to about 1e-9.
const TOLERANCE: f64 = 1e-7;

#[track_caller]
fn check(inputs: &[Tensor], function: impl Fn(&[Var]) -> Result<Var>) {
    second_order(function, inputs, TOLERANCE).unwrap();
}

#[test]
fn convolution_has_the_right_tangents_for_every_geometry() {
    for (images, height, width, inputs, outputs, [kernel_height, kernel_width], stride, padding) in [
        (2, 4, 5, 2, 2, [3, 3], 1, 1),
        (1, 4, 7, 2, 2, [3, 3], 2, 1),
        (1, 5, 3, 1, 2, [3, 3], 2, 0),
        (2, 3, 3, 2, 3, [1, 1], 1, 0),
        (1, 5, 4, 2, 1, [1, 1], 2, 0),
        (1, 4, 5, 1, 2, [2, 3], 3, 1),
    ] {
        let x = values(&[images, height, width, inputs], 1);
        let weight = values(&[kernel_height, kernel_width, inputs, outputs], 2);
        let bias = values(&[outputs], 3);
        let options = Conv2d { stride, padding, ..Conv2d::default() };
        check(&[x.clone(), weight.clone()], |v| v[0].conv2d(&v[1], None, options));
        check(&[x.clone(), weight.clone(), bias], |v| v[0].conv2d(&v[1], Some(&v[2]), options));
        let out = |size: usize, kernel: usize| (size + 2 * padding - kernel) / stride + 1;
        let residual = values(&[images, out(height, kernel_height), out(width, kernel_width), outputs], 4);
        check(&[x, weight, residual], |v| v[0].conv2d_add(&v[1], options, &v[2]));
    }
}

#[test]
fn batch_norm_has_the_right_tangents_in_both_modes() {
    let mean = values(&[3], 8);
    let variance = values(&[3], 9).abs().unwrap();
    for dims in [&[2, 3, 2, 3][..], &[7, 3]] {
        for relu in [false, true] {
            for running in [false, true] {
                let inputs = [values(dims, 1), values(&[3], 2), values(&[3], 3)];
                check(&inputs, |v| {
                    let statistics = if running {
                        Statistics::Running { mean: &mean, variance: &variance }
                    } else {
                        Statistics::Batch
                    };
                    Ok(v[0].batch_norm(&v[1], &v[2], BatchNorm { statistics, epsilon: 1e-3, relu })?.0)
                });
            }
        }
    }
}

#[test]
fn relu_has_the_right_tangent_on_both_sides_and_none_at_zero() {
    check(&[values(&[5, 7], 1)], |v| v[0].relu());
    check(&[values(&[5, 7], 1)], |v| v[0].mul(&v[0])?.scale(0.5)?.sub(&v[0].scale(0.2)?)?.relu());
    let zero = Var::constant(Tensor::new(&[0., 1.], &Device::Cpu).unwrap());
    let moving = zero.with_tangent(&Var::constant(Tensor::new(&[3., 3.], &Device::Cpu).unwrap())).unwrap();
    let moved = moving.relu().unwrap();
    assert_eq!(moved.tangent().unwrap().tensor().to_vec1::<f64>().unwrap(), [0., 3.]);
}

#[test]
fn pooling_has_the_right_tangents_also_when_windows_overlap_or_leave_a_rest() {
    for (height, width, kernel, stride, padding) in
        [(4, 4, 2, 2, 0), (5, 7, 2, 2, 0), (5, 6, 3, 2, 1), (6, 5, 2, 3, 0), (3, 4, 3, 1, 0)]
    {
        let x = [values(&[2, height, width, 3], 1)];
        // Squared after pooling, so that the second derivative is not zero.
        let square = |y: Var| y.mul(&y);
        check(&x, |v| square(v[0].max_pool2d(kernel, stride, padding)?));
        check(&x, |v| square(v[0].avg_pool2d(kernel, stride, padding)?));
    }
    check(&[values(&[2, 3, 5, 4], 1)], |v| v[0].mul(&v[0])?.global_average_pool());
}

#[test]
fn linear_has_the_right_tangents() {
    let (x, weight, bias) = (values(&[3, 5], 1), values(&[4, 5], 2), values(&[4], 3));
    check(&[x.clone(), weight.clone()], |v| v[0].linear(&v[1], None));
    check(&[x, weight, bias], |v| v[0].linear(&v[1], Some(&v[2])));
}

#[test]
fn cross_entropy_has_the_right_tangent_with_and_without_smoothing() {
    let labels = Tensor::new(&[2u32, 0, 4], &Device::Cpu).unwrap();
    for label_smoothing in [0., 0.1, 1.] {
        check(&[values(&[3, 5], 1)], |v| {
            v[0].scale(3.)?.cross_entropy(&labels, CrossEntropy { label_smoothing })?.scale(2.)
        });
    }
}

#[test]
fn arithmetic_has_the_right_tangents() {
    let (a, b) = (values(&[3, 4], 1), values(&[3, 4], 2));
    let both = [a.clone(), b];
    check(&both, |v| v[0].add(&v[1]));
    check(&both, |v| v[0].sub(&v[1]));
    check(&both, |v| v[0].mul(&v[1]));
    check(&both, |v| v[0].mul(&v[0])?.sub(&v[1])?.mul(&v[1])?.add(&v[0]));
    let one = [a];
    check(&one, |v| v[0].scale(-2.5));
    check(&one, |v| v[0].offset(-2.5)?.mul(&v[0]));
    check(&one, |v| v[0].mul(&v[0])?.mean_per_sample());
    check(&both, |v| v[0].mean_squared_error(&v[1]));
    check(&one, |v| v[0].mul(&v[0])?.sum());
    check(&one, |v| v[0].mul(&v[0])?.mean());
    check(&one, |v| v[0].reshape(&[2, 6])?.mul(&v[0].reshape(&[2, 6])?));
}

#[test]
fn a_pattern_broadcast_over_a_batch_has_the_right_gradient_and_tangent() {
    let inputs = [values(&[1, 2, 3, 2], 1), values(&[3, 2, 3, 2], 2)];
    tsbd_tensor::check::finite_differences(|v| v[0].broadcast_batch(3), &inputs[..1], TOLERANCE).unwrap();
    check(&inputs, |v| {
        let images = v[0].broadcast_batch(3)?.add(&v[1])?;
        images.mul(&images)
    });
}

#[test]
fn elements_at_other_places_have_the_right_tangents() {
    let parts = [values(&[2, 2, 3, 2], 1), values(&[2, 2, 3, 3], 2)];
    let square = |y: Var| y.mul(&y);
    check(&parts, |v| square(Var::concat_channels(&[&v[0], &v[1], &v[0]])?));
    check(&parts[..1], |v| {
        let still = Var::constant(values(&[2, 2, 3, 1], 3));
        square(Var::concat_channels(&[&still, &v[0]])?)
    });
    check(&parts[..1], |v| square(v[0].upsample_nearest(2)?));
    check(&parts[..1], |v| square(v[0].pad_zeros([0, 1, 2, 0])?));
}

/// A small network with a shortcut, and its loss.
fn loss(v: &[Var], statistics: Statistics) -> Result<Var> {
    let images = v[0].broadcast_batch(2)?.add(&v[1])?;
    let x = images.conv2d(&v[2], None, Conv2d { stride: 1, padding: 1, ..Conv2d::default() })?;
    let normalized = x.batch_norm(&v[3], &v[4], BatchNorm { statistics, epsilon: 1e-3, relu: true })?.0;
    let x = normalized.conv2d_add(&v[5], Conv2d { stride: 1, padding: 1, ..Conv2d::default() }, &x)?;
    let labels = Tensor::new(&[2u32, 0], &Device::Cpu)?;
    x.max_pool2d(2, 2, 0)?.global_average_pool()?.cross_entropy(&labels, CrossEntropy::default())
}

fn network(channels: usize) -> [Tensor; 6] {
    [
        values(&[1, 8, 8, channels], 1),
        values(&[2, 8, 8, channels], 2),
        values(&[3, 3, channels, channels], 3),
        values(&[channels], 4),
        values(&[channels], 5),
        values(&[3, 3, channels, channels], 6),
    ]
}

/// `∇ ⟨∇_input L, direction⟩` for every input.
fn second_derivatives(inputs: &[Tensor], input: usize, direction: &Tensor, statistics: Statistics) -> Vec<Tensor> {
    let tape = Tape::new();
    let leaves: Vec<Var> = inputs.iter().map(|input| tape.leaf(input)).collect();
    let mut moving = leaves.clone();
    moving[input] = leaves[input].with_tangent(&Var::constant(direction.clone())).unwrap();
    let loss = loss(&moving, statistics).unwrap();
    let mut gradients = tape.backward(loss.tangent().unwrap()).unwrap();
    leaves.iter().map(|leaf| gradients.take(leaf).unwrap()).collect()
}

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    (a * b).unwrap().sum_all().unwrap().to_scalar().unwrap()
}

#[test]
fn the_hessian_is_symmetric() {
    let inputs = network(3);
    let (mean, variance) = (values(&[3], 8), values(&[3], 9).abs().unwrap());
    for statistics in [Statistics::Batch, Statistics::Running { mean: &mean, variance: &variance }] {
        for first in 0..inputs.len() {
            for second in 0..=first {
                let u = values(inputs[first].dims(), 20);
                let v = values(inputs[second].dims(), 30);
                let along_v = second_derivatives(&inputs, second, &v, statistics);
                let along_u = second_derivatives(&inputs, first, &u, statistics);
                let (one, other) = (dot(&u, &along_v[first]), dot(&v, &along_u[second]));
                let error = (one - other).abs() / one.abs().max(other.abs()).max(1e-3);
                assert!(error < 1e-10, "inputs {first} and {second}: {one} and {other}");
            }
        }
    }
}

#[test]
fn fast_second_derivatives_in_f32_are_those_in_f64() {
    // 16 channels and 8x8 pixels: the shapes that the fast convolution serves.
    let single: Vec<Tensor> = network(16).iter().map(|input| input.to_dtype(DType::F32).unwrap()).collect();
    let double: Vec<Tensor> = single.iter().map(|input| input.to_dtype(DType::F64).unwrap()).collect();
    let direction = values(&[1, 8, 8, 16], 20).to_dtype(DType::F32).unwrap();
    let found = second_derivatives(&single, 0, &direction, Statistics::Batch);
    let expected = second_derivatives(&double, 0, &direction.to_dtype(DType::F64).unwrap(), Statistics::Batch);
    for (input, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let difference = (found.to_dtype(DType::F64).unwrap() - expected).unwrap();
        let error = (dot(&difference, &difference) / dot(expected, expected)).sqrt();
        // No ReLU or maximum is close enough to its kink here to be on different sides.
        assert!(error < 2e-5, "input {input}: {error:e} of its norm");
    }
}

#[test]
fn tangents_that_do_not_fit_are_refused() {
    let tape = Tape::new();
    let x = tape.leaf(&values(&[2, 3], 1));
    let constant = |tensor: Tensor| Var::constant(tensor);
    let refused = |tangent: &Var| x.with_tangent(tangent).unwrap_err();
    assert!(matches!(refused(&constant(values(&[3, 2], 2))), Error::Shape { argument: "tangent", .. }));
    let single = constant(values(&[2, 3], 2).to_dtype(DType::F32).unwrap());
    assert!(matches!(refused(&single), Error::DType { argument: "tangent", .. }));
    assert!(matches!(refused(&Tape::new().leaf(&values(&[2, 3], 2))), Error::DifferentTapes { .. }));
    let direction = constant(values(&[2, 3], 2));
    let moving = x.with_tangent(&direction).unwrap();
    assert!(matches!(refused(&moving), Error::NestedTangent { .. }));
    assert!(x.tangent().is_none() && moving.tangent().is_some(), "the value itself is not changed");
    assert!(moving.detach().tangent().is_none(), "what is detached stands still");
}

#[test]
fn values_that_stand_still_give_values_without_tangent() {
    let tape = Tape::new();
    let x = tape.leaf(&values(&[2, 3], 1));
    assert!(x.mul(&x).unwrap().sum().unwrap().tangent().is_none());
}
