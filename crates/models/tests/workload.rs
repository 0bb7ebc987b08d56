//! The operations that are benchmarked are those of the network.

use std::collections::BTreeMap;

use tsbd_models::preact_resnet18;
use tsbd_nn::Layer;
use tsbd_tensor::workload::{NetworkShape, Pass};

#[test]
fn a_step_of_the_workload_has_the_layers_of_preact_resnet18() {
    for width in [16, 64] {
        let mut expected = BTreeMap::<String, usize>::new();
        for module in preact_resnet18(width, 10).modules() {
            let layer = match module.layer {
                Layer::Conv2d { in_channels, out_channels, kernel, stride, .. } => {
                    format!("conv {kernel}x{kernel} stride {stride}: {in_channels} to {out_channels}")
                }
                Layer::BatchNorm2d { channels } => format!("batch norm + relu: {channels}"),
                Layer::Linear { in_features, out_features } => format!("linear: {in_features} to {out_features}"),
                _ => continue,
            };
            *expected.entry(layer).or_default() += 1;
        }

        let mut found = BTreeMap::<String, usize>::new();
        let shape = NetworkShape { width, batch: 1, image_size: 32, classes: 10 };
        for workload in shape.workloads().iter().filter(|workload| workload.pass() == Pass::Forward) {
            let (operation, sizes) = (workload.operation(), workload.shape());
            let channels = sizes.split(',').next().unwrap_or_default();
            if ["conv", "batch norm + relu", "linear"].iter().any(|layer| operation.starts_with(layer))
                && workload.calls_per_step() > 0
            {
                *found.entry(format!("{operation}: {channels}")).or_default() += workload.calls_per_step();
            }
        }
        assert_eq!(found, expected, "width {width}");
    }
}
