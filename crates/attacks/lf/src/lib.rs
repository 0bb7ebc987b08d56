//! LF: a pattern of low frequencies, searched on a clean model, is added to the image.
//!
//! Y. Zeng, W. Park, Z. M. Mao, R. Jia, "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective", ICCV 2021,
//! in the form of BackdoorBench's `attack/lf.py` and `resource/lowFrequency`.
//!
//! `out = min(image + pattern, 255)`, with a pattern of 8-bit levels. Dirty label: training and test images get the same
//! pattern. It depends on the data set and on the network: the attack's groundwork searches it on a clean model of the
//! same network (module `search`). `pattern = "file.npy"` (or a picture) uses a given one, and needs no clean model
//! (module `pattern`).

mod deepfool;
mod npy;
mod pattern;
mod search;
mod smoothing;

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

use search::Search;

/// The registry's entry.
pub static LF: AttackEntry = AttackEntry {
    name: "lf",
    title: "LF",
    paper: "Zeng et al., ICCV 2021",
    summary: "a smooth pattern, searched on a clean model, is added to the image",
    revision: 1,
    schema: || schemars::schema_for!(Parameters),
    configure,
};

/// LF's own parameters. All but the first two are about the search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// `searched`, or the path of a pattern: an .npy array of shape (height, width, 3), (1, height, width, 3) or
    /// (height, width), whole levels as 8-bit integers or shares of 255 (at most 1) as floats; or a PNG picture. It is
    /// not resized.
    pub pattern: String,
    /// Digest of the pattern when `pattern` is a path: filled in when the file is read, compared when it is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern_digest: Option<String>,
    /// Largest level of the searched pattern as a share of 255; at least 1/255, at most 1.
    pub amplitude: f64,
    /// Training images that the pattern is searched on.
    pub search_images: usize,
    /// The search ends once the pattern changes the prediction for this share of the evaluation images.
    pub fooling_rate: f64,
    /// Passes over the search images, at most.
    pub passes: usize,
    /// DeepFool steps for one image, at most; at least 3.
    pub steps: usize,
    /// What the clean model is shown while the pattern is searched: `unit` (levels from 0 to 1, as the published code
    /// does) or `normalized` (as the model was trained).
    pub input: Input,
}

/// What the clean model is shown while the pattern is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Input {
    /// Levels from 0 to 1, whatever the model was trained on: as the published code does.
    #[default]
    Unit,
    /// Levels normalised as the data set's are in training.
    Normalized,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters {
            pattern: SEARCHED.to_owned(),
            pattern_digest: None,
            amplitude: 0.2,
            search_images: 100,
            fooling_rate: 0.2,
            passes: 50,
            steps: 200,
            input: Input::Unit,
        }
    }
}

/// The value of `pattern` that stands for a search.
const SEARCHED: &str = "searched";

/// The attack, checked.
#[derive(Debug, Clone)]
pub struct Lf {
    poisoning: Poisoning,
    parameters: Parameters,
    source: Source,
}

/// Where the pattern comes from.
#[derive(Debug, Clone)]
enum Source {
    Given(Picture),
    Searched(Search),
}

fn configure(poisoning: &Poisoning, own: Value) -> Result<Box<dyn Attack>, ParameterError> {
    poisoning.check_ranges()?;
    let mut parameters: Parameters = read(&own)?;
    let Parameters { amplitude, search_images, fooling_rate, passes, steps, .. } = parameters;
    // Less than a level of 255 would leave every image as it is.
    if !(1.0 / 255.0..=1.0).contains(&amplitude) {
        let way_out = "give a number from 1/255 (0.00393) to 1";
        return Err(ParameterError::new("amplitude", amplitude, "out of range", way_out));
    }
    ParameterError::unless_within("fooling_rate", fooling_rate, 0.0, 1.0)?;
    for (field, count) in [("search_images", search_images), ("passes", passes)] {
        ParameterError::unless_nonzero(field, count)?;
    }
    if steps < search::LEAST_STEPS {
        let reason = "an image that takes all steps, or all but one, does not count: none could";
        return Err(ParameterError::new("steps", steps, reason, format!("give at least {}", search::LEAST_STEPS)));
    }
    let source = match parameters.pattern.as_str() {
        SEARCHED => {
            picture::refuse_digest("pattern", SEARCHED, parameters.pattern_digest.as_deref())?;
            Source::Searched(Search::new(poisoning.target_class, &parameters))
        }
        path => {
            let (pattern, digest) = pattern::read("pattern", path, parameters.pattern_digest.as_deref())?;
            parameters.pattern_digest = Some(digest);
            Source::Given(pattern)
        }
    };
    Ok(Box::new(Lf { poisoning: poisoning.clone(), parameters, source }))
}

impl Lf {
    /// The pattern: the given one, or that in `material`.
    fn pattern(&self, material: Option<&Material>) -> Result<Picture, Error> {
        match &self.source {
            Source::Given(pattern) => Ok(pattern.clone()),
            Source::Searched(_) => material.ok_or(Error::NoMaterial)?.picture(search::PATTERN),
        }
    }
}

/// The trigger: levels that are added to the image's.
#[derive(Debug, Clone)]
pub struct Addition {
    /// `u8` `[height, width, 3]`.
    levels: Vec<u8>,
}

impl Addition {
    /// Adds `pattern`, `u8` `[height, width, 3]`.
    pub fn new(pattern: Vec<u8>) -> Addition {
        Addition { levels: pattern }
    }
}

impl ImageTrigger for Addition {
    fn apply(&self, image: &mut [u8], _: usize) {
        // The reference adds in double precision, clips and truncates: of whole levels that is a saturating sum.
        for (value, level) in image.iter_mut().zip(&self.levels) {
            *value = value.saturating_add(*level);
        }
    }
}

impl Attack for Lf {
    fn parameters(&self) -> Value {
        join(&self.poisoning, &self.parameters)
    }

    fn check(&self, dataset: &DatasetFacts) -> Result<(), ParameterError> {
        self.poisoning.check(dataset)?;
        match &self.source {
            Source::Given(pattern) => pattern::check_size("pattern", &self.parameters.pattern, pattern, dataset.size),
            Source::Searched(search) => search.check_images(dataset),
        }
    }

    fn groundwork(&self) -> Option<&dyn Groundwork> {
        match &self.source {
            Source::Given(_) => None,
            Source::Searched(search) => Some(search),
        }
    }

    fn prepare(&self, clean: &Arc<Dataset>, streams: &Streams, material: Option<&Material>) -> Result<Poisoner, Error> {
        let addition = Addition::new(self.pattern(material)?.pixels);
        poison(clean, streams, &self.poisoning, Candidates::All, &addition)
    }

    fn trigger_picture(&self, _: usize, _: usize, material: Option<&Material>) -> Result<Option<Picture>, Error> {
        self.pattern(material).map(Some)
    }
}

#[cfg(test)]
mod tests;
