//! FP: fine-pruning, which removes the features that clean images do not use, then fine-tunes.
//!
//! K. Liu, B. Dolan-Gavitt, S. Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks",
//! RAID 2018 (arXiv 1805.12185), in the form of BackdoorBench's `defense/fp.py`:
//!
//! 1. The mean input of the last linear layer over the clean images (evaluation mode, augmented) orders its input
//!    features, ascending.
//! 2. Features are removed in steps of 1 %, by zeros in the columns of that layer's weight, while the accuracy falls by
//!    less than a tenth of its first value.
//! 3. All parameters are fine-tuned, pruned columns stay zero.
//!
//! Only the last layer changes in step 2, so the features are computed once.
//!
//! With `order = "nwc"` step 1 is another: features are removed by the weight change that clean unlearning makes in the
//! filters they come from, the largest first (NWC-FP, Figure 8 of the TSBD paper, arXiv 2405.20291).

use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tsbd_analysis::{NeuronVector, Neurons, UnlearnedModel, Unlearning, descending};
use tsbd_attack::parameters::{join, read};
use tsbd_attack::{DatasetFacts, ParameterError};
use tsbd_data::Loader;
use tsbd_nn::{Architecture, Batch, BatchSource, CrossEntropyStep, Layer, Mode, Model, Step, StepRule};
use tsbd_tensor::Tensor;

use crate::entry::{ChangedNeuron, Defense, DefenseCommon, DefenseEntry, Repaired, TracePoint, noted};
use crate::selection::{Selection, ThresholdSelection};
use crate::training::{self, FineTuning, FineTuningSchedule, nothing};
use crate::tsbd::parameters::check_unlearning;
use crate::{CleanSubset, Context, Error, tsbd};

/// The registry's entry.
pub static FP: DefenseEntry = DefenseEntry {
    name: "fp",
    title: "FP",
    paper: "Liu et al., RAID 2018, arXiv 1805.12185",
    summary: "prunes the features that clean images use least, then fine-tunes",
    revision: 1,
    schema: || schemars::schema_for!(Parameters),
    configure: |common, own| {
        let parameters: Parameters = read(&own)?;
        common.check_ranges()?;
        parameters.check()?;
        Ok(Box::new(Fp { common: common.clone(), parameters: parameters.canonical() }))
    },
    published: training::published,
};

/// Where BackdoorBench's code departs from the paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// As BackdoorBench: a step of n features prunes n - 1, and the network that first lost too much accuracy is the
    /// one that is fine-tuned.
    #[default]
    Reference,
    /// As the paper: a step of n features prunes n, and the last network within the tolerance is fine-tuned.
    Paper,
}

/// What orders the features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Their mean over clean images, the smallest first: FP.
    Activation,
    /// The weight change in clean unlearning of the filters they come from, the largest first: NWC-FP.
    Nwc,
}

/// FP's own parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// Which accuracy decides how much is pruned: `validation` (clean images held out of the subset) or `oracle` (the
    /// clean test set, as BackdoorBench does).
    pub selection: Selection,
    /// `reference` or `paper`.
    pub variant: Variant,
    /// `activation` (the default) or `nwc`.
    pub order: Option<Order>,
    /// Learning rate of clean unlearning, for `order = "nwc"`; this and the next three as TSBD's, and with its defaults.
    pub unlearning_learning_rate: Option<f64>,
    /// Momentum of clean unlearning, for `order = "nwc"`.
    pub unlearning_momentum: Option<f64>,
    /// Accuracy at which unlearning stops, for `order = "nwc"`.
    pub unlearning_accuracy: Option<f64>,
    /// Epochs of unlearning at most, for `order = "nwc"`.
    pub unlearning_epochs: Option<usize>,
    /// Share of the clean images that is held out with `selection = "validation"`; greater than 0, less than 1.
    pub validation_share: f64,
    /// Share of the features that each step prunes (rounded up to a whole feature).
    pub step: f64,
    /// Pruning goes on while the accuracy has lost less than this share of its first value.
    pub tolerance: f64,
    /// Passes of fine-tuning over the clean images. Unless given 100, and 200 on Tiny ImageNet (200 classes), as
    /// BackdoorBench's configurations.
    pub epochs: usize,
    /// Learning rate of the first epoch.
    pub learning_rate: f64,
    /// Momentum of SGD.
    pub momentum: f64,
    /// Weight decay of all parameters.
    pub weight_decay: f64,
    /// `cosine` (the default) or `plateau` (the default on Tiny ImageNet).
    pub schedule: Option<FineTuningSchedule>,
    /// Epochs after which the cosine schedule reaches 0, whatever `epochs` is.
    pub cosine_period: usize,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters {
            selection: Selection::Validation,
            variant: Variant::Reference,
            order: None,
            unlearning_learning_rate: None,
            unlearning_momentum: None,
            unlearning_accuracy: None,
            unlearning_epochs: None,
            validation_share: 0.2,
            step: 0.01,
            tolerance: 0.1,
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
    /// One form for everything that means the same: what is not used is not there, what is used is. FP without
    /// unlearning has the parameters, and so the results, that it had before there was another order.
    fn canonical(self) -> Parameters {
        let nwc = self.order == Some(Order::Nwc);
        let (schedule, cosine_period) = self.fine_tuning().canonical_schedule();
        let usual = tsbd::parameters::Parameters::default();
        let number = |given: Option<f64>, usual: f64| nwc.then(|| given.unwrap_or(usual));
        Parameters {
            order: nwc.then_some(Order::Nwc),
            unlearning_learning_rate: number(self.unlearning_learning_rate, usual.unlearning_learning_rate),
            unlearning_momentum: number(self.unlearning_momentum, usual.unlearning_momentum),
            unlearning_accuracy: number(self.unlearning_accuracy, usual.unlearning_accuracy),
            unlearning_epochs: nwc.then(|| self.unlearning_epochs.unwrap_or(usual.unlearning_epochs)),
            validation_share: match self.selection {
                Selection::Validation => self.validation_share,
                Selection::Oracle => Parameters::default().validation_share,
            },
            schedule,
            cosine_period,
            ..self
        }
    }

    /// The unlearning that orders the features, if one does.
    fn unlearning(&self, common: &DefenseCommon) -> Option<Unlearning> {
        let of_tsbd = tsbd::parameters::Parameters {
            unlearning_learning_rate: self.unlearning_learning_rate?,
            unlearning_momentum: self.unlearning_momentum?,
            unlearning_accuracy: self.unlearning_accuracy?,
            unlearning_epochs: self.unlearning_epochs?,
            ..tsbd::parameters::Parameters::default()
        };
        Some(of_tsbd.unlearning(common))
    }

    fn check(&self) -> Result<(), ParameterError> {
        for (field, share) in
            [("validation_share", self.validation_share), ("step", self.step), ("tolerance", self.tolerance)]
        {
            ParameterError::unless_between(field, share, 0.0, 1.0)?;
        }
        if let Some(unlearning) = self.clone().canonical().unlearning(&DefenseCommon::default()) {
            check_unlearning(&unlearning)?;
        }
        self.fine_tuning().check()
    }

    fn fine_tuning(&self) -> FineTuning {
        let Parameters { epochs, learning_rate, momentum, weight_decay, schedule, cosine_period, .. } = *self;
        FineTuning { epochs, learning_rate, momentum, weight_decay, schedule, cosine_period }
    }
}

#[derive(Debug, Clone)]
struct Fp {
    common: DefenseCommon,
    parameters: Parameters,
}

impl Defense for Fp {
    fn parameters(&self) -> Value {
        join(&self.common, &self.parameters)
    }

    fn common(&self) -> &DefenseCommon {
        &self.common
    }

    fn unlearning(&self) -> Option<Unlearning> {
        self.parameters.unlearning(&self.common)
    }

    fn check(&self, architecture: &dyn Architecture, dataset: &DatasetFacts) -> Result<(), ParameterError> {
        self.common.check(dataset)?;
        if self.parameters.order == Some(Order::Nwc) {
            check_last_filters(architecture)?;
        }
        match self.parameters.selection {
            Selection::Validation => self.common.check_held_out(dataset, self.parameters.validation_share),
            Selection::Oracle => Ok(()),
        }
    }

    fn image_passes(&self, dataset: &DatasetFacts) -> f64 {
        self.common.passes(dataset, self.parameters.epochs as f64)
    }

    fn repair(&self, backdoored: &Model, clean: &CleanSubset, context: &mut Context) -> Result<Repaired, Error> {
        let Parameters { selection, variant, validation_share, .. } = self.parameters;
        let batch_size = self.common.batch_size;
        let (used, measured) = match selection {
            Selection::Oracle => (clean.images(), context.clean_test.clone()),
            Selection::Validation => clean.hold_out(validation_share),
        };
        let mut trace = Vec::new();
        let unlearned = match self.unlearning() {
            None => None,
            Some(unlearning) => Some(context.unlearned(&unlearning, backdoored, clean, &mut trace)?),
        };
        let start = Instant::now();
        let order = match &unlearned {
            None => {
                let source = context.augmented(used.clone(), "fp/activations", batch_size);
                let total = source.batches_per_epoch();
                context.observer.stage(ACTIVATIONS, total);
                activation_order(backdoored, &source, &mut |done| context.step(ACTIVATIONS, done, total))?
            }
            Some(unlearned) => change_order(backdoored, &unlearned.nwc),
        };
        let source = context.plain(measured, batch_size);
        let features = HeadInputs::of(backdoored, &source, context)?;
        let head = format!("{}.weight", backdoored.architecture.head());

        let mut model = backdoored.clone();
        let pruning = self.prune(&order, &features, &mut model, &head, context, &mut trace)?;
        let pruning_seconds = start.elapsed().as_secs_f64();

        let source = context.shuffled(used, "fp/fine-tuning", batch_size);
        let mut rule = MaskedStep { plain: CrossEntropyStep::default(), head, pruned: pruning.pruned.clone() };
        let stage = self.parameters.fine_tuning().stage(self.common.precision);
        let fine_tuning_seconds = stage.train(&mut rule, &mut model, &source, context, &mut trace, &mut nothing)?;

        let facts = [
            ("selection", json!(selection)),
            ("variant", json!(variant)),
            ("order", json!(self.parameters.order.unwrap_or(Order::Activation))),
            ("unlearning", unlearned.as_ref().map_or(Value::Null, told_of)),
            ("selection_images", json!(features.labels.len())),
            ("features", json!(order.len())),
            ("features_pruned", json!(pruning.pruned.len())),
            ("accuracy_before_pruning", json!(pruning.first_accuracy)),
            ("accuracy_after_pruning", json!(pruning.accuracy)),
            ("pruning_seconds", json!(pruning_seconds)),
            ("fine_tuning_seconds", json!(fine_tuning_seconds)),
        ];
        let layer = backdoored.architecture.head();
        let mut pruned = pruning.pruned;
        pruned.sort_unstable();
        let changed = pruned
            .into_iter()
            .map(|neuron| ChangedNeuron {
                layer: layer.to_owned(),
                neuron,
                zeroed: backdoored.architecture.classes(),
                what: "input feature pruned".to_owned(),
            })
            .collect();
        Ok(Repaired { model, changed, trace, facts: noted(facts), scores: None })
    }
}

/// How the unlearning went, for the record.
fn told_of(unlearned: &UnlearnedModel) -> Value {
    json!({"epochs": unlearned.rates.len(), "reached": unlearned.reached, "seconds": unlearned.seconds})
}

/// What pruning left.
#[derive(Debug)]
struct Pruning {
    /// The pruned features, in the order of pruning.
    pruned: Vec<usize>,
    first_accuracy: f64,
    accuracy: f64,
}

impl Fp {
    /// Prunes `model` in steps; each leaves a point of the trace.
    fn prune(
        &self,
        order: &[usize],
        features: &HeadInputs,
        model: &mut Model,
        head: &str,
        context: &mut Context,
        trace: &mut Vec<TracePoint>,
    ) -> Result<Pruning, Error> {
        const STAGE: &str = "pruning";
        let step = ((order.len() as f64 * self.parameters.step).ceil() as usize).max(1);
        let first_accuracy = features.accuracy(model)?;
        let mut kept = Pruning { pruned: Vec::new(), first_accuracy, accuracy: first_accuracy };
        let original = model.state.get(head)?.copy()?;
        context.observer.stage(STAGE, order.len().div_ceil(step));
        for (number, n) in (0..order.len()).step_by(step).enumerate() {
            let count = match self.parameters.variant {
                Variant::Reference => n.saturating_sub(1),
                Variant::Paper => n,
            };
            let pruned = &order[..count];
            model.state.set(head, &without_columns(&original, pruned)?)?;
            let accuracy = features.accuracy(model)?;
            let selection = ThresholdSelection::from(self.parameters.selection);
            let within = selection.keeps(first_accuracy, accuracy, self.parameters.tolerance);
            let metrics = [("features_pruned", count as f64), ("selection_accuracy", accuracy)];
            context.trace(trace, TracePoint::new(STAGE, number, metrics));
            context.step(STAGE, number + 1, order.len().div_ceil(step))?;
            if within || self.parameters.variant == Variant::Reference {
                kept = Pruning { pruned: pruned.to_vec(), accuracy, ..kept };
            }
            if !within {
                break;
            }
        }
        model.state.set(head, &without_columns(&original, &kept.pruned)?)?;
        Ok(kept)
    }
}

/// The pass that orders features.
const ACTIVATIONS: &str = "activations";
/// The pass over the images whose accuracy decides how much is pruned.
const FEATURES: &str = "features";

/// The input features of the last linear layer by ascending mean over `source`; ties in the layer's order. `step` is called
/// after each batch with how many are done; its error ends the pass.
pub fn activation_order(
    model: &Model,
    source: &Loader,
    step: &mut dyn FnMut(usize) -> Result<(), Error>,
) -> Result<Vec<usize>, Error> {
    let means = model.mean_output(source, model.architecture.features(), step)?;
    let mut order: Vec<usize> = (0..means.len()).collect();
    order.sort_by(|a, b| means[*a].total_cmp(&means[*b]));
    Ok(order)
}

/// Refuses a network whose features are not one for each filter of its last convolution.
fn check_last_filters(architecture: &dyn Architecture) -> Result<(), ParameterError> {
    let filters = Neurons::of(architecture).layers().last().map(|layer| layer.filters);
    let features = architecture.modules().iter().find_map(|module| match module.layer {
        Layer::Linear { in_features, .. } if module.name == architecture.head() => Some(in_features),
        _ => None,
    });
    if filters.is_some() && filters == features {
        return Ok(());
    }
    Err(ParameterError::new(
        "order",
        "\"nwc\"",
        format!("the features of {} are not the filters of its last convolution", architecture.name()),
        "take order = \"activation\", or a residual network",
    ))
}

/// The input features of the last linear layer, each the mean of one filter of the last convolution, by descending change
/// of the filter's weights; ties in the layer's order.
fn change_order(backdoored: &Model, nwc: &NeuronVector) -> Vec<usize> {
    let neurons = Neurons::of(backdoored.architecture.as_ref());
    let last = neurons.layers().last().and_then(|layer| nwc.layer(&layer.module));
    descending(last.unwrap_or_default(), None)
}

/// A linear layer's weight `[out, in]` with zeros in the columns `pruned`.
pub fn without_columns(weight: &Tensor, pruned: &[usize]) -> Result<Tensor, Error> {
    let mut rows = weight.to_vec2::<f32>()?;
    for row in &mut rows {
        for column in pruned {
            row[*column] = 0.0;
        }
    }
    Ok(Tensor::new(rows, weight.device())?)
}

/// The inputs of the last linear layer for a set of images, and the images' labels.
struct HeadInputs {
    /// `f32` `[images, features]`.
    inputs: Tensor,
    labels: Vec<u32>,
}

impl HeadInputs {
    fn of(model: &Model, source: &Loader, context: &mut Context) -> Result<HeadInputs, Error> {
        let (tap, total) = (model.architecture.features(), source.batches_per_epoch());
        let (mut inputs, mut labels) = (Vec::new(), Vec::new());
        context.observer.stage(FEATURES, total);
        for (number, batch) in source.epoch(0).enumerate() {
            let batch = batch?;
            let (_, outputs) = model.tapped(&batch.images, Mode::Eval, &[tap])?;
            inputs.push(outputs[tap].clone());
            labels.extend(batch.labels.to_vec1::<u32>()?);
            context.step(FEATURES, number + 1, total)?;
        }
        Ok(HeadInputs { inputs: Tensor::cat(&inputs, 0)?, labels })
    }

    /// Accuracy with the present weight and bias of the model's last linear layer.
    fn accuracy(&self, model: &Model) -> Result<f64, Error> {
        let head = model.architecture.head();
        let weight = model.state.get(&format!("{head}.weight"))?;
        let bias = model.state.get(&format!("{head}.bias"))?;
        let logits = self.inputs.matmul(&weight.t()?)?.broadcast_add(bias)?;
        let classes = logits.argmax(1)?.to_vec1::<u32>()?;
        let correct = classes.iter().zip(&self.labels).filter(|(class, label)| class == label).count();
        Ok(correct as f64 / self.labels.len() as f64)
    }
}

/// Cross-entropy whose gradient is 0 in the pruned columns of the last linear layer: weights that are 0 stay 0, since
/// weight decay of 0 is 0.
struct MaskedStep {
    plain: CrossEntropyStep,
    /// Name of the layer's weight.
    head: String,
    pruned: Vec<usize>,
}

impl StepRule for MaskedStep {
    fn compute(&mut self, model: &Model, batch: &Batch) -> tsbd_nn::Result<Step> {
        let mut step = self.plain.compute(model, batch)?;
        let gradient = without_columns(step.gradients.get(&self.head)?, &self.pruned);
        step.gradients.set(&self.head, gradient.map_err(tsbd_nn::Error::source)?);
        Ok(step)
    }

    fn describe(&self) -> String {
        format!("{:?}, {} without columns {:?}", self.plain, self.head, self.pruned)
    }
}

#[cfg(test)]
mod tests;
