//! How strongly each neuron answers to a set of images.

use tsbd_nn::{BatchSource, Model};

use crate::outputs::outputs;
use crate::{Error, Neurons};

/// The mean activation of each neuron of [`Neurons::all`]: its convolution's output after a ReLU of its own, averaged
/// over the images of the first epoch of `source` and over positions, in evaluation mode.
///
/// The extra ReLU makes neurons of all networks comparable: in a pre-activation network the output itself goes into a
/// sum and not into a ReLU. Source: Figure 3 of Lin et al., NeurIPS 2024 (arXiv 2405.20291).
pub fn mean_activations(model: &Model, source: &dyn BatchSource) -> Result<Vec<f64>, Error> {
    let neurons = Neurons::of(model.architecture.as_ref());
    let mut sums: Vec<Vec<f64>> = neurons.layers().iter().map(|layer| vec![0.0; layer.filters]).collect();
    let mut positions = vec![0_u64; sums.len()];
    for batch in outputs(model, &neurons, source) {
        let batch = batch?;
        for (layer, sums) in sums.iter_mut().enumerate() {
            for position in batch.layers[layer].chunks_exact(sums.len()) {
                for (sum, value) in sums.iter_mut().zip(position) {
                    *sum += f64::from(value.max(0.0));
                }
                positions[layer] += 1;
            }
        }
    }
    let means = sums.into_iter().zip(positions);
    Ok(means.flat_map(|(sums, count)| sums.into_iter().map(move |sum| sum / count.max(1) as f64)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{self, assert_close};

    #[test]
    fn mean_activations_are_pytorchs_whatever_the_batches() {
        let expected = golden::numbers("mean_activations");
        for batch_size in [24, 7] {
            let found = mean_activations(&golden::model("backdoored"), &golden::loader("images", batch_size)).unwrap();
            assert_close(&found, &expected, 1e-5);
        }
    }
}
