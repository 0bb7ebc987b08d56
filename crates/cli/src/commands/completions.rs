//! `tsbd completions`: a completion script for the user's shell.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::command_line::{CommandLine, examples};
use crate::failure::{Exit, Outcome};
use crate::terminal;

/// Print a completion script for a shell
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd completions bash > ~/.local/share/bash-completion/completions/tsbd"
    "tsbd completions zsh > ~/.zfunc/_tsbd        (with ~/.zfunc in fpath)"
    "tsbd completions fish > ~/.config/fish/completions/tsbd.fish"
))]
pub struct Arguments {
    /// The shell
    shell: Shell,
}

/// Prints the script.
pub fn run(arguments: Arguments) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut CommandLine::command(), "tsbd", &mut script);
    terminal::print(&String::from_utf8_lossy(&script));
    Ok(Exit::Done)
}
