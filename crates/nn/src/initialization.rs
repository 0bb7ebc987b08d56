//! The weights a network begins with: PyTorch's defaults.

use crate::{Layer, Module, RandomStream, Result, Role, Slot, StateDict};
use tsbd_tensor::{DType, Device, Tensor};

impl StateDict {
    /// PyTorch's default initialisation of a network with these `modules`, in distribution.
    ///
    /// Weights and biases of convolutions and linear layers are uniform in ±1/sqrt(fan_in), which is what
    /// `kaiming_uniform_(a = sqrt(5))` amounts to; batch norm begins with weight 1, bias 0, mean 0, variance 1, count 0.
    pub fn initial(modules: &[Module], stream: &mut RandomStream) -> Result<StateDict> {
        StateDict::build(modules, |module, slot| initial(module, slot, stream))
    }
}

fn initial(module: &Module, slot: &Slot, stream: &mut RandomStream) -> Result<Tensor> {
    let fan_in = match module.layer {
        Layer::Conv2d { in_channels, kernel, .. } => in_channels * kernel * kernel,
        Layer::Linear { in_features, .. } => in_features,
        Layer::BatchNorm2d { .. } => {
            let ones = slot.name.ends_with(".weight") || slot.name.ends_with(".running_var");
            return Ok(match slot.role {
                Role::Counter => Tensor::zeros((), DType::I64, &Device::Cpu)?,
                _ if ones => Tensor::ones(slot.dims.as_slice(), DType::F32, &Device::Cpu)?,
                _ => Tensor::zeros(slot.dims.as_slice(), DType::F32, &Device::Cpu)?,
            });
        }
    };
    let bound = 1.0 / (fan_in as f64).sqrt();
    let values = (0..slot.dims.iter().product()).map(|_| stream.uniform_in(-bound, bound) as f32).collect();
    Ok(Tensor::from_vec(values, slot.dims.as_slice(), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use crate::{Layer, Module, StateDict, Streams};

    #[test]
    fn weights_fill_the_interval_that_pytorch_fills_and_batch_norms_begin_as_the_identity() {
        let modules = [
            Module::new(
                "conv",
                Layer::Conv2d { in_channels: 16, out_channels: 64, kernel: 3, stride: 1, padding: 1, bias: true },
            ),
            Module::new("bn", Layer::BatchNorm2d { channels: 3 }),
            Module::new("linear", Layer::Linear { in_features: 64, out_features: 1000 }),
        ];
        let state = StateDict::initial(&modules, &mut Streams::new(0).stream("weights", 0)).unwrap();
        let values = |name: &str| state.get(name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (name, bound) in [("conv.weight", 1.0 / 12.0), ("linear.weight", 0.125), ("linear.bias", 0.125)] {
            let values = values(name);
            let largest = values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
            assert!(largest <= bound && largest > 0.98 * bound, "{name}: {largest}");
            // A uniform distribution on ±b has variance b²/3.
            let variance = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
            assert!((variance / (bound * bound / 3.0) - 1.0).abs() < 0.1, "{name}: {variance}");
        }
        assert_eq!(values("conv.bias").len(), 64);
        assert_eq!([values("bn.weight"), values("bn.bias")], [[1.0; 3], [0.0; 3]]);
        assert_eq!([values("bn.running_mean"), values("bn.running_var")], [[0.0; 3], [1.0; 3]]);
        assert_eq!(state.get("bn.num_batches_tracked").unwrap().to_scalar::<i64>().unwrap(), 0);
    }
}
