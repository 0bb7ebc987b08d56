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
mod tests {
    use std::sync::{Arc, Mutex};

    use tsbd_tensor::GpuFacts;

    use super::*;

    const GIB: u64 = 1 << 30;
    const SECOND: Duration = Duration::from_secs(1);

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

    fn places(count: usize, cells: CellsPerGpu, sharing: GpuSharing) -> (Places, Shown) {
        let shown = Shown(Arc::new(Mutex::new(vec![None; count])));
        let gpu = |ordinal| GpuFacts { ordinal, name: "Test".into(), uuid: String::new(), memory_bytes: 80 * GIB };
        let devices = Devices::Gpus { gpus: (0..count).map(gpu).collect(), cells, sharing };
        (Places::with_meter(devices, Box::new(shown.clone())), shown)
    }

    fn key(digit: char) -> CellKey {
        digit.to_string().repeat(CellKey::DIGITS).parse().unwrap()
    }

    /// A cell that has just begun, and one that computes.
    fn begun(gpu: usize) -> Occupant {
        Occupant { gpu, computes: false }
    }

    fn at_work(gpu: usize) -> Occupant {
        Occupant { gpu, computes: true }
    }

    /// The capacity after as many readings as are looked back on.
    fn settled(places: &mut Places, occupants: &[Occupant], start: Instant) -> (usize, Instant) {
        let seconds = 1 + Places::LOADS as u32;
        let capacities = (0..=seconds).map(|second| places.capacity(occupants, start + SECOND * second));
        (capacities.last().unwrap(), start + SECOND * seconds)
    }

    #[test]
    fn a_cpu_has_as_many_places_as_the_user_says_and_fewer_after_one_was_killed_beside_others() {
        let (mut places, now) = (Places::new(Devices::Cpu { workers: 3 }), Instant::now());
        assert_eq!(places.capacity(&[], now), 3);
        assert_eq!(places.next(&key('0'), &[], now), (0, "cpu".to_owned()));
        places.was_crowded_out(key('0'), Memory::Host, 2);
        assert_eq!(places.capacity(&[], now), 2);
        places.has_ended(&key('0'), true);
        assert_eq!(places.capacity(&[], now), 3);
    }

    #[test]
    fn a_fixed_number_of_cells_is_spread_evenly() {
        let (mut places, _) = places(2, CellsPerGpu::Exactly(2), GpuSharing::OneProcess);
        let now = Instant::now();
        assert_eq!(places.capacity(&[], now), 4);
        let mut occupants = Vec::new();
        for expected in ["cuda:0", "cuda:1", "cuda:0", "cuda:1"] {
            let (gpu, name) = places.next(&key('0'), &occupants, now);
            assert_eq!(name, expected);
            occupants.push(begun(gpu));
        }
        occupants.remove(2);
        assert_eq!(places.next(&key('0'), &occupants, now).1, "cuda:0");
    }

    #[test]
    fn an_idle_gpu_with_memory_takes_a_further_cell_and_a_busy_one_does_not_where_they_take_turns() {
        let (mut places, shown) = places(2, CellsPerGpu::Auto, GpuSharing::Turns);
        let start = Instant::now();
        shown.show(0, 79 * GIB, 0.);
        shown.show(1, 79 * GIB, 0.);
        assert_eq!(places.capacity(&[], start), 2, "one each");
        let occupants = [at_work(0), at_work(1)];
        shown.show(0, 75 * GIB, 0.95);
        shown.show(1, 75 * GIB, 0.4);
        assert_eq!(places.capacity(&occupants, start + SECOND), 2, "they have just begun");
        let (capacity, later) = settled(&mut places, &occupants, start + 2 * SECOND);
        assert_eq!(capacity, 3);
        assert_eq!(places.next(&key('0'), &occupants, later).1, "cuda:1");
        let further = [occupants[0], occupants[1], begun(1)];
        assert_eq!(places.capacity(&further, later + SECOND), 3, "the new one settles first");
        assert_eq!(settled(&mut places, &further, later).0, 3, "it still reads images");
    }

    #[test]
    fn four_compute_at_once_on_a_busy_gpu_and_each_that_ends_is_replaced_at_once() {
        let (mut places, shown) = places(1, CellsPerGpu::Auto, GpuSharing::OneProcess);
        let mut now = Instant::now();
        shown.show(0, 79 * GIB, 0.);
        let mut occupants = Vec::new();
        for cells in 1..=4 {
            assert_eq!(places.capacity(&occupants, now), cells);
            occupants.push(at_work(0));
            shown.show(0, (79 - 4 * cells as u64) * GIB, 1.0);
            assert_eq!(places.capacity(&occupants, now + SECOND), cells, "the new one settles first");
            now = settled(&mut places, &occupants, now).1;
        }
        assert_eq!(places.capacity(&occupants, now), 4, "a busy GPU takes no more");
        // Three end at once.
        occupants.truncate(1);
        shown.show(0, 75 * GIB, 1.0);
        for cells in 2..=4 {
            assert_eq!(places.capacity(&occupants, now), cells);
            occupants.push(begun(0));
        }
        assert_eq!(places.capacity(&occupants, now), 4);
        // Somebody else takes memory: each of those that have just begun may still need 4 GiB, as may one more.
        occupants.truncate(3);
        shown.show(0, 11 * GIB, 1.0);
        assert_eq!(places.capacity(&occupants, now + SECOND), 3);
        shown.show(0, 13 * GIB, 1.0);
        assert_eq!(places.capacity(&occupants, now + 2 * SECOND), 4);
    }

    #[test]
    fn cells_that_are_shorter_than_what_is_looked_back_on_share_a_gpu_too() {
        let (mut places, shown) = places(1, CellsPerGpu::Auto, GpuSharing::OneProcess);
        let start = Instant::now();
        shown.show(0, 79 * GIB, 0.);
        places.capacity(&[], start);
        shown.show(0, 75 * GIB, 1.0);
        let capacity = |places: &mut Places, tenth: u32| {
            // Each cell reads for a second, computes for three, and is replaced at once by the next one.
            let now = start + SECOND * tenth / 10;
            let occupant = if tenth % 40 < 10 { begun(0) } else { at_work(0) };
            if tenth.is_multiple_of(40) {
                assert_eq!(places.capacity(&[], now), 1);
            }
            places.capacity(&[occupant], now)
        };
        let raised = (1..600).find(|tenth| capacity(&mut places, *tenth) > 1);
        assert!(matches!(raised, Some(200..400)), "{raised:?}");
    }

    #[test]
    fn what_cells_do_before_they_compute_is_no_ground_for_more_of_them() {
        let (mut places, shown) = places(1, CellsPerGpu::Auto, GpuSharing::OneProcess);
        let start = Instant::now();
        shown.show(0, 79 * GIB, 0.);
        places.capacity(&[], start);
        let (capacity, now) = settled(&mut places, &[begun(0)], start);
        assert_eq!(capacity, 1, "it reads its images");
        shown.show(0, 30 * GIB, 0.9);
        assert_eq!(settled(&mut places, &[at_work(0)], now).0, 1, "no second one fits");
    }

    #[test]
    fn beyond_four_those_that_end_are_replaced_only_while_the_gpu_has_time() {
        let (mut places, shown) = places(1, CellsPerGpu::Auto, GpuSharing::OneProcess);
        let start = Instant::now();
        shown.show(0, 79 * GIB, 0.);
        places.capacity(&[], start);
        shown.show(0, 67 * GIB, 0.2);
        let six = [at_work(0); 6];
        let (capacity, now) = settled(&mut places, &six, start);
        assert_eq!((capacity, places.capacity(&six[..5], now)), (7, 6));
        shown.show(0, 67 * GIB, 1.0);
        let (capacity, now) = settled(&mut places, &six, now);
        assert_eq!((capacity, places.capacity(&six[..5], now)), (6, 5), "it is busy now");
        assert_eq!(places.capacity(&six[..3], now), 4);
    }

    #[test]
    fn memory_that_somebody_else_had_for_a_while_does_not_count_afterwards() {
        let (mut places, shown) = places(1, CellsPerGpu::Auto, GpuSharing::OneProcess);
        let start = Instant::now();
        shown.show(0, 79 * GIB, 0.);
        places.capacity(&[], start);
        shown.show(0, 19 * GIB, 0.5);
        let (capacity, now) = settled(&mut places, &[at_work(0)], start);
        assert_eq!(capacity, 1);
        shown.show(0, 75 * GIB, 0.5);
        let (capacity, now) = settled(&mut places, &[at_work(0)], now);
        assert_eq!(capacity, 2);
        // Once more, beside four: those that end are replaced as soon as it is over.
        shown.show(0, 63 * GIB, 0.5);
        let (_, now) = settled(&mut places, &[at_work(0); 4], now);
        shown.show(0, 7 * GIB, 0.5);
        let (_, now) = settled(&mut places, &[at_work(0); 4], now);
        let (capacity, now) = settled(&mut places, &[at_work(0); 2], now);
        assert_eq!(capacity, 2);
        shown.show(0, 71 * GIB, 0.5);
        assert_eq!(settled(&mut places, &[at_work(0); 2], now).0, 3);
    }

    #[test]
    fn a_gpu_without_memory_for_one_more_takes_none() {
        let (mut places, shown) = places(1, CellsPerGpu::Auto, GpuSharing::OneProcess);
        let start = Instant::now();
        shown.show(0, 79 * GIB, 0.);
        assert_eq!(places.capacity(&[], start), 1);
        let occupants = [at_work(0); 2];
        // Two cells have 30 GiB each; another two of that size must fit.
        shown.show(0, 19 * GIB, 0.3);
        let (capacity, now) = settled(&mut places, &occupants, start);
        assert_eq!(capacity, 2);
        shown.show(0, 61 * GIB, 0.3);
        assert_eq!(settled(&mut places, &occupants, now).0, 3);
    }

    #[test]
    fn while_a_cell_has_too_little_memory_fewer_share_its_gpu_and_afterwards_no_more_than_were_beside_it() {
        let (x, y) = (key('0'), key('1'));
        for cells in [CellsPerGpu::Exactly(4), CellsPerGpu::Auto] {
            let (mut places, shown) = places(2, cells, GpuSharing::OneProcess);
            let start = Instant::now();
            shown.show(0, 79 * GIB, 0.);
            shown.show(1, 79 * GIB, 0.);
            places.capacity(&[], start);
            let occupants = [0, 0, 1, 1].map(at_work);
            let (before, now) = settled(&mut places, &occupants, start);
            let further = (before - 4) / 2;
            assert_eq!(further, if cells == CellsPerGpu::Auto { 1 } else { 2 }, "on each");
            // It was a third one on the first GPU, where there is no third one until it has ended.
            places.was_crowded_out(x.clone(), Memory::Gpu(0), 2);
            assert_eq!(places.capacity(&occupants, now), 4 + further);
            assert_eq!(places.next(&x, &occupants, now).1, "cuda:1");
            // It was a third one on the other one too, and then the second one there.
            places.was_crowded_out(x.clone(), Memory::Gpu(1), 2);
            assert_eq!(places.capacity(&occupants, now), 4);
            places.was_crowded_out(x.clone(), Memory::Gpu(1), 1);
            assert_eq!(places.capacity(&occupants[..2], now), 3, "a GPU without cells always takes one");
            // It failed on a GPU that it had to itself: that says nothing about others.
            places.has_ended(&x, false);
            assert_eq!(places.capacity(&occupants, now), before);
            places.was_crowded_out(y.clone(), Memory::Gpu(0), 2);
            places.was_crowded_out(y.clone(), Memory::Gpu(0), 1);
            places.has_ended(&y, true);
            assert_eq!(places.capacity(&occupants, now), 4 + further, "with it three were too many on the first one");
            assert_eq!(places.next(&x, &occupants, now).1, "cuda:1");
            places.has_ended(&x, true);
            assert_eq!(places.capacity(&occupants, now), 4 + further, "it had lacked nothing since");
        }
    }

    #[test]
    fn a_gpu_that_is_of_no_use_rests_for_longer_each_time_until_a_cell_computes_there() {
        let (mut places, shown) = places(2, CellsPerGpu::Auto, GpuSharing::OneProcess);
        let (x, mut now) = (key('0'), Instant::now());
        let occupants = [at_work(0)];
        // Somebody else has the second one.
        shown.show(0, 75 * GIB, 1.0);
        shown.show(1, GIB, 1.0);
        for pause in [30, 60, 120, 240, 480, 600, 600] {
            assert_eq!(places.capacity(&occupants, now), 2);
            let outlook = places.outlook(&x, 1);
            assert!(outlook.room == Room::Little && outlook.allows(Obstacle::Memory));
            places.was_refused(x.clone(), 1, Obstacle::Memory, outlook.room, now);
            assert_eq!(places.capacity(&occupants, now + SECOND * (pause - 1)), 1, "for {pause} s");
            now += SECOND * pause;
        }
        assert_eq!(places.next(&key('1'), &[], now).1, "cuda:0", "the first of two without cells");
        places.capacity(&[at_work(0), at_work(1)], now);
        places.was_refused(x.clone(), 1, Obstacle::Device, Room::Usual, now);
        assert_eq!(places.capacity(&occupants, now + 30 * SECOND), 2, "it had worked meanwhile");
        // Where it has failed already it does not begin again before others have been tried.
        assert_eq!(places.next(&x, &[], now + 30 * SECOND).1, "cuda:0");
        assert!(!places.outlook(&x, 0).allows(Obstacle::Memory), "it has failed on every GPU");
        places.has_ended(&x, false);
        assert!(places.outlook(&x, 0).allows(Obstacle::Device));
    }

    #[test]
    fn a_cell_that_is_too_large_fails_at_once_and_one_whose_gpu_is_taken_is_tried_three_times() {
        let (mut places, shown) = places(1, CellsPerGpu::Exactly(1), GpuSharing::OneProcess);
        let (x, mut now) = (key('0'), Instant::now());
        assert!(!places.outlook(&x, 0).allows(Obstacle::Memory), "nothing is measured");
        shown.show(0, 79 * GIB, 0.);
        places.capacity(&[], now);
        let outlook = places.outlook(&x, 0);
        assert!(!outlook.allows(Obstacle::Memory), "all is free");
        places.was_refused(x.clone(), 0, Obstacle::Memory, outlook.room, now);
        assert_eq!(places.capacity(&[], now), 1, "others may be smaller");
        shown.show(0, 50 * GIB, 0.);
        for tries in [true, true, false] {
            let outlook = places.outlook(&x, 0);
            assert_eq!(outlook.allows(Obstacle::Memory), tries);
            places.was_refused(x.clone(), 0, Obstacle::Memory, outlook.room, now);
            assert_eq!(places.capacity(&[], now), 0);
            now += Places::LONGEST_PAUSE;
        }
        places.has_ended(&x, false);
        assert!(!places.outlook(&x, 0).allows(Obstacle::Device), "it has never been of use");
        places.was_refused(x.clone(), 0, Obstacle::Device, Room::Usual, now);
        assert_eq!(places.capacity(&[], now), 1, "nor is it waited for");
        places.capacity(&[at_work(0)], now);
        assert!(places.outlook(&x, 0).allows(Obstacle::Device));
    }

    #[test]
    fn a_gpu_that_opens_for_no_further_cell_rests_while_others_go_on_there() {
        let (mut places, _) = places(1, CellsPerGpu::Exactly(2), GpuSharing::Turns);
        let now = Instant::now();
        assert_eq!(places.capacity(&[at_work(0)], now), 2);
        places.was_refused(key('0'), 0, Obstacle::Device, Room::Usual, now);
        assert_eq!(places.capacity(&[at_work(0)], now + 29 * SECOND), 1);
        assert_eq!(places.capacity(&[at_work(0)], now + 30 * SECOND), 2);
    }

    #[test]
    fn a_gpu_without_cells_and_with_less_memory_than_one_needs_takes_none_for_a_while() {
        let (mut places, shown) = places(2, CellsPerGpu::Auto, GpuSharing::OneProcess);
        let start = Instant::now();
        shown.show(0, 79 * GIB, 0.);
        shown.show(1, 79 * GIB, 0.);
        places.capacity(&[], start);
        shown.show(1, 59 * GIB, 1.0);
        let (_, now) = settled(&mut places, &[at_work(1)], start);
        shown.show(1, 19 * GIB, 1.0);
        let now = now + SECOND;
        assert_eq!((places.capacity(&[], now), places.next(&key('0'), &[], now).1), (1, "cuda:0".to_owned()));
        places.capacity(&[], now + SECOND);
        assert_eq!(places.capacity(&[], now + 30 * SECOND), 1);
        assert_eq!(places.capacity(&[], now + 31 * SECOND), 2, "a cell is tried");
    }

    #[test]
    fn no_more_than_eight_share_a_gpu_and_one_has_it_alone_where_nothing_is_measured() {
        let (mut places, shown) = places(1, CellsPerGpu::Auto, GpuSharing::OneProcess);
        let start = Instant::now();
        assert_eq!(places.capacity(&[], start), 1);
        let (capacity, now) = settled(&mut places, &[at_work(0)], start);
        assert_eq!(capacity, 1, "nothing is measured");
        shown.show(0, 79 * GIB, 0.);
        let (capacity, now) = settled(&mut places, &[], now);
        assert_eq!(capacity, 1);
        shown.show(0, 78 * GIB, 0.1);
        let eight = [at_work(0); 8];
        let (capacity, now) = settled(&mut places, &eight[..7], now);
        assert_eq!((capacity, settled(&mut places, &eight, now).0), (8, 8));
    }
}
