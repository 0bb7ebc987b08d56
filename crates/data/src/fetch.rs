//! Getting a published data set: download (continuing a broken one), check, unpack, put in place.
//!
//! Nothing half-done is ever visible: the archive grows in a `.part` file, it is unpacked into a temporary folder beside its
//! destination, every file is checked against its official SHA-256, and only then moved into place.

use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

use crate::{
    DataRoot, Error, Official, Result, dataset,
    download::download,
    official::{FileState, file_digest},
};

/// How far a fetch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchProgress {
    /// Bytes of the archive that are here, and how many there will be if the server says so.
    Downloading {
        /// Bytes here, those of an earlier, broken download included.
        received: u64,
        /// Bytes of the whole archive.
        total: Option<u64>,
    },
    /// The whole archive is being compared with its official SHA-256.
    Checking,
    /// The archive is being unpacked and its files checked.
    Unpacking,
}

/// Where a data set is now and what was done for that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// It was there already, every file as published.
    AlreadyThere(PathBuf),
    /// It was put there.
    Unpacked(PathBuf),
}

/// Makes the data set `name` available in `root`: downloads its archive from the official address, or takes the `archive` that the
/// user has got in another way, and unpacks it. A data set that is complete already is left alone, a damaged one is replaced.
pub fn fetch(
    name: &str,
    root: &DataRoot,
    archive: Option<&Path>,
    progress: &mut dyn FnMut(FetchProgress),
) -> Result<Fetched> {
    let entry = dataset::entry(name)?;
    let official = entry
        .official
        .ok_or(Error::NotDownloadable { name: entry.name, reason: "it is drawn from a seed whenever it is needed" })?;
    fetch_official(entry.name, official, root, archive, progress)
}

fn fetch_official(
    name: &str,
    official: &Official,
    root: &DataRoot,
    archive: Option<&Path>,
    progress: &mut dyn FnMut(FetchProgress),
) -> Result<Fetched> {
    let folder = match root.find(official.folder) {
        Some(folder) if official.verify(&folder).iter().all(|file| file.state == FileState::Valid) => {
            return Ok(Fetched::AlreadyThere(folder));
        }
        // What is there is what would be read, so it is what must be replaced.
        Some(damaged) => damaged,
        None => root.download_folder().join(official.folder),
    };
    match archive {
        Some(archive) => {
            progress(FetchProgress::Checking);
            check_archive(official, archive, || {
                format!("get {} again from {}", official.archive.file_name, official.archive.url)
            })?;
            unpack(official, archive, &folder, progress)?;
        }
        None => {
            let parent = folder.parent().unwrap_or(Path::new("."));
            fs_err::create_dir_all(parent)?;
            let part = parent.join(format!("{}.part", official.archive.file_name));
            get(name, official, &part, progress)?;
            unpack(official, &part, &folder, progress)?;
            fs_err::remove_file(part)?;
        }
    }
    Ok(Fetched::Unpacked(folder))
}

/// Downloads the archive to `part`, continuing what is there. What was continued and turns out wrong is downloaded once more from
/// the beginning, since the beginning may have been another file's.
fn get(name: &str, official: &Official, part: &Path, progress: &mut dyn FnMut(FetchProgress)) -> Result<()> {
    let way_out = format!(
        "`tsbd data fetch {name}` continues where it stopped; without a network, get {} from {} elsewhere and run `tsbd data fetch {name} --from FILE`",
        official.archive.file_name, official.archive.url
    );
    loop {
        let continued = part.exists();
        download(official.archive.url, part, &way_out, &mut |received, total| {
            progress(FetchProgress::Downloading { received, total });
        })?;
        progress(FetchProgress::Checking);
        let checked = check_archive(official, part, || {
            format!(
                "the server gave another file; it was deleted. Try again later, or get {} elsewhere and run `tsbd data fetch {name} --from FILE`",
                official.archive.file_name
            )
        });
        match checked {
            Ok(()) => return Ok(()),
            Err(error) => {
                fs_err::remove_file(part)?;
                if !continued {
                    return Err(error);
                }
            }
        }
    }
}

fn check_archive(official: &Official, archive: &Path, way_out: impl FnOnce() -> String) -> Result<()> {
    let found = file_digest(archive)?;
    if found == official.archive.sha256 {
        return Ok(());
    }
    let (file, expected) = (archive.to_path_buf(), official.archive.sha256.to_owned());
    Err(Error::WrongDigest { file, expected, found, way_out: way_out() })
}

/// Unpacks into a temporary folder beside `folder`, checks every file, then moves all of it into place.
fn unpack(official: &Official, archive: &Path, folder: &Path, progress: &mut dyn FnMut(FetchProgress)) -> Result<()> {
    progress(FetchProgress::Unpacking);
    let parent = folder.parent().unwrap_or(Path::new("."));
    fs_err::create_dir_all(parent)?;
    let temporary = tempfile::Builder::new().prefix(".unpacking-").tempdir_in(parent)?;
    let mut entries = tar::Archive::new(GzDecoder::new(fs_err::File::open(archive)?));
    for entry in entries.entries()? {
        // Entries that would leave the folder are skipped; the check below misses what should have been there.
        entry?.unpack_in(temporary.path())?;
    }
    let unpacked = temporary.path().join(official.folder);
    for file in official.verify(&unpacked) {
        let way_out = format!("get it again from {}", official.archive.url);
        match file.state {
            FileState::Valid => {}
            FileState::WrongLength { expected, found } => {
                return Err(Error::WrongLength { file: file.path, expected, found, way_out });
            }
            FileState::WrongDigest { expected, found } => {
                return Err(Error::WrongDigest { file: file.path, expected: expected.to_owned(), found, way_out });
            }
            FileState::Missing | FileState::Unreadable { .. } => {
                let missing = file.path.strip_prefix(temporary.path()).unwrap_or(&file.path).display().to_string();
                return Err(Error::Incomplete { archive: archive.to_path_buf(), missing, way_out });
            }
        }
    }
    if folder.exists() {
        // Replace the damaged files one by one, each at once; what else the user keeps there stays.
        for file in official.files {
            fs_err::rename(unpacked.join(file.name), folder.join(file.name))?;
        }
    } else {
        fs_err::rename(unpacked, folder)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
