//! How a batch normalisation moves when its inputs do.
//!
//! With the normalised input `x̂ = (x - mean) · r` and the inverse deviation `r = 1 / √(variance + epsilon)`, the tangent
//! of `y = x̂ · weight + bias` is
//!
//! `y' = weight · x̂' + x̂ · weight' + bias'`.
//!
//! With given statistics `x̂' = r · x'`. With the batch's own, `x̂' = r · (x' - mean(x') - x̂ · mean(x̂ · x'))`, and `x̂` and
//! `r` depend on `x`. Everything is linear, per channel, in `x'` and `x̂`, so few passes over memory are needed.

use candle_core::Tensor;

use crate::error::Result;
use crate::ops::channels::scaled;
use crate::ops::{BatchNorm, Statistics};
use crate::tangent::sum_of;
use crate::tape::Var;

/// One batch normalisation, as its tangent sees it: constants per channel, `[channels]`, in the element type of the input.
pub(super) struct Normalized {
    pub epsilon: f64,
    /// `r`
    pub inverse: Tensor,
    pub source: Source,
}

/// Where mean and variance come from.
pub(super) enum Source {
    /// They were given: `x̂ = x · r + shift`.
    Given { shift: Tensor },
    /// The input's own, of `count` values per channel: `dr/dx = -r² · x̂ / count = x · slope + shift`.
    Batch { count: usize, slope: Tensor, shift: Tensor },
}

impl Normalized {
    /// The tangent of the normalisation of `x` before a ReLU. `None` if nothing moves.
    pub fn along(&self, x: &Var, weight: &Var, bias: &Var) -> Result<Option<Var>> {
        let still = x.primal();
        // y' = x' · slope + x̂ · stretch + shift
        let (mut stretch, mut shift) = (weight.tangent().cloned(), bias.tangent().cloned());
        let from_batch = matches!(self.source, Source::Batch { .. });
        let normalized = if weight.tangent().is_some() || from_batch && x.tangent().is_some() {
            Some(self.normalized(&still)?)
        } else {
            None
        };
        let mut along_x = None;
        if let Some(moving) = x.tangent() {
            let slope = weight.primal().mul(&self.inverse_deviation(&still)?)?;
            if let (Source::Batch { count, .. }, Some(normalized)) = (&self.source, &normalized) {
                let share = 1. / *count as f64;
                let mean = moving.channel_sums()?.mul(&slope)?.scale(-share)?;
                let projection = moving.channel_products(normalized)?.mul(&slope)?.scale(-share)?;
                shift = sum_of([shift.map(Ok), Some(Ok(mean))])?;
                stretch = sum_of([stretch.map(Ok), Some(Ok(projection))])?;
            }
            along_x = Some(moving.scale_channels(&slope, shift.take().as_ref()));
        }
        let stretched = normalized.zip(stretch);
        let along_normalized = stretched.map(|(x, stretch)| x.scale_channels(&stretch, shift.take().as_ref()));
        sum_of([along_x, along_normalized, shift.map(|shift| shift.over_rows(x.dims()))])
    }

    /// `x̂`: what batch normalisation gives with a weight of 1 and a bias of 0.
    fn normalized(&self, x: &Var) -> Result<Var> {
        match &self.source {
            Source::Batch { .. } => {
                let (weight, bias) = (self.inverse.ones_like()?, self.inverse.zeros_like()?);
                let options = BatchNorm { statistics: Statistics::Batch, epsilon: self.epsilon, relu: false };
                Ok(x.batch_norm(&Var::constant(weight), &Var::constant(bias), options)?.0)
            }
            Source::Given { shift } => {
                x.scale_channels(&Var::constant(self.inverse.clone()), Some(&Var::constant(shift.clone())))
            }
        }
    }

    /// `r`: a constant with given statistics, else a function of `x`.
    fn inverse_deviation(&self, x: &Var) -> Result<Var> {
        const OPERATION: &str = "batch_norm deviation";
        let Source::Batch { slope, shift, .. } = &self.source else { return Ok(Var::constant(self.inverse.clone())) };
        Var::computed(OPERATION, self.inverse.clone(), &[x], || {
            let (node, x) = (x.node(), x.tensor().clone());
            let (slope, shift) = (slope.clone(), shift.clone());
            Box::new(move |gradient, flow| {
                let Some(node) = node else { return Ok(()) };
                let gradient = Var::constant(gradient);
                let slope = Var::constant(slope).mul(&gradient)?;
                let shift = Var::constant(shift).mul(&gradient)?;
                flow.add(node, scaled(OPERATION, &x, slope.tensor(), Some(shift.tensor()))?)
            })
        })
    }
}
