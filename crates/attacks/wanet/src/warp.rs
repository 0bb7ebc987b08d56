//! The trigger: a fixed, smooth field of displacements along which an image is sampled.

use tsbd_nn::{RandomStream, Result};
use tsbd_tensor::{GridPadding, GridSample, Tensor, Var};

/// Cubic convolution's free parameter, as in PyTorch's bicubic interpolation.
const A: f64 = -0.75;

/// How images are sampled: on normalised values, from zeros outside, with -1 and 1 in the middle of the outermost pixels.
const SAMPLING: GridSample = GridSample { padding: GridPadding::Zeros, align_corners: true };

/// Where each pixel of a warped image is taken from.
#[derive(Debug, Clone)]
pub struct Warp {
    size: usize,
    /// `[size, size, 2]`: x (along a row) and y of each pixel's source, in [-1, 1].
    grid: Vec<f32>,
}

/// What makes a warp of a field of random displacements.
#[derive(Debug, Clone, Copy)]
pub struct Strength {
    /// Mean displacement in half pixels.
    pub strength: f64,
    /// What the warped coordinates are multiplied with.
    pub grid_rescale: f64,
}

/// A field `[2, points, points]` (x first), uniform in [-1, 1).
pub fn draw_field(points: usize, random: &mut RandomStream) -> Vec<f32> {
    (0..2 * points * points).map(|_| random.uniform_in(-1.0, 1.0) as f32).collect()
}

impl Warp {
    /// The warp of `size x size` images by a `field` `[2, points, points]` (x first) of any scale: it is divided by its
    /// mean magnitude, interpolated to every pixel, and added to the pixels' own coordinates as `strength * field / size`.
    pub fn new(field: &[f32], size: usize, Strength { strength, grid_rescale }: Strength) -> Warp {
        let points = (field.len() / 2).isqrt();
        let mean = field.iter().map(|value| value.abs()).sum::<f32>() / field.len() as f32;
        let field: Vec<f32> = field.iter().map(|value| value / mean).collect();
        let taps: Vec<[(usize, f64); 4]> = (0..size).map(|pixel| taps(pixel, points, size)).collect();
        let own = |pixel: usize| (2.0 * pixel as f64 / (size - 1) as f64 - 1.0) as f32;
        let mut grid = Vec::with_capacity(size * size * 2);
        for (row, down) in taps.iter().enumerate() {
            for (column, along) in taps.iter().enumerate() {
                for (coordinate, own) in [own(column), own(row)].into_iter().enumerate() {
                    let field = &field[coordinate * points * points..];
                    let across = |y: usize| -> f64 {
                        along.iter().map(|(x, weight)| weight * f64::from(field[y * points + x])).sum()
                    };
                    let displacement = down.iter().map(|(y, weight)| weight * across(*y)).sum::<f64>() as f32;
                    let warped = (own + strength as f32 * displacement / size as f32) * grid_rescale as f32;
                    grid.push(warped.clamp(-1.0, 1.0));
                }
            }
        }
        Warp { size, grid }
    }

    /// Warps images `f32` `[batch, size, size, 3]`.
    pub fn apply(&self, images: &Tensor) -> Result<Tensor> {
        self.sample(images, self.grid.repeat(images.dim(0)?))
    }

    /// Warps images as [`Self::apply`] does, each pixel's source moved by `(2 * noise - 1) / size` in both coordinates:
    /// the training's noise mode. `noise` gives numbers in [0, 1), `[batch, size, size, 2]`.
    pub fn apply_noisily(&self, images: &Tensor, mut noise: impl FnMut() -> f32) -> Result<Tensor> {
        let mut grid = self.grid.repeat(images.dim(0)?);
        for place in &mut grid {
            *place = (*place + (noise() * 2.0 - 1.0) / self.size as f32).clamp(-1.0, 1.0);
        }
        self.sample(images, grid)
    }

    fn sample(&self, images: &Tensor, grid: Vec<f32>) -> Result<Tensor> {
        let grid = Tensor::from_vec(grid, (images.dim(0)?, self.size, self.size, 2), images.device())?;
        let images = Var::constant(images.contiguous()?);
        Ok(images.grid_sample(&Var::constant(grid), SAMPLING)?.tensor().clone())
    }

    /// `[size, size, 2]`, x first: the source of each pixel.
    pub fn grid(&self) -> &[f32] {
        &self.grid
    }
}

/// The four points of a line of `points` that pixel `pixel` of `size` is interpolated from, with their weights. The
/// outermost points and pixels lie on each other; beyond them the outermost point goes on.
fn taps(pixel: usize, points: usize, size: usize) -> [(usize, f64); 4] {
    let place = pixel as f64 * (points - 1) as f64 / (size - 1) as f64;
    let (left, t) = (place.floor(), place.fract());
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
    std::array::from_fn(|tap| {
        let point = (left + tap as f64 - 1.0).clamp(0.0, (points - 1) as f64);
        (point as usize, weights[tap])
    })
}
