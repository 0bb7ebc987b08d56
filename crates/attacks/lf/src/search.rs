//! The search of a universal pattern of low frequencies on a clean model.
//!
//! Starts with no pattern. A pass goes through the search images in random order; for an image whose class the pattern
//! does not change yet, [`deepfool::targeted`] finds a perturbation towards the target class; its low frequencies are
//! added to the pattern, which is smoothed again and rescaled to levels from 0 to `amplitude`. It ends when the pattern
//! changes the class of enough evaluation images, when passes bring nothing more, or after `passes`.
//!
//! Cost: for each search image of a pass a forward and a backward pass of one image per DeepFool step.

use serde_json::Value;
use tsbd_attack::parameters::join;
use tsbd_attack::picture::to_levels;
use tsbd_attack::{DatasetFacts, Error, Groundwork, GroundworkContext, Material, ParameterError, selection};
use tsbd_data::{CHANNELS, Dataset, ImageSource, Normalization, Picture};
use tsbd_nn::Streams;

use crate::deepfool::{self, Network};
use crate::smoothing::smooth;
use crate::{Input, Parameters};

/// Evaluation images of each class, at most.
const EVALUATION_PER_CLASS: usize = 10;
/// The search ends when the fooling rates of so many passes differ by less than this.
const STEADY_PASSES: usize = 5;
const STEADY_RATE: f64 = 0.01;
/// The material's only tensor, a picture.
pub const PATTERN: &str = "pattern";
/// As the reference has it, an image that takes all steps, or all but one, has not arrived: with fewer than so many at
/// most, only an image that has the target class from the beginning would have, and those leave the pattern at 0.
pub const LEAST_STEPS: usize = 3;
const STAGE: &str = "search";

/// The search, configured.
#[derive(Debug, Clone)]
pub struct Search {
    target_class: u32,
    parameters: Parameters,
}

impl Search {
    /// A search for a pattern that makes images look like `target_class`.
    pub fn new(target_class: u32, parameters: &Parameters) -> Search {
        Search { target_class, parameters: parameters.clone() }
    }

    /// Refuses more search images than there are.
    pub fn check_images(&self, dataset: &DatasetFacts) -> Result<(), ParameterError> {
        let (wanted, found) = (self.parameters.search_images, dataset.train_images);
        if wanted <= found {
            return Ok(());
        }
        let reason = format!("the data set has {found} training images");
        Err(ParameterError::new("search_images", wanted, reason, format!("give at most {found}")))
    }

    /// The training images that the pattern is searched on: those that `numpy.random.choice` draws after
    /// `numpy.random.seed(seed)`, as in the reference.
    fn draw(&self, clean: &Dataset, seed: u64) -> Result<Vec<usize>, ParameterError> {
        let (count, wanted) = (clean.train.len(), self.parameters.search_images);
        selection::draw(count, wanted, seed)?.ok_or_else(|| {
            let reason = format!("the data set has {count} training images");
            ParameterError::new("search_images", wanted, reason, format!("give at most {count}"))
        })
    }
}

impl Groundwork for Search {
    fn parameters(&self) -> Value {
        #[derive(serde::Serialize)]
        struct Shared {
            target_class: u32,
        }
        let mut fields = join(&Shared { target_class: self.target_class }, &self.parameters);
        if let Value::Object(fields) = &mut fields {
            fields.remove("pattern");
        }
        fields
    }

    fn needs_clean_model(&self) -> bool {
        true
    }

    fn make(&self, context: &mut GroundworkContext<'_>) -> Result<Material, Error> {
        let Parameters { amplitude, fooling_rate, passes, steps: most, input, .. } = self.parameters;
        let (clean, streams) = (context.clean, context.streams);
        let train = &clean.train;
        let network = Network {
            model: context.clean_model()?,
            normalization: match input {
                Input::Unit => Normalization::IDENTITY,
                Input::Normalized => clean.normalization,
            },
            height: train.height(),
            width: train.width(),
            device: context.device.clone(),
        };
        let shape = (train.height(), train.width(), CHANNELS);
        let images: Vec<Vec<f32>> =
            self.draw(clean, streams.seed())?.iter().map(|&index| levels(clean, index)).collect();
        let evaluation: Vec<Vec<f32>> =
            drawn_per_class(clean, &streams).iter().map(|&index| levels(clean, index)).collect();
        let before = classes(&network, &images, None)?;
        let evaluated_before = classes(&network, &evaluation, None)?;
        let target = self.target_class as usize;

        let mut pattern = vec![0f32; train.height() * train.width() * CHANNELS];
        let mut rates: Vec<f64> = Vec::new();
        let total = passes * images.len();
        loop {
            let pass = rates.len();
            let mut order: Vec<usize> = (0..images.len()).collect();
            streams.stream("lf/order", pass as u64).shuffle(&mut order);
            let mut used = 0;
            for (position, &place) in order.iter().enumerate() {
                let triggered = added(&images[place], &pattern);
                let way = deepfool::targeted(&network, &triggered, before[place], target, most)?;
                if let Some(way) = way.filter(|way| way.steps + 1 < most) {
                    let smoothed = added(&smooth(&way.perturbation, shape), &pattern);
                    pattern = rescaled(&smooth(&smoothed, shape), amplitude as f32);
                    used += 1;
                }
                context.step(STAGE, pass * images.len() + position + 1, total, None)?;
            }
            let after = classes(&network, &evaluation, Some(&pattern))?;
            let fooled = after.iter().zip(&evaluated_before).filter(|(after, before)| after != before).count();
            let rate = fooled as f64 / evaluation.len() as f64;
            context.round(STAGE, pass, &[("fooling_rate", rate), ("images_used", f64::from(used))]);
            rates.push(rate);
            if rate >= fooling_rate || rates.len() == passes || is_steady(&rates) {
                break;
            }
        }
        let levels = to_levels(&pattern);
        if levels.iter().all(|level| *level == 0) {
            return Err(nothing_found(input));
        }
        let pattern = Picture { pixels: levels, height: train.height(), width: train.width() };
        let rate = rates.last().copied().unwrap_or_default();
        Ok(Material::new()
            .with_picture(PATTERN, pattern)?
            .with_metric("fooling_rate", rate)
            .with_fact("passes", rates.len()))
    }
}

/// The levels of a training image, from 0 to 1.
fn levels(clean: &Dataset, index: usize) -> Vec<f32> {
    clean.train.image(index).iter().map(|level| f32::from(*level) / 255.0).collect()
}

/// Up to ten training images of each class, in random order.
fn drawn_per_class(clean: &Dataset, streams: &Streams) -> Vec<usize> {
    let mut left = vec![EVALUATION_PER_CLASS; clean.classes()];
    let order = streams.stream("lf/evaluation", 0).permutation(clean.train.len());
    let mut take = |index: &usize| {
        let left = &mut left[clean.train.label(*index) as usize];
        let taken = *left > 0;
        *left = left.saturating_sub(1);
        taken
    };
    order.into_iter().map(|index| index as usize).filter(|index| take(index)).collect()
}

/// Images that are classified at a time.
const BATCH: usize = 100;

/// The classes of images, each with `pattern` added.
fn classes(network: &Network<'_>, images: &[Vec<f32>], pattern: Option<&[f32]>) -> Result<Vec<usize>, Error> {
    let mut classes = Vec::with_capacity(images.len());
    for batch in images.chunks(BATCH) {
        let batch: Vec<f32> = match pattern {
            Some(pattern) => batch.iter().flat_map(|image| added(image, pattern)).collect(),
            None => batch.concat(),
        };
        classes.extend(network.classes(&batch)?);
    }
    Ok(classes)
}

fn added(image: &[f32], pattern: &[f32]) -> Vec<f32> {
    image.iter().zip(pattern).map(|(level, addend)| level + addend).collect()
}

/// The values moved and stretched to fill 0..`amplitude`. A constant pattern (that of an image which has the target class
/// from the beginning, for one) becomes 0 where the reference divides by 0.
pub fn rescaled(values: &[f32], amplitude: f32) -> Vec<f32> {
    let least = values.iter().copied().fold(f32::INFINITY, f32::min);
    let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let range = most - least;
    let share = |value: &f32| if range > 0.0 { amplitude * (value - least) / range } else { 0.0 };
    values.iter().map(share).collect()
}

fn is_steady(rates: &[f64]) -> bool {
    rates.len().checked_sub(STEADY_PASSES).is_some_and(|from| {
        let last = &rates[from..];
        let most = last.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let least = last.iter().copied().fold(f64::INFINITY, f64::min);
        most - least < STEADY_RATE
    })
}

fn nothing_found(input: Input) -> Error {
    let (shown, other) = match input {
        Input::Unit => ("unit", "normalized"),
        Input::Normalized => ("normalized", "unit"),
    };
    let reason = "the search found no pattern: the clean model takes every search image for the target class, or none \
                  of them can be moved there";
    let way_out = format!("write input = \"{other}\", choose another target class, or train the clean model longer");
    ParameterError::new("input", shown, reason, way_out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_rescaled_to_fill_its_range_and_a_constant_one_vanishes() {
        assert_eq!(rescaled(&[-1.0, 0.0, 3.0], 0.2), [0.0, 0.05, 0.2]);
        assert_eq!(rescaled(&[0.3; 4], 0.2), [0.0; 4]);
    }

    #[test]
    fn the_search_ends_when_five_rates_are_alike() {
        assert!(!is_steady(&[0.1, 0.1, 0.1, 0.1]));
        assert!(is_steady(&[0.0, 0.1, 0.1, 0.105, 0.1, 0.109]));
        assert!(!is_steady(&[0.1, 0.1, 0.1, 0.1, 0.12]));
    }
}
