//! Clean images with reversed triggers on them.

use std::sync::Arc;

use tsbd_data::{CHANNELS, ImageSource, Images};

use super::Variant;
use super::search::Reversed;
use crate::CleanSubset;

/// The clean images but for the last `share` of them, and then those last ones once for each trigger, with the trigger on
/// them. All labels are the true ones.
pub fn unlearning_set<'r>(
    clean: &CleanSubset,
    share: f64,
    triggers: impl IntoIterator<Item = &'r Reversed>,
    variant: Variant,
    classes: usize,
) -> Arc<dyn ImageSource> {
    let (kept, stamped) = clean.hold_out(share);
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for index in 0..kept.len() {
        pixels.extend_from_slice(kept.image(index));
        labels.push(kept.label(index));
    }
    for trigger in triggers {
        let stamp = Stamp::new(trigger, variant);
        for index in 0..stamped.len() {
            pixels.extend(stamp.on(stamped.image(index)));
            labels.push(stamped.label(index));
        }
    }
    Arc::new(Images::new(pixels, labels, (kept.height(), kept.width()), classes))
}

/// A trigger in levels, to be put on 8-bit images.
#[derive(Debug, Clone)]
pub struct Stamp {
    /// For each value of an image the share that is kept of it.
    kept: Vec<f64>,
    /// For each value of an image what is added, in levels.
    added: Vec<f64>,
    variant: Variant,
}

impl Stamp {
    /// Makes a trigger ready for images of its size.
    pub fn new(trigger: &Reversed, variant: Variant) -> Stamp {
        let Reversed { mask, pattern, .. } = trigger;
        let mask: Vec<f32> = mask.iter().flat_map(|&mask| [mask; CHANNELS]).collect();
        let product: Vec<f32> = mask.iter().zip(pattern).map(|(mask, pattern)| mask * pattern).collect();
        let (kept, added) = match variant {
            Variant::Reference => (
                stretched(&mask).into_iter().map(|level| 1.0 - f64::from(level) / 255.0).collect(),
                stretched(&product).into_iter().map(|level| f64::from(level) / 255.0 * 255.0).collect(),
            ),
            Variant::Paper => (
                mask.iter().map(|&mask| 1.0 - f64::from(mask)).collect(),
                product.iter().map(|&product| f64::from(product) * 255.0).collect(),
            ),
        };
        Stamp { kept, added, variant }
    }

    /// The trigger on `image`, `u8` `[height, width, channel]`.
    pub fn on(&self, image: &[u8]) -> Vec<u8> {
        let levels = image.iter().zip(self.kept.iter().zip(&self.added));
        let levels = levels.map(|(&level, (kept, added))| f64::from(level) * kept + added);
        match self.variant {
            // Cut off, not rounded; through a signed integer, as a conversion to `u8` would saturate instead of wrapping.
            Variant::Reference => levels.map(|level| level as i64 as u8).collect(),
            Variant::Paper => levels.map(|level| level.round() as u8).collect(),
        }
    }
}

/// Levels of an image file in which the smallest of the values is 0 and the largest 255, as torchvision's `save_image`
/// with `normalize=True` writes them.
pub fn stretched(values: &[f32]) -> Vec<u8> {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let range = (f64::from(high) - f64::from(low)).max(1e-5) as f32;
    values.iter().map(|value| ((value - low) / range * 255.0 + 0.5).clamp(0.0, 255.0) as u8).collect()
}
