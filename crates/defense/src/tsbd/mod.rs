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
//! Cost on 2,500 images: each unlearning epoch is one training and one evaluation pass, each fine-tuning pass two
//! gradients and one forward pass. The unlearned model depends on [`Defense::unlearning`] alone: a sweep over anything
//! else unlearns once.

pub mod activeness;
pub mod parameters;
pub mod reinitialisation;

use std::time::Instant;

use serde_json::{Value, json};
use tsbd_analysis::{Neurons, UnlearnedModel, Unlearning, WeightChange, weight_change};
use tsbd_attack::parameters::{join, read};
use tsbd_attack::{DatasetFacts, ParameterError};
use tsbd_nn::{Architecture, Model};

use crate::entry::{ChangedNeuron, Defense, DefenseCommon, DefenseEntry, Repaired, TracePoint};
use crate::{CleanSubset, Context, Error};
use parameters::Parameters;

/// The registry's entry.
pub static TSBD: DefenseEntry = DefenseEntry {
    name: "tsbd",
    title: "TSBD",
    paper: "Lin et al., NeurIPS 2024, arXiv 2405.20291",
    summary: "zeroes the weights that clean unlearning moves most, then fine-tunes with a gradient-norm penalty",
    revision: 2,
    schema: || schemars::schema_for!(Parameters),
    configure: |common, own| Ok(Box::new(Tsbd::new(common.clone(), read(&own)?)?)),
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
        Ok(Tsbd { common, parameters })
    }

    /// Everything after unlearning: reinitialisation of a copy of `backdoored`, and fine-tuning.
    fn after_unlearning(
        &self,
        backdoored: &Model,
        unlearned: &UnlearnedModel,
        clean: &CleanSubset,
        context: &mut Context,
    ) -> Result<Repaired, Error> {
        let parameters = &self.parameters;
        let start = Instant::now();
        let architecture = backdoored.architecture.as_ref();
        let change = weight_change(architecture, &backdoored.state, &unlearned.model.state)?;
        let selected = reinitialisation::select(&change, parameters.neuron_ratio, parameters.round_changes);
        let scheme = parameters.reinitialisation;
        let reinitialised =
            reinitialisation::zero(&backdoored.state, &change, &selected, parameters.weight_ratio, scheme)?;
        let reinitialisation_seconds = start.elapsed().as_secs_f64();

        let mut trace = Vec::new();
        let mut model = Model { architecture: backdoored.architecture.clone(), state: reinitialised.state.clone() };
        let mut point = TracePoint::new("reinitialisation", 0, []);
        point.add(&(context.evaluate)(&model)?);
        context.trace(&mut trace, point);

        let start = Instant::now();
        activeness::fine_tune(&mut model, clean, self.common.batch_size, parameters, context, &mut trace)?;
        let facts = [
            ("clean_count", json!(clean.len())),
            ("neurons", json!(change.neurons.len())),
            ("neurons_selected", json!(reinitialised.selected.len())),
            ("weights_zeroed", json!(reinitialised.zeroed())),
            ("change_threshold", json!(reinitialised.threshold)),
            ("unlearning_epochs", json!(unlearned.rates.len())),
            ("unlearning_reached", json!(unlearned.reached)),
            ("unlearning_accuracy", json!(unlearned.rates.last())),
            ("unlearning_seconds", json!(unlearned.seconds)),
            ("reinitialisation_seconds", json!(reinitialisation_seconds)),
            ("fine_tuning_seconds", json!(start.elapsed().as_secs_f64())),
        ];
        let facts = facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Ok(Repaired { model, changed: changed(&change, &reinitialised.selected), trace, facts, scores: None })
    }
}

/// The list of the neurons with zeroed weights, in network order.
fn changed(change: &WeightChange, selected: &[(tsbd_analysis::Neuron, usize)]) -> Vec<ChangedNeuron> {
    let mut selected = selected.to_vec();
    selected.sort_unstable();
    selected
        .into_iter()
        .filter(|(_, zeroed)| *zeroed > 0)
        .map(|(neuron, zeroed)| ChangedNeuron {
            layer: change.neurons.module(neuron).to_owned(),
            neuron: neuron.filter,
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
        let neurons = Neurons::of(architecture).len();
        if (neurons as f64 * self.parameters.neuron_ratio) as usize == 0 {
            return Err(ParameterError::new(
                "neuron_ratio",
                self.parameters.neuron_ratio,
                format!("selects none of the {neurons} neurons of {}", architecture.name()),
                format!("give at least {}", 1.0 / neurons.max(1) as f64),
            ));
        }
        Ok(())
    }

    fn unlearning(&self) -> Option<Unlearning> {
        Some(self.parameters.unlearning(&self.common))
    }

    fn repair(&self, backdoored: &Model, clean: &CleanSubset, context: &mut Context) -> Result<Repaired, Error> {
        let mut trace = Vec::new();
        let unlearning = self.parameters.unlearning(&self.common);
        let unlearned = context.unlearned(&unlearning, backdoored, clean, &mut trace)?;
        let mut repaired = self.after_unlearning(backdoored, &unlearned, clean, context)?;
        trace.append(&mut repaired.trace);
        Ok(Repaired { trace, ..repaired })
    }
}

#[cfg(test)]
mod tests;
