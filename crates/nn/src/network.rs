//! A network that need not be a classifier: the encoders, decoders and generators of attacks.

use crate::{Architecture, Module};

/// What a [`crate::Pass`] needs to know of a network: its named layers. Every [`Architecture`] is one; another network
/// has functions of its own that take its inputs through a pass to its outputs.
///
/// Its weights are a [`crate::StateDict`], begun by [`crate::StateDict::initial`], stored by
/// [`crate::StateDict::save`] and [`crate::StateDict::load`]; gradients come from [`crate::Pass::gradients`], and
/// [`crate::StateDict::absorb`] moves the running estimates of its batch norms.
pub trait Network {
    /// Its name in messages.
    fn name(&self) -> &str;
    /// Its layers in definition order, which is the order of its state dict.
    fn modules(&self) -> &[Module];
}

impl Network for dyn Architecture + '_ {
    fn name(&self) -> &str {
        Architecture::name(self)
    }
    fn modules(&self) -> &[Module] {
        Architecture::modules(self)
    }
}
