//! Numbers that the checks against finite differences start from.

use tsbd_tensor::{Device, Tensor};

/// Values in (-1, 1) without a pattern, no two equal, none close to 0 (where ReLU has a kink): a sequence
/// of multiples of an irrational number.
pub fn values(dims: &[usize], start: usize) -> Tensor {
    let count = dims.iter().product();
    let values: Vec<f64> = (0..count)
        .map(|index| {
            let value = ((start * 1000 + index + 1) as f64 * 0.754_877_666_246_692_8).fract() * 2. - 1.;
            value + 0.01 * value.signum()
        })
        .collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}
