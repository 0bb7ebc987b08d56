//! What is copied to other places: bit for bit, but for the sums of a gradient.

use super::super::super::places;
use super::*;
use crate::kernels::places::Frame;

#[test]
fn channels_put_side_by_side_and_taken_apart_are_those_of_the_cpu() {
    for element in ELEMENTS {
        for (rows, widths) in [(1, &[1][..]), (7, &[3, 5]), (100, &[8, 16, 8]), (9, &[4, 3, 500]), (30, &[64, 64])] {
            let parts: Vec<Vec<f32>> =
                widths.iter().enumerate().map(|(start, width)| stored(element, noise(rows * width, start))).collect();
            let all = widths.iter().sum::<usize>();
            let Some((joined, taken)) = emulated(|queue| {
                let arrays: Vec<Array> = parts.iter().map(|part| queue.stored(element, part)).collect();
                let matrices: Vec<_> = arrays.iter().map(Memory::view).zip(widths.iter().copied()).collect();
                let joined = places::join_columns(queue, &matrices).unwrap();
                let mut start = 0;
                let mut taken = vec![];
                for &width in widths {
                    taken.push(places::take_columns(queue, joined.view(), all, start, width).unwrap().numbers());
                    start += width;
                }
                (joined.numbers(), taken)
            }) else {
                return;
            };
            let constants: Vec<Var> =
                parts.iter().zip(widths).map(|(part, &width)| Var::constant(tensor(part, &[rows, width]))).collect();
            let expected = Var::concat_channels(&constants.iter().collect::<Vec<_>>()).unwrap();
            assert_eq!(joined, values(expected.tensor()), "{widths:?}");
            assert_eq!(taken, parts, "{widths:?}");
        }
    }
}

#[test]
fn repeated_pixels_and_their_gradients_are_those_of_the_cpu() {
    for element in ELEMENTS {
        for (image, factor) in [([1, 1, 1], 1), ([3, 4, 3], 2), ([5, 2, 8], 3), ([4, 4, 16], 2)] {
            let [height, width, channels] = image;
            let dims = [2, height, width, channels];
            let large = [2, height * factor, width * factor, channels];
            let x = stored(element, noise(dims.iter().product(), 1));
            let dy = stored(element, noise(large.iter().product(), 2));
            let Some([y, dx]) = emulated(|queue| {
                let [x, dy] = [&x, &dy].map(|values| queue.stored(element, values));
                let y = places::repeat_pixels(queue, x.view(), image, factor).unwrap();
                let dx = places::repeat_pixels_backward(queue, dy.view(), image, factor).unwrap();
                [&y, &dx].map(Array::numbers)
            }) else {
                return;
            };
            let tape = Tape::new();
            let x = tape.leaf(&tensor(&x, &dims));
            let expected = x.upsample_nearest(factor).unwrap();
            let gradients = tape.backward_from(&[(&expected, &tensor(&dy, &large))]).unwrap();
            assert_eq!(y, values(expected.tensor()), "{image:?} {factor}");
            assert_close("dx", &dx, &values(gradients.get(&x).unwrap()), tolerance(element));
        }
    }
}

#[test]
fn framed_images_and_what_lies_within_the_frame_are_those_of_the_cpu() {
    for element in ELEMENTS {
        for (inner, border) in [([1, 1, 1], [0; 4]), ([3, 4, 3], [1, 0, 2, 5]), ([5, 2, 8], [0, 3, 1, 0])] {
            let frame = Frame { inner, border };
            let x = stored(element, noise(3 * inner.iter().product::<usize>(), 1));
            let Some([framed, back]) = emulated(|queue| {
                let x = queue.stored(element, &x);
                let framed = places::pad(queue, x.view(), frame).unwrap();
                let back = places::cut(queue, framed.view(), frame).unwrap();
                [&framed, &back].map(Array::numbers)
            }) else {
                return;
            };
            let dims = [3, inner[0], inner[1], inner[2]];
            let expected = Var::constant(tensor(&x, &dims)).pad_zeros(border).unwrap();
            assert_eq!(framed, values(expected.tensor()), "{frame:?}");
            assert_eq!(back, x, "{frame:?}");
        }
    }
}
