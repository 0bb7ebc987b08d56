//! Pooling. Windows are square; rows and columns that do not fill a window are left out, as PyTorch does by
//! default.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::kernels::pooling::{self, Windows};
use crate::operand::{Operand, by_element, dims4, on_gpu, tensor};
use crate::tape::{Backward, Var};

const IMAGES: &str = "[batch, height, width, channels]";

impl Var {
    /// The maximum of every window of `kernel`×`kernel` pixels, `stride` apart, of images with `padding` rows and
    /// columns around them: `[n, h, w, c]` to
    /// `[n, (h + 2·padding - kernel) / stride + 1, (w + 2·padding - kernel) / stride + 1, c]`. The padding, at most
    /// half the kernel, is never the maximum. The gradient goes to the first of equal maxima, as in PyTorch.
    pub fn max_pool2d(&self, kernel: usize, stride: usize, padding: usize) -> Result<Var> {
        const OPERATION: &str = "max_pool2d";
        let x = self.tensor();
        let (w, in_dims, out_dims) = windows(OPERATION, x, [kernel, stride, padding])?;
        if u32::try_from(w.image()).is_err() {
            return Err(Error::shape(OPERATION, "x", "images of fewer than 2^32 elements", x.dims()));
        }
        let (y, from) = maxima(OPERATION, &w, x, &out_dims)?;
        let scatter = || scattered(w, in_dims, self.node(), from.clone());
        Var::computed_with_tangent(OPERATION, y, &[self], scatter, || {
            self.tangent().map(|tangent| tangent.gather(w, in_dims, &from)).transpose()
        })
    }

    /// The elements at the places `from` of every image: the tangent of [`Self::max_pool2d`].
    fn gather(&self, w: Windows, in_dims: [usize; 4], from: &Tensor) -> Result<Var> {
        const OPERATION: &str = "max_pool2d tangent";
        let y = gathered(OPERATION, &w, self.tensor(), from)?;
        Var::computed(OPERATION, y, &[self], || scattered(w, in_dims, self.node(), from.clone()))
    }

    /// The mean of every window; shapes as [`Self::max_pool2d`]. The padding counts as zeros (PyTorch's
    /// `count_include_pad`, true there too unless told).
    pub fn avg_pool2d(&self, kernel: usize, stride: usize, padding: usize) -> Result<Var> {
        const OPERATION: &str = "avg_pool2d";
        let x = self.tensor();
        let (w, in_dims, out_dims) = windows(OPERATION, x, [kernel, stride, padding])?;
        let y = averages(OPERATION, w, x, &out_dims)?;
        let backward = || -> Backward {
            let node = self.node();
            Box::new(move |dy, flow| {
                let Some(node) = node else { return Ok(()) };
                flow.add(node, averages_backward(OPERATION, w, &dy, &in_dims)?)
            })
        };
        Var::computed_with_tangent(OPERATION, y, &[self], backward, || {
            self.tangent().map(|tangent| tangent.avg_pool2d(kernel, stride, padding)).transpose()
        })
    }

    /// The mean over all pixels of each image: `[n, h, w, c]` to `[n, c]`.
    pub fn global_average_pool(&self) -> Result<Var> {
        const OPERATION: &str = "global_average_pool";
        let x = self.tensor();
        let in_dims = dims4(OPERATION, "x", x, IMAGES)?;
        let y = global_averages(OPERATION, x, in_dims)?;
        let backward = || -> Backward {
            let node = self.node();
            Box::new(move |dy, flow| {
                let Some(node) = node else { return Ok(()) };
                flow.add(node, global_averages_backward(OPERATION, &dy, in_dims)?)
            })
        };
        Var::computed_with_tangent(OPERATION, y, &[self], backward, || {
            self.tangent().map(|tangent| tangent.global_average_pool()).transpose()
        })
    }
}

/// The maximum of every window, and its place in its image (`u32`).
fn maxima(operation: &'static str, w: &Windows, x: &Tensor, dims: &[usize]) -> Result<(Tensor, Tensor)> {
    on_gpu!(x, gpu => super::cuda::max_pool(&gpu, operation, w, x, dims));
    by_element!(operation, "x", x, T => {
        let (y, from) = pooling::max(w, &Operand::<T>::read(operation, "x", x)?);
        Ok((tensor(y, dims)?, tensor(from, dims)?))
    })
}

fn gathered(operation: &'static str, w: &Windows, x: &Tensor, from: &Tensor) -> Result<Tensor> {
    on_gpu!(x, gpu => super::cuda::max_pool_gather(&gpu, operation, w, x, from));
    let places = Operand::<u32>::read(operation, "from", from)?;
    by_element!(operation, "x", x, T => {
        tensor(pooling::gather(w, &Operand::<T>::read(operation, "x", x)?, &places), from.dims())
    })
}

fn maxima_backward(w: &Windows, dy: &Tensor, from: &Tensor, dims: &[usize]) -> Result<Tensor> {
    const OPERATION: &str = "max_pool2d backward";
    on_gpu!(dy, gpu => super::cuda::max_pool_backward(&gpu, OPERATION, w, dy, from, dims));
    let places = Operand::<u32>::read(OPERATION, "from", from)?;
    by_element!(OPERATION, "dy", dy, T => {
        tensor(pooling::max_backward(w, &Operand::<T>::read(OPERATION, "dy", dy)?, &places), dims)
    })
}

fn averages(operation: &'static str, w: Windows, x: &Tensor, dims: &[usize]) -> Result<Tensor> {
    on_gpu!(x, gpu => super::cuda::average_pool(&gpu, &w, x, dims));
    by_element!(operation, "x", x, T => tensor(pooling::average(&w, &Operand::<T>::read(operation, "x", x)?), dims))
}

fn averages_backward(operation: &'static str, w: Windows, dy: &Tensor, dims: &[usize]) -> Result<Tensor> {
    on_gpu!(dy, gpu => super::cuda::average_pool_backward(&gpu, &w, dy, dims));
    by_element!(operation, "dy", dy, T => {
        tensor(pooling::average_backward(&w, &Operand::<T>::read(operation, "dy", dy)?), dims)
    })
}

fn global_averages(operation: &'static str, x: &Tensor, in_dims: [usize; 4]) -> Result<Tensor> {
    let [images, height, width, channels] = in_dims;
    let pixels = height * width;
    on_gpu!(x, gpu => super::cuda::global_average_pool(&gpu, x, [images, pixels, channels]));
    by_element!(operation, "x", x, T => {
        let x = Operand::<T>::read(operation, "x", x)?;
        tensor(pooling::global_average(&x, pixels, channels), &[images, channels])
    })
}

fn global_averages_backward(operation: &'static str, dy: &Tensor, in_dims: [usize; 4]) -> Result<Tensor> {
    on_gpu!(dy, gpu => super::cuda::global_average_pool_backward(&gpu, dy, &in_dims));
    let [_, height, width, channels] = in_dims;
    by_element!(operation, "dy", dy, T => {
        let dy = Operand::<T>::read(operation, "dy", dy)?;
        tensor(pooling::global_average_backward(&dy, height * width, channels), &in_dims)
    })
}

/// The backward pass of an operation that picks elements: each gradient goes to where its element came from.
fn scattered(w: Windows, in_dims: [usize; 4], node: Option<usize>, from: Tensor) -> Backward {
    Box::new(move |dy, flow| match node {
        Some(node) => flow.add(node, maxima_backward(&w, &dy, &from, &in_dims)?),
        None => Ok(()),
    })
}

fn windows(
    operation: &'static str,
    x: &Tensor,
    [kernel, stride, padding]: [usize; 3],
) -> Result<(Windows, [usize; 4], [usize; 4])> {
    let in_dims = dims4(operation, "x", x, IMAGES)?;
    let [images, height, width, channels] = in_dims;
    if stride == 0 {
        return Err(Error::value(operation, "stride", stride, "the window must move; use at least 1"));
    }
    let limit = height.min(width) + 2 * padding;
    if kernel == 0 || kernel > limit {
        let around = if padding == 0 { String::new() } else { format!(" with a padding of {padding}") };
        let reason = format!("use 1 to {limit}, as the images are {height}x{width}{around}");
        return Err(Error::value(operation, "kernel", kernel, reason));
    }
    if padding > kernel / 2 {
        let reason = format!("use at most half the kernel, {}", kernel / 2);
        return Err(Error::value(operation, "padding", padding, reason));
    }
    let out = |size: usize| (size + 2 * padding - kernel) / stride + 1;
    let (out_height, out_width) = (out(height), out(width));
    let w = Windows { height, width, channels, kernel, stride, padding, out_height, out_width };
    Ok((w, in_dims, [images, out_height, out_width, channels]))
}
