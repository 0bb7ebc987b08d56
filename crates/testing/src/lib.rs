//! What tests of several crates share: values that the programs in `tools/reference` computed, and the smallest networks.
//! A development dependency only, and a part of no program.

// What is missing or damaged here ends a test, and the message says where.
#![allow(clippy::unwrap_used)]

mod golden;
pub mod groundwork;
mod network;
mod shelf;
pub mod tiny;

pub use golden::{Golden, golden_path, numbers};
pub use network::{convolution, network};
pub use shelf::Shelf;
