//! SIG: a sinusoidal signal over the columns of the image; labels stay as they are.
//!
//! M. Barni, K. Kallas, B. Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning", 2019
//! (ICIP; arXiv 1902.11237), in the form of BackdoorBench's `attack/sig.py`.
//!
//! `pattern[j] = delta * sin(2 pi j frequency / width)` is added to every value of column `j`, in every row and channel;
//! the sum is clipped to 0..=255 and truncated. Clean label: only training images *of the target class* are poisoned, and
//! keep their label, so the class must have enough of them. Test images of all other classes get the same signal.

use std::f64::consts::PI;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tsbd_attack::parameters::{join, read};
use tsbd_attack::trigger::poison;
use tsbd_attack::{
    Attack, AttackEntry, Candidates, DatasetFacts, Error, ImageTrigger, Material, ParameterError, Poisoner, Poisoning,
};
use tsbd_data::{CHANNELS, Dataset, ImageSource, Picture};
use tsbd_nn::random::Streams;

/// The registry's entry.
pub static SIG: AttackEntry = AttackEntry {
    name: "sig",
    title: "SIG",
    paper: "Barni et al. 2019, arXiv 1902.11237",
    summary: "a sinusoidal signal over the columns of images of the target class, whose labels stay",
    revision: 1,
    schema: || schemars::schema_for!(Parameters),
    configure,
};

/// SIG's own parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// Height of the signal's waves in grey levels; greater than 0, at most 255.
    pub delta: f64,
    /// Number of waves across the image; greater than 0, at most half the image's columns.
    pub frequency: f64,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters { delta: 40.0, frequency: 6.0 }
    }
}

/// The attack, checked.
#[derive(Debug, Clone)]
struct Sig {
    poisoning: Poisoning,
    parameters: Parameters,
}

fn configure(poisoning: &Poisoning, own: Value) -> Result<Box<dyn Attack>, ParameterError> {
    poisoning.check_ranges()?;
    let parameters: Parameters = read(&own)?;
    let Parameters { delta, frequency } = parameters;
    if !(delta > 0.0 && delta <= 255.0) {
        return Err(ParameterError::new(
            "delta",
            delta,
            "out of range",
            "give a number greater than 0 and at most 255",
        ));
    }
    ParameterError::unless_positive("frequency", frequency)?;
    Ok(Box::new(Sig { poisoning: poisoning.clone(), parameters }))
}

impl Sig {
    fn signal(&self, width: usize) -> Signal {
        let Parameters { delta, frequency } = self.parameters;
        // The order of the products is the reference's, and so is single precision: truncation shows one unit in the
        // last place where the sine is almost 0.
        let level = |column: usize| (delta * (2.0 * PI * column as f64 * frequency / width as f64).sin()) as f32;
        Signal { levels: (0..width).map(level).collect() }
    }
}

/// The trigger at the images' width.
#[derive(Debug, Clone)]
struct Signal {
    /// What is added to each column, in grey levels.
    levels: Vec<f32>,
}

impl ImageTrigger for Signal {
    fn apply(&self, image: &mut [u8], _: usize) {
        for row in image.chunks_exact_mut(self.levels.len() * CHANNELS) {
            for (pixel, &level) in row.chunks_exact_mut(CHANNELS).zip(&self.levels) {
                for value in pixel {
                    *value = (f64::from(*value) + f64::from(level)).clamp(0.0, 255.0) as u8;
                }
            }
        }
    }
}

impl Attack for Sig {
    fn parameters(&self) -> Value {
        join(&self.poisoning, &self.parameters)
    }

    fn check(&self, dataset: &DatasetFacts) -> Result<(), ParameterError> {
        Candidates::TargetClass.check(&self.poisoning, dataset)?;
        let (frequency, limit) = (self.parameters.frequency, dataset.size as f64 / 2.0);
        // At the limit itself every column is a zero of the sine.
        if frequency >= limit {
            return Err(ParameterError::new(
                "frequency",
                frequency,
                format!("images of {} columns cannot show so many waves", dataset.size),
                format!("give less than {limit}"),
            ));
        }
        Ok(())
    }

    fn prepare(&self, clean: &Arc<Dataset>, streams: &Streams, _: Option<&Material>) -> Result<Poisoner, Error> {
        let signal = self.signal(clean.train.width());
        poison(clean, streams, &self.poisoning, Candidates::TargetClass, &signal)
    }

    /// The signal on medium grey.
    fn trigger_picture(&self, height: usize, width: usize, _: Option<&Material>) -> Result<Option<Picture>, Error> {
        let mut pixels = vec![128; height * width * CHANNELS];
        self.signal(width).apply(&mut pixels, 0);
        Ok(Some(Picture { pixels, height, width }))
    }
}

#[cfg(test)]
mod tests;
