//! Poisoned images as PNG files with a manifest, to look at or to compare with another implementation.

use std::io::Write as _;
use std::path::Path;

use tsbd_data::{ImageSource, write_png};

use crate::Error;
use crate::overlay::{PoisonedImages, TriggeredTest};

/// One exported image.
struct Exported<'a> {
    index: usize,
    pixels: &'a [u8],
    original_label: u32,
    given_label: u32,
}

/// Writes the poisoned images of a training set. Returns their number.
///
/// Files: `<folder>/<original label>/<index>.png`, and `<folder>/manifest.csv` with the columns
/// `file,index,original_label,given_label`, where `index` counts in the clean training set.
pub fn write_train(train: &PoisonedImages, folder: &Path) -> Result<usize, Error> {
    let exported = train.poisoned().iter().map(|&index| Exported {
        index,
        pixels: train.image(index),
        original_label: train.original_label(index),
        given_label: train.label(index),
    });
    write(exported, train.height(), train.width(), folder)
}

/// Writes the triggered test images, as [`write_train`] does; `index` counts in the clean test set.
pub fn write_test(test: &TriggeredTest, folder: &Path) -> Result<usize, Error> {
    let exported = (0..test.len()).map(|position| Exported {
        index: test.index(position),
        pixels: test.image(position),
        original_label: test.original_label(position),
        given_label: test.label(position),
    });
    write(exported, test.height(), test.width(), folder)
}

fn write<'a>(
    images: impl Iterator<Item = Exported<'a>>,
    height: usize,
    width: usize,
    folder: &Path,
) -> Result<usize, Error> {
    let mut manifest = String::from("file,index,original_label,given_label\n");
    let mut count = 0;
    for Exported { index, pixels, original_label, given_label } in images {
        let file = format!("{original_label}/{index}.png");
        let path = folder.join(&file);
        let parent = folder.join(original_label.to_string());
        fs_err::create_dir_all(parent)?;
        write_png(&path, pixels, (height, width))?;
        manifest.push_str(&format!("{file},{index},{original_label},{given_label}\n"));
        count += 1;
    }
    fs_err::create_dir_all(folder)?;
    fs_err::File::create(folder.join("manifest.csv"))?.write_all(manifest.as_bytes())?;
    Ok(count)
}
