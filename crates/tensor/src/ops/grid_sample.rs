//! Sampling of images at given points (Jaderberg et al. 2015, spatial transformer networks).

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::kernels::grid_sample::{self, Sampling};
use crate::operand::{Operand, by_element, dims4, on_gpu, tensor};
use crate::tape::Var;

/// Options of [`Var::grid_sample`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GridSample {
    /// What lies outside the images.
    pub padding: GridPadding,
    /// Whether the coordinates -1 and 1 are the middles of the outermost pixels (`true`) or their outer edges
    /// (`false`, PyTorch's default).
    pub align_corners: bool,
}

/// What [`Var::grid_sample`] finds outside the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GridPadding {
    /// Zeros, also in the interpolation at the border.
    Zeros,
    /// The nearest point of the border. No gradient flows to a coordinate that was moved to it.
    Border,
}

impl Var {
    /// The images `self: [n, h, w, c]` at the points `grid: [n, out h, out w, 2]`, interpolated bilinearly:
    /// `[n, out h, out w, c]`. A point is `(x, y)`, from -1 (left, top) to 1 (right, bottom), as PyTorch's
    /// `grid_sample`. Gradients flow to images and grid.
    ///
    /// A coordinate that is not a number gives NaN; so does an infinite one with [`GridPadding::Zeros`]. PyTorch agrees
    /// for zeros; for the border it reads the first row or column instead, which would hide the mistake.
    ///
    /// On a GPU the grid is `f32` also of `bf16` images. There the gradient of the images looks at every point for each of
    /// their elements: a use for images of tens of pixels a side.
    pub fn grid_sample(&self, grid: &Var, options: GridSample) -> Result<Var> {
        const OPERATION: &str = "grid_sample";
        let (x, points) = (self.tensor(), grid.tensor());
        let [images, height, width, channels] = dims4(OPERATION, "x", x, "[batch, height, width, channels]")?;
        let [grids, out_height, out_width, coordinates] =
            dims4(OPERATION, "grid", points, "[batch, height, width, 2]")?;
        if grids != images || coordinates != 2 {
            let expected = format!("[{images}, _, _, 2], an x and a y per pixel for each of {images} images");
            return Err(Error::shape(OPERATION, "grid", expected, points.dims()));
        }
        let sampling = Sampling {
            height,
            width,
            channels,
            points: out_height * out_width,
            align_corners: options.align_corners,
            clamp: options.padding == GridPadding::Border,
        };
        let y = sampled(OPERATION, &sampling, x, points, &[images, out_height, out_width, channels])?;
        Var::computed(OPERATION, y, &[self, grid], || {
            let (x_node, grid_node) = (self.node(), grid.node());
            let points = points.clone();
            // Only the gradient of the grid needs the images themselves.
            let kept_x = grid_node.map(|node| (node, x.clone()));
            let in_dims = [images, height, width, channels];
            Box::new(move |dy, flow| {
                if let Some((node, x)) = kept_x {
                    flow.add(node, grid_gradient(&sampling, &x, &points, &dy)?)?;
                }
                match x_node {
                    Some(node) => flow.add(node, image_gradient(&sampling, &points, &dy, &in_dims)?),
                    None => Ok(()),
                }
            })
        })
    }
}

fn sampled(operation: &'static str, s: &Sampling, x: &Tensor, grid: &Tensor, dims: &[usize]) -> Result<Tensor> {
    on_gpu!(x, gpu => super::cuda::resampling::sample(&gpu, operation, s, x, grid, dims));
    by_element!(operation, "x", x, T => {
        let (x, points) = (Operand::<T>::read(operation, "x", x)?, Operand::<T>::read(operation, "grid", grid)?);
        tensor(grid_sample::sample(s, &x, &points), dims)
    })
}

const BACKWARD: &str = "grid_sample backward";

fn grid_gradient(sampling: &Sampling, x: &Tensor, grid: &Tensor, dy: &Tensor) -> Result<Tensor> {
    on_gpu!(dy, gpu => super::cuda::resampling::sample_backward_grid(&gpu, BACKWARD, sampling, x, grid, dy));
    by_element!(BACKWARD, "dy", dy, T => {
        let x = Operand::<T>::read(BACKWARD, "x", x)?;
        let points = Operand::<T>::read(BACKWARD, "grid", grid)?;
        let dy = Operand::<T>::read(BACKWARD, "dy", dy)?;
        tensor(grid_sample::sample_backward_grid(sampling, &x, &points, &dy), grid.dims())
    })
}

fn image_gradient(sampling: &Sampling, grid: &Tensor, dy: &Tensor, dims: &[usize]) -> Result<Tensor> {
    on_gpu!(dy, gpu => super::cuda::resampling::sample_backward_images(&gpu, BACKWARD, sampling, grid, dy, dims));
    by_element!(BACKWARD, "dy", dy, T => {
        let points = Operand::<T>::read(BACKWARD, "grid", grid)?;
        let dy = Operand::<T>::read(BACKWARD, "dy", dy)?;
        tensor(grid_sample::sample_backward_images(sampling, &points, &dy), dims)
    })
}
