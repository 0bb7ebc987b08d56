//! Tells the program which source it was built from, for the records of results.

use std::path::Path;
use std::process::Command;

fn main() {
    let root = Path::new("../..");
    let describe = Command::new("git").args(["describe", "--always", "--dirty", "--tags"]).current_dir(root).output();
    let revision = describe.ok().filter(|output| output.status.success());
    let revision = revision.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    println!("cargo::rustc-env=TSBD_REVISION={}", if revision.is_empty() { "unknown" } else { &revision });
    println!("cargo::rustc-env=TSBD_CANDLE={}", candle(&root.join("Cargo.lock")).unwrap_or_default());
    // HEAD changes with the branch, the log with every commit.
    for file in [".git/HEAD", ".git/logs/HEAD", "Cargo.lock"] {
        let path = root.join(file);
        if path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
}

/// The version of Candle in the lock file.
fn candle(lock: &Path) -> Option<String> {
    let text = std::fs::read_to_string(lock).ok()?;
    let (_, package) = text.split_once("name = \"candle-core\"\nversion = \"")?;
    Some(package.split_once('"')?.0.to_owned())
}
