//! Patterns given as files.
//!
//! The arrays that BackdoorBench ships come in two scales: whole levels of 0..=51 for most networks, shares of 0..0.2
//! for three. Its own rule adds the latter as they are, which truncates to the clean image. Here floats are shares of 255
//! and become `trunc(255 * share)` levels, as the others were made.

use std::path::Path;

use tsbd_attack::picture::to_levels;
use tsbd_attack::{ParameterError, picture};
use tsbd_data::{CHANNELS, Picture};

use crate::npy::{self, Array, Values};

const WAY_OUT: &str = "give an .npy array (uint8 levels, or floats from 0 to 1) or a PNG picture of the images' size";

/// Reads the pattern at `path`, which the user gave as parameter `field`; its digest as [`picture::read`] has it.
pub fn read(field: &str, path: &str, expected: Option<&str>) -> Result<(Picture, String), ParameterError> {
    let is_array = Path::new(path).extension().is_some_and(|end| end.eq_ignore_ascii_case("npy"));
    let (pattern, digest) = if is_array {
        let pattern = npy::read(Path::new(path)).and_then(from_array);
        let pattern = pattern.map_err(|reason| ParameterError::new(field, path, reason, WAY_OUT))?;
        picture::identified(field, path, pattern, expected)?
    } else {
        picture::read(field, path, expected)?
    };
    if pattern.pixels.iter().all(|level| *level == 0) {
        let reason = "every level of the pattern is 0, so it would change nothing";
        return Err(ParameterError::new(field, path, reason, WAY_OUT));
    }
    Ok((pattern, digest))
}

/// Refuses a pattern of another size than the images': it is never resized.
pub fn check_size(field: &str, path: &str, pattern: &Picture, size: usize) -> Result<(), ParameterError> {
    if (pattern.height, pattern.width) == (size, size) {
        return Ok(());
    }
    let reason = format!("the pattern has {}x{} pixels, the images {size}x{size}", pattern.height, pattern.width);
    let way_out = format!("give a pattern of {size}x{size} pixels, or write pattern = \"{}\"", crate::SEARCHED);
    Err(ParameterError::new(field, path, reason, way_out))
}

fn from_array(array: Array) -> Result<Picture, String> {
    let (height, width, channels) = match array.shape[..] {
        [height, width] => (height, width, 1),
        // Of several patterns the reference takes the first.
        [height, width, CHANNELS] | [_, height, width, CHANNELS] => (height, width, CHANNELS),
        _ => return Err(format!("its shape is {:?}", array.shape)),
    };
    if array.shape.contains(&0) {
        return Err(format!("its shape is {:?}", array.shape));
    }
    let count = height * width * channels;
    let levels: Vec<u8> = match array.values {
        Values::Bytes(levels) => levels[..count].to_vec(),
        Values::Floats(shares) => {
            if let Some(share) = shares[..count].iter().find(|share| !(0.0..=1.0).contains(*share)) {
                return Err(format!("it has the value {share}, and a share of 255 lies between 0 and 1"));
            }
            to_levels(&shares[..count])
        }
    };
    let pixels = match channels {
        CHANNELS => levels,
        _ => levels.into_iter().flat_map(|level| [level; CHANNELS]).collect(),
    };
    Ok(Picture { pixels, height, width })
}
