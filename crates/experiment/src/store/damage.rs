//! Records that cannot be believed: found when read, kept aside before the cell is run again.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;

use super::publication::RECORD;
use super::{Store, StoreError, Verification, file_digest, file_error, sync_folder};
use crate::cell::CellKey;
use crate::record::CellRecord;

/// A record that cannot be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The cell.
    pub key: CellKey,
    /// The record.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is no valid result: {}; the cell counts as not done", self.path.display(), self.reason)
    }
}

impl Store {
    /// Moves a damaged record to a name beside it (`record.json.damaged-1`, ...), where nobody takes it for a result
    /// and somebody can look at it. Gives the new name, or `None` if it is no longer there: since it was read, another
    /// process may have published a result in its place, which stays.
    pub fn set_aside(&self, damage: &Damage) -> Result<Option<PathBuf>, StoreError> {
        self.set_record_aside(&damage.key)
    }

    /// [`Store::set_aside`] for whatever record the cell has, if it has one that cannot be believed.
    pub(super) fn set_record_aside(&self, key: &CellKey) -> Result<Option<PathBuf>, StoreError> {
        let path = self.artefact(key, RECORD);
        let damaged = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(file_error(error)),
        };
        if check(self, key, &damaged, Verification::Digests)?.is_ok() {
            return Ok(None);
        }
        let aside = unused_name(&path).map_err(file_error)?;
        let put_aside = || match fs::rename(&path, &aside) {
            Ok(()) if fs::read(&aside)? == damaged => Ok(true),
            // Another took its place meanwhile, and has it back.
            Ok(()) => match fs::hard_link(&aside, &path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                _ => Ok(false),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        };
        let is_aside = put_aside().map_err(file_error)?;
        if !is_aside {
            fs::remove_file(&aside).map_err(file_error)?;
        }
        sync_folder(path.parent().unwrap_or(Path::new("."))).map_err(file_error)?;
        Ok(is_aside.then_some(aside))
    }
}

/// Takes the first name for a damaged record at `path` that nothing was set aside under.
fn unused_name(path: &Path) -> io::Result<PathBuf> {
    let mut number = 1;
    loop {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{number}"));
        match fs::OpenOptions::new().write(true).create_new(true).open(&name) {
            Ok(_) => return Ok(name.into()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
        }
    }
}

/// The record in `bytes` if it and its artefacts can be believed, or what is wrong.
pub(super) fn check(
    store: &Store,
    key: &CellKey,
    bytes: &[u8],
    verification: Verification,
) -> Result<Result<CellRecord, String>, StoreError> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => return Ok(Err(format!("it is no text: {error}"))),
    };
    let record = match CellRecord::from_json(text, key) {
        Ok(record) => record,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let lengths = record.artefacts.iter().map(|(name, artefact)| (name.as_str(), artefact.bytes));
    if let Err(reason) = sizes(store, key, lengths)? {
        return Ok(Err(reason));
    }
    if verification == Verification::Digests {
        for (name, artefact) in record.artefacts.iter().filter(|(name, _)| !store.leaves_out(name)) {
            if file_digest(&store.artefact(key, name)).map_err(file_error)? != artefact.blake3 {
                return Ok(Err(format!("its file {name} was changed after it was published")));
            }
        }
    }
    Ok(Ok(record))
}

/// Whether the artefacts of a cell, given with their lengths, are there, or what is wrong.
pub(super) fn sizes<'a>(
    store: &Store,
    key: &CellKey,
    artefacts: impl Iterator<Item = (&'a str, u64)>,
) -> Result<Result<(), String>, StoreError> {
    for (name, expected) in artefacts.filter(|(name, _)| !store.leaves_out(name)) {
        let length = match fs::metadata(store.artefact(key, name)) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Err(format!("its file {name} is missing")));
            }
            Err(error) => return Err(file_error(error)),
        };
        if length != expected {
            return Ok(Err(format!("its file {name} has {length} bytes instead of {expected}")));
        }
    }
    Ok(Ok(()))
}
