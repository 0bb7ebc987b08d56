//! What can go wrong when a table or a figure is made.

use crate::format::Format;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a table or a figure cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no grid point at all.
    #[error("there are no rows to make a table of: the experiment's grid is empty")]
    NoRows,
    /// Rows of different experiments or profiles.
    #[error(
        "rows of two different {field}s, `{first}` and `{second}`, never share a table: make one table of each, or use the long form"
    )]
    Mixed {
        /// `experiment` or `profile`.
        field: &'static str,
        /// Its value in the first row.
        first: String,
        /// Another value.
        second: String,
    },
    /// `[table] rows` or `columns` names an axis that the grid does not have.
    #[error("[table] {field} = \"{axis}\": the grid has no such axis; it has {known}")]
    UnknownAxis {
        /// `rows` or `columns`.
        field: &'static str,
        /// The name given.
        axis: String,
        /// The names there are, separated by commas.
        known: String,
    },
    /// Rows and columns are the same axis.
    #[error("[table] rows and columns are both \"{axis}\": give two different axes")]
    SameAxis {
        /// The axis.
        axis: String,
    },
    /// `[table] metrics` is empty.
    #[error("[table] metrics is empty: name at least one, for example metrics = [\"acc\", \"asr\", \"der\"]")]
    NoMetrics,
    /// A form that cannot be written in a format.
    #[error("the long form cannot be written as {format}: use {way_out}")]
    Unsupported {
        /// The format asked for.
        format: Format,
        /// Formats that can.
        way_out: &'static str,
    },
    /// Not a format.
    #[error("`{given}` is no table format: use one of {known}")]
    UnknownFormat {
        /// What was given.
        given: String,
        /// The formats there are, separated by commas.
        known: String,
    },
    /// Curves over something that is no number.
    #[error(
        "curves over {axis}: `{value}` is no {}number; give [table] rows an axis of such numbers, or [figure] kind = \"bars\"",
        if *.logarithmic { "positive " } else { "" }
    )]
    NoNumber {
        /// The axis.
        axis: String,
        /// Its value.
        value: String,
        /// Whether the axis is logarithmic.
        logarithmic: bool,
    },
    /// A figure of a measurement that no cell has.
    #[error(
        "no cell of the experiment has the measurement `{measure}`: ask for it with [grid] measure = [\"{measure}\"], and run it"
    )]
    NotMeasured {
        /// Its name.
        measure: &'static str,
    },
    /// Published numbers that cannot be shown.
    #[error("published numbers cannot be shown beside this table: {0}")]
    Published(String),
    /// A chart that cannot be drawn.
    #[error("drawing the chart failed: {0}")]
    Chart(String),
    /// Polars refused.
    #[error("building the table failed in Polars: {0}")]
    Polars(#[from] polars::error::PolarsError),
    /// Writing JSON failed.
    #[error("writing the table as JSON failed: {0}")]
    Json(#[from] serde_json::Error),
}
