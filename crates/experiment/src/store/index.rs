//! What was read of records before, so that a folder of very many is not read anew whenever somebody looks.
//!
//! `results/index` is a cache: without it everything is the same and takes longer. It keeps of each record what plans and
//! tables are made of, beside the identity that the file had (inode, length, time of its last change). A record whose file
//! has another one is read and checked again; so is one that changed so shortly before it was read that a later change could
//! have the same time. The sizes of artefacts are compared each time.
//!
//! Text, a line for each record after a first one with the seal of the rest. Written whole, by whoever had to read many
//! records; the last one wins. A run does so at its end.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::{Store, write_atomically};
use crate::cell::CellKey;
use crate::record::RecordSummary;

/// First words of the file, with the version of what follows.
const HEAD: &str = "tsbd index 2 ";

/// How many records somebody must have had to read for the index to be written: few are read in no time.
const MANY: usize = 1000;

/// How long a file must have been left alone for its time of change to tell it from a later one.
const SETTLED: Duration = Duration::from_secs(2);

/// What tells whether a file was changed: it has another inode, another length or another time of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    inode: u64,
    bytes: u64,
    /// Nanoseconds since 1970.
    changed: i128,
}

impl Identity {
    pub(super) fn of(metadata: &std::fs::Metadata) -> Self {
        let changed = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
        Self { inode: metadata.ino(), bytes: metadata.len(), changed }
    }

    /// Whether the file was left alone long enough.
    pub(super) fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.changed + SETTLED.as_nanos() as i128 <= now.as_nanos() as i128
    }
}

/// A record as the index keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Indexed {
    /// Lengths of the record's artefacts.
    pub artefacts: Vec<(String, u64)>,
    /// What plans and tables need.
    pub summary: RecordSummary,
}

/// The index as it was read.
#[derive(Debug, Default)]
pub(super) struct Index {
    text: String,
    /// For each key the identity, and where in the text its record lies.
    lines: HashMap<CellKey, (Identity, std::ops::Range<usize>)>,
}

/// A line to be added.
#[derive(Debug)]
pub(super) struct NewLine {
    pub key: CellKey,
    pub identity: Identity,
    pub indexed: Indexed,
}

impl Index {
    /// The index of a results folder; an empty one if there is none, or none that can be believed.
    pub(super) fn read(store: &Store) -> Self {
        fs::read_to_string(store.root().join("index")).ok().and_then(Self::parse).unwrap_or_default()
    }

    fn parse(text: String) -> Option<Self> {
        let (head, rest) = text.split_once('\n')?;
        if head.strip_prefix(HEAD)? != blake3::hash(rest.as_bytes()).to_hex().as_str() {
            return None;
        }
        let mut lines = HashMap::with_capacity(rest.len() / 512);
        let mut start = head.len() + 1;
        for line in rest.lines() {
            let mut words = line.splitn(5, ' ');
            let key = words.next()?.parse().ok()?;
            let (inode, bytes) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            let identity = Identity { inode, bytes, changed: words.next()?.parse().ok()? };
            let end = start + line.len();
            lines.insert(key, (identity, end - words.next()?.len()..end));
            start = end + 1;
        }
        Some(Self { text, lines })
    }

    /// What is known of the record of a cell whose file has this identity.
    pub(super) fn get(&self, key: &CellKey, identity: Identity) -> Option<Indexed> {
        let (known, place) = self.lines.get(key)?;
        if *known != identity {
            return None;
        }
        serde_json::from_str(&self.text[place.clone()]).ok()
    }

    /// Writes the index with what was read anew, if that is much. It is not a result: a folder that cannot be written to is
    /// left as it is.
    pub(super) fn extend(self, store: &Store, new: &[NewLine]) {
        if new.len() < MANY {
            return;
        }
        let replaced: HashSet<&CellKey> = new.iter().map(|line| &line.key).collect();
        let mut lines: Vec<String> = Vec::with_capacity(self.lines.len() + new.len());
        for (key, (identity, place)) in &self.lines {
            if !replaced.contains(key) {
                lines.push(line(key, *identity, &self.text[place.clone()]));
            }
        }
        for NewLine { key, identity, indexed } in new {
            let json = serde_json::to_string(indexed).expect("a summary has string keys only");
            lines.push(line(key, *identity, &json));
        }
        lines.sort_unstable();
        let mut hasher = blake3::Hasher::new();
        for line in &lines {
            hasher.update(line.as_bytes());
        }
        let mut text = format!("{HEAD}{}\n", hasher.finalize().to_hex());
        text.reserve_exact(lines.iter().map(String::len).sum());
        lines.into_iter().for_each(|line| text.push_str(&line));
        let _ = write_atomically(&store.root().join("index"), text.as_bytes());
    }
}

fn line(key: &CellKey, identity: Identity, json: &str) -> String {
    let Identity { inode, bytes, changed } = identity;
    format!("{key} {inode} {bytes} {changed} {json}\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cell::tests::train_cell;
    use crate::record::tests::record;
    use crate::store::Found;

    fn summary(acc: f64) -> RecordSummary {
        let metrics = BTreeMap::from([("acc".to_owned(), acc)]);
        let facts = serde_json::Map::new();
        RecordSummary { metrics, facts, seconds: 1.0, peak_memory_bytes: 2, on_gpu: true, started_unix: 3 }
    }

    /// Lines of records that are nowhere, as many as it takes for an index to be written.
    fn others() -> Vec<NewLine> {
        let line = |number: u64| NewLine {
            key: format!("{number:032x}").parse().unwrap(),
            identity: Identity { inode: number, bytes: 2, changed: 3 },
            indexed: Indexed { artefacts: vec![("model".into(), number)], summary: summary(number as f64) },
        };
        (0..MANY as u64).map(line).collect()
    }

    fn accuracy(store: &Store, key: &CellKey) -> Result<f64, String> {
        let all = store.look_at_all([key], |found| match found {
            Found::Done(summary) => Ok(summary.metrics["acc"]),
            other => Err(format!("{other:?}")),
        });
        all.unwrap().remove(0).1
    }

    #[test]
    fn lines_are_found_by_key_and_identity_and_replaced_by_newer_ones() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        Index::read(&store).extend(&store, &others()[1..]);
        assert!(!folder.path().join("index").exists(), "so few are not worth it");
        Index::read(&store).extend(&store, &others());
        let mut newer = others();
        newer[7].identity.bytes = 5;
        newer[7].indexed.summary = summary(0.5);
        Index::read(&store).extend(&store, &newer);
        let index = Index::read(&store);
        assert_eq!(index.lines.len(), MANY);
        for (old, new) in others().iter().zip(&newer) {
            assert_eq!(index.get(&new.key, new.identity).as_ref(), Some(&new.indexed));
            assert_eq!(index.get(&old.key, old.identity).is_none(), old.identity != new.identity);
        }
    }

    #[test]
    fn an_index_in_which_a_byte_was_changed_counts_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        Index::read(&store).extend(&store, &others());
        let path = folder.path().join("index");
        let text = fs::read_to_string(&path).unwrap();
        for changed in
            [text.replacen("\"acc\":1.0", "\"acc\":9.0", 1), text[..text.len() - 1].to_owned(), String::new()]
        {
            assert_ne!(changed, text);
            fs::write(&path, changed).unwrap();
            assert!(Index::read(&store).lines.is_empty());
        }
    }

    #[test]
    fn a_record_is_taken_from_the_index_until_its_file_or_an_artefact_changes() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let cell = train_cell("badnets", 0);
        let (key, path) = (cell.key(), store.artefact(&cell.key(), "record.json"));
        write_atomically(&path, record(&cell, 0.75).to_json().unwrap().as_bytes()).unwrap();
        write_atomically(&store.artefact(&key, "model"), b"weights").unwrap();
        assert_eq!(accuracy(&store, &key), Ok(0.75));
        // Other numbers than the record's, to tell where they come from.
        let identity = Identity::of(&fs::metadata(&path).unwrap());
        let indexed = Indexed { artefacts: vec![("model".into(), 7)], summary: summary(0.25) };
        let mut lines = others();
        lines.push(NewLine { key: key.clone(), identity, indexed });
        Index::read(&store).extend(&store, &lines);
        assert_eq!(accuracy(&store, &key), Ok(0.25));
        fs::write(store.artefact(&key, "model"), b"weight").unwrap();
        assert_eq!(accuracy(&store, &key), Ok(0.75), "the record decides: it names no such artefact");
        fs::write(store.artefact(&key, "model"), b"weights").unwrap();
        write_atomically(&path, record(&cell, 0.5).to_json().unwrap().as_bytes()).unwrap();
        assert_eq!(accuracy(&store, &key), Ok(0.5));
        fs::write(&path, record(&cell, 0.5).to_json().unwrap().replace("0.5", "0.6")).unwrap();
        assert!(accuracy(&store, &key).unwrap_err().contains("seal"));
        fs::remove_file(&path).unwrap();
        assert_eq!(accuracy(&store, &key), Err("Nothing".into()));
    }

    #[test]
    fn what_was_changed_a_moment_ago_is_not_settled() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as i128;
        let of = |seconds_ago: i128| Identity { inode: 1, bytes: 1, changed: now - seconds_ago * 1_000_000_000 };
        assert!(of(3).is_settled() && !of(1).is_settled());
    }
}
