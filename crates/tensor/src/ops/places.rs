//! Elements moved to other places: channels put side by side, pixels repeated, images framed with zeros.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::kernels::places::{self, Frame};
use crate::operand::{Operand, by_element, dims4, on_gpu, tensor};
use crate::tape::{Backward, Var};

impl Var {
    /// The channels (the last dimension) of all `parts`, one after another: `[..., a]` and `[..., b]` to `[..., a + b]`.
    /// PyTorch's `cat` along its channel dimension.
    pub fn concat_channels(parts: &[&Var]) -> Result<Var> {
        const OPERATION: &str = "concat_channels";
        let Some(first) = parts.first() else {
            return Err(Error::value(OPERATION, "parts", "[]", "there is nothing to put together; give at least one"));
        };
        let shared = &first.dims()[..first.dims().len().saturating_sub(1)];
        let mut widths = Vec::with_capacity(parts.len());
        for part in parts {
            match part.dims() {
                [places @ .., width] if places == shared && part.tensor().elem_count() > 0 => widths.push(*width),
                found => {
                    let expected = format!("{shared:?} and then channels, none of them zero");
                    return Err(Error::shape(OPERATION, "parts", expected, found));
                }
            }
        }
        let tensors: Vec<&Tensor> = parts.iter().map(|part| part.tensor()).collect();
        let joined = join(OPERATION, &tensors, &widths)?;
        let backward = || -> Backward {
            let nodes: Vec<_> = parts.iter().map(|part| part.node()).collect();
            let widths = widths.clone();
            Box::new(move |dy, flow| {
                let mut start = 0;
                for (node, width) in nodes.into_iter().zip(widths) {
                    if let Some(node) = node {
                        flow.add(node, columns(&dy, start, width)?)?;
                    }
                    start += width;
                }
                Ok(())
            })
        };
        Var::computed_with_tangent(OPERATION, joined, parts, backward, || {
            let still = |part: &&Var| Ok(Var::constant(part.tensor().zeros_like()?));
            let tangents = parts.iter().map(|part| part.tangent().cloned().map_or_else(|| still(part), Ok));
            let tangents = tangents.collect::<Result<Vec<_>>>()?;
            Var::concat_channels(&tangents.iter().collect::<Vec<_>>()).map(Some)
        })
    }

    /// Every pixel of the images `self: [n, h, w, c]` as a square of `factor` by `factor` equal pixels: `[n, h·factor,
    /// w·factor, c]`. PyTorch's `interpolate` with `mode="nearest"` and a whole `scale_factor`.
    pub fn upsample_nearest(&self, factor: usize) -> Result<Var> {
        const OPERATION: &str = "upsample_nearest";
        let x = self.tensor();
        let in_dims = dims4(OPERATION, "x", x, "[batch, height, width, channels]")?;
        if factor == 0 {
            return Err(Error::value(OPERATION, "factor", factor, "no pixel would be left; use at least 1"));
        }
        let [images, height, width, channels] = in_dims;
        let image = [height, width, channels];
        let y = repeated(OPERATION, x, image, factor, &[images, height * factor, width * factor, channels])?;
        let backward = || -> Backward {
            let node = self.node();
            Box::new(move |dy, flow| {
                let Some(node) = node else { return Ok(()) };
                flow.add(node, repeated_backward(OPERATION, &dy, image, factor, &in_dims)?)
            })
        };
        Var::computed_with_tangent(OPERATION, y, &[self], backward, || {
            self.tangent().map(|tangent| tangent.upsample_nearest(factor)).transpose()
        })
    }

    /// The images `self: [n, h, w, c]` with rows and columns of zeros at `[top, bottom, left, right]`.
    pub fn pad_zeros(&self, border: [usize; 4]) -> Result<Var> {
        const OPERATION: &str = "pad_zeros";
        let x = self.tensor();
        let [images, height, width, channels] = dims4(OPERATION, "x", x, "[batch, height, width, channels]")?;
        let frame = Frame { inner: [height, width, channels], border };
        let [outer_height, outer_width, _] = frame.outer();
        let y = framed(OPERATION, x, frame, &[images, outer_height, outer_width, channels])?;
        let backward = || -> Backward {
            let node = self.node();
            Box::new(move |dy, flow| {
                let Some(node) = node else { return Ok(()) };
                flow.add(node, unframed(OPERATION, &dy, frame, &[images, height, width, channels])?)
            })
        };
        Var::computed_with_tangent(OPERATION, y, &[self], backward, || {
            self.tangent().map(|tangent| tangent.pad_zeros(border)).transpose()
        })
    }
}

fn join(operation: &'static str, parts: &[&Tensor], widths: &[usize]) -> Result<Tensor> {
    let mut dims = parts[0].dims().to_vec();
    if let Some(channels) = dims.last_mut() {
        *channels = widths.iter().sum();
    }
    on_gpu!(parts[0], gpu => super::cuda::places::join(&gpu, operation, parts, widths, &dims));
    by_element!(operation, "parts", parts[0], T => {
        let operands = parts.iter().map(|part| Operand::<T>::read(operation, "parts", part)).collect::<Result<Vec<_>>>()?;
        let slices: Vec<(&[T], usize)> = operands.iter().zip(widths).map(|(part, &width)| (&**part, width)).collect();
        tensor(places::join_columns(&slices), &dims)
    })
}

/// Channels `start..start + width`.
fn columns(dy: &Tensor, start: usize, width: usize) -> Result<Tensor> {
    const OPERATION: &str = "concat_channels backward";
    let mut dims = dy.dims().to_vec();
    let Some(channels) = dims.last_mut() else { unreachable!("what was joined has channels") };
    let all = std::mem::replace(channels, width);
    on_gpu!(dy, gpu => super::cuda::places::columns(&gpu, OPERATION, dy, all, [start, width], &dims));
    by_element!(OPERATION, "dy", dy, T => {
        tensor(places::take_columns(&Operand::<T>::read(OPERATION, "dy", dy)?, all, start, width), &dims)
    })
}

/// Every pixel of images of this height, this width and these channels as a square of `factor` by `factor`.
fn repeated(operation: &'static str, x: &Tensor, image: [usize; 3], factor: usize, dims: &[usize]) -> Result<Tensor> {
    on_gpu!(x, gpu => super::cuda::places::repeat_pixels(&gpu, operation, x, image, factor, dims));
    let [_, width, channels] = image;
    by_element!(operation, "x", x, T => {
        tensor(places::repeat_pixels(&Operand::<T>::read(operation, "x", x)?, width, channels, factor), dims)
    })
}

fn repeated_backward(
    operation: &'static str,
    dy: &Tensor,
    image: [usize; 3],
    factor: usize,
    dims: &[usize],
) -> Result<Tensor> {
    on_gpu!(dy, gpu => super::cuda::places::repeat_pixels_backward(&gpu, operation, dy, image, factor, dims));
    let [_, width, channels] = image;
    by_element!(operation, "dy", dy, T => {
        tensor(places::repeat_pixels_backward(&Operand::<T>::read(operation, "dy", dy)?, width, channels, factor), dims)
    })
}

fn framed(operation: &'static str, x: &Tensor, frame: Frame, dims: &[usize]) -> Result<Tensor> {
    on_gpu!(x, gpu => super::cuda::places::pad(&gpu, operation, x, frame, dims));
    by_element!(operation, "x", x, T => tensor(places::pad(&Operand::<T>::read(operation, "x", x)?, frame), dims))
}

fn unframed(operation: &'static str, dy: &Tensor, frame: Frame, dims: &[usize]) -> Result<Tensor> {
    on_gpu!(dy, gpu => super::cuda::places::cut(&gpu, operation, dy, frame, dims));
    by_element!(operation, "dy", dy, T => tensor(places::cut(&Operand::<T>::read(operation, "dy", dy)?, frame), dims))
}
