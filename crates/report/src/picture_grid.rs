//! Pictures beside and below each other, with titles: triggers, for one. Whole pixels only, so that small images can be
//! looked at pixel by pixel, and the same bytes come out on every machine.

use tsbd_data::{CHANNELS, Picture};

use crate::error::{Error, Result};
use crate::lettering::{BOLD, PLAIN};

/// Pictures in rows and columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PictureGrid {
    /// What is shown.
    pub title: String,
    /// The title of each row.
    pub rows: Vec<String>,
    /// The columns, each with one picture per row.
    pub columns: Vec<GridColumn>,
}

/// One column of a [`PictureGrid`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GridColumn {
    /// Its title.
    pub title: String,
    /// Its pictures, from the top. A picture may be of any size: it is enlarged by a whole factor.
    pub pictures: Vec<Picture>,
}

/// Height and width in pixels of the square that a picture is shown in.
const TILE: usize = 128;
/// Between tiles.
const GAP: usize = 8;
/// Around everything.
const MARGIN: usize = 20;

impl PictureGrid {
    /// The grid as one picture.
    pub fn draw(&self) -> Picture {
        let label = self.rows.iter().map(|row| PLAIN.width(row)).max().unwrap_or(0);
        let left = MARGIN + label + 2 * GAP;
        let top = MARGIN + BOLD.height() + 2 * GAP + PLAIN.height() + GAP;
        let across = self.columns.iter().map(|column| PLAIN.width(&column.title)).max().unwrap_or(0).max(TILE) + GAP;
        let below = MARGIN + self.rows.len() * (TILE + GAP) - GAP;
        let width = (left + self.columns.len() * across - GAP + MARGIN).max(2 * MARGIN + BOLD.width(&self.title));
        let height = top + below;
        let mut drawn = Picture { pixels: vec![255; width * height * CHANNELS], height, width };
        BOLD.write(&self.title, MARGIN, MARGIN, &mut drawn);
        for (row, title) in self.rows.iter().enumerate() {
            let y = top + row * (TILE + GAP) + (TILE - PLAIN.height()) / 2;
            PLAIN.write(title, MARGIN + label - PLAIN.width(title), y, &mut drawn);
        }
        for (index, column) in self.columns.iter().enumerate() {
            let x = left + index * across;
            let centred = x + (TILE.saturating_sub(PLAIN.width(&column.title))) / 2;
            PLAIN.write(&column.title, centred, top - GAP - PLAIN.height(), &mut drawn);
            for (row, picture) in column.pictures.iter().enumerate() {
                paste(picture, x, top + row * (TILE + GAP), &mut drawn);
            }
        }
        drawn
    }
}

/// Under which keyword a file says what it shows.
const REMARK: &str = "Source";

impl PictureGrid {
    /// The grid as a PNG file that says of itself what it shows, for [`remark`] to read.
    ///
    /// # Errors
    /// The remark has other characters than ASCII.
    pub fn png(&self, remark: &str) -> Result<Vec<u8>> {
        let Picture { pixels, height, width } = self.draw();
        let failed = |error: png::EncodingError| Error::Chart(error.to_string());
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.add_text_chunk(REMARK.to_owned(), remark.to_owned()).map_err(failed)?;
        let mut writer = encoder.write_header().map_err(failed)?;
        writer.write_image_data(&pixels).map_err(failed)?;
        writer.finish().map_err(failed)?;
        Ok(bytes)
    }
}

/// What a file of [`PictureGrid::png`] says that it shows; `None` of any other file.
pub fn remark(png: &[u8]) -> Option<String> {
    let reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().ok()?;
    let chunks = &reader.info().uncompressed_latin1_text;
    chunks.iter().find(|chunk| chunk.keyword == REMARK).map(|chunk| chunk.text.clone())
}

/// Puts `picture`, enlarged by the largest whole factor that fits a tile, in the middle of the tile at `x` and `y`. A
/// picture larger than a tile loses rows and columns evenly.
fn paste(picture: &Picture, x: usize, y: usize, onto: &mut Picture) {
    let larger = picture.height.max(picture.width).max(1);
    let (factor, divisor) = ((TILE / larger).max(1), larger.div_ceil(TILE));
    let shown = |side: usize| side * factor / divisor;
    let (height, width) = (shown(picture.height), shown(picture.width));
    let (x, y) = (x + (TILE - width) / 2, y + (TILE - height) / 2);
    for row in 0..height {
        for column in 0..width {
            let from = (row * divisor / factor * picture.width + column * divisor / factor) * CHANNELS;
            let to = ((y + row) * onto.width + x + column) * CHANNELS;
            onto.pixels[to..to + CHANNELS].copy_from_slice(&picture.pixels[from..from + CHANNELS]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(level: u8, side: usize) -> Picture {
        Picture { pixels: vec![level; side * side * CHANNELS], height: side, width: side }
    }

    fn grid() -> PictureGrid {
        let column = |title: &str, level: u8| GridColumn {
            title: title.to_owned(),
            pictures: vec![plain(level, 32), plain(level + 1, 64), plain(level + 2, 300)],
        };
        let rows = ["clean", "triggered", "residual x 10"].map(str::to_owned).to_vec();
        PictureGrid { title: "Triggers".to_owned(), rows, columns: vec![column("BadNets", 10), column("SIG", 20)] }
    }

    #[test]
    fn every_picture_fills_its_own_tile_whatever_its_size() {
        let drawn = grid().draw();
        let count = |level: u8| drawn.pixels.chunks(CHANNELS).filter(|pixel| *pixel == [level; 3]).count();
        for level in [10, 11, 20, 21] {
            // Letters have such grey levels too, but few.
            assert!((TILE * TILE..TILE * TILE + 40).contains(&count(level)), "{level}: {}", count(level));
        }
        for level in [12, 22] {
            assert!((100 * 100..=100 * 100 + 40).contains(&count(level)), "{level}: {}", count(level));
        }
    }

    #[test]
    fn the_same_grid_gives_the_same_bytes_and_a_title_changes_them() {
        let (first, mut other) = (grid().draw(), grid());
        assert_eq!(first, grid().draw());
        assert_eq!(first.pixels.len(), first.height * first.width * CHANNELS);
        other.columns[1].title = "SSBA".to_owned();
        assert_ne!(other.draw(), first);
    }

    #[test]
    fn a_file_says_what_it_shows() {
        let png = grid().png("cells a b").unwrap();
        assert_eq!(remark(&png).as_deref(), Some("cells a b"));
        let read = image::load_from_memory(&png).unwrap().into_rgb8();
        let drawn = grid().draw();
        assert_eq!((read.height() as usize, read.width() as usize), (drawn.height, drawn.width));
        assert_eq!(read.into_raw(), drawn.pixels);
        assert_eq!(remark(b"no picture"), None);
    }

    #[test]
    fn long_titles_move_columns_apart_and_an_empty_grid_is_only_its_title() {
        let mut wide = grid();
        wide.columns[0].title = "a title that is wider than a tile".to_owned();
        assert!(wide.draw().width > grid().draw().width);
        let empty = PictureGrid { rows: vec!["clean".to_owned()], columns: Vec::new(), ..grid() };
        assert!(empty.draw().height > 0);
    }
}
