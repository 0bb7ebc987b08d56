//! Batch normalisation (Ioffe and Szegedy 2015), optionally with the ReLU that follows it.

use candle_core::{Tensor, WithDType};

use crate::error::{Error, Result};
use crate::kernels::normalization::{self, Affine, InputGradient, Moments, ThroughStatistics};
use crate::operand::{Operand, by_element, exact, on_gpu, tensor};
use crate::ops::batch_norm_tangent::{Normalized, Source};
use crate::tape::{Backward, Var};

/// Options of [`Var::batch_norm`].
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm<'a> {
    /// What is used as mean and variance.
    pub statistics: Statistics<'a>,
    /// Added to the variance, as PyTorch's `eps` (1e-5 there).
    pub epsilon: f64,
    /// Whether a ReLU follows; fused, it costs nothing.
    pub relu: bool,
}

/// Where the mean and the variance come from.
#[derive(Clone, Copy, Debug)]
pub enum Statistics<'a> {
    /// From the batch itself (training); gradients flow through them.
    Batch,
    /// Given, constant (evaluation).
    Running {
        /// Per channel, `[channels]`.
        mean: &'a Tensor,
        /// Per channel, `[channels]`.
        variance: &'a Tensor,
    },
}

/// The statistics of one batch, for the running estimates.
#[derive(Clone, Debug)]
pub struct BatchStatistics {
    /// Per channel, `[channels]`, in the element type of the activations (`f32` for `bf16` on a GPU).
    pub mean: Tensor,
    /// Per channel, `[channels]`: the unbiased estimate (divided by one less than the number of values),
    /// which is what PyTorch's running variance averages.
    pub variance: Tensor,
}

impl Var {
    /// `(x - mean) / √(variance + epsilon) · weight + bias` per channel (the last dimension), of
    /// `self: [..., channels]` with `weight: [channels]` and `bias: [channels]`; the normalisation uses the
    /// biased variance. With [`Statistics::Batch`] the batch's statistics are returned too. Gradients flow
    /// to all three in both modes.
    pub fn batch_norm(&self, weight: &Var, bias: &Var, options: BatchNorm) -> Result<(Var, Option<BatchStatistics>)> {
        const OPERATION: &str = "batch_norm";
        let x = self.tensor();
        let channels = match x.dims() {
            &[.., channels] if x.rank() >= 2 && x.elem_count() > 0 => channels,
            found => return Err(Error::shape(OPERATION, "x", "[..., channels], none of them zero", found)),
        };
        exact(OPERATION, "weight", weight.tensor(), &[channels], "one value per channel")?;
        exact(OPERATION, "bias", bias.tensor(), &[channels], "one value per channel")?;
        if !(options.epsilon >= 0. && options.epsilon.is_finite()) {
            return Err(Error::value(OPERATION, "epsilon", options.epsilon, "use a small number, 0 or more"));
        }
        on_gpu!(x, gpu => super::cuda::batch_norm(&gpu, self, weight, bias, options));
        by_element!(OPERATION, "x", x, T => {
            let values = Operand::<T>::read(OPERATION, "x", x)?;
            let scale = Operand::<T>::read(OPERATION, "weight", weight.tensor())?;
            let shift = Operand::<T>::read(OPERATION, "bias", bias.tensor())?;
            let moments = match options.statistics {
                Statistics::Batch if values.len() == channels => {
                    let expected = "more than one value per channel for the statistics of a batch";
                    return Err(Error::shape(OPERATION, "x", expected, x.dims()));
                }
                Statistics::Batch => normalization::moments(&values, channels),
                Statistics::Running { mean, variance } => {
                    exact(OPERATION, "mean", mean, &[channels], "one value per channel")?;
                    exact(OPERATION, "variance", variance, &[channels], "one value per channel")?;
                    let wide = |values: &[T]| values.iter().map(|&value| value.to_f64()).collect();
                    let mean = wide(&Operand::<T>::read(OPERATION, "mean", mean)?);
                    let variance = wide(&Operand::<T>::read(OPERATION, "variance", variance)?);
                    Moments { mean, variance, count: values.len() / channels }
                }
            };
            let inverse_deviation: Vec<f64> =
                moments.variance.iter().map(|variance| 1. / (variance + options.epsilon).sqrt()).collect();
            let affine = affine(&scale, &shift, &moments.mean, &inverse_deviation, options.relu);
            let y = tensor(normalization::apply(&values, &affine), x.dims())?;
            let from_batch = matches!(options.statistics, Statistics::Batch);
            let statistics = from_batch.then(|| batch_statistics::<T>(&moments)).transpose()?;
            let nodes = Nodes { x: self.node(), weight: weight.node(), bias: bias.node() };
            let normalization = Normalization { epsilon: options.epsilon, moments, inverse_deviation, from_batch };
            let backward = || -> Backward {
                let normalization = normalization.clone();
                let saved = Saved { x: x.clone(), normalization, affine };
                Box::new(move |dy, flow| saved.backward(&dy, nodes, flow))
            };
            let output = Var::computed_with_tangent(OPERATION, y.clone(), &[self, weight, bias], backward, || {
                let tangent = normalization.as_the_tangent_sees_it::<T>()?.along(self, weight, bias)?;
                if options.relu { tangent.map(|tangent| tangent.where_positive(&y)).transpose() } else { Ok(tangent) }
            })?;
            Ok((output, statistics))
        })
    }
}

fn affine<T: Copy + Into<f64>>(
    weight: &[T],
    bias: &[T],
    mean: &[f64],
    inverse_deviation: &[f64],
    relu: bool,
) -> Affine {
    let scale: Vec<f64> =
        weight.iter().zip(inverse_deviation).map(|(&weight, inverse)| weight.into() * inverse).collect();
    let shift = bias.iter().zip(mean.iter().zip(&scale)).map(|(&bias, (mean, scale))| bias.into() - mean * scale);
    Affine { shift: shift.collect(), scale, relu }
}

fn batch_statistics<T: WithDType>(moments: &Moments) -> Result<BatchStatistics> {
    let count = moments.count as f64;
    let narrow = |values: &[f64], factor: f64| values.iter().map(|value| T::from_f64(value * factor)).collect();
    let channels = [moments.mean.len()];
    Ok(BatchStatistics {
        mean: tensor::<T>(narrow(&moments.mean, 1.), &channels)?,
        variance: tensor::<T>(narrow(&moments.variance, count / (count - 1.)), &channels)?,
    })
}

#[derive(Clone, Copy)]
struct Nodes {
    x: Option<usize>,
    weight: Option<usize>,
    bias: Option<usize>,
}

/// How one batch was normalised.
#[derive(Clone)]
struct Normalization {
    epsilon: f64,
    moments: Moments,
    /// `1 / √(variance + epsilon)` per channel.
    inverse_deviation: Vec<f64>,
    /// Whether the moments are those of the input itself.
    from_batch: bool,
}

impl Normalization {
    fn as_the_tangent_sees_it<T: WithDType>(&self) -> Result<Normalized> {
        let channels = [self.moments.mean.len()];
        let vector = |values: &mut dyn Iterator<Item = f64>| tensor::<T>(values.map(T::from_f64).collect(), &channels);
        let (inverse, mean) = (&self.inverse_deviation, &self.moments.mean);
        let source = if self.from_batch {
            let count = self.moments.count;
            let slope: Vec<f64> = inverse.iter().map(|inverse| -inverse.powi(3) / count as f64).collect();
            let shift = vector(&mut slope.iter().zip(mean).map(|(slope, mean)| -slope * mean))?;
            Source::Batch { count, slope: vector(&mut slope.into_iter())?, shift }
        } else {
            Source::Given { shift: vector(&mut mean.iter().zip(inverse).map(|(mean, inverse)| -mean * inverse))? }
        };
        Ok(Normalized { epsilon: self.epsilon, inverse: vector(&mut inverse.iter().copied())?, source })
    }
}

/// What the backward pass needs. The ReLU's mask is not kept but computed again from `x`.
struct Saved {
    x: Tensor,
    normalization: Normalization,
    affine: Affine,
}

impl Saved {
    fn backward(self, dy: &Tensor, nodes: Nodes, flow: &mut crate::tape::Flow) -> Result<()> {
        const OPERATION: &str = "batch_norm backward";
        by_element!(OPERATION, "dy", dy, T => {
            let x = Operand::<T>::read(OPERATION, "x", &self.x)?;
            let dy = Operand::<T>::read(OPERATION, "dy", dy)?;
            let Normalization { moments, inverse_deviation, from_batch, .. } = &self.normalization;
            let channels = [moments.mean.len()];
            let needs_sums = *from_batch || nodes.weight.is_some() || nodes.bias.is_some();
            let mut through_statistics = None;
            if needs_sums {
                let (sums, products) = normalization::gradient_sums(&x, &dy, &self.affine, &moments.mean);
                // Σ dy·x̂, where x̂ is the normalised input.
                let normalized: Vec<f64> =
                    products.iter().zip(inverse_deviation).map(|(product, inverse)| product * inverse).collect();
                let narrow = |values: &[f64]| values.iter().map(|&value| value as T).collect();
                if let Some(node) = nodes.bias {
                    flow.add(node, tensor::<T>(narrow(&sums), &channels)?)?;
                }
                if let Some(node) = nodes.weight {
                    flow.add(node, tensor::<T>(narrow(&normalized), &channels)?)?;
                }
                if *from_batch {
                    let count = moments.count as f64;
                    let scaled = |values: &[f64]| -> Vec<f64> {
                        values.iter().zip(&self.affine.scale).map(|(value, scale)| -scale * value / count).collect()
                    };
                    let slope = scaled(&normalized);
                    let slope = slope.iter().zip(inverse_deviation).map(|(slope, inverse)| slope * inverse);
                    through_statistics = Some(ThroughStatistics {
                        mean: &moments.mean,
                        slope: slope.collect(),
                        offset: scaled(&sums),
                    });
                }
            }
            let Some(node) = nodes.x else { return Ok(()) };
            let existing = flow.take(node);
            let existing = existing.as_ref().map(|sum| Operand::<T>::read(OPERATION, "dx", sum)).transpose()?;
            let gradient = InputGradient { affine: &self.affine, through_statistics };
            let dx = normalization::input_gradient(&x, &dy, existing.as_deref(), &gradient);
            flow.add(node, tensor(dx, self.x.dims())?)
        })
    }
}
