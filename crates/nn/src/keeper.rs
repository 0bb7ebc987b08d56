//! Where unfinished work is kept.

use crate::Result;
use indexmap::IndexMap;
use tsbd_tensor::Tensor;

/// Keeps how far the stages of a work have come, so that it goes on from there after its process was killed, and ends with
/// the same bits. Whoever watches a work may be one; most keep nothing.
pub trait Keeper {
    /// Keeps the `state` of a stage in place of the one before. `run` says what the state belongs to: everything that changes
    /// it and is not the same for the whole work.
    fn keep(&mut self, _stage: &str, _run: &str, _state: &IndexMap<String, Tensor>) -> Result<()> {
        Ok(())
    }

    /// The state that was kept last for this stage and run by a work that did not come to its end; nothing in most cases.
    fn kept(&mut self, _stage: &str, _run: &str) -> Option<IndexMap<String, Tensor>> {
        None
    }
}
