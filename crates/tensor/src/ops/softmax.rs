//! Softmax and its logarithm.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::kernels::softmax;
use crate::operand::{Operand, by_element, on_gpu, tensor};
use crate::tape::Var;

impl Var {
    /// `exp(x) / Σ exp(x)` over the last dimension of `self: [..., classes]`, of any rank from 1 on; the same shape.
    /// A row with an element that is not a number or positive infinity becomes NaN, as in PyTorch.
    pub fn softmax(&self) -> Result<Var> {
        compute("softmax", self, false)
    }

    /// `x - ln Σ exp(x)` over the last dimension of `self: [..., classes]`, of any rank from 1 on; the same shape. More
    /// accurate than the logarithm of [`Self::softmax`], and finite where that is 0.
    pub fn log_softmax(&self) -> Result<Var> {
        compute("log_softmax", self, true)
    }
}

fn compute(operation: &'static str, input: &Var, logarithm: bool) -> Result<Var> {
    let x = input.tensor();
    let classes = match x.dims() {
        &[.., classes] if x.elem_count() > 0 => classes,
        found => return Err(Error::shape(operation, "x", "[..., classes], none of them zero", found)),
    };
    let y = normalized(operation, x, classes, logarithm)?;
    let (node, output) = (input.node(), y.clone());
    Var::computed(operation, y, &[input], || {
        Box::new(move |dy, flow| match node {
            Some(node) => flow.add(node, input_gradient(operation, &output, &dy, classes, logarithm)?),
            None => Ok(()),
        })
    })
}

fn normalized(operation: &'static str, x: &Tensor, classes: usize, logarithm: bool) -> Result<Tensor> {
    on_gpu!(x, gpu => super::cuda::row_normalization::softmax(&gpu, operation, x, classes, logarithm));
    by_element!(operation, "x", x, T => {
        tensor(softmax::softmax(&Operand::<T>::read(operation, "x", x)?, classes, logarithm), x.dims())
    })
}

fn input_gradient(operation: &'static str, y: &Tensor, dy: &Tensor, classes: usize, logarithm: bool) -> Result<Tensor> {
    on_gpu!(y, gpu => super::cuda::row_normalization::softmax_backward(&gpu, operation, y, dy, classes, logarithm));
    by_element!(operation, "dy", dy, T => {
        let (values, dy) = (Operand::<T>::read(operation, "y", y)?, Operand::<T>::read(operation, "dy", dy)?);
        tensor(softmax::softmax_backward(&values, &dy, classes, logarithm), y.dims())
    })
}
