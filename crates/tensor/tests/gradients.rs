//! Every differentiable operation against central finite differences, in `f64`.

mod sequence;

use sequence::values;
use tsbd_tensor::check::finite_differences;
use tsbd_tensor::{
    BatchNorm, Conv2d, ConvTranspose2d, CrossEntropy, DType, Device, GridPadding, GridSample, Statistics, Tape, Tensor,
    Var,
};

/// Central differences in `f64` with a step of 1e-5 are good to about 1e-9.
const TOLERANCE: f64 = 1e-7;

#[track_caller]
fn check(inputs: &[Tensor], function: impl Fn(&[Var]) -> tsbd_tensor::Result<Var>) {
    finite_differences(function, inputs, TOLERANCE).unwrap();
}

#[test]
fn another_element_type_and_back() {
    let tape = Tape::new();
    let x = tape.leaf(&values(&[2, 3], 1));
    let direction = Var::constant(values(&[2, 3], 2));
    let single = x.with_tangent(&direction).unwrap().to_dtype(DType::F32).unwrap();
    let square = single.mul(&single).unwrap();
    assert_eq!(square.tensor().dtype(), DType::F32);
    let slope = square.tangent().unwrap().to_dtype(DType::F64).unwrap().sum().unwrap(); // Σ 2·x·direction
    let gradient = tape.backward(&slope).unwrap().take(&x).unwrap();
    assert_eq!(gradient.dtype(), DType::F64);
    let difference = (gradient - (direction.tensor() * 2.).unwrap()).unwrap().abs().unwrap();
    assert!(difference.max_all().unwrap().to_scalar::<f64>().unwrap() < 1e-6);
}

#[test]
fn convolution_has_the_right_gradients_for_every_geometry() {
    for (images, height, width, inputs, outputs, [kernel_height, kernel_width], stride, padding) in [
        (2, 5, 5, 2, 3, [3, 3], 1, 1),
        (2, 4, 7, 3, 2, [3, 3], 2, 1),
        (1, 6, 5, 2, 2, [3, 3], 2, 0),
        (1, 7, 4, 1, 3, [3, 3], 1, 0),
        (2, 3, 5, 2, 3, [1, 1], 1, 0),
        (2, 5, 4, 3, 2, [1, 1], 2, 0),
        (1, 5, 6, 2, 2, [2, 3], 3, 1),
        (1, 5, 5, 1, 2, [5, 5], 1, 2),
        (1, 3, 3, 2, 1, [3, 3], 1, 0),
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
fn convolution_adds_its_gradient_to_one_that_is_already_there() {
    // The input is used by an addition recorded after the convolution, whose gradient therefore arrives
    // before: pointwise and unrolled paths.
    for (kernel, padding) in [(1, 0), (3, 1)] {
        let x = values(&[2, 4, 3, 2], 1);
        let weight = values(&[kernel, kernel, 2, 2], 2);
        check(&[x, weight], |v| {
            v[0].conv2d(&v[1], None, Conv2d { stride: 1, padding, ..Conv2d::default() })?.add(&v[0])
        });
    }
}

#[test]
fn a_residual_block_before_activation_has_the_right_gradients() {
    let x = values(&[2, 4, 4, 2], 1);
    let (weight, bias) = (values(&[2], 2), values(&[2], 3));
    let filter = values(&[3, 3, 2, 2], 4);
    check(&[x, weight, bias, filter], |v| {
        let options = BatchNorm { statistics: Statistics::Batch, epsilon: 1e-5, relu: true };
        let (activated, _) = v[0].batch_norm(&v[1], &v[2], options)?;
        activated.conv2d_add(&v[3], Conv2d { stride: 1, padding: 1, ..Conv2d::default() }, &v[0])
    });
}

#[test]
fn batch_norm_has_the_right_gradients_in_both_modes() {
    let mean = values(&[3], 8);
    let variance = values(&[3], 9).abs().unwrap();
    for dims in [&[2, 3, 4, 3][..], &[7, 3]] {
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
fn relu_has_the_right_gradient_on_both_sides() {
    check(&[values(&[5, 7], 1)], |v| v[0].relu());
}

#[test]
fn sigmoid_and_tanh_have_the_right_gradients_over_their_whole_range() {
    for scale in [0.01, 1., 6.] {
        check(&[values(&[5, 7], 1)], |v| v[0].scale(scale)?.sigmoid());
        check(&[values(&[5, 7], 1)], |v| v[0].scale(scale)?.tanh());
    }
}

#[test]
fn pooling_has_the_right_gradients_also_when_windows_overlap_or_leave_a_rest() {
    for (height, width, kernel, stride) in [(4, 4, 2, 2), (5, 7, 2, 2), (5, 6, 3, 2), (6, 5, 2, 3), (3, 4, 3, 1)] {
        let x = values(&[2, height, width, 3], 1);
        for padding in 0..=kernel / 2 {
            check(std::slice::from_ref(&x), |v| v[0].max_pool2d(kernel, stride, padding));
            check(std::slice::from_ref(&x), |v| v[0].avg_pool2d(kernel, stride, padding));
        }
    }
    check(&[values(&[2, 3, 5, 4], 1)], |v| v[0].global_average_pool());
}

#[test]
fn linear_has_the_right_gradients() {
    let (x, weight, bias) = (values(&[3, 5], 1), values(&[4, 5], 2), values(&[4], 3));
    check(&[x.clone(), weight.clone()], |v| v[0].linear(&v[1], None));
    check(&[x, weight, bias], |v| v[0].linear(&v[1], Some(&v[2])));
}

#[test]
fn cross_entropy_has_the_right_gradient_with_and_without_smoothing() {
    let labels = Tensor::new(&[2u32, 0, 4], &Device::Cpu).unwrap();
    for label_smoothing in [0., 0.1, 1.] {
        check(&[values(&[3, 5], 1)], |v| {
            v[0].scale(3.)?.cross_entropy(&labels, CrossEntropy { label_smoothing })?.scale(2.)
        });
    }
}

#[test]
fn cross_entropy_per_sample_has_the_right_gradient_for_each_row() {
    let labels = Tensor::new(&[2u32, 0, 4], &Device::Cpu).unwrap();
    for label_smoothing in [0., 0.1, 1.] {
        check(&[values(&[3, 5], 1)], |v| {
            v[0].scale(3.)?.cross_entropy_per_sample(&labels, CrossEntropy { label_smoothing })
        });
    }
}

#[test]
fn softmax_and_its_logarithm_have_the_right_gradients_for_every_rank() {
    for dims in [&[5][..], &[3, 1], &[3, 7], &[2, 3, 19], &[2, 1, 3, 8]] {
        check(&[values(dims, 1)], |v| v[0].scale(3.)?.softmax());
        check(&[values(dims, 1)], |v| v[0].scale(3.)?.log_softmax());
    }
}

#[test]
fn layer_norm_has_the_right_gradients_for_every_rank() {
    for dims in [&[5][..], &[3, 7], &[2, 3, 11], &[2, 1, 3, 17]] {
        let channels = &dims[dims.len() - 1..];
        let inputs = [values(dims, 1), values(channels, 2), values(channels, 3)];
        check(&inputs, |v| v[0].layer_norm(&v[1], &v[2], 1e-3));
    }
}

#[test]
fn gelu_has_the_right_gradient_over_its_whole_range() {
    check(&[values(&[5, 7], 1)], |v| v[0].gelu());
    check(&[values(&[40], 2)], |v| v[0].scale(6.)?.gelu());
}

#[test]
fn division_by_the_norm_of_each_sample_has_the_right_gradient_and_none_through_a_norm_of_zero() {
    for dims in [&[3, 5][..], &[2, 3, 2, 2], &[4, 1]] {
        check(&[values(dims, 1)], |v| v[0].divide_by_norm(1e-2));
    }
    let tape = Tape::new();
    let x = tape.leaf(&Tensor::new(&[[0f32, 0.], [3., 4.]], &Device::Cpu).unwrap());
    let y = x.divide_by_norm(0.5).unwrap();
    assert_eq!(y.tensor().to_vec2::<f32>().unwrap(), [[0., 0.], [3. / 5.5, 4. / 5.5]]);
    let gradients = tape.backward(&y.sum().unwrap()).unwrap();
    assert_eq!(gradients.get(&x).unwrap().to_vec2::<f32>().unwrap()[0], [2., 2.]);
}

#[test]
fn grid_sample_has_the_right_gradients_with_every_option() {
    let x = values(&[2, 3, 5, 2], 1);
    // Inside and outside; no coordinate within 1e-4 of a pixel's middle, where the slope jumps.
    let grid = (values(&[2, 4, 3, 2], 2) * 1.5).unwrap();
    for padding in [GridPadding::Zeros, GridPadding::Border] {
        for align_corners in [false, true] {
            let options = GridSample { padding, align_corners };
            check(&[x.clone(), grid.clone()], |v| v[0].grid_sample(&v[1], options));
        }
    }
}

#[test]
fn resize_bilinear_has_the_right_gradient_up_and_down() {
    for (height, width) in [(7, 9), (3, 5), (2, 3), (1, 1), (1, 11), (6, 2)] {
        for align_corners in [false, true] {
            check(&[values(&[2, 3, 5, 2], 1)], |v| v[0].resize_bilinear(height, width, align_corners));
        }
    }
}

#[test]
fn transposed_convolution_has_the_right_gradients_for_every_geometry() {
    for (height, width, inputs, outputs, [kernel_height, kernel_width], stride, padding, output_padding) in [
        (4, 5, 2, 3, [3, 3], 1, 1, 0),
        (3, 2, 3, 2, [3, 3], 2, 1, 1),
        (2, 3, 1, 2, [4, 4], 3, 0, 2),
        (3, 4, 2, 1, [2, 3], 2, 1, 0),
        (3, 5, 3, 2, [1, 1], 1, 0, 0),
        (2, 3, 2, 2, [1, 1], 2, 0, 1),
    ] {
        let x = values(&[2, height, width, inputs], 1);
        let weight = values(&[kernel_height, kernel_width, outputs, inputs], 2);
        let options = ConvTranspose2d { stride, padding, output_padding };
        check(&[x.clone(), weight.clone()], |v| v[0].conv_transpose2d(&v[1], None, options));
        check(&[x, weight, values(&[outputs], 3)], |v| v[0].conv_transpose2d(&v[1], Some(&v[2]), options));
    }
}

#[test]
fn transposed_convolution_adds_its_gradient_to_one_that_is_already_there() {
    let (x, weight) = (values(&[2, 4, 3, 2], 1), values(&[3, 3, 2, 2], 2));
    let options = ConvTranspose2d { stride: 1, padding: 1, output_padding: 0 };
    check(&[x, weight], |v| v[0].conv_transpose2d(&v[1], None, options)?.add(&v[0]));
}

#[test]
fn channels_put_side_by_side_have_the_right_gradients_also_a_part_used_twice() {
    for (dims, widths) in [(&[2, 3, 4][..], [1, 3, 2]), (&[5], [4, 1, 1]), (&[], [2, 3, 1])] {
        let parts = widths.map(|width| values(&[dims, &[width]].concat(), width));
        check(&parts, |v| Var::concat_channels(&[&v[0], &v[1], &v[2]]));
        check(&parts, |v| {
            Var::concat_channels(&[&v[1], &v[0], &v[1]])?.mul(&Var::concat_channels(&[&v[1], &v[1], &v[0]])?)
        });
    }
}

#[test]
fn upsample_nearest_has_the_right_gradient() {
    for factor in 1..4 {
        check(&[values(&[2, 3, 2, 3], 1)], |v| v[0].upsample_nearest(factor));
    }
}

#[test]
fn pad_zeros_has_the_right_gradient() {
    for border in [[0, 1, 0, 1], [2, 0, 1, 3], [0; 4]] {
        check(&[values(&[2, 3, 2, 3], 1)], |v| v[0].pad_zeros(border));
    }
}

#[test]
fn losses_of_values_and_bits_have_the_right_gradients() {
    let both = [values(&[3, 5], 1), values(&[3, 5], 2)];
    check(&both, |v| v[0].mean_squared_error(&v[1])?.scale(2.));
    let targets = Tensor::new(&[[0., 1., 0.25], [1., 0.5, 0.]], &Device::Cpu).unwrap();
    check(&[values(&[2, 3], 1)], |v| v[0].scale(4.)?.binary_cross_entropy(&targets)?.scale(2.));
}

#[test]
fn distances_per_sample_have_the_right_gradients() {
    // As in the diversity loss of dynamic triggers: a quotient of root mean squared differences.
    let inputs = [1, 2, 3, 4].map(|start| values(&[3, 2, 2, 3], 17 * start));
    let distance = |a: &Var, b: &Var| {
        let difference = a.sub(b)?;
        difference.mul(&difference)?.mean_per_sample()?.sqrt()
    };
    check(&inputs, |v| distance(&v[0], &v[1])?.div(&distance(&v[2], &v[3])?.offset(1e-7)?));
}

#[test]
fn arithmetic_has_the_right_gradients() {
    let (a, b) = (values(&[3, 4], 1), values(&[3, 4], 2));
    let both = [a.clone(), b];
    check(&both, |v| v[0].add(&v[1]));
    check(&both, |v| v[0].sub(&v[1]));
    check(&both, |v| v[0].mul(&v[1]));
    check(&both, |v| v[0].mul(&v[0])?.sub(&v[1])?.add(&v[0]));
    check(&both, |v| v[0].div(&v[1].mul(&v[1])?.offset(0.5)?));
    check(std::slice::from_ref(&a), |v| v[0].scale(-2.5));
    check(std::slice::from_ref(&a), |v| v[0].offset(-2.5));
    check(std::slice::from_ref(&a), |v| v[0].abs());
    check(std::slice::from_ref(&a), |v| v[0].mul(&v[0])?.offset(0.1)?.sqrt());
    check(std::slice::from_ref(&a), |v| v[0].mul(&v[0])?.mean_per_sample());
    check(std::slice::from_ref(&a), |v| v[0].mul(&v[0])?.sum());
    check(std::slice::from_ref(&a), |v| v[0].mul(&v[0])?.mean());
    check(&[a], |v| v[0].reshape(&[2, 6])?.mul(&v[0].reshape(&[2, 6])?));
}
