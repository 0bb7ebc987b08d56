//! Files that are either whole or not there.

use crate::{Error, Result};
use std::io::Write;
use std::path::Path;

/// Writes a file so that a reader, or a machine that loses power, finds the old content or the new, never a part.
///
/// The bytes go to a temporary file beside `path`, reach the disk, and are renamed over it.
pub fn write_atomically(path: &Path, parts: &[&[u8]]) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = temporary_file(folder).map_err(Error::file(path))?;
    for part in parts {
        file.write_all(part).map_err(Error::file(path))?;
    }
    file.as_file().sync_all().map_err(Error::file(path))?;
    let file = file.persist(path).map_err(|error| Error::File { path: path.to_path_buf(), source: error.error })?;
    drop(file);
    // The rename itself must survive a power cut too. Folders cannot be opened for this on every system.
    if let Ok(folder) = std::fs::File::open(folder) {
        folder.sync_all().map_err(Error::file(path))?;
    }
    Ok(())
}

/// A temporary file in `folder` that becomes a file for everyone to read: as open as the user's umask lets any new file be.
pub fn temporary_file(folder: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".tsbd-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_file_is_as_open_to_others_as_any_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let [plain, whole] = ["plain", "whole"].map(|name| folder.path().join(name));
        std::fs::write(&plain, "a").unwrap();
        write_atomically(&whole, &[b"a"]).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&whole), mode(&plain));
    }
}
