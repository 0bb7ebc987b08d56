//! What is kept of each submitted array, in the results folder: `results/slurm/<n>/`.
//!
//! ```text
//! submission.json    the array's name, its number once Slurm gave one, its cells; written before it is submitted
//! job.sh, cells      what is submitted: the script, and the keys, one a line
//! <index>.out        what a cell says, lines of JSON
//! <index>.err        what it writes on standard error
//! ```
//!
//! The name is in no other array of any run, so an array whose coordinator was killed before it could note the number is
//! found by it. A folder is removed once its jobs have gone and its cells are settled.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fs_err as fs;
use serde::{Deserialize, Serialize};
use tsbd_experiment::store::write_atomically;
use tsbd_experiment::{CellKey, Store, StoreError};

use super::arrays::Template;
use super::queue::{JobId, TaskId};

/// One submitted array.
#[derive(Debug, Clone)]
pub(super) struct Submission {
    pub folder: PathBuf,
    pub content: Content,
}

/// `submission.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Content {
    /// [`FORMAT`].
    pub format: u32,
    /// Name of the job.
    pub name: String,
    /// Its number. Without one, whether it was submitted is not known.
    pub job: Option<JobId>,
    /// In the order of their indices.
    pub cells: Vec<Entry>,
}

/// A cell of an array.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub key: CellKey,
    /// How often the cell was lost before.
    pub lost: usize,
    /// Whether its end was told: this job of it concerns nobody any more.
    #[serde(default)]
    pub settled: bool,
}

/// Version of `submission.json`. One of another version is left alone.
const FORMAT: u32 = 1;

impl Submission {
    /// Those that are there, oldest first. Folders that hold none (or half of one: a coordinator was killed before it
    /// submitted anything) are left out.
    pub fn all(store: &Store) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for number in numbers(store)? {
            let folder = root(store).join(number.to_string());
            let Ok(bytes) = fs::read(folder.join("submission.json")) else { continue };
            match serde_json::from_slice::<Content>(&bytes) {
                Ok(content) if content.format == FORMAT => found.push(Self { folder, content }),
                _ => {}
            }
        }
        Ok(found)
    }

    /// Makes the folder of a new array, complete, and not yet submitted.
    pub fn new(store: &Store, template: &Template, cells: Vec<Entry>) -> Result<Self, StoreError> {
        let number = numbers(store)?.last().map_or(1, |last| last + 1);
        let folder = std::path::absolute(root(store))?.join(number.to_string());
        fs::create_dir_all(&folder)?;
        let moment = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        let name = format!("tsbd-{}-{:x}-{:x}", template.experiment, moment, std::process::id());
        let keys: String = cells.iter().map(|entry| format!("{}\n", entry.key)).collect();
        write_atomically(&folder.join("cells"), keys.as_bytes())?;
        write_atomically(&folder.join("job.sh"), template.script(&folder, cells.len()).as_bytes())?;
        let submission = Self { folder, content: Content { format: FORMAT, name, job: None, cells } };
        submission.write()?;
        Ok(submission)
    }

    /// Notes the number that Slurm gave.
    pub fn submitted(&mut self, job: JobId) -> Result<(), StoreError> {
        self.content.job = Some(job);
        self.write()
    }

    /// Keeps what was changed in its content.
    pub fn write(&self) -> Result<(), StoreError> {
        let text = serde_json::to_string_pretty(&self.content).expect("a submission has string keys only");
        write_atomically(&self.folder.join("submission.json"), text.as_bytes())
    }

    /// Forgets the array.
    pub fn remove(self) -> io::Result<()> {
        // First what makes it one: half a folder is none.
        match fs::remove_file(self.folder.join("submission.json")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::remove_dir_all(&self.folder)
    }

    /// Whether nothing was noted for so long.
    pub fn is_old(&self, age: Duration) -> bool {
        let written = fs::metadata(self.folder.join("submission.json")).and_then(|metadata| metadata.modified());
        written.is_ok_and(|written| written.elapsed().is_ok_and(|elapsed| elapsed >= age))
    }

    pub fn script(&self) -> PathBuf {
        self.folder.join("job.sh")
    }

    pub fn events(&self, index: u32) -> PathBuf {
        self.folder.join(format!("{index}.out"))
    }

    pub fn log(&self, index: u32) -> PathBuf {
        self.folder.join(format!("{index}.err"))
    }

    pub fn task(&self, index: u32) -> Option<TaskId> {
        self.content.job.map(|job| TaskId { job, index })
    }
}

fn root(store: &Store) -> PathBuf {
    store.root().join("slurm")
}

/// Names of the folders, in order.
fn numbers(store: &Store) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(root(store)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut numbers = Vec::new();
    for entry in entries {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Lines that were added to a file since `offset`, which moves behind them; half a line waits for its end.
pub(super) fn new_lines(path: &Path, offset: &mut u64) -> Vec<String> {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> io::Result<Vec<u8>> {
        let mut file = fs::File::open(path)?;
        if file.metadata()?.len() <= *offset {
            return Ok(Vec::new());
        }
        file.seek(SeekFrom::Start(*offset))?;
        let mut bytes = Vec::new();
        file.take(MOST_AT_ONCE).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    // A file that cannot be read now is read next time.
    let bytes = read().unwrap_or_default();
    let whole = match bytes.iter().rposition(|byte| *byte == b'\n') {
        Some(end) => end + 1,
        // No line that anybody waits for is so long.
        None if bytes.len() as u64 == MOST_AT_ONCE => bytes.len(),
        None => 0,
    };
    *offset += whole as u64;
    String::from_utf8_lossy(&bytes[..whole]).lines().map(str::to_owned).collect()
}

/// Bytes that are read of a cell's words at a time.
const MOST_AT_ONCE: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_once_and_only_when_they_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.out");
        let mut offset = 0;
        assert!(new_lines(&path, &mut offset).is_empty());
        fs::write(&path, "one\ntw").unwrap();
        assert_eq!(new_lines(&path, &mut offset), ["one"]);
        assert!(new_lines(&path, &mut offset).is_empty());
        fs::write(&path, "one\ntwo\nthree\n").unwrap();
        assert_eq!(new_lines(&path, &mut offset), ["two", "three"]);
    }
}
