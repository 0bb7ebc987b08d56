//! Sums, products, roots and shapes. Shapes must be equal: nothing is broadcast.

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};
use crate::kernels::elementwise;
use crate::operand::{Operand, by_element, exact, on_gpu, tensor};
use crate::tangent::sum_of;
use crate::tape::{Backward, Var};

/// A function of one tensor, or of one and a number: the loop of this module of [`crate::kernels`], on a GPU the kernel of
/// the same name.
macro_rules! of_one {
    ($name:ident($argument:literal $(, $number:ident)?), $operation:literal, $module:ident::$kernel:ident) => {
        fn $name(x: &Tensor $(, $number: f64)?) -> Result<Tensor> {
            on_gpu!(x, gpu => crate::ops::cuda::from_one(&gpu, $operation, ($argument, x), x.dims(), |x| {
                crate::kernels::cuda::elementwise::$kernel(&gpu, x $(, $number as f32)?)
            }));
            by_element!($operation, $argument, x, T => {
                let values = Operand::<T>::read($operation, $argument, x)?;
                tensor(crate::kernels::$module::$kernel(&values $(, $number as T)?), x.dims())
            })
        }
    };
}
pub(super) use of_one;

/// The same of two tensors, of equal shapes.
macro_rules! of_two {
    ($visibility:vis $name:ident($first:literal, $second:literal), $operation:literal, $kernel:ident) => {
        $visibility fn $name(a: &Tensor, b: &Tensor) -> Result<Tensor> {
            on_gpu!(a, gpu => crate::ops::cuda::from_two(&gpu, $operation, [($first, a), ($second, b)], |a, b| {
                crate::kernels::cuda::elementwise::$kernel(&gpu, a, b)
            }));
            exact($operation, $second, b, a.dims(), "the shape of the first operand")?;
            by_element!($operation, $first, a, T => {
                let (x, y) = (Operand::<T>::read($operation, $first, a)?, Operand::<T>::read($operation, $second, b)?);
                tensor(crate::kernels::elementwise::$kernel(&x, &y), a.dims())
            })
        }
    };
}
pub(super) use of_two;

of_two!(pub(crate) add_tensors("self", "other"), "add", add);
of_two!(subtract_tensors("self", "other"), "sub", subtract);
of_two!(multiply_tensors("self", "other"), "mul", multiply);
of_two!(divide_tensors("self", "other"), "div", divide);
of_two!(square_root_backward("dy", "y"), "sqrt backward", square_root_backward);
of_two!(absolute_backward("dy", "x"), "abs backward", absolute_backward);
of_one!(scale_tensor("self", factor), "scale", elementwise::scale);
of_one!(offset_tensor("self", term), "offset", elementwise::offset);
of_one!(square_root("self"), "sqrt", elementwise::square_root);
of_one!(absolute("self"), "abs", elementwise::absolute);

impl Var {
    /// The same numbers in another element type; their gradient comes back in the type that they have now.
    pub fn to_dtype(&self, dtype: DType) -> Result<Var> {
        let (node, before) = (self.node(), self.tensor().dtype());
        let backward = || -> Backward {
            Box::new(move |gradient, flow| node.map_or(Ok(()), |node| flow.add(node, gradient.to_dtype(before)?)))
        };
        Var::computed_with_tangent("to_dtype", self.tensor().to_dtype(dtype)?, &[self], backward, || {
            self.tangent().map(|tangent| tangent.to_dtype(dtype)).transpose()
        })
    }

    /// `self + other`, of equal shape.
    pub fn add(&self, other: &Var) -> Result<Var> {
        let sum = add_tensors(self.tensor(), other.tensor())?;
        let nodes = (self.node(), other.node());
        let backward = || -> Backward {
            Box::new(move |gradient, flow| {
                if let Some(node) = nodes.0 {
                    flow.add(node, gradient.clone())?;
                }
                nodes.1.map_or(Ok(()), |node| flow.add(node, gradient))
            })
        };
        let terms = || sum_of([self, other].map(|term| term.tangent().cloned().map(Ok)));
        Var::computed_with_tangent("add", sum, &[self, other], backward, terms)
    }

    /// `self - other`, of equal shape.
    pub fn sub(&self, other: &Var) -> Result<Var> {
        let difference = subtract_tensors(self.tensor(), other.tensor())?;
        let nodes = (self.node(), other.node());
        let backward = || -> Backward {
            Box::new(move |gradient, flow| {
                if let Some(node) = nodes.1 {
                    flow.add(node, scale_tensor(&gradient, -1.)?)?;
                }
                nodes.0.map_or(Ok(()), |node| flow.add(node, gradient))
            })
        };
        Var::computed_with_tangent("sub", difference, &[self, other], backward, || {
            match (self.tangent(), other.tangent()) {
                (own, None) => Ok(own.cloned()),
                (None, Some(other)) => other.scale(-1.).map(Some),
                (Some(own), Some(other)) => own.sub(other).map(Some),
            }
        })
    }

    /// `self · other`, element by element, of equal shape.
    pub fn mul(&self, other: &Var) -> Result<Var> {
        let product = multiply_tensors(self.tensor(), other.tensor())?;
        let nodes = (self.node(), other.node());
        let (a, b) = (self.tensor().clone(), other.tensor().clone());
        let backward = || -> Backward {
            Box::new(move |gradient, flow| {
                if let Some(node) = nodes.0 {
                    flow.add(node, multiply_tensors(&gradient, &b)?)?;
                }
                nodes.1.map_or(Ok(()), |node| flow.add(node, multiply_tensors(&gradient, &a)?))
            })
        };
        Var::computed_with_tangent("mul", product, &[self, other], backward, || {
            let (a, b) = (self.primal(), other.primal());
            sum_of([self.tangent().map(|tangent| tangent.mul(&b)), other.tangent().map(|tangent| a.mul(tangent))])
        })
    }

    /// `self / other`, element by element, of equal shape. Division by 0 gives what IEEE 754 says.
    pub fn div(&self, other: &Var) -> Result<Var> {
        let ratio = divide_tensors(self.tensor(), other.tensor())?;
        let nodes = (self.node(), other.node());
        let (kept, divisor) = (ratio.clone(), other.tensor().clone());
        Var::computed("div", ratio, &[self, other], || {
            Box::new(move |gradient, flow| {
                let share = divide_tensors(&gradient, &divisor)?;
                if let Some(node) = nodes.1 {
                    flow.add(node, scale_tensor(&multiply_tensors(&share, &kept)?, -1.)?)?;
                }
                nodes.0.map_or(Ok(()), |node| flow.add(node, share))
            })
        })
    }

    /// The square root of every element; of numbers below 0 it is not a number. The gradient at 0 is infinite.
    pub fn sqrt(&self) -> Result<Var> {
        let root = square_root(self.tensor())?;
        let (node, kept) = (self.node(), root.clone());
        Var::computed("sqrt", root, &[self], || {
            Box::new(move |gradient, flow| match node {
                Some(node) => flow.add(node, square_root_backward(&gradient, &kept)?),
                None => Ok(()),
            })
        })
    }

    /// The absolute value of every element. The gradient at 0 is 0, as in PyTorch.
    pub fn abs(&self) -> Result<Var> {
        Var::computed("abs", absolute(self.tensor())?, &[self], || {
            let (node, x) = (self.node(), self.tensor().clone());
            Box::new(move |gradient, flow| match node {
                Some(node) => flow.add(node, absolute_backward(&gradient, &x)?),
                None => Ok(()),
            })
        })
    }

    /// `self + term`, the same number for every element.
    pub fn offset(&self, term: f64) -> Result<Var> {
        let sum = offset_tensor(self.tensor(), term)?;
        let node = self.node();
        let backward =
            || -> Backward { Box::new(move |gradient, flow| node.map_or(Ok(()), |node| flow.add(node, gradient))) };
        Var::computed_with_tangent("offset", sum, &[self], backward, || Ok(self.tangent().cloned()))
    }

    /// `self · factor`.
    pub fn scale(&self, factor: f64) -> Result<Var> {
        let scaled = scale_tensor(self.tensor(), factor)?;
        let node = self.node();
        let backward = || -> Backward {
            Box::new(move |gradient, flow| node.map_or(Ok(()), |node| flow.add(node, scale_tensor(&gradient, factor)?)))
        };
        Var::computed_with_tangent("scale", scaled, &[self], backward, || {
            self.tangent().map(|tangent| tangent.scale(factor)).transpose()
        })
    }

    /// The sum of all elements, a scalar (shape `[]`).
    pub fn sum(&self) -> Result<Var> {
        self.total("sum", 1.)
    }

    /// The mean of all elements, a scalar (shape `[]`).
    pub fn mean(&self) -> Result<Var> {
        let count = self.tensor().elem_count();
        if count == 0 {
            return Err(Error::shape("mean", "self", "at least one element", self.dims()));
        }
        self.total("mean", 1. / count as f64)
    }

    /// `factor` times the sum of all elements.
    fn total(&self, operation: &'static str, factor: f64) -> Result<Var> {
        let value = total(operation, self.tensor(), factor)?;
        let (node, dims) = (self.node(), self.dims().to_vec());
        let backward = || -> Backward {
            Box::new(move |gradient, flow| {
                node.map_or(Ok(()), |node| flow.add(node, filled(operation, &gradient, factor, &dims)?))
            })
        };
        Var::computed_with_tangent(operation, value, &[self], backward, || {
            self.tangent().map(|tangent| tangent.total(operation, factor)).transpose()
        })
    }

    /// The mean of each element of a batch: `[batch, ...]` to `[batch]`.
    pub fn mean_per_sample(&self) -> Result<Var> {
        const OPERATION: &str = "mean_per_sample";
        let x = self.tensor();
        let count = x.elem_count();
        let Some(&batch) = x.dims().first().filter(|_| count > 0) else {
            return Err(Error::shape(OPERATION, "self", "[batch, ...], none of them zero", x.dims()));
        };
        let size = count / batch;
        let means = row_means(OPERATION, x, size)?;
        let (node, dims) = (self.node(), x.dims().to_vec());
        let backward = || -> Backward {
            Box::new(move |gradient, flow| {
                node.map_or(Ok(()), |node| flow.add(node, filled(OPERATION, &gradient, 1. / size as f64, &dims)?))
            })
        };
        Var::computed_with_tangent(OPERATION, means, &[self], backward, || {
            self.tangent().map(Var::mean_per_sample).transpose()
        })
    }

    /// Each element of a batch divided by its Euclidean norm plus `epsilon`: `[batch, ...]`, a direction for each. An
    /// element of zeros stays so; its norm has no slope, as in PyTorch.
    pub fn divide_by_norm(&self, epsilon: f64) -> Result<Var> {
        const OPERATION: &str = "divide_by_norm";
        let x = self.tensor();
        let count = x.elem_count();
        let Some(&batch) = x.dims().first().filter(|_| count > 0) else {
            return Err(Error::shape(OPERATION, "self", "[batch, ...], none of them zero", x.dims()));
        };
        if !(epsilon > 0. && epsilon.is_finite()) {
            return Err(Error::value(OPERATION, "epsilon", epsilon, "zeros would be divided by 0; use more than 0"));
        }
        let size = count / batch;
        Var::computed(OPERATION, directions(OPERATION, x, size, epsilon)?, &[self], || {
            let (node, x) = (self.node(), x.clone());
            Box::new(move |dy, flow| {
                node.map_or(Ok(()), |node| flow.add(node, directions_backward(OPERATION, &dy, &x, size, epsilon)?))
            })
        })
    }

    /// The same elements in another shape; nothing is moved.
    pub fn reshape(&self, dims: &[usize]) -> Result<Var> {
        const OPERATION: &str = "reshape";
        if dims.iter().product::<usize>() != self.tensor().elem_count() {
            let expected = format!("as many elements as {dims:?}");
            return Err(Error::shape(OPERATION, "self", expected, self.dims()));
        }
        if !self.tensor().is_contiguous() {
            return Err(Error::NotContiguous {
                operation: OPERATION,
                argument: "self",
                dims: self.dims().to_vec(),
                strides: self.tensor().stride().to_vec(),
            });
        }
        let (node, original) = (self.node(), self.dims().to_vec());
        let backward = || -> Backward {
            Box::new(move |gradient, flow| node.map_or(Ok(()), |node| flow.add(node, gradient.reshape(original)?)))
        };
        Var::computed_with_tangent(OPERATION, self.tensor().reshape(dims)?, &[self], backward, || {
            self.tangent().map(|tangent| tangent.reshape(dims)).transpose()
        })
    }
}

/// `factor` times the sum of all elements, a scalar.
fn total(operation: &'static str, x: &Tensor, factor: f64) -> Result<Tensor> {
    on_gpu!(x, gpu => super::cuda::arithmetic::total(&gpu, operation, x, factor));
    by_element!(operation, "self", x, T => {
        let sum = elementwise::sum(&Operand::<T>::read(operation, "self", x)?);
        tensor(vec![(sum * factor) as T], &[])
    })
}

/// The mean of each row of `size` elements.
fn row_means(operation: &'static str, x: &Tensor, size: usize) -> Result<Tensor> {
    on_gpu!(x, gpu => super::cuda::arithmetic::row_means(&gpu, operation, x, size));
    by_element!(operation, "self", x, T => {
        let sums = elementwise::row_sums(&Operand::<T>::read(operation, "self", x)?, size);
        let means: Vec<T> = sums.into_iter().map(|sum| (sum / size as f64) as T).collect();
        let rows = [means.len()];
        tensor(means, &rows)
    })
}

/// `factor` times each number of `gradient`, at all places of as many rows in `dims`.
fn filled(operation: &'static str, gradient: &Tensor, factor: f64, dims: &[usize]) -> Result<Tensor> {
    on_gpu!(gradient, gpu => super::cuda::arithmetic::filled(&gpu, operation, gradient, factor, dims));
    let columns = dims.iter().product::<usize>() / gradient.elem_count();
    by_element!(operation, "gradient", gradient, T => {
        let shares = elementwise::scale(&Operand::<T>::read(operation, "gradient", gradient)?, factor as T);
        tensor(elementwise::filled_rows(&shares, columns), dims)
    })
}

/// Each row of `size` elements divided by its norm plus `epsilon`.
fn directions(operation: &'static str, x: &Tensor, size: usize, epsilon: f64) -> Result<Tensor> {
    on_gpu!(x, gpu => super::cuda::arithmetic::divide_by_norm(&gpu, operation, x, size, epsilon));
    by_element!(operation, "self", x, T => {
        let values = Operand::<T>::read(operation, "self", x)?;
        tensor(elementwise::normalized_rows(&values, size, epsilon), x.dims())
    })
}

fn directions_backward(operation: &'static str, dy: &Tensor, x: &Tensor, size: usize, epsilon: f64) -> Result<Tensor> {
    on_gpu!(x, gpu => super::cuda::arithmetic::divide_by_norm_backward(&gpu, operation, dy, x, size, epsilon));
    by_element!(operation, "self", x, T => {
        let (dy, values) = (Operand::<T>::read(operation, "dy", dy)?, Operand::<T>::read(operation, "self", x)?);
        tensor(elementwise::normalized_rows_backward(&dy, &values, size, epsilon), x.dims())
    })
}
