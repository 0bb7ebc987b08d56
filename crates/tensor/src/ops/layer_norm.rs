//! Layer normalisation (Ba, Kiros and Hinton 2016).

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::kernels::layer_norm::{self, RowMoments};
use crate::operand::{Operand, by_element, exact, on_gpu, tensor};
use crate::tape::{Flow, Var};

impl Var {
    /// `(x - mean) / √(variance + epsilon) · weight + bias` per row (over the last dimension) of
    /// `self: [..., channels]`, of any rank from 1 on, with `weight: [channels]` and `bias: [channels]`; the variance
    /// is the biased one. `epsilon` is PyTorch's `eps` (1e-5 there). Gradients flow to all three.
    pub fn layer_norm(&self, weight: &Var, bias: &Var, epsilon: f64) -> Result<Var> {
        const OPERATION: &str = "layer_norm";
        let x = self.tensor();
        let channels = match x.dims() {
            &[.., channels] if x.elem_count() > 0 => channels,
            found => return Err(Error::shape(OPERATION, "x", "[..., channels], none of them zero", found)),
        };
        exact(OPERATION, "weight", weight.tensor(), &[channels], "one value per channel")?;
        exact(OPERATION, "bias", bias.tensor(), &[channels], "one value per channel")?;
        if !(epsilon >= 0. && epsilon.is_finite()) {
            return Err(Error::value(OPERATION, "epsilon", epsilon, "use a small number, 0 or more"));
        }
        on_gpu!(x, gpu => super::cuda::row_normalization::layer_norm(&gpu, self, weight, bias, epsilon));
        let (y, moments) = by_element!(OPERATION, "x", x, T => {
            let values = Operand::<T>::read(OPERATION, "x", x)?;
            let scale = Operand::<T>::read(OPERATION, "weight", weight.tensor())?;
            let shift = Operand::<T>::read(OPERATION, "bias", bias.tensor())?;
            let moments = layer_norm::moments(&values, channels, epsilon);
            Ok::<_, Error>((tensor(layer_norm::apply(&values, &moments, &scale, &shift), x.dims())?, moments))
        })?;
        Var::computed(OPERATION, y, &[self, weight, bias], || {
            let nodes = Nodes { x: self.node(), weight: weight.node(), bias: bias.node() };
            let saved = Saved { x: x.clone(), weight: weight.tensor().clone(), moments };
            Box::new(move |dy, flow| saved.backward(&dy, nodes, flow))
        })
    }
}

#[derive(Clone, Copy)]
struct Nodes {
    x: Option<usize>,
    weight: Option<usize>,
    bias: Option<usize>,
}

/// What the backward pass needs.
struct Saved {
    x: Tensor,
    weight: Tensor,
    moments: Vec<RowMoments>,
}

impl Saved {
    fn backward(self, dy: &Tensor, nodes: Nodes, flow: &mut Flow) -> Result<()> {
        const OPERATION: &str = "layer_norm backward";
        by_element!(OPERATION, "dy", dy, T => {
            let x = Operand::<T>::read(OPERATION, "x", &self.x)?;
            let weight = Operand::<T>::read(OPERATION, "weight", &self.weight)?;
            let dy = Operand::<T>::read(OPERATION, "dy", dy)?;
            let channels = weight.len();
            if nodes.weight.is_some() || nodes.bias.is_some() {
                let sums = layer_norm::parameter_gradients(&x, &dy, &self.moments, channels);
                let narrow = |values: &[f64]| values.iter().map(|&value| value as T).collect();
                let (of_weight, of_bias) = sums.split_at(channels);
                if let Some(node) = nodes.weight {
                    flow.add(node, tensor::<T>(narrow(of_weight), &[channels])?)?;
                }
                if let Some(node) = nodes.bias {
                    flow.add(node, tensor::<T>(narrow(of_bias), &[channels])?)?;
                }
            }
            let Some(node) = nodes.x else { return Ok(()) };
            flow.add(node, tensor(layer_norm::input_gradient(&x, &dy, &self.moments, &weight), self.x.dims())?)
        })
    }
}
