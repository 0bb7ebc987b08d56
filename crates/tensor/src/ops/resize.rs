//! Bilinear change of size.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::kernels::resize::{self, Resize};
use crate::operand::{Operand, by_element, dims4, on_gpu, tensor};
use crate::tape::Var;

impl Var {
    /// The images `self: [n, h, w, c]` in another size, larger or smaller, by bilinear interpolation:
    /// `[n, height, width, c]`. With `align_corners` the middles of the outermost pixels of both sizes coincide, else
    /// their outer edges do. As PyTorch's `interpolate` with `mode="bilinear"` and no antialiasing: made smaller by
    /// more than half, an image loses pixels.
    pub fn resize_bilinear(&self, height: usize, width: usize, align_corners: bool) -> Result<Var> {
        const OPERATION: &str = "resize_bilinear";
        let x = self.tensor();
        let in_dims = dims4(OPERATION, "x", x, "[batch, height, width, channels]")?;
        for (name, size) in [("height", height), ("width", width)] {
            if size == 0 {
                return Err(Error::value(OPERATION, name, size, "no pixel would be left; use at least 1"));
            }
        }
        let [images, in_height, in_width, channels] = in_dims;
        let (out_height, out_width) = (height, width);
        let change = Resize { height: in_height, width: in_width, channels, out_height, out_width, align_corners };
        let y = resized(OPERATION, &change, x, &[images, height, width, channels])?;
        let node = self.node();
        Var::computed(OPERATION, y, &[self], || {
            Box::new(move |dy, flow| match node {
                Some(node) => flow.add(node, input_gradient(&change, &dy, &in_dims)?),
                None => Ok(()),
            })
        })
    }
}

fn resized(operation: &'static str, change: &Resize, x: &Tensor, dims: &[usize]) -> Result<Tensor> {
    on_gpu!(x, gpu => super::cuda::resampling::resize(&gpu, operation, change, x, dims));
    by_element!(operation, "x", x, T => {
        tensor(resize::resize(change, &Operand::<T>::read(operation, "x", x)?), dims)
    })
}

fn input_gradient(change: &Resize, dy: &Tensor, dims: &[usize]) -> Result<Tensor> {
    const OPERATION: &str = "resize_bilinear backward";
    on_gpu!(dy, gpu => super::cuda::resampling::resize_backward(&gpu, OPERATION, change, dy, dims));
    by_element!(OPERATION, "dy", dy, T => {
        tensor(resize::resize_backward(change, &Operand::<T>::read(OPERATION, "dy", dy)?), dims)
    })
}
