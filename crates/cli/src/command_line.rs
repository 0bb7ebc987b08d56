//! What the user typed: the subcommands and the help around them. What each one does lies in [`crate::commands`].

use clap::builder::styling::{AnsiColor, Style, Styles};
use clap::{Parser, Subcommand};

use crate::commands;
use crate::failure::{Exit, Outcome};
use crate::terminal::{self, Talk};

/// Backdoor attacks on image classifiers and their removal: experiments that run with one command.
///
/// An experiment file describes a grid of attacks, defenses and seeds. `tsbd run` trains and repairs what the results
/// folder does not hold yet; `tsbd table` makes tables of what it holds. Both can be repeated at any time.
#[derive(Parser, Debug)]
#[command(
    name = "tsbd",
    version,
    styles = STYLES,
    max_term_width = 100,
    after_help = examples!(
        "tsbd run experiments/demo.toml          train and repair everything in the file that is not done yet"
        "tsbd table experiments/demo.toml        print its table"
        "tsbd plan experiments/table1.toml       what would run, and what it will cost"
        "tsbd report                             one page with every table and figure found"
        "tsbd list attacks                       what there is to choose from"
        ;
        "Exit codes: 0 all done, 1 something failed, 2 refused before anything started, 130 interrupted (resumable)."
        "Data is printed on standard output, everything else on standard error. NO_COLOR is respected."
    ),
)]
pub struct CommandLine {
    #[command(flatten)]
    pub talk: Talk,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand, Debug)]
enum Command {
    Run(commands::run::Arguments),
    Plan(commands::plan::Arguments),
    Status(commands::status::Arguments),
    Table(commands::table::Arguments),
    Figure(commands::figure::Arguments),
    Report(commands::report::Arguments),
    Export(commands::export::Arguments),
    List(commands::list::Arguments),
    Attack(commands::attack::Arguments),
    Poison(commands::poison::Arguments),
    Defend(commands::defend::Arguments),
    Evaluate(commands::evaluate::Arguments),
    Data(commands::data::Arguments),
    Bench(commands::bench::Arguments),
    Selftest(commands::selftest::Arguments),
    Completions(commands::completions::Arguments),
    #[command(hide = true)]
    Cell(commands::cell::Arguments),
    #[command(hide = true)]
    Cells(commands::cells::Arguments),
}

impl CommandLine {
    /// Runs the subcommand; without one, says where to begin.
    pub fn run(self) -> Outcome {
        let Some(command) = self.command else {
            terminal::print(ORIENTATION);
            return Ok(Exit::Done);
        };
        match command {
            Command::Run(arguments) => commands::run::run(arguments, &self.talk),
            Command::Plan(arguments) => commands::plan::run(arguments),
            Command::Status(arguments) => commands::status::run(arguments),
            Command::Table(arguments) => commands::table::run(arguments),
            Command::Figure(arguments) => commands::figure::run(arguments, &self.talk),
            Command::Report(arguments) => commands::report::run(arguments),
            Command::Export(arguments) => commands::export::run(arguments),
            Command::List(arguments) => commands::list::run(arguments),
            Command::Attack(arguments) => commands::attack::run(arguments, &self.talk),
            Command::Poison(arguments) => commands::poison::run(arguments, &self.talk),
            Command::Defend(arguments) => commands::defend::run(arguments, &self.talk),
            Command::Evaluate(arguments) => commands::evaluate::run(arguments, &self.talk),
            Command::Data(arguments) => commands::data::run(arguments, &self.talk),
            Command::Bench(arguments) => commands::bench::run(arguments, &self.talk),
            Command::Selftest(arguments) => commands::selftest::run(&arguments),
            Command::Completions(arguments) => commands::completions::run(arguments),
            Command::Cell(arguments) => commands::cell::run(arguments),
            Command::Cells(arguments) => commands::cells::run(arguments),
        }
    }
}

/// What `tsbd` alone prints.
const ORIENTATION: &str = "\
tsbd: backdoor attacks on image classifiers and their removal

  tsbd run experiments/demo.toml       train and repair every cell of a grid (minutes, no download)
  tsbd table experiments/demo.toml     print its table
  tsbd run experiments/table1.toml     the same on CIFAR-10 (first: tsbd data fetch cifar10)
  tsbd plan experiments/table1.toml    what would run, what is done, what it will cost
  tsbd list attacks                    attacks; also: defenses, measures, models, datasets, experiments
  tsbd poison badnets --split train --out poisoned    look at poisoned images, nothing is trained

Everything can be stopped with Ctrl-C and continued with the same command.
All commands: tsbd --help. One command, with examples: tsbd run --help.
";

const STYLES: Styles = Styles::styled()
    .header(Style::new().bold())
    .usage(Style::new().bold())
    .literal(AnsiColor::Cyan.on_default())
    .placeholder(Style::new().dimmed())
    .error(AnsiColor::Red.on_default().bold());

/// The Examples section of a help text: one command line (with a remark) after the other.
macro_rules! examples {
    ($($line:literal)+ $(; $($remark:literal)+)?) => {
        concat!("\x1b[1mExamples:\x1b[0m\n", $("  ", $line, "\n",)+ $("\n", $($remark, "\n",)+)?)
    };
}
pub(crate) use examples;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn clap_finds_nothing_wrong_with_the_definitions() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn every_visible_subcommand_teaches_by_example() {
        fn walk(command: &clap::Command, path: &str) {
            for subcommand in command.get_subcommands().filter(|command| !command.is_hide_set()) {
                let path = format!("{path} {}", subcommand.get_name());
                let help = subcommand.clone().render_help().to_string();
                let examples = help.split_once("Examples:").map(|(_, examples)| examples);
                assert!(examples.is_some_and(|examples| examples.contains(&path)), "{path}");
                walk(subcommand, &path);
            }
        }
        walk(&CommandLine::command(), "tsbd");
    }
}
