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
mod signals;
mod terminal;
mod workbench;

use clap::Parser;
use tsbd_tensor::{ConvolutionAlgorithm, Device, InstructionSet, Recording};

use failure::{Exit, Failure};

fn main() -> std::process::ExitCode {
    tsbd_tensor::memory::keep_freed_pages();
    let arguments = command_line::CommandLine::parse();
    terminal::prepare(&arguments.talk);
    match check_environment().and_then(|()| arguments.run()) {
        Ok(exit) => exit.into(),
        Err(failure) => failure.report().into(),
    }
}

/// Refuses values of the kernels' environment variables that mean nothing, before anything starts.
fn check_environment() -> Result<(), Failure> {
    let refused = |error| Failure::from_error(Exit::Refused, error);
    InstructionSet::current().map_err(refused)?;
    ConvolutionAlgorithm::current().map_err(refused)?;
    Recording::is_possible(&Device::Cpu).map_err(refused)?;
    Ok(())
}
