//! Images in memory: 8-bit, height x width x channel, decoded once and shared read-only.
//!
//! Everything that changes images (an attack, a subset) is another [`ImageSource`] over the same pixels; nothing here is mutable.

use std::{collections::BTreeMap, sync::Arc};

use rayon::prelude::*;

use crate::resize;

/// Channels of every image: red, green, blue.
pub const CHANNELS: usize = 3;

/// A sequence of labelled images of one size: a data set, a poisoned overlay of one, a subset of one.
pub trait ImageSource: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;
    /// The pixels of image `index < len()`: `[height, width, channel]`, red first.
    fn image(&self, index: usize) -> &[u8];
    /// The label of image `index < len()` that training sees.
    fn label(&self, index: usize) -> u32;
    /// Rows of every image.
    fn height(&self) -> usize;
    /// Columns of every image.
    fn width(&self) -> usize;
    /// Whether there is no image at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// All images of one split of a data set, with their labels and a digest of both.
#[derive(Clone, PartialEq)]
pub struct Images {
    pixels: Vec<u8>,
    labels: Vec<u32>,
    height: usize,
    width: usize,
    class_count: usize,
    digest: String,
}

impl Images {
    /// Takes pixels `[n, height, width, 3]` and `n` labels below `class_count`.
    ///
    /// # Panics
    /// If the lengths do not fit each other or a label is out of range: a reader checks its file before it comes here.
    pub fn new(pixels: Vec<u8>, labels: Vec<u32>, (height, width): (usize, usize), class_count: usize) -> Images {
        assert_eq!(pixels.len(), labels.len() * height * width * CHANNELS, "pixels do not fit {} images", labels.len());
        assert!(labels.iter().all(|&label| (label as usize) < class_count), "a label is not below {class_count}");
        let digest = digest(&pixels, &labels, height, width, class_count);
        Images { pixels, labels, height, width, class_count, digest }
    }

    /// All pixels, `[n, height, width, channel]`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// All labels, in the images' order.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Number of classes; every label is below it.
    pub fn class_count(&self) -> usize {
        self.class_count
    }

    /// BLAKE3 over sizes, pixels and labels, in hexadecimal: equal digests mean equal data.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Number of images of each class.
    pub fn images_per_class(&self) -> Vec<usize> {
        let mut counts = vec![0; self.class_count];
        for &label in &self.labels {
            counts[label as usize] += 1;
        }
        counts
    }

    /// The same images at `size x size` pixels, resized as Pillow does (bilinear with antialiasing).
    pub fn resized(&self, size: usize) -> Images {
        if self.is_empty() || (self.height, self.width) == (size, size) {
            return self.clone();
        }
        let from = (self.height, self.width);
        let images = self.pixels.par_chunks_exact(self.height * self.width * CHANNELS);
        let pixels: Vec<u8> = images.flat_map_iter(|image| resize::bilinear(image, from, (size, size))).collect();
        Images::new(pixels, self.labels.clone(), (size, size), self.class_count)
    }
}

/// Sizes and digest only: an image set is too large to print.
impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images")
            .field("count", &self.labels.len())
            .field("height", &self.height)
            .field("width", &self.width)
            .field("class_count", &self.class_count)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl ImageSource for Images {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn image(&self, index: usize) -> &[u8] {
        let size = self.height * self.width * CHANNELS;
        &self.pixels[index * size..(index + 1) * size]
    }

    fn label(&self, index: usize) -> u32 {
        self.labels[index]
    }

    fn height(&self) -> usize {
        self.height
    }

    fn width(&self) -> usize {
        self.width
    }
}

/// Some images of another source, in a given order: the defender's clean subset, for one.
#[derive(Clone)]
pub struct Subset {
    source: Arc<dyn ImageSource>,
    indices: Vec<u32>,
}

impl Subset {
    /// The images `indices` of `source`, in that order.
    ///
    /// # Panics
    /// If an index is not below `source.len()`.
    pub fn new(source: Arc<dyn ImageSource>, indices: Vec<u32>) -> Subset {
        assert!(indices.iter().all(|&index| (index as usize) < source.len()), "an index is not below {}", source.len());
        Subset { source, indices }
    }

    /// Positions in the source, in this subset's order.
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// Number of images of each class that occurs.
    pub fn images_per_class(&self) -> BTreeMap<u32, usize> {
        let mut counts = BTreeMap::new();
        for index in 0..self.len() {
            *counts.entry(self.label(index)).or_default() += 1;
        }
        counts
    }
}

impl ImageSource for Subset {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn image(&self, index: usize) -> &[u8] {
        self.source.image(self.indices[index] as usize)
    }

    fn label(&self, index: usize) -> u32 {
        self.source.label(self.indices[index] as usize)
    }

    fn height(&self) -> usize {
        self.source.height()
    }

    fn width(&self) -> usize {
        self.source.width()
    }
}

fn digest(pixels: &[u8], labels: &[u32], height: usize, width: usize, class_count: usize) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("tsbd images, version 1: sizes, pixels, labels");
    for size in [labels.len(), height, width, class_count] {
        hasher.update(&(size as u64).to_le_bytes());
    }
    hasher.update(pixels);
    let labels: Vec<u8> = labels.iter().flat_map(|label| label.to_le_bytes()).collect();
    hasher.update(&labels);
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_images() -> (Vec<u8>, Vec<u32>) {
        ((0..2 * 2 * 2 * 3).collect(), vec![1, 0])
    }

    #[test]
    fn an_image_and_its_label_are_found_by_index() {
        let (pixels, labels) = two_images();
        let images = Images::new(pixels, labels, (2, 2), 2);
        assert_eq!((images.len(), images.height(), images.width()), (2, 2, 2));
        assert_eq!(images.image(1), (12..24).collect::<Vec<u8>>());
        assert_eq!((images.label(0), images.label(1)), (1, 0));
        assert_eq!(images.images_per_class(), [1, 1]);
    }

    #[test]
    fn one_changed_bit_of_a_pixel_or_a_label_changes_the_digest() {
        let (pixels, labels) = two_images();
        let images = Images::new(pixels.clone(), labels.clone(), (2, 2), 2);
        let mut flipped = pixels.clone();
        flipped[23] ^= 1;
        assert_ne!(Images::new(flipped, labels.clone(), (2, 2), 2).digest(), images.digest());
        assert_ne!(Images::new(pixels.clone(), vec![1, 1], (2, 2), 2).digest(), images.digest());
        assert_ne!(Images::new(pixels.clone(), labels.clone(), (1, 4), 2).digest(), images.digest());
        assert_eq!(Images::new(pixels, labels, (2, 2), 2).digest(), images.digest());
    }

    #[test]
    fn resized_images_keep_their_labels_and_order() {
        let pixels: Vec<u8> = (0..3u8).flat_map(|image| [image * 60; 4 * 4 * 3]).collect();
        let resized = Images::new(pixels, vec![2, 0, 1], (4, 4), 3).resized(2);
        assert_eq!((resized.height(), resized.width(), resized.labels()), (2, 2, &[2, 0, 1][..]));
        for index in 0..3 {
            assert_eq!(resized.image(index), [index as u8 * 60; 12]);
        }
    }

    #[test]
    fn a_subset_shows_the_chosen_images_in_the_chosen_order() {
        let (pixels, labels) = two_images();
        let images: Arc<dyn ImageSource> = Arc::new(Images::new(pixels, labels, (2, 2), 2));
        let subset = Subset::new(images.clone(), vec![1, 0, 1]);
        assert_eq!(subset.len(), 3);
        assert_eq!(subset.image(0), images.image(1));
        assert_eq!((subset.label(0), subset.label(1)), (0, 1));
        assert_eq!(subset.images_per_class(), BTreeMap::from([(0, 2), (1, 1)]));
    }

    #[test]
    #[should_panic(expected = "a label is not below 2")]
    fn a_label_out_of_range_is_a_bug() {
        Images::new(vec![0; 12], vec![2], (2, 2), 2);
    }
}
