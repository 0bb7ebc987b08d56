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

/// One GPU whose cells compute in one process, on which nobody is, and when that was seen.
fn unused() -> (Places, Shown, Instant) {
    let (mut places, shown) = places(1, CellsPerGpu::Auto, GpuSharing::OneProcess);
    let start = Instant::now();
    shown.show(0, 79 * GIB, 0.);
    places.capacity(&[], start);
    (places, shown, start)
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
    let (mut places, shown, start) = unused();
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
    let (mut places, shown, start) = unused();
    let (capacity, now) = settled(&mut places, &[begun(0)], start);
    assert_eq!(capacity, 1, "it reads its images");
    shown.show(0, 30 * GIB, 0.9);
    assert_eq!(settled(&mut places, &[at_work(0)], now).0, 1, "no second one fits");
}

#[test]
fn beyond_four_those_that_end_are_replaced_only_while_the_gpu_has_time() {
    let (mut places, shown, start) = unused();
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
    let (mut places, shown, start) = unused();
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
