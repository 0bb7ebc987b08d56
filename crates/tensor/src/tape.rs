//! Reverse-mode differentiation by an explicit tape.
//!
//! A [`Tape`] is a list of nodes in the order of the forward pass; node `i` holds the closure that takes
//! the gradient of value `i` and hands gradients to earlier nodes. The backward pass walks the list once
//! from its end, so every gradient is complete when its closure runs. Closures own what they need
//! (tensors and node numbers, never [`Var`]s, so there is no reference cycle) and are dropped as soon as
//! they have run.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};
use crate::ops::add_tensors;

/// What an operation does in the backward pass: the gradient of its output comes in, gradients of its
/// inputs go to [`Flow`].
pub(crate) type Backward = Box<dyn FnOnce(Tensor, &mut Flow) -> Result<()>>;

struct Node {
    dims: Vec<usize>,
    dtype: DType,
    /// Whether the caller wants to see this gradient (leaves, and inner values that were retained).
    kept: bool,
    backward: Option<Backward>,
}

#[derive(Default)]
struct Record {
    nodes: Vec<Node>,
    spent: bool,
}

/// Records the operations of one forward pass, to be differentiated once.
///
/// Cloning gives another handle on the same tape. A tape belongs to one thread; kernels use many.
#[derive(Clone, Default)]
pub struct Tape {
    record: Rc<RefCell<Record>>,
}

impl fmt::Debug for Tape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = self.record.borrow();
        formatter.debug_struct("Tape").field("nodes", &record.nodes.len()).field("spent", &record.spent).finish()
    }
}

/// A value in a forward pass: a tensor and, if a gradient can flow to it, its place on a tape.
#[derive(Clone, Debug)]
pub struct Var {
    value: Tensor,
    place: Option<Place>,
    /// How the value moves, if a direction was given to what it is computed from: see [`Self::with_tangent`].
    pub(crate) tangent: Option<Rc<Var>>,
}

#[derive(Clone, Debug)]
struct Place {
    tape: Tape,
    node: usize,
}

impl Var {
    /// A value that gets no gradient.
    pub fn constant(value: Tensor) -> Self {
        Self { value, place: None, tangent: None }
    }

    /// The value itself.
    pub fn tensor(&self) -> &Tensor {
        &self.value
    }

    /// The shape of the value.
    pub fn dims(&self) -> &[usize] {
        self.value.dims()
    }

    /// Whether gradients flow to this value: whether it is a leaf or depends on one.
    pub fn is_tracked(&self) -> bool {
        self.place.is_some()
    }

    /// The same value as a constant, without a tangent.
    pub fn detach(&self) -> Self {
        Self::constant(self.value.clone())
    }

    /// Where to send the gradient of this value, if it wants one.
    pub(crate) fn node(&self) -> Option<usize> {
        self.place.as_ref().map(|place| place.node)
    }

    /// Whether the two values could meet in an operation: not tracked by two different tapes.
    pub(crate) fn can_meet(&self, other: &Self) -> bool {
        self.place.as_ref().zip(other.place.as_ref()).is_none_or(|(own, other)| own.tape.is(&other.tape))
    }

    /// The value computed by `operation` from `inputs`. `backward` is called (and recorded) only when an
    /// input is tracked; it must own no `Var`. Inputs that carry a tangent are refused: an operation with a
    /// rule for them uses [`Self::computed_with_tangent`].
    pub(crate) fn computed(
        operation: &'static str,
        value: Tensor,
        inputs: &[&Var],
        backward: impl FnOnce() -> Backward,
    ) -> Result<Self> {
        if inputs.iter().any(|input| input.tangent.is_some()) {
            return Err(Error::NoTangentRule { operation });
        }
        Self::recorded(operation, value, inputs, backward)
    }

    /// [`Self::computed`], whatever becomes of the tangents.
    pub(crate) fn recorded(
        operation: &'static str,
        value: Tensor,
        inputs: &[&Var],
        backward: impl FnOnce() -> Backward,
    ) -> Result<Self> {
        let mut tracked = inputs.iter().filter_map(|input| input.place.as_ref());
        let Some(first) = tracked.next() else { return Ok(Self::constant(value)) };
        if tracked.any(|other| !other.tape.is(&first.tape)) {
            return Err(Error::DifferentTapes { operation });
        }
        let node = first.tape.push(operation, &value, false, Some(backward()))?;
        Ok(Self { value, place: Some(Place { tape: first.tape.clone(), node }), tangent: None })
    }
}

impl Tape {
    /// An empty tape.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a value on the tape whose gradient is wanted. The memory is shared with `value`, not copied.
    ///
    /// # Panics
    /// If the tape has already run its backward pass.
    pub fn leaf(&self, value: &Tensor) -> Var {
        let node = self.push("leaf", value, true, None).expect("a leaf needs a tape that has not run backward yet");
        Var { value: value.clone(), place: Some(Place { tape: self.clone(), node }), tangent: None }
    }

    /// Also keep the gradient of an inner value, to be read from [`Gradients`]. Does nothing for constants
    /// and for values of other tapes.
    pub fn retain(&self, var: &Var) {
        if let Some(place) = var.place.as_ref().filter(|place| place.tape.is(self))
            && let Some(node) = self.record.borrow_mut().nodes.get_mut(place.node)
        {
            node.kept = true;
        }
    }

    /// The gradients of a scalar with respect to all leaves and retained values. Consumes the tape.
    ///
    /// # Errors
    /// If `loss` has more than one element, is not on this tape, or an operation fails.
    pub fn backward(self, loss: &Var) -> Result<Gradients> {
        if loss.tensor().elem_count() != 1 {
            return Err(Error::shape("backward", "loss", "a scalar", loss.dims()));
        }
        let seed = loss.tensor().ones_like()?;
        self.backward_from(&[(loss, &seed)])
    }

    /// The gradients of `Σ ⟨seed, value⟩` over all pairs `(value, seed)`: the backward pass started at any
    /// number of values at once, also inner ones. Consumes the tape.
    ///
    /// # Errors
    /// If a seed differs from its value in shape or element type, a value is not on this tape, or an
    /// operation fails.
    pub fn backward_from(self, seeds: &[(&Var, &Tensor)]) -> Result<Gradients> {
        const OPERATION: &str = "backward";
        let nodes = {
            let mut record = self.record.borrow_mut();
            if record.spent {
                return Err(Error::SpentTape { operation: OPERATION });
            }
            // Seeds are checked before the tape is spent, so that a wrong call loses nothing.
            for (var, seed) in seeds {
                let place = var.place.as_ref().ok_or(Error::NotTracked { operation: OPERATION })?;
                if !place.tape.is(&self) {
                    return Err(Error::DifferentTapes { operation: OPERATION });
                }
                if seed.dims() != var.dims() {
                    let expected = format!("the shape of its value, {:?}", var.dims());
                    return Err(Error::shape(OPERATION, "seed", expected, seed.dims()));
                }
                if seed.dtype() != var.tensor().dtype() {
                    return Err(Error::DType {
                        operation: OPERATION,
                        argument: "seed",
                        expected: format!("{:?}, as its value", var.tensor().dtype()),
                        found: seed.dtype(),
                    });
                }
            }
            record.spent = true;
            std::mem::take(&mut record.nodes)
        };
        let mut flow = Flow { pending: vec![None; nodes.len()] };
        for (var, seed) in seeds {
            if let Some(node) = var.node() {
                flow.add(node, seed.contiguous()?)?;
            }
        }
        let mut kept = vec![None; nodes.len()];
        for (index, node) in nodes.into_iter().enumerate().rev() {
            let Some(gradient) = flow.pending.pop().flatten() else { continue };
            assert_eq!(gradient.dims(), node.dims, "gradient of node {index}");
            assert_eq!(gradient.dtype(), node.dtype, "gradient of node {index}");
            match node.backward {
                None => kept[index] = Some(gradient),
                Some(backward) => {
                    if node.kept {
                        kept[index] = Some(gradient.clone());
                    }
                    backward(gradient, &mut flow)?;
                }
            }
        }
        Ok(Gradients { tape: self, kept })
    }

    fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.record, &other.record)
    }

    fn push(&self, operation: &'static str, value: &Tensor, kept: bool, backward: Option<Backward>) -> Result<usize> {
        let mut record = self.record.borrow_mut();
        if record.spent {
            return Err(Error::SpentTape { operation });
        }
        record.nodes.push(Node { dims: value.dims().to_vec(), dtype: value.dtype(), kept, backward });
        Ok(record.nodes.len() - 1)
    }
}

/// The gradients on their way back: for each node the sum of what later nodes have sent so far.
pub(crate) struct Flow {
    pending: Vec<Option<Tensor>>,
}

impl Flow {
    /// Sends a contribution to `node`: moved if it is the first one, added otherwise.
    pub(crate) fn add(&mut self, node: usize, gradient: Tensor) -> Result<()> {
        let sum = match self.pending[node].take() {
            None => gradient,
            Some(existing) => add_tensors(&existing, &gradient)?,
        };
        self.pending[node] = Some(sum);
        Ok(())
    }

    /// Takes what `node` has got so far, for a kernel that adds to it; the sum is sent back by [`Self::add`].
    pub(crate) fn take(&mut self, node: usize) -> Option<Tensor> {
        self.pending[node].take()
    }
}

/// The result of a backward pass.
#[derive(Debug)]
pub struct Gradients {
    tape: Tape,
    kept: Vec<Option<Tensor>>,
}

impl Gradients {
    /// The gradient of a leaf or a retained value, in the shape of the value. `None` for constants, for
    /// inner values that were not retained, for values of other tapes, and for values nothing flowed to.
    pub fn get(&self, var: &Var) -> Option<&Tensor> {
        self.kept[self.index(var)?].as_ref()
    }

    /// As [`Self::get`], and moves the gradient out.
    pub fn take(&mut self, var: &Var) -> Option<Tensor> {
        let index = self.index(var)?;
        self.kept[index].take()
    }

    fn index(&self, var: &Var) -> Option<usize> {
        var.place.as_ref().filter(|place| place.tape.is(&self.tape)).map(|place| place.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tape_is_freed_with_its_last_value_whether_or_not_backward_ran() {
        for run in [false, true] {
            let tape = Tape::new();
            let alive = Rc::downgrade(&tape.record);
            let x = tape.leaf(&Tensor::new(&[1f32, 2.], &candle_core::Device::Cpu).unwrap());
            let y = x.mul(&x).unwrap().sum().unwrap();
            if run {
                tape.backward(&y).unwrap();
            } else {
                drop(tape);
            }
            assert!(alive.upgrade().is_some(), "the values still know their tape");
            drop((x, y));
            assert!(alive.upgrade().is_none(), "an operation keeps its own tape alive");
        }
    }
}
