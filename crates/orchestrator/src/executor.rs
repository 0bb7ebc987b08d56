//! Starts children, listens to them, and passes signals on. Decides nothing.
//!
//! On Linux a child asks the kernel to be killed when its parent *thread* ends, so children are started by one thread
//! that lives as long as the executor, never by a thread of tokio's pool, which may come and go.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use fs_err as fs;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tsbd_experiment::CellKey;

use crate::protocol::{COORDINATOR_VARIABLE, CellArguments, CellEvent};

/// What the executor tells the dispatcher.
#[derive(Debug)]
pub(crate) enum Report {
    /// A line of a child.
    Said { key: CellKey, event: CellEvent },
    /// A child has ended; nothing follows from it.
    Ended { key: CellKey, status: io::Result<ExitStatus>, silent: bool },
}

/// What the dispatcher tells the task that owns a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Ask it to stop.
    Stop,
    /// Kill it.
    Kill,
}

/// A child that was started.
#[derive(Debug)]
pub(crate) struct Started {
    pub pid: u32,
    pub orders: mpsc::UnboundedSender<Order>,
}

/// What is started.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub program: PathBuf,
    pub arguments: CellArguments,
    pub environment: Vec<(String, String)>,
    pub log: PathBuf,
    /// A child that says nothing for so long is killed.
    pub silence_limit: Option<Duration>,
}

type Request = (Command, oneshot::Sender<io::Result<Child>>);

pub(crate) struct Executor {
    /// Dropped last of all: the thread behind it is what children are tied to.
    spawner: std::sync::mpsc::Sender<Request>,
    reports: mpsc::Sender<Report>,
}

impl Executor {
    /// An executor, and the reports of all its children. Must be called within a tokio runtime.
    pub fn new() -> io::Result<(Self, mpsc::Receiver<Report>)> {
        let (spawner, requests) = std::sync::mpsc::channel::<Request>();
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new().name("spawner".into()).spawn(move || {
            let _context = runtime.enter();
            for (mut command, answer) in requests {
                // A dispatcher that has gone no longer wants the child: dropping it kills it.
                let _ = answer.send(command.spawn());
            }
        })?;
        let (sender, reports) = mpsc::channel(256);
        Ok((Self { spawner, reports: sender }, reports))
    }

    /// Starts a child.
    pub async fn start(&self, launch: Launch) -> io::Result<Started> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&launch.log)?.into_parts().0;
        let mut command = Command::new(&launch.program);
        command
            .args(launch.arguments.to_command_line())
            .env(COORDINATOR_VARIABLE, std::process::id().to_string())
            .env("RAYON_NUM_THREADS", launch.arguments.threads.to_string())
            .envs(launch.environment)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.try_clone()?)
            // Ctrl-C in the terminal reaches the coordinator only, which then asks the children.
            .process_group(0)
            .kill_on_drop(true);
        let (answer, child) = oneshot::channel();
        let gone = || io::Error::other("the thread that starts children has ended");
        self.spawner.send((command, answer)).map_err(|_| gone())?;
        let child = child.await.map_err(|_| gone())?;
        let child = child.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot start {}: {error}", launch.program.display()))
        })?;
        let pid = child.id().ok_or_else(|| io::Error::other("the child ended before it was started"))?;
        let (orders, received) = mpsc::unbounded_channel();
        let task = Watch {
            key: launch.arguments.key,
            child,
            group: Pid::from_raw(pid.cast_signed()),
            log,
            reports: self.reports.clone(),
            silence_limit: launch.silence_limit,
        };
        tokio::spawn(task.run(received));
        Ok(Started { pid, orders })
    }
}

/// Owns one child from its start to its end.
struct Watch {
    key: CellKey,
    child: Child,
    group: Pid,
    log: File,
    reports: mpsc::Sender<Report>,
    silence_limit: Option<Duration>,
}

impl Watch {
    /// A child's grandchildren may hold its standard output open: they get this long to finish after its end.
    const AFTERMATH: Duration = Duration::from_secs(1);

    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let stdout = self.child.stdout.take();
        let mut lines = stdout.map(|stdout| BufReader::new(stdout).split(b'\n'));
        let mut ended: Option<io::Result<ExitStatus>> = None;
        let mut silent = false;
        while ended.is_none() || lines.is_some() {
            let patience = match (&ended, self.silence_limit) {
                (Some(_), _) => Self::AFTERMATH,
                (None, Some(limit)) if !silent => limit,
                (None, _) => Duration::MAX,
            };
            tokio::select! {
                line = next_line(&mut lines) => match line {
                    Some(line) => self.pass_on(&line).await,
                    None => lines = None,
                },
                status = self.child.wait(), if ended.is_none() => ended = Some(status),
                Some(order) = orders.recv(), if ended.is_none() => self.obey(order),
                () = sleep(patience) => {
                    if ended.is_some() {
                        lines = None;
                    } else {
                        silent = true;
                        self.obey(Order::Kill);
                    }
                }
            }
        }
        let status = ended.unwrap_or_else(|| Err(io::Error::other("the child's end was not seen")));
        let _ = self.reports.send(Report::Ended { key: self.key, status, silent }).await;
    }

    /// Passes an event on; anything else goes to the log, where standard error goes too.
    async fn pass_on(&mut self, line: &[u8]) {
        match std::str::from_utf8(line).ok().and_then(CellEvent::from_line) {
            Some(event) => {
                let _ = self.reports.send(Report::Said { key: self.key.clone(), event }).await;
            }
            None => {
                // A log that cannot be written (a full disk) must not end the cell.
                let _ = self.log.write_all(line).and_then(|()| self.log.write_all(b"\n"));
            }
        }
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
}

async fn next_line<R: tokio::io::AsyncBufRead + Unpin>(lines: &mut Option<tokio::io::Split<R>>) -> Option<Vec<u8>> {
    match lines {
        Some(lines) => lines.next_segment().await.ok().flatten(),
        None => std::future::pending().await,
    }
}

async fn sleep(duration: Duration) {
    match duration {
        Duration::MAX => std::future::pending().await,
        duration => tokio::time::sleep(duration).await,
    }
}
