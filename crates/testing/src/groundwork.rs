//! The tiny network, images and numbers of `tools/reference/groundwork.py`.

use std::sync::Arc;

use serde_json::Value;
use tsbd_data::{Dataset, Images, Normalization};
use tsbd_nn::{Layer, Model, Module};

use crate::{Golden, convolution, golden_path, network};

/// The numbers beside the tensors.
pub fn numbers() -> Value {
    crate::numbers("groundwork/golden.json")
}

/// Twelve images of 16 x 16 pixels in four classes, for training and for testing.
pub fn dataset() -> Arc<Dataset> {
    let golden = Golden::read("groundwork/lf");
    let labels: Vec<u32> = (0..12).map(|index| index % 4).collect();
    let split = || Images::new(golden.bytes("images"), labels.clone(), (16, 16), 4);
    Arc::new(Dataset::new("tiny", split(), split(), &["a", "b", "c", "d"], Normalization::IDENTITY, false))
}

/// The network with the weights of the file.
pub fn model() -> Model {
    let modules = vec![
        convolution("conv1", [3, 6], 1, false),
        Module::new("bn1", Layer::BatchNorm2d { channels: 6 }),
        convolution("conv2", [6, 12], 2, true),
        Module::new("linear", Layer::Linear { in_features: 12, out_features: 4 }),
    ];
    let network = network(modules, 4, |pass, images| {
        let x = pass.batch_norm_relu("bn1", &pass.conv("conv1", images)?)?;
        let features = pass.conv("conv2", &x)?.global_average_pool()?;
        pass.output("features", &features);
        pass.linear("linear", &features)
    });
    Model::load(network, golden_path("groundwork/network.safetensors")).unwrap()
}
