//! Experiment files, cells and their keys, and the result store. No async, no training.
//!
//! An experiment file describes a grid. [`plan()`] reads it with its profile and the `--set` arguments, checks
//! everything that can be checked before anything is trained, and turns it into a [`Plan`]: the [`Cell`]s (units of
//! work, each with a content key) and the grid points that tables are made of. What a finished cell leaves is a
//! [`CellRecord`] in the [`Store`]; what is still to do is the pure function [`outstanding`] of a plan and of what the
//! store holds; [`result_rows`] joins the two.
//!
//! ```text
//! profile < experiment file < --set      layers of TOML, every value with its place      document, argument
//!            |  checked per grid point                                                    experiment/
//!          Plan { cells, points }                                                         plan
//!            |  outstanding(plan, found)
//!          Store: cells/<key>/{cell.toml, record.json, model.safetensors, attempts/}      store/
//!            |  result_rows(plan, store)
//!          ResultRow, and NeuronRows of those that have vectors                           row
//! ```

pub mod cell;
pub mod diagnostic;
mod document;
mod estimate;
pub mod parameters;
pub mod plan;
pub mod planning;
pub mod record;
pub mod registry;
pub mod row;
pub mod setting;
pub mod store;

pub use cell::{Cell, CellKey, CellKind};
pub use diagnostic::{Diagnostic, Place, Refusal, SourceText};
pub use parameters::{
    Augmentation, DatasetParameters, MethodParameters, ModelParameters, Precision, Schedule, TrainingParameters,
};
pub use plan::{Experiment, FigureSpec, GridPoint, Plan, TableSpec, outstanding};
pub use planning::{ExperimentSource, ImagesFrom, Request, SlurmParameters, plan};
pub use record::{
    Artefact, CellRecord, Failure, NEURONS, NWC, Outcome, OutcomeKind, Provenance, RECORD_FORMAT, RecordSummary,
    TracePoint, Versions,
};
pub use registry::ATTACKS;
pub use row::{NeuronRows, ResultRow, RowState, measurement_gives, neuron_rows, result_rows, unlearned_rows};
pub use setting::Setting;
pub use store::{
    Attempt, CoordinatorLock, Damage, ExportedResults, Found, Published, Store, StoreError, Survey, Verification,
};
pub use tsbd_analysis::NeuronVector;
