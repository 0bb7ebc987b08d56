//! The results folder.
//!
//! ```text
//! results/
//!   coordinator.lock               held by the process that runs a grid; says who it is
//!   status.json                    what it is doing (the orchestrator writes it)
//!   exported.txt                   if results were exported to this folder: models are left out, nothing is run here
//!   index                          what was read of very many records; may be removed at any time
//!   cells/<key>/
//!     cell.toml                    the cell's parameters, readable
//!     record.json                  the result; exists only whole, never changes
//!     model.safetensors, ...       the record's artefacts, with their BLAKE3 in the record
//!     failure.json                 why the last attempt failed, if it did
//!     publication/<digest>/        a result that is being published; gone once it is
//!     attempts/<n>-<pid>/          private folder of one process, which holds its `lock`
//!       checkpoint.safetensors     where the next attempt continues; work in stages: checkpoint.<stage>.safetensors
//!       log                        what the process wrote on standard error
//! ```
//!
//! Publication ends with a hard link of the complete, synced record; that link is the only thing that makes a result.
//! Whatever happens before it (a kill, a full disk) leaves the cell outstanding; whatever happens after it cannot
//! change the record, because a link never overwrites. No lock is needed for it, so processes of several machines may
//! work on one cell. Reading recomputes the key from the parameters, the seal of the record and the digests of its
//! artefacts, so damage reads as "not there" and is reported, never as a result.

mod attempt;
mod damage;
mod export;
mod index;
mod lock;
mod publication;
mod runs;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use fs_err as fs;

pub use attempt::{Attempt, AttemptId};
pub use damage::Damage;
pub use export::ExportedResults;
pub use lock::{CoordinatorLock, LockHolder, host_name};
pub use publication::Published;
pub use runs::Runs;

use self::index::{Identity, Index, Indexed, NewLine};
use crate::cell::{Cell, CellKey};
use crate::plan::Plan;
use crate::record::{CellRecord, Failure, OutcomeKind, RecordError, RecordSummary};

/// A results folder. Opening it creates nothing.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    /// Whether results were exported to it, without their models.
    is_exported: bool,
}

/// What can go wrong with a results folder.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or folder could not be read or written (the message names it).
    #[error("{0}; nothing that was already published is affected")]
    File(#[from] io::Error),
    /// The disk is full.
    #[error(
        "{0}: the disk is full; free some space or give another folder with --results, and run the same command again: it continues where it was"
    )]
    DiskFull(#[source] io::Error),
    /// Another coordinator works here.
    #[error("{} is in use by {holder}; wait for it, stop it, or give another folder with --results", root.display())]
    InUse {
        /// The results folder.
        root: PathBuf,
        /// Who holds it.
        holder: LockHolder,
    },
    /// There is no such cell.
    #[error("{} does not exist: no plan that was run here has the cell {key}", path.display())]
    NoSuchCell {
        /// The file that would describe it.
        path: PathBuf,
        /// Its key.
        key: CellKey,
    },
    /// `cell.toml` is damaged.
    #[error("{} does not describe the cell it lies in ({reason}); run the experiment again to have it written anew", path.display())]
    BadCell {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The record to be published is no valid record.
    #[error("the result of cell {key} cannot be published: {source}")]
    Unpublishable {
        /// The cell.
        key: CellKey,
        /// What is wrong with the record.
        source: RecordError,
    },
    /// The result that something starts from is not there.
    #[error("cell {key} has no result to start from ({reason}); run the experiment again to have it made")]
    NotDone {
        /// The cell.
        key: CellKey,
        /// What was found instead.
        reason: String,
    },
    /// Something is to be run in a folder that results were exported to.
    #[error("{} holds exported results, without their models: nothing can be run there; give another folder with --results", root.display())]
    WithoutModels {
        /// The folder.
        root: PathBuf,
    },
    /// Results are to be exported to a folder of something else.
    #[error("{} is there already, and no results were exported to it before; give a new folder with --out", root.display())]
    NotExported {
        /// The folder.
        root: PathBuf,
    },
    /// Results are to be exported to a folder that has others.
    #[error("{} is of another run of the same cell; give a new folder with --out", path.display())]
    OtherResult {
        /// The file that differs.
        path: PathBuf,
    },
    /// Somebody else works in this attempt's folder.
    #[error("{} is in use by another process", path.display())]
    AttemptInUse {
        /// The attempt's folder.
        path: PathBuf,
    },
}

impl StoreError {
    /// Whether the disk was full.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::DiskFull(_))
    }
}

/// Sorts an error of the file system: a full disk has its own way out.
pub(crate) fn file_error(error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::DiskFull(error),
        _ => StoreError::File(error),
    }
}

/// How much of a record's artefacts is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verification {
    /// That they are there and have the right length: for reading tables.
    Sizes,
    /// Their contents: before something is built on them.
    Digests,
}

/// What the store holds of a cell: of a result the record, or a part of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Found<R = CellRecord> {
    /// Neither a result nor a failure.
    Nothing,
    /// A result.
    Done(Box<R>),
    /// The last attempt failed.
    Failed(Box<Failure>),
    /// A record that cannot be believed; counts as not there.
    Damaged(Damage),
}

/// What the store holds of a plan.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// The outcomes, for [`crate::outstanding`].
    pub found: BTreeMap<CellKey, OutcomeKind>,
    /// Records that cannot be believed.
    pub damaged: Vec<Damage>,
}

impl Store {
    /// The results folder `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        Self { is_exported: root.join(export::NOTE).exists(), root }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a cell.
    pub fn cell_directory(&self, key: &CellKey) -> PathBuf {
        self.root.join("cells").join(key.as_str())
    }

    /// Path of a published file of a cell, e.g. `model.safetensors`.
    pub fn artefact(&self, key: &CellKey, name: &str) -> PathBuf {
        self.cell_directory(key).join(name)
    }

    /// Writes `cell.toml`, from which `tsbd cell <key>` reads what to do.
    pub fn describe(&self, cell: &Cell) -> Result<CellKey, StoreError> {
        let key = cell.key();
        let path = self.artefact(&key, "cell.toml");
        if self.read_cell(&key).is_err() {
            write_atomically(&path, cell.to_toml().as_bytes())?;
        }
        Ok(key)
    }

    /// Reads `cell.toml` and checks that it describes the cell it lies in.
    pub fn read_cell(&self, key: &CellKey) -> Result<Cell, StoreError> {
        let path = self.artefact(key, "cell.toml");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::NoSuchCell { path, key: key.clone() });
            }
            Err(error) => return Err(file_error(error)),
        };
        let cell = match Cell::from_toml(&text) {
            Ok(cell) => cell,
            Err(error) => return Err(StoreError::BadCell { path, reason: error.message().to_owned() }),
        };
        let found = cell.key();
        if &found != key {
            return Err(StoreError::BadCell { path, reason: format!("its parameters have the key {found}") });
        }
        Ok(cell)
    }

    /// What is there of a cell. Reads, never writes.
    pub fn look(&self, key: &CellKey, verification: Verification) -> Result<Found, StoreError> {
        let path = self.artefact(key, "record.json");
        match fs::read(&path) {
            Ok(bytes) => {
                return Ok(match damage::check(self, key, &bytes, verification)? {
                    Ok(record) => Found::Done(Box::new(record)),
                    Err(reason) => Found::Damaged(Damage { key: key.clone(), path, reason }),
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(file_error(error)),
        }
        Ok(self.failure(key)?.map_or(Found::Nothing, |failure| Found::Failed(Box::new(failure))))
    }

    /// [`Self::look`] at the sizes of artefacts, and at the record itself only if it is not as `index` knows it; with the
    /// line that the index lacks.
    fn glance(&self, key: &CellKey, index: &Index) -> Result<(Found<RecordSummary>, Option<NewLine>), StoreError> {
        let identity = fs::metadata(self.artefact(key, "record.json")).ok().map(|metadata| Identity::of(&metadata));
        if let Some(Indexed { artefacts, summary }) = identity.and_then(|identity| index.get(key, identity))
            && damage::sizes(self, key, artefacts.iter().map(|(name, bytes)| (name.as_str(), *bytes)))?.is_ok()
        {
            return Ok((Found::Done(Box::new(summary)), None));
        }
        Ok(match self.look(key, Verification::Sizes)? {
            Found::Done(record) => {
                let artefacts =
                    record.artefacts.iter().map(|(name, artefact)| (name.clone(), artefact.bytes)).collect();
                let summary = RecordSummary::from(*record);
                let line = identity.filter(Identity::is_settled).map(|identity| NewLine {
                    key: key.clone(),
                    identity,
                    indexed: Indexed { artefacts, summary: summary.clone() },
                });
                (Found::Done(Box::new(summary)), line)
            }
            Found::Nothing => (Found::Nothing, None),
            Found::Failed(failure) => (Found::Failed(failure), None),
            Found::Damaged(damage) => (Found::Damaged(damage), None),
        })
    }

    /// What `keep` keeps of what is there of each of these cells, in their order; artefacts have the right sizes. Looks on all cores;
    /// where there are very many records, it notes what it read of them for the next time.
    pub fn look_at_all<'a, T: Send>(
        &self,
        keys: impl IntoIterator<Item = &'a CellKey>,
        keep: impl Fn(Found<RecordSummary>) -> T + Sync,
    ) -> Result<Vec<(CellKey, T)>, StoreError> {
        let index = Index::read(self);
        let glances = on_all_cores(keys, |key| {
            let (found, new) = self.glance(key, &index)?;
            Ok((keep(found), new))
        })?;
        let mut new = Vec::new();
        let kept = glances.into_iter().map(|(key, (kept, line))| {
            new.extend(line);
            (key, kept)
        });
        let kept = kept.collect();
        index.extend(self, &new);
        Ok(kept)
    }

    /// What is there of every cell of a plan.
    pub fn survey(&self, plan: &Plan, verification: Verification) -> Result<Survey, StoreError> {
        let mut survey = Survey::default();
        let light = |found| match found {
            Found::Nothing => Ok(None),
            Found::Done(_) => Ok(Some(OutcomeKind::Done)),
            Found::Failed(_) => Ok(Some(OutcomeKind::Failed)),
            Found::Damaged(damage) => Err(damage),
        };
        let all = on_all_cores(plan.cells.keys(), |key| Ok(light(self.look(key, verification)?)))?;
        for (key, found) in all {
            match found {
                Ok(outcome) => survey.found.extend(outcome.map(|outcome| (key, outcome))),
                Err(damage) => survey.damaged.push(damage),
            }
        }
        Ok(survey)
    }

    /// The result of a cell, its artefacts verified; an error if there is none.
    pub fn result(&self, key: &CellKey) -> Result<CellRecord, StoreError> {
        let reason = match self.look(key, Verification::Digests)? {
            Found::Done(record) => return Ok(*record),
            Found::Nothing => "it never finished".to_owned(),
            Found::Failed(failure) => format!("it failed: {}", failure.reason),
            Found::Damaged(damage) => damage.to_string(),
        };
        Err(StoreError::NotDone { key: key.clone(), reason })
    }

    /// Why the last attempt of a cell failed, if it did. A `failure.json` that cannot be read is no failure: it is a
    /// message for people, and nothing is built on it.
    pub fn failure(&self, key: &CellKey) -> Result<Option<Failure>, StoreError> {
        match fs::read(self.artefact(key, "failure.json")) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file_error(error)),
        }
    }

    /// Notes why an attempt failed. The cell stays outstanding.
    pub fn write_failure(&self, failure: &Failure) -> Result<(), StoreError> {
        let text = serde_json::to_string_pretty(failure).expect("a failure has string keys only");
        write_atomically(&self.artefact(&failure.key, "failure.json"), text.as_bytes())
    }
}

/// What `look` finds of each of these cells, the cells shared out among all cores; the first error otherwise.
fn on_all_cores<'a, T: Send>(
    keys: impl IntoIterator<Item = &'a CellKey>,
    look: impl Fn(&CellKey) -> Result<T, StoreError> + Sync,
) -> Result<Vec<(CellKey, T)>, StoreError> {
    let keys: Vec<&CellKey> = keys.into_iter().collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let look = |keys: &[&CellKey]| -> Result<Vec<(CellKey, T)>, StoreError> {
        keys.iter().map(|&key| Ok((key.clone(), look(key)?))).collect()
    };
    let look = &look;
    std::thread::scope(|scope| {
        let shares = keys.chunks(keys.len().div_ceil(cores).max(1));
        let shares: Vec<_> = shares.map(|keys| scope.spawn(move || look(keys))).collect();
        let mut found = Vec::with_capacity(keys.len());
        for share in shares {
            found.extend(share.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(found)
    })
}

/// Writes a file whole or not at all, as [`tsbd_nn::write_atomically`]. Creates the folder.
pub fn write_atomically(path: &Path, contents: &[u8]) -> Result<(), StoreError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(file_error)?;
    }
    tsbd_nn::write_atomically(path, &[contents]).map_err(|error| {
        file_error(match error {
            tsbd_nn::Error::File { source, .. } => {
                io::Error::new(source.kind(), format!("cannot write {}: {source}", path.display()))
            }
            error => io::Error::other(error),
        })
    })
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

/// BLAKE3 of a file, hexadecimal.
pub(crate) fn file_digest(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut file = fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 17];
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(hasher.finalize().to_hex().to_string());
        }
        hasher.update(&buffer[..length]);
    }
}
