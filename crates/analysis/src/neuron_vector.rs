//! Vectors with a number for each neuron, as they are kept in files.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::{Error, Neurons};

/// A number for each neuron of some layers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NeuronVector {
    layers: IndexMap<String, Vec<f64>>,
}

/// Named vectors: what a measurement finds out about neurons. All numbers are finite.
pub type NeuronVectors = BTreeMap<String, NeuronVector>;

impl FromIterator<(String, Vec<f64>)> for NeuronVector {
    fn from_iter<I: IntoIterator<Item = (String, Vec<f64>)>>(layers: I) -> NeuronVector {
        NeuronVector { layers: layers.into_iter().collect() }
    }
}

impl NeuronVector {
    /// The vector that has `values` for all of `neurons`, in the network's order.
    ///
    /// # Panics
    /// If there are not as many values as neurons.
    pub fn of_all(neurons: &Neurons, values: &[f64]) -> NeuronVector {
        assert_eq!(values.len(), neurons.len(), "one value for each neuron");
        let mut rest = values;
        let layers = neurons.layers().iter().map(|layer| {
            let (own, others) = rest.split_at(layer.filters);
            rest = others;
            (layer.module.clone(), own.to_vec())
        });
        layers.collect()
    }

    /// Each layer with the values of its neurons, in the network's order.
    pub fn layers(&self) -> impl Iterator<Item = (&str, &[f64])> {
        self.layers.iter().map(|(name, values)| (name.as_str(), values.as_slice()))
    }

    /// The values of one layer.
    pub fn layer(&self, name: &str) -> Option<&[f64]> {
        self.layers.get(name).map(Vec::as_slice)
    }

    /// All values, layer after layer.
    pub fn values(&self) -> impl Iterator<Item = f64> {
        self.layers.values().flatten().copied()
    }

    /// The same numbers by convolution, for a vector by batch norm: each channel's number goes to the filter that makes
    /// it. Refuses a layer that is neither a convolution nor a batch norm after one, and a wrong number of values.
    ///
    /// A batch norm belongs to the last convolution before it in the order of definition that is no shortcut: in a residual
    /// network, where a norm takes the sum of two branches, to the branch with the neurons.
    pub fn by_convolution(&self, neurons: &Neurons) -> Result<NeuronVector, Error> {
        let by_convolution = self.layers.iter().map(|(name, values)| {
            let layer = neurons.layers().iter().find(|layer| layer.is_named(name));
            match layer {
                Some(layer) if layer.filters == values.len() => Ok((layer.module.clone(), values.clone())),
                Some(layer) => {
                    let reason =
                        format!("{} scores for the {} filters of {}", values.len(), layer.filters, layer.module);
                    Err(Error::Mismatch { name: name.clone(), reason })
                }
                None => Err(Error::Mismatch { name: name.clone(), reason: "belongs to no convolution".to_owned() }),
            }
        });
        by_convolution.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    fn layer(name: &str, values: &[f64]) -> (String, Vec<f64>) {
        (name.to_owned(), values.to_vec())
    }

    #[test]
    fn values_of_all_neurons_are_split_into_layers() {
        let neurons = Neurons::of(golden::architecture().as_ref());
        let values: Vec<f64> = (0..16).map(f64::from).collect();
        let vector = NeuronVector::of_all(&neurons, &values);
        assert_eq!(vector.layer("conv1"), Some(&[0.0, 1.0, 2.0, 3.0][..]));
        assert_eq!(
            vector.layers().map(|(name, values)| (name, values.len())).collect::<Vec<_>>(),
            [("conv1", 4), ("conv2", 12)]
        );
        assert_eq!(vector.values().collect::<Vec<_>>(), values);
    }

    #[test]
    fn json_keeps_layers_in_order_and_every_bit() {
        let vector: NeuronVector = [layer("z", &[0.1 + 0.2, 1e-300]), layer("a", &[])].into_iter().collect();
        let text = serde_json::to_string(&vector).unwrap();
        assert_eq!(text, r#"{"z":[0.30000000000000004,1e-300],"a":[]}"#);
        assert_eq!(serde_json::from_str::<NeuronVector>(&text).unwrap(), vector);
    }

    #[test]
    fn channels_of_a_batch_norm_are_the_filters_before_it_and_never_those_of_a_shortcut() {
        let tiny = Neurons::of(golden::architecture().as_ref());
        let scores: NeuronVector = [layer("bn1", &[1.0; 4]), layer("bn2", &[2.0; 12])].into_iter().collect();
        let names: Vec<String> = scores.by_convolution(&tiny).unwrap().layers.into_keys().collect();
        assert_eq!(names, ["conv1", "conv2"]);

        let resnet = Neurons::of(tsbd_models::preact_resnet18(1, 10).as_ref());
        let convolution = |norm: &str, channels| {
            let scores: NeuronVector = [layer(norm, &vec![0.0; channels])].into_iter().collect();
            scores.by_convolution(&resnet).unwrap().layers.into_keys().next().unwrap()
        };
        assert_eq!(convolution("layer1.0.bn1", 1), "conv1");
        assert_eq!(convolution("layer1.0.bn2", 1), "layer1.0.conv1");
        assert_eq!(convolution("layer2.1.bn1", 2), "layer2.0.conv2");
        let unscored: Vec<&str> =
            resnet.layers().iter().filter(|layer| layer.norms.is_empty()).map(|layer| layer.module.as_str()).collect();
        assert_eq!(unscored, ["layer4.1.conv2"]);
    }

    #[test]
    fn scores_of_no_neuron_and_too_few_of_them_are_refused_by_name() {
        let tiny = Neurons::of(golden::architecture().as_ref());
        for (name, values) in [("linear", 12), ("bn2", 11)] {
            let scores: NeuronVector = [layer(name, &vec![0.0; values])].into_iter().collect();
            let error = scores.by_convolution(&tiny).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}: ")), "{error}");
        }
    }
}
