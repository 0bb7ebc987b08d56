//! TSBD's parameters and their checks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tsbd_analysis::{Unlearned, Unlearning};
use tsbd_attack::ParameterError;

use crate::DefenseCommon;
use crate::selection::ThresholdSelection;

/// The neuron ratios among which `selection` chooses: those that the released code measures.
pub(super) const NEURON_RATIOS: [f64; 11] = [0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9];

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
    /// Who chooses n: `fixed` (the default: `neuron_ratio` as given), or one of the released code's eleven ratios by the
    /// networks repaired with each of them: `validation` (clean images held out of fine-tuning) or `oracle` (the test sets).
    pub selection: Option<ThresholdSelection>,
    /// With `validation`: share of the clean images that is held out, the last ones drawn; greater than 0, less than 1; 0.2
    /// unless given.
    pub validation_share: Option<f64>,
    /// With `validation` and `oracle`: the accuracy may lose less than this share of its first value; 0.1 unless given.
    pub tolerance: Option<f64>,
    /// n: share of the neurons that are selected, by descending weight change; greater than 0, at most 1. Not used by
    /// `validation` and `oracle`.
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
    /// `per-tensor` or `global`. This, `radius` and `alpha` are used by `activeness-aware` alone.
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
            selection: None,
            validation_share: None,
            tolerance: None,
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

    /// Who chooses n.
    pub fn selection(&self) -> ThresholdSelection {
        self.selection.unwrap_or(ThresholdSelection::Fixed)
    }

    /// One form for everything that means the same, of which the key of a cell is made: a field that the schemes and the
    /// selection do not use has its default. Without a share of the second gradient the steps are those of vanilla
    /// fine-tuning, and all weights of a neuron are the same whichever scheme takes them.
    pub(super) fn canonical(self) -> Parameters {
        let usual = Parameters::default();
        let selection = self.selection();
        let chosen = selection != ThresholdSelection::Fixed;
        let held_out = selection == ThresholdSelection::Validation;
        let reinitialisation = if self.weight_ratio == 1.0 { Reinitialisation::V1 } else { self.reinitialisation };
        let fine_tuning = match self.fine_tuning {
            FineTuning::ActivenessAware if self.alpha == 0.0 => FineTuning::Vanilla,
            other => other,
        };
        let (whole, tuned) = (reinitialisation == Reinitialisation::V1, fine_tuning != FineTuning::None);
        let aware = fine_tuning == FineTuning::ActivenessAware;
        Parameters {
            reinitialisation,
            fine_tuning,
            selection: chosen.then_some(selection),
            validation_share: held_out.then(|| self.validation_share()),
            tolerance: chosen.then(|| self.tolerance()),
            neuron_ratio: if chosen { usual.neuron_ratio } else { self.neuron_ratio },
            weight_ratio: if whole { usual.weight_ratio } else { self.weight_ratio },
            alpha: if aware { self.alpha } else { usual.alpha },
            radius: if aware { self.radius } else { usual.radius },
            gradient_norm: if aware { self.gradient_norm } else { usual.gradient_norm },
            fine_tuning_learning_rate: match tuned {
                true => self.fine_tuning_learning_rate,
                false => usual.fine_tuning_learning_rate,
            },
            fine_tuning_momentum: if tuned { self.fine_tuning_momentum } else { usual.fine_tuning_momentum },
            fine_tuning_passes: if tuned { self.fine_tuning_passes } else { usual.fine_tuning_passes },
            ..self
        }
    }

    pub(super) fn validation_share(&self) -> f64 {
        self.validation_share.unwrap_or(0.2)
    }

    pub(super) fn tolerance(&self) -> f64 {
        self.tolerance.unwrap_or(0.1)
    }

    /// Refuses what no network and no data set allows.
    pub fn check(&self) -> Result<(), ParameterError> {
        ParameterError::unless_between("validation_share", self.validation_share(), 0.0, 1.0)?;
        ParameterError::unless_share("tolerance", self.tolerance())?;
        for (field, ratio) in [("neuron_ratio", self.neuron_ratio), ("weight_ratio", self.weight_ratio)] {
            ParameterError::unless_share(field, ratio)?;
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
