//! The section `[slurm]`: what the cells of an experiment ask a cluster for. It is part of no cell's key: where a cell
//! is computed changes nothing about its result.

use super::section::Section;
use crate::diagnostic::{Place, Problems};
use crate::document::Table;

/// What each job asks Slurm for, and how the jobs are followed. `[slurm]` of an experiment file or profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlurmParameters {
    /// `partition`: where jobs go; the site's default if none is named.
    pub partition: Option<String>,
    /// `account` that is charged.
    pub account: Option<String>,
    /// `qos`: quality of service.
    pub qos: Option<String>,
    /// `time`: limit of one cell, as Slurm writes it: minutes, `hours:minutes:seconds`, `days-hours`; the partition's default
    /// if there is none. A cell that needs longer goes on from its last checkpoint in another job.
    pub time: Option<String>,
    /// `memory` of one cell: a number with K, M, G or T; the partition's default if there is none.
    pub memory: Option<String>,
    /// `cpus` of one cell, which are its threads; at least 1.
    pub cpus: usize,
    /// `gpus` of one cell.
    pub gpus: usize,
    /// `at_once`: most cells of an array that run at a time; as many as Slurm gives if there is none.
    pub at_once: Option<usize>,
    /// `array_size`: most cells of one array. The cluster's `MaxArraySize` is kept to in any case.
    pub array_size: Option<usize>,
    /// `resubmit`: how often a cell is submitted again that was lost (a node that failed, a preemption without requeue).
    pub resubmit: usize,
    /// `poll_seconds`: how often the queue is looked at; at least 1.
    pub poll_seconds: usize,
    /// `flags`: further flags of sbatch, e.g. `--constraint=icelake`.
    pub flags: Vec<String>,
    /// `setup`: lines of shell before each cell, e.g. `module load gcc`.
    pub setup: Vec<String>,
}

impl Default for SlurmParameters {
    fn default() -> Self {
        Self {
            partition: None,
            account: None,
            qos: None,
            time: None,
            memory: None,
            cpus: 1,
            gpus: 0,
            at_once: None,
            array_size: None,
            resubmit: 3,
            poll_seconds: 10,
            flags: Vec::new(),
            setup: Vec::new(),
        }
    }
}

const KEYS: &[&str] = &[
    "partition",
    "account",
    "qos",
    "time",
    "memory",
    "cpus",
    "gpus",
    "at_once",
    "array_size",
    "resubmit",
    "poll_seconds",
    "flags",
    "setup",
];

/// Flags of sbatch that have a key of their own here, with that key.
const HAVE_KEYS: &[(&str, &str)] = &[
    ("--partition", "partition"),
    ("--account", "account"),
    ("--qos", "qos"),
    ("--time", "time"),
    ("--mem", "memory"),
    ("--cpus-per-task", "cpus"),
    ("--gres", "gpus"),
    ("--gpus", "gpus"),
];

/// Flags of sbatch without which jobs could not be followed.
const RESERVED: &[&str] = &[
    "--array",
    "--dependency",
    "--output",
    "--error",
    "--open-mode",
    "--job-name",
    "--parsable",
    "--requeue",
    "--no-requeue",
    "--chdir",
    "--wrap",
    "--wait",
    "--test-only",
];

pub(super) fn read(root: &Table, start: &Place, problems: &mut Problems) -> SlurmParameters {
    let section = Section::open(root, "slurm", KEYS, start, problems);
    let word = |name: &str, problems: &mut Problems| {
        let text = section.text(name, problems)?;
        let is_word = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"');
        if !is_word {
            section.refuse(name, "a name is one word", "write the name as `sinfo` or `sacctmgr` shows it", problems);
        }
        is_word.then_some(text)
    };
    let default = SlurmParameters::default();
    SlurmParameters {
        partition: word("partition", problems),
        account: word("account", problems),
        qos: word("qos", problems),
        time: time(&section, problems),
        memory: memory(&section, problems),
        cpus: section.integer("cpus", 1, problems).unwrap_or(default.cpus),
        gpus: section.integer("gpus", 0, problems).unwrap_or(default.gpus),
        at_once: section.integer("at_once", 1, problems),
        array_size: section.integer("array_size", 1, problems),
        resubmit: section.integer("resubmit", 0, problems).unwrap_or(default.resubmit),
        poll_seconds: section.integer("poll_seconds", 1, problems).unwrap_or(default.poll_seconds),
        flags: flags(&section, problems),
        setup: setup(&section, problems),
    }
}

/// A limit of time as Slurm reads it; a number counts minutes.
fn time(section: &Section<'_>, problems: &mut Problems) -> Option<String> {
    if section.get("time")?.to_json().is_i64() {
        return section.integer("time", 1, problems).map(|minutes| minutes.to_string());
    }
    let text = section.text("time", problems)?;
    let numbers = |text: &str, most: usize| {
        let parts: Vec<&str> = text.split(':').collect();
        parts.len() <= most && parts.iter().all(|part| is_number(part))
    };
    let is_time = match text.split_once('-') {
        Some((days, rest)) => is_number(days) && numbers(rest, 3),
        None => numbers(&text, 3),
    };
    if !is_time || text.bytes().all(|byte| !byte.is_ascii_digit() || byte == b'0') {
        let hint = "write minutes (90), \"hours:minutes:seconds\" (\"1:30:00\") or \"days-hours\" (\"1-12\")";
        section.refuse("time", "no limit of time", hint, problems);
        return None;
    }
    Some(text)
}

fn memory(section: &Section<'_>, problems: &mut Problems) -> Option<String> {
    let text = section.text("memory", problems)?;
    let digits = text.strip_suffix(['K', 'M', 'G', 'T']).unwrap_or(&text);
    if !is_number(digits) || digits.bytes().all(|byte| byte == b'0') {
        section.refuse("memory", "no amount of memory", "write a number with K, M, G or T, e.g. \"8G\"", problems);
        return None;
    }
    Some(text)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn flags(section: &Section<'_>, problems: &mut Problems) -> Vec<String> {
    let flags = section.texts("flags", problems).unwrap_or_default();
    for flag in &flags {
        let name = flag.split('=').next().unwrap_or_default();
        if !name.starts_with("--") || name.len() < 4 || flag.contains(char::is_control) {
            let hint = "write each flag as sbatch's long form in one text: \"--constraint=icelake\", \"--exclusive\"";
            section.refuse("flags", format!("`{flag}` is no flag of sbatch"), hint, problems);
        } else if let Some((_, key)) = HAVE_KEYS.iter().find(|(known, _)| *known == name) {
            let hint = format!("write {key} = ... in [slurm] instead");
            section.refuse("flags", format!("`{name}` has a key of its own"), hint, problems);
        } else if RESERVED.contains(&name) {
            let reason = format!("`{name}` is set by this program, which could not follow the jobs otherwise");
            section.refuse("flags", reason, "leave it out", problems);
        }
    }
    flags
}

fn setup(section: &Section<'_>, problems: &mut Problems) -> Vec<String> {
    let lines = section.texts("setup", problems).unwrap_or_default();
    if lines.iter().any(|line| line.contains('\n')) {
        section.refuse("setup", "a line with a line break", "write each line of shell as a text of its own", problems);
    }
    lines
}
