//! The layers of a network with their names, and the tensors each of them keeps.

use tsbd_tensor::DType;

/// A layer that has state. Layers without state (pooling, ReLU) are calls in a network's forward pass.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layer {
    /// A convolution with a square kernel, zero-padded on every side.
    Conv2d {
        /// Channels of the input.
        in_channels: usize,
        /// Channels of the output: one filter each.
        out_channels: usize,
        /// Side of the kernel.
        kernel: usize,
        /// Step in both directions.
        stride: usize,
        /// Rows and columns of zeros on each side.
        padding: usize,
        /// Whether each output channel has a bias.
        bias: bool,
    },
    /// Batch normalisation over `[batch, height, width]`, with epsilon 1e-5 and momentum 0.1 (PyTorch's defaults).
    BatchNorm2d {
        /// Channels of input and output.
        channels: usize,
    },
    /// A fully connected layer with bias.
    Linear {
        /// Length of the input vector.
        in_features: usize,
        /// Length of the output vector.
        out_features: usize,
    },
}

/// Batch normalisation's epsilon: PyTorch's default.
pub(crate) const BATCH_NORM_EPSILON: f64 = 1e-5;
/// How much of a running estimate each batch replaces: PyTorch's default.
pub(crate) const BATCH_NORM_MOMENTUM: f64 = 0.1;

/// A layer and its name, PyTorch's: `layer1.0.conv1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The path of attributes in PyTorch's module tree.
    pub name: String,
    /// What it computes.
    pub layer: Layer,
}

impl Module {
    /// A layer named `name`.
    pub fn new(name: impl Into<String>, layer: Layer) -> Module {
        Module { name: name.into(), layer }
    }
}

/// What a tensor of a state dict is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Trained by gradients.
    Parameter,
    /// Moved by forward passes in training mode.
    Buffer,
    /// A count of batches (`i64`, no dimensions).
    Counter,
}

/// How a tensor lies in memory, compared with PyTorch's file layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// As in PyTorch.
    Same,
    /// A convolution's weight: `[kh, kw, in, out]` in memory, `[out, in, kh, kw]` in files.
    Convolution,
}

impl Layout {
    /// The shape in a file of a tensor that has shape `dims` in memory.
    pub fn file_dims(self, dims: &[usize]) -> Vec<usize> {
        match (self, dims) {
            (Layout::Convolution, &[kh, kw, input, output]) => vec![output, input, kh, kw],
            _ => dims.to_vec(),
        }
    }
}

/// A tensor that a module keeps, before it has a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// PyTorch's name: `layer1.0.conv1.weight`.
    pub name: String,
    /// The shape in memory.
    pub dims: Vec<usize>,
    /// What it is for.
    pub role: Role,
    /// How it lies in memory.
    pub layout: Layout,
}

impl Slot {
    /// The type of the tensor in a network whose numbers are `dtype`.
    pub fn dtype(&self, dtype: DType) -> DType {
        if self.role == Role::Counter { DType::I64 } else { dtype }
    }
}

impl Module {
    /// The tensors of this module, in the order of PyTorch's state dict.
    pub fn slots(&self) -> Vec<Slot> {
        let slot = |suffix: &str, dims: Vec<usize>, role, layout| Slot {
            name: format!("{}.{suffix}", self.name),
            dims,
            role,
            layout,
        };
        use {Layout::*, Role::*};
        match self.layer {
            Layer::Conv2d { in_channels, out_channels, kernel, bias, .. } => {
                let mut slots =
                    vec![slot("weight", vec![kernel, kernel, in_channels, out_channels], Parameter, Convolution)];
                if bias {
                    slots.push(slot("bias", vec![out_channels], Parameter, Same));
                }
                slots
            }
            Layer::BatchNorm2d { channels } => vec![
                slot("weight", vec![channels], Parameter, Same),
                slot("bias", vec![channels], Parameter, Same),
                slot("running_mean", vec![channels], Buffer, Same),
                slot("running_var", vec![channels], Buffer, Same),
                slot("num_batches_tracked", vec![], Counter, Same),
            ],
            Layer::Linear { in_features, out_features } => vec![
                slot("weight", vec![out_features, in_features], Parameter, Same),
                slot("bias", vec![out_features], Parameter, Same),
            ],
        }
    }
}
