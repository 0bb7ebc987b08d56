//! PreAct-ResNet18 for small images, as the paper (through BackdoorBench) uses it.
//!
//! He, Zhang, Ren, Sun: Identity Mappings in Deep Residual Networks, ECCV 2016. Each block normalises and rectifies
//! before its convolutions. As in BackdoorBench, and unlike the paper, there is no normalisation after the stem or
//! after the last block, and a shortcut is a bare 1x1 convolution of the block's rectified input.

use std::sync::Arc;
use tsbd_nn::{Architecture, Layer, Module, Pass, Result};
use tsbd_tensor::Var;

/// The network: a stem, four stages of two blocks with `width`, 2, 4 and 8 times `width` channels, a linear head.
///
/// Width 64 is the paper's. Stages 2 to 4 halve the map's sides. Names are those of PyTorch's state dict.
#[derive(Debug)]
pub struct PreActResNet18 {
    modules: Vec<Module>,
    classes: usize,
}

/// PreAct-ResNet18 that begins with `width` channels and tells `classes` classes apart.
pub fn preact_resnet18(width: usize, classes: usize) -> Arc<dyn Architecture> {
    Arc::new(PreActResNet18::new(width, classes))
}

const STAGES: usize = 4;
const BLOCKS: usize = 2;

fn convolution(in_channels: usize, out_channels: usize, kernel: usize, stride: usize) -> Layer {
    Layer::Conv2d { in_channels, out_channels, kernel, stride, padding: kernel / 2, bias: false }
}

impl PreActResNet18 {
    /// See [`preact_resnet18`].
    pub fn new(width: usize, classes: usize) -> PreActResNet18 {
        let mut modules = vec![Module::new("conv1", convolution(3, width, 3, 1))];
        let mut channels = width;
        for stage in 0..STAGES {
            let planes = width << stage;
            for block in 0..BLOCKS {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let name = |part: &str| format!("layer{}.{block}.{part}", stage + 1);
                modules.push(Module::new(name("bn1"), Layer::BatchNorm2d { channels }));
                modules.push(Module::new(name("conv1"), convolution(channels, planes, 3, stride)));
                modules.push(Module::new(name("bn2"), Layer::BatchNorm2d { channels: planes }));
                modules.push(Module::new(name("conv2"), convolution(planes, planes, 3, 1)));
                if stride != 1 || channels != planes {
                    modules.push(Module::new(name("shortcut.0"), convolution(channels, planes, 1, stride)));
                }
                channels = planes;
            }
        }
        modules.push(Module::new("linear", Layer::Linear { in_features: channels, out_features: classes }));
        PreActResNet18 { modules, classes }
    }

    fn has(&self, name: &str) -> bool {
        self.modules.iter().any(|module| module.name == name)
    }
}

impl Architecture for PreActResNet18 {
    fn name(&self) -> &str {
        "preact-resnet18"
    }
    fn modules(&self) -> &[Module] {
        &self.modules
    }
    fn classes(&self) -> usize {
        self.classes
    }
    fn head(&self) -> &str {
        "linear"
    }
    fn features(&self) -> &str {
        "avgpool"
    }
    fn attention(&self) -> &[&str] {
        &["layer3", "layer4", "avgpool"]
    }

    fn forward(&self, pass: &Pass, images: &Var) -> Result<Var> {
        let mut x = pass.conv("conv1", images)?;
        for stage in 1..=STAGES {
            for block in 0..BLOCKS {
                let name = |part: &str| format!("layer{stage}.{block}.{part}");
                let rectified = pass.batch_norm_relu(&name("bn1"), &x)?;
                let shortcut = name("shortcut.0");
                let residual = if self.has(&shortcut) { pass.conv(&shortcut, &rectified)? } else { x };
                let y = pass.conv(&name("conv1"), &rectified)?;
                let y = pass.batch_norm_relu(&name("bn2"), &y)?;
                x = pass.conv_add(&name("conv2"), &y, &residual)?;
                pass.output(&format!("layer{stage}.{block}"), &x);
            }
            pass.output(&format!("layer{stage}"), &x);
        }
        let features = x.global_average_pool()?;
        pass.output(self.features(), &features);
        pass.linear("linear", &features)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Channels or filters of the modules whose layer `count` recognises.
    fn total(network: &PreActResNet18, count: impl Fn(&Module) -> Option<usize>) -> (usize, usize) {
        let found: Vec<usize> = network.modules().iter().filter_map(count).collect();
        (found.len(), found.iter().sum())
    }

    #[test]
    fn at_width_64_it_has_the_published_numbers_of_layers_and_channels() {
        // defenses.md, F.2: 16 batch norms with 3392 channels, 17 convolutions beside shortcuts with 3904 filters.
        let network = PreActResNet18::new(64, 10);
        let norms = total(&network, |module| match module.layer {
            Layer::BatchNorm2d { channels } => Some(channels),
            _ => None,
        });
        let convolutions = total(&network, |module| match module.layer {
            Layer::Conv2d { out_channels, .. } if !module.name.contains("shortcut") => Some(out_channels),
            _ => None,
        });
        assert_eq!((norms, convolutions), ((16, 3392), (17, 3904)));
    }

    #[test]
    fn its_state_dict_has_pytorchs_names_in_pytorchs_order() {
        let network = PreActResNet18::new(4, 10);
        let slots: Vec<String> = network.modules().iter().flat_map(Module::slots).map(|slot| slot.name).collect();
        assert_eq!(slots.len(), 102);
        assert_eq!(slots[0], "conv1.weight");
        assert_eq!(
            slots[1..8],
            [
                "layer1.0.bn1.weight",
                "layer1.0.bn1.bias",
                "layer1.0.bn1.running_mean",
                "layer1.0.bn1.running_var",
                "layer1.0.bn1.num_batches_tracked",
                "layer1.0.conv1.weight",
                "layer1.0.bn2.weight",
            ]
        );
        let shortcuts: Vec<&String> = slots.iter().filter(|name| name.contains("shortcut")).collect();
        assert_eq!(
            shortcuts,
            ["layer2.0.shortcut.0.weight", "layer3.0.shortcut.0.weight", "layer4.0.shortcut.0.weight"]
        );
        assert_eq!(slots[100..], ["linear.weight", "linear.bias"]);
    }
}
