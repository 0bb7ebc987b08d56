//! The built-in mask: a white apple with a leaf on black, in the bottom right, drawn by integer arithmetic, so that it is
//! the same everywhere.
//!
//! BackdoorBench's mask, a company's mark, is not free to pass on. This one has about its place and area.

use tsbd_data::{CHANNELS, Picture};

/// Height and width of the picture in pixels. It is resized from here to whatever size is wanted.
pub const SIZE: usize = 224;

/// Draws the picture.
pub fn picture() -> Picture {
    let places = (0..SIZE * SIZE).map(|place| ((place % SIZE) as i32, (place / SIZE) as i32));
    let pixels = places.flat_map(|(x, y)| [if is_apple(x, y) { 255 } else { 0 }; CHANNELS]).collect();
    Picture { pixels, height: SIZE, width: SIZE }
}

/// Whether the pixel in column `x` and row `y` belongs to the apple.
fn is_apple(x: i32, y: i32) -> bool {
    let within = |center: (i32, i32), radius: i32| (x - center.0).pow(2) + (y - center.1).pow(2) < radius.pow(2);
    // Two shoulders, and below them a body that narrows to two feet.
    let shoulders = within((147, 160), 20) || within((175, 160), 20);
    let body = within((161, 170), 32);
    let feet = within((152, 186), 18) || within((170, 186), 18);
    let notch = within((161, 136), 9);
    let leaf = within((160, 116), 16) && within((176, 132), 16);
    (shoulders || body || feet) && !notch || leaf
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_32_pixels_the_mask_has_about_the_area_of_the_one_it_stands_for() {
        // BackdoorBench's mask: 117 pixels other than black, in rows 16 to 29 and columns 17 to 28.
        let small = picture().resized(32, 32);
        let places: Vec<usize> = (0..32 * 32).filter(|place| small.pixels[place * CHANNELS] > 0).collect();
        assert!((105..130).contains(&places.len()), "{} pixels", places.len());
        assert!(places.iter().all(|place| (16..30).contains(&(place / 32)) && (17..29).contains(&(place % 32))));
    }
}
