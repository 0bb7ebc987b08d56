//! `tsbd`: backdoor attacks on image classifiers and their removal, one experiment file at a time.
//!
//! Standard output carries data, standard error carries talk, and the exit code says how it ended ([`failure::Exit`]).

mod columns;
mod command_line;
mod commands;
mod experiments;
mod failure;
mod grid;
mod labels;
mod options;
mod parameters;
mod planning;
mod progress;
mod terminal;
mod workbench;

use clap::Parser;

fn main() -> std::process::ExitCode {
    tsbd_tensor::memory::keep_freed_pages();
    let arguments = command_line::CommandLine::parse();
    terminal::prepare(&arguments.talk);
    match arguments.run() {
        Ok(exit) => exit.into(),
        Err(failure) => failure.report().into(),
    }
}
