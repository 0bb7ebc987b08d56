//! One file per subcommand: its flags, its help, and what it does, as far as that is not a library's business.

pub mod attack;
pub mod bench;
pub mod cell;
pub mod cells;
pub mod completions;
pub mod data;
pub mod defend;
pub mod evaluate;
pub mod export;
pub mod figure;
pub mod list;
pub mod plan;
pub mod poison;
pub mod report;
pub mod run;
pub mod selftest;
pub mod status;
pub mod table;
