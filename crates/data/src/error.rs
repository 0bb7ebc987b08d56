//! What can go wrong with data, said so that the reader knows the file or field, what was found and what to do.

use std::{io, path::PathBuf};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that this crate refuses or fails at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No registry entry has this name.
    #[error("there is no data set named \"{name}\"; known are: {known}")]
    UnknownDataset {
        /// The name asked for.
        name: String,
        /// The names in the registry.
        known: String,
    },
    /// None of the places holds the data set's folder.
    #[error("the data set {name} is not on this machine: looked for {}; {way_out}", list(.looked_for))]
    NotFound {
        /// The data set's name in the registry.
        name: &'static str,
        /// The folders that were looked for, in order.
        looked_for: Vec<PathBuf>,
        /// What to do about it.
        way_out: String,
    },
    /// A data set's parameter is impossible.
    #[error("{field} = {value}: {reason}; {way_out}")]
    Parameter {
        /// The dotted key, such as `data.train_images`.
        field: &'static str,
        /// The value given.
        value: String,
        /// Why it cannot be.
        reason: String,
        /// What to do about it.
        way_out: String,
    },
    /// A file has another length than its format demands.
    #[error("{}: expected {expected} bytes, found {found}; {way_out}", .file.display())]
    WrongLength {
        /// The file.
        file: PathBuf,
        /// Bytes there should be.
        expected: u64,
        /// Bytes there are.
        found: u64,
        /// What to do about it.
        way_out: String,
    },
    /// A file's contents are not the official ones.
    #[error("{}: the contents are not the official ones (expected SHA-256 {expected}, found {found}); {way_out}", .file.display())]
    WrongDigest {
        /// The file, or the address it came from.
        file: PathBuf,
        /// The official SHA-256, in hexadecimal.
        expected: String,
        /// The SHA-256 found.
        found: String,
        /// What to do about it.
        way_out: String,
    },
    /// A record's label is out of range.
    #[error("{}: record {record} has label {label}, but there are only {classes} classes; {way_out}", .file.display())]
    Label {
        /// The file.
        file: PathBuf,
        /// The record's position in its file, from 0.
        record: usize,
        /// The label found.
        label: u32,
        /// Number of classes; labels are `0..classes`.
        classes: usize,
        /// What to do about it.
        way_out: String,
    },
    /// The data set has nothing to download.
    #[error("the data set {name} is not downloaded: {reason}")]
    NotDownloadable {
        /// The data set's name in the registry.
        name: &'static str,
        /// Why there is nothing to fetch.
        reason: &'static str,
    },
    /// A download did not succeed.
    #[error("cannot download {url}: {reason}; {way_out}")]
    Download {
        /// The address.
        url: String,
        /// What happened.
        reason: String,
        /// What to do about it.
        way_out: String,
    },
    /// An archive lacks a file that the data set consists of.
    #[error("{}: the archive has no {missing}; {way_out}", .archive.display())]
    Incomplete {
        /// The archive.
        archive: PathBuf,
        /// The file that should be inside.
        missing: String,
        /// What to do about it.
        way_out: String,
    },
    /// A picture cannot be decoded or encoded.
    #[error("{}: {source}", .path.display())]
    Picture {
        /// The picture file.
        path: PathBuf,
        /// What the codec says.
        source: image::ImageError,
    },
    /// A file cannot be read or written; the message carries its path.
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn list(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}
