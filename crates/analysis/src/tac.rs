//! Trigger-activated change (TAC): how far the trigger moves a neuron's output.
//!
//! It has been published in two forms whose values and orders differ, so whoever prints one names it. Both are taken on
//! the convolution's raw output in evaluation mode, over pairs of an image and its triggered version.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tsbd_nn::{BatchSource, Model};

use crate::outputs::outputs;
use crate::{Error, Neurons};

/// Which of the two published forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TacForm {
    /// BackdoorBench's `analysis/visual_tac.py`: the mean over images of the absolute difference at each position,
    /// summed over positions.
    #[default]
    BackdoorBench,
    /// Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022: the L2 norm of the
    /// difference of an image's two feature maps, averaged over images.
    Clp,
}

impl TacForm {
    /// Name of the vector with the values of this form.
    pub fn vector(self) -> &'static str {
        match self {
            TacForm::BackdoorBench => "tac_backdoorbench",
            TacForm::Clp => "tac_clp",
        }
    }
}

/// The TAC of each neuron of [`Neurons::all`], in both forms.
#[derive(Debug, Clone, PartialEq)]
pub struct Tac {
    /// [`TacForm::BackdoorBench`].
    pub backdoorbench: Vec<f64>,
    /// [`TacForm::Clp`].
    pub clp: Vec<f64>,
}

impl Tac {
    /// The values of one form.
    pub fn form(&self, form: TacForm) -> &[f64] {
        match form {
            TacForm::BackdoorBench => &self.backdoorbench,
            TacForm::Clp => &self.clp,
        }
    }
}

/// The TAC of each neuron over the first epochs of `clean` and `triggered`, which give the same images in the same
/// batches, without and with the trigger. `step` is called after each batch with how many are done; its error ends the
/// measurement.
pub fn tac(
    model: &Model,
    clean: &dyn BatchSource,
    triggered: &dyn BatchSource,
    step: &mut dyn FnMut(usize) -> Result<(), Error>,
) -> Result<Tac, Error> {
    let neurons = Neurons::of(model.architecture.as_ref());
    let zeros = || -> Vec<Vec<f64>> { neurons.layers().iter().map(|layer| vec![0.0; layer.filters]).collect() };
    let (mut absolute, mut norms, mut images, mut batches) = (zeros(), zeros(), 0, 0);
    let mut pairs = (outputs(model, &neurons, clean), outputs(model, &neurons, triggered));
    loop {
        let (clean, triggered) = match (pairs.0.next(), pairs.1.next()) {
            (None, None) => break,
            (Some(clean), Some(triggered)) => (clean?, triggered?),
            _ => return Err(Error::Unpaired),
        };
        if clean.images != triggered.images {
            return Err(Error::Unpaired);
        }
        for layer in 0..absolute.len() {
            let filters = absolute[layer].len();
            let mut squares = vec![0.0; filters];
            for image in 0..clean.images {
                squares.fill(0.0);
                let positions = clean.of_image(layer, image).chunks_exact(filters);
                for (clean, triggered) in positions.zip(triggered.of_image(layer, image).chunks_exact(filters)) {
                    for filter in 0..filters {
                        let difference = f64::from(triggered[filter]) - f64::from(clean[filter]);
                        absolute[layer][filter] += difference.abs();
                        squares[filter] += difference * difference;
                    }
                }
                for (norm, square) in norms[layer].iter_mut().zip(&squares) {
                    *norm += square.sqrt();
                }
            }
        }
        (images, batches) = (images + clean.images, batches + 1);
        step(batches)?;
    }
    // The mean over images and the sum over positions may change places.
    let means = |sums: Vec<Vec<f64>>| sums.into_iter().flatten().map(|sum| sum / images.max(1) as f64).collect();
    Ok(Tac { backdoorbench: means(absolute), clp: means(norms) })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tsbd_data::{Images, Loader, Normalization};
    use tsbd_nn::{Layer, Module, Streams};
    use tsbd_tensor::{Device, Tensor};

    use super::*;
    use crate::golden::{self, assert_close};

    #[test]
    fn both_forms_are_pytorchs_whatever_the_batches() {
        let model = golden::model("backdoored");
        for batch_size in [24, 7] {
            let loader = |name| golden::loader(name, batch_size);
            let found = tac(&model, &loader("images"), &loader("triggered"), &mut |_| Ok(())).unwrap();
            assert_close(&found.backdoorbench, &golden::numbers("tac_backdoorbench"), 1e-4);
            assert_close(&found.clp, &golden::numbers("tac_clp"), 1e-4);
            assert_eq!(found.form(TacForm::Clp), found.clp);
            assert_ne!(crate::descending(&found.clp, None), crate::descending(&found.backdoorbench, None));
        }
    }

    /// A 1x1 convolution that gives each colour as it is, as three neurons.
    fn identity() -> Model {
        let conv = Layer::Conv2d { in_channels: 3, out_channels: 3, kernel: 1, stride: 1, padding: 0, bias: false };
        let linear = Layer::Linear { in_features: 3, out_features: 2 };
        let modules = vec![Module::new("conv", conv), Module::new("linear", linear)];
        let network = tsbd_testing::network(modules, 2, |pass, images| {
            let features = pass.conv("conv", images)?.global_average_pool()?;
            pass.output("features", &features);
            pass.linear("linear", &features)
        });
        let mut model = Model::new(network, &mut Streams::new(0).stream("identity", 0)).unwrap();
        let weight = Tensor::eye(3, tsbd_tensor::DType::F32, &Device::Cpu).unwrap();
        let dims = model.state.get("conv.weight").unwrap().dims().to_vec();
        model.state.set("conv.weight", &weight.reshape(dims).unwrap()).unwrap();
        model
    }

    /// Two images of 2 x 2 pixels (red, green, blue) with these levels.
    fn two(images: [[[u8; 3]; 4]; 2]) -> Loader {
        let images = Images::new(images.concat().concat(), vec![0, 1], (2, 2), 2);
        Loader::evaluation(Arc::new(images), Normalization::IDENTITY, 2)
    }

    #[test]
    fn both_forms_are_those_computed_by_hand() {
        let clean = two([
            [[0, 51, 0], [204, 51, 0], [30, 51, 0], [0, 51, 0]],
            [[7, 102, 0], [7, 102, 255], [7, 102, 0], [7, 102, 0]],
        ]);
        let triggered = two([
            [[153, 102, 0], [0, 102, 0], [30, 102, 255], [0, 102, 0]],
            [[7, 0, 0], [7, 0, 204], [7, 0, 0], [7, 0, 0]],
        ]);
        // Triggered minus clean at each position, in shares of 255 levels.
        //   red:   first image  0.6, -0.8, 0, 0        second   0, 0, 0, 0
        //   green: first image  0.2, 0.2, 0.2, 0.2     second  -0.4, -0.4, -0.4, -0.4
        //   blue:  first image  0, 0, 1, 0             second   0, -0.2, 0, 0
        let found = tac(&identity(), &clean, &triggered, &mut |_| Ok(())).unwrap();
        // Mean over images of the size at each position, summed over positions:
        //   red    0.6/2 + 0.8/2              = 0.7
        //   green  4 * (0.2 + 0.4)/2          = 1.2, not 4 * 0.1: opposite changes do not cancel
        //   blue   1/2 + 0.2/2                = 0.6
        assert_close(&found.backdoorbench, &[0.7, 1.2, 0.6], 1e-6);
        // Mean over images of the norm over positions:
        //   red    (sqrt(0.36 + 0.64) + 0)/2            = 0.5
        //   green  (sqrt(4 * 0.04) + sqrt(4 * 0.16))/2  = (0.4 + 0.8)/2 = 0.6, not sqrt((0.16 + 0.64)/2) = 0.63
        //   blue   (1 + 0.2)/2                          = 0.6: before red, unlike above
        assert_close(&found.clp, &[0.5, 0.6, 0.6], 1e-6);
    }

    #[test]
    fn without_a_trigger_nothing_changes() {
        let model = golden::model("backdoored");
        let found = tac(&model, &golden::loader("images", 8), &golden::loader("images", 8), &mut |_| Ok(())).unwrap();
        assert!(found.backdoorbench.iter().chain(&found.clp).all(|value| *value == 0.0));
    }

    #[test]
    fn images_that_are_no_pairs_are_refused() {
        let model = golden::model("backdoored");
        let error =
            tac(&model, &golden::loader("images", 8), &golden::loader("triggered", 12), &mut |_| Ok(())).unwrap_err();
        assert!(matches!(error, Error::Unpaired), "{error}");
    }

    #[test]
    fn a_request_to_stop_is_heard_after_each_batch() {
        let mut batches = Vec::new();
        let mut second = |batch| {
            batches.push(batch);
            if batch < 2 { Ok(()) } else { Err(Error::Stopped { stage: "TAC" }) }
        };
        let loader = |name| golden::loader(name, 7);
        let stopped = tac(&golden::model("backdoored"), &loader("images"), &loader("triggered"), &mut second);
        assert!(matches!(stopped, Err(Error::Stopped { .. })));
        assert_eq!(batches, [1, 2], "of four");
    }
}
