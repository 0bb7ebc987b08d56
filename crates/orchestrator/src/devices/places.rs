//! The places that cells can take, and what is learnt about them while a run goes on.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use tsbd_experiment::CellKey;

use super::{CellsPerGpu, Devices, GpuSharing, Load, Meter, meter};

/// The places that cells can take.
pub(crate) struct Places {
    devices: Devices,
    meter: Box<dyn Meter>,
    /// One for each GPU.
    watched: Vec<Watched>,
    /// Of the cells that have not ended since.
    shortages: BTreeMap<(CellKey, Memory), Shortage>,
    /// The GPUs that have refused each cell that has not ended since.
    refused: BTreeMap<CellKey, Vec<usize>>,
}

/// A memory that cells share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Memory {
    /// This machine's.
    Host,
    /// That of a GPU, by its place in the list.
    Gpu(usize),
}

/// What is known of a cell that others left too little of a memory.
struct Shortage {
    /// How many others were there when that was first.
    others: usize,
    /// So many cells may share the memory, itself included, until it has ended: fewer each time.
    most: usize,
}

/// Why a GPU is of no use to a cell that has it to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// It could not be opened.
    Device,
    /// Its free memory was too little.
    Memory,
}

/// How much of a GPU's memory is free when a cell begins there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// As much as ever, or nobody can say and there is no other GPU: if it is too little, the cell is too large.
    Usual,
    /// Less than there was.
    Little,
    Unknown,
}

/// What becomes of a cell that is about to begin if its GPU is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outlook {
    pub room: Room,
    /// Whether there is a GPU that has not refused it, or the only one has not done so often.
    may_try_again: bool,
    /// Whether the GPU has worked in this run, or there are others.
    may_recover: bool,
}

impl Outlook {
    /// Whether it begins again, elsewhere or later; otherwise it has failed.
    pub fn allows(&self, obstacle: Obstacle) -> bool {
        self.may_try_again
            && match obstacle {
                Obstacle::Device => self.may_recover,
                Obstacle::Memory => self.room != Room::Usual,
            }
    }
}

/// A cell that has a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Occupant {
    /// Of the GPUs, by its place in the list; 0 on a CPU.
    pub gpu: usize,
    /// Whether it has come to its first step; before that it reads and poisons images, and what it needs is not seen.
    pub computes: bool,
}

/// Our cells on a GPU at a moment.
#[derive(Clone, Copy)]
struct Crowd {
    cells: usize,
    /// Those that compute.
    at_work: usize,
}

impl Crowd {
    fn on(gpu: usize, occupants: &[Occupant]) -> Self {
        let here = occupants.iter().filter(|occupant| occupant.gpu == gpu);
        Self { cells: here.clone().count(), at_work: here.filter(|occupant| occupant.computes).count() }
    }
}

/// What is known of a GPU while a run goes on.
#[derive(Default)]
struct Watched {
    /// The last load, and when it was read.
    last: Option<Load>,
    read: Option<Instant>,
    /// How many of our cells are there. One that ends is replaced at once: fewer count once they have been so few for a while.
    cells: usize,
    fewer_since: Option<Instant>,
    /// Whether so many have all computed: none is left that has not begun to.
    is_settled: bool,
    /// The last loads since then, the newest at the end.
    loads: VecDeque<Load>,
    /// Its free memory before the first of our cells, and the most that there was without any.
    free_before: Option<u64>,
    most_free: u64,
    /// The most of its memory that each of our cells has had, on average, in the last loads.
    share: Option<f64>,
    /// The most cells that have settled on it together.
    proven: usize,
    /// The most cells that it has memory for, once it was seen that it has too little for one more.
    most: Option<usize>,
    /// Since it was of no use, until after the pause a cell computes there.
    closed: Option<Closed>,
    /// Whether a cell has computed there.
    has_worked: bool,
}

/// A GPU that is left alone for a while, and then tried again.
#[derive(Clone, Copy)]
struct Closed {
    until: Instant,
    pause: Duration,
}

impl Watched {
    /// Our cells that are there now; whether as many of them have been there lately.
    fn count(&mut self, crowd: Crowd, now: Instant) -> bool {
        self.has_worked |= crowd.at_work > 0;
        if crowd.at_work > 0 && self.is_open(now) {
            self.closed = None;
        }
        if crowd.cells < self.cells {
            let since = *self.fewer_since.get_or_insert(now);
            if now.saturating_duration_since(since) < Places::INTERVAL {
                return false;
            }
        }
        self.fewer_since = None;
        if crowd.cells != self.cells {
            (self.cells, self.is_settled) = (crowd.cells, false);
            self.loads.clear();
        }
        self.is_settled |= crowd.at_work == crowd.cells;
        true
    }

    /// A load beside as many cells as were counted.
    fn see(&mut self, load: Load, now: Instant) {
        if self.cells == 0 {
            self.free_before = Some(load.free_bytes);
            self.most_free = self.most_free.max(load.free_bytes);
            if self.lacks_a_share() {
                // After the pause a cell will show what it needs.
                self.close(now, false);
                self.share = None;
            }
        } else if self.is_settled {
            self.loads.push_back(load);
            if self.loads.len() > Places::LOADS {
                self.loads.pop_front();
            }
            if let (Some(before), Some(lowest)) = (self.free_before, self.lowest_free()) {
                self.share = Some(before.saturating_sub(lowest) as f64 / self.cells as f64);
                self.proven = self.proven.max(self.cells);
            }
        }
    }

    /// The least free memory of the last loads, if there are enough.
    fn lowest_free(&self) -> Option<u64> {
        let lowest = self.loads.iter().map(|load| load.free_bytes).min();
        lowest.filter(|_| self.loads.len() == Places::LOADS)
    }

    /// Share of the time in which it computed, in the half of the last loads in which that was most, if there are enough.
    fn busy(&self) -> Option<f64> {
        let half = Places::LOADS / 2;
        let mean = |from| self.loads.iter().skip(from).take(half).map(|load| load.busy).sum::<f64>() / half as f64;
        (self.loads.len() == Places::LOADS).then(|| f64::max(mean(0), mean(half)))
    }

    /// Whether less is free than a cell is known to need, and nobody has waited for that to change.
    fn lacks_a_share(&self) -> bool {
        let lacks = |(load, share): (Load, f64)| (load.free_bytes as f64) < share;
        self.closed.is_none() && self.last.zip(self.share).is_some_and(lacks)
    }

    fn is_open(&self, now: Instant) -> bool {
        self.closed.is_none_or(|closed| now >= closed.until)
    }

    /// Leaves it alone for a while, longer each time.
    fn close(&mut self, now: Instant, grows: bool) {
        let pause = match self.closed {
            Some(Closed { pause, .. }) if grows => (pause * 2).min(Places::LONGEST_PAUSE),
            _ => Places::FIRST_PAUSE,
        };
        if self.is_open(now) {
            self.closed = Some(Closed { until: now + pause, pause });
        }
    }
}

impl Places {
    /// Most cells that share a GPU with [`CellsPerGpu::Auto`].
    const MOST: usize = 8;
    /// Loads are read so often, and so many are looked back on: what cells need is seen within this time, whichever of them end
    /// and are replaced meanwhile.
    const INTERVAL: Duration = Duration::from_secs(1);
    const LOADS: usize = 20;
    /// A GPU that computes for more of the time has enough to do where cells take turns.
    const BUSY: f64 = 0.9;
    /// Where they compute at the same time, so many share it though it computes all the time: that some kernel runs does not
    /// say that there is no room for others. One model's steps keep a large GPU busy, and four have 1.4 times its speed.
    const AT_ONCE: usize = 4;
    /// A further cell may need so many times what the others needed on average.
    const MARGIN: f64 = 2.0;
    /// A GPU that is of no use is left alone for so long.
    const FIRST_PAUSE: Duration = Duration::from_secs(30);
    const LONGEST_PAUSE: Duration = Duration::from_secs(600);
    /// A cell has failed that the only GPU has refused so often.
    const TRIES: usize = 3;

    pub fn new(devices: Devices) -> Self {
        Self::with_meter(devices, meter())
    }

    fn with_meter(devices: Devices, meter: Box<dyn Meter>) -> Self {
        let count = if let Devices::Gpus { gpus, .. } = &devices { gpus.len() } else { 0 };
        let watched = (0..count).map(|_| Watched::default()).collect();
        Self { devices, meter, watched, shortages: BTreeMap::new(), refused: BTreeMap::new() }
    }

    /// Whether the cells of a GPU are computed in one process.
    pub fn have_hosts(&self) -> bool {
        matches!(self.devices, Devices::Gpus { sharing: GpuSharing::OneProcess, .. })
    }

    /// Cells on a GPU turn out to take turns, whatever was asked for.
    pub fn take_turns(&mut self) {
        if let Devices::Gpus { sharing, .. } = &mut self.devices {
            *sharing = GpuSharing::Turns;
        }
    }

    pub fn compute_at_once(&self) -> bool {
        !matches!(self.devices, Devices::Gpus { sharing: GpuSharing::Turns, .. })
    }

    /// How many cells may be at work now, those that are included.
    pub fn capacity(&mut self, occupants: &[Occupant], now: Instant) -> usize {
        self.watch(occupants, now);
        let cells = match self.devices {
            Devices::Cpu { workers } => workers.max(1),
            Devices::Gpus { .. } => {
                let rooms = (0..self.watched.len()).map(|gpu| self.room(gpu, occupants, now));
                occupants.len() + rooms.sum::<usize>()
            }
        };
        self.limit(Memory::Host, cells)
    }

    /// Others left a cell too little memory, so many of them. Until it has ended, no more share it than were there.
    pub fn was_crowded_out(&mut self, key: CellKey, memory: Memory, others: usize) {
        let others = others.max(1);
        let shortage = self.shortages.entry((key, memory)).or_insert(Shortage { others, most: others });
        shortage.most = shortage.most.min(others);
    }

    /// A GPU was of no use to a cell that had it to itself: nobody begins there for a while.
    pub fn was_refused(&mut self, key: CellKey, gpu: usize, obstacle: Obstacle, room: Room, now: Instant) {
        let has_worked = self.watched.iter().any(|watched| watched.has_worked);
        let grows = match (obstacle, room) {
            (Obstacle::Memory, Room::Usual) => return,
            (Obstacle::Memory, room) => room == Room::Little,
            // Where none has ever worked, there is little to wait for.
            (Obstacle::Device, _) if !has_worked && self.watched.len() == 1 => return,
            (Obstacle::Device, _) => has_worked,
        };
        if let Some(watched) = self.watched.get_mut(gpu) {
            watched.close(now, grows);
            self.refused.entry(key).or_default().push(gpu);
        }
    }

    /// A cell has ended, or will not begin again. If it had too little memory beside others and has a result now, its GPU takes
    /// no more than those from now on; what it needed further room for was its own size, or, if it failed, no fault of the
    /// others.
    pub fn has_ended(&mut self, key: &CellKey, has_result: bool) {
        self.refused.remove(key);
        let watched = &mut self.watched;
        self.shortages.retain(|(other, memory), Shortage { others, .. }| {
            if let (true, true, Memory::Gpu(gpu)) = (other == key, has_result, memory) {
                let most = &mut watched[*gpu].most;
                *most = Some(most.map_or(*others, |most| most.min(*others)));
            }
            other != key
        });
    }

    /// How many cells may share a memory, of `cells` that could.
    fn limit(&self, memory: Memory, cells: usize) -> usize {
        let shortages = self.shortages.iter().filter(|((_, of), _)| *of == memory).map(|(_, shortage)| shortage.most);
        let most = if let Memory::Gpu(gpu) = memory { self.watched[gpu].most } else { None };
        shortages.chain(most).fold(cells, usize::min)
    }

    /// The device of a cell: one that would take a further one, rather one that has not refused it, and where the fewest are.
    pub fn next(&self, key: &CellKey, occupants: &[Occupant], now: Instant) -> (usize, String) {
        let Devices::Gpus { gpus, .. } = &self.devices else { return (0, "cpu".to_owned()) };
        let has_refused = |gpu| self.refused.get(key).is_some_and(|refused| refused.contains(&gpu));
        let preference =
            |gpu: &usize| (self.room(*gpu, occupants, now) == 0, has_refused(*gpu), Crowd::on(*gpu, occupants).cells);
        let gpu = (0..gpus.len()).min_by_key(preference).unwrap_or(0);
        (gpu, format!("cuda:{}", gpus[gpu].ordinal))
    }

    /// What becomes of a cell that is about to begin on a GPU if that is of no use.
    pub fn outlook(&mut self, key: &CellKey, gpu: usize) -> Outlook {
        let Devices::Gpus { gpus, .. } = &self.devices else {
            return Outlook { room: Room::Usual, may_try_again: false, may_recover: false };
        };
        let refused = self.refused.get(key).map_or(&[][..], Vec::as_slice);
        let is_only = gpus.len() == 1;
        let may_try_again = match is_only {
            true => refused.len() + 1 < Self::TRIES,
            false => (0..gpus.len()).any(|other| other != gpu && !refused.contains(&other)),
        };
        let room = match self.meter.read(&gpus[gpu]) {
            Some(Load { free_bytes, .. }) => {
                let is_usual =
                    free_bytes / 3 >= self.watched[gpu].most_free / 4 && free_bytes >= gpus[gpu].memory_bytes / 2;
                if is_usual { Room::Usual } else { Room::Little }
            }
            None if is_only => Room::Usual,
            None => Room::Unknown,
        };
        Outlook { room, may_try_again, may_recover: !is_only || self.watched[gpu].has_worked }
    }

    /// How many more cells a GPU would do with.
    fn room(&self, gpu: usize, occupants: &[Occupant], now: Instant) -> usize {
        let Devices::Gpus { cells: asked, .. } = self.devices else { return 0 };
        let (watched, crowd) = (&self.watched[gpu], Crowd::on(gpu, occupants));
        match asked {
            _ if !watched.is_open(now) => 0,
            CellsPerGpu::Exactly(cells) => self.limit(Memory::Gpu(gpu), cells.max(1)).saturating_sub(crowd.cells),
            CellsPerGpu::Auto if crowd.cells == 0 => usize::from(!watched.lacks_a_share()),
            CellsPerGpu::Auto => usize::from(self.admits(gpu, crowd)),
        }
    }

    /// Whether a GPU of a run with [`CellsPerGpu::Auto`] would do with one cell beside these.
    fn admits(&self, gpu: usize, Crowd { cells, at_work }: Crowd) -> bool {
        let watched = &self.watched[gpu];
        let (Some(last), Some(share)) = (watched.last, watched.share) else { return false };
        let is_idle = watched.busy().is_some_and(|busy| busy < Self::BUSY);
        let has_time = is_idle || (cells < Self::AT_ONCE && self.compute_at_once());
        // What those need that do not compute yet is not seen.
        let replaces = cells < watched.proven && last.free_bytes as f64 >= share * (cells - at_work + 1) as f64;
        let fits = |lowest: u64| lowest as f64 >= Self::MARGIN * share;
        let takes_more = cells == watched.cells && watched.lowest_free().is_some_and(fits);
        cells < self.limit(Memory::Gpu(gpu), Self::MOST) && has_time && (replaces || takes_more)
    }

    fn watch(&mut self, occupants: &[Occupant], now: Instant) {
        let Devices::Gpus { gpus, .. } = &self.devices else { return };
        for (gpu, (facts, watched)) in gpus.iter().zip(&mut self.watched).enumerate() {
            let crowd = Crowd::on(gpu, occupants);
            // What one had that has just ended is free.
            let is_left = crowd.cells < watched.cells && watched.fewer_since.is_none();
            let is_counted = watched.count(crowd, now);
            let is_recent = watched.read.is_some_and(|read| now.saturating_duration_since(read) < Self::INTERVAL);
            if is_recent && !is_left {
                continue;
            }
            (watched.read, watched.last) = (Some(now), self.meter.read(facts));
            match watched.last {
                Some(load) if is_counted => watched.see(load, now),
                Some(_) => {}
                None => watched.loads.clear(),
            }
        }
    }
}

#[cfg(test)]
mod tests;
