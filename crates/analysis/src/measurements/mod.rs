//! The measurements: a file each.

pub mod activations;
pub mod activeness;
pub mod coverage;
pub mod nwc;
pub mod tac;

use crate::MeasurementEntry;

/// All measurements. A new one is a file here and a line below.
pub static MEASUREMENTS: &[&MeasurementEntry] =
    &[&nwc::NWC, &activeness::ACTIVENESS, &activations::ACTIVATIONS, &tac::TAC, &coverage::COVERAGE];

/// The measurement named `name`.
pub fn find(name: &str) -> Option<&'static MeasurementEntry> {
    MEASUREMENTS.iter().copied().find(|entry| entry.name == name)
}
