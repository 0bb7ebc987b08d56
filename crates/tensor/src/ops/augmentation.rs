//! Batches cut out of a data set that lies, 8 bits a value, on the device that computes.

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::kernels::augmentation::{self, COLORS};
use crate::operand::{Operand, dims4, exact, on_gpu, tensor};

/// Where the window of an image lies that is shown instead of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Placement {
    /// Rows by which the window lies above the image, negative if below.
    pub up: i32,
    /// Columns by which the window lies left of the image, negative if right.
    pub left: i32,
    /// Whether the window is then mirrored left to right.
    pub mirrored: bool,
}

/// Normalised images `[indices, height, width, 3]` (`f32`), on the device of `pixels`: `u8`, `[images, height, width, 3]`.
/// Number `i` shows the image `indices[i]` as `placements[i]` says; outside the image every level is 0. `table` has the
/// value of each level of each channel. All devices give the same bits.
///
/// # Errors
/// If shapes, numbers of placements or indices do not fit.
pub fn augment(
    pixels: &Tensor,
    indices: &[u32],
    placements: &[Placement],
    table: &[[f32; 256]; COLORS],
) -> Result<Tensor> {
    const OPERATION: &str = "augment";
    let [images, height, width, colors] = dims4(OPERATION, "pixels", pixels, "[images, height, width, 3]")?;
    exact(OPERATION, "pixels", pixels, &[images, height, width, COLORS], "three channels")?;
    if let Some(index) = indices.iter().find(|&&index| index as usize >= images) {
        return Err(Error::value(
            OPERATION,
            "indices",
            index,
            format!("there are {images} images; use 0 to {}", images - 1),
        ));
    }
    if placements.len() != indices.len() || indices.is_empty() {
        let reason = format!("there are {} indices; give a placement for each of at least one", indices.len());
        return Err(Error::value(OPERATION, "placements", placements.len(), reason));
    }
    let placements: Vec<[i32; 3]> =
        placements.iter().map(|placement| [placement.up, placement.left, placement.mirrored.into()]).collect();
    let dims = [indices.len(), height, width, colors];
    on_gpu!(pixels, gpu => super::cuda::augment(&gpu, pixels, indices, &placements, table, dims));
    let pixels = Operand::<u8>::read(OPERATION, "pixels", pixels)?;
    tensor(augmentation::augment(&pixels, indices, &placements, table.as_flattened(), [height, width]), &dims)
}

/// All `pixels` `[images, height, width, 3]` of a data set as one tensor on `device`, for [`augment`].
///
/// # Errors
/// If there are not as many as the sizes say, or the device has no room for them.
pub fn upload(pixels: Vec<u8>, [images, height, width]: [usize; 3], device: &Device) -> Result<Tensor> {
    Ok(Tensor::from_vec(pixels, (images, height, width, COLORS), device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_and_placements_that_do_not_fit_are_refused() {
        let pixels = upload(vec![7; 2 * 4 * 3 * 3], [2, 4, 3], &Device::Cpu).unwrap();
        let table = [[0.5; 256]; COLORS];
        let here = Placement::default();
        assert_eq!(augment(&pixels, &[1, 0, 1], &[here; 3], &table).unwrap().dims(), [3, 4, 3, 3]);
        let refused = |indices: &[u32], placements: &[Placement]| {
            augment(&pixels, indices, placements, &table).unwrap_err().to_string()
        };
        assert!(refused(&[0, 2], &[here; 2]).contains("indices = 2"));
        assert!(refused(&[0, 1], &[here]).contains("placements = 1"));
        assert!(refused(&[], &[]).contains("at least one"));
    }
}
