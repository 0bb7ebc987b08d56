//! Neuron weight change (NWC): how far each filter moves between two checkpoints of one network.
//!
//! TSBD ranks neurons by their change during clean unlearning. Source: Lin et al., NeurIPS 2024 (arXiv 2405.20291), and
//! the released code (`tsbd.py`): the L1 norm of the filter's change, without biases.

use tsbd_nn::{Architecture, StateDict};

use crate::{Error, Neurons};

/// The change of every weight of every neuron.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightChange {
    /// The neurons.
    pub neurons: Neurons,
    /// For each layer of [`Neurons::layers`]: the absolute change of each weight, `[kh, kw, in, out]` flattened, so that
    /// weight `i` belongs to filter `i % filters`.
    pub per_weight: Vec<Vec<f32>>,
    /// For each neuron of [`Neurons::all`]: the sum of its weights' absolute changes (in double precision).
    pub per_neuron: Vec<f64>,
}

/// The neuron weight change from `before` to `after`.
pub fn weight_change(
    architecture: &dyn Architecture,
    before: &StateDict,
    after: &StateDict,
) -> Result<WeightChange, Error> {
    let neurons = Neurons::of(architecture);
    let mut per_weight = Vec::with_capacity(neurons.layers().len());
    let mut per_neuron = Vec::with_capacity(neurons.len());
    for layer in neurons.layers() {
        let name = layer.weight();
        let [before, after] = [values(before, &name)?, values(after, &name)?];
        if before.len() != after.len() || before.len() != layer.filters * layer.weights_per_filter {
            let reason = format!("{} weights before, {} after", before.len(), after.len());
            return Err(Error::Mismatch { name, reason });
        }
        let changes: Vec<f32> = before.iter().zip(&after).map(|(before, after)| (after - before).abs()).collect();
        let mut sums = vec![0.0; layer.filters];
        for position in changes.chunks_exact(layer.filters) {
            for (sum, change) in sums.iter_mut().zip(position) {
                *sum += f64::from(*change);
            }
        }
        per_neuron.extend(sums);
        per_weight.push(changes);
    }
    Ok(WeightChange { neurons, per_weight, per_neuron })
}

fn values(state: &StateDict, name: &str) -> Result<Vec<f32>, Error> {
    let tensor = state.get(name).map_err(Error::Network)?;
    let values = tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>());
    values.map_err(|error| Error::Mismatch { name: name.to_owned(), reason: error.to_string() })
}

/// The numbers of the neurons by descending score; ties keep the network's order.
///
/// With `decimals`, scores are first rounded to so many (as the released code of TSBD does by writing them to a text
/// file with four): neurons that differ by less are then in network order.
pub fn descending(scores: &[f64], decimals: Option<usize>) -> Vec<usize> {
    let scores: Vec<f64> = match decimals {
        None => scores.to_vec(),
        Some(decimals) => {
            let rounded = |score: &f64| format!("{score:.decimals$}").parse().unwrap_or(f64::NAN);
            scores.iter().map(rounded).collect()
        }
    };
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order
}
