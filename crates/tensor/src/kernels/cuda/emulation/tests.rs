use super::super::{augmentation, elementwise, loss, normalization, optimizer, pooling};
use super::*;
use crate::{
    BatchNorm, CrossEntropy, DType, Device, Sgd, Statistics, Tape, Tensor, Var, count_correct, move_estimates,
    predicted_classes, sgd_step,
};

mod arithmetic;
mod beyond_training;
mod places;

/// What `run` gives, with the threads of every block in both orders; nothing where kernels cannot be emulated.
fn emulated<R: PartialEq + std::fmt::Debug>(run: impl Fn(&Emulator) -> R) -> Option<R> {
    let [forward, reversed] = Emulator::both()?.map(|emulator| run(&emulator));
    assert_eq!(forward, reversed, "the order of threads decides");
    Some(forward)
}

/// Numbers in no visible order, spread evenly over -1..1; other numbers for another `start`.
fn noise(count: usize, start: usize) -> Vec<f32> {
    let value = |index: usize| ((start * 7919 + index) as f64 * 0.754_877_666_246_692_8).fract() * 2. - 1.;
    (0..count).map(|index| value(index) as f32).collect()
}

/// The same, as they are stored.
fn stored(element: Stored, values: Vec<f32>) -> Vec<f32> {
    match element {
        Stored::Bf16 => values.into_iter().map(|value| f32::from_bits(u32::from(to_bf16(value)) << 16)).collect(),
        _ => values,
    }
}

fn tensor(values: &[f32], dims: &[usize]) -> Tensor {
    Tensor::from_slice(values, dims, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-3f32, |largest, value| largest.max(value.abs()));
    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / largest;
        assert!(error <= tolerance, "{what}, element {place}: {found}, expected {expected}");
    }
}

/// Of `f32`, and of `bf16` outputs.
fn tolerance(element: Stored) -> f32 {
    if element == Stored::Bf16 { 5e-3 } else { 2e-5 }
}

/// Rows and channels: less than a pack, whole packs, odd ones, more channels than a block has threads for, many blocks.
const ROWS: [(usize, usize); 8] = [(2, 1), (30, 3), (37, 4), (517, 8), (1000, 64), (70, 515), (9, 1100), (5, 2080)];
const ELEMENTS: [Stored; 2] = [Stored::F32, Stored::Bf16];

/// Output, mean, unbiased variance; the gradients of input (plus what exists), weight and bias.
type Normalization = [Vec<f32>; 6];

fn normalized(
    queue: &Emulator,
    element: Stored,
    [x, weight, bias, dy, existing]: [&[f32]; 5],
    running: Option<[&[f32]; 2]>,
    relu: bool,
) -> Normalization {
    let [x, dy, existing] = [x, dy, existing].map(|values| queue.stored(element, values));
    let [weight, bias] = [weight, bias].map(|values| queue.f32(values));
    let (coefficients, mean, variance) = match running {
        None => {
            let met = normalization::of_batch(queue, x.view(), weight.view(), bias.view(), 1e-5).unwrap();
            (met.coefficients, met.mean, met.variance)
        }
        Some(running) => {
            let [mean, variance] = running.map(|values| queue.f32(values));
            let statistics = [mean.view(), variance.view()];
            let of_running = normalization::of_running(queue, statistics, weight.view(), bias.view(), 1e-5).unwrap();
            (of_running, mean, variance)
        }
    };
    let (scale, shift) = (coefficients.scale.view(), coefficients.shift.view());
    let y = normalization::apply(queue, x.view(), scale, Some(shift), relu).unwrap();
    let (inverse, from_batch) = (coefficients.inverse.view(), running.is_none());
    let seen = normalization::Normalized { x: x.view(), mean: mean.view(), inverse, scale, shift, relu, from_batch };
    let sums = normalization::gradient_sums(queue, &seen, dy.view()).unwrap();
    let needed = from_batch.then_some(&sums);
    let dx = normalization::input_gradient(queue, &seen, dy.view(), needed, Some(existing.view())).unwrap();
    [&y, &mean, &variance, &dx, &sums.weight, &sums.bias].map(Array::numbers)
}

fn normalized_on_the_cpu(
    [x, weight, bias, dy, existing]: [&[f32]; 5],
    running: Option<[&[f32]; 2]>,
    relu: bool,
) -> Normalization {
    let channels = weight.len();
    let dims = [x.len() / channels, channels];
    let tape = Tape::new();
    let leaves =
        [tape.leaf(&tensor(x, &dims)), tape.leaf(&tensor(weight, &[channels])), tape.leaf(&tensor(bias, &[channels]))];
    let given = running.map(|statistics| statistics.map(|values| tensor(values, &[channels])));
    let statistics = match &given {
        None => Statistics::Batch,
        Some([mean, variance]) => Statistics::Running { mean, variance },
    };
    let (y, met) = leaves[0].batch_norm(&leaves[1], &leaves[2], BatchNorm { statistics, epsilon: 1e-5, relu }).unwrap();
    let [mean, variance] = match (met, given) {
        (Some(met), _) => [met.mean, met.variance],
        (None, given) => given.unwrap(),
    };
    let seeds = [(&y, &tensor(dy, &dims)), (&leaves[0], &tensor(existing, &dims))];
    let gradients = tape.backward_from(&seeds).unwrap();
    let [dx, dweight, dbias] = leaves.each_ref().map(|leaf| values(gradients.get(leaf).unwrap()));
    [values(y.tensor()), values(&mean), values(&variance), dx, dweight, dbias]
}

#[test]
fn batch_norm_is_that_of_the_cpu_forward_and_backward() {
    const WHAT: [&str; 6] = ["y", "mean", "variance", "dx", "dweight", "dbias"];
    for element in ELEMENTS {
        for (rows, channels) in ROWS {
            let count = rows * channels;
            // Means that differ from channel to channel.
            let x = noise(count, 1).into_iter().enumerate().map(|(i, value)| value + (i % channels % 7) as f32 * 0.3);
            let x = stored(element, x.collect());
            let (weight, bias) = (noise(channels, 2), noise(channels, 3));
            let (dy, existing) = (stored(element, noise(count, 4)), stored(element, noise(count, 5)));
            let mean = noise(channels, 6);
            let variance: Vec<f32> = noise(channels, 7).into_iter().map(|value| 0.5 + value.abs()).collect();
            let inputs = [&x[..], &weight, &bias, &dy, &existing];
            for (running, relu) in [(None, true), (None, false), (Some([&mean[..], &variance]), true)] {
                let run = |queue: &Emulator| normalized(queue, element, inputs, running, relu);
                let Some(found) = emulated(run) else { return };
                let expected = normalized_on_the_cpu(inputs, running, relu);
                for (what, (found, expected)) in WHAT.into_iter().zip(found.iter().zip(&expected)) {
                    let what = format!("{what} of {rows}x{channels} {element:?}, relu {relu}, {}", running.is_none());
                    assert_close(&what, found, expected, tolerance(element));
                }
            }
        }
    }
}

#[test]
fn a_mean_far_from_zero_does_not_spoil_the_variance() {
    let x: Vec<f32> = noise(4000, 1).into_iter().map(|value| 1000. + value).collect();
    let [weight, bias] = [vec![1.; 4], vec![0.; 4]];
    let Some(variance) = emulated(|queue| {
        let [x, weight, bias] = [&x, &weight, &bias].map(|values| queue.f32(values));
        normalization::of_batch(queue, x.view(), weight.view(), bias.view(), 1e-5).unwrap().variance.numbers()
    }) else {
        return;
    };
    for (channel, variance) in variance.into_iter().enumerate() {
        let own = || x.iter().skip(channel).step_by(4).map(|&value| f64::from(value));
        let mean = own().sum::<f64>() / 1000.;
        let exact = own().map(|value| (value - mean).powi(2)).sum::<f64>() / 999.;
        assert!((f64::from(variance) / exact - 1.).abs() < 1e-5, "{variance}, exact {exact}");
    }
}

#[test]
fn sums_biases_and_elements_are_those_of_the_cpu() {
    for element in ELEMENTS {
        for (rows, channels) in ROWS {
            let dims = [rows, channels];
            let [a, b] = [1, 2].map(|start| stored(element, noise(rows * channels, start)));
            let bias = stored(element, noise(channels, 3));
            let Some([sum, relu, back, biased, sums]) = emulated(|queue| {
                let [a, b, bias] = [&a, &b, &bias].map(|values| queue.stored(element, values));
                let sum = elementwise::add(queue, a.view(), b.view()).unwrap();
                let relu = elementwise::relu(queue, a.view()).unwrap();
                let back = elementwise::relu_backward(queue, b.view(), a.view()).unwrap();
                let biased = elementwise::add_bias(queue, a.view(), bias.view()).unwrap();
                let sums = elementwise::column_sums(queue, a.view(), channels).unwrap();
                [&sum, &relu, &back, &biased, &sums].map(Array::numbers)
            }) else {
                return;
            };
            let (tape, x) = (Tape::new(), tensor(&a, &dims));
            let x = tape.leaf(&x);
            let y = x.relu().unwrap();
            assert_close("relu", &relu, &values(y.tensor()), tolerance(element));
            let gradients = tape.backward_from(&[(&y, &tensor(&b, &dims))]).unwrap();
            assert_close("relu backward", &back, &values(gradients.get(&x).unwrap()), tolerance(element));
            let added = Var::constant(tensor(&a, &dims)).add(&Var::constant(tensor(&b, &dims))).unwrap();
            assert_close("add", &sum, &values(added.tensor()), tolerance(element));
            let broadcast = tensor(&a, &dims).broadcast_add(&tensor(&bias, &[channels])).unwrap();
            assert_close("bias", &biased, &values(&broadcast), tolerance(element));
            let column_sums = tensor(&a, &dims).to_dtype(DType::F64).unwrap().sum(0).unwrap();
            let column_sums = values(&column_sums.to_dtype(DType::F32).unwrap());
            assert_close("column sums", &sums, &column_sums, 2e-5);
        }
    }
}

#[test]
fn what_is_not_a_number_passes_a_relu() {
    let Some(found) = emulated(|queue| {
        let x = queue.f32(&[f32::NAN, -1., 0., 2.]);
        elementwise::relu(queue, x.view()).unwrap().read::<u32>()
    }) else {
        return;
    };
    assert!(f32::from_bits(found[0]).is_nan());
    assert_eq!(found[1..], [0f32, 0., 2.].map(f32::to_bits));
}

#[test]
fn transposed_matrices_have_every_element_in_its_place() {
    for (element, to) in ELEMENTS.into_iter().flat_map(|element| ELEMENTS.map(|to| (element, to))) {
        for (rows, columns) in [(1, 1), (27, 64), (33, 31), (100, 3), (576, 65)] {
            let x = stored(element, noise(rows * columns, 1));
            let Some(found) = emulated(|queue| {
                let x = queue.stored(element, &x);
                elementwise::transpose(queue, x.view(), rows, columns, to).unwrap().numbers()
            }) else {
                return;
            };
            let expected = tensor(&x, &[rows, columns]).t().unwrap().contiguous().unwrap();
            let dtype = if to == Stored::Bf16 { DType::BF16 } else { DType::F32 };
            let expected = expected.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
            assert_eq!(found, values(&expected), "{rows}x{columns} to {to:?}");
        }
    }
}

#[test]
fn split_numbers_are_sums_of_one_that_tf32_holds_and_of_what_is_left() {
    let (rows, length) = (5, 7);
    let mut x = noise(rows * length, 1);
    x[3..7].copy_from_slice(&[0., 1e-40, f32::MAX, -1.000_976_6]);
    x[9..12].copy_from_slice(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
    for factor in [elementwise::Factor::One, elementwise::Factor::Other] {
        let Some(found) = emulated(|queue| {
            let x = queue.stored(Stored::F32, &x);
            let parts = elementwise::split(queue, x.view(), length, factor).unwrap().numbers();
            // What is not a number equals nothing.
            parts.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
        }) else {
            return;
        };
        let found: Vec<f32> = found.into_iter().map(f32::from_bits).collect();
        assert_eq!(found.len(), 3 * x.len());
        for (row, (whole, parts)) in x.chunks(length).zip(found.chunks(3 * length)).enumerate() {
            let (first, rest) = parts.split_at(length);
            let (second, third) = rest.split_at(length);
            let (again, lows) = if factor == elementwise::Factor::One { (second, third) } else { (third, second) };
            for ((&value, &high), (&again, &low)) in whole.iter().zip(first).zip(again.iter().zip(lows)) {
                assert_eq!(high.to_bits(), again.to_bits(), "row {row}");
                if value.is_finite() && value != f32::MAX {
                    assert_eq!(high + low, value);
                    assert_eq!(high.to_bits() & 0x1fff, 0, "{value} is not rounded");
                    assert!(low.abs() <= (value.abs() / 2048.).max(f32::MIN_POSITIVE), "{value} leaves {low}");
                } else {
                    assert!(low == 0. && high.to_bits() == value.to_bits(), "{value} has no parts");
                }
            }
        }
    }
}

#[test]
fn pooling_is_that_of_the_cpu_forward_and_backward() {
    // Height, width, channels, kernel, stride, padding.
    let cases = [
        (4, 4, 3, 2, 2, 0),
        (5, 7, 4, 2, 2, 0),
        (9, 8, 5, 3, 2, 1),
        (6, 6, 2, 3, 1, 1),
        (7, 5, 8, 4, 3, 2),
        (3, 3, 1, 3, 3, 0),
    ];
    for element in ELEMENTS {
        for (height, width, channels, kernel, stride, padding) in cases {
            let images = 3;
            let dims = [images, height, width, channels];
            // Levels, so that many maxima are equal.
            let x: Vec<f32> = noise(dims.iter().product(), 1).into_iter().map(|value| (value * 4.).round()).collect();
            let out = |size: usize| (size + 2 * padding - kernel) / stride + 1;
            let windows = crate::kernels::pooling::Windows {
                height,
                width,
                channels,
                kernel,
                stride,
                padding,
                out_height: out(height),
                out_width: out(width),
            };
            let dy = stored(element, noise(images * windows.out_image(), 2));
            let Some([max, max_back, average, average_back]) = emulated(|queue| {
                let [x, dy] = [&x, &dy].map(|values| queue.stored(element, values));
                let (max, from) = pooling::max(queue, &windows, x.view()).unwrap();
                let max_back = pooling::max_backward(queue, &windows, dy.view(), from.view()).unwrap();
                let average = pooling::average(queue, &windows, x.view()).unwrap();
                let average_back = pooling::average_backward(queue, &windows, dy.view()).unwrap();
                [&max, &max_back, &average, &average_back].map(Array::numbers)
            }) else {
                return;
            };
            let check = |what: &str, pool: &dyn Fn(&Var) -> Result<Var>, found: [&[f32]; 2]| {
                let tape = Tape::new();
                let x = tape.leaf(&tensor(&x, &dims));
                let y = pool(&x).unwrap();
                let seed = tensor(&dy, y.dims());
                let gradients = tape.backward_from(&[(&y, &seed)]).unwrap();
                let what = format!("{what} {kernel} stride {stride} padding {padding} of {dims:?} {element:?}");
                assert_close(&what, found[0], &values(y.tensor()), tolerance(element));
                assert_close(&what, found[1], &values(gradients.get(&x).unwrap()), tolerance(element));
            };
            check("max", &|x| x.max_pool2d(kernel, stride, padding), [&max, &max_back]);
            check("average", &|x| x.avg_pool2d(kernel, stride, padding), [&average, &average_back]);
        }
    }
}

#[test]
fn global_average_pooling_is_that_of_the_cpu_forward_and_backward() {
    for element in ELEMENTS {
        for dims in [[1, 1, 1, 1], [3, 4, 4, 32], [5, 7, 3, 13]] {
            let [images, height, width, channels] = dims;
            let pixels = height * width;
            let (x, dy) =
                (stored(element, noise(dims.iter().product(), 1)), stored(element, noise(images * channels, 2)));
            let Some([found, back]) = emulated(|queue| {
                let [x, dy] = [&x, &dy].map(|values| queue.stored(element, values));
                let y = pooling::global_average(queue, x.view(), pixels, channels).unwrap();
                let dx = pooling::global_average_backward(queue, dy.view(), pixels, channels).unwrap();
                [&y, &dx].map(Array::numbers)
            }) else {
                return;
            };
            let tape = Tape::new();
            let x = tape.leaf(&tensor(&x, &dims));
            let y = x.global_average_pool().unwrap();
            let gradients = tape.backward_from(&[(&y, &tensor(&dy, &[images, channels]))]).unwrap();
            assert_close("global average", &found, &values(y.tensor()), tolerance(element));
            assert_close("its gradient", &back, &values(gradients.get(&x).unwrap()), tolerance(element));
        }
    }
}

#[test]
fn cross_entropy_is_that_of_the_cpu_forward_and_backward() {
    for (rows, classes) in [(1, 1), (7, 3), (128, 10), (300, 43)] {
        for label_smoothing in [0., 0.1] {
            let logits: Vec<f32> = noise(rows * classes, 1).into_iter().map(|value| value * 50.).collect();
            let labels: Vec<u32> = (0..rows).map(|row| (row * 5 % classes) as u32).collect();
            let dlosses = noise(rows, 2);
            let Some([mean, losses, of_mean, of_rows]) = emulated(|queue| {
                let (logits, labels) = (queue.f32(&logits), queue.array(Stored::U32, &labels));
                let (logits, labels) = (logits.view(), labels.view());
                let losses = loss::cross_entropy(queue, logits, labels, label_smoothing).unwrap();
                let [gradient, gradients] = [&[0.7][..], &dlosses].map(|values| queue.f32(values));
                let backward = |gradient, of_mean| {
                    loss::cross_entropy_backward(queue, gradient, of_mean, logits, labels, label_smoothing).unwrap()
                };
                let (of_mean, of_rows) = (backward(gradient.view(), true), backward(gradients.view(), false));
                [&losses.mean, &losses.rows, &of_mean, &of_rows].map(Array::numbers)
            }) else {
                return;
            };
            let labels = Tensor::new(labels.as_slice(), &Device::Cpu).unwrap();
            let options = CrossEntropy { label_smoothing };
            let check = |seed: Tensor, found: [&[f32]; 2]| {
                let tape = Tape::new();
                let x = tape.leaf(&tensor(&logits, &[rows, classes]));
                let loss = match seed.rank() {
                    0 => x.cross_entropy(&labels, options).unwrap(),
                    _ => x.cross_entropy_per_sample(&labels, options).unwrap(),
                };
                let gradients = tape.backward_from(&[(&loss, &seed)]).unwrap();
                assert_close("loss", found[0], &values(loss.tensor()), 2e-6);
                assert_close("its gradient", found[1], &values(gradients.get(&x).unwrap()), 2e-6);
            };
            check(Tensor::new(0.7f32, &Device::Cpu).unwrap(), [&mean, &of_mean]);
            check(tensor(&dlosses, &[rows]), [&losses, &of_rows]);
        }
    }
}

#[test]
fn the_loss_of_a_label_that_is_no_class_is_not_a_number() {
    let Some(losses) = emulated(|queue| {
        let (logits, labels) = (queue.f32(&[1., 2., 3., 4.]), queue.array(Stored::U32, &[1u32, 2]));
        let losses = loss::cross_entropy(queue, logits.view(), labels.view(), 0.).unwrap();
        [&losses.rows, &losses.mean].map(|array| array.numbers().iter().map(|loss| loss.is_nan()).collect::<Vec<_>>())
    }) else {
        return;
    };
    assert_eq!(losses, [vec![false, true], vec![true]]);
}

#[test]
fn two_steps_of_sgd_on_several_parameters_are_those_of_the_cpu() {
    let options = Sgd { learning_rate: 0.1, momentum: 0.9, weight_decay: 5e-4 };
    // The last is longer than a row of blocks: a thread takes two of its elements.
    let counts = [1, 255, 1000, 256 * 256 + 3];
    let Some(found) = emulated(|queue| {
        let kept = counts.map(|count| [queue.f32(&noise(count, 3)), queue.f32(&vec![0.; count])]);
        for start in [1, 2] {
            let gradients = counts.map(|count| queue.f32(&noise(count, start)));
            let steps = kept.iter().zip(&gradients);
            let steps =
                steps.map(|([parameter, velocity], gradient)| [parameter, velocity, gradient].map(Memory::view));
            optimizer::sgd(queue, &steps.collect::<Vec<_>>(), [0.1, 0.9, 5e-4], None).unwrap();
        }
        kept.each_ref().map(|kept| kept.each_ref().map(Array::numbers))
    }) else {
        return;
    };
    for (count, [found_parameter, found_velocity]) in counts.into_iter().zip(&found) {
        let (parameter, velocity) = (tensor(&noise(count, 3), &[count]), tensor(&vec![0.; count], &[count]));
        for start in [1, 2] {
            sgd_step(&parameter, &velocity, &tensor(&noise(count, start), &[count]), options).unwrap();
        }
        assert_close("parameter", found_parameter, &values(&parameter), 1e-6);
        assert_close("velocity", found_velocity, &values(&velocity), 1e-6);
    }
}

/// More than one table has room for.
#[test]
fn many_parameters_are_moved_at_the_rate_in_memory_unless_the_loss_there_is_not_finite() {
    let counts: Vec<usize> = (1..=250).collect();
    for loss in [0.7, f32::NAN, f32::NEG_INFINITY] {
        let Some(found) = emulated(|queue| {
            let of = |start| counts.iter().map(|&count| queue.f32(&noise(count, start))).collect::<Vec<_>>();
            let [parameters, velocities, gradients] = [1, 2, 3].map(of);
            let steps = (0..counts.len())
                .map(|index| [&parameters, &velocities, &gradients].map(|arrays| arrays[index].view()))
                .collect::<Vec<_>>();
            let current = [queue.f32(&[0.3]), queue.f32(&[loss])];
            let current = current.each_ref().map(Memory::view);
            optimizer::sgd(queue, &steps, [f32::NAN, 0.9, 5e-4], Some(current)).unwrap();
            parameters.iter().map(Array::numbers).collect::<Vec<_>>()
        }) else {
            return;
        };
        let options = Sgd { learning_rate: f64::from(0.3f32), momentum: 0.9, weight_decay: 5e-4 };
        for (&count, found) in counts.iter().zip(&found) {
            let [parameter, velocity, gradient] = [1, 2, 3].map(|start| tensor(&noise(count, start), &[count]));
            if loss.is_finite() {
                sgd_step(&parameter, &velocity, &gradient, options).unwrap();
            }
            assert_close("parameter", found, &values(&parameter), if loss.is_finite() { 1e-6 } else { 0. });
        }
    }
}

#[test]
fn running_estimates_move_as_on_the_cpu_unless_the_loss_is_not_finite() {
    let counts: Vec<usize> = (1..=125).chain([512]).collect();
    for loss in [None, Some(2.), Some(f32::NAN), Some(f32::INFINITY)] {
        let Some(found) = emulated(|queue| {
            let pairs = counts.iter().map(|&count| [1, 2].map(|start| queue.f32(&noise(count, start))));
            let pairs: Vec<_> = pairs.collect();
            let views: Vec<_> = pairs.iter().map(|pair| pair.each_ref().map(Memory::view)).collect();
            let loss = loss.map(|loss| queue.f32(&[loss]));
            optimizer::move_estimates(queue, &views, 0.1, loss.as_ref().map(Memory::view)).unwrap();
            pairs.iter().map(|[estimate, _]| estimate.numbers()).collect::<Vec<_>>()
        }) else {
            return;
        };
        let loss = loss.map(|loss| Tensor::new(loss, &Device::Cpu).unwrap());
        for (&count, found) in counts.iter().zip(&found) {
            let [estimate, met] = [1, 2].map(|start| tensor(&noise(count, start), &[count]));
            move_estimates(&[[&estimate, &met]], 0.1, loss.as_ref()).unwrap();
            assert_close("estimate", found, &values(&estimate), 1e-6);
        }
    }
}

#[test]
fn rows_whose_label_has_the_largest_logit_are_counted_as_on_the_cpu() {
    for (rows, classes) in [(1, 1), (7, 3), (300, 10), (1000, 43)] {
        let mut logits = noise(rows * classes, 4);
        for (index, logit) in logits.iter_mut().enumerate() {
            *logit = match index % 29 {
                0 => f32::NAN,
                // Equals.
                1..7 => 0.5,
                _ => *logit,
            };
        }
        let expected = predicted_classes(&tensor(&logits, &[rows, classes])).unwrap();
        let labels: Vec<u32> = expected.iter().enumerate().map(|(row, &class)| class + (row % 3 == 0) as u32).collect();
        let Some(found) = emulated(|queue| {
            let (logits, labels) = (queue.f32(&logits), queue.array(Stored::U32, &labels));
            loss::count_correct(queue, logits.view(), labels.view()).unwrap().numbers()
        }) else {
            return;
        };
        let labels = Tensor::new(labels.as_slice(), &Device::Cpu).unwrap();
        let counted = count_correct(&tensor(&logits, &[rows, classes]), &labels).unwrap();
        assert_eq!(found, [counted.to_scalar::<f32>().unwrap()]);
        assert_eq!(found, [(rows - rows.div_ceil(3)) as f32]);
    }
}

#[test]
fn augmented_images_are_those_of_the_cpu_bit_for_bit() {
    let (height, width, images) = (5, 7, 4);
    let pixels: Vec<u8> = (0..images * height * width * 3).map(|index| (index * 97 % 251) as u8).collect();
    let table: Vec<f32> = (0..3 * 256).map(|index| (index as f32).sin()).collect();
    let indices = [3u32, 0, 2, 2, 1];
    let placements = [[0, 0, 0], [2, -3, 1], [-4, 4, 0], [9, 0, 1], [-1, -2, 1]];
    let Some(found) = emulated(|queue| {
        let flat: Vec<i32> = placements.iter().flatten().copied().collect();
        let (pixels, indices) = (queue.array(Stored::U8, &pixels), queue.array(Stored::U32, &indices));
        let (placements, table) = (queue.array(Stored::I32, &flat), queue.f32(&table));
        let views = [pixels.view(), indices.view(), placements.view(), table.view()];
        augmentation::augment(queue, views, [height, width]).unwrap().read::<u32>()
    }) else {
        return;
    };
    let expected = crate::kernels::augmentation::augment(&pixels, &indices, &placements, &table, [height, width]);
    assert_eq!(found, expected.into_iter().map(f32::to_bits).collect::<Vec<_>>());
}

#[test]
fn the_emulator_refuses_what_no_kernel_takes() {
    let Some([queue, _]) = Emulator::both() else { return };
    let (x, y) = (queue.f32(&[1., 2.]), queue.f32(&[0., 0.]));
    let launch = |kernel: &str, arguments: &[Argument]| {
        // SAFETY: the arrays have two elements, and so has the only launch that is not refused.
        let refused = unsafe { queue.launch(kernel, [1, 1], arguments) };
        refused.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let (read, write) = (Argument::Read(x.view()), Argument::Write(y.view()));
    assert_eq!(launch("relu_f32x1", &[read, write, Argument::Natural(2)]), "");
    assert_eq!(y.numbers(), [1., 2.]);
    assert!(launch("relu", &[read, write, Argument::Natural(2)]).contains("no such kernel"));
    assert!(launch("relu_f32x1", &[read, write]).contains("3 arguments, not 2"));
    assert!(launch("relu_f32x1", &[read, write, Argument::Integer(2)]).contains("unsigned expected"));
    assert!(launch("relu_f32x1", &[read, read, Argument::Natural(2)]).contains("does not fit"));
    assert!(launch("relu_bf16x1", &[read, write, Argument::Natural(2)]).contains("does not fit"));
}
