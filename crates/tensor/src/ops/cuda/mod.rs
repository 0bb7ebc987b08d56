//! The operations on a GPU: what [`crate::kernels::cuda`] has kernels for, from tensors to tensors.
//!
//! Where an operation keeps for its backward pass what its counterpart on the CPU keeps, the two share one body in the
//! module of the operation, and here is only what is computed. The others are whole. Rules for tangents need nothing but
//! operations on a GPU again.

pub(super) mod arithmetic;
pub(super) mod curvature;
pub(crate) mod optimizer;
pub(super) mod places;
pub(super) mod resampling;
pub(super) mod row_normalization;

use candle_core::{DType, Tensor};

use super::batch_norm_tangent::{Normalized, Source};
use super::loss::Reduction;
use super::normalization::{BatchNorm, BatchStatistics, Statistics};
use crate::error::{Error, Result};
use crate::kernels::convolution::Geometry;
use crate::kernels::cuda::gpu::{Allocation, Gpu};
use crate::kernels::cuda::{
    Memory, Stored, View, augmentation, convolution, elementwise, loss, normalization, pooling,
};
use crate::kernels::pooling::Windows;
use crate::operand::exact;
use crate::ops::{ConvolutionAlgorithm, Manner, Precision};
use crate::tape::{Backward, Var};

/// What `kernel` makes of one tensor of activations, which has a name.
pub(super) fn from_one(
    gpu: &Gpu,
    operation: &'static str,
    (name, x): (&'static str, &Tensor),
    dims: &[usize],
    kernel: impl FnOnce(View) -> Result<Allocation>,
) -> Result<Tensor> {
    let values = gpu.activations(operation, name, x)?;
    Ok(gpu.tensor(kernel(values.view())?, dims))
}

/// What `kernel` makes of two tensors of equal shapes and element types, each of which has a name.
pub(super) fn from_two(
    gpu: &Gpu,
    operation: &'static str,
    [(first_name, first), (second_name, second)]: [(&'static str, &Tensor); 2],
    kernel: impl FnOnce(View, View) -> Result<Allocation>,
) -> Result<Tensor> {
    exact(operation, second_name, second, first.dims(), "the shape of the first operand")?;
    let left = gpu.activations(operation, first_name, first)?;
    let right = gpu.like(operation, second_name, second, &left)?;
    Ok(gpu.tensor(kernel(left.view(), right.view())?, first.dims()))
}

// --- convolution and the linear layer ---

/// `y + bias` for every row of `y`.
fn biased(gpu: &Gpu, operation: &'static str, y: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let products = gpu.activations(operation, "y", y)?;
    let bias = gpu.like(operation, "bias", bias, &products)?;
    Ok(gpu.tensor(elementwise::add_bias(gpu, products.view(), bias.view())?, y.dims()))
}

/// What `compute` makes of two factors, of the element type `result`; where cuDNN cannot multiply their `bf16`, what it makes of
/// the same numbers in `f32`.
fn or_wide(
    factors: [&Tensor; 2],
    manner: Manner,
    result: DType,
    compute: impl Fn([&Tensor; 2], Manner) -> Result<Tensor>,
) -> Result<Tensor> {
    match compute(factors, manner) {
        Err(Error::NoAlgorithm { .. }) if factors[0].dtype() == DType::BF16 => {
            let wide = [factors[0].to_dtype(DType::F32)?, factors[1].to_dtype(DType::F32)?];
            let full = Manner { algorithm: ConvolutionAlgorithm::Exact, precision: Precision::F32 };
            Ok(compute(wide.each_ref(), full)?.to_dtype(result)?)
        }
        done => done,
    }
}

/// What cuDNN multiplies `x` by: `weight`, transposed, and rounded if `x` is.
pub(super) fn filter(gpu: &Gpu, operation: &'static str, g: &Geometry, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let element = gpu.activations(operation, "x", x)?.view().element();
    let weight = gpu.read(operation, "weight", weight, &[element, Stored::F32])?;
    let dims = [g.out_channels, g.kernel_height, g.kernel_width, g.in_channels];
    Ok(gpu.tensor(convolution::filter(gpu, g, weight.view(), element)?, &dims))
}

/// The convolution of `x` with a [`filter`], plus a bias, or plus a residual.
pub(super) fn convolve(
    gpu: &Gpu,
    operation: &'static str,
    (g, manner): (&Geometry, Manner),
    factors: [&Tensor; 2],
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let y = or_wide(factors, manner, factors[0].dtype(), |[x, filter], manner| {
        let image = gpu.activations(operation, "x", x)?;
        let filter = gpu.like(operation, "filter", filter, &image)?;
        let y = convolution::forward(gpu, (g, manner), image.view(), filter.view())?;
        Ok(gpu.tensor(y, &[g.images, g.out_height, g.out_width, g.out_channels]))
    })?;
    plus(gpu, operation, y, bias, residual)
}

/// `y` plus a bias, or plus a residual. cuDNN could add to what is there, but not with every algorithm.
fn plus(
    gpu: &Gpu,
    operation: &'static str,
    y: Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let y = match residual {
        Some(residual) => {
            from_two(gpu, operation, [("y", &y), ("residual", residual)], |a, b| elementwise::add(gpu, a, b))?
        }
        None => y,
    };
    bias.map_or(Ok(y.clone()), |bias| biased(gpu, operation, &y, bias))
}

/// The gradient of a convolution's input, added to what there is already; and the transposed convolution, plus a bias.
pub(super) fn convolution_input_gradient(
    gpu: &Gpu,
    operation: &'static str,
    (g, manner): (&Geometry, Manner),
    factors: [&Tensor; 2],
    bias: Option<&Tensor>,
    existing: Option<&Tensor>,
) -> Result<Tensor> {
    let dx = or_wide(factors, manner, factors[0].dtype(), |[dy, filter], manner| {
        let gradient = gpu.activations(operation, "dy", dy)?;
        let filter = gpu.like(operation, "filter", filter, &gradient)?;
        let dx = convolution::backward_input(gpu, (g, manner), gradient.view(), filter.view())?;
        Ok(gpu.tensor(dx, &[g.images, g.height, g.width, g.in_channels]))
    })?;
    plus(gpu, operation, dx, bias, existing)
}

/// The gradient of a convolution's weight, whose element type is `weight`.
pub(super) fn convolution_weight_gradient(
    gpu: &Gpu,
    g: &Geometry,
    manner: Manner,
    x: &Tensor,
    dy: &Tensor,
    weight: DType,
) -> Result<Tensor> {
    const OPERATION: &str = "conv2d backward";
    let element = if weight == DType::BF16 { Stored::Bf16 } else { Stored::F32 };
    or_wide([x, dy], manner, weight, |[x, dy], manner| {
        let gradient = gpu.activations(OPERATION, "dy", dy)?;
        let image = gpu.like(OPERATION, "x", x, &gradient)?;
        let dw = convolution::backward_weight(gpu, (g, manner), image.view(), gradient.view(), element)?;
        Ok(gpu.tensor(dw, &[g.kernel_height, g.kernel_width, g.in_channels, g.out_channels]))
    })
}

/// `a · b` through cuBLAS, of matrices that may be transposed views.
fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(a.matmul(b)?)
}

pub(super) fn linear(gpu: &Gpu, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    const OPERATION: &str = "linear";
    let rows = gpu.activations(OPERATION, "x", x)?;
    gpu.like(OPERATION, "weight", weight, &rows)?;
    let products = product(x, &weight.t()?)?;
    bias.map_or(Ok(products.clone()), |bias| biased(gpu, OPERATION, &products, bias))
}

pub(super) fn linear_weight_gradient(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    product(&dy.t()?, x)
}

pub(super) fn linear_input_gradient(dy: &Tensor, weight: &Tensor) -> Result<Tensor> {
    product(dy, weight)
}

// --- pooling ---

pub(super) fn average_pool(gpu: &Gpu, w: &Windows, x: &Tensor, dims: &[usize]) -> Result<Tensor> {
    from_one(gpu, "avg_pool2d", ("x", x), dims, |x| pooling::average(gpu, w, x))
}

pub(super) fn average_pool_backward(gpu: &Gpu, w: &Windows, dy: &Tensor, dims: &[usize]) -> Result<Tensor> {
    from_one(gpu, "avg_pool2d", ("dy", dy), dims, |dy| pooling::average_backward(gpu, w, dy))
}

pub(super) fn global_average_pool(gpu: &Gpu, x: &Tensor, [images, pixels, channels]: [usize; 3]) -> Result<Tensor> {
    from_one(gpu, "global_average_pool", ("x", x), &[images, channels], |x| {
        pooling::global_average(gpu, x, pixels, channels)
    })
}

pub(super) fn global_average_pool_backward(gpu: &Gpu, dy: &Tensor, dims: &[usize; 4]) -> Result<Tensor> {
    let &[_, height, width, channels] = dims;
    let pixels = height * width;
    from_one(gpu, "global_average_pool", ("dy", dy), dims, |dy| {
        pooling::global_average_backward(gpu, dy, pixels, channels)
    })
}

/// The maximum of every window, and its place in its image (`u32`).
pub(super) fn max_pool(
    gpu: &Gpu,
    operation: &'static str,
    w: &Windows,
    x: &Tensor,
    dims: &[usize],
) -> Result<(Tensor, Tensor)> {
    let values = gpu.activations(operation, "x", x)?;
    let (y, from) = pooling::max(gpu, w, values.view())?;
    Ok((gpu.tensor(y, dims), gpu.tensor(from, dims)))
}

pub(super) fn max_pool_gather(
    gpu: &Gpu,
    operation: &'static str,
    w: &Windows,
    x: &Tensor,
    from: &Tensor,
) -> Result<Tensor> {
    let places = gpu.read(operation, "from", from, &[Stored::U32])?;
    from_one(gpu, operation, ("x", x), from.dims(), |x| pooling::gather(gpu, w, x, places.view()))
}

pub(super) fn max_pool_backward(
    gpu: &Gpu,
    operation: &'static str,
    w: &Windows,
    dy: &Tensor,
    from: &Tensor,
    dims: &[usize],
) -> Result<Tensor> {
    let places = gpu.read(operation, "from", from, &[Stored::U32])?;
    from_one(gpu, operation, ("dy", dy), dims, |dy| pooling::max_backward(gpu, w, dy, places.view()))
}

// --- batch normalisation ---

/// What the backward pass of a batch normalisation needs.
struct Saved {
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    scale: Tensor,
    shift: Tensor,
    relu: bool,
    from_batch: bool,
}

/// [`Var::batch_norm`], whose arguments' shapes have been checked; weight and bias are `f32`, also of `bf16` activations.
pub(super) fn batch_norm(
    gpu: &Gpu,
    x: &Var,
    weight: &Var,
    bias: &Var,
    options: BatchNorm,
) -> Result<(Var, Option<BatchStatistics>)> {
    const OPERATION: &str = "batch_norm";
    let dims = [weight.tensor().elem_count()];
    let from_batch = matches!(options.statistics, Statistics::Batch);
    if from_batch && x.tensor().elem_count() == dims[0] {
        let expected = "more than one value per channel for the statistics of a batch";
        return Err(Error::shape(OPERATION, "x", expected, x.dims()));
    }
    let vector = |memory| gpu.tensor(memory, &dims);
    let values = gpu.activations(OPERATION, "x", x.tensor())?;
    let factor = gpu.numbers(OPERATION, "weight", weight.tensor())?;
    let addend = gpu.numbers(OPERATION, "bias", bias.tensor())?;
    let (coefficients, mean, statistics) = match options.statistics {
        Statistics::Batch => {
            let met = normalization::of_batch(gpu, values.view(), factor.view(), addend.view(), options.epsilon)?;
            let (mean, variance) = (vector(met.mean), vector(met.variance));
            (met.coefficients, mean.clone(), Some(BatchStatistics { mean, variance }))
        }
        Statistics::Running { mean, variance } => {
            exact(OPERATION, "mean", mean, &dims, "one value per channel")?;
            exact(OPERATION, "variance", variance, &dims, "one value per channel")?;
            let given = [gpu.numbers(OPERATION, "mean", mean)?, gpu.numbers(OPERATION, "variance", variance)?];
            let given = given.each_ref().map(|operand| operand.view());
            let coefficients = normalization::of_running(gpu, given, factor.view(), addend.view(), options.epsilon)?;
            // A copy: the running estimates move on.
            (coefficients, mean.copy()?, None)
        }
    };
    let (scale, shift) = (coefficients.scale.view(), coefficients.shift.view());
    let y = gpu.tensor(normalization::apply(gpu, values.view(), scale, Some(shift), options.relu)?, x.dims());
    let [inverse, scale, shift] = [coefficients.inverse, coefficients.scale, coefficients.shift].map(vector);
    let nodes = [x, weight, bias].map(Var::node);
    let (epsilon, relu) = (options.epsilon, options.relu);
    let backward = || -> Backward {
        let (mean, inverse) = (mean.clone(), inverse.clone());
        let saved = Saved { x: x.tensor().clone(), mean, inverse, scale, shift, relu, from_batch };
        Box::new(move |dy, flow| saved.backward(&dy, nodes, flow))
    };
    let output = Var::computed_with_tangent(OPERATION, y.clone(), &[x, weight, bias], backward, || {
        let tangent = as_the_tangent_sees_it(x.tensor(), [&mean, &inverse], epsilon, from_batch)?;
        let tangent = tangent.along(x, weight, bias)?;
        if relu { tangent.map(|tangent| tangent.where_positive(&y)).transpose() } else { Ok(tangent) }
    })?;
    Ok((output, statistics))
}

/// What the tangent of a normalisation of `x` is made of. It needs products of activations with numbers per channel, which
/// are `f32`: so the activations have to be, too.
fn as_the_tangent_sees_it(
    x: &Tensor,
    [mean, inverse]: [&Tensor; 2],
    epsilon: f64,
    from_batch: bool,
) -> Result<Normalized> {
    if x.dtype() != DType::F32 {
        let (argument, expected) = ("x", "F32, of values that carry a tangent".to_owned());
        return Err(Error::DType { operation: "batch_norm tangent", argument, expected, found: x.dtype() });
    }
    let [centre, deviation] = [mean, inverse].map(|vector| Var::constant(vector.clone()));
    let source = if from_batch {
        let count = x.elem_count() / inverse.elem_count();
        let slope = deviation.mul(&deviation)?.mul(&deviation)?.scale(-1. / count as f64)?;
        let shift = slope.mul(&centre)?.scale(-1.)?;
        Source::Batch { count, slope: slope.tensor().clone(), shift: shift.tensor().clone() }
    } else {
        Source::Given { shift: centre.mul(&deviation)?.scale(-1.)?.tensor().clone() }
    };
    Ok(Normalized { epsilon, inverse: inverse.clone(), source })
}

impl Saved {
    fn backward(self, dy: &Tensor, nodes: [Option<usize>; 3], flow: &mut crate::tape::Flow) -> Result<()> {
        const OPERATION: &str = "batch_norm backward";
        let Some(gpu) = Gpu::of(&self.x) else { unreachable!("saved on a GPU") };
        let [node, weight_node, bias_node] = nodes;
        let x = gpu.activations(OPERATION, "x", &self.x)?;
        let gradient = gpu.like(OPERATION, "dy", dy, &x)?;
        let vectors = [&self.mean, &self.inverse, &self.scale, &self.shift];
        let vectors = [
            gpu.numbers(OPERATION, "mean", vectors[0])?,
            gpu.numbers(OPERATION, "inverse", vectors[1])?,
            gpu.numbers(OPERATION, "scale", vectors[2])?,
            gpu.numbers(OPERATION, "shift", vectors[3])?,
        ];
        let [mean, inverse, scale, shift] = vectors.each_ref().map(|operand| operand.view());
        let Self { relu, from_batch, .. } = self;
        let normalized = normalization::Normalized { x: x.view(), mean, inverse, scale, shift, relu, from_batch };
        let needs_sums = from_batch || weight_node.is_some() || bias_node.is_some();
        let sums = needs_sums.then(|| normalization::gradient_sums(&gpu, &normalized, gradient.view())).transpose()?;
        if let Some(node) = node {
            let existing = flow.take(node);
            let before = existing.as_ref().map(|sum| gpu.like(OPERATION, "dx", sum, &x)).transpose()?;
            let before = before.as_ref().map(|operand| operand.view());
            let dx = normalization::input_gradient(&gpu, &normalized, gradient.view(), sums.as_ref(), before)?;
            flow.add(node, gpu.tensor(dx, self.x.dims()))?;
        }
        let Some(sums) = sums else { return Ok(()) };
        let dims = [sums.weight.view().count()];
        for (node, sum) in [(weight_node, sums.weight), (bias_node, sums.bias)] {
            if let Some(node) = node {
                flow.add(node, gpu.tensor(sum, &dims))?;
            }
        }
        Ok(())
    }
}

// --- images ---

/// [`crate::augment`], whose arguments have been checked.
pub(super) fn augment(
    gpu: &Gpu,
    pixels: &Tensor,
    indices: &[u32],
    placements: &[[i32; 3]],
    table: &[[f32; 256]],
    dims: [usize; 4],
) -> Result<Tensor> {
    const OPERATION: &str = "augment";
    let device = pixels.device();
    let indices = Tensor::from_slice(indices, indices.len(), device)?;
    let placements = Tensor::from_slice(placements.as_flattened(), placements.len() * 3, device)?;
    let table = Tensor::from_slice(table.as_flattened(), table.len() * 256, device)?;
    let pixels = gpu.read(OPERATION, "pixels", pixels, &[Stored::U8])?;
    let indices = gpu.read(OPERATION, "indices", &indices, &[Stored::U32])?;
    let placements = gpu.read(OPERATION, "placements", &placements, &[Stored::I32])?;
    let table = gpu.numbers(OPERATION, "table", &table)?;
    let views = [pixels.view(), indices.view(), placements.view(), table.view()];
    Ok(gpu.tensor(augmentation::augment(gpu, views, [dims[1], dims[2]])?, &dims))
}

// --- losses ---

/// The losses or their mean. A label that is no class makes its loss not a number: to refuse it, the host would have to wait
/// for the GPU.
pub(super) fn cross_entropy(
    gpu: &Gpu,
    operation: &'static str,
    logits: &Tensor,
    labels: &Tensor,
    smoothing: f64,
    reduction: Reduction,
) -> Result<Tensor> {
    let values = gpu.numbers(operation, "logits", logits)?;
    let classes = gpu.read(operation, "labels", labels, &[Stored::U32])?;
    let losses = loss::cross_entropy(gpu, values.view(), classes.view(), smoothing)?;
    Ok(match reduction {
        Reduction::Mean => gpu.tensor(losses.mean, &[]),
        Reduction::Nothing => gpu.tensor(losses.rows, labels.dims()),
    })
}

pub(super) fn cross_entropy_backward(
    gpu: &Gpu,
    operation: &'static str,
    gradient: &Tensor,
    logits: &Tensor,
    labels: &Tensor,
    smoothing: f64,
) -> Result<Tensor> {
    let of_mean = gradient.rank() == 0;
    let gradient = gpu.numbers(operation, "gradient", gradient)?;
    let values = gpu.numbers(operation, "logits", logits)?;
    let classes = gpu.read(operation, "labels", labels, &[Stored::U32])?;
    let (values, classes) = (values.view(), classes.view());
    let dlogits = loss::cross_entropy_backward(gpu, gradient.view(), of_mean, values, classes, smoothing)?;
    Ok(gpu.tensor(dlogits, logits.dims()))
}

/// [`crate::count_correct`].
pub(super) fn count_correct(gpu: &Gpu, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    const OPERATION: &str = "count_correct";
    let logits = gpu.numbers(OPERATION, "logits", logits)?;
    let labels = gpu.read(OPERATION, "labels", labels, &[Stored::U32])?;
    Ok(gpu.tensor(loss::count_correct(gpu, logits.view(), labels.view())?, &[]))
}

/// The mean loss of [`Var::binary_cross_entropy`]. A target that is no probability makes it not a number, as a label that is
/// no class does.
pub(super) fn binary_cross_entropy(gpu: &Gpu, logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    const OPERATION: &str = "binary_cross_entropy";
    let logits = gpu.numbers(OPERATION, "logits", logits)?;
    let targets = gpu.numbers(OPERATION, "targets", targets)?;
    Ok(gpu.tensor(loss::binary_cross_entropy(gpu, logits.view(), targets.view())?, &[]))
}

pub(super) fn binary_cross_entropy_backward(
    gpu: &Gpu,
    gradient: &Tensor,
    logits: &Tensor,
    targets: &Tensor,
) -> Result<Tensor> {
    const OPERATION: &str = "binary_cross_entropy backward";
    let gradient = gpu.numbers(OPERATION, "gradient", gradient)?;
    let values = gpu.numbers(OPERATION, "logits", logits)?;
    let targets = gpu.numbers(OPERATION, "targets", targets)?;
    let dlogits = loss::binary_cross_entropy_backward(gpu, gradient.view(), values.view(), targets.view())?;
    Ok(gpu.tensor(dlogits, logits.dims()))
}
