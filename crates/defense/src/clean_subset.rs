//! The few clean images that a defender has.

use std::sync::Arc;

use tsbd_attack::ParameterError;
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
    pub fn draw(
        train: Arc<dyn ImageSource>,
        common: &DefenseCommon,
        seed: u64,
    ) -> Result<CleanSubset, ParameterError> {
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
