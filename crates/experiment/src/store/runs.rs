//! Which experiments were run in a results folder, and in which profiles: `runs.json`.
//!
//! Cells cannot tell: one is shared by all experiments that ask for the same work, so an experiment that nobody ran may
//! find all of its cells.

use std::collections::{BTreeMap, BTreeSet};

use fs_err as fs;

use super::{Store, StoreError, write_atomically};
use crate::plan::Experiment;

/// The profiles in which each experiment was run, by its name.
pub type Runs = BTreeMap<String, BTreeSet<String>>;

const FILE: &str = "runs.json";

impl Store {
    /// What was run in this folder. Nothing is known of runs from before this was noted.
    pub fn runs(&self) -> Result<Runs, StoreError> {
        match fs::read(self.root().join(FILE)) {
            // Notes that cannot be read are no notes.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Runs::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Notes that an experiment is run. Called by the coordinator alone.
    pub fn note_run(&self, experiment: &Experiment) -> Result<(), StoreError> {
        let mut runs = self.runs()?;
        if !runs.entry(experiment.name.clone()).or_default().insert(experiment.profile.clone()) {
            return Ok(());
        }
        let text = serde_json::to_string_pretty(&runs).expect("runs have string keys only");
        write_atomically(&self.root().join(FILE), text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::grid;

    #[test]
    fn every_profile_of_an_experiment_is_noted_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        assert!(store.runs().unwrap().is_empty());
        let mut experiment = grid(&[], &[]).experiment;
        for profile in ["quick", "paper", "quick"] {
            experiment.profile = profile.into();
            store.note_run(&experiment).unwrap();
        }
        assert_eq!(store.runs().unwrap()["test"], BTreeSet::from(["paper".to_owned(), "quick".to_owned()]));
        std::fs::write(folder.path().join(FILE), "no JSON").unwrap();
        assert!(store.runs().unwrap().is_empty());
    }
}
