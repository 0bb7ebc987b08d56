//! What coordinator and child say to each other: arguments one way, lines of JSON the other way, and the exit code. A child
//! that computes several cells gets lines of JSON, too.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tsbd_experiment::CellKey;

/// Exit code of a child that published its result, or found it published.
pub const EXIT_DONE: u8 = 0;
/// Exit code of a child that failed. The reason was its last event.
pub const EXIT_FAILED: u8 = 1;
/// Exit code of a child that stopped on request and can be continued.
pub const EXIT_STOPPED: u8 = 130;

/// Variable that tells a child the process that started it, without which it should not live on.
pub(crate) const COORDINATOR_VARIABLE: &str = "TSBD_COORDINATOR";

/// The command line of a child: `tsbd cell <key> --results DIR [--data DIR] --device D --threads N [--attempt ID]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellArguments {
    /// The cell, which `results/cells/<key>/cell.toml` describes.
    pub key: CellKey,
    /// The results folder.
    pub results: PathBuf,
    /// The folder with the data sets, if the user named one.
    pub data: Option<PathBuf>,
    /// `cpu`, `cuda:0`, ...
    pub device: String,
    /// Threads to compute with; at least 1.
    pub threads: usize,
    /// The attempt to work in, e.g. `2-4711`; the child chooses one itself if there is none or if it is in use.
    pub attempt: Option<String>,
}

impl CellArguments {
    /// What follows the program's name on the command line.
    pub fn to_command_line(&self) -> Vec<OsString> {
        let mut line: Vec<OsString> = vec!["cell".into(), self.key.as_str().into()];
        line.extend(flags(&self.results, self.data.as_deref(), &self.device, self.threads));
        if let Some(attempt) = &self.attempt {
            line.extend(["--attempt".into(), attempt.into()]);
        }
        line
    }
}

/// The command line of a child that computes several cells: `tsbd cells --results DIR [--data DIR] --device D --threads N`.
/// Its standard input says which, a `CellRequest` a line; it ends with its input, when they have ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellsArguments {
    /// The results folder.
    pub results: PathBuf,
    /// The folder with the data sets, if the user named one.
    pub data: Option<PathBuf>,
    /// `cuda:0`, ...
    pub device: String,
    /// Threads of the CPU that the cells have together; at least 1.
    pub threads: usize,
}

impl CellsArguments {
    /// What follows the program's name on the command line.
    pub fn to_command_line(&self) -> Vec<OsString> {
        let mut line = vec!["cells".into()];
        line.extend(flags(&self.results, self.data.as_deref(), &self.device, self.threads));
        line
    }

    /// The arguments of one of the cells.
    pub(crate) fn of(&self, request: CellRequest) -> CellArguments {
        let Self { results, data, device, threads } = self.clone();
        let CellRequest { key, attempt } = request;
        CellArguments { key, results, data, device, threads, attempt: Some(attempt) }
    }
}

fn flags(results: &Path, data: Option<&Path>, device: &str, threads: usize) -> Vec<OsString> {
    let mut flags: Vec<OsString> = vec!["--results".into(), results.into()];
    if let Some(data) = data {
        flags.extend(["--data".into(), data.into()]);
    }
    flags.extend(["--device".into(), device.into(), "--threads".into(), threads.to_string().into()]);
    flags
}

/// One line of the standard input of a child that computes several cells: begin with this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CellRequest {
    pub key: CellKey,
    /// The attempt to work in.
    pub attempt: String,
}

/// One line of the standard output of a child that computes several cells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "host", rename_all = "kebab-case")]
pub(crate) enum HostEvent {
    /// A cell said something.
    Said { key: CellKey, event: CellEvent },
    /// A line for a cell's log: it has no standard error of its own.
    Log { key: CellKey, text: String },
    /// The GPU has failed: the process ends, and with it all its cells, any of which may have caused it.
    Fault { reason: String },
}

impl HostEvent {
    /// The event as a line of JSON, without the line's end.
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("an event has string keys only")
    }

    /// The event in a line, or `None` if the line is something else.
    pub fn from_line(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }
}

/// One line of a child's standard output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum CellEvent {
    /// It works in this attempt.
    Started {
        /// The child.
        pid: u32,
        /// The attempt's name.
        attempt: String,
        /// Whether there is a checkpoint to continue from.
        continues: bool,
    },
    /// A stage begins: `load data`, `train`, `evaluate`, `unlearn`, ...
    Stage {
        /// Its name.
        stage: String,
    },
    /// A step of a stage is done.
    Step {
        /// The stage.
        stage: String,
        /// Epoch, from 0.
        epoch: usize,
        /// Epochs of the stage.
        epochs: usize,
        /// Steps done in this epoch.
        step: usize,
        /// Steps of an epoch.
        steps: usize,
        /// Loss of the step.
        loss: Option<f64>,
        /// Speed.
        images_per_second: Option<f64>,
    },
    /// An epoch of a stage is done.
    Epoch {
        /// The stage.
        stage: String,
        /// Epoch, from 0.
        epoch: usize,
        /// Epochs of the stage.
        epochs: usize,
        /// Fractions, losses, rates.
        metrics: BTreeMap<String, f64>,
    },
    /// Something worth telling the user.
    Note {
        /// A sentence.
        text: String,
    },
    /// The result is published.
    Finished {
        /// Fractions.
        metrics: BTreeMap<String, f64>,
        /// Seconds of computing.
        seconds: f64,
    },
    /// It stopped on request.
    Stopped,
    /// It failed.
    Failed {
        /// Why, with the way out.
        reason: String,
        /// Whether its device could not be had.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        no_device: bool,
    },
}

impl CellEvent {
    /// The share of its stage that is done with a step, in [0, 1]; `None` of other events.
    pub fn share(&self) -> Option<f64> {
        match self {
            Self::Step { epoch, epochs, step, steps, .. } => {
                Some(((epoch * steps + step) as f64 / (epochs * steps).max(1) as f64).min(1.0))
            }
            _ => None,
        }
    }

    /// The event as a line of JSON, without the line's end.
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("an event has string keys only")
    }

    /// The event in a line, or `None` if the line is something else (a library that prints, for example).
    pub fn from_line(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_survives_its_line() {
        let metrics = BTreeMap::from([("acc".to_owned(), 0.5)]);
        let events = [
            CellEvent::Started { pid: 1, attempt: "1-1".into(), continues: true },
            CellEvent::Stage { stage: "train".into() },
            CellEvent::Step {
                stage: "train".into(),
                epoch: 0,
                epochs: 3,
                step: 1,
                steps: 10,
                loss: Some(2.5),
                images_per_second: None,
            },
            CellEvent::Epoch { stage: "train".into(), epoch: 0, epochs: 3, metrics: metrics.clone() },
            CellEvent::Note { text: "a line\nof two".into() },
            CellEvent::Finished { metrics, seconds: 1.0 },
            CellEvent::Stopped,
            CellEvent::Failed { reason: "because".into(), no_device: false },
            CellEvent::Failed { reason: "because".into(), no_device: true },
        ];
        let key: CellKey = "9f37163f9cfef805ecb3ffaaebcac554".parse().unwrap();
        let log = HostEvent::Log { key: key.clone(), text: "a line".into() };
        assert_eq!(HostEvent::from_line(&log.to_line()), Some(log));
        for event in events {
            let line = event.to_line();
            assert!(!line.contains('\n'));
            assert_eq!(CellEvent::from_line(&line), Some(event.clone()));
            let said = HostEvent::Said { key: key.clone(), event };
            let line = said.to_line();
            assert!(!line.contains('\n'));
            assert_eq!(HostEvent::from_line(&line), Some(said));
        }
    }

    #[test]
    fn a_loss_that_is_no_number_is_told_as_unknown() {
        let step = CellEvent::Step {
            stage: "train".into(),
            epoch: 0,
            epochs: 1,
            step: 1,
            steps: 1,
            loss: Some(f64::NAN),
            images_per_second: None,
        };
        assert!(matches!(CellEvent::from_line(&step.to_line()), Some(CellEvent::Step { loss: None, .. })));
    }

    #[test]
    fn a_line_of_something_else_is_no_event() {
        assert_eq!(CellEvent::from_line("warning: 3 leaks"), None);
        assert_eq!(CellEvent::from_line(r#"{"event": "unheard-of"}"#), None);
    }
}
