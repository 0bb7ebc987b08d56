//! Second derivatives of a loss through a network, exact: what bilevel methods such as i-BAU (Zeng et al. 2022) need
//! for the gradient of an outer loss through the solution of an inner one.

use crate::{Mode, Model, ParameterGradients, Pass, Result};
use tsbd_tensor::{Tape, Tensor, Var};

impl Model {
    /// `∇²L · direction` in the shape of `input`: the Hessian of `loss` with respect to `input`, times a direction of
    /// that shape. `loss` computes a scalar from a pass and the input, which may be images, or a perturbation that is
    /// added to all of them ([`Var::broadcast_batch`]); [`Pass::through`] takes the result through the network.
    ///
    /// In the training modes the batch's statistics are differentiated too; running estimates stay as they are.
    ///
    /// # Errors
    /// [`crate::Error::InputUnused`] if the loss does not depend on the input, and what `loss` itself returns.
    pub fn hessian_vector_product(
        &self,
        mode: Mode,
        input: &Tensor,
        direction: &Tensor,
        loss: impl FnOnce(&Pass, &Var) -> Result<Var>,
    ) -> Result<Tensor> {
        let tape = Tape::new();
        let input = tape.leaf(input);
        let slope = slope(&self.pass(mode), &input, direction, loss)?;
        match backward(tape, &slope)?.and_then(|mut gradients| gradients.take(&input)) {
            Some(product) => Ok(product),
            None => Ok(input.tensor().zeros_like()?),
        }
    }

    /// `∇_w ⟨∇L, direction⟩` for every parameter `w`, where `∇L` is the gradient of `loss` with respect to `input`: the
    /// mixed second derivatives along a direction. Everything else as in [`Self::hessian_vector_product`]; a parameter
    /// on which the slope does not depend gets zeros.
    pub fn mixed_product(
        &self,
        mode: Mode,
        input: &Tensor,
        direction: &Tensor,
        loss: impl FnOnce(&Pass, &Var) -> Result<Var>,
    ) -> Result<ParameterGradients> {
        let tape = Tape::new();
        let pass = self.pass(mode).on_tape(&tape);
        let slope = slope(&pass, &Var::constant(input.clone()), direction, loss)?;
        let leaves = pass.leaves();
        let mut gradients = backward(tape.clone(), &slope)?;
        let by_name = self.state.parameters().map(|(name, parameter)| {
            let gradients = gradients.as_mut().zip(leaves.get(name));
            match gradients.and_then(|(gradients, leaf)| gradients.take(leaf)) {
                Some(gradient) => Ok((name.to_owned(), gradient)),
                None => Ok((name.to_owned(), parameter.zeros_like()?)),
            }
        });
        by_name.collect()
    }
}

/// `⟨∇L, direction⟩`, on the tape.
fn slope(pass: &Pass, input: &Var, direction: &Tensor, loss: impl FnOnce(&Pass, &Var) -> Result<Var>) -> Result<Var> {
    let moving = input.with_tangent(&Var::constant(direction.clone()))?;
    loss(pass, &moving)?.tangent().cloned().ok_or(crate::Error::InputUnused)
}

/// The gradients of the slope; nothing if it is a constant, as that of a linear loss.
fn backward(tape: Tape, slope: &Var) -> Result<Option<tsbd_tensor::Gradients>> {
    if slope.is_tracked() { Ok(Some(tape.backward(slope)?)) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::tiny::{batches, model};
    use tsbd_tensor::{CrossEntropy, DType, Device};

    #[test]
    fn a_loss_that_is_linear_in_the_input_has_no_second_derivative() {
        let (model, input) = (model(0), Tensor::ones((2, 3), DType::F32, &Device::Cpu).unwrap());
        let linear = |_: &Pass, input: &Var| Ok(input.sum()?);
        let product = model.hessian_vector_product(Mode::Eval, &input, &input, linear).unwrap();
        assert_eq!(product.to_vec2::<f32>().unwrap(), [[0.0; 3]; 2]);
        let mixed = model.mixed_product(Mode::Eval, &input, &input, linear).unwrap();
        assert_eq!(mixed.len(), model.state.parameters().count());
        assert_eq!(mixed.global_norm().unwrap(), 0.0);
    }

    #[test]
    fn a_loss_that_lost_the_input_is_refused() {
        let model = model(0);
        let batch = &batches(1)[0];
        let lost = |pass: &Pass, images: &Var| {
            Ok(pass.through(&images.detach())?.cross_entropy(&batch.labels, CrossEntropy::default())?)
        };
        let found = model.hessian_vector_product(Mode::Train, &batch.images, &batch.images, lost);
        assert!(matches!(found, Err(Error::InputUnused)), "{found:?}");
    }
}
