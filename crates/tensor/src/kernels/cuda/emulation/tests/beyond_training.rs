//! Operations that networks and methods beyond the training step of a convolutional network need.

use super::super::super::{curvature, elementwise, pooling, resampling, row_normalization};
use super::*;
use crate::kernels::grid_sample::Sampling;
use crate::kernels::pooling::Windows;
use crate::kernels::resize::Resize;
use crate::{GridPadding, GridSample};

/// What an operation gives on the CPU: its value, and the gradients of its inputs when `dy` is that of the value.
fn on_the_cpu<const N: usize>(
    inputs: [Tensor; N],
    dy: &[f32],
    operation: impl FnOnce(&[Var; N]) -> Result<Var>,
) -> (Vec<f32>, [Vec<f32>; N]) {
    let tape = Tape::new();
    let leaves = inputs.each_ref().map(|input| tape.leaf(input));
    let y = operation(&leaves).unwrap();
    let gradients = tape.backward_from(&[(&y, &tensor(dy, y.dims()))]).unwrap();
    (values(y.tensor()), leaves.each_ref().map(|leaf| values(gradients.get(leaf).unwrap())))
}

#[test]
fn softmax_and_its_logarithm_are_those_of_the_cpu_forward_and_backward() {
    for element in ELEMENTS {
        for (rows, columns) in ROWS.into_iter().chain([(300, 10), (3, 197)]) {
            let count = rows * columns;
            let x = stored(element, noise(count, 1).into_iter().map(|value| value * 9.).collect());
            let dy = stored(element, noise(count, 2));
            for logarithm in [false, true] {
                let what = format!("{rows}x{columns} {element:?}, logarithm {logarithm}");
                let Some([y, dx]) = emulated(|queue| {
                    let [x, dy] = [&x, &dy].map(|values| queue.stored(element, values));
                    let y = row_normalization::softmax(queue, x.view(), columns, logarithm).unwrap();
                    let backward = row_normalization::softmax_backward;
                    let dx = backward(queue, y.view(), dy.view(), columns, logarithm).unwrap();
                    [&y, &dx].map(Array::numbers)
                }) else {
                    return;
                };
                let (expected, [gradient]) = on_the_cpu([tensor(&x, &[rows, columns])], &dy, |[x]| {
                    if logarithm { x.log_softmax() } else { x.softmax() }
                });
                assert_close(&what, &y, &expected, tolerance(element));
                // From a `bf16` output.
                let tolerance = if element == Stored::Bf16 { 2e-2 } else { 2e-5 };
                assert_close(&format!("gradient of {what}"), &dx, &gradient, tolerance);
            }
        }
    }
}

#[test]
fn rows_that_have_no_softmax_are_not_numbers_and_the_others_are_left_alone() {
    let (infinity, nan) = (f32::INFINITY, f32::NAN);
    let x = [[1., nan, 2.], [infinity, 0., 0.], [-infinity; 3], [-infinity, 0., 0.], [88., 900., -1e30]].concat();
    for logarithm in [false, true] {
        let Some(found) = emulated(|queue| {
            let x = queue.f32(&x);
            let y = row_normalization::softmax(queue, x.view(), 3, logarithm).unwrap();
            // Comparable whatever is not a number.
            y.numbers().into_iter().map(|value| format!("{value:?}")).collect::<Vec<_>>()
        }) else {
            return;
        };
        let x = Var::constant(tensor(&x, &[5, 3]));
        let expected = if logarithm { x.log_softmax() } else { x.softmax() }.unwrap();
        let expected: Vec<String> = values(expected.tensor()).iter().map(|value| format!("{value:?}")).collect();
        assert_eq!(found, expected, "logarithm {logarithm}");
    }
}

#[test]
fn layer_norm_is_that_of_the_cpu_forward_and_backward() {
    for element in ELEMENTS {
        for (rows, columns) in ROWS.into_iter().chain([(197, 768), (900, 24)]) {
            if columns == 1 {
                // A row of one number has a normalised value of 0 on both, and a gradient of rounding errors.
                continue;
            }
            let count = rows * columns;
            let x = noise(count, 1).into_iter().enumerate().map(|(i, value)| value + (i / columns % 5) as f32 * 0.7);
            let (x, dy) = (stored(element, x.collect()), stored(element, noise(count, 2)));
            let (weight, bias) = (noise(columns, 3), noise(columns, 4));
            let Some([y, dx, sums]) = emulated(|queue| {
                let [x, dy] = [&x, &dy].map(|values| queue.stored(element, values));
                let [weight, bias] = [&weight, &bias].map(|values| queue.f32(values));
                let met = row_normalization::layer_norm(queue, x.view(), weight.view(), bias.view(), 1e-5).unwrap();
                let (both, kept) = ([x.view(), dy.view()], [met.mean.view(), met.inverse.view()]);
                let dx = row_normalization::layer_norm_backward(queue, both, weight.view(), kept).unwrap();
                let sums = row_normalization::layer_norm_sums(queue, both, kept).unwrap();
                [&met.y, &dx, &sums].map(Array::numbers)
            }) else {
                return;
            };
            let inputs = [tensor(&x, &[rows, columns]), tensor(&weight, &[columns]), tensor(&bias, &[columns])];
            let (expected, gradients) = on_the_cpu(inputs, &dy, |[x, weight, bias]| x.layer_norm(weight, bias, 1e-5));
            let what = format!("{rows}x{columns} {element:?}");
            assert_close(&what, &y, &expected, tolerance(element));
            assert_close(&format!("dx of {what}"), &dx, &gradients[0], tolerance(element));
            let (dweight, dbias) = sums.split_at(columns);
            assert_close(&format!("dweight of {what}"), dweight, &gradients[1], 2e-5);
            assert_close(&format!("dbias of {what}"), dbias, &gradients[2], 2e-5);
        }
    }
}

#[test]
fn gelu_is_that_of_the_cpu_forward_and_backward_also_in_the_tail() {
    for element in ELEMENTS {
        for count in [1, 7, 1000, 4096] {
            let x = stored(element, noise(count, 1).into_iter().map(|value| value * 6.).collect());
            let dy = stored(element, noise(count, 2));
            let Some([y, dx]) = emulated(|queue| {
                let [x, dy] = [&x, &dy].map(|values| queue.stored(element, values));
                let y = elementwise::gelu(queue, x.view()).unwrap();
                let dx = elementwise::gelu_backward(queue, dy.view(), x.view()).unwrap();
                [&y, &dx].map(Array::numbers)
            }) else {
                return;
            };
            let (expected, [gradient]) = on_the_cpu([tensor(&x, &[count])], &dy, |[x]| x.gelu());
            assert_close("gelu", &y, &expected, tolerance(element));
            assert_close("its gradient", &dx, &gradient, tolerance(element));
        }
    }
    let x = [-5.5, -4., -9., 0., f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let Some(found) = emulated(|queue| elementwise::gelu(queue, queue.f32(&x).view()).unwrap().read::<u32>()) else {
        return;
    };
    let expected = values(Var::constant(tensor(&x, &[7])).gelu().unwrap().tensor());
    for ((found, expected), x) in found.into_iter().map(f32::from_bits).zip(expected).zip(x) {
        let close = found == expected || (found / expected - 1.).abs() < 2e-5 || found.is_nan() && expected.is_nan();
        assert!(close, "gelu({x}): {found:e}, expected {expected:e}");
    }
}

#[test]
fn images_in_another_size_are_those_of_the_cpu_forward_and_backward() {
    // Height, width, channels, and the other height and width: larger, smaller, much smaller, one pixel, the same.
    let cases = [
        ([4, 4, 3], [32, 32]),
        ([5, 7, 4], [10, 14]),
        ([6, 5, 8], [9, 4]),
        ([13, 9, 2], [3, 5]),
        ([1, 6, 1], [4, 1]),
        ([3, 3, 5], [1, 1]),
        ([7, 1, 16], [7, 3]),
    ];
    for element in ELEMENTS {
        for ([height, width, channels], [out_height, out_width]) in cases {
            for align_corners in [false, true] {
                let images = 2;
                let dims = [images, height, width, channels];
                let x = stored(element, noise(dims.iter().product(), 1));
                let dy = stored(element, noise(images * out_height * out_width * channels, 2));
                let r = Resize { height, width, channels, out_height, out_width, align_corners };
                let Some([y, dx]) = emulated(|queue| {
                    let [x, dy] = [&x, &dy].map(|values| queue.stored(element, values));
                    let y = resampling::resize(queue, &r, x.view()).unwrap();
                    let dx = resampling::resize_backward(queue, &r, dy.view()).unwrap();
                    [&y, &dx].map(Array::numbers)
                }) else {
                    return;
                };
                let (expected, [gradient]) =
                    on_the_cpu([tensor(&x, &dims)], &dy, |[x]| x.resize_bilinear(out_height, out_width, align_corners));
                let what = format!("{r:?} {element:?}");
                assert_close(&what, &y, &expected, tolerance(element));
                assert_close(&format!("gradient of {what}"), &dx, &gradient, tolerance(element));
            }
        }
    }
}

/// Points in and around an image: everywhere, exactly on pixels, on the border, far outside.
fn points(count: usize, side: usize) -> Vec<f32> {
    let mut points: Vec<f32> = noise(2 * count, 5).into_iter().map(|value| value * 1.4).collect();
    for (place, value) in points.iter_mut().enumerate().filter(|(place, _)| place % 5 < 2) {
        *value = place as f32 / 5. % side as f32 / (side.max(2) - 1) as f32 * 2. - 1.;
    }
    points[0] = 1.;
    points[count / 2] = -3e9;
    points
}

#[test]
fn sampled_images_are_those_of_the_cpu_forward_and_backward() {
    // Height, width, channels, and the height and width of the grid; one with more points than a block has threads.
    let cases = [([5, 7, 3], [6, 5]), ([4, 4, 1], [1, 2]), ([1, 3, 5], [2, 2]), ([9, 8, 4], [20, 21])];
    for element in ELEMENTS {
        for ([height, width, channels], [out_height, out_width]) in cases {
            for (clamp, align_corners) in [(false, false), (false, true), (true, false), (true, true)] {
                let images = 2;
                let (dims, points_of_one) = ([images, height, width, channels], out_height * out_width);
                let x = stored(element, noise(dims.iter().product(), 1));
                let grid = points(images * points_of_one, width);
                let dy = stored(element, noise(images * points_of_one * channels, 2));
                let s = Sampling { height, width, channels, points: points_of_one, align_corners, clamp };
                let Some([y, dx, dgrid]) = emulated(|queue| {
                    let [x, dy] = [&x, &dy].map(|values| queue.stored(element, values));
                    let grid = queue.f32(&grid);
                    let y = resampling::sample(queue, &s, x.view(), grid.view()).unwrap();
                    let dx = resampling::sample_backward_images(queue, &s, grid.view(), dy.view()).unwrap();
                    let dgrid = resampling::sample_backward_grid(queue, &s, x.view(), grid.view(), dy.view()).unwrap();
                    [&y, &dx, &dgrid].map(Array::numbers)
                }) else {
                    return;
                };
                let padding = if clamp { GridPadding::Border } else { GridPadding::Zeros };
                let inputs = [tensor(&x, &dims), tensor(&grid, &[images, out_height, out_width, 2])];
                let (expected, gradients) =
                    on_the_cpu(inputs, &dy, |[x, grid]| x.grid_sample(grid, GridSample { padding, align_corners }));
                let what = format!("{s:?} {element:?}");
                assert_close(&what, &y, &expected, tolerance(element));
                assert_close(&format!("dx of {what}"), &dx, &gradients[0], tolerance(element));
                assert_close(&format!("dgrid of {what}"), &dgrid, &gradients[1], 2e-5);
            }
        }
    }
}

#[test]
fn coordinates_that_are_no_places_give_what_they_give_on_the_cpu() {
    let (x, grid) = (noise(12, 1), [f32::NAN, 0., 0., f32::INFINITY, f32::NEG_INFINITY, 0.5, 0.25, f32::NAN]);
    for clamp in [false, true] {
        let s = Sampling { height: 3, width: 4, channels: 1, points: 4, align_corners: false, clamp };
        let text = |values: Vec<f32>| values.iter().map(|value| format!("{value:.5}")).collect::<Vec<_>>();
        let Some([y, dx]) = emulated(|queue| {
            let (x, points, dy) = (queue.f32(&x), queue.f32(&grid), queue.f32(&[1., 2., 3., 4.]));
            let y = resampling::sample(queue, &s, x.view(), points.view()).unwrap();
            let dx = resampling::sample_backward_images(queue, &s, points.view(), dy.view()).unwrap();
            [&y, &dx].map(|array| text(array.numbers()))
        }) else {
            return;
        };
        let padding = if clamp { GridPadding::Border } else { GridPadding::Zeros };
        let inputs = [tensor(&x, &[1, 3, 4, 1]), tensor(&grid, &[1, 2, 2, 2])];
        let options = GridSample { padding, align_corners: false };
        let (expected, [gradient, _]) = on_the_cpu(inputs, &[1., 2., 3., 4.], |[x, grid]| x.grid_sample(grid, options));
        assert_eq!([y, dx], [text(expected), text(gradient)], "clamp {clamp}");
    }
}

#[test]
fn elements_at_the_places_of_maxima_are_those_of_the_cpu() {
    for element in ELEMENTS {
        for (size, channels, kernel, stride, padding) in [(4, 3, 2, 2, 0), (7, 5, 3, 2, 1), (6, 8, 3, 1, 0)] {
            let (images, out) = (3, (size + 2 * padding - kernel) / stride + 1);
            let (dims, out_dims) = ([images, size, size, channels], [images, out, out, channels]);
            let [x, moving] = [1, 2].map(|start| stored(element, noise(dims.iter().product(), start)));
            let w = Windows {
                height: size,
                width: size,
                channels,
                kernel,
                stride,
                padding,
                out_height: out,
                out_width: out,
            };
            let Some(found) = emulated(|queue| {
                let [x, moving] = [&x, &moving].map(|values| queue.stored(element, values));
                let from = pooling::max(queue, &w, x.view()).unwrap().1;
                pooling::gather(queue, &w, moving.view(), from.view()).unwrap().numbers()
            }) else {
                return;
            };
            let moving = Var::constant(tensor(&moving, &dims));
            let pooled = Var::constant(tensor(&x, &dims)).with_tangent(&moving).unwrap();
            let pooled = pooled.max_pool2d(kernel, stride, padding).unwrap();
            assert_eq!(pooled.dims(), out_dims);
            assert_eq!(found, values(pooled.tangent().unwrap().tensor()), "{w:?}");
        }
    }
}

#[test]
fn the_tangent_of_cross_entropy_and_its_gradients_are_those_of_the_cpu() {
    for (rows, classes) in [(1, 1), (7, 3), (128, 10), (300, 43)] {
        for label_smoothing in [0., 0.1] {
            let logits: Vec<f32> = noise(rows * classes, 1).into_iter().map(|value| value * 5.).collect();
            let along = noise(rows * classes, 2);
            let labels: Vec<u32> = (0..rows).map(|row| (row * 5 % classes) as u32).collect();
            let Some([slope, curved]) = emulated(|queue| {
                let [logits, along, gradient] = [&logits, &along, &vec![0.7]].map(|values| queue.f32(values));
                let labels = queue.array(Stored::U32, &labels);
                let (logits, along) = (logits.view(), along.view());
                let slope = curvature::tangent(queue, logits, along, labels.view(), label_smoothing).unwrap();
                let curved = curvature::curvature(queue, gradient.view(), logits, along, rows).unwrap();
                [&slope, &curved].map(Array::numbers)
            }) else {
                return;
            };
            let labels = Tensor::new(labels.as_slice(), &Device::Cpu).unwrap();
            let inputs = [&logits, &along].map(|values| tensor(values, &[rows, classes]));
            let (expected, [gradient, _]) = on_the_cpu(inputs, &[0.7], |[logits, along]| {
                let loss = logits.with_tangent(along)?.cross_entropy(&labels, CrossEntropy { label_smoothing })?;
                Ok(loss.tangent().unwrap().clone())
            });
            assert_close("slope", &slope, &expected, 2e-6);
            assert_close("curvature", &curved, &gradient, 2e-6);
        }
    }
}

#[test]
fn the_slope_at_a_label_that_is_no_class_is_not_a_number() {
    let Some(is_nan) = emulated(|queue| {
        let (logits, labels) = (queue.f32(&[1., 2., 3., 4.]), queue.array(Stored::U32, &[1u32, 2]));
        curvature::tangent(queue, logits.view(), logits.view(), labels.view(), 0.).unwrap().numbers()[0].is_nan()
    }) else {
        return;
    };
    assert!(is_nan);
}
