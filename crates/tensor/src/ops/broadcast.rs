//! One value for many places.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::kernels::elementwise;
use crate::operand::{Operand, by_element, on_gpu, tensor};
use crate::tape::{Backward, Var};

impl Var {
    /// The same for every element of a batch: `[1, ...]` to `[batch, ...]`, as for one pattern that is added to all
    /// images. The gradient is the sum over the batch.
    pub fn broadcast_batch(&self, batch: usize) -> Result<Var> {
        const OPERATION: &str = "broadcast_batch";
        let x = self.tensor();
        let size = x.elem_count();
        if x.dims().first() != Some(&1) || size == 0 {
            return Err(Error::shape(OPERATION, "self", "[1, ...], no dimension of zero", x.dims()));
        }
        if batch == 0 {
            return Err(Error::value(OPERATION, "batch", batch, "use at least 1"));
        }
        let in_dims = x.dims().to_vec();
        let mut out_dims = in_dims.clone();
        out_dims[0] = batch;
        let y = repeated(OPERATION, x, batch, &out_dims)?;
        let backward = || -> Backward {
            let node = self.node();
            Box::new(move |dy, flow| node.map_or(Ok(()), |node| flow.add(node, column_sums(OPERATION, &dy, &in_dims)?)))
        };
        Var::computed_with_tangent(OPERATION, y, &[self], backward, || {
            self.tangent().map(|tangent| tangent.broadcast_batch(batch)).transpose()
        })
    }

    /// The vector `self: [channels]` at every place of `dims: [..., channels]`.
    pub(crate) fn over_rows(&self, dims: &[usize]) -> Result<Var> {
        let channels = self.tensor().elem_count();
        let rows = dims.iter().product::<usize>() / channels;
        self.reshape(&[1, channels])?.broadcast_batch(rows)?.reshape(dims)
    }
}

/// `x: [1, ...]` as often as `batch` says.
fn repeated(operation: &'static str, x: &Tensor, batch: usize, dims: &[usize]) -> Result<Tensor> {
    on_gpu!(x, gpu => super::cuda::arithmetic::repeated(&gpu, operation, x, dims));
    by_element!(operation, "self", x, T => tensor(Operand::<T>::read(operation, "self", x)?.repeat(batch), dims))
}

/// The sum over all blocks of `dy` of as many elements as `dims` has.
fn column_sums(operation: &'static str, dy: &Tensor, dims: &[usize]) -> Result<Tensor> {
    on_gpu!(dy, gpu => super::cuda::arithmetic::column_sums(&gpu, operation, dy, dims));
    let size = dims.iter().product();
    by_element!(operation, "dy", dy, T => {
        tensor(elementwise::column_sums(&Operand::<T>::read(operation, "dy", dy)?, size), dims)
    })
}
