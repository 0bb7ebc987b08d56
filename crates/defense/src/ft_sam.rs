//! FT-SAM: fine-tuning with sharpness-aware minimisation, which shrinks the weights of backdoor neurons.
//!
//! M. Zhu, S. Wei, L. Shen, Y. Fan, B. Wu, "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware
//! Minimization", ICCV 2023 (arXiv 2304.11823), in the form of BackdoorBench's `defense/ft-sam.py`. The optimiser is
//! adaptive SAM (J. Kwon et al., ICML 2021): each step descends the gradient at the weights `w + e`, where `e` makes the
//! loss grow most within a region that is wide where weights are large.
//!
//! Cost: two gradients per step.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tsbd_attack::parameters::{join, read};
use tsbd_attack::{DatasetFacts, ParameterError};
use tsbd_data::ImageSource;
use tsbd_nn::{
    Architecture, Batch, LossOptions, Mode, Model, ParameterGradients, Schedule, SgdConfig, Step, StepRule,
    TrainingConfig,
};

use crate::entry::{Defense, DefenseCommon, DefenseEntry, Repaired, as_everywhere, noted, ratio_of};
use crate::training::{Stage, nothing};
use crate::{CleanSubset, Context, Error};

/// The registry's entry.
pub static FT_SAM: DefenseEntry = DefenseEntry {
    name: "ft-sam",
    title: "FT-SAM",
    paper: "Zhu et al., ICCV 2023, arXiv 2304.11823",
    summary: "trains the whole network further on the clean images with adaptive sharpness-aware minimisation",
    revision: 1,
    schema: || schemars::schema_for!(Parameters),
    configure: |common, own| {
        let parameters: Parameters = read(&own)?;
        common.check_ranges()?;
        parameters.check()?;
        Ok(Box::new(FtSam { common: common.clone(), parameters }))
    },
    published: as_everywhere,
};

/// Where BackdoorBench's code departs from the paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// As BackdoorBench: the cosine schedule is stepped after every batch, so that the learning rate falls to 0 within
    /// `cosine_period` *steps* and rises again, over and over.
    #[default]
    Reference,
    /// As the configuration says: stepped after every epoch.
    Paper,
}

/// FT-SAM's own parameters. Defaults as BackdoorBench's command line, which overrides its configuration files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// `reference` or `paper`.
    pub variant: Variant,
    /// Passes over the clean images. Without it 100, and 50 where there are 43 classes (GTSRB), as BackdoorBench's
    /// configurations.
    pub epochs: Option<usize>,
    /// Learning rate of the first step.
    pub learning_rate: f64,
    /// Momentum of SGD.
    pub momentum: f64,
    /// Weight decay of all parameters.
    pub weight_decay: f64,
    /// Steps (`reference`) or epochs (`paper`) after which the cosine schedule reaches 0.
    pub cosine_period: usize,
    /// rho: length of the perturbation, greater than 0; measured in units of the weights if `adaptive`. The published
    /// table for Tiny ImageNet has 8.
    pub radius: f64,
    /// Whether each weight's perturbation is in proportion to the weight.
    pub adaptive: bool,
    /// Probability of the labels that is spread over the *other* classes; at least 0, less than 0.5.
    pub label_smoothing: f64,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters {
            variant: Variant::Reference,
            epochs: None,
            learning_rate: 0.01,
            momentum: 0.9,
            weight_decay: 5e-4,
            cosine_period: 100,
            radius: 2.0,
            adaptive: true,
            label_smoothing: 0.1,
        }
    }
}

impl Parameters {
    fn check(&self) -> Result<(), ParameterError> {
        ParameterError::unless_nonzero("epochs", self.epochs.unwrap_or(1))?;
        ParameterError::unless_nonzero("cosine_period", self.cosine_period)?;
        ParameterError::unless_positive("learning_rate", self.learning_rate)?;
        ParameterError::unless_positive("radius", self.radius)?;
        ParameterError::unless_within("momentum", self.momentum, 0.0, 1.0)?;
        ParameterError::unless_within("weight_decay", self.weight_decay, 0.0, 1.0)?;
        if (0.0..0.5).contains(&self.label_smoothing) {
            return Ok(());
        }
        let way_out = "give a number of at least 0 and less than 0.5";
        Err(ParameterError::new("label_smoothing", self.label_smoothing, "out of range", way_out))
    }

    /// Passes for a network of so many classes.
    fn epochs(&self, classes: usize) -> usize {
        self.epochs.unwrap_or(if classes == 43 { 50 } else { 100 })
    }
}

#[derive(Debug, Clone)]
struct FtSam {
    common: DefenseCommon,
    parameters: Parameters,
}

/// Adaptive sharpness-aware minimisation of the smoothed cross-entropy.
#[derive(Debug, Clone, Copy)]
struct SharpnessAwareStep {
    radius: f64,
    adaptive: bool,
    loss: LossOptions,
}

impl StepRule for SharpnessAwareStep {
    /// The gradient at `w + radius * w² g / ‖ |w| g ‖`, or at `w + radius * g / ‖g‖` if not adaptive; `g` is the gradient at
    /// `w`, norms are over all parameters. Running estimates move by the pass at `w` alone.
    fn compute(&mut self, model: &Model, batch: &Batch) -> tsbd_nn::Result<Step> {
        let first = model.gradients(batch, Mode::Train, &self.loss)?;
        let mut moved = model.clone();
        let mut along = |direction: &ParameterGradients, norm: f64| {
            moved.state.add_scaled(direction, |_| self.radius / (norm + 1e-12))
        };
        if self.adaptive {
            let scaled = times_size(&first.gradients, model)?;
            along(&times_size(&scaled, model)?, scaled.global_norm()?)?;
        } else {
            along(&first.gradients, first.gradients.global_norm()?)?;
        }
        let second = moved.gradients(batch, Mode::TrainKeepingStatistics, &self.loss)?;
        Ok(Step { gradients: second.gradients, ..first })
    }

    fn describe(&self) -> String {
        format!("{self:?}")
    }
}

/// Each gradient times the absolute value of its weight.
fn times_size(gradients: &ParameterGradients, model: &Model) -> tsbd_nn::Result<ParameterGradients> {
    gradients
        .iter()
        .map(|(name, gradient)| Ok((name.to_owned(), (gradient * model.state.get(name)?.abs()?)?)))
        .collect()
}

impl Defense for FtSam {
    fn parameters(&self) -> Value {
        join(&self.common, &self.parameters)
    }

    fn common(&self) -> &DefenseCommon {
        &self.common
    }

    fn check(&self, _: &dyn Architecture, dataset: &DatasetFacts) -> Result<(), ParameterError> {
        self.common.check(dataset)?;
        // A class without images is none for this draw.
        let occurring: Vec<usize> = dataset.images_per_class.iter().copied().filter(|count| *count > 0).collect();
        let each = self.common.clean_count_per_class(dataset.train_images, occurring.len());
        let least = occurring.iter().copied().min().unwrap_or(0);
        if each <= least {
            return Ok(());
        }
        // No fewer images than every defense needs, and no more than the smallest class has as many times as there are classes.
        let enough = dataset.classes.max(least * occurring.len());
        let way_out = if enough / occurring.len().max(1) <= least {
            format!("give {}", ratio_of(enough, dataset.train_images))
        } else {
            "use images of which each class has more, or another defense".to_owned()
        };
        let reason = format!("{each} images of each class, and the smallest class has {least}");
        Err(ParameterError::new("clean_ratio", self.common.clean_ratio, reason, way_out))
    }

    /// The same number of each class, as BackdoorBench's `choose_by_class`.
    fn clean_subset(&self, train: Arc<dyn ImageSource>, seed: u64) -> Result<CleanSubset, ParameterError> {
        CleanSubset::draw_by_class(train, &self.common, seed)
    }

    /// Two gradients a step.
    fn image_passes(&self, dataset: &DatasetFacts) -> f64 {
        self.common.passes(dataset, 2.0 * self.parameters.epochs(dataset.classes) as f64)
    }

    fn repair(&self, backdoored: &Model, clean: &CleanSubset, context: &mut Context) -> Result<Repaired, Error> {
        let Parameters { variant, learning_rate, momentum, weight_decay, cosine_period, radius, adaptive, .. } =
            self.parameters;
        let classes = backdoored.architecture.classes();
        // The others share the smoothing; `LossOptions` spreads it over all classes, the true one included.
        let label_smoothing = match classes {
            0 | 1 => 0.0,
            _ => self.parameters.label_smoothing * classes as f64 / (classes - 1) as f64,
        };
        let mut rule =
            SharpnessAwareStep { radius, adaptive, loss: LossOptions { label_smoothing, ..LossOptions::default() } };
        let stage = Stage {
            name: "fine-tuning",
            rate_parameter: "learning_rate",
            config: TrainingConfig {
                epochs: self.parameters.epochs(classes),
                sgd: SgdConfig { learning_rate, momentum, weight_decay },
                schedule: match variant {
                    Variant::Reference => Schedule::CosineOfSteps { t_max: cosine_period },
                    Variant::Paper => Schedule::Cosine { t_max: cosine_period },
                },
                precision: self.common.precision,
            },
        };
        let source = context.shuffled(clean.images(), "ft_sam", self.common.batch_size);
        let (mut model, mut trace) = (backdoored.clone(), Vec::new());
        let seconds = stage.train(&mut rule, &mut model, &source, context, &mut trace, &mut nothing)?;
        let facts = [
            ("variant", json!(variant)),
            ("epochs", json!(stage.config.epochs)),
            ("fine_tuning_seconds", json!(seconds)),
        ];
        Ok(Repaired { model, changed: Vec::new(), trace, facts: noted(facts), scores: None })
    }
}

#[cfg(test)]
mod tests;
