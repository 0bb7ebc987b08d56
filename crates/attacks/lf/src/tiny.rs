//! The tiny network, images and numbers of `tools/reference/groundwork.py`, for the tests of LF and of Trojan.

use std::sync::Arc;

use safetensors::SafeTensors;
use serde_json::Value;
use tsbd_data::{Dataset, Images, Normalization};
use tsbd_nn::{Architecture, Layer, Model, Module, Pass};
use tsbd_tensor::Var;

fn path(name: &str) -> String {
    format!("{}/../../../tools/reference/golden/groundwork/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The tensors of one file.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn read(name: &str) -> Golden {
        Golden(std::fs::read(path(&format!("{name}.safetensors"))).unwrap())
    }

    fn tensor(&self, name: &str) -> (Vec<usize>, Vec<u8>) {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap();
        (tensor.shape().to_vec(), tensor.data().to_vec())
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.tensor(name).1.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        self.tensor(name).1
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.tensor(name).0
    }
}

/// The numbers beside the tensors.
pub fn numbers() -> Value {
    serde_json::from_slice(&std::fs::read(path("golden.json")).unwrap()).unwrap()
}

/// Twelve images of 16 x 16 pixels in four classes, for training and for testing.
pub fn dataset() -> Arc<Dataset> {
    let golden = Golden::read("lf");
    let labels: Vec<u32> = (0..12).map(|index| index % 4).collect();
    let split = || Images::new(golden.bytes("images"), labels.clone(), (16, 16), 4);
    Arc::new(Dataset::new("tiny", split(), split(), &["a", "b", "c", "d"], Normalization::IDENTITY, false))
}

/// The network with the weights of the file.
pub fn model() -> Model {
    let convolution = |in_channels, out_channels, stride, bias| Layer::Conv2d {
        in_channels,
        out_channels,
        kernel: 3,
        stride,
        padding: 1,
        bias,
    };
    let modules = vec![
        Module::new("conv1", convolution(3, 6, 1, false)),
        Module::new("bn1", Layer::BatchNorm2d { channels: 6 }),
        Module::new("conv2", convolution(6, 12, 2, true)),
        Module::new("linear", Layer::Linear { in_features: 12, out_features: 4 }),
    ];
    Model::load(Arc::new(Tiny(modules)), path("network.safetensors")).unwrap()
}

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
        4
    }
    fn head(&self) -> &str {
        "linear"
    }
    fn features(&self) -> &str {
        "features"
    }
    fn forward(&self, pass: &Pass, images: &Var) -> tsbd_nn::Result<Var> {
        let x = pass.batch_norm_relu("bn1", &pass.conv("conv1", images)?)?;
        let features = pass.conv("conv2", &x)?.global_average_pool()?;
        pass.output("features", &features);
        pass.linear("linear", &features)
    }
}
