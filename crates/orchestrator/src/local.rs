//! Cells as children of this process: starts them, and says which child computes which cell. [`crate::child`] hears what they
//! say and how they end.
//!
//! On Linux a child asks the kernel to be killed when its parent *thread* ends, so children are started by one thread
//! that lives as long as the executor, never by a thread of tokio's pool, which may come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use fs_err as fs;
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::mpsc::error::SendError;
use tokio::sync::{mpsc, oneshot};
use tsbd_experiment::{CellKey, Store};

use crate::child::{AtWork, Lesson, Seat, Told, Watch};
use crate::devices::Devices;
use crate::devices::mps::Sharing;
use crate::devices::places::{Memory, Occupant, Places};
use crate::dispatcher::{RunError, RunOptions};
use crate::executor::{End, Executor, Order, Report, Start};
use crate::protocol::{COORDINATOR_VARIABLE, CellArguments, CellRequest, CellsArguments};

type Request = (Command, oneshot::Sender<io::Result<Child>>);

pub(crate) struct Local {
    /// The thread behind it is what children are tied to: those that are left end with it.
    spawner: std::sync::mpsc::Sender<Request>,
    reports: mpsc::Sender<Report>,
    store: Store,
    options: RunOptions,
    places: Places,
    threads: usize,
    /// The devices to try the Multi-Process Service on, until that is done.
    to_share: Vec<String>,
    sharing: Option<Sharing>,
    children: Vec<mpsc::UnboundedSender<Told>>,
    /// The host of each GPU, if the cells there share a process.
    hosts: BTreeMap<usize, Handle>,
    /// The places that cells have.
    occupied: Vec<Weak<Seat>>,
    /// Cells that a host lost: they get a process of their own.
    alone: BTreeSet<CellKey>,
    lessons: mpsc::UnboundedReceiver<Lesson>,
    teach: mpsc::UnboundedSender<Lesson>,
}

/// What a child begins with.
enum First {
    /// The only cell that it ever has.
    Own(CellKey, AtWork),
    /// One of several.
    InHost(Told),
}

/// A child that can be told something.
struct Handle {
    told: mpsc::UnboundedSender<Told>,
    pid: u32,
}

impl Executor for Local {
    const KEEPS_ORDER: bool = false;

    fn capacity(&mut self) -> usize {
        self.learn();
        let occupants = self.occupants();
        self.places.capacity(&occupants, Instant::now())
    }

    async fn start(&mut self, cells: Vec<CellKey>) -> Vec<Report> {
        let mut reports = Vec::with_capacity(cells.len());
        reports.extend(self.share().await.map(|text| Report::Note { text }));
        for key in cells {
            reports.push(match self.launch(&key).await {
                Ok(start) => Report::Started { key, start },
                Err(error) => {
                    self.forget(&key);
                    Report::Ended { key, end: End::Because(error.to_string()) }
                }
            });
        }
        reports
    }

    fn forget(&mut self, key: &CellKey) {
        self.learn();
        self.places.has_ended(key, false);
    }

    fn order(&mut self, order: Order) {
        // A child that has ended needs no order.
        self.children.retain(|child| child.send(Told::Order(order)).is_ok());
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
        let (teach, lessons) = mpsc::unbounded_channel();
        let executor = Self {
            spawner,
            reports: sender,
            store: store.clone(),
            threads: devices.threads_per_child(options.threads),
            to_share: devices.to_share(),
            sharing: None,
            places: Places::new(devices),
            options: options.clone(),
            children: Vec::new(),
            hosts: BTreeMap::new(),
            occupied: Vec::new(),
            alone: BTreeSet::new(),
            lessons,
            teach,
        };
        Ok((executor, reports))
    }

    fn occupants(&mut self) -> Vec<Occupant> {
        self.occupied.retain(|place| place.strong_count() > 0);
        let occupant = |place: Arc<Seat>| Occupant { gpu: place.gpu, computes: place.computes.load(Ordering::Relaxed) };
        self.occupied.iter().filter_map(Weak::upgrade).map(occupant).collect()
    }

    fn learn(&mut self) {
        while let Ok(lesson) = self.lessons.try_recv() {
            match lesson {
                Lesson::Alone(key) => drop(self.alone.insert(key)),
                Lesson::CrowdedOut(key, place) => {
                    let gpu = place.gpu;
                    drop(place);
                    let others = self.occupants().iter().filter(|other| other.gpu == gpu).count();
                    self.places.was_crowded_out(key, Memory::Gpu(gpu), others);
                }
                Lesson::Killed(cells) => {
                    let others = self.occupants().len().saturating_sub(1);
                    cells.into_iter().for_each(|(key, _)| self.places.was_crowded_out(key, Memory::Host, others));
                }
                Lesson::Refused { key, gpu, obstacle, room } => {
                    self.places.was_refused(key, gpu, obstacle, room, Instant::now());
                }
                Lesson::Ended { key, has_result } => self.places.has_ended(&key, has_result),
            }
        }
    }

    /// A place for a cell on a GPU, whose other cells have company now.
    fn seat(&mut self, key: &CellKey, gpu: usize) -> Arc<Seat> {
        let outlook = self.places.outlook(key, gpu);
        let place = Seat {
            gpu,
            outlook,
            computes: AtomicBool::new(false),
            shared_gpu: AtomicBool::new(false),
            shared_host: AtomicBool::new(false),
        };
        for other in self.occupied.iter().filter_map(Weak::upgrade) {
            let shared_gpu = (other.gpu == gpu).then_some([&place.shared_gpu, &other.shared_gpu]);
            let shared = [&place.shared_host, &other.shared_host].into_iter().chain(shared_gpu.into_iter().flatten());
            shared.for_each(|shared| shared.store(true, Ordering::Relaxed));
        }
        Arc::new(place)
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
        let sharing = sharing.await.unwrap_or_else(|panic| Sharing::Turns(panic.to_string()));
        if let Sharing::Turns(_) = sharing {
            self.places.take_turns();
        }
        let note = match &sharing {
            Sharing::AtOnce(_) => None,
            Sharing::AsSet => Some("NVIDIA's MPS is used as it is set up on this machine".to_owned()),
            Sharing::Turns(reason) => Some(format!("cells on a GPU take turns, without NVIDIA's MPS: {reason}")),
        };
        self.sharing = Some(sharing);
        note
    }

    /// Begins with a cell, in an attempt to continue or in a new one: in the host of its GPU, or in a child of its own.
    async fn launch(&mut self, key: &CellKey) -> Result<Start, RunError> {
        self.learn();
        let attempt = self.store.prepare_attempt(key)?;
        let continues = self.store.checkpointed(key, &attempt).is_some();
        let log_path = self.store.attempt_directory(key, &attempt).join("log");
        let attempt = attempt.to_string();
        let occupants = self.occupants();
        let (gpu, device) = self.places.next(key, &occupants, Instant::now());
        let place = self.seat(key, gpu);
        let occupied = Arc::downgrade(&place);
        let log = fs::OpenOptions::new().create(true).append(true).open(&log_path)?.into_parts().0;
        let pid = if self.places.have_hosts() && !self.alone.contains(key) {
            let request = CellRequest { key: key.clone(), attempt: attempt.clone() };
            self.begin_in_host(gpu, device, request, AtWork::new(log, place)).await?
        } else {
            let arguments = CellArguments {
                key: key.clone(),
                results: self.store.root().to_owned(),
                data: self.options.data.clone(),
                device,
                threads: self.threads,
                attempt: Some(attempt.clone()),
            };
            let mut command = self.command(arguments.to_command_line());
            command.stdin(Stdio::null()).stderr(log.try_clone()?);
            self.spawn(command, First::Own(key.clone(), AtWork::new(log, place))).await?.pid
        };
        self.occupied.push(occupied);
        Ok(Start { pid, job: None, attempt, log: log_path, continues })
    }

    /// Has the host of a GPU begin with a cell; starts it if there is none. Gives its process.
    async fn begin_in_host(
        &mut self,
        gpu: usize,
        device: String,
        request: CellRequest,
        cell: AtWork,
    ) -> Result<u32, RunError> {
        let mut begin = Told::Begin(request, cell);
        if let Some(host) = self.hosts.get(&gpu) {
            match host.told.send(begin) {
                Ok(()) => return Ok(host.pid),
                // It has ended.
                Err(SendError(unheard)) => begin = unheard,
            }
        }
        let (results, data) = (self.store.root().to_owned(), self.options.data.clone());
        let arguments = CellsArguments { results, data, device, threads: self.threads };
        let mut command = self.command(arguments.to_command_line());
        command.stdin(Stdio::piped()).stderr(Stdio::piped());
        let host = self.spawn(command, First::InHost(begin)).await?;
        let pid = host.pid;
        self.hosts.insert(gpu, host);
        Ok(pid)
    }

    fn command(&self, arguments: Vec<OsString>) -> Command {
        let mut command = Command::new(&self.options.program);
        command
            .args(arguments)
            .env(COORDINATOR_VARIABLE, std::process::id().to_string())
            .env("RAYON_NUM_THREADS", self.threads.to_string())
            .envs(self.sharing.iter().filter_map(Sharing::environment))
            .envs(self.options.environment.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            // Ctrl-C in the terminal reaches the coordinator only, which then asks the children.
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    async fn spawn(&mut self, command: Command, first: First) -> io::Result<Handle> {
        let (answer, child) = oneshot::channel();
        let gone = || io::Error::other("the thread that starts children has ended");
        self.spawner.send((command, answer)).map_err(|_| gone())?;
        let child = child.await.map_err(|_| gone())?;
        let child = child.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot start {}: {error}", self.options.program.display()))
        })?;
        let pid = child.id().ok_or_else(|| io::Error::other("the child ended before it was started"))?;
        let (told, received) = mpsc::unbounded_channel();
        let (mut own, mut cells) = (None, BTreeMap::new());
        match first {
            First::Own(key, cell) => {
                own = Some(key.clone());
                cells.insert(key, cell);
            }
            // Said before anybody listens, so that it is heard however soon the host ends.
            First::InHost(begin) => drop(told.send(begin)),
        }
        let watch = Watch {
            child,
            group: Pid::from_raw(pid.cast_signed()),
            cells,
            own,
            reports: self.reports.clone(),
            lessons: self.teach.clone(),
            silence_limit: self.options.silence_limit,
            silent: None,
            fault: None,
            is_open: false,
        };
        tokio::spawn(watch.run(received));
        self.children.retain(|child| !child.is_closed());
        self.children.push(told.clone());
        Ok(Handle { told, pid })
    }
}

#[cfg(test)]
mod tests {
    use tsbd_tensor::GpuFacts;

    use super::*;
    use crate::devices::{CellsPerGpu, GpuSharing};

    #[tokio::test]
    async fn a_cell_that_cannot_be_begun_again_lets_others_have_its_room() {
        let folder = tempfile::tempdir().unwrap();
        let options = RunOptions { program: "/nowhere/tsbd".into(), ..RunOptions::new().unwrap() };
        let devices = Devices::Cpu { workers: 3 };
        let (mut local, _reports) = Local::new(&Store::new(folder.path()), devices, &options).unwrap();
        let key: CellKey = "0".repeat(CellKey::DIGITS).parse().unwrap();
        local.places.was_crowded_out(key.clone(), Memory::Host, 1);
        assert_eq!(local.capacity(), 1);
        assert!(matches!(local.start(vec![key]).await[..], [Report::Ended { end: End::Because(_), .. }]));
        assert_eq!(local.capacity(), 3);
    }

    #[tokio::test]
    async fn cells_take_turns_where_the_multi_process_service_cannot_be_used() {
        let folder = tempfile::tempdir().unwrap();
        let gpu = GpuFacts { ordinal: 0, name: "Test".into(), uuid: String::new(), memory_bytes: 1 << 30 };
        let devices = Devices::Gpus { gpus: vec![gpu], cells: CellsPerGpu::Auto, sharing: GpuSharing::Mps };
        let options = RunOptions { program: "/bin/false".into(), ..RunOptions::new().unwrap() };
        let (mut local, _reports) = Local::new(&Store::new(folder.path()), devices, &options).unwrap();
        assert!(local.places.compute_at_once());
        let note = local.share().await;
        // A machine may have a service that runs.
        let takes_turns = matches!(local.sharing, Some(Sharing::Turns(_)));
        assert_eq!((note.is_some(), local.places.compute_at_once()), (true, !takes_turns));
    }
}
