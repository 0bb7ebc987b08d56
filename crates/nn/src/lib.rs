//! What networks are made of and how they are trained: state dicts with PyTorch's names, modules and passes through
//! them, the optimiser, schedules, the training loop and its checkpoints.
//!
//! This crate knows no data set and no attack: it sees [`Batch`]es that a [`BatchSource`] makes. The networks
//! themselves are in `tsbd-models`; the differentiable operations in `tsbd-tensor`.

mod adam;
mod architecture;
mod atomic;
mod batch;
mod checkpoint;
mod error;
mod gradients;
mod initialization;
mod keeper;
mod model;
mod module;
mod network;
mod observed;
mod pass;
mod predictions;
pub mod random;
mod schedule;
mod sealed;
mod second_order;
mod sgd;
mod state;
mod storage;
#[cfg(test)]
mod tiny;
mod training;

pub use adam::{Adam, AdamConfig};
pub use architecture::Architecture;
pub use atomic::{temporary_file, write_atomically};
pub use batch::{Batch, BatchSource};
pub use checkpoint::Checkpoint;
pub use error::{Error, Result};
pub use gradients::ParameterGradients;
pub use keeper::Keeper;
pub use model::{LossOptions, Model, Step, count_correct};
pub use module::{Layer, Layout, Module, Role, Slot};
pub use network::Network;
pub use observed::Observed;
pub use pass::{Mode, Pass, Statistics};
pub use predictions::Predictions;
pub use random::{RandomStream, Streams};
pub use schedule::{Schedule, ScheduleState};
pub use sealed::{load_tensors, save_tensors, tensor_text, text_tensor};
pub use sgd::{Sgd, SgdConfig};
pub use state::{Entry, StateDict};
pub use training::{
    CrossEntropyStep, EpochReport, IgnoreProgress, Outcome, Preparation, StepReport, StepRule, TrainingConfig,
    TrainingObserver, TrainingSummary, describe_run, train, train_with,
};
pub use tsbd_tensor::Precision;
