//! The two streams: data goes to standard output, talk (logs, progress, errors) to standard error.
//!
//! Both are plain text without colour or control characters unless they are a terminal; `NO_COLOR` takes the colour
//! from a terminal too.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use clap::Args;
use indicatif::MultiProgress;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How much is said on standard error.
#[derive(Args, Debug, Clone, Default)]
pub struct Talk {
    /// Say more on standard error: -v what is done, -vv every detail
    #[arg(short, long, action = clap::ArgAction::Count, global = true, help_heading = "Talk")]
    pub verbose: u8,

    /// Say nothing on standard error but errors
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Talk")]
    pub quiet: bool,
}

/// The bars being drawn, if any: every other line on standard error has to step around them.
static BARS: OnceLock<MultiProgress> = OnceLock::new();

/// Sets up logs and the look of errors; called once, before the command runs.
pub fn prepare(talk: &Talk) {
    let level = match (talk.quiet, talk.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info,tsbd=debug",
        (false, _) => "debug",
    };
    let filter = EnvFilter::try_from_env("TSBD_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let layer = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(AroundBars)
        .with_ansi(colour_on_stderr())
        .with_target(talk.verbose > 1);
    if talk.verbose > 1 {
        layer.init();
    } else {
        layer.without_time().init();
    }
    let colour = colour_on_stderr();
    let width = stderr_width().clamp(60, 120);
    // Refused only when a hook is set already, and nobody else sets one.
    let _ = miette::set_hook(Box::new(move |_| {
        Box::new(miette::MietteHandlerOpts::new().color(colour).width(width).context_lines(1).build())
    }));
}

/// Whether standard error is a person's terminal.
pub fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Whether errors and logs may be coloured.
pub fn colour_on_stderr() -> bool {
    stderr_is_terminal() && colour_is_welcome()
}

/// Whether what is printed as data may be coloured.
pub fn colour_on_stdout() -> bool {
    io::stdout().is_terminal() && colour_is_welcome()
}

/// <https://no-color.org>: any non-empty value refuses colour; a dumb terminal cannot show it.
fn colour_is_welcome() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|terminal| terminal != "dumb")
}

/// Columns of the terminal behind standard error, 100 where there is none.
pub fn stderr_width() -> usize {
    if stderr_is_terminal() { usize::from(console::Term::stderr().size().1) } else { 100 }
}

/// Columns of the terminal behind standard output, 100 where there is none.
pub fn stdout_width() -> usize {
    width_of_stdout().map_or(100, |width| width.clamp(40, 120))
}

/// Columns of the terminal behind standard output, if there is one.
pub fn width_of_stdout() -> Option<usize> {
    let terminal = console::Term::stdout();
    terminal.is_term().then(|| usize::from(terminal.size().1))
}

/// The bars of this process; drawing happens on standard error.
pub fn bars() -> &'static MultiProgress {
    BARS.get_or_init(MultiProgress::new)
}

/// Writes one line of talk, above the bars where there are any.
pub fn say(line: impl AsRef<str>) {
    let mut writer = AroundBars;
    // Nothing can be said about a standard error that is gone.
    let _ = writer.write_all(format!("{}\n", line.as_ref()).as_bytes());
}

/// Prints data. A reader that has gone away (`tsbd table ... | head`) is no error.
pub fn print(data: &str) {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(data.as_bytes()).and_then(|()| stdout.flush());
    if let Err(error) = written {
        if error.kind() == io::ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        say(format!("tsbd: standard output cannot be written: {error}"));
        std::process::exit(1);
    }
}

/// Prints a value as indented JSON and a line end.
pub fn print_json(value: &serde_json::Value) {
    print(&format!("{value:#}\n"));
}

/// A writer to standard error that lifts the bars out of the way.
#[derive(Clone, Copy)]
struct AroundBars;

impl Write for AroundBars {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match BARS.get() {
            Some(bars) => bars.suspend(|| io::stderr().write_all(buffer))?,
            None => io::stderr().write_all(buffer)?,
        }
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl MakeWriter<'_> for AroundBars {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}
