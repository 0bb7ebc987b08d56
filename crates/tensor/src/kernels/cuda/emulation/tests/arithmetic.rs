//! What is computed element by element or summed, and the steps of Adam.

use super::super::super::{View, elementwise, loss, normalization, optimizer, rows};
use super::*;
use crate::kernels::elementwise::AdamCoefficients;
use crate::{Adam, adam_step, amsgrad_step};

/// Less than a pack, whole packs, an odd number, several blocks.
const COUNTS: [usize; 5] = [1, 3, 64, 515, 8 * 1024];

/// The value of `function` and the gradients of its inputs, for `dy`, rounded to what is stored.
fn on_the_cpu(
    element: Stored,
    inputs: &[(&[f32], &[usize])],
    dy: &[f32],
    function: impl Fn(&[Var]) -> Result<Var>,
) -> Vec<Vec<f32>> {
    let tape = Tape::new();
    let leaves: Vec<Var> = inputs.iter().map(|(values, dims)| tape.leaf(&tensor(values, dims))).collect();
    let y = function(&leaves).unwrap();
    let seed = tensor(dy, y.dims());
    let gradients = tape.backward_from(&[(&y, &seed)]).unwrap();
    let all = std::iter::once(y.tensor()).chain(leaves.iter().map(|leaf| gradients.get(leaf).unwrap()));
    all.map(|tensor| stored(element, values(tensor))).collect()
}

/// A kernel of one array, and one of two.
type One = fn(&Emulator, View) -> Result<Array>;
type Two = fn(&Emulator, View, View) -> Result<Array>;
/// The loops that they are compared with.
type LoopOverOne = fn(&[f32]) -> Vec<f32>;
type LoopOverTwo = fn(&[f32], &[f32]) -> Vec<f32>;
/// Those of a function and of its gradient.
type Loops = (LoopOverOne, LoopOverTwo);

#[test]
fn functions_of_one_tensor_are_those_of_the_cpu_forward_and_backward() {
    use crate::kernels::{elementwise as cpu, sigmoid};
    // Whether the backward kernel takes the function's result, in place of its argument.
    let cases: [(&str, One, Two, bool, Loops); 5] = [
        (
            "sqrt",
            elementwise::square_root,
            elementwise::square_root_backward,
            true,
            (cpu::square_root, cpu::square_root_backward),
        ),
        ("abs", elementwise::absolute, elementwise::absolute_backward, false, (cpu::absolute, cpu::absolute_backward)),
        ("relu", elementwise::relu, elementwise::relu_backward, false, (cpu::relu, cpu::relu_backward)),
        (
            "sigmoid",
            elementwise::sigmoid,
            elementwise::sigmoid_backward,
            true,
            (sigmoid::sigmoid, cpu::sigmoid_backward),
        ),
        ("tanh", elementwise::tanh, elementwise::tanh_backward, true, (sigmoid::tanh, cpu::tanh_backward)),
    ];
    for element in ELEMENTS {
        for count in COUNTS {
            for (what, forward, backward, of_result, (expected, expected_backward)) in cases {
                let positive = |value: f32| if what == "sqrt" { value.abs() + 0.1 } else { value * 6. };
                let x = stored(element, noise(count, 1).into_iter().map(positive).collect());
                let dy = stored(element, noise(count, 2));
                let Some([y, dx]) = emulated(|queue| {
                    let [x, dy] = [&x, &dy].map(|values| queue.stored(element, values));
                    let y = forward(queue, x.view()).unwrap();
                    let seen = if of_result { y.view() } else { x.view() };
                    let dx = backward(queue, dy.view(), seen).unwrap();
                    [&y, &dx].map(Array::numbers)
                }) else {
                    return;
                };
                assert_close(what, &y, &expected(&x), tolerance(element));
                let seen = if of_result { &y } else { &x };
                assert_close(what, &dx, &expected_backward(&dy, seen), tolerance(element));
            }
        }
    }
}

#[test]
fn functions_of_two_tensors_and_of_numbers_have_the_bits_of_the_cpu() {
    type Function = fn(&Var, &Var) -> Result<Var>;
    let cases: [(&str, Two, Function); 4] = [
        ("add", elementwise::add, Var::add),
        ("sub", elementwise::subtract, Var::sub),
        ("mul", elementwise::multiply, Var::mul),
        ("div", elementwise::divide, Var::div),
    ];
    for element in ELEMENTS {
        for count in COUNTS {
            let [a, b] = [1, 2].map(|start| stored(element, noise(count, start)));
            let constants = [&a, &b].map(|values| Var::constant(tensor(values, &[count])));
            for (what, kernel, function) in cases {
                let Some(found) = emulated(|queue| {
                    let [a, b] = [&a, &b].map(|values| queue.stored(element, values));
                    kernel(queue, a.view(), b.view()).unwrap().numbers()
                }) else {
                    return;
                };
                let expected = function(&constants[0], &constants[1]).unwrap();
                assert_eq!(found, stored(element, values(expected.tensor())), "{what} {element:?} {count}");
            }
            let Some([scaled, moved]) = emulated(|queue| {
                let a = queue.stored(element, &a);
                let results = [elementwise::scale(queue, a.view(), 0.3), elementwise::offset(queue, a.view(), -1.7)];
                results.map(|result| result.unwrap().numbers())
            }) else {
                return;
            };
            let expected = [constants[0].scale(0.3), constants[0].offset(-1.7)];
            let [by, plus] = expected.map(|result| stored(element, values(result.unwrap().tensor())));
            assert_eq!([scaled, moved], [by, plus], "{element:?} {count}");
        }
    }
}

#[test]
fn ends_of_the_range_zeros_and_what_is_not_a_number_give_what_they_give_on_the_cpu() {
    const EDGES: [f32; 10] =
        [f32::NAN, f32::NEG_INFINITY, f32::INFINITY, 0., -0., f32::MAX, f32::MIN, 1e-40, -100., 100.];
    let pairs: Vec<[f32; 2]> = EDGES.iter().flat_map(|&a| EDGES.map(|b| [a, b])).collect();
    let [a, b] = [0, 1].map(|side| pairs.iter().map(|pair| pair[side]).collect::<Vec<f32>>());
    let same = |what: &str, found: &[f32], expected: &[f32]| {
        for ((found, expected), pair) in found.iter().zip(expected).zip(&pairs) {
            let equal = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
            // Of the functions that are not correctly rounded.
            let near = (found - expected).abs() <= 4e-7 * expected.abs() + f32::from_bits(1);
            assert!(equal || near, "{what} of {pair:?}: {found}, expected {expected}");
        }
    };
    let twos: [(&str, Two, LoopOverTwo); 9] = {
        use crate::kernels::elementwise as cpu;
        [
            ("add", elementwise::add, cpu::add),
            ("subtract", elementwise::subtract, cpu::subtract),
            ("multiply", elementwise::multiply, cpu::multiply),
            ("divide", elementwise::divide, cpu::divide),
            ("square_root_backward", elementwise::square_root_backward, cpu::square_root_backward),
            ("absolute_backward", elementwise::absolute_backward, cpu::absolute_backward),
            ("relu_backward", elementwise::relu_backward, cpu::relu_backward),
            ("sigmoid_backward", elementwise::sigmoid_backward, cpu::sigmoid_backward),
            ("tanh_backward", elementwise::tanh_backward, cpu::tanh_backward),
        ]
    };
    for (what, kernel, expected) in twos {
        let run = |queue: &Emulator| {
            let result = kernel(queue, queue.f32(&a).view(), queue.f32(&b).view()).unwrap();
            result.read::<f32>().into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let Some(found) = emulated(run) else { return };
        same(what, &found.into_iter().map(f32::from_bits).collect::<Vec<_>>(), &expected(&a, &b));
    }
    let ones: [(&str, One, LoopOverOne); 5] = [
        ("square_root", elementwise::square_root, crate::kernels::elementwise::square_root),
        ("absolute", elementwise::absolute, crate::kernels::elementwise::absolute),
        ("relu", elementwise::relu, crate::kernels::elementwise::relu),
        ("sigmoid", elementwise::sigmoid, crate::kernels::sigmoid::sigmoid),
        ("tanh", elementwise::tanh, crate::kernels::sigmoid::tanh),
    ];
    for (what, kernel, expected) in ones {
        let run = |queue: &Emulator| {
            let result = kernel(queue, queue.f32(&a).view()).unwrap();
            result.read::<f32>().into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let Some(found) = emulated(run) else { return };
        same(what, &found.into_iter().map(f32::from_bits).collect::<Vec<_>>(), &expected(&a));
    }
}

#[test]
fn sums_of_everything_are_those_of_the_cpu_and_spread_back() {
    // One piece, several, the last of them a part.
    for element in ELEMENTS {
        for count in [1, 5, 4096, 4100, 10_001, 40_000] {
            let x = stored(element, noise(count, 1).into_iter().map(|value| value + 0.1).collect());
            let Some([sum, mean, spread]) = emulated(|queue| {
                let x = queue.stored(element, &x);
                let (sum, mean) = (rows::total(queue, x.view(), 1.), rows::total(queue, x.view(), 1. / count as f64));
                let gradient = queue.stored(element, &[0.75]);
                let spread = rows::filled(queue, gradient.view(), count, 1. / count as f32);
                [sum, mean, spread].map(|result| result.unwrap().numbers())
            }) else {
                return;
            };
            let sums = on_the_cpu(Stored::F32, &[(&x, &[count])], &[0.75], |x| x[0].sum());
            assert_close("sum", &sum, &sums[0], 1e-6);
            let means = on_the_cpu(Stored::F32, &[(&x, &[count])], &[0.75], |x| x[0].mean());
            assert_close("mean", &mean, &means[0], 1e-6);
            assert_eq!(spread, stored(element, means[1].clone()), "{count}");
        }
    }
}

#[test]
fn rows_are_summed_filled_and_divided_by_their_norms_as_on_the_cpu() {
    for element in ELEMENTS {
        for (count, columns) in ROWS.into_iter().chain([(300, 2), (3, 5000)]) {
            let dims = [count, columns];
            let mut x = stored(element, noise(count * columns, 1));
            // A row without a direction.
            x[..columns].fill(0.);
            let (dy, drow) = (stored(element, noise(count * columns, 2)), stored(element, noise(count, 3)));
            let Some([means, filled, directions, back]) = emulated(|queue| {
                let [x, dy, drow] = [&x, &dy, &drow].map(|values| queue.stored(element, values));
                let results = [
                    rows::sums(queue, x.view(), columns, 1. / columns as f64),
                    rows::filled(queue, drow.view(), columns, 1. / columns as f32),
                    rows::normalized(queue, x.view(), columns, 1e-3),
                    rows::normalized_backward(queue, dy.view(), x.view(), columns, 1e-3),
                ];
                results.map(|result| result.unwrap().numbers())
            }) else {
                return;
            };
            let expected = on_the_cpu(element, &[(&x, &dims)], &drow, |x| x[0].mean_per_sample());
            assert_close("means", &means, &expected[0], tolerance(element));
            assert_eq!(filled, expected[1], "{dims:?}");
            let expected = on_the_cpu(element, &[(&x, &dims)], &dy, |x| x[0].divide_by_norm(1e-3));
            assert_close("directions", &directions, &expected[0], tolerance(element));
            assert_close("their gradients", &back, &expected[1], tolerance(element));
        }
    }
}

#[test]
fn a_repeated_row_and_its_gradient_are_those_of_the_cpu() {
    for element in ELEMENTS {
        for (times, columns) in ROWS {
            let (x, dy) = (stored(element, noise(columns, 1)), stored(element, noise(times * columns, 2)));
            let Some([y, dx]) = emulated(|queue| {
                let [x, dy] = [&x, &dy].map(|values| queue.stored(element, values));
                let y = rows::repeated(queue, x.view(), times).unwrap();
                let dx = elementwise::column_sums(queue, dy.view(), columns).unwrap();
                [&y, &dx].map(Array::numbers)
            }) else {
                return;
            };
            let expected = on_the_cpu(Stored::F32, &[(&x, &[1, columns])], &dy, |x| x[0].broadcast_batch(times));
            assert_eq!(y, expected[0]);
            assert_close("dx", &dx, &expected[1], 2e-5);
        }
    }
}

#[test]
fn products_and_multiples_per_channel_are_those_of_the_cpu() {
    for element in ELEMENTS {
        for (count, channels) in ROWS {
            let dims = [count, channels];
            let [a, b] = [1, 2].map(|start| stored(element, noise(count * channels, start)));
            let [scale, shift] = [3, 4].map(|start| stored(element, noise(channels, start)));
            let Some([products, scaled, shifted]) = emulated(|queue| {
                let [a, b] = [&a, &b].map(|values| queue.stored(element, values));
                let [scale, shift] = [&scale, &shift].map(|values| queue.f32(values));
                let results = [
                    elementwise::column_products(queue, a.view(), b.view(), channels),
                    normalization::apply(queue, a.view(), scale.view(), None, false),
                    normalization::apply(queue, a.view(), scale.view(), Some(shift.view()), false),
                ];
                results.map(|result| result.unwrap().numbers())
            }) else {
                return;
            };
            let [a, b] = [&a, &b].map(|values| Var::constant(tensor(values, &dims)));
            let [scale, shift] = [&scale, &shift].map(|values| Var::constant(tensor(values, &[channels])));
            let expected = a.channel_products(&b).unwrap();
            assert_close("products", &products, &values(expected.tensor()), 2e-5);
            for (found, shift) in [(scaled, None), (shifted, Some(&shift))] {
                let expected = a.scale_channels(&scale, shift).unwrap();
                assert_close("scaled", &found, &values(expected.tensor()), tolerance(element));
            }
        }
    }
}

#[test]
fn cross_entropy_of_bits_is_that_of_the_cpu_forward_and_backward() {
    for count in [1, 100, 5000] {
        let logits: Vec<f32> = noise(count, 1).into_iter().map(|value| value * 40.).collect();
        // The ends, and what lies between.
        let targets: Vec<f32> =
            noise(count, 2).into_iter().map(|value| (value * 3.).clamp(-1., 1.) / 2. + 0.5).collect();
        let Some([mean, dlogits]) = emulated(|queue| {
            let [logits, targets, gradient] = [&logits[..], &targets, &[0.7]].map(|values| queue.f32(values));
            let mean = loss::binary_cross_entropy(queue, logits.view(), targets.view()).unwrap();
            let dlogits =
                loss::binary_cross_entropy_backward(queue, gradient.view(), logits.view(), targets.view()).unwrap();
            [&mean, &dlogits].map(Array::numbers)
        }) else {
            return;
        };
        let expected = on_the_cpu(Stored::F32, &[(&logits, &[count])], &[0.7], |x| {
            x[0].binary_cross_entropy(&tensor(&targets, &[count]))
        });
        assert_close("loss", &mean, &expected[0], 1e-6);
        assert_close("its gradient", &dlogits, &expected[1], 1e-6);
    }
}

#[test]
fn the_loss_of_a_target_that_is_no_probability_is_not_a_number() {
    for wrong in [-0.1, 1.1, f32::NAN] {
        let Some(mean) = emulated(|queue| {
            let (logits, targets) = (queue.f32(&[1., 2.]), queue.f32(&[0.5, wrong]));
            loss::binary_cross_entropy(queue, logits.view(), targets.view()).unwrap().numbers()[0].is_nan()
        }) else {
            return;
        };
        assert!(mean, "{wrong}");
    }
}

#[test]
fn three_steps_of_adam_and_of_amsgrad_are_those_of_the_cpu() {
    const OPTIONS: Adam = Adam { learning_rate: 0.1, betas: [0.5, 0.9], epsilon: 1e-7 };
    for count in [1, 255, 1000] {
        // The second one is the largest, so that its moment has to be remembered.
        let gradients = [1f32, 5., 0.1]
            .map(|factor| noise(count, factor as usize).into_iter().map(|value| value * factor).collect::<Vec<f32>>());
        for keeps_largest in [false, true] {
            let Some(found) = emulated(|queue| {
                let parameter = queue.f32(&noise(count, 3));
                let [first, second, largest] = [(); 3].map(|()| queue.f32(&vec![0.; count]));
                for (step, gradient) in (1..).zip(&gradients) {
                    let gradient = queue.f32(gradient);
                    let largest = keeps_largest.then(|| largest.view());
                    let moments = [first.view(), second.view()];
                    let coefficients = AdamCoefficients::<f32>::of_step(step, OPTIONS);
                    optimizer::adam(queue, parameter.view(), moments, largest, gradient.view(), coefficients).unwrap();
                }
                [&parameter, &first, &second, &largest].map(Array::numbers)
            }) else {
                return;
            };
            let parameter = tensor(&noise(count, 3), &[count]);
            let [first, second, largest] = [(); 3].map(|()| tensor(&vec![0.; count], &[count]));
            for (step, gradient) in (1..).zip(&gradients) {
                let gradient = tensor(gradient, &[count]);
                if keeps_largest {
                    amsgrad_step(&parameter, &first, &second, &largest, &gradient, step, OPTIONS).unwrap();
                } else {
                    adam_step(&parameter, &first, &second, &gradient, step, OPTIONS).unwrap();
                }
            }
            for (found, expected) in found.iter().zip([&parameter, &first, &second, &largest]) {
                assert_close("adam", found, &values(expected), 1e-6);
            }
        }
    }
}
