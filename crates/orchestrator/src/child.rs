//! One child of the coordinator, from its start to its end: hears what its cells say, passes orders on, and tells how each
//! cell ended. A child has one cell, its own, or is a host ([`crate::host`]) that is told which to begin with.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader, Split};
use tokio::process::{Child, ChildStdin};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tsbd_experiment::CellKey;
use tsbd_tensor::lacks_gpu_memory;

use crate::devices::places::{Obstacle, Outlook, Room};
use crate::executor::{End, Order, Report};
use crate::protocol::{CellEvent, CellRequest, EXIT_STOPPED, HostEvent};

/// What a child is told.
pub(crate) enum Told {
    /// Begin with this cell; said to hosts only.
    Begin(CellRequest, AtWork),
    /// Something for all its cells.
    Order(Order),
}

/// The place of a cell.
pub(crate) struct Seat {
    /// Of the GPUs, by its place in the list; 0 on a CPU.
    pub gpu: usize,
    /// What becomes of the cell if its GPU is of no use.
    pub outlook: Outlook,
    /// Whether it has come to its first step.
    pub computes: AtomicBool,
    /// Whether other cells have shared its GPU, and this machine, since it has the place.
    pub shared_gpu: AtomicBool,
    pub shared_host: AtomicBool,
}

/// What the end of a cell says about where others, or it itself, should begin.
pub(crate) enum Lesson {
    /// It shared a process that ended, and is to have one of its own.
    Alone(CellKey),
    /// The others on its GPU left it too little memory, and it is to begin again. Its place is free when this is learnt, so that
    /// nobody takes it for room.
    CrowdedOut(CellKey, Arc<Seat>),
    /// Their process was killed, most likely by the system for memory that others on this machine have. Their places are free
    /// when this is learnt.
    Killed(Vec<(CellKey, Arc<Seat>)>),
    /// The GPU was of no use to it.
    Refused { key: CellKey, gpu: usize, obstacle: Obstacle, room: Room },
    /// It will not begin again.
    Ended { key: CellKey, has_result: bool },
}

/// What a failure has to do with the place of a cell.
#[derive(Clone, Copy)]
enum Trouble {
    /// Others left it too little of the GPU's memory.
    CrowdedOut,
    /// It had the GPU to itself, and the GPU was of no use.
    Refused(Obstacle),
}

/// A cell in a child.
pub(crate) struct AtWork {
    log: File,
    /// Its place, which is free when this is dropped.
    place: Arc<Seat>,
    /// When it said something; at first, when it was given to the child.
    heard: Instant,
    has_begun: bool,
    /// Whether it has told a stage; the first one is on the CPU.
    has_stage: bool,
    has_result: bool,
    /// What was the matter with its place, with the reason for its failure.
    trouble: Option<(Trouble, String)>,
}

impl AtWork {
    pub fn new(log: File, place: Arc<Seat>) -> Self {
        let heard = Instant::now();
        Self { log, place, heard, has_begun: false, has_stage: false, has_result: false, trouble: None }
    }

    fn hear(&mut self, event: &CellEvent) {
        (self.heard, self.has_begun) = (Instant::now(), true);
        self.has_result = matches!(event, CellEvent::Finished { .. });
        let computes = match event {
            CellEvent::Stage { .. } => std::mem::replace(&mut self.has_stage, true),
            CellEvent::Step { .. } | CellEvent::Epoch { .. } => true,
            _ => false,
        };
        if computes {
            self.place.computes.store(true, Ordering::Relaxed);
        }
        if let CellEvent::Failed { reason, no_device } = event {
            self.blame_place(reason, *no_device);
        }
    }

    /// It has failed for this reason, before it had its device or later.
    fn blame_place(&mut self, reason: &str, no_device: bool) {
        let trouble = match lacks_gpu_memory(reason) {
            true if self.place.shared_gpu.load(Ordering::Relaxed) => Some(Trouble::CrowdedOut),
            true => Some(Trouble::Refused(Obstacle::Memory)),
            false => no_device.then_some(Trouble::Refused(Obstacle::Device)),
        };
        self.trouble = trouble.map(|trouble| (trouble, reason.to_owned()));
    }

    /// A log that cannot be written (a full disk) must not end the cell.
    fn write(&mut self, line: &[u8]) {
        let _ = self.log.write_all(line).and_then(|()| self.log.write_all(b"\n"));
    }
}

/// Watches one child.
pub(crate) struct Watch {
    pub child: Child,
    /// The process group of the child.
    pub group: Pid,
    /// The cells at work.
    pub cells: BTreeMap<CellKey, AtWork>,
    /// The only cell that it ever has; `None` of a host.
    pub own: Option<CellKey>,
    pub reports: mpsc::Sender<Report>,
    /// Where lessons are learnt.
    pub lessons: mpsc::UnboundedSender<Lesson>,
    pub silence_limit: Option<Duration>,
    /// The cell that said nothing for too long.
    pub silent: Option<CellKey>,
    /// The fault of its GPU that a host ends with.
    pub fault: Option<String>,
    /// Whether it has said something of a cell: its device is open.
    pub is_open: bool,
}

impl Watch {
    /// A child's grandchildren may hold its standard output open: they get this long to finish after its end.
    const AFTERMATH: Duration = Duration::from_secs(1);

    /// Until the child has ended. A host is told to end when nobody can tell it of cells any more.
    pub async fn run(mut self, mut told: mpsc::UnboundedReceiver<Told>) {
        let mut lines = self.child.stdout.take().map(lines_of);
        // Of a child with a cell of its own it goes to the log.
        let mut complaints = self.child.stderr.take().map(lines_of);
        let mut stdin = self.child.stdin.take();
        let mut ended: Option<io::Result<ExitStatus>> = None;
        let mut is_told = true;
        while ended.is_none() || lines.is_some() || complaints.is_some() {
            let limit = if ended.is_some() { Some(Instant::now() + Self::AFTERMATH) } else { self.limit() };
            tokio::select! {
                // How long ago something was said is looked at last.
                biased;
                status = self.child.wait(), if ended.is_none() => ended = Some(status),
                message = told.recv(), if ended.is_none() && is_told => match message {
                    Some(Told::Begin(request, cell)) => self.begin(request, cell, &mut stdin).await,
                    Some(Told::Order(order)) => self.obey(order),
                    None => {
                        is_told = false;
                        stdin = None;
                    }
                },
                line = next_line(&mut lines) => match line {
                    Some(line) => self.hear(&line).await,
                    None => lines = None,
                },
                line = next_line(&mut complaints) => match line {
                    Some(line) => self.write_to_logs(&line),
                    None => complaints = None,
                },
                () = sleep_until(limit) => {
                    if ended.is_some() {
                        (lines, complaints) = (None, None);
                    } else {
                        self.silent = self.most_silent();
                        self.obey(Order::Kill);
                    }
                }
            }
        }
        // Cells that it was told of and has not begun with; whoever tells it of another one now learns that it has gone.
        told.close();
        while let Some(message) = told.recv().await {
            if let Told::Begin(request, cell) = message {
                self.cells.insert(request.key, cell);
            }
        }
        let status = ended.unwrap_or_else(|| Err(io::Error::other("the child's end was not seen")));
        self.conclude(&status).await;
    }

    async fn begin(&mut self, request: CellRequest, cell: AtWork, stdin: &mut Option<ChildStdin>) {
        let line = serde_json::to_string(&request).expect("a request has string keys only") + "\n";
        self.cells.insert(request.key, cell);
        if let Some(stdin) = stdin {
            // If it does not read any more it ends, and the cell with it.
            let _ = stdin.write_all(line.as_bytes()).await;
        }
    }

    /// Passes an event on; anything else goes to the log, where standard error goes too.
    async fn hear(&mut self, line: &[u8]) {
        let text = std::str::from_utf8(line).unwrap_or_default();
        let said = match &self.own {
            Some(key) => CellEvent::from_line(text).map(|event| HostEvent::Said { key: key.clone(), event }),
            None => HostEvent::from_line(text),
        };
        match said {
            None if line.is_empty() => {}
            None => self.write_to_logs(line),
            Some(HostEvent::Log { key, text }) => {
                if let Some(cell) = self.cells.get_mut(&key) {
                    cell.write(text.as_bytes());
                }
            }
            Some(HostEvent::Fault { reason }) => {
                self.write_to_logs(format!("the GPU failed: {reason}").as_bytes());
                self.fault = Some(reason);
            }
            Some(HostEvent::Said { key, event }) => {
                self.is_open = true;
                let Some(cell) = self.cells.get_mut(&key) else { return };
                cell.hear(&event);
                let end = match &event {
                    // The end of its own process says more.
                    _ if self.own.is_some() => None,
                    CellEvent::Stopped => Some(End::Stopped),
                    CellEvent::Failed { reason, .. } => Some(End::Because(reason.clone())),
                    CellEvent::Finished { .. } => Some(End::Because("it ended without a result".to_owned())),
                    _ => None,
                };
                let _ = self.reports.send(Report::Said { key: key.clone(), event }).await;
                if let Some(end) = end {
                    self.end(key, end).await;
                }
            }
        }
    }

    fn write_to_logs(&mut self, line: &[u8]) {
        self.cells.values_mut().for_each(|cell| cell.write(line));
    }

    fn obey(&self, order: Order) {
        let signal = match order {
            Order::Stop => Signal::SIGTERM,
            Order::Kill => Signal::SIGKILL,
        };
        // Sent while the child has not been waited for, so its number cannot belong to anybody else. A child that has
        // just ended needs no signal.
        let _ = killpg(self.group, signal);
    }

    /// When the cell that has been silent for longest has been so for too long.
    fn limit(&self) -> Option<Instant> {
        let limit = self.silence_limit.filter(|_| self.silent.is_none())?;
        Some(self.cells.values().map(|cell| cell.heard).min()? + limit)
    }

    fn most_silent(&self) -> Option<CellKey> {
        self.cells.iter().min_by_key(|(_, cell)| cell.heard).map(|(key, _)| key.clone())
    }

    /// The child has ended, and with it the cells that were still at work.
    async fn conclude(mut self, status: &io::Result<ExitStatus>) {
        let cells: Vec<(CellKey, bool)> = self.cells.iter().map(|(key, cell)| (key.clone(), cell.has_begun)).collect();
        let is_shared = cells.iter().filter(|(_, has_begun)| *has_begun).count() > 1;
        // What became of the process.
        let cause = match (&self.fault, &self.silent, self.silence_limit) {
            (Some(reason), ..) => reason.clone(),
            (None, Some(_), Some(limit)) => format!("it told no progress for {} s and was killed", limit.as_secs()),
            _ => format!("its process {}", explain(status)),
        };
        let crowded = self.killed_beside_others(status);
        let is_killed = crowded.is_some();
        let crowded = crowded.unwrap_or_default();
        let is_crowded = |key: &CellKey| crowded.iter().any(|(other, _)| other == key);
        let mut ends = Vec::with_capacity(cells.len());
        for (key, has_begun) in cells {
            let is_silent = self.silent.as_ref() == Some(&key);
            let end = match self.own {
                Some(_) if matches!(status, Ok(status) if status.code() == Some(i32::from(EXIT_STOPPED))) => {
                    End::Stopped
                }
                Some(_) if is_crowded(&key) => End::Again(cause.clone()),
                // Its device could not be opened.
                None if self.fault.is_some() && !self.is_open => {
                    self.cells.get_mut(&key).into_iter().for_each(|cell| cell.blame_place(&cause, true));
                    End::Because(cause.clone())
                }
                None if !is_silent && (is_shared || is_killed || !has_begun) => {
                    // One that has not begun after a fault of others can have others again.
                    if has_begun || self.fault.is_none() {
                        let _ = self.lessons.send(Lesson::Alone(key.clone()));
                    }
                    End::Again(match (&self.fault, &self.silent) {
                        (Some(reason), _) => format!("the GPU failed while others shared its process: {reason}"),
                        (None, Some(_)) => "another cell of its process told no progress".to_owned(),
                        (None, None) if is_shared && has_begun => {
                            format!("the process that it shared {}", explain(status))
                        }
                        (None, None) if has_begun => cause.clone(),
                        (None, None) => format!("before it began its process {}", explain(status)),
                    })
                }
                _ => End::Because(cause.clone()),
            };
            ends.push((key, end));
        }
        if !crowded.is_empty() {
            let _ = self.lessons.send(Lesson::Killed(crowded));
        }
        for (key, end) in ends {
            self.end(key, end).await;
        }
    }

    /// The cells that had others beside them on this machine, if somebody killed their process, as the system does where memory
    /// runs out; `None` if it ended otherwise.
    fn killed_beside_others(&self, status: &io::Result<ExitStatus>) -> Option<Vec<(CellKey, Arc<Seat>)>> {
        let signal = status.as_ref().ok().and_then(ExitStatusExt::signal);
        if signal != Some(Signal::SIGKILL as i32) || self.fault.is_some() || self.silent.is_some() {
            return None;
        }
        let beside_others = self.cells.iter().filter(|(_, cell)| cell.place.shared_host.load(Ordering::Relaxed));
        Some(beside_others.map(|(key, cell)| (key.clone(), Arc::clone(&cell.place))).collect())
    }

    async fn end(&mut self, key: CellKey, mut end: End) {
        // Nobody learns or hears of it when the run is over. Whoever hears of the end finds the place free.
        if let Some(AtWork { trouble, place, has_result, .. }) = self.cells.remove(&key) {
            match trouble {
                Some((Trouble::CrowdedOut, reason)) => {
                    end = End::Again(format!("others left it too little of the GPU's memory: {reason}"));
                    let _ = self.lessons.send(Lesson::CrowdedOut(key.clone(), place));
                }
                Some((Trouble::Refused(obstacle), reason)) => {
                    let Seat { gpu, outlook, .. } = *place;
                    let _ = self.lessons.send(Lesson::Refused { key: key.clone(), gpu, obstacle, room: outlook.room });
                    if outlook.allows(obstacle) {
                        end = End::Again(match obstacle {
                            Obstacle::Device => format!("its GPU cannot be used: {reason}"),
                            Obstacle::Memory => format!("its GPU has too little memory left: {reason}"),
                        });
                    }
                }
                None => {}
            }
            if !matches!(end, End::Again(_)) {
                let _ = self.lessons.send(Lesson::Ended { key: key.clone(), has_result });
            }
        }
        let _ = self.reports.send(Report::Ended { key, end }).await;
    }
}

fn lines_of<R: AsyncRead + Unpin>(output: R) -> Split<BufReader<R>> {
    BufReader::new(output).split(b'\n')
}

async fn next_line<R: AsyncRead + Unpin>(lines: &mut Option<Split<BufReader<R>>>) -> Option<Vec<u8>> {
    match lines {
        Some(lines) => lines.next_segment().await.ok().flatten(),
        None => std::future::pending().await,
    }
}

async fn sleep_until(limit: Option<Instant>) {
    match limit {
        Some(limit) => tokio::time::sleep_until(limit).await,
        None => std::future::pending().await,
    }
}

/// What became of a process without a reason of its own.
fn explain(status: &io::Result<ExitStatus>) -> String {
    let status = match status {
        Ok(status) => status,
        Err(error) => return format!("was lost: {error}"),
    };
    match (status.code(), status.signal()) {
        (_, Some(9)) => {
            "was killed (signal 9); if nobody did that, it was the system because memory ran out: use a smaller batch or fewer \
             cells at a time"
                .to_owned()
        }
        (_, Some(signal)) => format!("was ended by signal {signal}"),
        (Some(0), _) => "ended without a result".to_owned(),
        (Some(code), _) => format!("ended with exit code {code} and gave no reason"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}
