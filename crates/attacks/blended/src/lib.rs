//! Blended: a faint picture over the whole image.
//!
//! X. Chen, C. Liu, B. Li, K. Lu, D. Song, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning",
//! 2017 (arXiv 1712.05526), in the form of BackdoorBench's `attack/blended.py`.
//!
//! The picture is resized to the images' size as Pillow resizes (bilinear with antialiasing), and
//! `out = trunc((1 - alpha) * image + alpha * picture)`, clipped to 0..=255. Dirty label: training and test images get
//! the same trigger. BackdoorBench blends a picture of Hello Kitty, which is not free to pass on: the built-in picture
//! is drawn by [`drawing`], and `trigger = "hello_kitty.jpeg"` uses the user's own copy of theirs.

pub mod drawing;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tsbd_attack::parameters::{join, read};
use tsbd_attack::trigger::poison;
use tsbd_attack::{
    Attack, AttackEntry, Candidates, DatasetFacts, Error, ImageTrigger, Material, ParameterError, Poisoner, Poisoning,
    picture,
};
use tsbd_data::{Dataset, ImageSource, Picture};
use tsbd_nn::random::Streams;

/// The registry's entry.
pub static BLENDED: AttackEntry = AttackEntry {
    name: "blended",
    title: "Blended",
    paper: "Chen et al. 2017, arXiv 1712.05526",
    summary: "a picture is blended over the whole image",
    revision: 1,
    schema: || schemars::schema_for!(Parameters),
    configure,
};

/// Blended's own parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// Share of the picture in the blend; greater than 0, at most 1.
    pub alpha: f64,
    /// `built-in`, or the path of a PNG or JPEG picture.
    pub trigger: String,
    /// Digest of the picture when `trigger` is a path: filled in when the picture is read, compared when it is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger_digest: Option<String>,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters { alpha: 0.2, trigger: "built-in".to_owned(), trigger_digest: None }
    }
}

/// The attack, checked.
#[derive(Debug, Clone)]
pub struct Blended {
    poisoning: Poisoning,
    parameters: Parameters,
    picture: Picture,
}

fn configure(poisoning: &Poisoning, own: Value) -> Result<Box<dyn Attack>, ParameterError> {
    poisoning.check_ranges()?;
    let mut parameters: Parameters = read(&own)?;
    if !(parameters.alpha > 0.0 && parameters.alpha <= 1.0) {
        return Err(ParameterError::new(
            "alpha",
            parameters.alpha,
            "out of range",
            "give a number greater than 0 and at most 1",
        ));
    }
    let picture = match parameters.trigger.as_str() {
        built_in @ "built-in" => {
            picture::refuse_digest("trigger", built_in, parameters.trigger_digest.as_deref())?;
            drawing::picture()
        }
        path => {
            let (picture, digest) = picture::read("trigger", path, parameters.trigger_digest.as_deref())?;
            parameters.trigger_digest = Some(digest);
            picture
        }
    };
    Ok(Box::new(Blended { poisoning: poisoning.clone(), parameters, picture }))
}

impl Blended {
    /// The trigger for images of `height x width` pixels.
    pub fn blend(&self, height: usize, width: usize) -> Blend {
        Blend::new(self.parameters.alpha, &self.picture.resized(height, width).pixels)
    }
}

/// The trigger at the images' size.
#[derive(Debug, Clone)]
pub struct Blend {
    image_share: f64,
    /// `alpha * picture`, `[height, width, 3]`.
    addend: Vec<f64>,
}

impl Blend {
    /// Blends a share `alpha` of `picture`, `u8` `[height, width, 3]`.
    ///
    /// The reference scales the picture to 0..1 and back in single precision, multiplies it by alpha in single
    /// precision, and everything else in double: the same is done here, because truncation shows a difference of one
    /// unit in the last place.
    pub fn new(alpha: f64, picture: &[u8]) -> Blend {
        let addend = picture.iter().map(|&value| f64::from(f32::from(value) / 255.0 * 255.0 * alpha as f32)).collect();
        Blend { image_share: 1.0 - alpha, addend }
    }
}

impl ImageTrigger for Blend {
    fn apply(&self, image: &mut [u8], _: usize) {
        for (value, addend) in image.iter_mut().zip(&self.addend) {
            *value = (self.image_share * f64::from(*value) + addend).clamp(0.0, 255.0) as u8;
        }
    }
}

impl Attack for Blended {
    fn parameters(&self) -> Value {
        join(&self.poisoning, &self.parameters)
    }

    fn check(&self, dataset: &DatasetFacts) -> Result<(), ParameterError> {
        self.poisoning.check(dataset)
    }

    fn prepare(&self, clean: &Arc<Dataset>, streams: &Streams, _: Option<&Material>) -> Result<Poisoner, Error> {
        let blend = self.blend(clean.train.height(), clean.train.width());
        poison(clean, streams, &self.poisoning, Candidates::All, &blend)
    }

    fn trigger_picture(&self, height: usize, width: usize, _: Option<&Material>) -> Result<Option<Picture>, Error> {
        Ok(Some(self.picture.resized(height, width)))
    }
}

#[cfg(test)]
mod tests;
