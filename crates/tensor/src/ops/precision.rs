//! How far an operation may round.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::ops::ConvolutionAlgorithm;

/// How far convolutions may round their factors, and what is stored in between. Sums are `f32` in all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Not at all.
    #[default]
    F32,
    /// On a GPU, factors of convolutions to TF32 (eleven significant bits), which its tensor cores multiply. On a CPU not at all.
    Tf32,
    /// As automatic mixed precision does. On a GPU tensors are `bf16` themselves (eight significant bits): activations, and what
    /// they are multiplied by. On a CPU only the factors of convolutions are rounded, as [`ConvolutionAlgorithm::Bf16`] says.
    Bf16,
}

impl Precision {
    /// All of them, from the most precise to the fastest.
    pub const ALL: [Self; 3] = [Self::F32, Self::Tf32, Self::Bf16];

    /// As in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }

    /// The one with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|precision| precision.name() == name)
    }

    /// Whether nothing is rounded.
    pub fn is_full(&self) -> bool {
        *self == Self::F32
    }
}

/// How one convolution is computed, and its gradients with it: what it asks for, and what the process has chosen.
#[derive(Clone, Copy)]
pub(crate) struct Manner {
    /// On a CPU.
    pub algorithm: ConvolutionAlgorithm,
    /// On a GPU.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "read on GPUs alone"))]
    pub precision: Precision,
}

impl Manner {
    pub fn of(precision: Precision) -> Result<Self> {
        let algorithm = match precision {
            Precision::F32 | Precision::Tf32 => ConvolutionAlgorithm::current()?,
            Precision::Bf16 => ConvolutionAlgorithm::Bf16,
        };
        Ok(Self { algorithm, precision })
    }
}
