//! Activation functions.

use candle_core::Tensor;

use crate::error::Result;
use crate::operand::{Operand, by_element, exact, on_gpu, tensor};
use crate::ops::arithmetic::{of_one, of_two};
use crate::tape::{Backward, Var};

impl Var {
    /// `max(x, 0)`. The gradient at 0 is 0, as in PyTorch; what is not a number stays so.
    pub fn relu(&self) -> Result<Var> {
        let x = self.tensor().clone();
        let y = rectified(&x)?;
        let (node, kept) = (self.node(), x.clone());
        let backward = || -> Backward {
            Box::new(move |dy, flow| match node {
                Some(node) => flow.add(node, relu_backward(&dy, &kept)?),
                None => Ok(()),
            })
        };
        Var::computed_with_tangent("relu", y, &[self], backward, || {
            self.tangent().map(|tangent| tangent.where_positive(&x)).transpose()
        })
    }

    /// `1 / (1 + exp(-x))`, in `[0, 1]`; what is not a number stays so.
    pub fn sigmoid(&self) -> Result<Var> {
        let y = logistic(self.tensor())?;
        let (node, kept) = (self.node(), y.clone());
        Var::computed("sigmoid", y, &[self], || {
            Box::new(move |dy, flow| match node {
                Some(node) => flow.add(node, sigmoid_backward(&dy, &kept)?),
                None => Ok(()),
            })
        })
    }

    /// The hyperbolic tangent, in `[-1, 1]`; what is not a number stays so.
    pub fn tanh(&self) -> Result<Var> {
        let y = hyperbolic_tangent(self.tensor())?;
        let (node, kept) = (self.node(), y.clone());
        Var::computed("tanh", y, &[self], || {
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

of_one!(rectified("x"), "relu", elementwise::relu);
of_two!(relu_backward("dy", "x"), "relu backward", relu_backward);
of_one!(logistic("x"), "sigmoid", sigmoid::sigmoid);
of_two!(sigmoid_backward("dy", "y"), "sigmoid backward", sigmoid_backward);
of_one!(hyperbolic_tangent("x"), "tanh", sigmoid::tanh);
of_two!(tanh_backward("dy", "y"), "tanh backward", tanh_backward);
