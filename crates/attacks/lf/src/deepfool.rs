//! Targeted DeepFool: the shortest way, by steps that are right for a linear network, to where a network answers one
//! class.
//!
//! S.-M. Moosavi-Dezfooli, A. Fawzi, P. Frossard, "DeepFool: a simple and accurate method to fool deep neural networks",
//! CVPR 2016, in the targeted form of BackdoorBench's `resource/lowFrequency/deepfool.py`.

use tsbd_attack::Error;
use tsbd_data::{CHANNELS, Normalization};
use tsbd_nn::{Mode, Model, Observed};
use tsbd_tensor::{Device, Tensor};

/// The way is lengthened by this share, so that its end lies beyond the border between two classes.
const OVERSHOOT: f32 = 0.02;

/// A fixed network on images with levels from 0 to 1.
pub struct Network<'a> {
    pub model: &'a Model,
    /// What is done to an image before it enters the network.
    pub normalization: Normalization,
    pub height: usize,
    pub width: usize,
    pub device: Device,
}

impl Network<'_> {
    /// The classes that the network gives to `images`, `[n, height, width, 3]` one after the other.
    pub fn classes(&self, images: &[f32]) -> Result<Vec<usize>, Error> {
        let logits = self.model.logits(&self.entering(images)?, Mode::Eval)?;
        let rows = logits.to_vec2::<f32>().map_err(tsbd_nn::Error::from)?;
        Ok(rows.iter().map(|row| largest(row)).collect())
    }

    /// The logits of one image, recorded.
    fn observe(&self, image: &[f32]) -> Result<(Vec<f32>, Observed), Error> {
        let observed = self.model.observe(&self.entering(image)?, None)?;
        let logits = observed.output().flatten_all().and_then(|logits| logits.to_vec1());
        Ok((logits.map_err(tsbd_nn::Error::from)?, observed))
    }

    /// The gradient of `logit[of] - logit[less]` with respect to the image's levels.
    fn gradient(&self, observed: Observed, of: usize, less: usize) -> Result<Vec<f32>, Error> {
        let mut seed = vec![0f32; observed.output().elem_count()];
        seed[of] += 1.0;
        seed[less] -= 1.0;
        let seed = Tensor::from_vec(seed, observed.output().dims(), &self.device).map_err(tsbd_nn::Error::from)?;
        let gradient = observed.gradient(&seed)?.flatten_all().and_then(|gradient| gradient.to_vec1::<f32>());
        let mut gradient = gradient.map_err(tsbd_nn::Error::from)?;
        for (place, value) in gradient.iter_mut().enumerate() {
            *value /= self.normalization.std[place % CHANNELS];
        }
        Ok(gradient)
    }

    fn entering(&self, images: &[f32]) -> Result<Tensor, Error> {
        let Normalization { mean, std } = self.normalization;
        let values = images.iter().enumerate();
        let values = values.map(|(place, value)| (value - mean[place % CHANNELS]) / std[place % CHANNELS]).collect();
        let count = images.len() / (self.height * self.width * CHANNELS);
        let shape = (count, self.height, self.width, CHANNELS);
        Ok(Tensor::from_vec::<_, f32>(values, shape, &self.device).map_err(tsbd_nn::Error::from)?)
    }
}

/// How one image is to be changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Way {
    /// What is added to the image, overshoot included; zeros if nothing has to be changed.
    pub perturbation: Vec<f32>,
    /// Steps that were made.
    pub steps: usize,
}

/// Looks for a small perturbation of `image` (`[height, width, 3]`, levels from 0 to 1) that makes the network answer
/// `target`, in at most `most` steps. `None` if the network's answer to the image is not `before`.
pub fn targeted(
    network: &Network<'_>,
    image: &[f32],
    before: usize,
    target: usize,
    most: usize,
) -> Result<Option<Way>, Error> {
    let (mut logits, mut observed) = network.observe(image)?;
    if largest(&logits) != before {
        return Ok(None);
    }
    let mut total = vec![0f32; image.len()];
    let mut steps = 0;
    while largest(&logits) != target && steps < most {
        let slope = network.gradient(observed, target, before)?;
        let norm = slope.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt() as f32;
        let distance = (logits[target] - logits[before]).abs() / norm;
        for (sum, value) in total.iter_mut().zip(&slope) {
            let moved = *sum + distance * value / norm;
            // A network that is flat here gives 0 / 0.
            *sum = if moved.is_finite() { moved } else { 0.0 };
        }
        steps += 1;
        let changed: Vec<f32> = image.iter().zip(&total).map(|(level, sum)| level + (1.0 + OVERSHOOT) * sum).collect();
        (logits, observed) = network.observe(&changed)?;
    }
    total.iter_mut().for_each(|sum| *sum *= 1.0 + OVERSHOOT);
    Ok(Some(Way { perturbation: total, steps }))
}

/// The place of the largest; the first of equals.
fn largest(row: &[f32]) -> usize {
    (1..row.len()).fold(0, |best, place| if row[place] > row[best] { place } else { best })
}
