//! NC: Neural Cleanse, which reverses the trigger of every class, and unlearns those that are suspiciously small.
//!
//! B. Wang, Y. Yao, S. Shan, H. Li, B. Viswanath, H. Zheng, B. Y. Zhao, "Neural Cleanse: Identifying and Mitigating
//! Backdoor Attacks in Neural Networks", IEEE S&P 2019, in the form of BackdoorBench's `defense/nc.py`:
//!
//! 1. For each class, a mask and a pattern are sought that make the fixed network take every clean image for that class,
//!    with a mask as small as possible ([`search`]).
//! 2. A class whose mask is much smaller than the others' is the target of a backdoor ([`outliers`]).
//! 3. Without such a class the network is left as it is. Otherwise it is fine-tuned on four fifths of the clean images,
//!    and on the last fifth with each of those triggers on them and their true labels ([`stamping`]).
//!
//! Cost: a search is up to `search_epochs` passes over the clean images for each class, each the forward pass and the
//! gradient with respect to the images of a training pass: about two thirds of it.

pub mod outliers;
pub mod search;
pub mod stamping;

use std::time::Instant;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tsbd_attack::parameters::{join, read};
use tsbd_attack::{DatasetFacts, ParameterError};
use tsbd_nn::{Architecture, CrossEntropyStep, Model};

use crate::entry::{Defense, DefenseCommon, DefenseEntry, Repaired, TracePoint, noted};
use crate::training::{self, FineTuning, FineTuningSchedule, nothing};
use crate::{CleanSubset, Context, Error};
use outliers::Outliers;
use search::{Reversed, STAGE, Search};

/// The registry's entry.
pub static NC: DefenseEntry = DefenseEntry {
    name: "nc",
    title: "NC",
    paper: "Wang et al., IEEE S&P 2019",
    summary: "reverses each class's trigger and unlearns those that are outliers",
    revision: 1,
    schema: || schemars::schema_for!(Parameters),
    configure: |common, own| {
        let mut parameters: Parameters = read(&own)?;
        common.check_ranges()?;
        parameters.check()?;
        (parameters.schedule, parameters.cosine_period) = parameters.fine_tuning().canonical_schedule();
        Ok(Box::new(Nc { common: common.clone(), parameters }))
    },
    published: training::published,
};

/// Where BackdoorBench's code departs from the paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// As BackdoorBench: images are stamped with mask and trigger as they are read back from image files, each stretched
    /// to the whole range of levels, and sums above 255 wrap around.
    #[default]
    Reference,
    /// As the paper: images are stamped with mask and pattern as they were found.
    Paper,
}

/// NC's own parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// `reference` or `paper`.
    pub variant: Variant,
    /// Passes over the clean images in the search of one class's trigger, at most.
    pub search_epochs: usize,
    /// Learning rate of the search (Adam with betas 0.5 and 0.9).
    pub search_learning_rate: f64,
    /// Weight of the mask's size in the objective of the search, at its beginning.
    pub initial_cost: f64,
    /// Share of the images that a mask has to move to its class to count; greater than 0, at most 1.
    pub success_threshold: f64,
    /// Epochs in a row with (or without) success after which the weight is raised (or lowered).
    pub cost_patience: usize,
    /// What the weight is multiplied with when it is raised; it is divided by this to the power of 1.5 when it is lowered.
    pub cost_multiplier: f64,
    /// An epoch counts as stale if the smallest mask is at least this share of the smallest one before it.
    pub early_stop_threshold: f64,
    /// Stale epochs in a row after which the search ends, if the weight has been raised and lowered before.
    pub early_stop_patience: usize,
    /// A class is flagged if its mask is smaller than the median by more than this many (normalised) median absolute
    /// deviations.
    pub outlier_threshold: f64,
    /// Share of the clean images, the last ones drawn, that are stamped in fine-tuning; greater than 0, less than 1.
    pub unlearning_share: f64,
    /// Passes of fine-tuning over the clean and the stamped images. Unless given 100, and 200 on Tiny ImageNet (200 classes),
    /// as BackdoorBench's configurations.
    pub epochs: usize,
    /// Learning rate of fine-tuning in its first epoch.
    pub learning_rate: f64,
    /// Momentum of SGD.
    pub momentum: f64,
    /// Weight decay of all parameters.
    pub weight_decay: f64,
    /// `cosine` (the default) or `plateau` (the default on Tiny ImageNet).
    pub schedule: Option<FineTuningSchedule>,
    /// Epochs after which the cosine schedule of fine-tuning reaches 0, whatever `epochs` is.
    pub cosine_period: usize,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters {
            variant: Variant::Reference,
            search_epochs: 80,
            search_learning_rate: 0.1,
            initial_cost: 1e-3,
            success_threshold: 0.98,
            cost_patience: 5,
            cost_multiplier: 2.0,
            early_stop_threshold: 0.99,
            early_stop_patience: 25,
            outlier_threshold: 2.0,
            unlearning_share: 0.2,
            epochs: 100,
            learning_rate: 0.01,
            momentum: 0.9,
            weight_decay: 5e-4,
            schedule: None,
            cosine_period: 100,
        }
    }
}

impl Parameters {
    fn check(&self) -> Result<(), ParameterError> {
        for (field, count) in [
            ("search_epochs", self.search_epochs),
            ("cost_patience", self.cost_patience),
            ("early_stop_patience", self.early_stop_patience),
        ] {
            ParameterError::unless_nonzero(field, count)?;
        }
        for (field, value) in [
            ("search_learning_rate", self.search_learning_rate),
            ("initial_cost", self.initial_cost),
            ("outlier_threshold", self.outlier_threshold),
        ] {
            ParameterError::unless_positive(field, value)?;
        }
        ParameterError::unless_share("success_threshold", self.success_threshold)?;
        ParameterError::unless_within("early_stop_threshold", self.early_stop_threshold, 0.0, 1.0)?;
        if !(self.cost_multiplier > 1.0 && self.cost_multiplier.is_finite()) {
            let way_out = "give a finite number greater than 1";
            return Err(ParameterError::new("cost_multiplier", self.cost_multiplier, "out of range", way_out));
        }
        ParameterError::unless_between("unlearning_share", self.unlearning_share, 0.0, 1.0)?;
        self.fine_tuning().check()
    }

    fn fine_tuning(&self) -> FineTuning {
        let Parameters { epochs, learning_rate, momentum, weight_decay, schedule, cosine_period, .. } = *self;
        FineTuning { epochs, learning_rate, momentum, weight_decay, schedule, cosine_period }
    }
}

#[derive(Debug, Clone)]
struct Nc {
    common: DefenseCommon,
    parameters: Parameters,
}

impl Defense for Nc {
    fn parameters(&self) -> Value {
        join(&self.common, &self.parameters)
    }

    fn common(&self) -> &DefenseCommon {
        &self.common
    }

    fn check(&self, architecture: &dyn Architecture, dataset: &DatasetFacts) -> Result<(), ParameterError> {
        self.common.check(dataset)?;
        if architecture.classes() < 3 {
            return Err(ParameterError::new(
                "defense",
                "\"nc\"",
                format!("of {} classes none can be an outlier", architecture.classes()),
                "use another defense",
            ));
        }
        Ok(())
    }

    /// A search takes no gradients of the weights.
    fn image_passes(&self, dataset: &DatasetFacts) -> f64 {
        let Parameters { search_epochs, epochs, .. } = self.parameters;
        self.common.passes(dataset, (dataset.classes * search_epochs) as f64 * 2.0 / 3.0 + epochs as f64)
    }

    fn repair(&self, backdoored: &Model, clean: &CleanSubset, context: &mut Context) -> Result<Repaired, Error> {
        let parameters = &self.parameters;
        let mut trace = Vec::new();
        let Found { reversed, seconds: search_seconds, .. } = self.search(backdoored, clean, context, &mut trace)?;
        let norms: Vec<f64> = reversed.iter().map(|found| found.norm).collect();
        let outliers = Outliers::of(&norms, parameters.outlier_threshold);

        let (mut model, mut fine_tuning_seconds) = (backdoored.clone(), 0.0);
        if !outliers.flagged.is_empty() {
            let triggers = outliers.flagged.iter().map(|&class| &reversed[class]);
            let classes = backdoored.architecture.classes();
            let images =
                stamping::unlearning_set(clean, parameters.unlearning_share, triggers, parameters.variant, classes);
            let source = context.shuffled(images, "nc/fine-tuning", self.common.batch_size);
            let stage = parameters.fine_tuning().stage(self.common.precision);
            let mut rule = CrossEntropyStep::default();
            fine_tuning_seconds = stage.train(&mut rule, &mut model, &source, context, &mut trace, &mut nothing)?;
        }
        let facts = [
            ("variant", json!(parameters.variant)),
            ("mask_norms", json!(norms)),
            ("mask_norm_median", json!(outliers.median)),
            ("mask_norm_deviation", json!(outliers.deviation)),
            ("anomaly_indices", json!(outliers.anomaly_indices)),
            ("flagged_classes", json!(outliers.flagged)),
            ("fine_tuned", json!(!outliers.flagged.is_empty())),
            ("search_epochs_used", json!(reversed.iter().map(|found| found.epochs).collect::<Vec<_>>())),
            ("search_successes", json!(reversed.iter().map(|found| found.successful).collect::<Vec<_>>())),
            ("search_seconds", json!(search_seconds)),
            ("fine_tuning_seconds", json!(fine_tuning_seconds)),
        ];
        Ok(Repaired { model, changed: Vec::new(), trace, facts: noted(facts), scores: None })
    }
}

/// What the search has found so far: kept after each class.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Found {
    /// The triggers of the first classes.
    reversed: Vec<Reversed>,
    /// A point of the trace for each.
    points: Vec<TracePoint>,
    seconds: f64,
}

impl Nc {
    /// The reversed trigger of every class; each leaves a point of the trace.
    fn search(
        &self,
        model: &Model,
        clean: &CleanSubset,
        context: &mut Context,
        trace: &mut Vec<TracePoint>,
    ) -> Result<Found, Error> {
        let start = Instant::now();
        let (classes, epochs) = (model.architecture.classes(), self.parameters.search_epochs);
        let batches = clean.len().div_ceil(self.common.batch_size);
        let total = classes * epochs * batches;
        context.observer.stage(STAGE, total);
        let model = &Model { precision: self.common.precision, ..model.clone() };
        let run = format!("{} in {}", model.state.digest()?, model.precision.name());
        let mut all: Found = context.kept(STAGE, &run).map(|(_, found)| found).unwrap_or_default();
        for point in &all.points {
            context.trace(trace, point.clone());
        }
        let earlier = all.seconds;
        for class in all.reversed.len()..classes {
            let source = context.shuffled(clean.images(), &format!("nc/search/{class}"), self.common.batch_size);
            let mut search = Search::new(model, class as u32, &source, &self.parameters)?;
            let found = loop {
                let before = (class * epochs + search.history().len()) * batches;
                let mut step = |step: usize| context.step(STAGE, before + step + 1, total);
                if let Some(found) = search.epoch(&mut step)? {
                    break found;
                }
            };
            let metrics = [
                ("mask_norm", found.norm),
                ("success_rate", found.success_rate),
                ("cost", search.history().last().map_or(f64::NAN, |epoch| epoch.cost)),
                ("epochs", found.epochs as f64),
            ];
            let point = TracePoint::new(STAGE, class, metrics);
            context.trace(trace, point.clone());
            all.points.push(point);
            all.reversed.push(found);
            all.seconds = earlier + start.elapsed().as_secs_f64();
            context.keep(STAGE, &run, IndexMap::new(), &all)?;
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests;
