//! Defenses that repair a backdoored model with a few clean images.
//!
//! Every defense is an entry of [`DEFENSES`]: parameters (shared ones in [`DefenseCommon`], own ones in its module), a
//! check before anything runs, and [`Defense::repair`], which gives a new model and says what it changed. No defense
//! sees the trigger. Those that the literature tunes on the test sets have `selection = "oracle"`, which does the same,
//! and `selection = "validation"`, which uses clean images held out of the subset.

pub mod anp;
pub mod clean_subset;
pub mod clp;
pub mod context;
#[cfg(test)]
mod contract;
pub mod entry;
pub mod fp;
pub mod ft;
pub mod ft_sam;
pub mod ibau;
mod masks;
pub mod nad;
pub mod nc;
pub mod pruning;
pub mod rnp;
pub mod selection;
#[cfg(test)]
mod tiny;
mod training;
pub mod tsbd;

pub use clean_subset::CleanSubset;
pub use context::{Context, DefenseObserver, NoObserver, Progress};
pub use entry::{ChangedNeuron, Defense, DefenseCommon, DefenseEntry, Repaired, TracePoint};
pub use selection::{Selection, ThresholdSelection};
pub use training::FineTuningSchedule;
pub use tsbd_analysis::{UnlearnedModel, Unlearning};
pub use tsbd_attack::{DatasetFacts, Evaluation, ParameterError};

/// All defenses, in the order of the paper's tables.
pub static DEFENSES: &[&DefenseEntry] =
    &[&ft::FT, &fp::FP, &nad::NAD, &nc::NC, &anp::ANP, &clp::CLP, &ibau::IBAU, &rnp::RNP, &ft_sam::FT_SAM, &tsbd::TSBD];

/// The defense named `name`.
pub fn find(name: &str) -> Option<&'static DefenseEntry> {
    DEFENSES.iter().copied().find(|entry| entry.name == name)
}

/// What can go wrong during a repair.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A parameter that the network or the data set does not allow.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// A measurement on the test sets failed.
    #[error(transparent)]
    Evaluation(#[from] tsbd_attack::Error),
    /// A measurement inside the network failed.
    #[error(transparent)]
    Analysis(tsbd_analysis::Error),
    /// The network or its training failed.
    #[error(transparent)]
    Network(#[from] tsbd_nn::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] tsbd_tensor::Error),
    /// The observer asked to stop.
    #[error("stopped on request during {stage}, before the repair was done")]
    Stopped {
        /// The stage that was running.
        stage: &'static str,
    },
    /// A loss that is no number.
    #[error("{stage}: {source}; lower `{parameter}`")]
    Diverged {
        /// The stage that was running.
        stage: &'static str,
        /// The parameter that holds its learning rate.
        parameter: &'static str,
        /// Where it happened.
        source: Box<tsbd_nn::Error>,
    },
}

impl From<tsbd_analysis::Error> for Error {
    fn from(error: tsbd_analysis::Error) -> Error {
        match error {
            tsbd_analysis::Error::Stopped { stage } => Error::Stopped { stage },
            error => Error::Analysis(error),
        }
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Error {
        Error::Network(error.into())
    }
}
