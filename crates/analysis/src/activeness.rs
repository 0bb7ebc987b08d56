//! Backdoor activeness: how large the gradients of each neuron's weights are while a network unlearns.
//!
//! Observation 2 of the TSBD paper (Lin et al., NeurIPS 2024, arXiv 2405.20291): they are larger in a backdoored network
//! than in a clean one.

use std::sync::Arc;

use tsbd_data::ImageSource;
use tsbd_nn::{Batch, CrossEntropyStep, Model, Step, StepRule};
use tsbd_tensor::DType;

use crate::context::Context;
use crate::unlearning::{Unlearning, ascent};
use crate::{Error, Neurons};

/// The activeness of each neuron of [`Neurons::all`]: the L1 norm of the loss gradient of its weights (without bias), for
/// each minibatch before the optimiser's step, averaged over the minibatches of the first epoch of `unlearning` the
/// `images` from a copy of `model`.
pub fn activeness(
    model: &Model,
    images: Arc<dyn ImageSource>,
    unlearning: &Unlearning,
    context: &mut Context,
) -> Result<Vec<f64>, Error> {
    let neurons = Neurons::of(model.architecture.as_ref());
    let sums = neurons.layers().iter().map(|layer| vec![0.0; layer.filters]).collect();
    let mut rule = Recording { plain: ascent(), neurons, sums, minibatches: 0 };
    let source = unlearning.training(images, context);
    let mut model = model.clone();
    unlearning.first_epoch(&mut rule, &mut model, &source, &mut *context.observer)?;
    let count = f64::from(rule.minibatches.max(1));
    Ok(rule.sums.into_iter().flatten().map(|sum| sum / count).collect())
}

/// The rule of unlearning, which adds up the gradients' norms.
struct Recording {
    plain: CrossEntropyStep,
    neurons: Neurons,
    /// For each layer and filter.
    sums: Vec<Vec<f64>>,
    minibatches: u32,
}

impl StepRule for Recording {
    fn compute(&mut self, model: &Model, batch: &Batch) -> tsbd_nn::Result<Step> {
        let step = self.plain.compute(model, batch)?;
        for (layer, sums) in self.neurons.layers().iter().zip(&mut self.sums) {
            let gradient = step.gradients.get(&layer.weight())?.flatten_all()?;
            // [kh, kw, in, out]: the last dimension counts the filters.
            for position in gradient.to_dtype(DType::F64)?.to_vec1::<f64>()?.chunks_exact(sums.len()) {
                for (sum, value) in sums.iter_mut().zip(position) {
                    *sum += value.abs();
                }
            }
        }
        self.minibatches += 1;
        Ok(step)
    }

    fn describe(&self) -> String {
        format!("{:?}, gradients recorded", self.plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{self, assert_close, in_context};
    use crate::{NoObserver, Unlearned};

    #[test]
    fn activeness_is_pytorchs_and_does_not_touch_the_model() {
        let model = golden::model("backdoored");
        let before = model.state.digest().unwrap();
        let unlearning = Unlearning {
            of: Unlearned::Clean,
            clean_ratio: Some(1.0),
            batch_size: 16,
            learning_rate: 0.05,
            momentum: 0.9,
            stop_at: 0.1,
            epochs: 1000,
        };
        let found = in_context(&mut NoObserver, |context| {
            activeness(&model, golden::images("images"), &unlearning, context).unwrap()
        });
        assert_close(&found, &golden::numbers("activeness"), 1e-5);
        assert_eq!(model.state.digest().unwrap(), before);
    }
}
