//! Publication of a result.
//!
//! Steps, each of which may be the last one before a kill: sync the artefacts, move them with the complete record into a
//! folder of their own, rename the folder around it to `publication/` in the cell's folder, sync, link its files beside it,
//! the record last, sync, remove the folder. Until the record's link there is no result.
//!
//! Processes of several machines may publish the same cell at the same time, and locks need not reach from one machine to
//! another. So there is none: a folder cannot be renamed to one that is there and not empty, which makes one of them the
//! first. Whoever comes later puts that one's files into place, not its own: all link the same files, so the artefacts of one
//! never stand beside the record of another, and what a killed process has begun is brought to its end by the next. A
//! damaged record is set aside before the first file is placed: it must not be whole again with files of another.
//!
//! Between two steps of a process, others may end the publication that it helps with, and yet another may begin its own. So
//! the files lie in `publication/DIGEST/`, named by their record: whoever helps with one finds none of its files any more,
//! instead of those of the other.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fs_err as fs;

use super::attempt::Attempt;
use super::damage::check;
use super::{StoreError, Verification, file_digest, file_error, sync_folder};
use crate::cell::CellKey;
use crate::record::{Artefact, CellRecord};

/// Whose result counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// This one.
    Now,
    /// Another process was first. Its result stays; this one is dropped.
    Before,
}

/// The point a publication has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    SyncArtefacts,
    Gather,
    WriteRecord,
    Claim,
    SyncClaim,
    SetAside,
    Place,
    SyncPlaced,
    Link,
    SyncLink,
    RemoveClaim,
    RemoveFailure,
}

/// Told before each step; an error leaves the disk as a kill at that point would.
type Watch<'a> = &'a mut dyn FnMut(Step) -> Result<(), StoreError>;

/// Name of the record among the published files.
pub(super) const RECORD: &str = "record.json";

/// Name of the folder around a result that is being published.
const CLAIM: &str = "publication";

impl Attempt {
    /// Publishes the cell's result with the files `artefacts` of the attempt's folder, whose lengths and digests are
    /// written into the record. An existing result wins. After an error the cell has no result, or a whole one.
    pub fn publish(&self, record: CellRecord, artefacts: &[&str]) -> Result<Published, StoreError> {
        self.publish_watched(record, artefacts, &mut |_| Ok(()))
    }

    /// [`Attempt::publish`], telling `before` each step before it is taken.
    pub(super) fn publish_watched(
        &self,
        mut record: CellRecord,
        artefacts: &[&str],
        before: Watch<'_>,
    ) -> Result<Published, StoreError> {
        let directory = self.store.cell_directory(&self.key);
        before(Step::SyncArtefacts)?;
        record.artefacts = BTreeMap::new();
        for name in artefacts {
            let path = self.directory().join(name);
            let file = fs::File::open(&path).map_err(file_error)?;
            file.sync_all().map_err(file_error)?;
            let bytes = file.metadata().map_err(file_error)?.len();
            let blake3 = file_digest(&path).map_err(file_error)?;
            record.artefacts.insert((*name).to_owned(), Artefact { bytes, blake3 });
        }
        let unpublishable = |source| StoreError::Unpublishable { key: self.key.clone(), source };
        let text = record.to_json().map_err(unpublishable)?;
        // The record is read back before anything is moved: what could not be read later is not published now.
        CellRecord::from_json(&text, &self.key).map_err(unpublishable)?;

        before(Step::Gather)?;
        let name = blake3::hash(text.as_bytes()).to_string();
        let gathered = self.directory().join(CLAIM);
        // What an earlier process of this attempt had gathered when it was killed.
        fs::remove_dir_all(&gathered).or_else(unless_gone).map_err(file_error)?;
        fs::create_dir_all(gathered.join(&name)).map_err(file_error)?;
        for artefact in artefacts {
            let moved = gathered.join(&name).join(artefact);
            fs::rename(self.directory().join(artefact), moved).map_err(file_error)?;
        }
        before(Step::WriteRecord)?;
        super::write_atomically(&gathered.join(&name).join(RECORD), text.as_bytes())?;

        before(Step::Claim)?;
        let claimed = directory.join(CLAIM).join(&name);
        let claim = loop {
            match fs::rename(&gathered, directory.join(CLAIM)) {
                Ok(()) => break claimed.clone(),
                Err(error) if is_taken(&error) => {}
                // A file system of a network may ask twice,
                Err(error) if is_gone(&error) && claimed.exists() => break claimed.clone(),
                // and the attempts of a cell that is done are removed.
                Err(error) if is_gone(&error) && self.is_published()? => return Ok(Published::Before),
                Err(error) => return Err(file_error(error)),
            }
            let begun = begun(&directory)?;
            // Somebody is publishing, or was killed while he did.
            let mut whole = None;
            for claim in &begun {
                if is_whole(claim, &self.key)? {
                    whole = Some(claim.clone());
                }
            }
            if let Some(claim) = whole {
                break claim;
            }
            // Half of one that is being removed, because its record is in place,
            if self.is_published()? {
                return Ok(Published::Before);
            }
            // or half of one whose process was killed, or one that was damaged since.
            for claim in begun {
                remove_claim(&claim)?;
            }
            remove_emptied(&directory.join(CLAIM)).map_err(file_error)?;
            std::thread::sleep(Duration::from_millis(10));
        };
        before(Step::SyncClaim)?;
        sync_folder(&directory).map_err(file_error)?;
        if self.is_published()? {
            // Perhaps this very one: others that came later have brought it to its end.
            let is_own =
                claim == claimed && fs::read(directory.join(RECORD)).is_ok_and(|found| found == text.as_bytes());
            before(Step::RemoveClaim)?;
            remove_claim(&claim)?;
            return Ok(if is_own { Published::Now } else { Published::Before });
        }
        before(Step::SetAside)?;
        self.store.set_record_aside(&self.key)?;
        match self.complete(&claim, before) {
            // Its files are gone because somebody else has brought it to its end.
            Err(StoreError::File(error)) if is_gone(&error) && self.is_published_by_now()? => {}
            outcome => outcome?,
        }
        before(Step::RemoveFailure)?;
        match fs::remove_file(directory.join("failure.json")) {
            Err(error) if !is_gone(&error) => Err(file_error(error)),
            _ => Ok(if claim == claimed { Published::Now } else { Published::Before }),
        }
    }
}

impl Attempt {
    /// Whether the cell has a record that is whole, with the files that it tells of.
    fn is_published(&self) -> Result<bool, StoreError> {
        match fs::read(self.store.artefact(&self.key, RECORD)) {
            Ok(bytes) => Ok(check(&self.store, &self.key, &bytes, Verification::Digests)?.is_ok()),
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) => Err(file_error(error)),
        }
    }

    /// The same, if need be in a moment: another process may have taken the record away to look at it ([`Store::set_aside`]).
    fn is_published_by_now(&self) -> Result<bool, StoreError> {
        for _ in 0..10 {
            if self.is_published()? {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(false)
    }

    /// Puts the files of a claimed publication into place, where no record is. Any number of processes may do so at the same
    /// time.
    fn complete(&self, claim: &Path, before: Watch<'_>) -> Result<(), StoreError> {
        let directory = self.store.cell_directory(&self.key);
        let text = fs::read_to_string(claim.join(RECORD)).map_err(file_error)?;
        let unpublishable = |source| StoreError::Unpublishable { key: self.key.clone(), source };
        let record = CellRecord::from_json(&text, &self.key).map_err(unpublishable)?;
        for name in record.artefacts.keys() {
            before(Step::Place)?;
            let spare = self.directory().join(name);
            place(&claim.join(name), &directory.join(name), &spare).map_err(file_error)?;
        }
        before(Step::SyncPlaced)?;
        sync_folder(&directory).map_err(file_error)?;
        before(Step::Link)?;
        match fs::hard_link(claim.join(RECORD), directory.join(RECORD)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(file_error(error)),
            _ => {}
        }
        before(Step::SyncLink)?;
        sync_folder(&directory).map_err(file_error)?;
        before(Step::RemoveClaim)?;
        remove_claim(claim)
    }
}

/// Whether a folder could not be renamed or removed because it is not empty, or a file in it is open elsewhere.
fn is_taken(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, ResourceBusy};
    matches!(error.kind(), AlreadyExists | DirectoryNotEmpty | ResourceBusy)
}

/// Whether something is not there, or was removed on another machine just now.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::StaleNetworkFileHandle)
}

fn unless_gone(error: io::Error) -> io::Result<()> {
    if is_gone(&error) { Ok(()) } else { Err(error) }
}

/// The claims in a cell's folder: one, or none when it is just being removed.
fn begun(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let list = || fs::read_dir(directory.join(CLAIM))?.map(|entry| Ok(entry?.path())).collect();
    match list() {
        Err(error) if is_gone(&error) => Ok(Vec::new()),
        claims => claims.map_err(file_error),
    }
}

/// Whether a claim is a record with the files that it tells of.
fn is_whole(claim: &Path, key: &CellKey) -> Result<bool, StoreError> {
    let read = || {
        let text = String::from_utf8(fs::read(claim.join(RECORD))?).ok();
        let Some(record) = text.and_then(|text| CellRecord::from_json(&text, key).ok()) else { return Ok(false) };
        for (name, artefact) in &record.artefacts {
            if file_digest(&claim.join(name))? != artefact.blake3 {
                return Ok(false);
            }
        }
        Ok(true)
    };
    match read() {
        Err(error) if is_gone(&error) || error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        whole => whole.map_err(file_error),
    }
}

/// Makes `path` a name of the file `source`, whatever it was a name of before. `spare` is a name that only this process uses.
fn place(source: &Path, path: &Path, spare: &Path) -> io::Result<()> {
    match fs::hard_link(source, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        outcome => return outcome,
    }
    let (there, here) = (fs::metadata(path)?, fs::metadata(source)?);
    if (there.ino(), there.dev()) == (here.ino(), here.dev()) {
        return Ok(());
    }
    // Left by a publication that was killed or damaged.
    fs::remove_file(spare).or_else(unless_gone)?;
    fs::hard_link(source, spare)?;
    fs::rename(spare, path)
}

/// Removes a claim, the record first: without it, it is none. Then the folder around it, unless another claim is in it by now.
fn remove_claim(claim: &Path) -> Result<(), StoreError> {
    let remove = || {
        if !claim.is_dir() {
            // What earlier versions put there, or what somebody has left.
            fs::remove_file(claim).or_else(unless_gone)?;
        }
        fs::remove_file(claim.join(RECORD)).or_else(unless_gone)?;
        fs::remove_dir_all(claim).or_else(unless_gone)
    };
    let folder = claim.parent().unwrap_or(Path::new("."));
    match remove().and_then(|()| remove_emptied(folder)) {
        // Files that are still open elsewhere stay for a while on a file system of a network.
        Err(error) if !is_taken(&error) => Err(file_error(error)),
        _ => Ok(()),
    }
}

/// Removes a folder if nothing is in it.
fn remove_emptied(folder: &Path) -> io::Result<()> {
    match fs::remove_dir(folder) {
        Err(error) if !is_taken(&error) => unless_gone(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
