//! Sums, products, roots and shapes. Shapes must be equal: nothing is broadcast.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::kernels::elementwise;
use crate::operand::{Operand, by_element, exact, on_gpu, tensor};
use crate::tangent::sum_of;
use crate::tape::{Backward, Var};

macro_rules! same_shape {
    ($operation:expr, $kernel:ident, $a:expr, $b:expr) => {{
        let (a, b): (&Tensor, &Tensor) = ($a, $b);
        exact($operation, "other", b, a.dims(), "the shape of the first operand")?;
        by_element!($operation, "self", a, T => {
            let (x, y) = (Operand::<T>::read($operation, "self", a)?, Operand::<T>::read($operation, "other", b)?);
            tensor(elementwise::$kernel(&x, &y), a.dims())
        })
    }};
}

pub(crate) fn add_tensors(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    on_gpu!(a, gpu => super::cuda::add(&gpu, "add", a, b));
    same_shape!("add", add, a, b)
}

fn multiply_tensors(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    same_shape!("mul", multiply, a, b)
}

fn scale_tensor(a: &Tensor, factor: f64) -> Result<Tensor> {
    const OPERATION: &str = "scale";
    by_element!(OPERATION, "self", a, T => {
        tensor(elementwise::scale(&Operand::<T>::read(OPERATION, "self", a)?, factor as T), a.dims())
    })
}

impl Var {
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
        let difference = same_shape!("sub", subtract, self.tensor(), other.tensor())?;
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
        let ratio = same_shape!("div", divide, self.tensor(), other.tensor())?;
        let nodes = (self.node(), other.node());
        let (kept, divisor) = (ratio.clone(), other.tensor().clone());
        Var::computed("div", ratio, &[self, other], || {
            Box::new(move |gradient, flow| {
                let share = same_shape!("div backward", divide, &gradient, &divisor)?;
                if let Some(node) = nodes.1 {
                    flow.add(node, scale_tensor(&multiply_tensors(&share, &kept)?, -1.)?)?;
                }
                nodes.0.map_or(Ok(()), |node| flow.add(node, share))
            })
        })
    }

    /// The square root of every element; of numbers below 0 it is not a number. The gradient at 0 is infinite.
    pub fn sqrt(&self) -> Result<Var> {
        const OPERATION: &str = "sqrt";
        let x = self.tensor();
        let root = by_element!(OPERATION, "self", x, T => {
            tensor(elementwise::square_root(&Operand::<T>::read(OPERATION, "self", x)?), x.dims())
        })?;
        let (node, kept) = (self.node(), root.clone());
        Var::computed(OPERATION, root, &[self], || {
            Box::new(move |gradient, flow| match node {
                Some(node) => flow.add(node, same_shape!("sqrt backward", square_root_backward, &gradient, &kept)?),
                None => Ok(()),
            })
        })
    }

    /// The absolute value of every element. The gradient at 0 is 0, as in PyTorch.
    pub fn abs(&self) -> Result<Var> {
        const OPERATION: &str = "abs";
        let x = self.tensor();
        let value = by_element!(OPERATION, "self", x, T => {
            tensor(elementwise::absolute(&Operand::<T>::read(OPERATION, "self", x)?), x.dims())
        })?;
        Var::computed(OPERATION, value, &[self], || {
            let (node, x) = (self.node(), x.clone());
            Box::new(move |gradient, flow| match node {
                Some(node) => flow.add(node, same_shape!("abs backward", absolute_backward, &gradient, &x)?),
                None => Ok(()),
            })
        })
    }

    /// `self + term`, the same number for every element.
    pub fn offset(&self, term: f64) -> Result<Var> {
        const OPERATION: &str = "offset";
        let x = self.tensor();
        let sum = by_element!(OPERATION, "self", x, T => {
            tensor(elementwise::offset(&Operand::<T>::read(OPERATION, "self", x)?, term as T), x.dims())
        })?;
        let node = self.node();
        let backward =
            || -> Backward { Box::new(move |gradient, flow| node.map_or(Ok(()), |node| flow.add(node, gradient))) };
        Var::computed_with_tangent(OPERATION, sum, &[self], backward, || Ok(self.tangent().cloned()))
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
        let x = self.tensor();
        let value = by_element!(operation, "self", x, T => {
            let sum = elementwise::sum(&Operand::<T>::read(operation, "self", x)?);
            tensor(vec![(sum * factor) as T], &[])
        })?;
        let (node, dims) = (self.node(), x.dims().to_vec());
        let backward = || -> Backward {
            Box::new(move |gradient, flow| {
                let Some(node) = node else { return Ok(()) };
                let count = dims.iter().product();
                let spread = by_element!(operation, "gradient", gradient, T => {
                    let each = Operand::<T>::read(operation, "gradient", &gradient)?[0] * factor as T;
                    tensor(vec![each; count], &dims)
                })?;
                flow.add(node, spread)
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
        let means = by_element!(OPERATION, "self", x, T => {
            let sums = elementwise::row_sums(&Operand::<T>::read(OPERATION, "self", x)?, size);
            tensor(sums.into_iter().map(|sum| (sum / size as f64) as T).collect(), &[batch])
        })?;
        let (node, dims) = (self.node(), x.dims().to_vec());
        let backward = || -> Backward {
            Box::new(move |gradient, flow| {
                let Some(node) = node else { return Ok(()) };
                let spread = by_element!(OPERATION, "gradient", gradient, T => {
                    let shares = elementwise::scale(&Operand::<T>::read(OPERATION, "gradient", &gradient)?, 1. / size as T);
                    tensor(elementwise::filled_rows(&shares, size), &dims)
                })?;
                flow.add(node, spread)
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
        let y = by_element!(OPERATION, "self", x, T => {
            let values = Operand::<T>::read(OPERATION, "self", x)?;
            tensor(elementwise::normalized_rows(&values, size, epsilon), x.dims())
        })?;
        Var::computed(OPERATION, y, &[self], || {
            let (node, x) = (self.node(), x.clone());
            Box::new(move |dy, flow| {
                let Some(node) = node else { return Ok(()) };
                let dx = by_element!(OPERATION, "self", x, T => {
                    let (dy, x_values) =
                        (Operand::<T>::read(OPERATION, "dy", &dy)?, Operand::<T>::read(OPERATION, "self", &x)?);
                    tensor(elementwise::normalized_rows_backward(&dy, &x_values, size, epsilon), x.dims())
                })?;
                flow.add(node, dx)
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
