//! One coordinator at a time works on a results folder.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::{Store, StoreError, file_error};

/// Who holds a results folder.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LockHolder {
    /// Process.
    pub pid: u32,
    /// Machine.
    pub host: String,
    /// Since when, in seconds since 1970.
    pub since_unix: u64,
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            // It took the lock a moment ago and has not yet said who it is.
            0 => write!(f, "another process that is just starting"),
            pid => write!(f, "process {pid} on {}", self.host),
        }
    }
}

/// Held while a grid is run. The system releases it when the process ends, however it ends.
#[derive(Debug)]
pub struct CoordinatorLock {
    _file: fs::File,
}

impl Store {
    /// Takes the folder for this process, creating it if need be; refuses if another process holds it.
    pub fn lock(&self) -> Result<CoordinatorLock, StoreError> {
        self.refuse_exported()?;
        fs::create_dir_all(self.root()).map_err(file_error)?;
        let path = self.root().join("coordinator.lock");
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(file_error)?;
        if !lock_within(&file, PATIENCE).map_err(file_error)? {
            return Err(StoreError::InUse { root: self.root().to_owned(), holder: read_holder(&mut file) });
        }
        let since_unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let holder = LockHolder { pid: std::process::id(), host: host_name(), since_unix };
        let text = serde_json::to_string(&holder).expect("a lock holder has string keys only");
        let mut write = || {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(text.as_bytes())
        };
        write().map_err(file_error)?;
        Ok(CoordinatorLock { _file: file })
    }

    /// Who holds the folder now, if anybody does. Takes nothing.
    pub fn lock_holder(&self) -> Result<Option<LockHolder>, StoreError> {
        let mut file = match fs::File::open(self.root().join("coordinator.lock")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(file_error(error)),
        };
        match file.file().try_lock_shared() {
            Ok(()) => Ok(None),
            Err(std::fs::TryLockError::WouldBlock) => Ok(Some(read_holder(&mut file))),
            Err(std::fs::TryLockError::Error(error)) => Err(file_error(error)),
        }
    }
}

/// How long a lock is waited for that seems to be held. A process that is just starting a child holds its locks twice
/// for a moment, and one that is being killed a little longer than it lives.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);

/// Takes the lock of a file; `false` if somebody else still holds it after `patience`.
pub(super) fn lock_within(file: &fs::File, patience: Duration) -> io::Result<bool> {
    let began = Instant::now();
    loop {
        match file.file().try_lock() {
            Ok(()) => return Ok(true),
            Err(std::fs::TryLockError::WouldBlock) if began.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(std::fs::TryLockError::WouldBlock) => return Ok(false),
            Err(std::fs::TryLockError::Error(error)) => return Err(error),
        }
    }
}

fn read_holder(file: &mut fs::File) -> LockHolder {
    let mut text = String::new();
    // Whoever it is, the lock is taken; a name that cannot be read changes the message only.
    let _ = file.read_to_string(&mut text);
    serde_json::from_str(&text).unwrap_or_default()
}

/// The machine's name, from the kernel; empty where there is none to be read.
pub fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_coordinator_is_refused_and_told_who_the_first_is() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("results"));
        assert_eq!(store.lock_holder().unwrap(), None);
        let first = store.lock().unwrap();
        let error = store.lock().unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        assert!(error.contains("--results"), "{error}");
        assert_eq!(store.lock_holder().unwrap().unwrap().pid, std::process::id());
        drop(first);
        assert_eq!(store.lock_holder().unwrap(), None);
        store.lock().unwrap();
    }
}
