//! Cells as children of this process: starts them, listens to them, and passes signals on.
//!
//! On Linux a child asks the kernel to be killed when its parent *thread* ends, so children are started by one thread
//! that lives as long as the executor, never by a thread of tokio's pool, which may come and go.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use fs_err as fs;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tsbd_experiment::{CellKey, Store};

use crate::devices::mps::Sharing;
use crate::devices::{Devices, Occupant, Places};
use crate::dispatcher::{RunError, RunOptions};
use crate::executor::{End, Executor, Order, Report, Start};
use crate::protocol::{COORDINATOR_VARIABLE, CellArguments, CellEvent, EXIT_STOPPED};

type Request = (Command, oneshot::Sender<io::Result<Child>>);

pub(crate) struct Local {
    /// Dropped last of all: the thread behind it is what children are tied to.
    spawner: std::sync::mpsc::Sender<Request>,
    reports: mpsc::Sender<Report>,
    store: Store,
    options: RunOptions,
    places: Places,
    threads: usize,
    /// The devices to try the Multi-Process Service on, until that is done.
    to_share: Vec<String>,
    sharing: Option<Sharing>,
    children: BTreeMap<CellKey, Running>,
}

/// A child, and the place that it has until it has ended.
struct Running {
    orders: mpsc::UnboundedSender<Order>,
    occupant: Occupant,
}

impl Executor for Local {
    const KEEPS_ORDER: bool = false;

    fn capacity(&mut self) -> usize {
        let occupants = self.occupants();
        self.places.capacity(&occupants, Instant::now())
    }

    async fn start(&mut self, cells: Vec<CellKey>) -> Vec<Report> {
        let mut reports = Vec::with_capacity(cells.len());
        reports.extend(self.share().await.map(|text| Report::Note { text }));
        for key in cells {
            reports.push(match self.launch(&key).await {
                Ok(start) => Report::Started { key, start },
                Err(error) => Report::Ended { key, end: End::Because(error.to_string()) },
            });
        }
        reports
    }

    fn order(&mut self, order: Order) {
        // A child that has ended needs no order.
        self.children.retain(|_, child| child.orders.send(order).is_ok());
    }
}

impl Local {
    /// An executor, and the reports of all its children. Must be called within a tokio runtime.
    pub fn new(store: &Store, devices: Devices, options: &RunOptions) -> io::Result<(Self, mpsc::Receiver<Report>)> {
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
        let executor = Self {
            spawner,
            reports: sender,
            store: store.clone(),
            threads: devices.threads_per_cell(options.threads),
            to_share: devices.to_share(),
            sharing: None,
            places: Places::new(devices),
            options: options.clone(),
            children: BTreeMap::new(),
        };
        Ok((executor, reports))
    }

    /// The places that are taken. A child that has ended listens no more, and has left its place.
    fn occupants(&mut self) -> Vec<Occupant> {
        self.children.retain(|_, child| !child.orders.is_closed());
        self.children.values().map(|child| child.occupant).collect()
    }

    /// Lets the cells of a GPU compute at the same time, before the first is started; a sentence for people if they cannot.
    async fn share(&mut self) -> Option<String> {
        let devices = std::mem::take(&mut self.to_share);
        if devices.is_empty() {
            return None;
        }
        let program = self.options.program.clone();
        let sharing = tokio::task::spawn_blocking(move || {
            let check = |device: &String| {
                ["selftest", "--device", device, "--only", "cross_entropy odd"].map(str::to_owned).to_vec()
            };
            Sharing::new(&program, &devices.iter().map(check).collect::<Vec<_>>())
        });
        // A panic there leaves them to take turns.
        let sharing = sharing.await.ok()?;
        let note = match &sharing {
            Sharing::AtOnce(_) => None,
            Sharing::AsSet => Some("NVIDIA's MPS is used as it is set up on this machine".to_owned()),
            Sharing::Turns(reason) => Some(format!("cells on a GPU take turns, without NVIDIA's MPS: {reason}")),
        };
        self.sharing = Some(sharing);
        note
    }

    /// Starts the child of a cell, in an attempt to continue or in a new one.
    async fn launch(&mut self, key: &CellKey) -> Result<Start, RunError> {
        let attempt = self.store.prepare_attempt(key)?;
        let directory = self.store.attempt_directory(key, &attempt);
        let continues = self.store.checkpointed(key, &attempt).is_some();
        let log_path = directory.join("log");
        let since = Instant::now();
        let occupants = self.occupants();
        let (gpu, device) = self.places.next(&occupants, since);
        let arguments = CellArguments {
            key: key.clone(),
            results: self.store.root().to_owned(),
            data: self.options.data.clone(),
            device,
            threads: self.threads,
            attempt: Some(attempt.to_string()),
        };
        let log = fs::OpenOptions::new().create(true).append(true).open(&log_path)?.into_parts().0;
        let mut command = Command::new(&self.options.program);
        command
            .args(arguments.to_command_line())
            .env(COORDINATOR_VARIABLE, std::process::id().to_string())
            .env("RAYON_NUM_THREADS", arguments.threads.to_string())
            .envs(self.sharing.iter().filter_map(Sharing::environment))
            .envs(self.options.environment.iter().map(|(name, value)| (name, value)))
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
            io::Error::new(error.kind(), format!("cannot start {}: {error}", self.options.program.display()))
        })?;
        let pid = child.id().ok_or_else(|| io::Error::other("the child ended before it was started"))?;
        let (orders, received) = mpsc::unbounded_channel();
        let task = Watch {
            key: key.clone(),
            child,
            group: Pid::from_raw(pid.cast_signed()),
            log,
            reports: self.reports.clone(),
            silence_limit: self.options.silence_limit,
        };
        tokio::spawn(task.run(received));
        self.children.insert(key.clone(), Running { orders, occupant: Occupant { gpu, since } });
        Ok(Start { pid, job: None, attempt: attempt.to_string(), log: log_path, continues })
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
        let end = match (&status, self.silence_limit) {
            (Ok(status), _) if status.code() == Some(i32::from(EXIT_STOPPED)) => End::Stopped,
            (_, Some(limit)) if silent => {
                End::Because(format!("it told no progress for {} s and was killed", limit.as_secs()))
            }
            _ => End::Because(explain(&status)),
        };
        // Whoever hears of the end finds the place free.
        drop(orders);
        let _ = self.reports.send(Report::Ended { key: self.key, end }).await;
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

/// Why a child that gave no reason has left no result.
fn explain(status: &io::Result<ExitStatus>) -> String {
    let status = match status {
        Ok(status) => status,
        Err(error) => return format!("its process was lost: {error}"),
    };
    match (status.code(), status.signal()) {
        (_, Some(9)) => {
            "its process was killed (signal 9); if nobody did that, it was the system because memory ran out: \
             use a smaller batch or fewer workers"
                .to_owned()
        }
        (_, Some(signal)) => format!("its process was ended by signal {signal}"),
        (Some(0), _) => "its process ended without a result".to_owned(),
        (Some(code), _) => format!("its process ended with exit code {code} and gave no reason"),
        (None, None) => "its process ended in an unknown way".to_owned(),
    }
}
