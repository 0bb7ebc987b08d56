//! How a command ends: the exit codes, and what is written on standard error when it does not end well.
//!
//! An error shows the file and the lines it is about where there are any, the cause below it, and a way out as `hint:`.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};

use crate::terminal;

/// The exit codes, which scripts may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: everything asked for is done.
    Done,
    /// 1: something failed while it ran (a cell, a file that cannot be written).
    Failed,
    /// 2: the command line or the experiment file was refused, and nothing was started.
    Refused,
    /// 130: interrupted; the same command continues.
    Interrupted,
}

impl Exit {
    /// Its number.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Refused => 2,
            Exit::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

/// Why a command stopped.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    problems: Vec<Problem>,
}

/// What a command returns.
pub type Outcome = Result<Exit, Failure>;

impl Failure {
    /// The command line or a file named on it is refused.
    pub fn refused(message: impl Into<String>) -> Self {
        Self { exit: Exit::Refused, problems: vec![Problem::new(message.into())] }
    }

    /// Something went wrong on the way.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, problems: vec![Problem::new(message.into())] }
    }

    /// An error of a library, refused or failed, with its causes.
    pub fn from_error(exit: Exit, error: impl Error + Send + Sync + 'static) -> Self {
        let problem = Problem { message: error.to_string(), cause: Cause::of(&error), ..Problem::new(String::new()) };
        Self { exit, problems: vec![problem] }
    }

    /// Several problems found at once, as in an experiment file.
    pub fn several(exit: Exit, problems: Vec<Problem>) -> Self {
        Self { exit, problems }
    }

    /// Adds the way out of the last problem, unless it has one.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Some(problem) = self.problems.last_mut() {
            problem.hint.get_or_insert(hint.into());
        }
        self
    }

    /// Writes the problems on standard error and gives the exit code back.
    pub fn report(self) -> Exit {
        let exit = self.exit;
        for problem in self.problems {
            let hint = problem.hint.clone();
            terminal::say(format!("{:?}", miette::Report::new(problem)).trim_end());
            if let Some(hint) = hint {
                terminal::say(format!("hint: {hint}"));
            }
        }
        exit
    }
}

/// One problem: what is wrong, where, why, and the way out.
#[derive(Debug)]
pub struct Problem {
    /// What is wrong, naming file, field and value.
    pub message: String,
    /// The text it is about, with the places marked.
    pub snippet: Option<Snippet>,
    /// The way out.
    pub hint: Option<String>,
    cause: Option<Cause>,
}

/// A piece of a text file with a mark under a range of bytes.
#[derive(Debug)]
pub struct Snippet {
    source: NamedSource<String>,
    span: std::ops::Range<usize>,
}

impl Problem {
    /// A problem without a place in a file.
    pub fn new(message: String) -> Self {
        Self { message, snippet: None, hint: None, cause: None }
    }

    /// The same problem, at these bytes of this file.
    pub fn at(mut self, file: &str, text: &str, span: std::ops::Range<usize>) -> Self {
        let end = span.end.min(text.len());
        let span = span.start.min(end)..end;
        let source = NamedSource::new(file, text.to_owned()).with_language("TOML");
        self.snippet = Some(Snippet { source, span });
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl Error for Problem {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_ref().map(|cause| cause as &(dyn Error + 'static))
    }
}

impl Diagnostic for Problem {
    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.snippet.as_ref().map(|snippet| &snippet.source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let snippet = self.snippet.as_ref()?;
        let label = LabeledSpan::new_with_span(None, snippet.span.clone());
        Some(Box::new(std::iter::once(label)))
    }
}

/// The chain of causes of a library's error, kept as text so that any error fits.
#[derive(Debug)]
struct Cause {
    message: String,
    cause: Option<Box<Cause>>,
}

impl Cause {
    fn of(error: &dyn Error) -> Option<Self> {
        let source = error.source()?;
        let message = source.to_string();
        // An error that prints its own cause (`#[error(transparent)]`, "{path}: {source}") would say it twice.
        if error.to_string().contains(&message) {
            return Self::of(source);
        }
        Some(Self { message, cause: Self::of(source).map(Box::new) })
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the record cannot be read")]
    struct Outer(#[source] std::io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("record.json: {0}")]
    struct Repeating(#[source] std::io::Error);

    #[test]
    fn a_cause_is_kept_below_its_error() {
        let cause = Cause::of(&Outer(std::io::Error::other("disk full"))).expect("the error has a cause");
        assert_eq!(cause.message, "disk full");
    }

    #[test]
    fn a_cause_its_error_already_tells_is_not_told_twice() {
        assert!(Cause::of(&Repeating(std::io::Error::other("disk full"))).is_none());
    }

    #[test]
    fn a_span_past_the_end_of_its_file_is_cut_and_never_panics() {
        let problem = Problem::new("bad value".into()).at("x.toml", "a = 1", 3..99);
        assert_eq!(problem.snippet.expect("was just given").span, 3..5);
    }
}
