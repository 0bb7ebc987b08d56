//! What a network is: named layers and the way through them.

use crate::{Module, Pass, Result};
use std::fmt::Debug;
use tsbd_tensor::Var;

/// A network without its weights.
pub trait Architecture: Send + Sync + Debug {
    /// The name users give it: `preact-resnet18`.
    fn name(&self) -> &str;
    /// Its layers in definition order, which is the order of PyTorch's `named_modules` and of its state dict.
    fn modules(&self) -> &[Module];
    /// How many classes the logits have.
    fn classes(&self) -> usize;
    /// The name of the last linear layer, which gives the logits.
    fn head(&self) -> &str;
    /// The name under which the input of the last linear layer, `[batch, features]`, can be tapped.
    fn features(&self) -> &str;
    /// The outputs, early to late, whose attention a distillation compares (NAD): maps `[batch, height, width, channel]`
    /// or vectors `[batch, features]`, by the names under which they can be tapped. None: not said for this network.
    fn attention(&self) -> &[&str] {
        &[]
    }
    /// Takes images `[batch, height, width, channel]` to logits `[batch, classes]`, calling its layers by name.
    fn forward(&self, pass: &Pass, images: &Var) -> Result<Var>;
}
