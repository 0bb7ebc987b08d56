//! How strongly each neuron answers to a set of images.

use tsbd_nn::{BatchSource, Model};

use crate::outputs::outputs;
use crate::{Error, Neurons};

/// The mean activation of each neuron of [`Neurons::all`]: its convolution's output after a ReLU of its own, averaged
/// over the images of the first epoch of `source` and over positions, in evaluation mode. `step` is called after each batch
/// with how many are done; its error ends the measurement.
///
/// The extra ReLU makes neurons of all networks comparable: in a pre-activation network the output itself goes into a
/// sum and not into a ReLU. Source: Figure 3 of Lin et al., NeurIPS 2024 (arXiv 2405.20291).
pub fn mean_activations(
    model: &Model,
    source: &dyn BatchSource,
    step: &mut dyn FnMut(usize) -> Result<(), Error>,
) -> Result<Vec<f64>, Error> {
    let neurons = Neurons::of(model.architecture.as_ref());
    let mut sums: Vec<Vec<f64>> = neurons.layers().iter().map(|layer| vec![0.0; layer.filters]).collect();
    let mut positions = vec![0_u64; sums.len()];
    for (number, batch) in outputs(model, &neurons, source).enumerate() {
        let batch = batch?;
        for (layer, sums) in sums.iter_mut().enumerate() {
            for position in batch.layers[layer].chunks_exact(sums.len()) {
                for (sum, value) in sums.iter_mut().zip(position) {
                    // Not `max`, which makes 0 of what is not a number.
                    *sum += f64::from(if *value < 0.0 { 0.0 } else { *value });
                }
                positions[layer] += 1;
            }
        }
        step(number + 1)?;
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
            let source = golden::loader("images", batch_size);
            let found = mean_activations(&golden::model("backdoored"), &source, &mut |_| Ok(())).unwrap();
            assert_close(&found, &expected, 1e-5);
        }
    }

    #[test]
    fn what_is_not_a_number_is_no_activation_of_0() {
        let mut model = golden::model("backdoored");
        let filters = model.state.filter_rows("conv1.weight").unwrap();
        let spoiled: Vec<Vec<f32>> = filters.iter().map(|filter| vec![f32::NAN; filter.len()]).collect();
        model.state.set_filter_rows("conv1.weight", &spoiled).unwrap();
        let means = mean_activations(&model, &golden::loader("images", 24), &mut |_| Ok(())).unwrap();
        assert!(means[..spoiled.len()].iter().all(|mean| mean.is_nan()), "{means:?}");
    }

    #[test]
    fn a_request_to_stop_is_heard_after_each_batch() {
        let mut batches = Vec::new();
        let mut third = |batch| {
            batches.push(batch);
            if batch < 3 { Ok(()) } else { Err(Error::Stopped { stage: "activations" }) }
        };
        let stopped = mean_activations(&golden::model("backdoored"), &golden::loader("images", 7), &mut third);
        assert!(matches!(stopped, Err(Error::Stopped { .. })));
        assert_eq!(batches, [1, 2, 3], "of four");
    }
}
