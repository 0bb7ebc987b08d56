//! Data sets, transforms and batches.
//!
//! [`load`] gives a [`Dataset`] (8-bit images in memory, checked and with a digest), a [`Loader`] makes the batches that a network
//! is trained on or measured with. An attack or a defense puts its own [`ImageSource`] between the two. Adding a data set is a file
//! in `datasets` and a line in [`DATASETS`].
//!
//! Not here: what poisoned images look like (`tsbd-attack`), and networks (`tsbd-nn`, whose [`tsbd_nn::BatchSource`] is all that
//! training knows of this crate).

mod dataset;
mod datasets;
mod download;
mod error;
mod fetch;
#[cfg(test)]
mod golden;
mod images;
mod loader;
mod mersenne;
mod normalization;
pub mod numpy_random;
mod official;
mod pictures;
pub mod python_random;
mod resident;
pub mod resize;
mod root;

pub use dataset::{DATASETS, Dataset, DatasetEntry, DatasetParameters, entry, load};
pub use error::{Error, Result};
pub use fetch::{FetchProgress, Fetched, fetch};
pub use images::{CHANNELS, ImageSource, Images, Subset};
pub use loader::{Augmentation, Loader, Order};
pub use normalization::{LevelTable, Normalization};
pub use official::{Archive, FileReport, FileState, Official, OfficialFile, verify};
pub use pictures::{Picture, read_rgb, write_png};
pub use root::DataRoot;
