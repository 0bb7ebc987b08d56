//! From what the user typed to a checked plan: an experiment file with its overrides, or a grid of one point.

use std::path::{Path, PathBuf};

use tsbd_data::DataRoot;
use tsbd_experiment::{
    Diagnostic, ExperimentSource, ImagesFrom, Plan, Refusal, Request, Setting, Store, StoreError, registry,
};

use crate::failure::{Exit, Failure, Problem};
use crate::options::{Folders, OnePoint, Overrides};

/// The plan of an experiment file, for whatever trains: the data sets are loaded and verified.
pub fn to_run(file: &Path, overrides: &Overrides, folders: &Folders) -> Result<Plan, Failure> {
    read(file, overrides, ImagesFrom::Disk(folders.data.root()))
}

/// The plan of an experiment file, for whatever looks at results: what the last run noted of its data sets is enough.
pub fn to_look(file: &Path, overrides: &Overrides, folders: &Folders) -> Result<Plan, Failure> {
    read(file, overrides, ImagesFrom::Notes(Store::new(&folders.results), folders.data.root()))
}

fn read(file: &Path, overrides: &Overrides, images: ImagesFrom) -> Result<Plan, Failure> {
    let source = ExperimentSource::File(PathBuf::from(file));
    let Overrides { profile, set } = overrides.clone();
    tsbd_experiment::plan(&Request { source, profile, set, images }).map_err(refusal)
}

/// A plan of one attack and one defense (`none`: the backdoored model itself).
pub fn one_point(attack: &str, defense: &str, point: &OnePoint, root: &DataRoot) -> Result<Plan, Failure> {
    let unknown = |kind: &str, name: &str| {
        Failure::refused(format!("there is no {kind} named \"{name}\""))
            .hint(format!("`tsbd list {kind}s` has those there are"))
    };
    if registry::attack(attack).is_none() {
        return Err(unknown("attack", attack));
    }
    if defense != "none" && tsbd_defense::find(defense).is_none() {
        return Err(unknown("defense", defense));
    }
    let text = format!(
        "title = \"{attack} + {defense}\"\nseeds = [{}]\n\n[grid]\nattack = [\"{attack}\"]\ndefense = [\"{defense}\"]\n",
        point.seed
    );
    let dataset = point.dataset.iter().map(|name| Setting::new("data.name", format!("{name:?}")));
    let request = Request {
        source: ExperimentSource::Text { name: format!("{attack}-{defense}"), text },
        profile: Some(point.profile.clone()),
        set: dataset.chain(point.set.iter().cloned()).collect(),
        images: ImagesFrom::Disk(root.clone()),
    };
    let plan = tsbd_experiment::plan(&request).map_err(refusal)?;
    match plan.points.len() {
        1 => Ok(plan),
        points => Err(Failure::refused(format!("--set makes {points} grid points of one"))
            .hint("write an experiment file and use `tsbd run` for a grid")),
    }
}

/// Everything that is wrong with an experiment, each with its place in the file.
fn refusal(refusal: Refusal) -> Failure {
    let problems = refusal.diagnostics.into_iter().map(|diagnostic| {
        let message = diagnostic.message();
        let Diagnostic { place, hint, .. } = diagnostic;
        let mut problem = Problem::new(message);
        if !place.source.text.is_empty() {
            problem = problem.at(&place.source.name, &place.source.text, place.span);
        }
        problem.hint = Some(hint);
        problem
    });
    Failure::several(Exit::Refused, problems.collect())
}

/// An error of the results folder. One that somebody else works in is refused before anything starts.
pub fn store_failure(error: StoreError) -> Failure {
    match &error {
        StoreError::InUse { root, holder } => {
            Failure::refused(format!("the results folder {} is in use by {holder}", root.display()))
                .hint("wait for it, stop it, or give another folder with --results")
        }
        StoreError::WithoutModels { .. } | StoreError::NotExported { .. } | StoreError::OtherResult { .. } => {
            Failure::refused(error.to_string())
        }
        _ => Failure::from_error(Exit::Failed, error),
    }
}
