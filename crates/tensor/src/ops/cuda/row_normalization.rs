//! Softmax, its logarithm and layer normalisation.

use candle_core::Tensor;

use crate::error::Result;
use crate::kernels::cuda::gpu::Gpu;
use crate::kernels::cuda::row_normalization;
use crate::tape::{Flow, Var};

pub(in crate::ops) fn softmax(
    gpu: &Gpu,
    operation: &'static str,
    x: &Tensor,
    classes: usize,
    logarithm: bool,
) -> Result<Tensor> {
    let values = gpu.activations(operation, "x", x)?;
    Ok(gpu.tensor(row_normalization::softmax(gpu, values.view(), classes, logarithm)?, x.dims()))
}

pub(in crate::ops) fn softmax_backward(
    gpu: &Gpu,
    operation: &'static str,
    y: &Tensor,
    dy: &Tensor,
    classes: usize,
    logarithm: bool,
) -> Result<Tensor> {
    let values = gpu.activations(operation, "y", y)?;
    let gradient = gpu.like(operation, "dy", dy, &values)?;
    let dx = row_normalization::softmax_backward(gpu, values.view(), gradient.view(), classes, logarithm)?;
    Ok(gpu.tensor(dx, y.dims()))
}

/// What the backward pass of a layer normalisation needs.
struct Saved {
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    inverse: Tensor,
}

/// [`Var::layer_norm`], whose arguments' shapes have been checked; weight and bias are `f32`, also of `bf16` activations.
pub(in crate::ops) fn layer_norm(gpu: &Gpu, x: &Var, weight: &Var, bias: &Var, epsilon: f64) -> Result<Var> {
    const OPERATION: &str = "layer_norm";
    let normalized = {
        let values = gpu.activations(OPERATION, "x", x.tensor())?;
        let scale = gpu.numbers(OPERATION, "weight", weight.tensor())?;
        let shift = gpu.numbers(OPERATION, "bias", bias.tensor())?;
        row_normalization::layer_norm(gpu, values.view(), scale.view(), shift.view(), epsilon)?
    };
    let per_row = [x.tensor().elem_count() / weight.tensor().elem_count()];
    let [mean, inverse] = [normalized.mean, normalized.inverse].map(|memory| gpu.tensor(memory, &per_row));
    Var::computed(OPERATION, gpu.tensor(normalized.y, x.dims()), &[x, weight, bias], || {
        let nodes = [x, weight, bias].map(Var::node);
        let saved = Saved { x: x.tensor().clone(), weight: weight.tensor().clone(), mean, inverse };
        Box::new(move |dy, flow| saved.backward(&dy, nodes, flow))
    })
}

impl Saved {
    fn backward(self, dy: &Tensor, [node, weight_node, bias_node]: [Option<usize>; 3], flow: &mut Flow) -> Result<()> {
        const OPERATION: &str = "layer_norm backward";
        let Some(gpu) = Gpu::of(&self.x) else { unreachable!("saved on a GPU") };
        let x = gpu.activations(OPERATION, "x", &self.x)?;
        let gradient = gpu.like(OPERATION, "dy", dy, &x)?;
        let weight = gpu.numbers(OPERATION, "weight", &self.weight)?;
        let mean = gpu.numbers(OPERATION, "mean", &self.mean)?;
        let inverse = gpu.numbers(OPERATION, "inverse", &self.inverse)?;
        let (both, kept) = ([x.view(), gradient.view()], [mean.view(), inverse.view()]);
        if weight_node.is_some() || bias_node.is_some() {
            let sums = row_normalization::layer_norm_sums(&gpu, both, kept)?;
            let sums = gpu.tensor(sums, &[2, weight.view().count()]);
            for (index, node) in [weight_node, bias_node].into_iter().enumerate() {
                if let Some(node) = node {
                    flow.add(node, sums.get(index)?)?;
                }
            }
        }
        let Some(node) = node else { return Ok(()) };
        let dx = row_normalization::layer_norm_backward(&gpu, both, weight.view(), kept)?;
        flow.add(node, gpu.tensor(dx, self.x.dims()))
    }
}
