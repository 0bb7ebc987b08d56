//! The built-in picture of the Blended attack: a black-ringed face before broad diagonal bands, drawn by integer
//! arithmetic, so that it is the same everywhere.
//!
//! What a network learns of a blended picture is its large structures: after blending with alpha = 0.2 a white area
//! beside a black one leaves a step of 51 grey levels. So the shapes are a tenth of the picture or larger, and most
//! borders are between dark and light.

use tsbd_data::Picture;

/// Height and width of the picture in pixels. It is resized from here to whatever size is wanted.
pub const SIZE: usize = 256;

const WHITE: [u8; 3] = [255, 255, 255];
const BLACK: [u8; 3] = [0, 0, 0];
const RED: [u8; 3] = [230, 20, 60];
const YELLOW: [u8; 3] = [255, 225, 40];

/// Draws the picture.
pub fn picture() -> Picture {
    let places = (0..SIZE * SIZE).map(|place| ((place % SIZE) as i32, (place / SIZE) as i32));
    Picture { pixels: places.flat_map(|(x, y)| color(x, y)).collect(), height: SIZE, width: SIZE }
}

/// The colour of the pixel in column `x` and row `y`.
fn color(x: i32, y: i32) -> [u8; 3] {
    let within = |center: (i32, i32), radius: i32| (x - center.0).pow(2) + (y - center.1).pow(2) < radius.pow(2);
    let eyes = within((92, 112), 17) || within((164, 112), 17);
    let mouth = within((128, 150), 40) && y >= 160;
    if eyes || mouth {
        BLACK
    } else if within((128, 132), 84) {
        YELLOW
    } else if within((128, 132), 100) {
        BLACK
    } else if within((40, 40), 34) {
        RED
    } else {
        match (x + y) / 52 % 2 {
            0 => WHITE,
            _ => BLACK,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_has_at_least_the_contrast_of_the_one_it_stands_for() {
        // The picture that BackdoorBench blends has a standard deviation of 68.9 at 32x32, this one 105.9 (printed by
        // tools/reference/triggers.py).
        let values: Vec<f64> = picture().pixels.iter().map(|value| f64::from(*value)).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let deviation = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
        assert!(deviation > 90.0, "{deviation}");
        assert!((80.0..176.0).contains(&mean), "{mean}");
    }
}
