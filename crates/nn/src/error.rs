//! Everything that can go wrong here, each with what was wrong and the way out.

use std::path::PathBuf;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with state dicts, networks and training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A kernel refused its arguments.
    #[error(transparent)]
    Tensor(#[from] tsbd_tensor::Error),
    /// Candle refused a tensor operation.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is not safetensors.
    #[error("{}: not a readable safetensors file: {source}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        source: safetensors::SafeTensorError,
    },
    /// A file of weights lacks a tensor that the network needs.
    #[error("{}: tensor `{name}` is missing; the file has {found} tensors: it was saved from another network", path.display())]
    TensorMissing {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// How many tensors the file has.
        found: usize,
    },
    /// A file of weights has a tensor that the network does not know.
    #[error("{}: tensor `{name}` {shape:?} is not part of the network: it was saved from another network", path.display())]
    TensorUnexpected {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// Its shape in the file.
        shape: Vec<usize>,
    },
    /// A tensor in a file of weights has another shape than the network's.
    #[error(
        "{}: tensor `{name}` has shape {found:?}, the network needs {expected:?}: choose the width and the number of classes the file was saved with",
        path.display()
    )]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// The shape in the file (PyTorch's layout).
        found: Vec<usize>,
        /// The shape the network needs (PyTorch's layout).
        expected: Vec<usize>,
    },
    /// A tensor in a file of weights has a type this crate does not read.
    #[error("{}: tensor `{name}` has type {found}, expected {expected}", path.display())]
    TensorType {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// The type in the file.
        found: String,
        /// The types that are read.
        expected: &'static str,
    },
    /// A state dict was asked for a name that it does not have.
    #[error("the state dict has no tensor `{name}`; its names are PyTorch's, such as `{example}`")]
    UnknownTensor {
        /// The name asked for.
        name: String,
        /// A name that exists.
        example: String,
    },
    /// A tensor was to be replaced by one of another shape or type.
    #[error("`{name}` is {expected}, cannot be set to {found}")]
    Replacement {
        /// The tensor's name.
        name: String,
        /// Its shape and type.
        expected: String,
        /// The shape and type offered.
        found: String,
    },
    /// A tensor is not a weight that has filters.
    #[error("`{name}` {shape:?} has no filters: only weights of convolutions and linear layers have")]
    NoFilters {
        /// The tensor's name.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A network called a layer that its module list does not have.
    #[error("{architecture} has no {kind} named `{name}`")]
    UnknownLayer {
        /// The network.
        architecture: String,
        /// The kind of layer that was called.
        kind: &'static str,
        /// The name that was called.
        name: String,
    },
    /// A tap was requested under a name the network never passed.
    #[error("{architecture} has no output named `{name}` to tap; modules are named as in PyTorch, such as `{example}`")]
    UnknownTap {
        /// The network.
        architecture: String,
        /// The requested name.
        name: String,
        /// A name that exists.
        example: String,
    },
    /// A trainable parameter got no gradient.
    #[error("parameter `{parameter}` got no gradient: the loss does not depend on it")]
    NoGradient {
        /// The parameter's name.
        parameter: String,
    },
    /// A second derivative was asked of a loss that does not depend on the input.
    #[error("the loss does not depend on the input: compute it from the `Var` that the closure is given, undetached")]
    InputUnused,
    /// The last step of an epoch, whose loss was finite, made a weight or a running estimate that is not.
    #[error("after epoch {epoch} (counted from 0) `{name}` holds numbers that are not finite: lower the learning rate")]
    NonFiniteState {
        /// The epoch, from 0.
        epoch: usize,
        /// The tensor.
        name: String,
    },
    /// The loss became infinite or not a number.
    #[error(
        "the loss is {loss} in epoch {epoch}, step {step} (counted from 0); the batch holds {}: lower the learning rate, or look at these images",
        some_of(indices)
    )]
    NonFiniteLoss {
        /// The epoch, from 0.
        epoch: usize,
        /// The step within the epoch, from 0.
        step: usize,
        /// The loss.
        loss: f64,
        /// The images of the batch.
        indices: Vec<u32>,
    },
    /// An epoch had no batch to learn from.
    #[error("epoch {epoch} has no batch: the data set has {images} images, fewer than one batch")]
    EmptyEpoch {
        /// The epoch, from 0.
        epoch: usize,
        /// How many images the source announced.
        images: usize,
    },
    /// A checkpoint is damaged.
    #[error("{}: damaged checkpoint ({reason}): delete it to start again from the beginning", path.display())]
    DamagedCheckpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A checkpoint belongs to another training run.
    #[error(
        "the checkpoint was made with another {field}: {found}, now {expected}; delete it, or train with the old value"
    )]
    ForeignCheckpoint {
        /// What differs.
        field: &'static str,
        /// The checkpoint's value.
        found: String,
        /// This run's value.
        expected: String,
    },
    /// The source of batches failed.
    #[error("cannot make a batch: {0}")]
    Source(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An observer failed.
    #[error("{0}")]
    Observer(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Whether a training has left the finite numbers: a smaller learning rate may help.
    pub fn is_divergence(&self) -> bool {
        matches!(self, Error::NonFiniteLoss { .. } | Error::NonFiniteState { .. })
    }

    /// Wraps an error of a [`crate::BatchSource`].
    pub fn source(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::Source(error.into())
    }

    /// Wraps an error of a [`crate::TrainingObserver`].
    pub fn observer(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::Observer(error.into())
    }

    pub(crate) fn file(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::File { path, source }
    }
}

/// How many images a message names; the error itself has them all.
const NAMED: usize = 8;

fn some_of(indices: &[u32]) -> String {
    match indices.len().checked_sub(NAMED) {
        None | Some(0) => format!("the images {indices:?}"),
        Some(more) => format!("the images {:?} and {more} more", &indices[..NAMED]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_a_few_images_and_counts_the_rest() {
        let message = |images: u32| {
            Error::NonFiniteLoss { epoch: 1, step: 2, loss: f64::NAN, indices: (0..images).collect() }.to_string()
        };
        assert!(message(8).contains("the images [0, 1, 2, 3, 4, 5, 6, 7]: lower"), "{}", message(8));
        assert!(message(256).contains("the images [0, 1, 2, 3, 4, 5, 6, 7] and 248 more: lower"), "{}", message(256));
    }
}
