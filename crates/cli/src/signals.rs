//! Ctrl-C and SIGTERM in a command that goes on by itself after a run: the run's handlers stay, and nobody listens to them.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Exit;

/// Whether a run is going on, which hears of signals itself.
static RUNS: AtomicBool = AtomicBool::new(false);

/// Does `run`, which stops by itself when it is told to. Once it is over, either signal ends this process.
pub fn end_after<T>(run: impl FnOnce() -> T) -> T {
    static WATCHED: Once = Once::new();
    RUNS.store(true, Ordering::SeqCst);
    WATCHED.call_once(|| drop(std::thread::spawn(watch)));
    let done = run();
    RUNS.store(false, Ordering::SeqCst);
    done
}

/// Ends the process at the first signal outside of runs.
fn watch() -> std::io::Result<()> {
    Builder::new_current_thread().enable_io().build()?.block_on(async {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if !RUNS.load(Ordering::SeqCst) {
                std::process::exit(Exit::Interrupted.code().into());
            }
        }
    })
}
