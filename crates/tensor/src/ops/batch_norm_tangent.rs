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
use crate::operand::{by_element, tensor};
use crate::ops::channels::scaled;
use crate::ops::normalization::Normalization;
use crate::ops::{BatchNorm, Statistics};
use crate::tangent::sum_of;
use crate::tape::Var;

impl Normalization {
    /// The tangent of the normalisation of `x` before a ReLU. `None` if nothing moves.
    pub fn tangent(&self, x: &Var, weight: &Var, bias: &Var) -> Result<Option<Var>> {
        let still = x.primal();
        // y' = x' · slope + x̂ · stretch + shift
        let (mut stretch, mut shift) = (weight.tangent().cloned(), bias.tangent().cloned());
        let normalized = if weight.tangent().is_some() || self.from_batch && x.tangent().is_some() {
            Some(self.normalized(&still)?)
        } else {
            None
        };
        let mut along_x = None;
        if let Some(moving) = x.tangent() {
            let slope = weight.primal().mul(&self.inverse_deviation(&still)?)?;
            if let Some(normalized) = normalized.as_ref().filter(|_| self.from_batch) {
                let share = 1. / self.moments.count as f64;
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
        let channels = self.moments.mean.len();
        if self.from_batch {
            let vector = |value: f64| vector(x.tensor(), vec![value; channels].into_iter());
            let options = BatchNorm { statistics: Statistics::Batch, epsilon: self.epsilon, relu: false };
            return Ok(x.batch_norm(&vector(1.)?, &vector(0.)?, options)?.0);
        }
        let shift = self.moments.mean.iter().zip(&self.inverse_deviation).map(|(mean, inverse)| -mean * inverse);
        x.scale_channels(&self.inverse_deviation(x)?, Some(&vector(x.tensor(), shift)?))
    }

    /// `r`, `[channels]`: a constant with given statistics, else a function of `x` with `dr/dx = -r² · x̂ / count`.
    fn inverse_deviation(&self, x: &Var) -> Result<Var> {
        const OPERATION: &str = "batch_norm deviation";
        let inverse = vector(x.tensor(), self.inverse_deviation.iter().copied())?;
        if !self.from_batch {
            return Ok(inverse);
        }
        Var::computed(OPERATION, inverse.tensor().clone(), &[x], || {
            let (node, x, count) = (x.node(), x.tensor().clone(), self.moments.count as f64);
            let slopes = self.inverse_deviation.iter().map(|inverse| -inverse.powi(3) / count).collect::<Vec<_>>();
            let shifts: Vec<f64> = slopes.iter().zip(&self.moments.mean).map(|(slope, mean)| -slope * mean).collect();
            Box::new(move |gradient, flow| {
                let Some(node) = node else { return Ok(()) };
                let gradient = Var::constant(gradient);
                let slope = vector(&x, slopes.into_iter())?.mul(&gradient)?;
                let shift = vector(&x, shifts.into_iter())?.mul(&gradient)?;
                flow.add(node, scaled(OPERATION, &x, slope.tensor(), Some(shift.tensor()))?)
            })
        })
    }
}

/// A constant vector in the element type of `like`.
fn vector(like: &Tensor, values: impl Iterator<Item = f64>) -> Result<Var> {
    let vector: Vec<f64> = values.collect();
    let channels = [vector.len()];
    let vector = by_element!("batch_norm", "x", like, T => {
        tensor::<T>(vector.into_iter().map(|value| value as T).collect(), &channels)
    })?;
    Ok(Var::constant(vector))
}
