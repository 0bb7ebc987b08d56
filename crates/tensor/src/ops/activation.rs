//! Activation functions.

use candle_core::Tensor;

use crate::error::Result;
use crate::kernels::{elementwise, sigmoid};
use crate::operand::{Operand, by_element, on_gpu, tensor};
use crate::tape::{Backward, Var};

impl Var {
    /// `max(x, 0)`. The gradient at 0 is 0, as in PyTorch; what is not a number stays so.
    pub fn relu(&self) -> Result<Var> {
        const OPERATION: &str = "relu";
        let x = self.tensor().clone();
        let y = rectified(OPERATION, &x)?;
        let (node, kept) = (self.node(), x.clone());
        let backward = || -> Backward {
            Box::new(move |dy, flow| match node {
                Some(node) => flow.add(node, relu_backward(&dy, &kept)?),
                None => Ok(()),
            })
        };
        Var::computed_with_tangent(OPERATION, y, &[self], backward, || {
            self.tangent().map(|tangent| tangent.where_positive(&x)).transpose()
        })
    }

    /// `1 / (1 + exp(-x))`, in `[0, 1]`; what is not a number stays so.
    pub fn sigmoid(&self) -> Result<Var> {
        const OPERATION: &str = "sigmoid";
        let x = self.tensor();
        let y = by_element!(OPERATION, "x", x, T => {
            tensor(sigmoid::sigmoid(&Operand::<T>::read(OPERATION, "x", x)?), x.dims())
        })?;
        let (node, kept) = (self.node(), y.clone());
        Var::computed(OPERATION, y, &[self], || {
            Box::new(move |dy, flow| match node {
                Some(node) => flow.add(node, sigmoid_backward(&dy, &kept)?),
                None => Ok(()),
            })
        })
    }

    /// The hyperbolic tangent, in `[-1, 1]`; what is not a number stays so.
    pub fn tanh(&self) -> Result<Var> {
        const OPERATION: &str = "tanh";
        let x = self.tensor();
        let y = by_element!(OPERATION, "x", x, T => {
            tensor(sigmoid::tanh(&Operand::<T>::read(OPERATION, "x", x)?), x.dims())
        })?;
        let (node, kept) = (self.node(), y.clone());
        Var::computed(OPERATION, y, &[self], || {
            Box::new(move |dy, flow| match node {
                Some(node) => flow.add(node, tanh_backward(&dy, &kept)?),
                None => Ok(()),
            })
        })
    }

    /// `self` where `x > 0` (or is not a number), else 0: the tangent of a ReLU of `x`, and of anything that is
    /// positive exactly where `x` is.
    pub(crate) fn where_positive(&self, x: &Tensor) -> Result<Var> {
        Var::computed("relu tangent", relu_backward(self.tensor(), x)?, &[self], || {
            let (node, x) = (self.node(), x.clone());
            Box::new(move |dy, flow| match node {
                Some(node) => flow.add(node, relu_backward(&dy, &x)?),
                None => Ok(()),
            })
        })
    }
}

fn rectified(operation: &'static str, x: &Tensor) -> Result<Tensor> {
    on_gpu!(x, gpu => super::cuda::relu(&gpu, x));
    by_element!(operation, "x", x, T => {
        tensor(elementwise::relu(&Operand::<T>::read(operation, "x", x)?), x.dims())
    })
}

fn relu_backward(dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    const OPERATION: &str = "relu backward";
    on_gpu!(x, gpu => super::cuda::relu_backward(&gpu, dy, x));
    by_element!(OPERATION, "x", x, T => {
        let (dy, values) = (Operand::<T>::read(OPERATION, "dy", dy)?, Operand::<T>::read(OPERATION, "x", x)?);
        tensor(elementwise::relu_backward(&dy, &values), x.dims())
    })
}

fn sigmoid_backward(dy: &Tensor, y: &Tensor) -> Result<Tensor> {
    const OPERATION: &str = "sigmoid backward";
    by_element!(OPERATION, "y", y, T => {
        let (dy, values) = (Operand::<T>::read(OPERATION, "dy", dy)?, Operand::<T>::read(OPERATION, "y", y)?);
        tensor(elementwise::sigmoid_backward(&dy, &values), y.dims())
    })
}

fn tanh_backward(dy: &Tensor, y: &Tensor) -> Result<Tensor> {
    const OPERATION: &str = "tanh backward";
    by_element!(OPERATION, "y", y, T => {
        let (dy, values) = (Operand::<T>::read(OPERATION, "dy", dy)?, Operand::<T>::read(OPERATION, "y", y)?);
        tensor(elementwise::tanh_backward(&dy, &values), y.dims())
    })
}
