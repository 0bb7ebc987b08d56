//! Which weights TSBD sets to zero, given how far each moved during unlearning.

use tsbd_analysis::{Neuron, NeuronVector, Neurons, WeightChange, descending};
use tsbd_nn::StateDict;
use tsbd_tensor::Tensor;

use super::parameters::Reinitialisation;
use crate::Error;

/// The selected neurons, and the state dict with their weights set to zero.
#[derive(Debug, Clone)]
pub struct Reinitialised {
    /// The backdoored state dict, with zeros.
    pub state: StateDict,
    /// The selected neurons by descending weight change, each with the number of its weights that are now zero.
    pub selected: Vec<(Neuron, usize)>,
    /// The smallest change of a zeroed weight (of V3: the pooled threshold).
    pub threshold: f64,
}

impl Reinitialised {
    /// Number of weights set to zero.
    pub fn zeroed(&self) -> usize {
        self.selected.iter().map(|(_, zeroed)| zeroed).sum()
    }
}

/// The selected ones of `neurons`: `int(neurons * neuron_ratio)` of them, by descending weight change `nwc`.
///
/// With `round_changes` the order is by changes rounded to four decimals.
pub fn select(neurons: &Neurons, nwc: &NeuronVector, neuron_ratio: f64, round_changes: bool) -> Vec<Neuron> {
    let order = descending(&nwc.values().collect::<Vec<f64>>(), round_changes.then_some(4));
    let count = (neurons.len() as f64 * neuron_ratio) as usize;
    order[..count].iter().map(|number| neurons.all()[*number]).collect()
}

/// Sets weights of the `selected` neurons to zero in a copy of the *original* backdoored state dict: all of them (V1),
/// or those whose change is at least a threshold, ties included. The threshold is the `int(weights * weight_ratio)`-th
/// largest change, in each neuron (V2) or among all selected neurons (V3). Biases and batch norms are not touched.
pub fn zero(
    backdoored: &StateDict,
    change: &WeightChange,
    selected: &[Neuron],
    weight_ratio: f64,
    scheme: Reinitialisation,
) -> Result<Reinitialised, Error> {
    let changes_of = |neuron: Neuron| {
        let filters = change.neurons.layers()[neuron.layer].filters;
        change.per_weight[neuron.layer].iter().skip(neuron.filter).step_by(filters).copied()
    };
    let pooled = match scheme {
        Reinitialisation::V3 => threshold(selected.iter().flat_map(|neuron| changes_of(*neuron)), weight_ratio),
        Reinitialisation::V1 | Reinitialisation::V2 => 0.0,
    };
    let threshold_of = |neuron: Neuron| match scheme {
        Reinitialisation::V1 => 0.0,
        Reinitialisation::V2 => threshold(changes_of(neuron), weight_ratio),
        Reinitialisation::V3 => pooled,
    };

    let mut state = backdoored.clone();
    let mut zeroed = vec![0; selected.len()];
    let mut smallest = f32::INFINITY;
    for (number, layer) in change.neurons.layers().iter().enumerate() {
        let of_layer: Vec<usize> = (0..selected.len()).filter(|position| selected[*position].layer == number).collect();
        if of_layer.is_empty() {
            continue;
        }
        let old = state.get(&layer.weight())?;
        let mut weights = old.flatten_all()?.to_vec1::<f32>()?;
        for position in of_layer {
            let neuron = selected[position];
            let threshold = threshold_of(neuron);
            let places = (neuron.filter..weights.len()).step_by(layer.filters);
            for (place, change) in places.zip(changes_of(neuron)) {
                if change >= threshold {
                    weights[place] = 0.0;
                    zeroed[position] += 1;
                    smallest = smallest.min(change);
                }
            }
        }
        let weights = Tensor::from_vec(weights, old.dims(), old.device())?;
        state.set(&layer.weight(), &weights)?;
    }
    let selected = selected.iter().copied().zip(zeroed).collect();
    Ok(Reinitialised { state, selected, threshold: f64::from(smallest) })
}

/// The `int(count * ratio)`-th largest change; infinite when that is the 0-th, so that nothing reaches it.
fn threshold(changes: impl Iterator<Item = f32>, ratio: f64) -> f32 {
    let mut changes: Vec<f32> = changes.collect();
    match (changes.len() as f64 * ratio) as usize {
        0 => f32::INFINITY,
        kept => *changes.select_nth_unstable_by(kept - 1, |a, b| b.total_cmp(a)).1,
    }
}
