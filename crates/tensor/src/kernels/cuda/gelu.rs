//! The Gaussian error linear unit.

use super::elementwise::elementwise;
use super::{Queue, View};
use crate::error::Result;

/// `x · P(X < x)` for a standard normal `X`.
pub(crate) fn gelu<Q: Queue>(queue: &Q, x: View) -> Result<Q::Memory> {
    elementwise(queue, "gelu", &[x])
}

/// The gradient of [`gelu`].
pub(crate) fn backward<Q: Queue>(queue: &Q, dy: View, x: View) -> Result<Q::Memory> {
    elementwise(queue, "gelu_backward", &[dy, x])
}
