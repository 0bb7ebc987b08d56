//! What happens to a whole batch after its triggers are in: one crop, one rotation and one mirroring for all its images.

use tsbd_nn::{RandomStream, Result};
use tsbd_tensor::Tensor;

/// Pixels of zeros around a normalised image before a window of its own size is cut out.
pub const CROP_PADDING: usize = 5;
/// How often a batch is cropped.
const CROP_PROBABILITY: f64 = 0.8;
/// Largest rotation to either side, in degrees.
pub const ROTATION: f64 = 10.0;
/// How often a batch is rotated.
const ROTATION_PROBABILITY: f64 = 0.5;

/// What is done to all images of a batch, as drawn. In this order; what comes from outside an image is 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchAugmentation {
    /// The window's upper left corner in the padded image, 0 to twice the padding each: row, column.
    pub crop: Option<(usize, usize)>,
    /// Counterclockwise rotation about the middle in degrees, from the nearest pixels.
    pub rotation: Option<f64>,
    /// Whether left and right are exchanged.
    pub flip: bool,
}

impl BatchAugmentation {
    /// Draws what happens to one batch. Every batch takes the same amount of random numbers.
    pub fn draw(may_flip: bool, random: &mut RandomStream) -> BatchAugmentation {
        let mut sometimes = |probability| random.uniform() < probability;
        let (crop, rotation, flip) = (sometimes(CROP_PROBABILITY), sometimes(ROTATION_PROBABILITY), sometimes(0.5));
        let mut offset = || random.below(2 * CROP_PADDING as u64 + 1) as usize;
        let corner = (offset(), offset());
        let angle = random.uniform_in(-ROTATION, ROTATION);
        BatchAugmentation { crop: crop.then_some(corner), rotation: rotation.then_some(angle), flip: flip && may_flip }
    }

    /// The same for all images `f32` `[batch, height, width, channels]`.
    pub fn apply(&self, images: &Tensor) -> Result<Tensor> {
        let (batch, height, width, channels) = images.dims4()?;
        let sources: Vec<Option<usize>> =
            (0..height * width).map(|pixel| self.source(pixel / width, pixel % width, height, width)).collect();
        let values = images.flatten_all()?.to_vec1::<f32>()?;
        let mut augmented = vec![0.0; values.len()];
        let length = height * width * channels;
        for (augmented, image) in augmented.chunks_exact_mut(length).zip(values.chunks_exact(length)) {
            for (pixel, source) in augmented.chunks_exact_mut(channels).zip(&sources) {
                if let Some(source) = source {
                    pixel.copy_from_slice(&image[source * channels..][..channels]);
                }
            }
        }
        Ok(Tensor::from_vec(augmented, (batch, height, width, channels), images.device())?)
    }

    /// The pixel of the image that the augmented one shows at (`row`, `column`); nothing outside. The last step is undone
    /// first.
    fn source(&self, row: usize, column: usize, height: usize, width: usize) -> Option<usize> {
        let column = if self.flip { width - 1 - column } else { column };
        let (row, column) = match self.rotation {
            None => (row as i64, column as i64),
            Some(degrees) => {
                let (sin, cos) = degrees.to_radians().sin_cos();
                let middle = |size: usize| (size as f64 - 1.0) / 2.0;
                let (y, x) = (row as f64 - middle(height), column as f64 - middle(width));
                let (y, x) = (sin * x + cos * y + middle(height), cos * x - sin * y + middle(width));
                // Halves go to the even neighbour, as in torch's `grid_sample`.
                (y.round_ties_even() as i64, x.round_ties_even() as i64)
            }
        };
        let inside = |row: i64, column: i64| {
            let inside = (0..height as i64).contains(&row) && (0..width as i64).contains(&column);
            inside.then_some((row, column))
        };
        let (row, column) = inside(row, column)?;
        let (down, right) = self.crop.unwrap_or((CROP_PADDING, CROP_PADDING));
        let padding = CROP_PADDING as i64;
        let (row, column) = inside(row + down as i64 - padding, column + right as i64 - padding)?;
        Some(row as usize * width + column as usize)
    }
}
