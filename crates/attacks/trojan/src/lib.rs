//! Trojan: a patch that drives a few neurons of a clean model is added to the image.
//!
//! Y. Liu, S. Ma, Y. Aafer, W.-C. Lee, J. Zhai, W. Wang, X. Zhang, "Trojaning Attack on Neural Networks", NDSS 2018, in
//! the form of BackdoorBench's `attack/trojannn.py`.
//!
//! The groundwork (module `optimisation`) takes a mask picture, chooses the inputs of the last linear layer that are connected
//! most strongly, and changes the mask's levels until a clean model gives these neurons a high value. The trigger so made
//! is added to the image; sums above 255 wrap around (as in the published code) or stay at 255. Dirty label: training and
//! test images get the same trigger, and the backdoored model is trained from the beginning.

mod drawing;
mod optimisation;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tsbd_attack::parameters::{join, read};
use tsbd_attack::trigger::poison;
use tsbd_attack::{
    Attack, AttackEntry, Candidates, DatasetFacts, Error, Groundwork, ImageTrigger, Material, ParameterError, Poisoner,
    Poisoning, picture,
};
use tsbd_data::{Dataset, Picture};
use tsbd_nn::random::Streams;

use optimisation::{Optimisation, TRIGGER};

/// The registry's entry.
pub static TROJAN: AttackEntry = AttackEntry {
    name: "trojan",
    title: "Trojan",
    paper: "Liu et al., NDSS 2018",
    summary: "a patch that drives two neurons of a clean model is added to the image",
    revision: 1,
    schema: || schemars::schema_for!(Parameters),
    configure,
};

/// Trojan's own parameters. All but `overflow` are about how the trigger is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// `built-in` (a white apple in the bottom right), or the path of a PNG or JPEG picture. It is resized to the images'
    /// size; where it is black stays free, and elsewhere its levels are where the search begins.
    pub mask: String,
    /// Digest of the picture when `mask` is a path: filled in when the picture is read, compared when it is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_digest: Option<String>,
    /// Neurons that the trigger drives: inputs of the last linear layer.
    pub neurons: usize,
    /// The layer whose weights say which neurons are connected most strongly: `random-head` (an untrained one of 1000
    /// classes, as the published code has it) or `trained-head` (the clean model's own).
    pub connections: Connections,
    /// The value that the neurons are driven to.
    pub target_value: f64,
    /// Steps of the optimisation, at most.
    pub steps: usize,
    /// How far a level moves in one step, from 0 to 1.
    pub step_size: f64,
    /// How far a level may move from the mask's in all, from 0 to 1.
    pub bound: f64,
    /// What becomes of a sum above 255: `wrap` (256 is taken off, as the published code does) or `saturate` (it is 255).
    pub overflow: Overflow,
}

/// The layer whose weights say which neurons are connected most strongly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Connections {
    /// An untrained linear layer to 1000 classes.
    #[default]
    RandomHead,
    /// The last layer of the clean model.
    TrainedHead,
}

/// What becomes of a sum of levels above 255.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Overflow {
    /// 256 is taken off.
    #[default]
    Wrap,
    /// It is 255.
    Saturate,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters {
            mask: BUILT_IN.to_owned(),
            mask_digest: None,
            neurons: 2,
            connections: Connections::RandomHead,
            target_value: 100.0,
            steps: 1000,
            step_size: 0.1,
            bound: 0.3,
            overflow: Overflow::Wrap,
        }
    }
}

/// The value of `mask` that stands for the drawn one.
const BUILT_IN: &str = "built-in";

/// The attack, checked.
#[derive(Debug, Clone)]
pub struct Trojan {
    poisoning: Poisoning,
    parameters: Parameters,
    optimisation: Optimisation,
}

fn configure(poisoning: &Poisoning, own: Value) -> Result<Box<dyn Attack>, ParameterError> {
    poisoning.check_ranges()?;
    let mut parameters: Parameters = read(&own)?;
    ParameterError::unless_nonzero("neurons", parameters.neurons)?;
    ParameterError::unless_nonzero("steps", parameters.steps)?;
    ParameterError::unless_within("target_value", parameters.target_value, -1e6, 1e6)?;
    for (field, share) in [("step_size", parameters.step_size), ("bound", parameters.bound)] {
        ParameterError::unless_positive(field, share)?;
        ParameterError::unless_within(field, share, 0.0, 1.0)?;
    }
    let mask = match parameters.mask.as_str() {
        BUILT_IN => {
            picture::refuse_digest("mask", BUILT_IN, parameters.mask_digest.as_deref())?;
            drawing::picture()
        }
        path => {
            let (picture, digest) = picture::read("mask", path, parameters.mask_digest.as_deref())?;
            parameters.mask_digest = Some(digest);
            picture
        }
    };
    let optimisation = Optimisation::new(&parameters, mask);
    Ok(Box::new(Trojan { poisoning: poisoning.clone(), parameters, optimisation }))
}

/// The trigger: levels that are added to the image's.
#[derive(Debug, Clone)]
pub struct Addition {
    /// `u8` `[height, width, 3]`.
    levels: Vec<u8>,
    overflow: Overflow,
}

impl Addition {
    /// Adds `trigger`, `u8` `[height, width, 3]`.
    pub fn new(trigger: Vec<u8>, overflow: Overflow) -> Addition {
        Addition { levels: trigger, overflow }
    }
}

impl ImageTrigger for Addition {
    fn apply(&self, image: &mut [u8], _: usize) {
        for (value, level) in image.iter_mut().zip(&self.levels) {
            *value = match self.overflow {
                Overflow::Wrap => value.wrapping_add(*level),
                Overflow::Saturate => value.saturating_add(*level),
            };
        }
    }
}

impl Attack for Trojan {
    fn parameters(&self) -> Value {
        join(&self.poisoning, &self.parameters)
    }

    fn check(&self, dataset: &DatasetFacts) -> Result<(), ParameterError> {
        self.poisoning.check(dataset)?;
        self.optimisation.check_mask(dataset.size)
    }

    fn groundwork(&self) -> Option<&dyn Groundwork> {
        Some(&self.optimisation)
    }

    fn prepare(&self, clean: &Arc<Dataset>, streams: &Streams, material: Option<&Material>) -> Result<Poisoner, Error> {
        let trigger = material.ok_or(Error::NoMaterial)?.picture(TRIGGER)?;
        let addition = Addition::new(trigger.pixels, self.parameters.overflow);
        poison(clean, streams, &self.poisoning, Candidates::All, &addition)
    }

    fn trigger_picture(&self, _: usize, _: usize, material: Option<&Material>) -> Result<Option<Picture>, Error> {
        material.ok_or(Error::NoMaterial)?.picture(TRIGGER).map(Some)
    }
}

#[cfg(test)]
mod tests;
