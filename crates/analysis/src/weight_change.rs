//! Neuron weight change (NWC): how far each filter moves between two checkpoints of one network.
//!
//! TSBD ranks neurons by their change during clean unlearning. Source: Lin et al., NeurIPS 2024 (arXiv 2405.20291), and
//! the released code (`tsbd.py`): the L1 norm of the filter's change, without biases.

use tsbd_nn::{Architecture, StateDict};

use crate::{Error, NeuronVector, Neurons};

/// The change of every weight of every neuron.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightChange {
    /// The neurons.
    pub neurons: Neurons,
    /// For each layer of [`Neurons::layers`]: the absolute change of each weight, `[kh, kw, in, out]` flattened, so that
    /// weight `i` belongs to filter `i % filters`.
    pub per_weight: Vec<Vec<f32>>,
}

impl WeightChange {
    /// NWC: for each neuron the sum of its weights' absolute changes (in double precision).
    pub fn of_neurons(&self) -> NeuronVector {
        let layers = self.neurons.layers().iter().zip(&self.per_weight).map(|(layer, changes)| {
            let mut sums = vec![0.0; layer.filters];
            for position in changes.chunks_exact(layer.filters) {
                for (sum, change) in sums.iter_mut().zip(position) {
                    *sum += f64::from(*change);
                }
            }
            (layer.module.clone(), sums)
        });
        layers.collect()
    }
}

/// The change of each weight from `before` to `after`.
pub fn weight_change(
    architecture: &dyn Architecture,
    before: &StateDict,
    after: &StateDict,
) -> Result<WeightChange, Error> {
    let neurons = Neurons::of(architecture);
    let mut per_weight = Vec::with_capacity(neurons.layers().len());
    for layer in neurons.layers() {
        let name = layer.weight();
        let [before, after] = [values(before, &name)?, values(after, &name)?];
        if before.len() != after.len() || before.len() != layer.filters * layer.weights_per_filter {
            let reason = format!("{} weights before, {} after", before.len(), after.len());
            return Err(Error::Mismatch { name, reason });
        }
        per_weight.push(before.iter().zip(&after).map(|(before, after)| (after - before).abs()).collect());
    }
    Ok(WeightChange { neurons, per_weight })
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

#[cfg(test)]
mod tests {
    use tsbd_nn::{Model, Streams};
    use tsbd_tensor::DType;

    use super::*;

    #[test]
    fn each_neuron_gets_the_changes_of_its_own_filter_and_of_no_other_tensor() {
        let architecture = tsbd_models::preact_resnet18(1, 10);
        let before = Model::new(architecture.clone(), &mut Streams::new(0).stream("test", 0)).unwrap().state;
        let mut after = before.clone();
        // The last of the eight filters of layer4.0.conv1: by 0.5 in two of its weights, once up and once down.
        let name = "layer4.0.conv1.weight";
        let mut rows = after.filter_rows(name).unwrap();
        rows[7][0] += 0.5;
        rows[7][20] -= 0.25;
        after.set_filter_rows(name, &rows).unwrap();
        // Neither shortcuts nor batch norms nor the last layer count.
        for name in ["layer4.0.shortcut.0.weight", "layer1.0.bn1.weight", "linear.weight"] {
            let moved = (after.get(name).unwrap() + 1.0).unwrap();
            after.set(name, &moved).unwrap();
        }
        let change = weight_change(architecture.as_ref(), &before, &after).unwrap();
        for (number, (neuron, found)) in change.neurons.all().iter().zip(change.of_neurons().values()).enumerate() {
            let expected =
                if change.neurons.module(*neuron) == "layer4.0.conv1" && neuron.filter == 7 { 0.75 } else { 0.0 };
            assert!((found - expected).abs() < 1e-6, "neuron {number}: {found}");
        }
        let largest = change.per_weight.iter().flatten().filter(|change| **change > 0.0).count();
        assert_eq!(largest, 2);
    }

    #[test]
    fn checkpoints_of_two_widths_are_refused_with_the_tensors_name() {
        let state = |width| {
            let architecture = tsbd_models::preact_resnet18(width, 10);
            Model::new(architecture, &mut Streams::new(0).stream("test", 0)).unwrap().state
        };
        let error = weight_change(tsbd_models::preact_resnet18(1, 10).as_ref(), &state(1), &state(2)).unwrap_err();
        assert!(error.to_string().starts_with("conv1.weight: "), "{error}");
    }

    #[test]
    fn neurons_that_round_to_the_same_change_keep_their_order() {
        let scores = [0.1, 0.30001, 0.30002, 0.2, 0.30002];
        assert_eq!(descending(&scores, None), [2, 4, 1, 3, 0]);
        assert_eq!(descending(&scores, Some(4)), [1, 2, 4, 3, 0]);
    }

    #[test]
    fn double_precision_weights_are_refused_rather_than_misread() {
        let architecture = tsbd_models::preact_resnet18(1, 10);
        let state = Model::new(architecture.clone(), &mut Streams::new(0).stream("test", 0)).unwrap().state;
        let double = state.to_dtype(DType::F64).unwrap();
        assert!(weight_change(architecture.as_ref(), &double, &double).is_err());
    }
}
