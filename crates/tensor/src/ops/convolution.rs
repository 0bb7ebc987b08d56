//! Two-dimensional convolution (cross-correlation, as everywhere in deep learning).

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};
use crate::kernels::convolution::{self, Geometry, Start};
use crate::operand::{Operand, by_element, dims4, exact, on_gpu, tensor};
use crate::ops::channels::channel_sums;
use crate::ops::{Manner, Precision};
use crate::tape::{Backward, Var};

/// How the window of a convolution moves, the same along height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// Step of the window in pixels, at least 1.
    pub stride: usize,
    /// Rows and columns of zeros around the image, less than the kernel's size.
    pub padding: usize,
    /// How far factors may be rounded, also those of the gradients.
    pub precision: Precision,
}

impl Default for Conv2d {
    fn default() -> Self {
        Self { stride: 1, padding: 0, precision: Precision::F32 }
    }
}

/// What is added to the products.
#[derive(Clone, Copy)]
enum Addend<'a> {
    Nothing,
    Bias(&'a Var),
    Residual(&'a Var),
}

impl Var {
    /// The convolution of images `self: [n, h, w, in]` with `weight: [kh, kw, in, out]` plus `bias: [out]`;
    /// the result is `[n, (h + 2·padding - kh) / stride + 1, (w + 2·padding - kw) / stride + 1, out]`. On a GPU, a weight in
    /// `f32` is rounded where the images are `bf16`, and its gradient is `f32`.
    pub fn conv2d(&self, weight: &Var, bias: Option<&Var>, options: Conv2d) -> Result<Var> {
        convolve("conv2d", self, weight, options, bias.map_or(Addend::Nothing, Addend::Bias))
    }

    /// [`Self::conv2d`] without bias, plus a `residual` of the shape of the result, in one pass.
    pub fn conv2d_add(&self, weight: &Var, options: Conv2d, residual: &Var) -> Result<Var> {
        convolve("conv2d_add", self, weight, options, Addend::Residual(residual))
    }
}

fn geometry(operation: &'static str, x: &Tensor, weight: &Tensor, options: Conv2d) -> Result<Geometry> {
    let [images, height, width, in_channels] = dims4(operation, "x", x, "[batch, height, width, channels]")?;
    let [kernel_height, kernel_width, weight_in, out_channels] =
        dims4(operation, "weight", weight, "[kernel height, kernel width, in, out]")?;
    if weight_in != in_channels {
        let expected = format!("[_, _, {in_channels}, _], as the input has {in_channels} channels");
        return Err(Error::shape(operation, "weight", expected, weight.dims()));
    }
    let Conv2d { stride, padding, .. } = options;
    if stride == 0 {
        return Err(Error::value(operation, "stride", stride, "the window must move; use at least 1"));
    }
    if padding >= kernel_height.min(kernel_width) {
        let reason = format!("windows of {kernel_height}x{kernel_width} would lie in the padding; use less");
        return Err(Error::value(operation, "padding", padding, reason));
    }
    let out = |size: usize, kernel: usize| (size + 2 * padding).checked_sub(kernel).map(|room| room / stride + 1);
    let (Some(out_height), Some(out_width)) = (out(height, kernel_height), out(width, kernel_width)) else {
        let expected = format!("images of at least {kernel_height}x{kernel_width} with their padding of {padding}");
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

fn convolve(operation: &'static str, x: &Var, weight: &Var, options: Conv2d, addend: Addend) -> Result<Var> {
    let g = geometry(operation, x.tensor(), weight.tensor(), options)?;
    let manner = Manner::of(options.precision)?;
    let out_dims = [g.images, g.out_height, g.out_width, g.out_channels];
    match addend {
        Addend::Nothing => {}
        Addend::Bias(bias) => exact(operation, "bias", bias.tensor(), &[g.out_channels], "[out]")?,
        Addend::Residual(residual) => {
            exact(operation, "residual", residual.tensor(), &out_dims, "the shape of the result")?;
        }
    }
    let filter = filter(operation, &g, x.tensor(), weight.tensor())?;
    let y = products(operation, &g, manner, [x.tensor(), &filter], addend)?;
    let (bias, residual) = match addend {
        Addend::Nothing => (None, None),
        Addend::Bias(bias) => (Some(bias), None),
        Addend::Residual(residual) => (None, Some(residual)),
    };
    let mut inputs = vec![x, weight];
    inputs.extend(bias.or(residual));
    let backward = || -> Backward {
        let (x_node, weight_node) = (x.node(), weight.node());
        let (bias_node, residual_node) = (bias.and_then(Var::node), residual.and_then(Var::node));
        // Only what the wanted gradients need is kept: the filter for the input's, the input for the weight's.
        let kept_filter = x_node.map(|node| (node, filter));
        let kept_x = weight_node.map(|node| (node, x.tensor().clone(), weight.tensor().dtype()));
        Box::new(move |dy, flow| {
            if let Some(node) = bias_node {
                flow.add(node, channel_sums(BACKWARD, &dy)?)?;
            }
            if let Some((node, x, dtype)) = kept_x {
                flow.add(node, weight_gradient(&g, manner, &x, &dy, dtype)?)?;
            }
            if let Some((node, filter)) = kept_filter {
                let existing = flow.take(node);
                flow.add(node, input_gradient(&g, manner, &dy, &filter, existing)?)?;
            }
            // Last, because the gradient itself is moved.
            residual_node.map_or(Ok(()), |node| flow.add(node, dy))
        })
    };
    Var::computed_with_tangent(operation, y, &inputs, backward, || tangent(x, weight, options, addend, &out_dims))
}

/// What the device of `x` multiplies by: on a CPU the weight itself.
pub(super) fn filter(operation: &'static str, g: &Geometry, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    on_gpu!(x, gpu => super::cuda::filter(&gpu, operation, g, x, weight));
    let _ = (operation, g, x);
    Ok(weight.clone())
}

/// The value of a convolution.
fn products(
    operation: &'static str,
    g: &Geometry,
    manner: Manner,
    [x, filter]: [&Tensor; 2],
    addend: Addend,
) -> Result<Tensor> {
    on_gpu!(x, gpu => {
        let (bias, residual) = match addend {
            Addend::Nothing => (None, None),
            Addend::Bias(bias) => (Some(bias.tensor()), None),
            Addend::Residual(residual) => (None, Some(residual.tensor())),
        };
        super::cuda::convolve(&gpu, operation, (g, manner), [x, filter], bias, residual)
    });
    by_element!(operation, "x", x, T => {
        let image = Operand::<T>::read(operation, "x", x)?;
        let filter = Operand::<T>::read(operation, "weight", filter)?;
        let output = match addend {
            Addend::Nothing => convolution::forward(g, manner.algorithm, &image, &filter, Start::Nothing),
            Addend::Bias(bias) => {
                let bias = Operand::<T>::read(operation, "bias", bias.tensor())?;
                convolution::forward(g, manner.algorithm, &image, &filter, Start::Bias(&bias))
            }
            Addend::Residual(residual) => {
                let residual = Operand::<T>::read(operation, "residual", residual.tensor())?;
                convolution::forward(g, manner.algorithm, &image, &filter, Start::Residual(&residual))
            }
        };
        tensor(output, &[g.images, g.out_height, g.out_width, g.out_channels])
    })
}

/// `conv(x', weight) + conv(x, weight')`, plus the tangent of the addend.
fn tangent(x: &Var, weight: &Var, options: Conv2d, addend: Addend, out_dims: &[usize]) -> Result<Option<Var>> {
    let (mut bias, mut sum) = match addend {
        Addend::Nothing => (None, None),
        Addend::Bias(bias) => (bias.tangent(), None),
        Addend::Residual(residual) => (None, residual.tangent().cloned()),
    };
    let (image, filter) = (x.primal(), weight.primal());
    let products = [x.tangent().map(|x| (x, &filter)), weight.tangent().map(|weight| (&image, weight))];
    for (image, filter) in products.into_iter().flatten() {
        sum = Some(match &sum {
            None => image.conv2d(filter, bias.take(), options)?,
            Some(sum) => image.conv2d_add(filter, options, sum)?,
        });
    }
    match bias {
        Some(bias) => bias.over_rows(out_dims).map(Some),
        None => Ok(sum),
    }
}

const BACKWARD: &str = "conv2d backward";

fn input_gradient(
    g: &Geometry,
    manner: Manner,
    dy: &Tensor,
    filter: &Tensor,
    existing: Option<Tensor>,
) -> Result<Tensor> {
    on_gpu!(dy, gpu => {
        let existing = existing.as_ref();
        super::cuda::convolution_input_gradient(&gpu, BACKWARD, (g, manner), [dy, filter], None, existing)
    });
    by_element!(BACKWARD, "dy", dy, T => {
        let dy = Operand::<T>::read(BACKWARD, "dy", dy)?;
        let filter = Operand::<T>::read(BACKWARD, "weight", filter)?;
        let existing = existing.as_ref().map(|sum| Operand::<T>::read(BACKWARD, "dx", sum)).transpose()?;
        let dx = convolution::backward_input(g, manner.algorithm, &dy, &filter, existing.as_deref());
        tensor(dx, &[g.images, g.height, g.width, g.in_channels])
    })
}

/// The gradient of a weight of this element type, from the input of the convolution and the gradient of its output.
pub(super) fn weight_gradient(g: &Geometry, manner: Manner, x: &Tensor, dy: &Tensor, dtype: DType) -> Result<Tensor> {
    on_gpu!(dy, gpu => super::cuda::convolution_weight_gradient(&gpu, g, manner, x, dy, dtype));
    by_element!(BACKWARD, "dy", dy, T => {
        let (x, dy) = (Operand::<T>::read(BACKWARD, "x", x)?, Operand::<T>::read(BACKWARD, "dy", dy)?);
        let dw = convolution::backward_weight(g, manner.algorithm, &x, &dy);
        let dw = tensor(dw, &[g.kernel_height, g.kernel_width, g.in_channels, g.out_channels])?;
        Ok(dw.to_dtype(dtype)?)
    })
}
