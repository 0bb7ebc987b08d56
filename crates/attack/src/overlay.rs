//! Poisoned images as an overlay: the clean data set is shared, only what an attack changed is stored.

use std::sync::Arc;

use tsbd_data::{CHANNELS, ImageSource, Images};

use crate::Error;
use crate::parameters::Poisoning;
use crate::trigger::Stamp;

/// A training set in which some images are replaced, over the clean one.
///
/// Memory: the replaced images (`3 * height * width` bytes each) and four bytes per image of the clean set.
#[derive(Debug, Clone)]
pub struct PoisonedImages {
    clean: Arc<Images>,
    /// For each image of the clean set its place among the replaced ones, or [`CLEAN`].
    place: Vec<u32>,
    /// The replaced images one after the other, `u8` `[poisoned, height, width, 3]`.
    pixels: Vec<u8>,
    /// The labels of the replaced images.
    labels: Vec<u32>,
    /// The indices of the replaced images in the clean set, ascending.
    indices: Vec<usize>,
}

/// Marks an image that is not replaced.
const CLEAN: u32 = u32::MAX;

impl PoisonedImages {
    /// The clean set itself: nothing is replaced.
    pub fn clean(clean: Arc<Images>) -> PoisonedImages {
        let place = vec![CLEAN; clean.len()];
        PoisonedImages { clean, place, pixels: Vec::new(), labels: Vec::new(), indices: Vec::new() }
    }

    /// The clean set with the images `selected` triggered and relabelled by `poisoning`'s rule.
    pub fn stamp(
        clean: Arc<Images>,
        mut selected: Vec<usize>,
        trigger: &dyn Stamp,
        poisoning: &Poisoning,
        classes: usize,
    ) -> Result<PoisonedImages, Error> {
        selected.sort_unstable();
        selected.dedup();
        let mut place = vec![CLEAN; clean.len()];
        let mut labels = Vec::with_capacity(selected.len());
        for (position, &index) in selected.iter().enumerate() {
            place[index] = position as u32;
            labels.push(poisoning.given_label(clean.label(index), classes));
        }
        let pixels = trigger.stamp(&clean, &selected)?;
        Ok(PoisonedImages { clean, place, pixels, labels, indices: selected })
    }

    /// The clean set beneath.
    pub fn beneath(&self) -> &Arc<Images> {
        &self.clean
    }

    /// Whether image `index` is replaced. An image of the target class keeps its label and counts all the same.
    pub fn is_poisoned(&self, index: usize) -> bool {
        self.place[index] != CLEAN
    }

    /// Indices of the replaced images, ascending.
    pub fn poisoned(&self) -> &[usize] {
        &self.indices
    }

    /// The true label of image `index`.
    pub fn original_label(&self, index: usize) -> u32 {
        self.clean.label(index)
    }

    /// Number of replaced images of each original class.
    pub fn poison_per_class(&self, classes: usize) -> Vec<usize> {
        let mut counts = vec![0; classes];
        for &index in &self.indices {
            counts[self.original_label(index) as usize] += 1;
        }
        counts
    }
}

impl ImageSource for PoisonedImages {
    fn len(&self) -> usize {
        self.clean.len()
    }

    fn image(&self, index: usize) -> &[u8] {
        match self.place[index] {
            CLEAN => self.clean.image(index),
            place => {
                let bytes = self.pixels.len() / self.labels.len();
                &self.pixels[place as usize * bytes..][..bytes]
            }
        }
    }

    fn label(&self, index: usize) -> u32 {
        match self.place[index] {
            CLEAN => self.clean.label(index),
            place => self.labels[place as usize],
        }
    }

    fn height(&self) -> usize {
        self.clean.height()
    }

    fn width(&self) -> usize {
        self.clean.width()
    }
}

/// The test images that count for the attack success rate, triggered.
///
/// As an [`ImageSource`] it gives the label the attacker wants; [`TriggeredTest::original_label`] gives the true one.
#[derive(Debug, Clone)]
pub struct TriggeredTest {
    clean: Arc<Images>,
    pixels: Vec<u8>,
    labels: Vec<u32>,
    indices: Vec<usize>,
}

impl TriggeredTest {
    /// Triggers every image of the clean test set that [`Poisoning::counts_for_asr`].
    pub fn stamp(
        clean: Arc<Images>,
        trigger: &dyn Stamp,
        poisoning: &Poisoning,
        classes: usize,
    ) -> Result<TriggeredTest, Error> {
        let indices = TriggeredTest::indices(&clean, poisoning);
        let labels = indices.iter().map(|index| poisoning.given_label(clean.label(*index), classes)).collect();
        let pixels = trigger.stamp(&clean, &indices)?;
        Ok(TriggeredTest { clean, pixels, labels, indices })
    }

    /// Takes the triggered pixels `u8` `[images, height, width, 3]` of the images [`TriggeredTest::indices`], in order.
    ///
    /// # Panics
    /// If there are not as many pixels as those images have.
    pub fn from_pixels(clean: Arc<Images>, pixels: Vec<u8>, poisoning: &Poisoning, classes: usize) -> TriggeredTest {
        let indices = TriggeredTest::indices(&clean, poisoning);
        assert_eq!(pixels.len(), indices.len() * clean.height() * clean.width() * CHANNELS);
        let labels = indices.iter().map(|index| poisoning.given_label(clean.label(*index), classes)).collect();
        TriggeredTest { clean, pixels, labels, indices }
    }

    /// The images of the clean test set that count for the attack success rate, ascending.
    pub fn indices(clean: &Images, poisoning: &Poisoning) -> Vec<usize> {
        (0..clean.len()).filter(|index| poisoning.counts_for_asr(clean.label(*index))).collect()
    }

    /// The clean test set beneath.
    pub fn beneath(&self) -> &Arc<Images> {
        &self.clean
    }

    /// The index in the clean test set of triggered image `position`.
    pub fn index(&self, position: usize) -> usize {
        self.indices[position]
    }

    /// The true label of triggered image `position`.
    pub fn original_label(&self, position: usize) -> u32 {
        self.clean.label(self.indices[position])
    }
}

impl ImageSource for TriggeredTest {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn image(&self, position: usize) -> &[u8] {
        let bytes = self.pixels.len() / self.labels.len();
        &self.pixels[position * bytes..][..bytes]
    }

    fn label(&self, position: usize) -> u32 {
        self.labels[position]
    }

    fn height(&self) -> usize {
        self.clean.height()
    }

    fn width(&self) -> usize {
        self.clean.width()
    }
}
