//! Running estimates of batch norms, moved in place.

use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor};

use crate::error::Result;
use crate::in_place::{self, slice, slice_mut};
use crate::kernels::Element;
use crate::operand::{by_element, on_gpu};
use crate::sgd::is_finite;

/// Moves running estimates in place: the part `momentum` of each is replaced by what a batch had. Pairs of the two, which have
/// the same shape and element type and memory of their own. On a GPU all are moved at once. With `loss`, one `f32`, nothing
/// moves where that is not finite.
pub fn move_estimates(pairs: &[[&Tensor; 2]], momentum: f64, loss: Option<&Tensor>) -> Result<()> {
    const OPERATION: &str = "move_estimates";
    if pairs.is_empty() {
        return Ok(());
    }
    on_gpu!(pairs[0][0], gpu => crate::ops::cuda::optimizer::move_estimates(&gpu, pairs, momentum, loss));
    if let Some(loss) = loss
        && !is_finite(loss)?
    {
        return Ok(());
    }
    pairs.iter().try_for_each(|[estimate, met]| {
        by_element!(OPERATION, "estimate", estimate, T => {
            in_place::check::<T>(OPERATION, &[("estimate", estimate), ("met", met)])?;
            Ok(estimate.inplace_op2(met, &Move { keep: (1. - momentum) as T, share: momentum as T })?)
        })
    })
}

/// Holds an estimate and what was met.
struct Move<T> {
    keep: T,
    share: T,
}

impl<T: Element> InplaceOp2 for Move<T> {
    fn name(&self) -> &'static str {
        "move_estimates"
    }

    fn cpu_fwd(
        &self,
        estimate: &mut CpuStorage,
        estimate_layout: &Layout,
        met: &CpuStorage,
        met_layout: &Layout,
    ) -> candle_core::Result<()> {
        let estimates = slice_mut::<T>(estimate, estimate_layout)?;
        for (estimate, &met) in estimates.iter_mut().zip(slice::<T>(met, met_layout)?) {
            *estimate = *estimate * self.keep + met * self.share;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn values(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    #[test]
    fn a_part_of_each_estimate_is_replaced_where_it_lies() {
        let (first, second) = (values(&[1., 2.]), values(&[10.]));
        let seen = first.clone();
        move_estimates(&[[&first, &values(&[3., 2.])], [&second, &values(&[0.])]], 0.25, None).unwrap();
        assert_eq!(seen.to_vec1::<f32>().unwrap(), [1.5, 2.]);
        assert_eq!(second.to_vec1::<f32>().unwrap(), [7.5]);
    }

    #[test]
    fn nothing_moves_where_the_loss_is_not_finite() {
        let (estimate, met) = (values(&[1., 2.]), values(&[3., 4.]));
        for (loss, expected) in [(f32::NAN, [1., 2.]), (f32::INFINITY, [1., 2.]), (0.7, [2., 3.])] {
            move_estimates(&[[&estimate, &met]], 0.5, Some(&values(&[loss]))).unwrap();
            assert_eq!(estimate.to_vec1::<f32>().unwrap(), expected, "{loss}");
        }
    }
}
