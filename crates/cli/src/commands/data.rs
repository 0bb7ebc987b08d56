//! `tsbd data`: getting data sets, and making sure they are the published ones.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use tsbd_data::{DATASETS, DataRoot, DatasetEntry, FetchProgress, Fetched, FileReport, FileState};

use crate::columns::Columns;
use crate::command_line::examples;
use crate::failure::{Exit, Failure, Outcome, Problem};
use crate::options::DataFolder;
use crate::terminal::{self, Talk};

/// Fetch, verify or list data sets
///
/// Data sets are looked for in the folder that --data names, and nowhere else; without it in $TSBD_DATA, then in
/// tsbd/datasets in the user's cache folder. The data set `shapes` is drawn from a seed and needs neither a download nor a
/// file.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd data list                        what there is, and where it lies"
    "tsbd data fetch cifar10               download from the official source; run it again to continue"
    "tsbd data fetch cifar10 --from ~/Downloads/cifar-10-binary.tar.gz     without a network"
    "tsbd data verify cifar10              compare every file with its official SHA-256"
))]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Download a data set from its official source and verify it
    ///
    /// A broken download is continued by the same command. Nothing half-done is ever used: files are checked against
    /// their official SHA-256 before they are put in place.
    #[command(after_help = examples!(
        "tsbd data fetch cifar10"
        "tsbd data fetch cifar10 --data /mnt/datasets"
        "tsbd data fetch cifar10 --from ~/Downloads/cifar-10-binary.tar.gz"
    ))]
    Fetch {
        /// Data set: one of `tsbd data list`
        name: String,

        /// Use this archive, downloaded in another way, instead of the network
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,

        #[command(flatten)]
        folder: DataFolder,
    },
    /// Compare the files of a data set with the published ones
    #[command(after_help = examples!("tsbd data verify cifar10" "tsbd data verify --data /mnt/datasets --json"))]
    Verify {
        /// Data set [default: all that are on this machine]
        name: Option<String>,

        #[command(flatten)]
        folder: DataFolder,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List data sets, and where they lie on this machine
    #[command(after_help = examples!("tsbd data list" "tsbd data list --json"))]
    List {
        #[command(flatten)]
        folder: DataFolder,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Fetches, verifies or lists.
pub fn run(arguments: Arguments, talk: &Talk) -> Outcome {
    match arguments.what {
        What::Fetch { name, from, folder } => fetch(&name, from, &folder, talk),
        What::Verify { name, folder, json } => verify(name, &folder, json),
        What::List { folder, json } => Ok(list(&folder, json)),
    }
}

fn fetch(name: &str, archive: Option<PathBuf>, folder: &DataFolder, talk: &Talk) -> Outcome {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    if !talk.quiet && terminal::stderr_is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::stderr());
    }
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left");
    bar.set_style(style.expect("the template is a constant that indicatif reads"));
    let mut said = None;
    let mut stage = |message: &'static str| {
        bar.set_message(message);
        if bar.is_hidden() && !talk.quiet && said != Some(message) {
            terminal::say(format!("{name}: {message}"));
        }
        said = Some(message);
    };
    let mut progress = |progress: FetchProgress| match progress {
        FetchProgress::Downloading { received, total } => {
            stage("downloading");
            bar.set_length(total.unwrap_or(received));
            bar.set_position(received);
        }
        FetchProgress::Checking => stage("checking its SHA-256"),
        FetchProgress::Unpacking => stage("unpacking"),
    };
    let fetched = tsbd_data::fetch(name, &folder.root(), archive.as_deref(), &mut progress);
    bar.finish_and_clear();
    match fetched.map_err(failure)? {
        Fetched::AlreadyThere(folder) => {
            terminal::print(&format!("{name}: complete already, in {}\n", folder.display()));
        }
        Fetched::Unpacked(folder) => terminal::print(&format!("{name}: complete, in {}\n", folder.display())),
    }
    Ok(Exit::Done)
}

fn verify(name: Option<String>, folder: &DataFolder, json: bool) -> Outcome {
    let root = folder.root();
    let names: Vec<&str> = match &name {
        Some(name) => vec![name],
        None => DATASETS.iter().filter(|entry| place(entry, &root).is_some()).map(|entry| entry.name).collect(),
    };
    let mut reports = Vec::new();
    for name in names {
        let files = tsbd_data::verify(name, &root).map_err(failure)?;
        reports.extend(files.into_iter().map(|file| (name.to_owned(), file)));
    }
    if json {
        let list = reports.iter().map(|(name, file)| {
            json!({
                "dataset": name, "file": file.path, "valid": file.state == FileState::Valid,
                "problem": problem(&file.state),
            })
        });
        terminal::print_json(&Value::Array(list.collect()));
    } else if reports.is_empty() {
        let what = name
            .as_deref()
            .map_or("no data set with files is on this machine", |_| "drawn from a seed, no files to verify");
        terminal::print(&format!("{what}\n"));
    } else {
        let mut columns = Columns::default();
        for (_, FileReport { path, state }) in &reports {
            columns.row([problem(state).unwrap_or_else(|| "as published".into()), path.display().to_string()]);
        }
        terminal::print(&columns.render(usize::MAX));
    }
    let bad: Vec<_> = reports.iter().filter(|(_, file)| file.state != FileState::Valid).collect();
    let Some((name, file)) = bad.first() else { return Ok(Exit::Done) };
    let file = file.path.display();
    Err(Failure::failed(format!("{} of {} files are not as published, the first is {file}", bad.len(), reports.len()))
        .hint(format!("`tsbd data fetch {name}` replaces what is damaged")))
}

/// What is wrong with a file.
fn problem(state: &FileState) -> Option<String> {
    match state {
        FileState::Valid => None,
        FileState::Missing => Some("missing".to_owned()),
        FileState::WrongLength { expected, found } => Some(format!("{found} bytes instead of {expected}")),
        FileState::WrongDigest { expected, found } => {
            Some(format!("other contents: SHA-256 {found} instead of {expected}"))
        }
        FileState::Unreadable { reason } => Some(reason.clone()),
    }
}

fn place(entry: &DatasetEntry, root: &DataRoot) -> Option<PathBuf> {
    entry.official.and_then(|official| root.find(official.folder))
}

fn list(folder: &DataFolder, json: bool) -> Exit {
    let root = folder.root();
    if json {
        let list = DATASETS.iter().map(|entry| {
            json!({
                "name": entry.name, "title": entry.title, "place": place(entry, &root),
                "ready": entry.official.is_none() || place(entry, &root).is_some(),
                "url": entry.official.map(|official| official.archive.url),
            })
        });
        terminal::print_json(&Value::Array(list.collect()));
        return Exit::Done;
    }
    let mut columns = Columns::headed(&["NAME", "TITLE", "WHERE"]);
    for entry in DATASETS {
        let place = match (entry.official, place(entry, &root)) {
            (None, _) => "drawn from a seed, nothing to download".to_owned(),
            (Some(_), Some(place)) => place.display().to_string(),
            (Some(_), None) => format!("not here; `tsbd data fetch {}` downloads it", entry.name),
        };
        columns.row([entry.name.to_owned(), entry.title.to_owned(), place]);
    }
    terminal::print(&columns.render(terminal::stdout_width()));
    Exit::Done
}

/// An error about data: a wrong name or an absent data set is the user's to mend, everything else happened on the way.
pub fn failure(error: tsbd_data::Error) -> Failure {
    use tsbd_data::Error;
    let exit = match &error {
        Error::UnknownDataset { .. }
        | Error::NotFound { .. }
        | Error::Parameter { .. }
        | Error::NotDownloadable { .. } => Exit::Refused,
        _ => Exit::Failed,
    };
    let way_out = match &error {
        Error::NotFound { way_out, .. }
        | Error::Parameter { way_out, .. }
        | Error::WrongLength { way_out, .. }
        | Error::WrongDigest { way_out, .. }
        | Error::Label { way_out, .. }
        | Error::Download { way_out, .. }
        | Error::Incomplete { way_out, .. } => Some(way_out.clone()),
        _ => None,
    };
    // Such a message ends with its way out, which people find faster as a hint of its own.
    let message = error.to_string();
    match way_out.and_then(|way_out| Some((message.strip_suffix(&format!("; {way_out}"))?.to_owned(), way_out))) {
        Some((message, way_out)) => Failure::several(exit, vec![Problem::new(message)]).hint(way_out),
        None => Failure::from_error(exit, error),
    }
}
