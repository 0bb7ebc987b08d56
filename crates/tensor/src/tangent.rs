//! Derivatives along a direction, themselves recorded on the tape: the way to exact second derivatives.
//!
//! A [`Var`] may carry a tangent: another `Var` of its shape that says how the value moves. An operation on values
//! with tangents gives its result a tangent too, computed by further operations on the tape (forward mode). So if
//! `x` moves along `v`, the tangent of a scalar loss is `⟨∇L, v⟩`, and its gradients (reverse mode over forward
//! mode) are second derivatives: with respect to `x` the Hessian-vector product `∇²L·v`, with respect to any other
//! leaf `w` the mixed product `∇_w ⟨∇_x L, v⟩`. Pearlmutter 1994, "Fast exact multiplication by the Hessian", has
//! the two modes in the other order, with the same result.
//!
//! An operation without a rule for tangents refuses values that carry one.

use std::rc::Rc;

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::operand::exact;
use crate::tape::{Backward, Var};

impl Var {
    /// The same value at the same place on its tape, moving along `tangent` (of the same shape and element type, on
    /// the same tape or a constant). Replaces a tangent that it has.
    ///
    /// # Errors
    /// If shape, element type or tape differ, or if `tangent` carries a tangent itself.
    pub fn with_tangent(&self, tangent: &Var) -> Result<Var> {
        const OPERATION: &str = "with_tangent";
        exact(OPERATION, "tangent", tangent.tensor(), self.dims(), "the shape of its value")?;
        let (expected, found) = (self.tensor().dtype(), tangent.tensor().dtype());
        if expected != found {
            let expected = format!("{expected:?}, as its value");
            return Err(Error::DType { operation: OPERATION, argument: "tangent", expected, found });
        }
        if !self.can_meet(tangent) {
            return Err(Error::DifferentTapes { operation: OPERATION });
        }
        if tangent.tangent.is_some() {
            return Err(Error::NestedTangent { operation: OPERATION });
        }
        let mut moving = self.clone();
        moving.tangent = Some(Rc::new(tangent.clone()));
        Ok(moving)
    }

    /// How the value moves, in its shape: the derivative along the directions given by [`Self::with_tangent`] to
    /// what it was computed from. `None` if no direction was given to any of it.
    pub fn tangent(&self) -> Option<&Var> {
        self.tangent.as_deref()
    }

    /// The same value at the same place on its tape, standing still.
    pub(crate) fn primal(&self) -> Var {
        let mut primal = self.clone();
        primal.tangent = None;
        primal
    }

    /// As [`Self::computed`], of an operation that can carry tangents on: `rule` is called only when an input has one,
    /// and computes the tangent of the value from the inputs' tangents and their [`Self::primal`]s.
    pub(crate) fn computed_with_tangent(
        operation: &'static str,
        value: Tensor,
        inputs: &[&Var],
        backward: impl FnOnce() -> Backward,
        rule: impl FnOnce() -> Result<Option<Var>>,
    ) -> Result<Self> {
        let mut output = Self::recorded(operation, value, inputs, backward)?;
        if inputs.iter().any(|input| input.tangent.is_some()) {
            let tangent = rule()?.ok_or(Error::NoTangentRule { operation })?;
            output = output.with_tangent(&tangent)?;
        }
        Ok(output)
    }
}

/// The sum of the terms that are there.
pub(crate) fn sum_of(terms: impl IntoIterator<Item = Option<Result<Var>>>) -> Result<Option<Var>> {
    let mut terms = terms.into_iter().flatten();
    let Some(first) = terms.next() else { return Ok(None) };
    terms.try_fold(first?, |sum, term| sum.add(&term?)).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tape::Tape;

    #[test]
    fn an_operation_without_a_rule_refuses_tangents_whether_or_not_gradients_are_wanted() {
        let value = Tensor::new(&[1., 2.], &candle_core::Device::Cpu).unwrap();
        let operation = |x: &Var, y: &Var| {
            let backward = || -> Backward { Box::new(|_, _| Ok(())) };
            Var::computed("new_operation", x.tensor().clone(), &[x, y], backward)
        };
        let constant = Var::constant(value.clone());
        for x in [constant.clone(), Tape::new().leaf(&value)] {
            operation(&x, &x).unwrap();
            let moving = x.with_tangent(&constant).unwrap();
            for result in [operation(&moving, &x), operation(&x, &moving)] {
                let error = result.unwrap_err();
                assert!(matches!(error, Error::NoTangentRule { operation: "new_operation" }), "{error}");
            }
        }
    }

    #[test]
    fn a_rule_that_gives_nothing_is_an_error() {
        let x = Var::constant(Tensor::new(&[1.], &candle_core::Device::Cpu).unwrap());
        let moving = x.with_tangent(&x).unwrap();
        let backward = || -> Backward { Box::new(|_, _| Ok(())) };
        let result = Var::computed_with_tangent("forgetful", x.tensor().clone(), &[&moving], backward, || Ok(None));
        assert!(matches!(result, Err(Error::NoTangentRule { operation: "forgetful" })), "{result:?}");
    }
}
