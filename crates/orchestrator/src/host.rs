//! Several cells in one process. They share a GPU's context and its memory, and compute on it at the same time, each with a
//! thread and a stream of its own; processes would take turns.
//!
//! A fault of the GPU ends all of them, whoever caused it: nothing can be computed in a process after it. The coordinator
//! then gives each a process of its own, and the fault costs one cell.

use std::io::{self, BufRead, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::sys::signal::{Signal, raise};
use tsbd_experiment::{CellKey, Versions};

use crate::lifeline;
use crate::protocol::{CellArguments, CellEvent, CellRequest, CellsArguments, HostEvent};
use crate::workspace::{
    Cancellation, CellError, CellWorkspace, Conclusion, ProgressReporter, Surroundings, live, with_causes,
};

/// The life of a child that has several cells: begins with each that standard input names, and ends with it, when all have ended.
///
/// `open` opens the device, which stays open between cells, and gives a check that fails after a fault of it. Cells live as in
/// [`crate::run_cell`]. SIGTERM stops all of them.
///
/// # Errors
/// If the process cannot be tied to its coordinator, the device cannot be opened, or standard input names no cell.
pub fn run_cells<O, C, F>(arguments: &CellsArguments, versions: &Versions, open: O, execute: F) -> Result<(), CellError>
where
    O: FnOnce() -> Result<C, CellError>,
    C: Fn() -> Result<(), CellError> + Sync,
    F: Fn(&CellWorkspace) -> Result<Conclusion, CellError> + Sync,
{
    lifeline::die_with_coordinator()?;
    let cancellation = Cancellation::default();
    lifeline::stop_on_request(Arc::clone(&cancellation.flag))?;
    let check = open().inspect_err(|error| tell(&HostEvent::Fault { reason: with_causes(error.as_ref()) }))?;
    let host = Host { device: &arguments.device, others: Arc::default(), at_work: Mutex::default() };
    thread::scope(|scope| {
        for line in io::stdin().lock().lines() {
            let line = line?;
            let request: CellRequest =
                serde_json::from_str(&line).map_err(|error| format!("{line}: no cell to begin with: {error}"))?;
            let surroundings = host.take_in(&request.key, &cancellation);
            let arguments = arguments.of(request);
            let (host, check, execute) = (&host, &check, &execute);
            scope.spawn(move || {
                let event = in_a_thread(&arguments, versions, &surroundings, execute);
                host.let_go(&arguments.key, &surroundings, event, check);
            });
        }
        Ok(())
    })
}

/// The life of a cell in a thread that has ended when this returns, with everything that it kept of the GPU.
fn in_a_thread<F>(arguments: &CellArguments, versions: &Versions, surroundings: &Surroundings, execute: &F) -> CellEvent
where
    F: Fn(&CellWorkspace) -> Result<Conclusion, CellError> + Sync,
{
    /// As much as the first thread of a process has.
    const STACK_BYTES: usize = 8 << 20;
    let failed = |reason: String| CellEvent::Failed { reason, no_device: false };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(arguments.key.to_string()).stack_size(STACK_BYTES);
        let lived = thread.spawn_scoped(scope, || live(arguments, versions.clone(), surroundings, execute));
        match lived.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(event)) => event,
            Ok(Err(_)) => failed("a defect of this program: its thread ended in a panic".to_owned()),
            Err(error) => failed(format!("it has no thread to be computed in: {error}")),
        }
    })
}

struct Host<'a> {
    device: &'a str,
    at_work: Mutex<Vec<CellKey>>,
    /// The most cells beside one another since there was none.
    others: Arc<AtomicUsize>,
}

impl Host<'_> {
    fn take_in(&self, key: &CellKey, cancellation: &Cancellation) -> Surroundings {
        let mut at_work = self.lock();
        if at_work.is_empty() {
            // What cells that have ended took is none of this one's.
            self.others.store(0, Ordering::Relaxed);
            tsbd_tensor::memory::give_back_freed_pages();
            forget_peak_memory();
            tsbd_tensor::forget_peak_gpu_memory(self.device);
        }
        self.others.fetch_max(at_work.len(), Ordering::Relaxed);
        at_work.push(key.clone());
        Surroundings {
            reporter: ProgressReporter::of(key.clone()),
            cancellation: cancellation.clone(),
            others: Arc::clone(&self.others),
        }
    }

    /// Tells the last event of a cell. After a fault of the GPU it is the last of the process.
    fn let_go(
        &self,
        key: &CellKey,
        surroundings: &Surroundings,
        event: CellEvent,
        check: impl Fn() -> Result<(), CellError>,
    ) {
        surroundings.reporter.log_failure(key, &event);
        let mut at_work = self.lock();
        if let CellEvent::Failed { reason, .. } = &event
            && let Err(fault) = check()
        {
            let fault = fault.to_string();
            let reason = if reason.contains(&fault) { reason.clone() } else { format!("{reason}; {fault}") };
            tell(&HostEvent::Fault { reason });
            // With the lock, so that no other cell ends any more; and without the driver's farewell, which may wait for the GPU.
            let _ = raise(Signal::SIGKILL);
        }
        at_work.retain(|other| other != key);
        tsbd_tensor::give_back_gpu_memory(self.device);
        surroundings.reporter.send(&event);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<CellKey>> {
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells of the process; what a library has begun to print must not spoil it.
fn tell(event: &HostEvent) {
    let _ = writeln!(io::stdout(), "\n{}", event.to_line());
}

/// Lets the largest resident memory of this process count from now on, where the system can.
fn forget_peak_memory() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
