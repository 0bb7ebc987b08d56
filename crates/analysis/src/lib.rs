//! What is measured on a model and inside it: the defense effectiveness rating, the neurons of a network, and the
//! weight change of each during unlearning.
//!
//! Accuracy, attack success rate and recovery accuracy are measured where the triggered test set is made, in
//! `tsbd-attack`; they are re-exported here.

pub mod neurons;
pub mod rating;
pub mod weight_change;

pub use neurons::{Neuron, NeuronLayer, Neurons};
pub use rating::der;
pub use tsbd_attack::{Evaluation, evaluate};
pub use weight_change::{WeightChange, descending, weight_change};

/// What can go wrong in a measurement.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The network or its state dict failed.
    #[error(transparent)]
    Network(#[from] tsbd_nn::Error),
    /// Two state dicts that are not of one architecture.
    #[error("{name}: {reason}; compare two checkpoints of one architecture and width")]
    Mismatch {
        /// The tensor, by its PyTorch name.
        name: String,
        /// What does not fit.
        reason: String,
    },
}
