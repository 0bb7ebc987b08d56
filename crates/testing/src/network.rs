//! Networks of a few layers.

use std::fmt;
use std::sync::Arc;

use tsbd_nn::{Architecture, Layer, Module, Pass, Result};
use tsbd_tensor::Var;

/// The way through a network's layers: from images `[batch, height, width, channel]` to logits.
type Forward = fn(&Pass, &Var) -> Result<Var>;

struct Small {
    modules: Vec<Module>,
    classes: usize,
    forward: Forward,
}

/// A network of `modules`, the last of them `linear`; `forward` taps the input of that as `features`.
pub fn network(modules: Vec<Module>, classes: usize, forward: Forward) -> Arc<dyn Architecture> {
    Arc::new(Small { modules, classes, forward })
}

/// A 3x3 convolution with padding 1.
pub fn convolution(name: &str, [in_channels, out_channels]: [usize; 2], stride: usize, bias: bool) -> Module {
    Module::new(name, Layer::Conv2d { in_channels, out_channels, kernel: 3, stride, padding: 1, bias })
}

impl fmt::Debug for Small {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Small").field(&self.modules).finish()
    }
}

impl Architecture for Small {
    fn name(&self) -> &str {
        "small"
    }
    fn modules(&self) -> &[Module] {
        &self.modules
    }
    fn classes(&self) -> usize {
        self.classes
    }
    fn head(&self) -> &str {
        "linear"
    }
    fn features(&self) -> &str {
        "features"
    }
    fn forward(&self, pass: &Pass, images: &Var) -> Result<Var> {
        (self.forward)(pass, images)
    }
}
