//! The experiment files of a folder, for `tsbd list experiments`.

use std::collections::BTreeMap;
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
    /// How many values each axis has, by name; seeds are the last.
    axes: Vec<(String, usize)>,
}

impl Head {
    fn count(&self, axis: &str) -> usize {
        self.axes.iter().find(|(name, _)| name == axis).map_or(1, |(_, count)| *count)
    }

    /// `4 attacks x 1 defense x 11 alpha`.
    fn grid(&self) -> String {
        let named = self.axes.iter().map(|(axis, count)| {
            let plural = if *count == 1 { "" } else { "s" };
            match axis.as_str() {
                "attack" | "defense" | "seed" => format!("{count} {axis}{plural}"),
                "measure" => format!("{count} measurement{plural}"),
                other => format!("{count} {}", other.rsplit('.').next().unwrap_or(other)),
            }
        });
        named.collect::<Vec<_>>().join(" x ")
    }
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
                "attacks": head.count("attack"), "defenses": head.count("defense"),
                "axes": head.axes.iter().cloned().collect::<BTreeMap<_, _>>(),
            })
        });
        terminal::print_json(&Value::Array(list.collect()));
        return Ok(());
    }
    let mut columns = Columns::headed(&["FILE", "PROFILE", "GRID", "TITLE"]);
    for head in heads {
        let grid = head.grid();
        let Head { file, title, profile, .. } = head;
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
    let mut axes = Vec::new();
    if let Some(toml::Value::Table(grid)) = table.get("grid") {
        count_axes("", grid, &mut axes);
    }
    if let Some(toml::Value::Array(seeds)) =
        table.get("seeds").filter(|seeds| seeds.as_array().is_some_and(|all| all.len() > 1))
    {
        axes.push(("seed".to_owned(), seeds.len()));
    }
    Some(Head { title: text("title"), profile: text("profile"), axes, file })
}

/// The axes of a grid, whose keys may be dotted or tables in each other.
fn count_axes(above: &str, grid: &toml::Table, axes: &mut Vec<(String, usize)>) {
    for (key, value) in grid {
        let axis = format!("{above}{key}");
        match value {
            toml::Value::Table(below) => count_axes(&format!("{axis}."), below, axes),
            toml::Value::Array(values) => axes.push((axis, values.len())),
            _ => axes.push((axis, 1)),
        }
    }
}
