//! A child does not outlive the coordinator that started it, however that ends, and stops when it is asked to.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::unistd::{Pid, getppid};
use tokio::signal::unix::{SignalKind, signal};

use crate::protocol::COORDINATOR_VARIABLE;

/// Ties the life of this process to that of the coordinator named in its environment, if one is.
///
/// On Linux the kernel kills this process when the thread that started it ends (the coordinator keeps one thread for
/// starting children, see [`crate::executor`]); elsewhere a thread looks once a second.
pub(crate) fn die_with_coordinator() -> io::Result<()> {
    let named = std::env::var(COORDINATOR_VARIABLE).ok().and_then(|pid| pid.parse().ok());
    let Some(coordinator) = named.map(Pid::from_raw) else { return Ok(()) };
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_pdeathsig(Some(nix::sys::signal::Signal::SIGKILL))?;
    #[cfg(not(target_os = "linux"))]
    std::thread::spawn(move || {
        while getppid() == coordinator {
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
        std::process::exit(i32::from(crate::protocol::EXIT_STOPPED));
    });
    // It may have ended before this process asked the kernel to watch it.
    if getppid() != coordinator {
        return Err(io::Error::other(format!("the coordinator, process {coordinator}, has ended")));
    }
    Ok(())
}

/// Sets `flag` on SIGTERM (the coordinator's request) and SIGINT. Returns once the signals are being watched.
pub(crate) fn stop_on_request(flag: Arc<AtomicBool>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut terminate, mut interrupt) = {
        let _context = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                flag.store(true, Ordering::Relaxed);
            }
        });
    })?;
    Ok(())
}
