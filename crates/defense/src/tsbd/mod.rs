//! TSBD: two-stage backdoor defense.
//!
//! W. Lin, L. Liu, S. Wei, J. Li, H. Xiong, "Unveiling and Mitigating Backdoor Vulnerabilities based on Unlearning
//! Weight Changes and Backdoor Activeness", NeurIPS 2024 (arXiv 2405.20291); steps and numbers as in the released code.
//!
//! 1. *Unlearn* the clean task by gradient ascent ([`tsbd_analysis::unlearning`]) and see how far each neuron's weights
//!    move ([`tsbd_analysis::weight_change()`]): backdoor neurons move most.
//! 2. *Reinitialise*: in the original model set to zero, among the neurons that moved most, the weights that moved
//!    most ([`reinitialisation`]).
//! 3. *Fine-tune* with a penalty on the gradient's norm ([`activeness`]).
//!
//! How many neurons count is fixed in advance, or 2 and 3 are done for eleven ratios and `selection` chooses among the
//! networks.
//!
//! Cost on 2,500 images: each unlearning epoch is one training and one evaluation pass, each fine-tuning pass two
//! gradients and one forward pass. The unlearned model depends on [`Defense::unlearning`] alone: a sweep over anything
//! else unlearns once.

pub mod activeness;
pub mod parameters;
pub mod reinitialisation;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tsbd_analysis::{Neuron, NeuronVector, Neurons, Unlearning, WeightChange, weight_change};
use tsbd_attack::parameters::{join, read};
use tsbd_attack::{DatasetFacts, ParameterError};
use tsbd_data::ImageSource;
use tsbd_nn::{Architecture, Model};

use crate::entry::{ChangedNeuron, Defense, DefenseCommon, DefenseEntry, Repaired, TracePoint, as_everywhere, noted};
use crate::selection::{Judge, Measured, ThresholdSelection};
use crate::{CleanSubset, Context, Error};
use parameters::{FineTuning, NEURON_RATIOS, Parameters};
use reinitialisation::Reinitialised;

/// The registry's entry.
pub static TSBD: DefenseEntry = DefenseEntry {
    name: "tsbd",
    title: "TSBD",
    paper: "Lin et al., NeurIPS 2024, arXiv 2405.20291",
    summary: "zeroes the weights that clean unlearning moves most, then fine-tunes with a gradient-norm penalty",
    revision: 2,
    schema: || schemars::schema_for!(Parameters),
    configure: |common, own| Ok(Box::new(Tsbd::new(common.clone(), read(&own)?)?)),
    published: as_everywhere,
};

/// TSBD with checked parameters.
#[derive(Debug, Clone)]
pub struct Tsbd {
    common: DefenseCommon,
    parameters: Parameters,
}

impl Tsbd {
    /// Checks the parameters.
    pub fn new(common: DefenseCommon, parameters: Parameters) -> Result<Tsbd, ParameterError> {
        common.check_ranges()?;
        parameters.check()?;
        let parameters = parameters.canonical();
        let common = if parameters.fine_tuning == FineTuning::None { common.in_full_precision() } else { common };
        Ok(Tsbd { common, parameters })
    }

    /// Reinitialises a copy of the backdoored model with one neuron ratio.
    fn reinitialise(&self, after: &AfterUnlearning, neuron_ratio: f64) -> Result<Repair, Error> {
        let Parameters { weight_ratio, round_changes, reinitialisation: scheme, .. } = self.parameters;
        let AfterUnlearning { backdoored, nwc, change, .. } = after;
        let selected = reinitialisation::select(&change.neurons, nwc, neuron_ratio, round_changes);
        let Reinitialised { state, selected, threshold } =
            reinitialisation::zero(&backdoored.state, change, &selected, weight_ratio, scheme)?;
        let model = Model { architecture: backdoored.architecture.clone(), state, precision: backdoored.precision };
        Ok(Repair { neuron_ratio, model, selected, threshold, fine_tuning_seconds: 0.0 })
    }

    /// The repair with the ratio that was fixed in advance, measured on the way.
    fn fixed(
        &self,
        after: &AfterUnlearning,
        context: &mut Context,
        trace: &mut Vec<TracePoint>,
    ) -> Result<Repair, Error> {
        let mut repair = self.reinitialise(after, self.parameters.neuron_ratio)?;
        let mut point = TracePoint::new("reinitialisation", 0, []);
        point.add(&(context.evaluate)(&repair.model)?);
        context.trace(trace, point);
        let (images, Tsbd { common, parameters }) = (after.images.clone(), self);
        repair.fine_tuning_seconds =
            activeness::fine_tune(&mut repair.model, images, common, parameters, true, context, trace)?;
        Ok(repair)
    }

    /// The best of the repairs with each of [`NEURON_RATIOS`] that selects a neuron; nothing if none is good enough. Each
    /// leaves a point of the trace.
    fn swept(
        &self,
        after: &AfterUnlearning,
        judge: &Judge,
        context: &mut Context,
        trace: &mut Vec<TracePoint>,
    ) -> Result<Option<Repair>, Error> {
        const STAGE: &str = "selection";
        let neurons = after.change.neurons.len() as f64;
        let ratios: Vec<f64> = NEURON_RATIOS.into_iter().filter(|ratio| neurons * ratio >= 1.0).collect();
        let before = judge.measure(after.backdoored, context, &mut TracePoint::new(STAGE, 0, []))?;
        let run = after.backdoored.state.digest()?;
        let (mut sweep, mut best) = (Sweep::default(), None);
        if let Some((tensors, kept)) = context.kept::<Sweep>(STAGE, &run) {
            sweep = kept;
            if let Some(ratio) = sweep.best {
                let mut repair = self.reinitialise(after, ratio)?;
                repair.model.state.restore("", &tensors)?;
                best = Some(repair);
            }
        }
        for point in &sweep.points {
            context.trace(trace, point.clone());
        }
        for (number, &ratio) in ratios.iter().enumerate().skip(sweep.measured.len()) {
            let mut repair = self.reinitialise(after, ratio)?;
            let (images, passes, Tsbd { common, parameters }) = (after.images.clone(), &mut Vec::new(), self);
            sweep.seconds +=
                activeness::fine_tune(&mut repair.model, images, common, parameters, false, context, passes)?;
            context.observer.stage(STAGE, ratios.len());
            let mut point = TracePoint::new(STAGE, number, [("neuron_ratio", ratio)]);
            sweep.measured.push(judge.measure(&repair.model, context, &mut point)?);
            sweep.points.push(point.clone());
            context.trace(trace, point);
            // Of the first ratios only the best one's network is kept.
            if judge.best(before, &sweep.measured) == Some(number) {
                (sweep.best, best) = (Some(ratio), Some(repair));
            }
            let tensors = best.iter().flat_map(|repair: &Repair| repair.model.state.tensors("")).collect();
            context.keep(STAGE, &run, tensors, &sweep)?;
            context.step(STAGE, number + 1, ratios.len())?;
        }
        Ok(best.map(|repair| Repair { fine_tuning_seconds: sweep.seconds, ..repair }))
    }
}

/// The ratios that are done: kept after each, with the network of the best.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Sweep {
    measured: Vec<Measured>,
    best: Option<f64>,
    points: Vec<TracePoint>,
    /// Seconds of all fine-tunings.
    seconds: f64,
}

/// What reinitialisation and fine-tuning start from.
struct AfterUnlearning<'a> {
    backdoored: &'a Model,
    /// How far each neuron moved, which orders them.
    nwc: &'a NeuronVector,
    /// How far each weight moved.
    change: WeightChange,
    /// The images of fine-tuning.
    images: Arc<dyn ImageSource>,
}

/// The network after reinitialisation with one neuron ratio, and then after fine-tuning.
struct Repair {
    neuron_ratio: f64,
    model: Model,
    /// The selected neurons, each with the number of its weights that were set to zero.
    selected: Vec<(Neuron, usize)>,
    /// The smallest change of a zeroed weight.
    threshold: f64,
    /// Seconds of fine-tuning, with this ratio and all others that were tried.
    fine_tuning_seconds: f64,
}

/// The list of the neurons with zeroed weights, in network order.
fn changed(change: &WeightChange, selected: &[(Neuron, usize)]) -> Vec<ChangedNeuron> {
    let mut selected = selected.to_vec();
    selected.sort_unstable();
    selected
        .into_iter()
        .filter(|(_, zeroed)| *zeroed > 0)
        .map(|(neuron, zeroed)| ChangedNeuron {
            layer: change.neurons.module(neuron).to_owned(),
            neuron: neuron.filter,
            zeroed,
            what: format!("zeroed {zeroed} of {} weights", change.neurons.layers()[neuron.layer].weights_per_filter),
        })
        .collect()
}

impl Defense for Tsbd {
    fn parameters(&self) -> Value {
        join(&self.common, &self.parameters)
    }

    fn common(&self) -> &DefenseCommon {
        &self.common
    }

    fn check(&self, architecture: &dyn Architecture, dataset: &DatasetFacts) -> Result<(), ParameterError> {
        self.common.check(dataset)?;
        match self.parameters.selection() {
            ThresholdSelection::Validation => self.common.check_held_out(dataset, self.parameters.validation_share()),
            ThresholdSelection::Oracle => Ok(()),
            ThresholdSelection::Fixed => {
                let neurons = Neurons::of(architecture).len();
                if (neurons as f64 * self.parameters.neuron_ratio) as usize > 0 {
                    return Ok(());
                }
                Err(ParameterError::new(
                    "neuron_ratio",
                    self.parameters.neuron_ratio,
                    format!("selects none of the {neurons} neurons of {}", architecture.name()),
                    format!("give at least {}", 1.0 / neurons.max(1) as f64),
                ))
            }
        }
    }

    fn unlearning(&self) -> Option<Unlearning> {
        Some(self.parameters.unlearning(&self.common))
    }

    /// Activeness-aware steps take two gradients, and after each step the images go forward once more; a sweep fine-tunes for
    /// each of its ratios. The unlearning is not part of the repair.
    fn image_passes(&self, dataset: &DatasetFacts) -> f64 {
        let parameters = &self.parameters;
        let of_a_step = match parameters.fine_tuning {
            FineTuning::None => 0.0,
            FineTuning::Vanilla => 1.0 + 1.0 / 3.0,
            FineTuning::ActivenessAware => 2.0 + 1.0 / 3.0,
        };
        let repairs = match parameters.selection() {
            ThresholdSelection::Fixed => 1.0,
            ThresholdSelection::Validation => NEURON_RATIOS.len() as f64 * (1.0 - parameters.validation_share()),
            ThresholdSelection::Oracle => NEURON_RATIOS.len() as f64,
        };
        self.common.passes(dataset, of_a_step * parameters.fine_tuning_passes as f64 * repairs)
    }

    fn repair(&self, backdoored: &Model, clean: &CleanSubset, context: &mut Context) -> Result<Repaired, Error> {
        let (parameters, mut trace) = (&self.parameters, Vec::new());
        let selection = parameters.selection();
        let unlearning = parameters.unlearning(&self.common);
        let unlearned = context.unlearned(&unlearning, backdoored, clean, &mut trace)?;

        let change = weight_change(backdoored.architecture.as_ref(), &backdoored.state, &unlearned.model.state)?;
        let (images, held_out) = selection.split(clean, parameters.validation_share());
        let images_used = images.len();
        let after = AfterUnlearning { backdoored, nwc: &unlearned.nwc, change, images };
        let repair = match selection {
            ThresholdSelection::Fixed => Some(self.fixed(&after, context, &mut trace)?),
            ThresholdSelection::Validation | ThresholdSelection::Oracle => {
                let (tolerance, batch_size) = (parameters.tolerance(), self.common.batch_size);
                let judge = Judge { selection, tolerance, held_out, batch_size };
                self.swept(&after, &judge, context, &mut trace)?
            }
        };
        let selected = repair.as_ref().map_or(&[][..], |repair| &repair.selected);
        let facts = [
            ("selection", json!(selection)),
            ("images_used", json!(images_used)),
            ("gradient_norm", json!(parameters.gradient_norm)),
            ("round_changes", json!(parameters.round_changes)),
            ("fine_tuning_passes", json!(parameters.fine_tuning_passes)),
            ("neuron_ratio", json!(repair.as_ref().map(|repair| repair.neuron_ratio))),
            ("neurons", json!(after.change.neurons.len())),
            ("neurons_selected", json!(selected.len())),
            ("weights_zeroed", json!(selected.iter().map(|(_, zeroed)| zeroed).sum::<usize>())),
            ("change_threshold", json!(repair.as_ref().map(|repair| repair.threshold))),
            ("unlearning_epochs", json!(unlearned.rates.len())),
            ("unlearning_reached", json!(unlearned.reached)),
            ("unlearning_accuracy", json!(unlearned.rates.last())),
            ("unlearning_seconds", json!(unlearned.seconds)),
            ("fine_tuning_seconds", json!(repair.as_ref().map(|repair| repair.fine_tuning_seconds))),
        ];
        let changed = changed(&after.change, selected);
        // Where no ratio was good enough nothing is repaired.
        let model = repair.map_or_else(|| backdoored.clone(), |repair| repair.model);
        Ok(Repaired { model, changed, trace, facts: noted(facts), scores: None })
    }
}

#[cfg(test)]
mod tests;
