//! The layers of an experiment: profile < experiment file < `--set`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fs_err as fs;

use super::methods::{ATTACK, DEFENSE};
use super::section::refuse_unknown;
use super::{ExperimentSource, Request};
use crate::diagnostic::{Place, Problems, Refusal, SourceText, suggest};
use crate::document::{Content, Node, Table, overlay, parse};

/// Profiles that are part of the program; a file of the same name beside the experiment comes first.
pub static PROFILES: &[(&str, &str)] = &[
    ("smoke", include_str!("../../../../experiments/profiles/smoke.toml")),
    ("quick", include_str!("../../../../experiments/profiles/quick.toml")),
    ("paper", include_str!("../../../../experiments/profiles/paper.toml")),
];

/// The profile of an experiment that names none.
const DEFAULT_PROFILE: &str = "quick";

/// Tables that a profile may give defaults for.
const PROFILE_KEYS: &[&str] =
    &["data", "model", "training", "attack", "attacks", "defense", "defenses", "measures", "slurm"];
/// What an experiment file may hold besides.
const FILE_KEYS: &[&str] = &["title", "profile", "seeds", "grid", "table", "figure"];

/// An experiment with its layers laid over each other.
pub(super) struct Layers {
    /// The file's stem.
    pub name: String,
    pub profile: String,
    pub table: Table,
    /// The beginning of the experiment file: where to point for what is missing.
    pub start: Place,
}

pub(super) fn read(request: &Request) -> Result<Layers, Refusal> {
    let mut problems = Problems::default();
    let (name, source, profiles) = open(&request.source)?;
    let start = Place { source: Arc::clone(&source), span: 0..0 };
    let mut upper = parse(&source, &mut problems);
    for setting in &request.set {
        lay(&mut upper, setting.parse(&mut problems));
    }
    let known: Vec<&str> = FILE_KEYS.iter().chain(PROFILE_KEYS).copied().collect();
    refuse_unknown(&upper, "", &known, &mut problems);
    let (profile, asked_at) = match (&request.profile, upper.get("profile")) {
        (Some(name), _) => {
            let source = Arc::new(SourceText { name: "--profile".into(), text: name.clone() });
            (name.clone(), Place { span: 0..name.len(), source })
        }
        (None, Some(node)) => match &node.content {
            Content::Text(name) => (name.clone(), node.place.clone()),
            _ => {
                let hint = "write a text, e.g. profile = \"quick\"";
                problems.add(&node.place, "profile", Some(node.written()), "a profile has a name", hint);
                (DEFAULT_PROFILE.to_owned(), start.clone())
            }
        },
        (None, None) => (DEFAULT_PROFILE.to_owned(), start.clone()),
    };
    let mut table = Table::new();
    if let Some(source) = find_profile(&profile, profiles.as_deref(), &asked_at, &mut problems) {
        table = parse(&source, &mut problems);
        refuse_unknown(&table, "", PROFILE_KEYS, &mut problems);
    }
    // Nothing that follows makes sense of a text that is no TOML.
    problems.refuse_if_any()?;
    lay(&mut table, upper);
    Ok(Layers { name, profile, table, start })
}

/// Lays a layer over those below it. What it writes for all methods comes before what they wrote for single ones.
fn lay(below: &mut Table, layer: Table) {
    for family in [&ATTACK, &DEFENSE] {
        for field in layer.get(family.shared).and_then(Node::as_table).into_iter().flat_map(Table::keys) {
            family.forget_own(below, field);
        }
    }
    overlay(below, layer);
}

fn open(source: &ExperimentSource) -> Result<(String, Arc<SourceText>, Option<PathBuf>), Refusal> {
    match source {
        ExperimentSource::Text { name, text } => {
            Ok((name.clone(), Arc::new(SourceText { name: name.clone(), text: text.clone() }), None))
        }
        ExperimentSource::File(path) => {
            let shown = path.display().to_string();
            let text = fs::read_to_string(path).map_err(|error| {
                let source = Arc::new(SourceText { name: shown.clone(), text: String::new() });
                let mut problems = Problems::default();
                let hint = "`tsbd list experiments` prints the files there are";
                problems.add(&Place { source, span: 0..0 }, "", None, error.to_string(), hint);
                problems.refuse_if_any().expect_err("a problem was just added")
            })?;
            let name = path.file_stem().map_or_else(|| shown.clone(), |stem| stem.to_string_lossy().into_owned());
            let profiles = path.parent().map(|folder| folder.join("profiles"));
            Ok((name, Arc::new(SourceText { name: shown, text }), profiles))
        }
    }
}

fn find_profile(
    name: &str,
    folder: Option<&Path>,
    asked_at: &Place,
    problems: &mut Problems,
) -> Option<Arc<SourceText>> {
    // A name, not a path: it becomes part of every cell's key.
    let is_name =
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if is_name
        && let Some(path) = folder.map(|folder| folder.join(format!("{name}.toml")))
        && path.exists()
    {
        match fs::read_to_string(&path) {
            Ok(text) => return Some(Arc::new(SourceText { name: path.display().to_string(), text })),
            Err(error) => {
                let hint = "make the file readable, or choose another profile";
                problems.add(asked_at, "profile", Some(format!("\"{name}\"")), error.to_string(), hint);
                return None;
            }
        }
    }
    if let Some((name, text)) = PROFILES.iter().find(|(built_in, _)| *built_in == name) {
        let name = format!("profiles/{name}.toml (built in)");
        return Some(Arc::new(SourceText { name, text: (*text).to_owned() }));
    }
    let mut known: Vec<String> = PROFILES.iter().map(|(name, _)| (*name).to_owned()).collect();
    for entry in folder.and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten() {
        let path = entry.path();
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        known.extend(stem.filter(|stem| path.extension().is_some_and(|end| end == "toml") && !known.contains(stem)));
    }
    let hint = suggest(name, known.iter().map(String::as_str));
    problems.add(asked_at, "profile", Some(format!("\"{name}\"")), "there is no such profile", hint);
    None
}
