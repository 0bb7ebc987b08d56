//! Matrix products on one thread, and the linear layer built of them.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::{Element, assume_written, written};

/// A matrix inside a slice: element `(row, column)` is `values[row * row_stride + column * column_stride]`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    pub values: &'a [T],
    pub row_stride: usize,
    pub column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Rows one after the other.
    pub fn rows(values: &'a [T], columns: usize) -> Self {
        Self { values, row_stride: columns, column_stride: 1 }
    }

    /// The transpose of a matrix that lies in rows of `rows` elements.
    pub fn transposed(values: &'a [T], rows: usize) -> Self {
        Self { values, row_stride: 1, column_stride: rows }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        (rows - 1) * self.row_stride + (columns - 1) * self.column_stride < self.values.len()
    }
}

/// `output = a · b`, with `a: [m, k]`, `b: [k, n]`, `output: [m, n]` in rows. Writes all of `output`.
pub(super) fn product<T: Element>([m, n, k]: [usize; 3], a: Matrix<T>, b: Matrix<T>, output: &mut [MaybeUninit<T>]) {
    run([m, n, k], a, b, output, false);
}

/// `output += a · b`, with `a: [m, k]`, `b: [k, n]`, `output: [m, n]` in rows.
pub(super) fn add_product<T: Element>([m, n, k]: [usize; 3], a: Matrix<T>, b: Matrix<T>, output: &mut [T]) {
    // SAFETY: `MaybeUninit<T>` has the layout of `T`, and `run` only writes initialised values.
    let output = unsafe { &mut *(std::ptr::from_mut(output) as *mut [MaybeUninit<T>]) };
    run([m, n, k], a, b, output, true);
}

fn run<T: Element>([m, n, k]: [usize; 3], a: Matrix<T>, b: Matrix<T>, output: &mut [MaybeUninit<T>], accumulate: bool) {
    assert!(m > 0 && n > 0 && k > 0, "an empty matrix product {m}x{n}x{k}");
    assert!(a.holds(m, k) && b.holds(k, n) && output.len() >= m * n, "matrix product {m}x{n}x{k} out of bounds");
    // SAFETY: the assertions keep every access inside the three slices; `output` is borrowed mutably, so
    // it does not overlap the others. Without `accumulate` the output is not read; with it, the only
    // caller passes initialised memory.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            output.as_mut_ptr().cast::<T>(),
            1,
            n as isize,
            accumulate,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            T::one(),
            T::one(),
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Rows per piece of work in the linear layer.
const ROWS: usize = 64;

/// `x · wᵀ + bias`: `x: [n, inputs]`, `weight: [outputs, inputs]`, result `[n, outputs]`.
pub(crate) fn linear<T: Element>(x: &[T], weight: &[T], bias: Option<&[T]>, inputs: usize, outputs: usize) -> Vec<T> {
    let rows = x.len() / inputs;
    // SAFETY: the chunks cover the output, and each is written whole, by the product or by the bias.
    unsafe {
        written(rows * outputs, |y| {
            y.par_chunks_mut(ROWS * outputs).zip(x.par_chunks(ROWS * inputs)).for_each(|(y, x)| {
                let size = [x.len() / inputs, outputs, inputs];
                let (x, weight) = (Matrix::rows(x, inputs), Matrix::transposed(weight, inputs));
                match bias {
                    None => product(size, x, weight, y),
                    Some(bias) => {
                        for row in y.chunks_exact_mut(outputs) {
                            row.write_copy_of_slice(bias);
                        }
                        // The line above has written all of `y`.
                        add_product(size, x, weight, assume_written(y));
                    }
                }
            });
        })
    }
}

/// The gradient of [`linear`] with respect to `x`: `dy · w`.
pub(crate) fn linear_backward_input<T: Element>(dy: &[T], weight: &[T], inputs: usize, outputs: usize) -> Vec<T> {
    let rows = dy.len() / outputs;
    // SAFETY: the chunks cover the output, and each is written whole by its product.
    unsafe {
        written(rows * inputs, |dx| {
            dx.par_chunks_mut(ROWS * inputs).zip(dy.par_chunks(ROWS * outputs)).for_each(|(dx, dy)| {
                let size = [dy.len() / outputs, inputs, outputs];
                product(size, Matrix::rows(dy, outputs), Matrix::rows(weight, inputs), dx);
            });
        })
    }
}

/// The gradient of [`linear`] with respect to the weight: `dyᵀ · x`.
pub(crate) fn linear_backward_weight<T: Element>(x: &[T], dy: &[T], inputs: usize, outputs: usize) -> Vec<T> {
    let rows = x.len() / inputs;
    // SAFETY: the chunks cover the output, and each is written whole by its product.
    unsafe {
        written(outputs * inputs, |dw| {
            dw.par_chunks_mut(ROWS * inputs).enumerate().for_each(|(piece, dw)| {
                let size = [dw.len() / inputs, inputs, rows];
                product(size, Matrix::transposed(&dy[piece * ROWS..], outputs), Matrix::rows(x, inputs), dw);
            });
        })
    }
}
