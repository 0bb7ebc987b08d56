//! TSBD's parameters and their checks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tsbd_analysis::{Unlearned, Unlearning};
use tsbd_attack::ParameterError;

use crate::DefenseCommon;

/// Which weights of the selected neurons are set to zero (Table 3 of the paper).
///
/// The paper publishes V3; V1 and V2 are this project's reading of the other two columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Reinitialisation {
    /// Every weight of every selected neuron.
    V1,
    /// In each selected neuron the share `weight_ratio` of its weights that changed most.
    V2,
    /// Of all weights of the selected neurons together, the share `weight_ratio` that changed most: TSBD.
    #[default]
    V3,
}

/// How stage 2 fine-tunes (Table 4 of the paper).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FineTuning {
    /// Penalises the gradient's norm, which suppresses neurons that are active for the backdoor: TSBD.
    #[default]
    ActivenessAware,
    /// Plain fine-tuning: the same with `alpha = 0`.
    Vanilla,
    /// No stage 2.
    None,
}

/// Over what the norm of the first gradient is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GradientNorm {
    /// For each parameter tensor on its own: the released code. The perturbation is `radius * sqrt(tensors)` long.
    #[default]
    PerTensor,
    /// Over all parameters: the paper's formula.
    Global,
}

/// TSBD's own parameters. Defaults as in the released code; the code has no default for `neuron_ratio`, 0.15 is ours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// n: share of the neurons that are selected, by descending weight change; greater than 0, at most 1.
    pub neuron_ratio: f64,
    /// m: share of the selected neurons' weights that are set to zero; greater than 0, at most 1. Not used by `v1`.
    pub weight_ratio: f64,
    /// `v1`, `v2` or `v3`.
    pub reinitialisation: Reinitialisation,
    /// Whether neuron weight changes are rounded to four decimals before neurons are ordered, as the released code does
    /// by writing them to a text file.
    pub round_changes: bool,
    /// Learning rate of clean unlearning (SGD, no weight decay).
    pub unlearning_learning_rate: f64,
    /// Momentum of clean unlearning.
    pub unlearning_momentum: f64,
    /// Unlearning stops when the accuracy on the augmented clean images is at most this.
    pub unlearning_accuracy: f64,
    /// Unlearning stops after so many epochs in any case.
    pub unlearning_epochs: usize,
    /// `activeness-aware`, `vanilla` or `none`.
    pub fine_tuning: FineTuning,
    /// `per-tensor` or `global`.
    pub gradient_norm: GradientNorm,
    /// r: length of the step along the normalised gradient to where the second gradient is taken.
    pub radius: f64,
    /// alpha: share of the second gradient in the update, from 0 to 1. To first order the update descends the
    /// cross-entropy plus `alpha * radius` times the gradient's norm, the paper's lambda.
    pub alpha: f64,
    /// Learning rate of stage 2 (SGD, constant, no weight decay).
    pub fine_tuning_learning_rate: f64,
    /// Momentum of stage 2.
    pub fine_tuning_momentum: f64,
    /// Passes of stage 2 over the clean images. The released code makes 21 (`range(20 + 1)`), the paper says 20.
    pub fine_tuning_passes: usize,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters {
            neuron_ratio: 0.15,
            weight_ratio: 0.7,
            reinitialisation: Reinitialisation::V3,
            round_changes: true,
            unlearning_learning_rate: 1e-4,
            unlearning_momentum: 0.9,
            unlearning_accuracy: 0.10,
            unlearning_epochs: 1000,
            fine_tuning: FineTuning::ActivenessAware,
            gradient_norm: GradientNorm::PerTensor,
            radius: 0.05,
            alpha: 0.7,
            fine_tuning_learning_rate: 0.01,
            fine_tuning_momentum: 0.9,
            fine_tuning_passes: 21,
        }
    }
}

impl Parameters {
    /// Stage 1.
    pub fn unlearning(&self, common: &DefenseCommon) -> Unlearning {
        Unlearning {
            of: Unlearned::Clean,
            clean_ratio: Some(common.clean_ratio),
            batch_size: common.batch_size,
            learning_rate: self.unlearning_learning_rate,
            momentum: self.unlearning_momentum,
            stop_at: self.unlearning_accuracy,
            epochs: self.unlearning_epochs,
        }
    }

    /// Refuses what no network and no data set allows.
    pub fn check(&self) -> Result<(), ParameterError> {
        for (field, ratio) in [("neuron_ratio", self.neuron_ratio), ("weight_ratio", self.weight_ratio)] {
            if !(ratio > 0.0 && ratio <= 1.0) {
                let way_out = "give a number greater than 0 and at most 1";
                return Err(ParameterError::new(field, ratio, "out of range", way_out));
            }
        }
        for (field, rate) in [("fine_tuning_learning_rate", self.fine_tuning_learning_rate), ("radius", self.radius)] {
            ParameterError::unless_positive(field, rate)?;
        }
        for (field, share) in [("fine_tuning_momentum", self.fine_tuning_momentum), ("alpha", self.alpha)] {
            ParameterError::unless_within(field, share, 0.0, 1.0)?;
        }
        check_unlearning(&self.unlearning(&DefenseCommon::default()))?;
        ParameterError::unless_nonzero("fine_tuning_passes", self.fine_tuning_passes)
    }
}

/// Refuses an unlearning that no network and no data set allows, by the names that defenses give its numbers.
pub(crate) fn check_unlearning(unlearning: &Unlearning) -> Result<(), ParameterError> {
    ParameterError::unless_positive("unlearning_learning_rate", unlearning.learning_rate)?;
    ParameterError::unless_within("unlearning_momentum", unlearning.momentum, 0.0, 1.0)?;
    ParameterError::unless_within("unlearning_accuracy", unlearning.stop_at, 0.0, 1.0)?;
    ParameterError::unless_nonzero("unlearning_epochs", unlearning.epochs)
}
