//! The help teaches by example, and a command that does not exist is refused with exit code 2.

mod common;

use common::{stderr, stdout, tsbd};

/// Every subcommand a user can call, as words on the command line.
const COMMANDS: &[&[&str]] = &[
    &["run"],
    &["plan"],
    &["status"],
    &["table"],
    &["figure"],
    &["report"],
    &["export"],
    &["export", "results"],
    &["export", "slurm"],
    &["list"],
    &["list", "attacks"],
    &["list", "defenses"],
    &["list", "models"],
    &["list", "datasets"],
    &["list", "experiments"],
    &["attack"],
    &["poison"],
    &["defend"],
    &["evaluate"],
    &["data"],
    &["data", "fetch"],
    &["data", "verify"],
    &["data", "list"],
    &["bench"],
    &["bench", "train"],
    &["bench", "inference"],
    &["bench", "ops"],
    &["bench", "poison"],
    &["selftest"],
    &["completions"],
];

#[test]
fn the_help_of_every_subcommand_has_examples_that_call_it() {
    for command in COMMANDS {
        let output = tsbd().args(*command).arg("--help").output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        let help = stdout(&output);
        let (_, examples) = help.split_once("Examples:").unwrap_or_else(|| panic!("{command:?} has no examples"));
        assert!(examples.contains(&format!("tsbd {}", command.join(" "))), "{command:?}:\n{examples}");
        assert!(!help.contains('\x1b'), "{command:?}: colour where there is no terminal");
    }
}

#[test]
fn the_list_of_commands_in_the_tests_is_the_one_of_the_help() {
    let output = tsbd().arg("--help").output().unwrap();
    let help = stdout(&output);
    let (_, commands) = help.split_once("Commands:").unwrap();
    let shown: Vec<_> = commands
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next().filter(|_| !line.starts_with("   ")))
        .filter(|name| *name != "help")
        .collect();
    let tested: Vec<_> = COMMANDS.iter().filter(|command| command.len() == 1).map(|command| command[0]).collect();
    assert_eq!(shown, tested);
}

#[test]
fn the_program_alone_says_where_to_begin() {
    let output = tsbd().output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).contains("tsbd run experiments/"));
    assert!(stdout(&output).contains("tsbd --help"));
}

#[test]
fn an_unknown_subcommand_is_bad_usage() {
    let output = tsbd().arg("trian").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("trian"));
    assert!(stdout(&output).is_empty(), "talk belongs on standard error");
}

#[test]
fn completions_know_the_subcommands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = tsbd().args(["completions", shell]).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains("evaluate"), "{shell}");
    }
}
