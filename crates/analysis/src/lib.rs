//! What is measured on a model and inside it: the defense effectiveness rating, the neurons of a network, and of each
//! neuron its weight change and activeness during unlearning, what a trigger changes of its output, how strongly it
//! answers to images.
//!
//! All are pure functions of models and images; [`MEASUREMENTS`] are what an experiment can ask for, each a cell. Accuracy, attack success rate and recovery accuracy are measured where
//! the triggered test set is made, in `tsbd-attack`; they are re-exported here.

pub mod activations;
pub mod activeness;
pub mod context;
pub mod correlation;
pub mod coverage;
#[cfg(test)]
mod golden;
pub mod measurement;
pub mod measurements;
pub mod neuron_vector;
pub mod neurons;
mod outputs;
pub mod rating;
pub mod tac;
pub mod unlearning;
pub mod weight_change;

pub use activations::mean_activations;
pub use activeness::activeness;
pub use context::{Context, NoObserver, Observer};
pub use correlation::{median, pearson, slope, spearman};
pub use coverage::coverage;
pub use measurement::{Measured, Measurement, MeasurementEntry, Needs, Pairs, Scalar, Subject};
pub use measurements::{MEASUREMENTS, find};
pub use neuron_vector::{NeuronVector, NeuronVectors};
pub use neurons::{Neuron, NeuronLayer, Neurons};
pub use rating::der;
pub use tac::{Tac, TacForm, tac};
pub use tsbd_attack::{Evaluation, evaluate};
pub use unlearning::{Unlearned, UnlearnedModel, Unlearning};
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
    /// Images with and without the trigger that do not come in pairs.
    #[error("the images with the trigger and those without are not as many in each batch: give the same images twice")]
    Unpaired,
    /// A measurement was not given what it needs.
    #[error("the measurement needs {part} and was given none")]
    NotGiven {
        /// What is missing.
        part: &'static str,
    },
    /// A defense that was to be compared and ordered no neurons.
    #[error("`{method}` left no scores of neurons: take it out of `measures.coverage.methods`")]
    NoScores {
        /// The defense.
        method: String,
    },
    /// A loss that is no number.
    #[error("{stage}: {source}; lower `unlearning_learning_rate`")]
    Diverged {
        /// The stage that was running.
        stage: &'static str,
        /// Where it happened.
        source: Box<tsbd_nn::Error>,
    },
    /// The observer asked to stop.
    #[error("stopped on request during {stage}, before the measurement was done")]
    Stopped {
        /// The stage that was running.
        stage: &'static str,
    },
}
