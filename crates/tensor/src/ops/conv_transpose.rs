//! Transposed two-dimensional convolution: the gradient of a convolution with respect to its input, as an operation of
//! its own. Its three passes are those of that convolution in another order.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::kernels::convolution::{self, Geometry, Start};
use crate::operand::{Operand, by_element, dims4, exact, on_gpu, tensor};
use crate::ops::channels::channel_sums;
use crate::ops::convolution::{filter, weight_gradient};
use crate::ops::{Manner, Precision};
use crate::tape::Var;

/// How the window of a transposed convolution moves over its output, the same along height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvTranspose2d {
    /// Step of the window in pixels of the output, at least 1.
    pub stride: usize,
    /// Rows and columns cut away around the output, less than the kernel's size.
    pub padding: usize,
    /// Rows and columns added at the bottom and on the right of the output, less than the stride.
    pub output_padding: usize,
}

impl Default for ConvTranspose2d {
    fn default() -> Self {
        Self { stride: 1, padding: 0, output_padding: 0 }
    }
}

impl Var {
    /// The transposed convolution of `self: [n, h, w, in]` with `weight: [kh, kw, out, in]` plus `bias: [out]`; the
    /// result is `[n, (h - 1)·stride + kh + output_padding - 2·padding, …, out]`, and along the width alike.
    ///
    /// The weight is that of the convolution whose transpose this is, which leads from `out` to `in` channels. It is
    /// PyTorch's `[in, out, kh, kw]` under the permutation (2, 3, 1, 0), the one that brings PyTorch's weights of
    /// [`Self::conv2d`] into place too.
    pub fn conv_transpose2d(&self, weight: &Var, bias: Option<&Var>, options: ConvTranspose2d) -> Result<Var> {
        const OPERATION: &str = "conv_transpose2d";
        let g = geometry(OPERATION, self.tensor(), weight.tensor(), options)?;
        let manner = Manner::of(Precision::F32)?;
        if let Some(bias) = bias {
            exact(OPERATION, "bias", bias.tensor(), &[g.in_channels], "[out]")?;
        }
        let filter = filter(OPERATION, &g, self.tensor(), weight.tensor())?;
        let y = products(OPERATION, &g, manner, [self.tensor(), &filter], bias.map(Var::tensor))?;
        let mut inputs = vec![self, weight];
        inputs.extend(bias);
        Var::computed(OPERATION, y, &inputs, || {
            let bias_node = bias.and_then(Var::node);
            // Only what the wanted gradients need is kept: the filter for the input's, the input for the weight's.
            let kept_filter = self.node().map(|node| (node, filter));
            let kept_x = weight.node().map(|node| (node, self.tensor().clone(), weight.tensor().dtype()));
            Box::new(move |dy, flow| {
                if let Some(node) = bias_node {
                    flow.add(node, channel_sums(BACKWARD, &dy)?)?;
                }
                if let Some((node, x, dtype)) = kept_x {
                    flow.add(node, weight_gradient(&g, manner, &dy, &x, dtype)?)?;
                }
                let Some((node, filter)) = kept_filter else { return Ok(()) };
                let existing = flow.take(node);
                flow.add(node, input_gradient(&g, manner, &dy, &filter, existing)?)
            })
        })
    }
}

/// The sizes of the convolution whose transpose is asked for: its input is the result, its output is `x`.
fn geometry(operation: &'static str, x: &Tensor, weight: &Tensor, options: ConvTranspose2d) -> Result<Geometry> {
    let [images, out_height, out_width, out_channels] = dims4(operation, "x", x, "[batch, height, width, channels]")?;
    let [kernel_height, kernel_width, in_channels, weight_in] =
        dims4(operation, "weight", weight, "[kernel height, kernel width, out, in]")?;
    if weight_in != out_channels {
        let expected = format!("[_, _, _, {out_channels}], as the input has {out_channels} channels");
        return Err(Error::shape(operation, "weight", expected, weight.dims()));
    }
    let ConvTranspose2d { stride, padding, output_padding } = options;
    if stride == 0 {
        return Err(Error::value(operation, "stride", stride, "the window must move; use at least 1"));
    }
    if padding >= kernel_height.min(kernel_width) {
        let reason = format!("it would cut away whole windows of {kernel_height}x{kernel_width}; use less");
        return Err(Error::value(operation, "padding", padding, reason));
    }
    if output_padding >= stride {
        let reason = format!("no window would reach what is added; use less than the stride, {stride}");
        return Err(Error::value(operation, "output_padding", output_padding, reason));
    }
    let size = |count: usize, kernel: usize| {
        ((count - 1) * stride + kernel + output_padding).checked_sub(2 * padding).filter(|&size| size > 0)
    };
    let (Some(height), Some(width)) = (size(out_height, kernel_height), size(out_width, kernel_width)) else {
        let expected = format!("images of which something is left when a border of {padding} is cut off the result");
        return Err(Error::shape(operation, "x", expected, x.dims()));
    };
    Ok(Geometry {
        images,
        height,
        width,
        in_channels,
        out_channels,
        kernel_height,
        kernel_width,
        stride,
        padding,
        out_height,
        out_width,
    })
}

/// The value of a transposed convolution.
fn products(
    operation: &'static str,
    g: &Geometry,
    manner: Manner,
    [x, filter]: [&Tensor; 2],
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    on_gpu!(x, gpu => {
        super::cuda::convolution_input_gradient(&gpu, operation, (g, manner), [x, filter], bias, None)
    });
    by_element!(operation, "x", x, T => {
        let (x, filter) = (Operand::<T>::read(operation, "x", x)?, Operand::<T>::read(operation, "weight", filter)?);
        let start = match bias {
            Some(bias) => {
                let bias = Operand::<T>::read(operation, "bias", bias)?;
                Some(bias.repeat(g.images * g.height * g.width))
            }
            None => None,
        };
        let y = convolution::backward_input(g, manner.algorithm, &x, &filter, start.as_deref());
        tensor(y, &[g.images, g.height, g.width, g.in_channels])
    })
}

const BACKWARD: &str = "conv_transpose2d backward";

fn input_gradient(
    g: &Geometry,
    manner: Manner,
    dy: &Tensor,
    filter: &Tensor,
    existing: Option<Tensor>,
) -> Result<Tensor> {
    on_gpu!(dy, gpu => {
        super::cuda::convolve(&gpu, BACKWARD, (g, manner), [dy, filter], None, existing.as_ref())
    });
    by_element!(BACKWARD, "dy", dy, T => {
        let dy = Operand::<T>::read(BACKWARD, "dy", dy)?;
        let filter = Operand::<T>::read(BACKWARD, "weight", filter)?;
        let existing = existing.as_ref().map(|sum| Operand::<T>::read(BACKWARD, "dx", sum)).transpose()?;
        let start = existing.as_deref().map_or(Start::Nothing, Start::Residual);
        let dx = convolution::forward(g, manner.algorithm, &dy, &filter, start);
        tensor(dx, &[g.images, g.out_height, g.out_width, g.out_channels])
    })
}
