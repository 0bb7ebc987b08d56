//! The weights a network begins with: PyTorch's defaults.

use crate::{Layer, Module, RandomStream, Result, Role, Slot, StateDict};
use tsbd_tensor::{DType, Device, Tensor};

/// PyTorch's default initialisation, in distribution.
///
/// Weights and biases of convolutions and linear layers are uniform in ±1/sqrt(fan_in), which is what
/// `kaiming_uniform_(a = sqrt(5))` amounts to; batch norm begins with weight 1, bias 0, mean 0, variance 1, count 0.
pub(crate) fn initialize(modules: &[Module], stream: &mut RandomStream) -> Result<StateDict> {
    StateDict::build(modules, |module, slot| initial(module, slot, stream))
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
