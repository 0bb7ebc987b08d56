//! The tiny network of `tools/reference/tsbd.py`, which most of the other programs there begin with.

use std::sync::Arc;

use tsbd_data::Images;
use tsbd_nn::{Architecture, Layer, Model, Module, Pass, Result};
use tsbd_tensor::Var;

use crate::{Golden, golden_path};

/// Two convolutions with a shortcut between them, a batch norm each, and a linear layer.
#[derive(Debug)]
struct Tiny(Vec<Module>);

impl Architecture for Tiny {
    fn name(&self) -> &str {
        "tiny"
    }
    fn modules(&self) -> &[Module] {
        &self.0
    }
    fn classes(&self) -> usize {
        3
    }
    fn head(&self) -> &str {
        "linear"
    }
    fn features(&self) -> &str {
        "features"
    }
    fn attention(&self) -> &[&str] {
        &["block", "features"]
    }
    fn forward(&self, pass: &Pass, images: &Var) -> Result<Var> {
        let x = pass.batch_norm_relu("bn1", &pass.conv("conv1", images)?)?;
        let x = pass.conv("conv2", &x)?.add(&pass.conv("shortcut", &x)?)?;
        pass.output("block", &x);
        let x = pass.batch_norm_relu("bn2", &x)?.global_average_pool()?;
        pass.output("features", &x);
        pass.linear("linear", &x)
    }
}

/// The network, for images of 8 x 8 pixels in three classes.
pub fn architecture() -> Arc<dyn Architecture> {
    let conv = |name, in_channels, out_channels, kernel, stride| {
        let padding = kernel / 2;
        Module::new(name, Layer::Conv2d { in_channels, out_channels, kernel, stride, padding, bias: false })
    };
    let norm = |name, channels| Module::new(name, Layer::BatchNorm2d { channels });
    Arc::new(Tiny(vec![
        conv("conv1", 3, 4, 3, 1),
        norm("bn1", 4),
        conv("conv2", 4, 12, 3, 2),
        conv("shortcut", 4, 12, 1, 2),
        norm("bn2", 12),
        Module::new("linear", Layer::Linear { in_features: 12, out_features: 3 }),
    ]))
}

/// The network with the weights of `<name>.safetensors` below the golden values.
pub fn model(name: &str) -> Model {
    Model::load(architecture(), golden_path(&format!("{name}.safetensors"))).unwrap()
}

/// The images `name` and the labels in `<file>.safetensors` below the golden values.
pub fn images(file: &str, name: &str) -> Images {
    let golden = Golden::read(file);
    Images::new(golden.bytes(name), golden.integers("labels"), (8, 8), 3)
}
