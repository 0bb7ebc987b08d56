//! A results folder without its models: small enough to lie beside a text, whole enough for its tables and figures.

use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;

use super::publication::RECORD;
use super::{Found, Store, StoreError, Verification, file_error, write_atomically};
use crate::cell::CellKey;
use crate::plan::Plan;

/// The file that makes a folder an exported one. People read it, the program only looks whether it is there.
pub(super) const NOTE: &str = "exported.txt";

const NOTE_TEXT: &str = "\
Results that `tsbd export results` has put here: the records, sealed as they were published, and their smaller files. Model
weights were left out, so nothing can be run here. With --results, `tsbd table`, `tsbd figure` and `tsbd report` read this
folder as any other.
";

/// What an export has put into a folder, or found there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExportedResults {
    /// Cells with a result.
    pub cells: usize,
    /// Cells of the plan without one; they are not there.
    pub missing: usize,
}

/// Whether an artefact holds weights.
fn is_weights(artefact: &str) -> bool {
    artefact.ends_with(".safetensors")
}

impl Store {
    /// Copies the finished cells of a plan to the folder `to`, which is new, empty, or one that results were exported to
    /// before. Refuses, before it writes anything, a folder that has another result of one of the cells.
    pub fn export(&self, plan: &Plan, to: &Path) -> Result<ExportedResults, StoreError> {
        let target = Self::new(to);
        if !target.is_exported && fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(StoreError::NotExported { root: to.to_owned() });
        }
        let mut exported = ExportedResults::default();
        let mut copies = Vec::new();
        for key in plan.cells.keys() {
            let Found::Done(record) = self.look(key, Verification::Digests)? else {
                exported.missing += 1;
                continue;
            };
            exported.cells += 1;
            let kept = record.artefacts.into_keys().filter(|name| !is_weights(name));
            // The record comes last: with it, what is there counts.
            let files = kept.chain([RECORD.to_owned()]).map(|name| self.exported_file(&target, key, &name));
            copies.extend(files.collect::<Result<Vec<_>, _>>()?.into_iter().flatten());
        }
        write_atomically(&to.join(NOTE), NOTE_TEXT.as_bytes())?;
        for (path, contents) in copies {
            write_atomically(&path, &contents)?;
        }
        target.note_images(&self.images()?)?;
        target.note_run(&plan.experiment)?;
        Ok(exported)
    }

    /// Where a file of a cell goes in an exported folder, and what is in it; nothing if it is there already.
    fn exported_file(
        &self,
        target: &Self,
        key: &CellKey,
        name: &str,
    ) -> Result<Option<(PathBuf, Vec<u8>)>, StoreError> {
        let contents = fs::read(self.artefact(key, name)).map_err(file_error)?;
        let path = target.artefact(key, name);
        match fs::read(&path) {
            Ok(there) if there == contents => Ok(None),
            Ok(_) => Err(StoreError::OtherResult { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some((path, contents))),
            Err(error) => Err(file_error(error)),
        }
    }

    /// Whether an artefact is not looked for, because the folder is an exported one.
    pub(super) fn leaves_out(&self, artefact: &str) -> bool {
        self.is_exported && is_weights(artefact)
    }

    /// An error in a folder that results were exported to: what is run there would miss the models.
    pub(super) fn refuse_exported(&self) -> Result<(), StoreError> {
        match self.is_exported {
            true => Err(StoreError::WithoutModels { root: self.root().to_owned() }),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::grid;
    use crate::record::tests::record;

    /// A results folder with the first `done` cells of a plan, each with a model and a smaller file.
    fn results(folder: &Path, plan: &Plan, done: usize) -> Store {
        let store = Store::new(folder);
        for cell in plan.cells.values().take(done) {
            let key = store.describe(cell).unwrap();
            let attempt = store.begin_attempt(&key, None).unwrap();
            fs::write(attempt.directory().join("model.safetensors"), b"weights").unwrap();
            fs::write(attempt.directory().join("neurons.json"), b"{}").unwrap();
            attempt.publish(record(cell, 0.5), &["model.safetensors", "neurons.json"]).unwrap();
        }
        store
    }

    #[test]
    fn an_exported_folder_has_the_results_without_the_models_and_runs_nothing() {
        let (folder, plan) = (tempfile::tempdir().unwrap(), grid(&["badnets", "blended"], &["none", "ft"]));
        let (from, to) = (folder.path().join("results"), folder.path().join("exported"));
        let store = results(&from, &plan, plan.cells.len() - 1);
        let expected = ExportedResults { cells: plan.cells.len() - 1, missing: 1 };
        // The second time, everything is there.
        assert_eq!(store.export(&plan, &to).unwrap(), expected);
        assert_eq!(store.export(&plan, &to).unwrap(), expected);

        let exported = Store::new(&to);
        for key in plan.cells.keys() {
            let found = exported.look(key, Verification::Digests).unwrap();
            assert_eq!(found, store.look(key, Verification::Digests).unwrap());
            assert!(!exported.artefact(key, "model.safetensors").exists());
        }
        assert_eq!(exported.runs().unwrap().len(), 1);
        for error in
            [exported.lock().unwrap_err(), exported.create_attempt(plan.cells.keys().next().unwrap()).unwrap_err()]
        {
            assert!(error.to_string().contains("--results"), "{error}");
        }

        let (key, _) = plan.cells.first().unwrap();
        fs::write(exported.artefact(key, "neurons.json"), b"[]").unwrap();
        assert!(matches!(exported.look(key, Verification::Digests).unwrap(), Found::Damaged(_)));
        fs::remove_file(exported.artefact(key, "neurons.json")).unwrap();
        assert!(matches!(exported.look(key, Verification::Sizes).unwrap(), Found::Damaged(_)));
    }

    #[test]
    fn a_results_folder_without_its_models_is_damaged_where_it_was_not_exported() {
        let (folder, plan) = (tempfile::tempdir().unwrap(), grid(&["badnets", "blended"], &["none", "ft"]));
        let store = results(folder.path(), &plan, 1);
        let (key, _) = plan.cells.first().unwrap();
        fs::remove_file(store.artefact(key, "model.safetensors")).unwrap();
        assert!(matches!(store.look(key, Verification::Sizes).unwrap(), Found::Damaged(_)));
    }

    #[test]
    fn another_result_and_a_folder_of_something_else_are_refused_and_stay_as_they_are() {
        let (folder, plan) = (tempfile::tempdir().unwrap(), grid(&["badnets", "blended"], &["none", "ft"]));
        let (one, two, to) = (folder.path().join("1"), folder.path().join("2"), folder.path().join("exported"));
        results(&one, &plan, 2).export(&plan, &to).unwrap();
        let store = results(&two, &plan, 1);
        let (key, cell) = plan.cells.first().unwrap();
        let attempt = store.begin_attempt(key, None).unwrap();
        fs::remove_file(store.artefact(key, RECORD)).unwrap();
        attempt.publish(record(cell, 0.6), &[]).unwrap();

        let before = fs::read(Store::new(&to).artefact(key, RECORD)).unwrap();
        let error = store.export(&plan, &to).unwrap_err();
        assert!(error.to_string().contains(key.as_str()), "{error}");
        assert_eq!(fs::read(Store::new(&to).artefact(key, RECORD)).unwrap(), before);

        let error = store.export(&plan, &one).unwrap_err();
        assert!(error.to_string().contains("--out"), "{error}");
        assert!(!one.join(NOTE).exists());
    }
}
