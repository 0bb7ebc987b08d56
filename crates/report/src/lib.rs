//! Tables and figures as pure functions of results. Reads nothing, trains nothing; the only crate that knows Polars.
//!
//! ```text
//! &[ResultRow] --- table ---> Table      per attack a row, per defense ACC, ASR, DER    table, aggregate
//!              \-- long ----> LongTable  one row per finished cell                     long
//! &[NeuronRows] --- neurons -> NeuronTable  one row per neuron                          neurons
//!                               |
//!                    render(Format, Emphasis) -> bytes                                  render/
//!
//! Table --- curves, bars ---> Chart --- draw ---> Drawing (SVG, PNG)                     figure, chart/
//!
//! &[NeuronRows] --- NeuronFigure ---> Chart                                              neuron_figure
//!
//! Page --- html ---> one HTML file with tables, figures and cells                        page/
//!
//! PictureGrid -- draw ---> Picture      pictures beside each other, with titles         picture_grid, lettering
//! ```
//!
//! The same rows always give the same bytes: no clock, no terminal width, no hash order. Metrics come in as fractions
//! and leave as percent. A table never hides what is not there: a point without a result says `missing` or `failed`,
//! the heading counts them, and an average over an incomplete set is itself missing.

mod aggregate;
mod axis;
pub mod chart;
mod contest;
mod error;
mod figure;
mod format;
mod lettering;
mod long;
mod metric;
mod neuron_figure;
mod neurons;
pub mod page;
mod picture_grid;
mod published;
mod render;
mod table;
mod titles;

pub use error::{Error, Result};
pub use format::{Emphasis, Format};
pub use long::{COLUMNS, ColumnDescription, LongTable, long};
pub use metric::{Better, Metric};
pub use neuron_figure::NeuronFigure;
pub use neurons::{NEURON_COLUMNS, NeuronTable, neurons};
pub use picture_grid::{GridColumn, PictureGrid, remark};
pub use table::{Column, Count, Entry, FailedCell, Line, Panel, Table, Unit, Value, table};
pub use titles::Titles;

#[cfg(test)]
mod sample;
