//! The experiment files of a folder, for `tsbd list experiments`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::columns::Columns;
use crate::failure::{Exit, Failure};
use crate::terminal;

/// What the head of an experiment file says.
struct Head {
    file: PathBuf,
    title: String,
    profile: String,
    attacks: usize,
    defenses: usize,
}

/// The experiment files of a folder, by name.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::from_error(Exit::Refused, error)
            .hint("name the folder or its files, or run from the folder that contains `experiments`")
    };
    let mut files = Vec::new();
    for entry in fs_err::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Prints the experiment files of a folder, by name. Files that cannot be read as TOML are named on standard error.
pub fn list(folder: &Path, json: bool) -> Result<(), Failure> {
    let files = files(folder)?;
    let heads: Vec<Head> = files.into_iter().filter_map(head).collect();
    if json {
        let list = heads.iter().map(|head| {
            json!({
                "file": head.file, "title": head.title, "profile": head.profile,
                "attacks": head.attacks, "defenses": head.defenses,
            })
        });
        terminal::print_json(&Value::Array(list.collect()));
        return Ok(());
    }
    let mut columns = Columns::headed(&["FILE", "PROFILE", "GRID", "TITLE"]);
    for Head { file, title, profile, attacks, defenses } in heads {
        let grid = format!("{attacks} attacks x {defenses} defenses");
        columns.row([file.display().to_string(), profile, grid, title]);
    }
    terminal::print(&columns.render(terminal::stdout_width()));
    Ok(())
}

fn head(file: PathBuf) -> Option<Head> {
    let text = fs_err::read_to_string(&file).map_err(|error| error.to_string());
    let table = match text.and_then(|text| text.parse::<toml::Table>().map_err(|error| error.message().to_owned())) {
        Ok(table) => table,
        Err(reason) => {
            terminal::say(format!("warning: {}: {reason}", file.display()));
            return None;
        }
    };
    let text = |key: &str| table.get(key).and_then(toml::Value::as_str).unwrap_or("-").to_owned();
    let count = |axis: &str| match table.get("grid").and_then(|grid| grid.get(axis)) {
        Some(toml::Value::Array(values)) => values.len(),
        _ => 1,
    };
    Some(Head {
        title: text("title"),
        profile: text("profile"),
        attacks: count("attack"),
        defenses: count("defense"),
        file,
    })
}
