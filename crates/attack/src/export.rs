//! Poisoned images as PNG files with a manifest, to look at or to compare with another implementation.

use std::path::Path;

use rayon::prelude::*;
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

impl Exported<'_> {
    /// Its path in the folder.
    fn file(&self) -> String {
        format!("{}/{}.png", self.original_label, self.index)
    }
}

/// Writes the poisoned images of a training set. Returns their number.
///
/// Files: `<folder>/<original label>/<index>.png`, and `<folder>/manifest.csv` with the columns
/// `file,index,original_label,given_label`, where `index` counts in the clean training set. The folder, which must be
/// empty or new, appears with all of them or not at all.
pub fn write_train(train: &PoisonedImages, folder: &Path) -> Result<usize, Error> {
    let exported = train.poisoned().iter().map(|&index| Exported {
        index,
        pixels: train.image(index),
        original_label: train.original_label(index),
        given_label: train.label(index),
    });
    write(&exported.collect::<Vec<_>>(), (train.height(), train.width()), folder)
}

/// Writes the triggered test images, as [`write_train`] does; `index` counts in the clean test set.
pub fn write_test(test: &TriggeredTest, folder: &Path) -> Result<usize, Error> {
    let exported = (0..test.len()).map(|position| Exported {
        index: test.index(position),
        pixels: test.image(position),
        original_label: test.original_label(position),
        given_label: test.label(position),
    });
    write(&exported.collect::<Vec<_>>(), (test.height(), test.width()), folder)
}

fn write(images: &[Exported<'_>], size: (usize, usize), folder: &Path) -> Result<usize, Error> {
    let beside = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs_err::create_dir_all(beside)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".tsbd-poison-");
    #[cfg(unix)]
    {
        // As open as the user's umask lets any new folder be.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o777));
    }
    let unfinished = builder.tempdir_in(beside)?;
    let mut labels: Vec<u32> = images.iter().map(|image| image.original_label).collect();
    labels.sort_unstable();
    labels.dedup();
    for label in labels {
        fs_err::create_dir(unfinished.path().join(label.to_string()))?;
    }
    images.par_iter().try_for_each(|image| write_png(&unfinished.path().join(image.file()), image.pixels, size))?;
    let mut manifest = String::from("file,index,original_label,given_label\n");
    for image in images {
        let Exported { index, original_label, given_label, .. } = image;
        manifest.push_str(&format!("{},{index},{original_label},{given_label}\n", image.file()));
    }
    fs_err::write(unfinished.path().join("manifest.csv"), manifest)?;
    if folder.exists() {
        // Fails if the folder is not empty.
        fs_err::remove_dir(folder)?;
    }
    fs_err::rename(unfinished.path(), folder)?;
    // Moved away: there is nothing to remove.
    let _ = unfinished.keep();
    Ok(images.len())
}
