//! The neurons of a network, as the TSBD paper counts them: the output filters of its convolutions, in network order,
//! without those on shortcuts.

use tsbd_nn::{Architecture, Layer};

/// A convolution whose filters are neurons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeuronLayer {
    /// Name of the module, e.g. `layer4.1.conv2`.
    pub module: String,
    /// Number of output filters.
    pub filters: usize,
    /// Number of weights of each filter: input channels times kernel area.
    pub weights_per_filter: usize,
    /// Names of the batch norms that come after it in definition order, before the next such convolution.
    pub norms: Vec<String>,
}

impl NeuronLayer {
    /// Whether scores under this name are those of its neurons: its own name, or that of a batch norm after it.
    pub fn is_named(&self, name: &str) -> bool {
        self.module == name || self.norms.iter().any(|norm| norm == name)
    }

    /// Name of the convolution's weight in a state dict.
    pub fn weight(&self) -> String {
        format!("{}.weight", self.module)
    }
}

/// One neuron: a filter of a layer of [`Neurons::layers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Neuron {
    /// Place of the layer among [`Neurons::layers`].
    pub layer: usize,
    /// Place of the filter in its layer.
    pub filter: usize,
}

/// All neurons of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neurons {
    layers: Vec<NeuronLayer>,
    all: Vec<Neuron>,
}

impl Neurons {
    /// The neurons of `architecture`: filters of the convolutions whose name does not contain `shortcut`, in definition
    /// order (as the released code of TSBD enumerates them).
    pub fn of(architecture: &dyn Architecture) -> Neurons {
        let mut layers: Vec<NeuronLayer> = Vec::new();
        for module in architecture.modules().iter().filter(|module| !module.name.contains("shortcut")) {
            match module.layer {
                Layer::Conv2d { in_channels, out_channels, kernel, .. } => layers.push(NeuronLayer {
                    module: module.name.clone(),
                    filters: out_channels,
                    weights_per_filter: in_channels * kernel * kernel,
                    norms: Vec::new(),
                }),
                Layer::BatchNorm2d { .. } => {
                    if let Some(before) = layers.last_mut() {
                        before.norms.push(module.name.clone());
                    }
                }
                _ => {}
            }
        }
        let all = layers
            .iter()
            .enumerate()
            .flat_map(|(layer, of)| (0..of.filters).map(move |filter| Neuron { layer, filter }))
            .collect();
        Neurons { layers, all }
    }

    /// The layers, in network order.
    pub fn layers(&self) -> &[NeuronLayer] {
        &self.layers
    }

    /// All neurons, in network order: the position of a neuron here is its number.
    pub fn all(&self) -> &[Neuron] {
        &self.all
    }

    /// Number of neurons.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether the network has no convolution.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Number of weights of all neurons.
    pub fn weights(&self) -> usize {
        self.layers.iter().map(|layer| layer.filters * layer.weights_per_filter).sum()
    }

    /// The name of a neuron's module.
    pub fn module(&self, neuron: Neuron) -> &str {
        &self.layers[neuron.layer].module
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preact_resnet18_has_the_3904_neurons_that_the_paper_counts() {
        let neurons = Neurons::of(tsbd_models::preact_resnet18(64, 10).as_ref());
        assert_eq!((neurons.layers().len(), neurons.len(), neurons.weights()), (17, 3_904, 10_987_200));
        assert_eq!(neurons.layers()[0].module, "conv1");
        assert_eq!(neurons.layers()[16].module, "layer4.1.conv2");
        assert!(neurons.layers().iter().all(|layer| !layer.module.contains("shortcut")));
        assert_eq!(neurons.all()[64], Neuron { layer: 1, filter: 0 });
        assert_eq!(neurons.module(neurons.all()[3_903]), "layer4.1.conv2");
    }
}
