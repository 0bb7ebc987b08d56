//! RNP: reconstructive neuron pruning, which removes the channels that an unlearned network cannot recover with.
//!
//! Y. Li, X. Lyu, X. Ma, N. Koren, L. Lyu, B. Li, Y.-G. Jiang, "Reconstructive Neuron Pruning for Backdoor Defense",
//! ICML 2023 (arXiv 2305.14876), in the form of BackdoorBench's `defense/rnp.py`:
//!
//! 1. *Unlearn*: gradient ascent on the cross-entropy of few clean images (1 % of the training set), until the accuracy
//!    during an epoch is at most 0.2.
//! 2. *Recover*: each channel of each batch norm of the unlearned network has a mask, 1 at first; the masks alone are
//!    trained to classify the same images again.
//! 3. *Prune*: channels whose mask (rounded to four decimals) is at most a threshold lose their batch norm's weight, in
//!    the original network.

use std::ops::ControlFlow;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tsbd_attack::parameters::{join, read};
use tsbd_attack::{DatasetFacts, ParameterError};
use tsbd_data::{ImageSource, Subset};
use tsbd_nn::{
    Architecture, Batch, CrossEntropyStep, LossOptions, Mode, Model, Precision, Schedule, SgdConfig, Step, StepRule,
    TrainingConfig,
};
use tsbd_tensor::Sgd;

use crate::entry::{Defense, DefenseCommon, DefenseEntry, Repaired, TracePoint, as_everywhere};
use crate::masks::{ChannelMasks, MaskTraining};
use crate::pruning::{ChannelScores, MaskPruning, batch_norms, require_batch_norms};
use crate::selection::{Judge, ThresholdSelection};
use crate::training::Stage;
use crate::{CleanSubset, Context, Error};

/// The registry's entry.
pub static RNP: DefenseEntry = DefenseEntry {
    name: "rnp",
    title: "RNP",
    paper: "Li et al., ICML 2023, arXiv 2305.14876",
    summary: "prunes the batch-norm channels that a network which unlearned its clean task does not recover with",
    revision: 1,
    schema: || schemars::schema_for!(Parameters),
    configure: |common, own| Ok(Box::new(Rnp::new(common.clone(), read(&own)?)?)),
    published: as_everywhere,
};

/// What the norm of the unlearning gradient is cut off at in the variant `paper`.
const LARGEST_NORM: f64 = 20.0;

/// Where the released code does not do what it was written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// As released: gradients are clipped while they are still 0, so not at all.
    #[default]
    Reference,
    /// As meant: while unlearning, a gradient (of all parameters together) longer than 20 is shortened to 20.
    Paper,
}

/// RNP's own parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// Who chooses the threshold: `fixed` (`threshold` as given, the published results), `validation` (clean images held
    /// out of the subset) or `oracle` (the test sets).
    pub selection: ThresholdSelection,
    /// `reference` or `paper`.
    pub variant: Variant,
    /// Share of the defender's images that is used, the first ones drawn; greater than 0, at most 1. RNP is published with
    /// 1 % of the training set: 0.2 of the usual `clean_ratio` of 0.05.
    pub clean_share: f64,
    /// Share of the clean images that is held out with `selection = "validation"`, the last ones drawn; greater than 0,
    /// less than 1.
    pub validation_share: f64,
    /// With `selection = "fixed"`: channels whose mask is at most this are pruned; from 0 to 1.
    pub threshold: f64,
    /// With `validation` and `oracle`: the accuracy may lose less than this share of its first value.
    pub tolerance: f64,
    /// Learning rate of the first epochs of unlearning.
    pub unlearning_learning_rate: f64,
    /// Epochs of unlearning at which its learning rate falls to a tenth.
    pub unlearning_milestones: Vec<usize>,
    /// Weight decay of all parameters while unlearning.
    pub unlearning_weight_decay: f64,
    /// Unlearning ends after so many epochs in any case.
    pub unlearning_epochs: usize,
    /// Unlearning ends after an epoch in which the accuracy was at most this.
    pub unlearning_accuracy: f64,
    /// Learning rate of the masks.
    pub recovering_learning_rate: f64,
    /// Passes of the masks' training over the images.
    pub recovering_epochs: usize,
    /// Momentum of both optimisers.
    pub momentum: f64,
    /// Factor of the cross-entropy that the masks descend.
    pub alpha: f64,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters {
            selection: ThresholdSelection::Fixed,
            variant: Variant::Reference,
            clean_share: 0.2,
            validation_share: 0.2,
            threshold: 0.7,
            tolerance: 0.1,
            unlearning_learning_rate: 0.01,
            unlearning_milestones: vec![10, 20],
            unlearning_weight_decay: 5e-4,
            unlearning_epochs: 20,
            unlearning_accuracy: 0.2,
            recovering_learning_rate: 0.2,
            recovering_epochs: 20,
            momentum: 0.9,
            alpha: 0.2,
        }
    }
}

impl Parameters {
    fn check(&self) -> Result<(), ParameterError> {
        ParameterError::unless_share("clean_share", self.clean_share)?;
        ParameterError::unless_share("tolerance", self.tolerance)?;
        for (field, share) in [
            ("threshold", self.threshold),
            ("unlearning_weight_decay", self.unlearning_weight_decay),
            ("unlearning_accuracy", self.unlearning_accuracy),
            ("momentum", self.momentum),
        ] {
            ParameterError::unless_within(field, share, 0.0, 1.0)?;
        }
        for (field, rate) in [
            ("unlearning_learning_rate", self.unlearning_learning_rate),
            ("recovering_learning_rate", self.recovering_learning_rate),
            ("alpha", self.alpha),
        ] {
            ParameterError::unless_positive(field, rate)?;
        }
        ParameterError::unless_nonzero("unlearning_epochs", self.unlearning_epochs)?;
        ParameterError::unless_nonzero("recovering_epochs", self.recovering_epochs)?;
        ParameterError::unless_between("validation_share", self.validation_share, 0.0, 1.0)?;
        let left = 1.0 - self.validation_share;
        if self.selection == ThresholdSelection::Validation && self.clean_share > left {
            let reason =
                format!("with validation_share = {} only {left} of the images are left", self.validation_share);
            let way_out = format!("give at most {left}, or hold out fewer");
            return Err(ParameterError::new("clean_share", self.clean_share, reason, way_out));
        }
        Ok(())
    }

    /// One form for everything that means the same: a field that the selection does not use has its default.
    fn canonical(self) -> Parameters {
        let fields = |of: &Parameters| [of.validation_share, of.threshold, of.tolerance];
        let [validation_share, threshold, tolerance] =
            self.selection.effective(fields(&self), fields(&Parameters::default()));
        Parameters { validation_share, threshold, tolerance, ..self }
    }
}

/// RNP with checked parameters.
#[derive(Debug, Clone)]
pub struct Rnp {
    common: DefenseCommon,
    parameters: Parameters,
}

/// A model that has unlearned its clean task.
#[derive(Debug, Clone)]
pub struct Unlearned {
    /// The model.
    pub model: Model,
    /// Epochs that it took.
    pub epochs: usize,
    /// Accuracy during the last of them.
    pub accuracy: f64,
    /// Wall-clock seconds.
    pub seconds: f64,
}

impl Rnp {
    /// Checks the parameters.
    pub fn new(common: DefenseCommon, parameters: Parameters) -> Result<Rnp, ParameterError> {
        common.check_ranges()?;
        parameters.check()?;
        Ok(Rnp { common, parameters: parameters.canonical() })
    }

    /// How many of `count` clean images are used.
    fn used(&self, count: usize) -> usize {
        ((count as f64 * self.parameters.clean_share) as usize).max(1)
    }

    /// Step 1: gradient ascent on `images`. All parameters move, batch norms use and move their statistics.
    pub fn unlearn(
        &self,
        backdoored: &Model,
        images: Arc<dyn ImageSource>,
        context: &mut Context,
        trace: &mut Vec<TracePoint>,
    ) -> Result<Unlearned, Error> {
        let parameters = &self.parameters;
        let stage = Stage {
            name: "unlearning",
            rate_parameter: "unlearning_learning_rate",
            config: TrainingConfig {
                epochs: parameters.unlearning_epochs,
                sgd: SgdConfig {
                    learning_rate: parameters.unlearning_learning_rate,
                    momentum: parameters.momentum,
                    weight_decay: parameters.unlearning_weight_decay,
                },
                schedule: Schedule::MultiStep { milestones: parameters.unlearning_milestones.clone(), gamma: 0.1 },
                precision: Precision::F32,
            },
        };
        let mut rule = Ascent {
            plain: CrossEntropyStep { loss: LossOptions::ascent(), mode: Mode::Train },
            largest_norm: match parameters.variant {
                Variant::Reference => f64::INFINITY,
                Variant::Paper => LARGEST_NORM,
            },
        };
        let source = context.shuffled(images, "rnp/unlearning", self.common.batch_size);
        let (mut model, before) = (backdoored.clone(), trace.len());
        let seconds = stage.train(&mut rule, &mut model, &source, context, trace, &mut |report, _, _, _| {
            let reached = report.train_accuracy.is_some_and(|accuracy| accuracy <= parameters.unlearning_accuracy);
            Ok(if reached { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        // Of all epochs, those before the repair was killed included.
        let epochs = &trace[before..];
        let accuracy = epochs.last().and_then(|epoch| epoch.metrics.get("train_accuracy")).copied();
        Ok(Unlearned { model, epochs: epochs.len(), accuracy: accuracy.unwrap_or(f64::NAN), seconds })
    }

    /// Step 2: the masks with which the `unlearned` network recovers, rounded to four decimals, and the seconds that it took.
    /// Backdoor channels have the smallest.
    pub fn recover(
        &self,
        unlearned: &Model,
        images: Arc<dyn ImageSource>,
        context: &mut Context,
        trace: &mut Vec<TracePoint>,
    ) -> Result<(ChannelScores, f64), Error> {
        let Parameters { recovering_learning_rate, recovering_epochs, momentum, alpha, .. } = self.parameters;
        let training =
            MaskTraining { stage: "recovering", rate_parameter: "recovering_learning_rate", epochs: recovering_epochs };
        let source = context.shuffled(images, "rnp/recovering", self.common.batch_size);
        let options = Sgd { learning_rate: recovering_learning_rate, momentum, weight_decay: 0.0 };
        let unlearned = &Model { precision: self.common.precision, ..unlearned.clone() };
        let (mut masks, run) = (ChannelMasks::ones(unlearned)?, unlearned.state.digest()?);
        let seconds = training.run(&mut masks, &source, &run, context, trace, &mut |masks, _, batch| {
            let slope = masks.slope(unlearned, batch, None)?;
            let scaled = slope.gradients.iter().map(|gradient| gradient * alpha).collect::<Result<Vec<_>, _>>()?;
            masks.descend(&scaled, options)?;
            Ok(alpha * slope.loss)
        })?;
        Ok((masks.rounded()?, seconds))
    }
}

/// The gradient of the negative cross-entropy, shortened to `largest_norm`.
struct Ascent {
    plain: CrossEntropyStep,
    largest_norm: f64,
}

impl StepRule for Ascent {
    fn compute(&mut self, model: &Model, batch: &Batch) -> tsbd_nn::Result<Step> {
        let step = self.plain.compute(model, batch)?;
        if self.largest_norm.is_infinite() {
            return Ok(step);
        }
        // As PyTorch's clip_grad_norm_, its 1e-6 included.
        let factor = self.largest_norm / (step.gradients.global_norm()? + 1e-6);
        if factor >= 1.0 {
            return Ok(step);
        }
        Ok(Step { gradients: step.gradients.scale(factor)?, ..step })
    }

    fn describe(&self) -> String {
        format!("{:?}, norm at most {}", self.plain, self.largest_norm)
    }
}

impl Defense for Rnp {
    fn parameters(&self) -> Value {
        join(&self.common, &self.parameters)
    }

    fn common(&self) -> &DefenseCommon {
        &self.common
    }

    fn check(&self, architecture: &dyn Architecture, dataset: &DatasetFacts) -> Result<(), ParameterError> {
        self.common.check(dataset)?;
        // First: what `clean_share` may be depends on whether images are held out.
        if self.parameters.selection == ThresholdSelection::Validation {
            self.common.check_held_out(dataset, self.parameters.validation_share)?;
        }
        let count = self.common.clean_count(dataset.train_images);
        let used = (count as f64 * self.parameters.clean_share) as usize;
        if used < dataset.classes {
            return Err(ParameterError::new(
                "clean_share",
                self.parameters.clean_share,
                format!("{used} of {count} clean images, fewer than one for each class"),
                format!("give at least {}, or a greater `clean_ratio`", dataset.classes as f64 / count as f64),
            ));
        }
        require_batch_norms(architecture, RNP.name)
    }

    fn scored_layers(&self, architecture: &dyn Architecture) -> Vec<String> {
        batch_norms(architecture).map(|(norm, _)| norm.to_owned()).collect()
    }

    /// Recovering takes no gradients of the weights.
    fn image_passes(&self, dataset: &DatasetFacts) -> f64 {
        let Parameters { clean_share, unlearning_epochs, recovering_epochs, .. } = self.parameters;
        let passes = unlearning_epochs as f64 + recovering_epochs as f64 * 2.0 / 3.0;
        self.common.passes(dataset, clean_share * passes)
    }

    fn repair(&self, backdoored: &Model, clean: &CleanSubset, context: &mut Context) -> Result<Repaired, Error> {
        let Parameters { selection, variant, validation_share, threshold, tolerance, .. } = self.parameters;
        let (images, held_out) = selection.split(clean, validation_share);
        let used = self.used(clean.len()).min(images.len());
        let images: Arc<dyn ImageSource> = Arc::new(Subset::new(images, (0..used as u32).collect()));
        let mut trace = Vec::new();
        let unlearned = self.unlearn(backdoored, images.clone(), context, &mut trace)?;
        let (masks, recovering_seconds) = self.recover(&unlearned.model, images, context, &mut trace)?;
        let facts = [
            ("variant", json!(variant)),
            ("images_used", json!(used)),
            ("unlearning_epochs", json!(unlearned.epochs)),
            ("unlearning_reached", json!(unlearned.accuracy <= self.parameters.unlearning_accuracy)),
            ("unlearning_accuracy", json!(unlearned.accuracy)),
            ("unlearning_seconds", json!(unlearned.seconds)),
            ("recovering_seconds", json!(recovering_seconds)),
        ];
        let judge = Judge { selection, tolerance, held_out, batch_size: self.common.batch_size };
        MaskPruning { masks: &masks, fixed: threshold, judge }.repair(backdoored, facts, context, trace)
    }
}

#[cfg(test)]
mod tests;
