//! BadNets: a small patch in the bottom right corner.
//!
//! T. Gu, B. Dolan-Gavitt, S. Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain",
//! 2017 (arXiv 1708.06733), in the form of BackdoorBench's `attack/badnet.py` and `AddMaskPatchTrigger`.
//!
//! The trigger is a black 32x32 picture with a 3x3 patch, resized to the images' size as Pillow resizes (bilinear with
//! antialiasing). Every value of it that is not 0 *overwrites* the image's value. At 32 pixels the patch is 3x3; at 64
//! it is 7x7 with a soft dark edge, which overwrites too. Dirty label: training and test images get the same trigger.

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
use tsbd_data::{CHANNELS, Dataset, ImageSource, Picture};
use tsbd_nn::random::Streams;

/// The registry's entry.
pub static BADNETS: AttackEntry = AttackEntry {
    name: "badnets",
    title: "BadNets",
    paper: "Gu et al. 2017, arXiv 1708.06733",
    summary: "a 3x3 patch in the bottom right corner overwrites the image",
    revision: 1,
    schema: || schemars::schema_for!(Parameters),
    configure,
};

/// BadNets' own parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// `square` (3x3 white), `grid` (3x3 checker of 255 and 1), or the path of a PNG or JPEG picture whose values
    /// other than 0 overwrite the image's.
    pub trigger: String,
    /// Digest of the picture when `trigger` is a path: filled in when the picture is read, compared when it is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger_digest: Option<String>,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters { trigger: "square".to_owned(), trigger_digest: None }
    }
}

/// The attack, checked.
#[derive(Debug, Clone)]
pub struct BadNets {
    poisoning: Poisoning,
    parameters: Parameters,
    picture: Picture,
}

/// Side of the built-in trigger pictures, and of the patch in their corner, in pixels.
const PICTURE: usize = 32;
const PATCH: usize = 3;

fn configure(poisoning: &Poisoning, own: Value) -> Result<Box<dyn Attack>, ParameterError> {
    poisoning.check_ranges()?;
    let mut parameters: Parameters = read(&own)?;
    let picture = match parameters.trigger.as_str() {
        built_in @ ("square" | "grid") => {
            picture::refuse_digest("trigger", built_in, parameters.trigger_digest.as_deref())?;
            let other = if built_in == "grid" { 1 } else { 255 };
            corner_patch(|row, column| if (row + column) % 2 == 0 { 255 } else { other })
        }
        path => {
            let (picture, digest) = picture::read("trigger", path, parameters.trigger_digest.as_deref())?;
            if picture.pixels.iter().all(|value| *value == 0) {
                return Err(ParameterError::new(
                    "trigger",
                    path,
                    "the picture is black, and would change nothing",
                    "give a picture with values other than 0, or `square`",
                ));
            }
            parameters.trigger_digest = Some(digest);
            picture
        }
    };
    Ok(Box::new(BadNets { poisoning: poisoning.clone(), parameters, picture }))
}

/// The black built-in picture with `value(row, column)` of the patch in its bottom right corner.
fn corner_patch(value: impl Fn(usize, usize) -> u8) -> Picture {
    let start = PICTURE - PATCH;
    let mut picture = Picture { pixels: vec![0; PICTURE * PICTURE * CHANNELS], height: PICTURE, width: PICTURE };
    for (row, column) in (0..PATCH * PATCH).map(|cell| (cell / PATCH, cell % PATCH)) {
        let pixel = ((start + row) * PICTURE + start + column) * CHANNELS;
        picture.pixels[pixel..pixel + CHANNELS].fill(value(row, column));
    }
    picture
}

impl BadNets {
    /// The trigger for images of `height x width` pixels.
    pub fn patch(&self, height: usize, width: usize) -> Patch {
        Patch { values: self.picture.resized(height, width).pixels }
    }
}

/// The trigger at the images' size.
#[derive(Debug, Clone)]
pub struct Patch {
    /// `u8` `[height, width, 3]`; 0 leaves the image's value.
    values: Vec<u8>,
}

impl ImageTrigger for Patch {
    fn apply(&self, image: &mut [u8], _: usize) {
        for (value, trigger) in image.iter_mut().zip(&self.values) {
            if *trigger != 0 {
                *value = *trigger;
            }
        }
    }
}

impl Attack for BadNets {
    fn parameters(&self) -> Value {
        join(&self.poisoning, &self.parameters)
    }

    fn check(&self, dataset: &DatasetFacts) -> Result<(), ParameterError> {
        self.poisoning.check(dataset)?;
        if self.patch(dataset.size, dataset.size).values.iter().all(|value| *value == 0) {
            return Err(ParameterError::new(
                "trigger",
                &self.parameters.trigger,
                format!("at {size}x{size} pixels nothing of it is left", size = dataset.size),
                "give a picture with larger structures",
            ));
        }
        Ok(())
    }

    fn prepare(&self, clean: &Arc<Dataset>, streams: &Streams, _: Option<&Material>) -> Result<Poisoner, Error> {
        let patch = self.patch(clean.train.height(), clean.train.width());
        poison(clean, streams, &self.poisoning, Candidates::All, &patch)
    }

    fn trigger_picture(&self, height: usize, width: usize, _: Option<&Material>) -> Result<Option<Picture>, Error> {
        Ok(Some(self.picture.resized(height, width)))
    }
}

#[cfg(test)]
mod tests;
