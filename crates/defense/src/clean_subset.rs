//! The few clean images that a defender has.

use std::collections::BTreeMap;
use std::sync::Arc;

use tsbd_attack::ParameterError;
use tsbd_data::numpy_random::LegacyRandom;
use tsbd_data::python_random::PythonRandom;
use tsbd_data::{ImageSource, Subset};

use crate::DefenseCommon;

/// Clean training images with their true labels.
///
/// Drawn as BackdoorBench's `choose_index` draws them: `random.seed(seed); random.sample(range(N), int(N * ratio))`, so
/// a seed gives every defense the same images. Which images the attacker poisoned plays no part.
#[derive(Clone)]
pub struct CleanSubset {
    images: Arc<Subset>,
}

impl CleanSubset {
    /// Draws a share of the clean training set.
    pub fn draw(train: Arc<dyn ImageSource>, common: &DefenseCommon, seed: u64) -> Result<CleanSubset, ParameterError> {
        common.check_ranges()?;
        let (total, count) = (train.len(), common.clean_count(train.len()));
        let refuse = |reason: String| {
            let way_out = "give a greater ratio, or use more training images";
            ParameterError::new("clean_ratio", common.clean_ratio, reason, way_out)
        };
        if count == 0 {
            return Err(refuse(format!("leaves none of {total} training images")));
        }
        let indices = PythonRandom::new(seed)
            .sample(total as u32, count as u32)
            .ok_or_else(|| refuse(format!("{count} of {total} images cannot be drawn")))?;
        Ok(CleanSubset { images: Arc::new(Subset::new(train, indices)) })
    }

    /// Draws the same number of each class that occurs, class after class, as BackdoorBench's `choose_by_class`:
    /// `numpy.random.seed(seed)`, then for each class `numpy.random.choice(images, int(N * ratio / classes), False)`.
    pub fn draw_by_class(
        train: Arc<dyn ImageSource>,
        common: &DefenseCommon,
        seed: u64,
    ) -> Result<CleanSubset, ParameterError> {
        common.check_ranges()?;
        let mut classes: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for index in 0..train.len() {
            classes.entry(train.label(index)).or_default().push(index as u32);
        }
        let count = common.clean_count_per_class(train.len(), classes.len());
        let refuse = |reason: String, way_out| ParameterError::new("clean_ratio", common.clean_ratio, reason, way_out);
        if count == 0 {
            let reason = format!("leaves no image of each class of {} training images", train.len());
            return Err(refuse(reason, "give a greater ratio, or use more training images"));
        }
        let seed = u32::try_from(seed).map_err(|_| {
            ParameterError::new("seed", seed, "numpy takes seeds of 32 bits", "give a seed below 4294967296")
        })?;
        let (mut random, mut indices) = (LegacyRandom::new(seed), Vec::new());
        for (class, images) in &classes {
            let drawn = random.choice_without_replacement(images.len() as u32, count as u32).ok_or_else(|| {
                let reason = format!("{count} images of each class, and class {class} has {}", images.len());
                refuse(reason, "give a smaller ratio")
            })?;
            indices.extend(drawn.into_iter().map(|position| images[position as usize]));
        }
        Ok(CleanSubset { images: Arc::new(Subset::new(train, indices)) })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether there is no image (never, when drawn).
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Places of the images in the training set, in the order drawn.
    pub fn indices(&self) -> &[u32] {
        self.images.indices()
    }

    /// The images, in the order drawn.
    pub fn images(&self) -> Arc<dyn ImageSource> {
        Arc::clone(&self.images) as _
    }

    /// The subset in two: the first images in the order drawn, and the last `share` of them (at least one) held out.
    pub fn hold_out(&self, share: f64) -> (Arc<dyn ImageSource>, Arc<dyn ImageSource>) {
        let held_out = ((self.len() as f64 * share).round() as usize).clamp(1, self.len().saturating_sub(1).max(1));
        let cut = (self.len() - held_out) as u32;
        let part = |range: std::ops::Range<u32>| -> Arc<dyn ImageSource> {
            Arc::new(Subset::new(self.images(), range.collect()))
        };
        (part(0..cut), part(cut..self.len() as u32))
    }
}

impl std::fmt::Debug for CleanSubset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CleanSubset").field("images", &self.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use tsbd_data::Images;

    use super::*;
    use crate::tiny;

    fn train(count: usize) -> Arc<Images> {
        Arc::new(Images::new(vec![0; count * 3], vec![0; count], (1, 1), 1))
    }

    /// Golden values of Python 3: `random.seed(0); random.sample(range(N), int(N * ratio))`, as in BackdoorBench's
    /// index files.
    #[test]
    fn seed_0_draws_the_images_of_backdoorbench() {
        let drawn = CleanSubset::draw(train(50_000), &DefenseCommon::default(), 0).unwrap();
        assert_eq!((drawn.len(), &drawn.indices()[..5]), (2_500, &[25247, 49673, 27562, 2653, 16968][..]));
        let drawn = CleanSubset::draw(train(39_209), &DefenseCommon::default(), 0).unwrap();
        assert_eq!((drawn.len(), &drawn.indices()[..5]), (1_960, &[25247, 27562, 2653, 16968, 33506][..]));
        let expected: Vec<u32> = tiny::numbers("drawn").into_iter().map(|index| index as u32).collect();
        assert_eq!(tiny::clean().indices(), expected);
    }

    #[test]
    fn a_share_of_no_image_is_refused() {
        let error = CleanSubset::draw(train(10), &DefenseCommon::default(), 0).unwrap_err();
        assert_eq!(error.field, "clean_ratio");
    }

    #[test]
    fn held_out_images_are_the_last_ones_drawn_and_in_no_other_part() {
        let (used, held_out) = tiny::clean().hold_out(0.25);
        assert_eq!((used.len(), held_out.len()), (18, 6));
        let images = tiny::images();
        for (position, index) in tiny::clean().indices().iter().enumerate() {
            let expected = images.image(*index as usize);
            let found = if position < 18 { used.image(position) } else { held_out.image(position - 18) };
            assert_eq!(found, expected);
        }
    }
}
