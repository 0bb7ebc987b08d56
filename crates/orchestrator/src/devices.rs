//! What the cells of a run compute on, and how many of them at a time.
//!
//! On a CPU so many cells run as the user says. On GPUs each cell has one of them to itself or shares it with others, as
//! [`GpuSharing`] says. A small network leaves most of a GPU idle, so with [`CellsPerGpu::Auto`] another cell is started while
//! the GPU is not busy and has memory for it.

pub(crate) mod mps;
#[cfg(feature = "cuda")]
mod nvml;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use tsbd_experiment::CellKey;
use tsbd_tensor::GpuFacts;

/// What the cells of a run compute on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Devices {
    /// The CPU, whose threads are divided among so many cells at a time. A cell uses all cores, so 1 is right there.
    Cpu {
        /// Cells at a time; at least 1.
        workers: usize,
    },
    /// These GPUs of this machine.
    Gpus {
        /// At least one.
        gpus: Vec<GpuFacts>,
        /// How many cells share one.
        cells: CellsPerGpu,
        /// How they do so.
        sharing: GpuSharing,
    },
}

/// How the cells that share a GPU do so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuSharing {
    /// In one process, each with a thread and a stream of its own, at the same time. After a fault of the device each of them
    /// is computed again, from its last checkpoint, in a process of its own.
    OneProcess,
    /// In a process each, at the same time, by NVIDIA's Multi-Process Service if the machine has it. A fault of the device
    /// ends all of them.
    Mps,
    /// In a process each: they take turns. A fault of the device ends one of them.
    Turns,
}

/// How many cells share a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CellsPerGpu {
    /// So many, at least 1; fewer where the GPU has too little memory for them.
    Exactly(usize),
    /// As many as it has memory for and as keep it busy, up to 8: a further one is started when the last has run for a while
    /// and the GPU still has nothing to do for a tenth of the time, or fewer than 4 compute at the same time. Once so many have
    /// run together, another one takes the place of each that ends at once. Fewer where memory was too little after all; one, where nothing can be measured.
    Auto,
}

impl Devices {
    /// The devices to try the Multi-Process Service on, if cells are to use it.
    pub(crate) fn to_share(&self) -> Vec<String> {
        match self {
            Self::Gpus { gpus, sharing: GpuSharing::Mps, .. } => {
                gpus.iter().map(|gpu| format!("cuda:{}", gpu.ordinal)).collect()
            }
            _ => vec![],
        }
    }

    /// Threads for each child, of `threads` that there are.
    pub(crate) fn threads_per_child(&self, threads: usize) -> usize {
        // How many cells will share a GPU is not known beforehand; the CPU's part of their work is small.
        const EXPECTED: usize = 4;
        let children = match self {
            Self::Cpu { workers } => *workers,
            Self::Gpus { gpus, sharing: GpuSharing::OneProcess, .. } => gpus.len(),
            Self::Gpus { gpus, cells: CellsPerGpu::Exactly(cells), .. } => gpus.len() * cells,
            Self::Gpus { gpus, cells: CellsPerGpu::Auto, .. } => gpus.len() * EXPECTED,
        };
        (threads / children.max(1)).max(1)
    }
}

/// What a GPU does at a moment, whoever uses it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Load {
    /// Memory that nobody has.
    pub free_bytes: u64,
    /// Share of the last moments in which it computed, 0 to 1.
    pub busy: f64,
}

/// Where loads are read.
pub(crate) trait Meter: Send {
    /// The load of a GPU; `None` if it cannot be read.
    fn read(&mut self, gpu: &GpuFacts) -> Option<Load>;
}

/// A meter that reads nothing.
struct Blind;

impl Meter for Blind {
    fn read(&mut self, _gpu: &GpuFacts) -> Option<Load> {
        None
    }
}

/// The places that cells can take.
pub(crate) struct Places {
    devices: Devices,
    meter: Box<dyn Meter>,
    /// One for each GPU.
    watched: Vec<Watched>,
    /// Of the cells that have not ended since.
    shortages: BTreeMap<CellKey, Shortage>,
}

/// What is known of a GPU while a run goes on.
#[derive(Default)]
struct Watched {
    /// The last loads, the newest at the end.
    loads: VecDeque<Load>,
    read: Option<Instant>,
    /// Its free memory before the first of our cells.
    free_before: Option<u64>,
    /// The most of its memory that each of our cells has had, on average, once all had settled; none before that.
    share: Option<f64>,
    /// The most cells that have settled on it together.
    proven: usize,
    /// The most cells that it has memory for, once it was seen that it has too little for one more.
    most: Option<usize>,
}

/// What is known of a cell that others left too little memory.
struct Shortage {
    /// Where that was first, and how many others were there.
    gpu: usize,
    others: usize,
    /// So many cells may share a GPU, itself included, until it has ended: fewer each time.
    most: usize,
}

/// A cell that has a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Occupant {
    /// Of the GPUs, by its place in the list; 0 on a CPU.
    pub gpu: usize,
    pub since: Instant,
}

/// Our cells on a GPU at a moment.
struct Crowd {
    cells: usize,
    /// Those that have begun so lately that it is not seen yet what they need.
    unsettled: usize,
}

impl Crowd {
    fn on(gpu: usize, occupants: &[Occupant], now: Instant) -> Self {
        let here = occupants.iter().filter(|occupant| occupant.gpu == gpu);
        let is_unsettled = |occupant: &&Occupant| now.saturating_duration_since(occupant.since) < Places::SETTLING;
        Self { cells: here.clone().count(), unsettled: here.filter(is_unsettled).count() }
    }
}

fn count(gpu: usize, occupants: &[Occupant]) -> usize {
    occupants.iter().filter(|occupant| occupant.gpu == gpu).count()
}

impl Places {
    /// Most cells that share a GPU with [`CellsPerGpu::Auto`].
    const MOST: usize = 8;
    /// What a cell needs becomes visible within this time: it reads its images, and its first steps are done.
    const SETTLING: Duration = Duration::from_secs(20);
    /// Loads are read so often, and so many are looked back on.
    const INTERVAL: Duration = Duration::from_secs(1);
    const LOADS: usize = 10;
    /// A GPU that computes for more of the time has enough to do where cells take turns.
    const BUSY: f64 = 0.9;
    /// Where they compute at the same time, so many share it though it computes all the time: that some kernel runs does not
    /// say that there is no room for others. One model's steps keep a large GPU busy, and four have 1.4 times its speed.
    const AT_ONCE: usize = 4;
    /// A further cell may need so many times what the others needed on average.
    const MARGIN: f64 = 2.0;

    pub fn new(devices: Devices) -> Self {
        Self::with_meter(devices, meter())
    }

    fn with_meter(devices: Devices, meter: Box<dyn Meter>) -> Self {
        let count = if let Devices::Gpus { gpus, .. } = &devices { gpus.len() } else { 0 };
        let watched = (0..count).map(|_| Watched::default()).collect();
        Self { devices, meter, watched, shortages: BTreeMap::new() }
    }

    /// Whether the cells of a GPU are computed in one process.
    pub fn have_hosts(&self) -> bool {
        matches!(self.devices, Devices::Gpus { sharing: GpuSharing::OneProcess, .. })
    }

    /// How many cells may be at work now, those that are included.
    pub fn capacity(&mut self, occupants: &[Occupant], now: Instant) -> usize {
        match &self.devices {
            Devices::Cpu { workers } => (*workers).max(1),
            Devices::Gpus { cells: CellsPerGpu::Exactly(cells), .. } => {
                let room = |gpu| self.limit(gpu, (*cells).max(1)).saturating_sub(count(gpu, occupants));
                occupants.len() + (0..self.watched.len()).map(room).sum::<usize>()
            }
            Devices::Gpus { cells: CellsPerGpu::Auto, .. } => {
                self.watch(occupants, now);
                occupants.len() + (0..self.watched.len()).filter(|&gpu| self.admits(gpu, occupants, now)).count()
            }
        }
    }

    /// The others on its GPU left a cell too little memory. Until it has ended, no more share a GPU than were there.
    pub fn was_crowded_out(&mut self, key: CellKey, gpu: usize, occupants: &[Occupant]) {
        let others = count(gpu, occupants).max(1);
        let shortage = self.shortages.entry(key).or_insert(Shortage { gpu, others, most: others });
        shortage.most = shortage.most.min(others);
    }

    /// A cell has ended. If it had too little memory beside others and has a result now, its GPU takes no more than those from
    /// now on; what it needed further room for was its own size, or, if it failed, no fault of the others.
    pub fn has_ended(&mut self, key: &CellKey, has_result: bool) {
        let Some(Shortage { gpu, others, .. }) = self.shortages.remove(key) else { return };
        if let (true, Some(watched)) = (has_result, self.watched.get_mut(gpu)) {
            watched.most = Some(watched.most.map_or(others, |most| most.min(others)));
        }
    }

    /// How many cells may share a GPU that may have so many as far as memory goes.
    fn limit(&self, gpu: usize, cells: usize) -> usize {
        self.shortages.values().map(|shortage| shortage.most).chain(self.watched[gpu].most).fold(cells, usize::min)
    }

    /// The device of a further cell: where the fewest are, of those that would take one.
    pub fn next(&self, occupants: &[Occupant], now: Instant) -> (usize, String) {
        let Devices::Gpus { gpus, cells, .. } = &self.devices else { return (0, "cpu".to_owned()) };
        let is_closed = |gpu: usize| match *cells {
            CellsPerGpu::Exactly(cells) => count(gpu, occupants) >= self.limit(gpu, cells.max(1)),
            CellsPerGpu::Auto => !self.admits(gpu, occupants, now),
        };
        let gpu = (0..gpus.len()).min_by_key(|&gpu| (is_closed(gpu), count(gpu, occupants))).unwrap_or(0);
        (gpu, format!("cuda:{}", gpus[gpu].ordinal))
    }

    /// Whether a GPU of a run with [`CellsPerGpu::Auto`] would do with one cell more.
    fn admits(&self, gpu: usize, occupants: &[Occupant], now: Instant) -> bool {
        let Crowd { cells, unsettled } = Crowd::on(gpu, occupants, now);
        if cells == 0 {
            return true;
        }
        let Watched { loads, share, proven, .. } = &self.watched[gpu];
        let (Some(last), Some(share)) = (loads.back(), share) else { return false };
        // What those need that have just begun is not seen yet.
        let fits = last.free_bytes as f64 >= Self::MARGIN * share * (unsettled + 1) as f64;
        let busy = loads.iter().map(|load| load.busy).sum::<f64>() / loads.len() as f64;
        let has_time = busy < Self::BUSY || (cells < Self::AT_ONCE && self.compute_at_once());
        let takes_more = unsettled == 0 && loads.len() == Self::LOADS && has_time;
        cells < self.limit(gpu, Self::MOST) && fits && (cells < *proven || takes_more)
    }

    fn compute_at_once(&self) -> bool {
        !matches!(self.devices, Devices::Gpus { sharing: GpuSharing::Turns, .. })
    }

    fn watch(&mut self, occupants: &[Occupant], now: Instant) {
        let Devices::Gpus { gpus, .. } = &self.devices else { return };
        for (gpu, (facts, watched)) in gpus.iter().zip(&mut self.watched).enumerate() {
            if watched.read.is_some_and(|read| now.saturating_duration_since(read) < Self::INTERVAL) {
                continue;
            }
            watched.read = Some(now);
            let Some(load) = self.meter.read(facts) else {
                watched.loads.clear();
                continue;
            };
            match (Crowd::on(gpu, occupants, now), watched.free_before) {
                (Crowd { cells: 0, .. }, _) => watched.free_before = Some(load.free_bytes),
                (Crowd { cells, unsettled: 0 }, Some(before)) => {
                    let share = before.saturating_sub(load.free_bytes) as f64 / cells as f64;
                    watched.share = Some(watched.share.map_or(share, |most| most.max(share)));
                    watched.proven = watched.proven.max(cells);
                }
                _ => {}
            }
            watched.loads.push_back(load);
            if watched.loads.len() > Self::LOADS {
                watched.loads.pop_front();
            }
        }
    }
}

#[cfg(feature = "cuda")]
fn meter() -> Box<dyn Meter> {
    match nvml::Nvml::new() {
        Some(nvml) => Box::new(nvml),
        None => Box::new(Blind),
    }
}

#[cfg(not(feature = "cuda"))]
fn meter() -> Box<dyn Meter> {
    Box::new(Blind)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    const GIB: u64 = 1 << 30;

    /// Shows what a test writes.
    #[derive(Clone, Default)]
    struct Shown(Arc<Mutex<Vec<Option<Load>>>>);

    impl Meter for Shown {
        fn read(&mut self, gpu: &GpuFacts) -> Option<Load> {
            self.0.lock().unwrap()[gpu.ordinal]
        }
    }

    impl Shown {
        fn show(&self, gpu: usize, free_bytes: u64, busy: f64) {
            self.0.lock().unwrap()[gpu] = Some(Load { free_bytes, busy });
        }
    }

    fn gpus(count: usize) -> Vec<GpuFacts> {
        let gpu = |ordinal| GpuFacts { ordinal, name: "Test".into(), uuid: String::new(), memory_bytes: 80 * GIB };
        (0..count).map(gpu).collect()
    }

    fn places(count: usize, cells: CellsPerGpu, sharing: GpuSharing) -> (Places, Shown) {
        let shown = Shown(Arc::new(Mutex::new(vec![None; count])));
        let devices = Devices::Gpus { gpus: gpus(count), cells, sharing };
        (Places::with_meter(devices, Box::new(shown.clone())), shown)
    }

    /// The capacity after as many readings as are looked back on.
    fn settled(places: &mut Places, occupants: &[Occupant], start: Instant) -> (usize, Instant) {
        let seconds = Places::SETTLING.as_secs() + Places::LOADS as u64;
        let mut capacity = 0;
        for second in 0..=seconds {
            capacity = places.capacity(occupants, start + Duration::from_secs(second));
        }
        (capacity, start + Duration::from_secs(seconds))
    }

    #[test]
    fn a_cpu_has_as_many_places_as_the_user_says_and_divides_its_threads() {
        let mut places = Places::new(Devices::Cpu { workers: 3 });
        assert_eq!(places.capacity(&[], Instant::now()), 3);
        assert_eq!(places.next(&[], Instant::now()), (0, "cpu".to_owned()));
        assert_eq!(Devices::Cpu { workers: 3 }.threads_per_child(8), 2);
        assert_eq!(Devices::Cpu { workers: 3 }.threads_per_child(1), 1);
    }

    #[test]
    fn the_one_process_of_a_gpu_has_all_of_its_threads() {
        let of = |sharing| Devices::Gpus { gpus: gpus(2), cells: CellsPerGpu::Exactly(4), sharing };
        assert_eq!(of(GpuSharing::OneProcess).threads_per_child(16), 8);
        assert_eq!(of(GpuSharing::Turns).threads_per_child(16), 2);
    }

    #[test]
    fn a_fixed_number_of_cells_is_spread_evenly() {
        let (mut places, _) = places(2, CellsPerGpu::Exactly(2), GpuSharing::OneProcess);
        let now = Instant::now();
        assert_eq!(places.capacity(&[], now), 4);
        let mut occupants = Vec::new();
        for expected in ["cuda:0", "cuda:1", "cuda:0", "cuda:1"] {
            let (gpu, name) = places.next(&occupants, now);
            assert_eq!(name, expected);
            occupants.push(Occupant { gpu, since: now });
        }
        occupants.remove(2);
        assert_eq!(places.next(&occupants, now).1, "cuda:0");
    }

    #[test]
    fn an_idle_gpu_with_memory_takes_a_further_cell_and_a_busy_one_does_not_where_they_take_turns() {
        let (mut places, shown) = places(2, CellsPerGpu::Auto, GpuSharing::Turns);
        let start = Instant::now();
        shown.show(0, 79 * GIB, 0.);
        shown.show(1, 79 * GIB, 0.);
        assert_eq!(places.capacity(&[], start), 2, "one each");
        let occupants = [0, 1].map(|gpu| Occupant { gpu, since: start });
        shown.show(0, 75 * GIB, 0.95);
        shown.show(1, 75 * GIB, 0.4);
        assert_eq!(places.capacity(&occupants, start + Duration::from_secs(1)), 2, "they have just begun");
        let (capacity, later) = settled(&mut places, &occupants, start + Duration::from_secs(2));
        assert_eq!(capacity, 3);
        assert_eq!(places.next(&occupants, later).1, "cuda:1");
        let further = [occupants[0], occupants[1], Occupant { gpu: 1, since: later }];
        assert_eq!(places.capacity(&further, later + Duration::from_secs(1)), 3, "the new one settles first");
    }

    #[test]
    fn four_compute_at_once_on_a_busy_gpu_and_each_that_ends_is_replaced_at_once() {
        let (mut places, shown) = places(1, CellsPerGpu::Auto, GpuSharing::OneProcess);
        let mut now = Instant::now();
        shown.show(0, 79 * GIB, 0.);
        let mut occupants = Vec::new();
        for cells in 1..=4 {
            assert_eq!(places.capacity(&occupants, now), cells);
            occupants.push(Occupant { gpu: 0, since: now });
            shown.show(0, (79 - 4 * cells as u64) * GIB, 1.0);
            assert_eq!(places.capacity(&occupants, now + Duration::from_secs(1)), cells, "the new one settles first");
            now = settled(&mut places, &occupants, now).1;
        }
        assert_eq!(places.capacity(&occupants, now), 4, "a busy GPU takes no more");
        // Three end soon after one another.
        occupants.truncate(1);
        shown.show(0, 75 * GIB, 1.0);
        for cells in 2..=4 {
            now += Duration::from_secs(1);
            assert_eq!(places.capacity(&occupants, now), cells);
            occupants.push(Occupant { gpu: 0, since: now });
        }
        assert_eq!(places.capacity(&occupants, now), 4);
        // Somebody else takes memory: each of those that have just begun may still need twice 4 GiB, as may one more.
        occupants.truncate(3);
        shown.show(0, 23 * GIB, 1.0);
        assert_eq!(places.capacity(&occupants, now + Duration::from_secs(1)), 3);
        shown.show(0, 25 * GIB, 1.0);
        assert_eq!(places.capacity(&occupants, now + Duration::from_secs(2)), 4);
    }

    #[test]
    fn a_gpu_without_memory_for_one_more_takes_none() {
        let (mut places, shown) = places(1, CellsPerGpu::Auto, GpuSharing::OneProcess);
        let start = Instant::now();
        shown.show(0, 79 * GIB, 0.);
        assert_eq!(places.capacity(&[], start), 1);
        let occupants = [Occupant { gpu: 0, since: start }; 2];
        // Two cells have 30 GiB each; another two of that size must fit.
        shown.show(0, 19 * GIB, 0.3);
        assert_eq!(settled(&mut places, &occupants, start).0, 2);
        shown.show(0, 61 * GIB, 0.3);
        assert_eq!(settled(&mut places, &occupants, start + Duration::from_secs(60)).0, 3);
    }

    #[test]
    fn while_a_cell_has_too_little_memory_fewer_share_and_afterwards_no_more_than_were_beside_it() {
        let [x, y] = ["0", "1"].map(|digit| digit.repeat(CellKey::DIGITS).parse::<CellKey>().unwrap());
        for cells in [CellsPerGpu::Exactly(4), CellsPerGpu::Auto] {
            let (mut places, shown) = places(2, cells, GpuSharing::OneProcess);
            let start = Instant::now();
            shown.show(0, 79 * GIB, 0.);
            shown.show(1, 79 * GIB, 0.);
            places.capacity(&[], start);
            let occupants = [0, 0, 1, 1].map(|gpu| Occupant { gpu, since: start });
            let (before, now) = settled(&mut places, &occupants, start);
            let further = (before - 4) / 2;
            assert_eq!(further, if cells == CellsPerGpu::Auto { 1 } else { 2 }, "on each");
            // It was a third one on the first GPU. Nowhere is there a third one until it has ended.
            places.was_crowded_out(x.clone(), 0, &occupants[..2]);
            assert_eq!(places.capacity(&occupants, now), 4);
            // It was the second one there.
            places.was_crowded_out(x.clone(), 0, &occupants[1..2]);
            assert_eq!(places.capacity(&occupants, now), 4);
            assert_eq!(places.capacity(&occupants[2..], now), 3, "a GPU without cells always takes one");
            places.was_crowded_out(x.clone(), 1, &[]);
            assert_eq!(places.capacity(&[], now), 2);
            // It failed on a GPU that it had to itself: that says nothing about others.
            places.has_ended(&x, false);
            assert_eq!(places.capacity(&occupants, now), before);
            places.was_crowded_out(y.clone(), 0, &occupants[..2]);
            places.was_crowded_out(y.clone(), 0, &occupants[..1]);
            places.has_ended(&y, true);
            assert_eq!(places.capacity(&occupants, now), 4 + further, "with it three were too many on the first one");
            assert_eq!(places.next(&occupants, now).1, "cuda:1");
            places.has_ended(&x, true);
            assert_eq!(places.capacity(&occupants, now), 4 + further, "it had lacked nothing since");
        }
    }

    #[test]
    fn no_more_than_eight_share_a_gpu_and_one_has_it_alone_where_nothing_is_measured() {
        let (mut places, shown) = places(1, CellsPerGpu::Auto, GpuSharing::OneProcess);
        let start = Instant::now();
        let alone = [Occupant { gpu: 0, since: start }];
        assert_eq!(places.capacity(&[], start), 1);
        assert_eq!(settled(&mut places, &alone, start).0, 1, "nothing is measured");
        shown.show(0, 79 * GIB, 0.);
        assert_eq!(settled(&mut places, &[], start + Duration::from_secs(60)).0, 1);
        shown.show(0, 78 * GIB, 0.1);
        let eight = [Occupant { gpu: 0, since: start }; 8];
        assert_eq!(settled(&mut places, &eight[..7], start + Duration::from_secs(120)).0, 8);
        assert_eq!(settled(&mut places, &eight, start + Duration::from_secs(180)).0, 8);
    }
}
