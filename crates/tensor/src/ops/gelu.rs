//! The Gaussian error linear unit (Hendrycks and Gimpel 2016).

use candle_core::Tensor;

use crate::error::Result;
#[cfg(feature = "cuda")]
use crate::kernels::cuda::elementwise;
use crate::kernels::gelu;
use crate::operand::{Operand, by_element, on_gpu, tensor};
use crate::tape::Var;

impl Var {
    /// `x · P(X < x)` for a standard normal `X`, of any shape: the exact form, as PyTorch's `gelu` by default. What is
    /// not a number stays so, and negative infinity gives NaN, as in PyTorch; far below 0 the values are more
    /// accurate than PyTorch's, which subtracts two numbers close to each other there.
    pub fn gelu(&self) -> Result<Var> {
        const OPERATION: &str = "gelu";
        let x = self.tensor().clone();
        let y = activated(OPERATION, &x)?;
        let node = self.node();
        Var::computed(OPERATION, y, &[self], || {
            Box::new(move |dy, flow| match node {
                Some(node) => flow.add(node, input_gradient(&dy, &x)?),
                None => Ok(()),
            })
        })
    }
}

fn activated(operation: &'static str, x: &Tensor) -> Result<Tensor> {
    on_gpu!(x, gpu => super::cuda::from_one(&gpu, operation, ("x", x), x.dims(), |x| elementwise::gelu(&gpu, x)));
    by_element!(operation, "x", x, T => {
        tensor(gelu::gelu(&Operand::<T>::read(operation, "x", x)?), x.dims())
    })
}

fn input_gradient(dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    const OPERATION: &str = "gelu backward";
    on_gpu!(x, gpu => {
        super::cuda::from_two(&gpu, OPERATION, [("dy", dy), ("x", x)], |dy, x| elementwise::gelu_backward(&gpu, dy, x))
    });
    by_element!(OPERATION, "x", x, T => {
        let (dy, values) = (Operand::<T>::read(OPERATION, "dy", dy)?, Operand::<T>::read(OPERATION, "x", x)?);
        tensor(gelu::gelu_backward(&values, &dy), x.dims())
    })
}
