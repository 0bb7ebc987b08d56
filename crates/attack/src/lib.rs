//! What every backdoor attack shares: parameters and their checks, the choice of the poisoned images, the poisoned
//! training set, the triggered test set, and what is measured with it.
//!
//! An attack is a crate of its own (`crates/attacks/<name>`) that exports one [`AttackEntry`]. This crate trains
//! nothing: it gives the training loop a [`TrainingSource`], fixed images or an attack that controls the training
//! ([`control`]).

pub mod control;
pub mod entry;
pub mod evaluation;
pub mod export;
pub mod groundwork;
pub mod none;
pub mod overlay;
pub mod parameters;
pub mod picture;
pub mod selection;
pub mod trigger;

pub use control::{
    ControlledTraining, LEARNED_TRIGGER, LearnedTrigger, ScheduleChoice, TrainingControl, TrainingFacts, TrainingPlan,
};
pub use entry::{Attack, AttackEntry, PoisonFacts, Poisoner, TrainingSource};
pub use evaluation::{Evaluation, evaluate};
pub use groundwork::{Groundwork, GroundworkContext, GroundworkObserver, Material};
pub use none::NONE;
pub use overlay::{PoisonedImages, TriggeredTest};
pub use parameters::{DatasetFacts, LabelRule, ParameterError, Poisoning};
pub use selection::Candidates;
pub use trigger::{ImageTrigger, Stamp};

/// What can go wrong between a configured attack and its numbers.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A parameter that the data set does not allow.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// The data set could not be read or batched.
    #[error(transparent)]
    Data(#[from] tsbd_data::Error),
    /// The network failed.
    #[error(transparent)]
    Network(#[from] tsbd_nn::Error),
    /// A file could not be read or written (the message names it).
    #[error(transparent)]
    File(#[from] std::io::Error),
    /// An attack with a groundwork was to poison without it.
    #[error("the attack starts from what a cell of its own prepares, and was given nothing; `tsbd attack` makes it")]
    NoMaterial,
    /// What a groundwork made is not what the attack reads.
    #[error("the attack's groundwork has no tensor `{name}`, only {found}: remove its cell's folder and run again")]
    MaterialTensor {
        /// The tensor that was wanted.
        name: String,
        /// Those there are.
        found: String,
    },
    /// A groundwork that starts from a clean model was to be made without one.
    #[error("the attack's groundwork starts from a clean model, and was given none; `tsbd attack` trains it")]
    NoCleanModel,
    /// The observer wanted to stop.
    #[error("stopped during {stage}")]
    Stopped {
        /// What was being made.
        stage: String,
    },
}
