//! Bilinear change of size.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::kernels::resize::{self, Resize};
use crate::operand::{Operand, by_element, dims4, tensor};
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
        let change = Resize::new([in_height, in_width], channels, [height, width], align_corners);
        let y = by_element!(OPERATION, "x", x, T => {
            let values = Operand::<T>::read(OPERATION, "x", x)?;
            tensor(resize::resize(&change, &values), &[images, height, width, channels])
        })?;
        let node = self.node();
        Var::computed(OPERATION, y, &[self], || {
            Box::new(move |dy, flow| match node {
                Some(node) => flow.add(node, input_gradient(&change, &dy, &in_dims)?),
                None => Ok(()),
            })
        })
    }
}

fn input_gradient(change: &Resize, dy: &Tensor, dims: &[usize]) -> Result<Tensor> {
    const OPERATION: &str = "resize_bilinear backward";
    by_element!(OPERATION, "dy", dy, T => {
        tensor(resize::resize_backward(change, &Operand::<T>::read(OPERATION, "dy", dy)?), dims)
    })
}
