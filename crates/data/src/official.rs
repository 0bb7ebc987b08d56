//! The files that data sets are published as, and the check that a file here is the published one.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::{DataRoot, Error, Result, dataset};

/// A data set as its makers publish it.
#[derive(Debug)]
pub struct Official {
    /// The folder that its archive unpacks to, and that is looked for on this machine.
    pub folder: &'static str,
    /// The files in that folder that are read.
    pub files: &'static [OfficialFile],
    /// Where to get all of them.
    pub archive: Archive,
}

/// One file of a published data set.
#[derive(Debug)]
pub struct OfficialFile {
    /// Its path within the data set's folder.
    pub name: &'static str,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its SHA-256 in hexadecimal.
    pub sha256: &'static str,
}

/// An archive (`.tar.gz`) of a published data set.
#[derive(Debug)]
pub struct Archive {
    /// The official address.
    pub url: &'static str,
    /// The file's name.
    pub file_name: &'static str,
    /// Its SHA-256 in hexadecimal.
    pub sha256: &'static str,
}

/// What [`verify`] found out about one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileReport {
    /// The file.
    pub path: PathBuf,
    /// Its state.
    pub state: FileState,
}

/// Whether a file is the published one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileState {
    /// Length and SHA-256 are the official ones.
    Valid,
    /// There is no such file.
    Missing,
    /// The length is wrong, so the contents are.
    WrongLength {
        /// The official length in bytes.
        expected: u64,
        /// The length found.
        found: u64,
    },
    /// The contents are wrong.
    WrongDigest {
        /// The official SHA-256.
        expected: &'static str,
        /// The SHA-256 found.
        found: String,
    },
    /// The file cannot be read.
    Unreadable {
        /// What the operating system says, with the path.
        reason: String,
    },
}

/// Compares every file of the data set `name` with the published one. A drawn data set has no files: its report is empty.
/// An error means that the name is unknown or the data set is not here at all; bad files are reported, not errors.
pub fn verify(name: &str, root: &DataRoot) -> Result<Vec<FileReport>> {
    let entry = dataset::entry(name)?;
    let Some(official) = entry.official else { return Ok(Vec::new()) };
    Ok(official.verify(&official.locate(entry.name, root)?))
}

impl Official {
    /// The data set's folder on this machine.
    pub(crate) fn locate(&self, name: &'static str, root: &DataRoot) -> Result<PathBuf> {
        root.find(self.folder).ok_or_else(|| Error::NotFound {
            name,
            looked_for: root.candidates(self.folder).collect(),
            way_out: format!(
                "run `tsbd data fetch {name}` to download it, or say with --data or $TSBD_DATA which folder contains {}",
                self.folder
            ),
        })
    }

    /// Compares every file in `folder` with the published one, all at once.
    pub(crate) fn verify(&self, folder: &Path) -> Vec<FileReport> {
        self.files.par_iter().map(|file| file.verify(folder)).collect()
    }
}

impl OfficialFile {
    /// Reads the whole file, refusing one that is not the published one.
    pub(crate) fn read(&self, folder: &Path, way_out: &str) -> Result<Vec<u8>> {
        let path = folder.join(self.name);
        let bytes = fs_err::read(&path)?;
        self.check(path, bytes.len() as u64, || hex(&Sha256::digest(&bytes)), way_out)?;
        Ok(bytes)
    }

    fn verify(&self, folder: &Path) -> FileReport {
        let path = folder.join(self.name);
        let unreadable = |error: std::io::Error| FileState::Unreadable { reason: error.to_string() };
        let state = match fs_err::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => FileState::Missing,
            Err(error) => unreadable(error),
            Ok(metadata) if metadata.len() != self.bytes => {
                FileState::WrongLength { expected: self.bytes, found: metadata.len() }
            }
            Ok(_) => match file_digest(&path) {
                Err(error) => unreadable(error),
                Ok(found) if found != self.sha256 => FileState::WrongDigest { expected: self.sha256, found },
                Ok(_) => FileState::Valid,
            },
        };
        FileReport { path, state }
    }

    fn check(&self, file: PathBuf, found: u64, digest: impl FnOnce() -> String, way_out: &str) -> Result<()> {
        let way_out = way_out.to_owned();
        if found != self.bytes {
            return Err(Error::WrongLength { file, expected: self.bytes, found, way_out });
        }
        let found = digest();
        if found != self.sha256 {
            return Err(Error::WrongDigest { file, expected: self.sha256.to_owned(), found, way_out });
        }
        Ok(())
    }
}

/// The SHA-256 of a file's contents, in hexadecimal.
pub(crate) fn file_digest(path: &Path) -> std::io::Result<String> {
    let mut file = fs_err::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            read => hasher.update(&buffer[..read]),
        }
    }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of "abc" (FIPS 180-2, appendix B.1).
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    static FILE: OfficialFile = OfficialFile { name: "letters", bytes: 3, sha256: ABC };

    #[test]
    fn each_way_a_file_can_be_wrong_has_its_own_report() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("letters");
        let state = || FILE.verify(folder.path()).state;
        assert_eq!(state(), FileState::Missing);
        fs_err::write(&path, "ab").unwrap();
        assert_eq!(state(), FileState::WrongLength { expected: 3, found: 2 });
        fs_err::write(&path, "abd").unwrap();
        assert!(matches!(state(), FileState::WrongDigest { expected: ABC, .. }));
        fs_err::write(&path, "abc").unwrap();
        assert_eq!(state(), FileState::Valid);
    }

    #[test]
    fn reading_a_changed_file_names_it_with_both_digests_and_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join("letters"), "abd").unwrap();
        let error = FILE.read(folder.path(), "fetch it again").unwrap_err().to_string();
        for part in
            ["letters", ABC, "a52d159f262b2c6ddb724a61840befc36eb30c88877a4030b65cbe86298449c9", "fetch it again"]
        {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_drawn_data_set_has_no_files_to_verify() {
        assert_eq!(verify("shapes", &DataRoot::new("/nowhere")).unwrap(), []);
    }

    #[test]
    fn an_absent_data_set_says_where_it_was_looked_for_and_how_to_get_it() {
        let error = verify("cifar10", &DataRoot::new("/nowhere")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/cifar-10-batches-bin"), "{error}");
        assert!(error.contains("tsbd data fetch cifar10"), "{error}");
    }
}
