//! NAD: neural attention distillation, which pulls the network's attention towards that of a fine-tuned copy.
//!
//! Y. Li, X. Lyu, N. Koren, L. Lyu, B. Li, X. Ma, "Neural Attention Distillation: Erasing Backdoor Triggers from Deep
//! Neural Networks", ICLR 2021 (arXiv 2101.05930), in the form of BackdoorBench's `defense/nad.py`:
//!
//! 1. A teacher: a copy of the network, fine-tuned on the clean images. From then on it is fixed, in evaluation mode.
//! 2. A student: another copy, trained on the cross-entropy plus, for each attention map of the architecture
//!    ([`tsbd_nn::Architecture::attention`]), a weight times the mean squared difference between the two attentions.
//!
//! The attention of a map is the sum over its channels of the squares, divided by its norm over all places: a direction,
//! so that only where a network looks counts. A map of one place (features after pooling) has the same attention in
//! every network, its term is 0 but for rounding.
//!
//! Cost: an epoch of the teacher is one of training, one of the student a training and an evaluation pass.

use std::ops::ControlFlow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tsbd_attack::parameters::{join, read};
use tsbd_attack::{DatasetFacts, ParameterError};
use tsbd_nn::{
    Architecture, Batch, CrossEntropyStep, Mode, Model, Schedule, SgdConfig, Statistics, Step, StepRule,
    TrainingConfig, count_correct,
};
use tsbd_tensor::{CrossEntropy, Var};

use crate::entry::{Defense, DefenseCommon, DefenseEntry, Repaired, is_tiny_imagenet, noted};
use crate::training::{FineTuning, Measure, Stage, nothing};
use crate::{CleanSubset, Context, Error};

/// The registry's entry.
pub static NAD: DefenseEntry = DefenseEntry {
    name: "nad",
    title: "NAD",
    paper: "Li et al., ICLR 2021, arXiv 2101.05930",
    summary: "distils the attention of a fine-tuned copy into the network",
    revision: 1,
    schema: || schemars::schema_for!(Parameters),
    configure: |common, own| {
        let parameters: Parameters = read(&own)?;
        common.check_ranges()?;
        parameters.check()?;
        Ok(Box::new(Nad { common: common.clone(), parameters }))
    },
    published: |dataset| if is_tiny_imagenet(dataset) { json!({"batch_size": 128}) } else { json!({}) },
};

/// Where BackdoorBench's code departs from the paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// As BackdoorBench: each attention map is computed by one more pass of the student from the images to that map, and
    /// each pass moves the running estimates of the batch norms on its way.
    #[default]
    Reference,
    /// As the paper: a batch moves every running estimate once.
    Paper,
}

/// NAD's own parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// `reference` or `paper`.
    pub variant: Variant,
    /// Passes of the teacher's fine-tuning over the clean images.
    pub teacher_epochs: usize,
    /// Passes of the student's distillation over the clean images.
    pub epochs: usize,
    /// Learning rate of the teacher's first epoch and of every epoch of the student.
    pub learning_rate: f64,
    /// Momentum of SGD, of teacher and student.
    pub momentum: f64,
    /// Weight decay of all parameters, of teacher and student.
    pub weight_decay: f64,
    /// Epochs after which the teacher's cosine schedule reaches 0, whatever `teacher_epochs` is.
    pub cosine_period: usize,
    /// Weights of the attention terms, of the last map of the architecture for the last one: a network with fewer maps
    /// uses the last weights, one with more is refused.
    pub attention_weights: Vec<f64>,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters {
            variant: Variant::Reference,
            teacher_epochs: 10,
            epochs: 10,
            learning_rate: 0.01,
            momentum: 0.9,
            weight_decay: 5e-4,
            cosine_period: 100,
            attention_weights: vec![500.0, 1000.0, 1000.0],
        }
    }
}

impl Parameters {
    fn check(&self) -> Result<(), ParameterError> {
        ParameterError::unless_nonzero("teacher_epochs", self.teacher_epochs)?;
        for &weight in &self.attention_weights {
            if !(weight >= 0.0 && weight.is_finite()) {
                let way_out = "give finite numbers of at least 0";
                return Err(ParameterError::new("attention_weights", weight, "out of range", way_out));
            }
        }
        self.fine_tuning(self.epochs).check()
    }

    fn fine_tuning(&self, epochs: usize) -> FineTuning {
        let Parameters { learning_rate, momentum, weight_decay, cosine_period, .. } = *self;
        FineTuning { epochs, learning_rate, momentum, weight_decay, schedule: None, cosine_period }
    }

    /// The attention maps of an architecture with their weights.
    fn attention(&self, architecture: &dyn Architecture) -> Result<Vec<(String, f64)>, ParameterError> {
        let (maps, weights) = (architecture.attention(), &self.attention_weights);
        if maps.is_empty() {
            let reason = format!("{} names no layers whose attention could be distilled", architecture.name());
            return Err(ParameterError::new("defense", "\"nad\"", reason, "use another defense"));
        }
        match weights.len().checked_sub(maps.len()) {
            Some(unused) => {
                Ok(maps.iter().zip(&weights[unused..]).map(|(map, weight)| ((*map).to_owned(), *weight)).collect())
            }
            None => Err(ParameterError::new(
                "attention_weights",
                format!("{weights:?}"),
                format!("{} has the {} attention maps {}", architecture.name(), maps.len(), maps.join(", ")),
                format!("give at least {} numbers", maps.len()),
            )),
        }
    }
}

#[derive(Debug, Clone)]
struct Nad {
    common: DefenseCommon,
    parameters: Parameters,
}

impl Defense for Nad {
    fn parameters(&self) -> Value {
        join(&self.common, &self.parameters)
    }

    fn common(&self) -> &DefenseCommon {
        &self.common
    }

    fn check(&self, architecture: &dyn Architecture, dataset: &DatasetFacts) -> Result<(), ParameterError> {
        self.common.check(dataset)?;
        self.parameters.attention(architecture).map(|_| ())
    }

    /// The teacher goes forward beside the student.
    fn image_passes(&self, dataset: &DatasetFacts) -> f64 {
        let Parameters { teacher_epochs, epochs, .. } = self.parameters;
        self.common.passes(dataset, teacher_epochs as f64 + epochs as f64 * 4.0 / 3.0)
    }

    fn repair(&self, backdoored: &Model, clean: &CleanSubset, context: &mut Context) -> Result<Repaired, Error> {
        let DefenseCommon { batch_size, precision, .. } = self.common;
        let parameters = &self.parameters;
        let attention = parameters.attention(backdoored.architecture.as_ref())?;
        let mut trace = Vec::new();

        let mut teacher = backdoored.clone();
        let source = context.shuffled(clean.images(), "nad/teacher", batch_size);
        let epochs = parameters.teacher_epochs;
        let stage = Stage { name: "teacher", ..parameters.fine_tuning(epochs).stage(precision) };
        let mut rule = CrossEntropyStep::default();
        let measure: Measure = &mut |report, model, context, point| {
            if report.epoch + 1 == epochs {
                point.add(&(context.evaluate)(model)?);
            }
            Ok(ControlFlow::Continue(()))
        };
        let teacher_seconds = stage.train(&mut rule, &mut teacher, &source, context, &mut trace, measure)?;

        let mut model = backdoored.clone();
        let mut rule = DistillationStep { teacher, attention, variant: parameters.variant };
        let source = context.shuffled(clean.images(), "nad/distillation", batch_size);
        let Parameters { epochs, learning_rate, momentum, weight_decay, .. } = *parameters;
        let stage = Stage {
            name: "distillation",
            rate_parameter: "learning_rate",
            config: TrainingConfig {
                epochs,
                sgd: SgdConfig { learning_rate, momentum, weight_decay },
                schedule: Schedule::Constant,
                precision,
            },
        };
        let distillation_seconds = stage.train(&mut rule, &mut model, &source, context, &mut trace, &mut nothing)?;

        let (maps, weights): (Vec<_>, Vec<_>) = rule.attention.into_iter().unzip();
        let facts = [
            ("variant", json!(parameters.variant)),
            ("attention_maps", json!(maps)),
            ("attention_weights", json!(weights)),
            ("teacher_seconds", json!(teacher_seconds)),
            ("distillation_seconds", json!(distillation_seconds)),
        ];
        Ok(Repaired { model, changed: Vec::new(), trace, facts: noted(facts), scores: None })
    }
}

/// Added to the norm of an attention, so that a map of zeros is not divided by 0.
const EPSILON: f64 = 1e-6;

/// Where a network looks: of a map `[batch, height, width, channel]`, or features `[batch, features]` (one place), the sum
/// over the channels of the squares, divided by its norm: `[batch, places]`.
fn attention(map: &Var) -> tsbd_tensor::Result<Var> {
    let dims = map.dims();
    let (batch, channels) = (dims[0], dims[dims.len() - 1]);
    let places = map.tensor().elem_count() / (batch * channels);
    let squares = map.mul(map)?.reshape(&[batch * places, channels])?;
    let sums = squares.mean_per_sample()?.scale(channels as f64)?;
    sums.reshape(&[batch, places])?.divide_by_norm(EPSILON)
}

/// Cross-entropy plus the weighted differences between the attentions of the model and of a fixed teacher.
struct DistillationStep {
    teacher: Model,
    /// The maps with their weights.
    attention: Vec<(String, f64)>,
    variant: Variant,
}

impl StepRule for DistillationStep {
    fn compute(&mut self, model: &Model, batch: &Batch) -> tsbd_nn::Result<Step> {
        let maps: Vec<&str> = self.attention.iter().map(|(map, _)| map.as_str()).collect();
        let (_, teacher) = self.teacher.tapped(&batch.images, Mode::Eval, &maps)?;
        let (mut correct, mut again) = (0, Statistics::default());
        let (loss, gradients, statistics) = model.differentiate(Mode::Train, &maps, |pass| {
            let logits = pass.forward(&batch.images)?;
            correct = count_correct(logits.tensor(), &batch.labels)?;
            let mut loss = logits.cross_entropy(&batch.labels, CrossEntropy::default())?;
            for (map, weight) in &self.attention {
                // The teacher's maps are f32, the student's perhaps bf16.
                let (wanted, found) = (&teacher[map], pass.require_tap(map)?);
                let found = attention(&found.to_dtype(wanted.dtype())?)?;
                let wanted = attention(&Var::constant(wanted.clone()))?;
                let difference = found.mean_squared_error(&wanted)?;
                loss = loss.add(&difference.scale(*weight)?)?;
                if self.variant == Variant::Reference {
                    // A further pass on the same images with the same weights would meet the same statistics.
                    again = std::mem::take(&mut again).then(pass.statistics_before(map).unwrap_or_default());
                }
            }
            Ok(loss)
        })?;
        Ok(Step { loss, correct, gradients, statistics: statistics.then(again) })
    }

    fn describe(&self) -> String {
        format!("attention distillation, {:?}, {:?}", self.attention, self.variant)
    }
}

#[cfg(test)]
mod tests;
