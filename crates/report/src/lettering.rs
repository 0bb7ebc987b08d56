//! Text on a picture, in letters that are stored as grey levels: the same pixels on every machine.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use tsbd_data::{CHANNELS, Picture};

/// Sort and size of letters.
#[derive(Debug, Clone, Copy)]
pub struct Lettering {
    weight: FontWeight,
    size: RasterHeight,
}

/// For headings.
pub const BOLD: Lettering = Lettering { weight: FontWeight::Bold, size: RasterHeight::Size20 };
/// For everything else.
pub const PLAIN: Lettering = Lettering { weight: FontWeight::Regular, size: RasterHeight::Size16 };

impl Lettering {
    /// Height of a line in pixels.
    pub fn height(self) -> usize {
        self.size.val()
    }

    /// Width of a text in pixels; all letters are equally wide.
    pub fn width(self, text: &str) -> usize {
        text.chars().count() * get_raster_width(self.weight, self.size)
    }

    /// Writes `text` in black on the white `picture`, its top left corner in column `x` and row `y`. Characters outside
    /// ASCII appear as `?`; what lies outside the picture is cut off.
    pub fn write(self, text: &str, x: usize, y: usize, picture: &mut Picture) {
        for (position, letter) in text.chars().enumerate() {
            let raster = |letter| get_raster(letter, self.weight, self.size);
            let Some(letter) = raster(letter).or_else(|| raster('?')) else { continue };
            let left = x + position * get_raster_width(self.weight, self.size);
            for (row, levels) in letter.rows().enumerate() {
                for (column, &level) in levels.iter().enumerate().filter(|(_, level)| **level > 0) {
                    let (x, y) = (left + column, y + row);
                    if x < picture.width && y < picture.height {
                        let place = (y * picture.width + x) * CHANNELS;
                        picture.pixels[place..place + CHANNELS].fill(255 - level);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str, x: usize) -> Picture {
        let mut picture = Picture { pixels: vec![255; 60 * 20 * CHANNELS], height: 20, width: 60 };
        PLAIN.write(text, x, 2, &mut picture);
        picture
    }

    #[test]
    fn letters_differ_and_stay_within_their_width() {
        assert_ne!(written("A", 4), written("B", 4));
        let picture = written("WM", 4);
        let dark = |column: usize| (0..20).any(|row| picture.pixels[(row * 60 + column) * CHANNELS] < 128);
        assert!((4..4 + PLAIN.width("WM")).any(dark));
        assert!(!(0..4).chain(4 + PLAIN.width("WM")..60).any(dark));
    }

    #[test]
    fn what_cannot_be_written_is_a_question_mark_and_what_does_not_fit_is_cut_off() {
        assert_eq!(written("\u{4e00}", 4), written("?", 4));
        written("a long text that leaves the picture on its right side", 30);
    }
}
