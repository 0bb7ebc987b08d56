//! CLP: prunes channels that amplify a change of their input far more than the others of their layer. Needs no data.
//!
//! R. Zheng, R. Tang, J. Li, L. Liu, "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022 (arXiv
//! 2208.03111), in the form of BackdoorBench's `defense/clp.py`:
//!
//! 1. The bound of a batch norm's channel c is the largest singular value of filter c of the convolution before it, as a
//!    matrix `[in, kernel * kernel]`, times `|weight_c / sqrt(running_var_c)|` of the batch norm.
//! 2. In each batch norm, channels whose bound is greater than the mean plus u standard deviations of the layer's bounds
//!    are pruned: weight and bias 0.
//!
//! The clean images are used by `selection = "validation"` alone, where u is chosen on all of them.

mod singular_value;

use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tsbd_attack::parameters::{join, read};
use tsbd_attack::{DatasetFacts, ParameterError};
use tsbd_nn::{Architecture, Layer, Model};

use crate::entry::{Defense, DefenseCommon, DefenseEntry, Repaired, as_everywhere, noted};
use crate::pruning::{Candidate, ChannelScores, Choice, Zeroed, batch_norms, require_batch_norms};
use crate::selection::{Judge, ThresholdSelection};
use crate::{CleanSubset, Context, Error};
use singular_value::largest_singular_value;

/// The registry's entry.
pub static CLP: DefenseEntry = DefenseEntry {
    name: "clp",
    title: "CLP",
    paper: "Zheng et al., ECCV 2022, arXiv 2208.03111",
    summary: "prunes the batch-norm channels with the largest Lipschitz bounds, without data",
    revision: 1,
    schema: || schemars::schema_for!(Parameters),
    configure: |common, own| {
        let parameters: Parameters = read(&own)?;
        common.check_ranges()?;
        parameters.check()?;
        Ok(Box::new(Clp { common: common.in_full_precision(), parameters: parameters.canonical() }))
    },
    published: as_everywhere,
};

/// Which convolution belongs to a batch norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// As BackdoorBench: the one that stands before it in the list of modules. In PreAct-ResNet18 that is the 1x1
    /// convolution of the shortcut for `layer2.1.bn1`, `layer3.1.bn1` and `layer4.1.bn1`.
    #[default]
    Reference,
    /// As the paper: the one whose output it normalises. Convolutions of shortcuts are passed over.
    Paper,
}

/// CLP's own parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// `fixed` (u as given in `deviations`, the published results), or u from 0 to 10 in steps of 0.5 chosen on all of
    /// the defender's images (`validation`) or on the test sets (`oracle`).
    pub selection: ThresholdSelection,
    /// `reference` or `paper`.
    pub variant: Variant,
    /// u, with `fixed`: channels more than so many standard deviations above the mean of their layer are pruned; 0 or more.
    /// Without it 3, and 5 for images of 64 pixels or more (Tiny ImageNet), as BackdoorBench's configurations.
    pub deviations: Option<f64>,
    /// With `validation` and `oracle`: the accuracy may lose less than this share of its first value.
    pub tolerance: f64,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters {
            selection: ThresholdSelection::Fixed,
            variant: Variant::Reference,
            deviations: None,
            tolerance: 0.1,
        }
    }
}

impl Parameters {
    fn check(&self) -> Result<(), ParameterError> {
        if let Some(deviations) = self.deviations {
            ParameterError::unless_within("deviations", deviations, 0.0, f64::MAX)?;
        }
        ParameterError::unless_share("tolerance", self.tolerance)?;
        match self.deviations {
            Some(deviations) if self.selection != ThresholdSelection::Fixed => Err(ParameterError::new(
                "deviations",
                deviations,
                "u is chosen by `selection`",
                "remove it, or write selection = \"fixed\"",
            )),
            _ => Ok(()),
        }
    }

    /// One form for everything that means the same: with `fixed` the tolerance is not used.
    fn canonical(self) -> Parameters {
        let fixed = self.selection == ThresholdSelection::Fixed;
        Parameters { tolerance: if fixed { Parameters::default().tolerance } else { self.tolerance }, ..self }
    }

    /// u for images of so many rows.
    fn deviations(&self, image_size: usize) -> f64 {
        self.deviations.unwrap_or(if image_size < 64 { 3.0 } else { 5.0 })
    }
}

#[derive(Debug, Clone)]
struct Clp {
    common: DefenseCommon,
    parameters: Parameters,
}

impl Defense for Clp {
    fn parameters(&self) -> Value {
        join(&self.common, &self.parameters)
    }

    fn common(&self) -> &DefenseCommon {
        &self.common
    }

    fn check(&self, architecture: &dyn Architecture, dataset: &DatasetFacts) -> Result<(), ParameterError> {
        self.common.check(dataset)?;
        require_batch_norms(architecture, CLP.name)?;
        pairs(architecture, self.parameters.variant).map(drop)
    }

    fn scored_layers(&self, architecture: &dyn Architecture) -> Vec<String> {
        batch_norms(architecture).map(|(norm, _)| norm.to_owned()).collect()
    }

    /// None: it looks at weights alone.
    fn image_passes(&self, _: &DatasetFacts) -> f64 {
        0.0
    }

    fn repair(&self, backdoored: &Model, clean: &CleanSubset, context: &mut Context) -> Result<Repaired, Error> {
        let Parameters { selection, variant, tolerance, .. } = self.parameters;
        let start = Instant::now();
        let bounds = channel_bounds(backdoored, variant)?;
        let bounds_seconds = start.elapsed().as_secs_f64();

        let start = Instant::now();
        let images = clean.images();
        let candidates = match selection {
            ThresholdSelection::Fixed => vec![candidate(&bounds, self.parameters.deviations(images.height()))],
            ThresholdSelection::Validation | ThresholdSelection::Oracle => {
                (0..=20).rev().map(|halves| candidate(&bounds, f64::from(halves) / 2.0)).collect()
            }
        };
        let batch_size = self.common.batch_size;
        let judge = Judge { selection, tolerance, held_out: images, batch_size };
        let choice = Choice { judge, zeroed: Zeroed::WeightAndBias };
        let mut trace = Vec::new();
        let pruned = choice.prune(backdoored, candidates, context, &mut trace)?;
        let facts = [
            ("selection", json!(selection)),
            ("variant", json!(variant)),
            ("bounds_seconds", json!(bounds_seconds)),
            ("pruning_seconds", json!(start.elapsed().as_secs_f64())),
        ];
        let facts = noted(facts.into_iter().chain(pruned.facts()));
        Ok(Repaired {
            changed: pruned.changed(),
            model: pruned.model,
            trace,
            facts,
            scores: Some(bounds.scores(above_mean)),
        })
    }
}

/// The channels that `deviations` prunes: in each layer those above the mean plus so many unbiased standard deviations.
fn candidate(bounds: &ChannelScores, deviations: f64) -> Candidate {
    let channels = bounds.select(|layer, bound| {
        let (mean, deviation) = moments(layer);
        bound > mean + deviations * deviation
    });
    Candidate { threshold: deviations, channels }
}

/// Mean and unbiased standard deviation. A layer of one channel has no deviation (0 / 0): nothing of it is pruned.
fn moments(layer: &[f64]) -> (f64, f64) {
    let mean = layer.iter().sum::<f64>() / layer.len() as f64;
    let squares: f64 = layer.iter().map(|bound| (bound - mean).powi(2)).sum();
    (mean, (squares / (layer.len() as f64 - 1.0)).sqrt())
}

/// By how many deviations a channel lies above its layer's mean: the sooner it is pruned, the more. 0 where there is none.
fn above_mean(layer: &[f64], bound: f64) -> f64 {
    let (mean, deviation) = moments(layer);
    if deviation > 0.0 { (bound - mean) / deviation } else { 0.0 }
}

/// The Lipschitz bound of every channel of every batch norm.
///
/// A running variance of 0, which the reference divides by, counts as batch norm's epsilon (1e-5): that is what the
/// network divides by.
pub fn channel_bounds(model: &Model, variant: Variant) -> Result<ChannelScores, Error> {
    let layers = pairs(model.architecture.as_ref(), variant)?.into_iter().map(|Pair { norm, convolution, inputs }| {
        let filters = model.state.filter_rows(&format!("{convolution}.weight"))?;
        let weights = model.state.get(&format!("{norm}.weight"))?.to_vec1::<f32>()?;
        let variances = model.state.get(&format!("{norm}.running_var"))?.to_vec1::<f32>()?;
        let channels = filters.iter().zip(weights.iter().zip(&variances));
        let bounds = channels.map(|(filter, (weight, variance))| {
            let variance = if *variance > 0.0 { f64::from(*variance) } else { 1e-5 };
            largest_singular_value(filter, inputs) * (f64::from(*weight) / variance.sqrt()).abs()
        });
        Ok((norm.to_owned(), bounds.collect()))
    });
    Ok(ChannelScores { layers: layers.collect::<Result<_, Error>>()? })
}

/// A batch norm and the convolution that belongs to it.
struct Pair<'a> {
    norm: &'a str,
    convolution: &'a str,
    /// Input channels of the convolution.
    inputs: usize,
}

/// Every batch norm with its convolution; refuses a network in which one has none.
fn pairs(architecture: &dyn Architecture, variant: Variant) -> Result<Vec<Pair<'_>>, ParameterError> {
    let modules = architecture.modules();
    let pair = |(norm, channels)| {
        let before = modules.iter().take_while(|module| module.name != norm);
        let convolution = before
            .filter_map(|module| match module.layer {
                Layer::Conv2d { in_channels, out_channels, .. } => {
                    Some((module.name.as_str(), in_channels, out_channels))
                }
                _ => None,
            })
            .filter(|(name, ..)| variant == Variant::Reference || !name.contains("shortcut"))
            .last();
        match convolution {
            Some((convolution, inputs, outputs)) if outputs == channels => Ok(Pair { norm, convolution, inputs }),
            _ => Err(ParameterError::new(
                "defense",
                "\"clp\"",
                format!("{}: no convolution of {channels} channels stands before {norm}", architecture.name()),
                "try the other `variant`, or take another defense",
            )),
        }
    };
    batch_norms(architecture).map(pair).collect()
}

#[cfg(test)]
mod tests;
