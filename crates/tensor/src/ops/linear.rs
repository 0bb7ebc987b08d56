//! The linear (fully connected) layer.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::kernels::matrix;
use crate::operand::{Operand, by_element, exact, on_gpu, tensor};
use crate::ops::channels::channel_sums;
use crate::tangent::sum_of;
use crate::tape::{Backward, Var};

impl Var {
    /// `self · weightᵀ + bias`, for `self: [n, in]`, `weight: [out, in]` (PyTorch's layout), `bias: [out]`;
    /// the result is `[n, out]`.
    pub fn linear(&self, weight: &Var, bias: Option<&Var>) -> Result<Var> {
        const OPERATION: &str = "linear";
        let (x, w) = (self.tensor(), weight.tensor());
        let &[rows, inputs] = x.dims() else {
            return Err(Error::shape(OPERATION, "x", "[batch, in]", x.dims()));
        };
        let &[outputs, weight_inputs] = w.dims() else {
            return Err(Error::shape(OPERATION, "weight", "[out, in]", w.dims()));
        };
        if rows * inputs * outputs == 0 {
            return Err(Error::shape(OPERATION, "x", "no dimension of zero in input or weight", x.dims()));
        }
        if weight_inputs != inputs {
            let expected = format!("[_, {inputs}], as the input has {inputs} columns");
            return Err(Error::shape(OPERATION, "weight", expected, w.dims()));
        }
        if let Some(bias) = bias {
            exact(OPERATION, "bias", bias.tensor(), &[outputs], "[out]")?;
        }
        let y = products(OPERATION, x, w, bias.map(Var::tensor))?;
        let mut operands = vec![self, weight];
        operands.extend(bias);
        let backward = || -> Backward {
            let bias_node = bias.and_then(Var::node);
            let kept_weight = self.node().map(|node| (node, w.clone()));
            let kept_x = weight.node().map(|node| (node, x.clone()));
            Box::new(move |dy, flow| {
                if let Some(node) = bias_node {
                    flow.add(node, channel_sums(BACKWARD, &dy)?)?;
                }
                if let Some((node, x)) = kept_x {
                    flow.add(node, weight_gradient(&x, &dy, inputs, outputs)?)?;
                }
                match kept_weight {
                    Some((node, weight)) => flow.add(node, input_gradient(&dy, &weight, inputs, outputs)?),
                    None => Ok(()),
                }
            })
        };
        Var::computed_with_tangent(OPERATION, y, &operands, backward, || {
            let mut bias = bias.and_then(Var::tangent);
            let products = [
                self.tangent().map(|tangent| tangent.linear(&weight.primal(), bias.take())),
                weight.tangent().map(|tangent| self.primal().linear(tangent, bias.take())),
            ];
            sum_of(products.into_iter().chain([bias.map(|bias| bias.over_rows(&[rows, outputs]))]))
        })
    }
}

fn products(operation: &'static str, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    on_gpu!(x, gpu => super::cuda::linear(&gpu, x, weight, bias));
    let ((rows, inputs), outputs) = (x.dims2()?, weight.dims()[0]);
    by_element!(operation, "x", x, T => {
        let x = Operand::<T>::read(operation, "x", x)?;
        let weight = Operand::<T>::read(operation, "weight", weight)?;
        let bias = bias.map(|bias| Operand::<T>::read(operation, "bias", bias)).transpose()?;
        tensor(matrix::linear(&x, &weight, bias.as_deref(), inputs, outputs), &[rows, outputs])
    })
}

const BACKWARD: &str = "linear backward";

fn weight_gradient(x: &Tensor, dy: &Tensor, inputs: usize, outputs: usize) -> Result<Tensor> {
    on_gpu!(dy, _gpu => super::cuda::linear_weight_gradient(x, dy));
    by_element!(BACKWARD, "dy", dy, T => {
        let (x, dy) = (Operand::<T>::read(BACKWARD, "x", x)?, Operand::<T>::read(BACKWARD, "dy", dy)?);
        tensor(matrix::linear_backward_weight(&x, &dy, inputs, outputs), &[outputs, inputs])
    })
}

fn input_gradient(dy: &Tensor, weight: &Tensor, inputs: usize, outputs: usize) -> Result<Tensor> {
    on_gpu!(dy, _gpu => super::cuda::linear_input_gradient(dy, weight));
    by_element!(BACKWARD, "dy", dy, T => {
        let rows = dy.dims()[0];
        let dy = Operand::<T>::read(BACKWARD, "dy", dy)?;
        let weight = Operand::<T>::read(BACKWARD, "weight", weight)?;
        tensor(matrix::linear_backward_input(&dy, &weight, inputs, outputs), &[rows, inputs])
    })
}
