//! The smallest network with every kind of layer, for this crate's own tests.

use crate::{Architecture, Batch, Layer, Model, Module, Pass, Result, Streams};
use std::sync::Arc;
use tsbd_tensor::{Device, Tensor, Var};

#[derive(Debug)]
pub(crate) struct Tiny(Vec<Module>);

pub(crate) fn tiny() -> Arc<Tiny> {
    let convolution = Layer::Conv2d { in_channels: 3, out_channels: 4, kernel: 3, stride: 2, padding: 1, bias: true };
    Arc::new(Tiny(vec![
        Module::new("conv1", convolution),
        Module::new("bn1", Layer::BatchNorm2d { channels: 4 }),
        Module::new("linear", Layer::Linear { in_features: 4, out_features: 5 }),
    ]))
}

impl Architecture for Tiny {
    fn name(&self) -> &str {
        "tiny"
    }
    fn modules(&self) -> &[Module] {
        &self.0
    }
    fn classes(&self) -> usize {
        5
    }
    fn head(&self) -> &str {
        "linear"
    }
    fn features(&self) -> &str {
        "avgpool"
    }
    fn forward(&self, pass: &Pass, images: &Var) -> Result<Var> {
        let x = pass.batch_norm_relu("bn1", &pass.conv("conv1", images)?)?;
        let features = x.global_average_pool()?;
        pass.output("avgpool", &features);
        pass.linear("linear", &features)
    }
}

/// A tiny model with weights drawn from `seed`.
pub(crate) fn model(seed: u64) -> Model {
    Model::new(tiny(), &mut Streams::new(seed).stream("weights", 0)).unwrap()
}

/// `count` batches of 8 images of 6x6 that can be told apart: the class sets the brightness.
pub(crate) fn batches(count: usize) -> Vec<Batch> {
    let mut stream = Streams::new(5).stream("images", 0);
    (0..count)
        .map(|batch| {
            let labels: Vec<u32> = (0..8).map(|_| stream.below(5) as u32).collect();
            let pixels = labels.iter().flat_map(|&label| vec![label; 6 * 6 * 3]);
            let pixels: Vec<f32> =
                pixels.map(|label| label as f32 / 2.0 - 1.0 + stream.uniform_in(-0.3, 0.3) as f32).collect();
            Batch {
                images: Tensor::from_vec(pixels, (8, 6, 6, 3), &Device::Cpu).unwrap(),
                labels: Tensor::from_vec(labels, 8, &Device::Cpu).unwrap(),
                indices: (0..8).map(|image| (8 * batch + image) as u32).collect(),
            }
        })
        .collect()
}
