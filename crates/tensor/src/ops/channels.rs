//! Sums and products per channel (the last dimension): what the tangent of a batch normalisation is built of. Each is
//! linear in each of its arguments, and their backward passes are each other.

use candle_core::Tensor;

use crate::error::Result;
use crate::kernels::elementwise;
use crate::kernels::normalization::{self, Affine};
use crate::operand::{Operand, by_element, exact, on_gpu, tensor};
use crate::tape::Var;

impl Var {
    /// `self · scale + shift`, for `self: [..., channels]` with `scale: [channels]` and `shift: [channels]`.
    pub(crate) fn scale_channels(&self, scale: &Var, shift: Option<&Var>) -> Result<Var> {
        const OPERATION: &str = "scale_channels";
        let y = scaled(OPERATION, self.tensor(), scale.tensor(), shift.map(Var::tensor))?;
        let mut inputs = vec![self, scale];
        inputs.extend(shift);
        Var::computed(OPERATION, y, &inputs, || {
            let shift_node = shift.and_then(Var::node);
            let kept_scale = self.node().map(|node| (node, scale.tensor().clone()));
            let kept_x = scale.node().map(|node| (node, self.tensor().clone()));
            Box::new(move |dy, flow| {
                if let Some(node) = shift_node {
                    flow.add(node, channel_sums(OPERATION, &dy)?)?;
                }
                if let Some((node, x)) = kept_x {
                    flow.add(node, products(OPERATION, &dy, &x)?)?;
                }
                match kept_scale {
                    Some((node, scale)) => flow.add(node, scaled(OPERATION, &dy, &scale, None)?),
                    None => Ok(()),
                }
            })
        })
    }

    /// The sum over all places of every channel: `[..., channels]` to `[channels]`.
    pub(crate) fn channel_sums(&self) -> Result<Var> {
        const OPERATION: &str = "channel_sums";
        Var::computed(OPERATION, channel_sums(OPERATION, self.tensor())?, &[self], || {
            let (node, dims) = (self.node(), self.dims().to_vec());
            Box::new(move |dy, flow| match node {
                Some(node) => flow.add(node, Var::constant(dy).over_rows(&dims)?.tensor().clone()),
                None => Ok(()),
            })
        })
    }

    /// The sum over all places of the products of two equal shapes: `[..., channels]` to `[channels]`.
    pub(crate) fn channel_products(&self, other: &Var) -> Result<Var> {
        const OPERATION: &str = "channel_products";
        let value = products(OPERATION, self.tensor(), other.tensor())?;
        Var::computed(OPERATION, value, &[self, other], || {
            let kept_other = self.node().map(|node| (node, other.tensor().clone()));
            let kept_own = other.node().map(|node| (node, self.tensor().clone()));
            Box::new(move |dy, flow| {
                for (node, factor) in [kept_other, kept_own].into_iter().flatten() {
                    flow.add(node, scaled(OPERATION, &factor, &dy, None)?)?;
                }
                Ok(())
            })
        })
    }
}

fn wide<T: Copy + Into<f64>>(values: &[T]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}

/// `x · scale + shift` per channel.
pub(super) fn scaled(operation: &'static str, x: &Tensor, scale: &Tensor, shift: Option<&Tensor>) -> Result<Tensor> {
    on_gpu!(x, gpu => super::cuda::arithmetic::scale_channels(&gpu, operation, x, scale, shift));
    let channels = scale.elem_count();
    by_element!(operation, "x", x, T => {
        let values = Operand::<T>::read(operation, "x", x)?;
        let shift = match shift {
            Some(shift) => wide(&Operand::<T>::read(operation, "shift", shift)?),
            None => vec![0.; channels],
        };
        let affine = Affine { scale: wide(&Operand::<T>::read(operation, "scale", scale)?), shift, relu: false };
        tensor(normalization::apply(&values, &affine), x.dims())
    })
}

/// `Σ a · b` per channel.
fn products(operation: &'static str, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    exact(operation, "other", b, a.dims(), "the shape of the first operand")?;
    on_gpu!(a, gpu => super::cuda::arithmetic::channel_products(&gpu, operation, a, b));
    let channels = a.dim(candle_core::D::Minus1)?;
    by_element!(operation, "self", a, T => {
        let (a, b) = (Operand::<T>::read(operation, "self", a)?, Operand::<T>::read(operation, "other", b)?);
        let none = vec![0.; channels];
        let identity = Affine { scale: none.clone(), shift: none.clone(), relu: false };
        let (_, products) = normalization::gradient_sums(&a, &b, &identity, &none);
        tensor::<T>(products.into_iter().map(|product| product as T).collect(), &[channels])
    })
}

/// `Σ x` per channel: also the gradient of a bias.
pub(super) fn channel_sums(operation: &'static str, x: &Tensor) -> Result<Tensor> {
    let channels = x.dim(candle_core::D::Minus1)?;
    on_gpu!(x, gpu => super::cuda::arithmetic::column_sums(&gpu, operation, x, &[channels]));
    by_element!(operation, "x", x, T => {
        tensor(elementwise::column_sums(&Operand::<T>::read(operation, "x", x)?, channels), &[channels])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finite_differences;

    fn values(dims: &[usize], start: u32) -> Tensor {
        let count: usize = dims.iter().product();
        let values: Vec<f64> = (0..count).map(|index| ((f64::from(start) + index as f64) * 0.7548).sin()).collect();
        Tensor::from_vec(values, dims, &candle_core::Device::Cpu).unwrap()
    }

    #[test]
    fn sums_and_products_per_channel_have_the_right_gradients() {
        for dims in [&[2, 3, 5, 3][..], &[7, 4]] {
            let channels = dims[dims.len() - 1];
            let (x, y, vector) = (values(dims, 1), values(dims, 100), values(&[channels], 200));
            finite_differences(|v| v[0].channel_sums(), std::slice::from_ref(&x), 1e-7).unwrap();
            finite_differences(|v| v[0].channel_products(&v[1]), &[x.clone(), y], 1e-7).unwrap();
            finite_differences(|v| v[0].channel_products(&v[0]), std::slice::from_ref(&x), 1e-7).unwrap();
            finite_differences(|v| v[0].scale_channels(&v[1], None), &[x.clone(), vector.clone()], 1e-7).unwrap();
            let three = [x, vector.clone(), (vector * 2.).unwrap()];
            finite_differences(|v| v[0].scale_channels(&v[1], Some(&v[2])), &three, 1e-7).unwrap();
        }
    }
}
