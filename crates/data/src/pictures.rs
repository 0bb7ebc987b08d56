//! Single pictures as files: triggers to read, poisoned images to write.
//!
//! Not for data sets in their own formats; those are read by `datasets`.

use std::{io::BufWriter, path::Path};

use image::{ExtendedColorType, ImageEncoder, ImageReader, codecs::png::PngEncoder};

use crate::{CHANNELS, Error, Result, resize};

/// A single 8-bit RGB picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// `[height, width, channel]`, red first.
    pub pixels: Vec<u8>,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Picture {
    /// The picture at another size, as Pillow's `resize((width, height), BILINEAR)` gives it.
    pub fn resized(&self, height: usize, width: usize) -> Picture {
        let pixels = resize::bilinear(&self.pixels, (self.height, self.width), (height, width));
        Picture { pixels, height, width }
    }
}

/// Reads a PNG, JPEG or PNM file, told apart by its contents. Grey becomes RGB, an alpha channel is dropped, as Pillow's
/// `convert("RGB")` does. A JPEG's pixels may differ by a level or so from what libjpeg gives; lossless formats are exact.
pub fn read_rgb(path: &Path) -> Result<Picture> {
    let reader = ImageReader::new(std::io::BufReader::new(fs_err::File::open(path)?)).with_guessed_format()?;
    let decoded = reader.decode().map_err(|source| Error::Picture { path: path.to_path_buf(), source })?.into_rgb8();
    let (width, height) = decoded.dimensions();
    Ok(Picture { pixels: decoded.into_raw(), height: height as usize, width: width as usize })
}

/// Writes pixels `[height, width, 3]` as a PNG file; what [`read_rgb`] reads back is the same.
///
/// # Panics
/// If `pixels` has another length than `height * width * 3`.
pub fn write_png(path: &Path, pixels: &[u8], (height, width): (usize, usize)) -> Result<()> {
    assert_eq!(pixels.len(), height * width * CHANNELS, "pixels do not fit {height} x {width}");
    let file = BufWriter::new(fs_err::File::create(path)?);
    PngEncoder::new(file)
        .write_image(pixels, width as u32, height as u32, ExtendedColorType::Rgb8)
        .map_err(|source| Error::Picture { path: path.to_path_buf(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_picture_reads_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("picture.png");
        let pixels: Vec<u8> = (0..5 * 7 * 3).map(|value| (value * 37 % 256) as u8).collect();
        write_png(&path, &pixels, (5, 7)).unwrap();
        assert_eq!(read_rgb(&path).unwrap(), Picture { pixels, height: 5, width: 7 });
    }

    #[test]
    fn a_grey_picture_becomes_three_equal_channels() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("grey.pgm");
        fs_err::write(&path, b"P5 2 1 255\n\x10\xff").unwrap();
        assert_eq!(read_rgb(&path).unwrap().pixels, [16, 16, 16, 255, 255, 255]);
    }

    #[test]
    fn a_file_that_is_no_picture_is_named_in_the_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trigger.png");
        fs_err::write(&path, "no picture").unwrap();
        assert!(read_rgb(&path).unwrap_err().to_string().contains("trigger.png"));
        assert!(read_rgb(&folder.path().join("missing.png")).unwrap_err().to_string().contains("missing.png"));
    }
}
