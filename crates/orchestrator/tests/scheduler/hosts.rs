//! Cells that share a GPU share a process, and what one of them does to the others there.

use super::*;

/// Runs with one GPU that so many cells share.
async fn run_shared(bench: &Bench, plan: &Plan, behaviours: &str, cells: usize) -> (RunSummary, Vec<RunEvent>) {
    let (_sender, interrupts) = Interrupts::channel();
    bench.run_with(plan, options(bench, behaviours, cells), interrupts).await
}

fn options(bench: &Bench, behaviours: &str, cells: usize) -> RunOptions {
    let cells = CellsPerGpu::Exactly(cells);
    let place = Place::Local(Devices::Gpus { gpus: vec![gpu(0)], cells, sharing: GpuSharing::OneProcess });
    RunOptions { place, ..bench.options(behaviours, 1) }
}

/// The processes that a cell was started in.
fn processes(bench: &Bench, label: &str) -> Vec<Pid> {
    bench.starts_in().into_iter().filter(|(other, _)| other == label).map(|(_, pid)| pid).collect()
}

/// What cells wait for that do something later.
fn go(bench: &Bench) {
    std::fs::write(bench.store.root().join(GO), "").unwrap();
}

fn returned(events: &[RunEvent]) -> Vec<(&CellKey, &str)> {
    let returned = events.iter().filter_map(|event| match event {
        RunEvent::CellReturned { key, reason, ran: true } => Some((key, reason.as_str())),
        _ => None,
    });
    returned.collect()
}

#[tokio::test]
async fn cells_of_a_gpu_are_computed_in_one_process_which_their_records_say() {
    let bench = Bench::new();
    let plan = grid(&["badnets", "blended", "none"], &["ft"]);
    let (summary, _) = run_shared(&bench, &plan, "badnets=slow,blended=slow,none=slow", 3).await;
    assert_eq!((summary.exit_code(), summary.finished.len()), (0, 6));
    let processes: BTreeSet<Pid> = bench.starts_in().into_iter().map(|(_, pid)| pid).collect();
    assert_eq!(processes.len(), 1);
    for attack in ["badnets", "blended", "none"] {
        let record = bench.record(&key(&plan, attack, "none")).unwrap();
        assert_eq!((record.provenance.other_cells, record.provenance.device.as_str()), (2, "cuda:0"));
        assert!(bench.store.artefact(&record.key, "log").exists());
    }
    let (again, _) = run_shared(&bench, &plan, "", 3).await;
    assert_eq!((again.already_done, bench.starts().len()), (6, 6));
}

#[tokio::test]
async fn a_cell_that_fails_or_panics_is_nothing_to_the_others_of_its_process() {
    let bench = Bench::new();
    let plan = grid(&["badnets", "blended", "none"], &["ft"]);
    let (summary, events) = run_shared(&bench, &plan, "badnets=fail,blended=panic,none=slow", 3).await;
    assert_eq!((summary.finished.len(), summary.failed.len(), summary.skipped.len()), (2, 2, 2));
    assert_eq!((returned(&events), bench.starts().len()), (vec![], 4));
    let failure = bench.store.failure(&key(&plan, "badnets", "none")).unwrap().unwrap();
    assert_eq!(failure.reason, "the loss is NaN in epoch 3; lower the learning rate");
    assert!(failure.log_tail.iter().any(|line| line.contains("failed: the loss is NaN")), "{:?}", failure.log_tail);
    let failure = bench.store.failure(&key(&plan, "blended", "none")).unwrap().unwrap();
    assert!(failure.reason.contains("an index is out of bounds"), "{}", failure.reason);
}

#[tokio::test]
async fn a_fault_of_a_gpu_costs_the_cell_that_causes_it_and_no_other() {
    let bench = Bench::new();
    let plan = grid(&["badnets", "blended"], &["ft"]);
    let (badnets, blended) = (key(&plan, "badnets", "none"), key(&plan, "blended", "none"));
    let run = run_shared(&bench, &plan, "badnets=fault-later,blended=patient", 2);
    let start = async {
        until("a checkpoint", || has_checkpoint(&bench.store, &blended) && !processes(&bench, "badnets").is_empty())
            .await;
        go(&bench);
    };
    let ((summary, events), ()) = tokio::join!(run, start);
    assert_eq!((summary.finished.len(), summary.failed.len(), summary.skipped.len()), (2, 1, 1));
    assert_eq!(summary.failed[0].1, "a kernel failed");
    let returned = returned(&events);
    assert_eq!(BTreeSet::from_iter(returned.iter().map(|(key, _)| *key)), BTreeSet::from([&badnets, &blended]));
    let fault = "the GPU failed while others shared its process: a kernel failed; CUDA_ERROR_ILLEGAL_ADDRESS";
    assert!(returned.iter().all(|(_, reason)| *reason == fault), "{returned:?}");
    // Each has had a process of its own after that; the one goes on where it was.
    let (badnets, others) = (processes(&bench, "badnets"), processes(&bench, "blended"));
    assert_eq!((badnets.len(), others.len(), badnets[0]), (2, 2, others[0]));
    assert_ne!(badnets[1], others[1]);
    assert!(bench.record(&blended).unwrap().facts["first_epoch"].as_u64().unwrap() >= 1);
}

#[tokio::test]
async fn cells_without_memory_beside_others_go_on_when_fewer_share_the_gpu() {
    for sharing in [GpuSharing::OneProcess, GpuSharing::Turns] {
        let bench = Bench::new();
        let plan = grid(&["badnets", "blended", "none"], &["ft"]);
        let mut options = options(&bench, "badnets=patient,blended=patient,none=patient", 3);
        options.environment.push((ROOM.into(), "1".into()));
        if let Place::Local(Devices::Gpus { sharing: of_place, .. }) = &mut options.place {
            *of_place = sharing;
        }
        let (_sender, interrupts) = Interrupts::channel();
        let (summary, events) = bench.run_with(&plan, options, interrupts).await;
        assert_eq!((summary.finished.len(), summary.failed.len()), (6, 0), "{sharing:?}: {:?}", summary.failed);
        let returned = returned(&events);
        assert!((1..=3).contains(&returned.len()), "one at a time after that: {returned:?}");
        assert!(returned.iter().all(|(_, reason)| reason.contains("others left it too little")), "{returned:?}");
    }
}

#[tokio::test]
async fn a_cell_that_has_a_gpu_for_itself_and_too_little_memory_has_failed() {
    let bench = Bench::new();
    let plan = grid(&["badnets", "blended"], &[]);
    let mut options = options(&bench, "", 2);
    options.environment.push((ROOM.into(), "0".into()));
    let (_sender, interrupts) = Interrupts::channel();
    let (summary, _) = bench.run_with(&plan, options, interrupts).await;
    assert_eq!((summary.finished.len(), summary.failed.len()), (0, 2));
    assert!(summary.failed.iter().all(|(_, reason)| reason.contains("OUT_OF_MEMORY")), "{:?}", summary.failed);
    assert!((3..=4).contains(&bench.starts().len()), "each was tried alone: {:?}", bench.starts());
}

#[tokio::test]
async fn a_fault_with_one_cell_at_work_costs_that_one_and_the_next_begin_in_a_new_process() {
    let bench = Bench::new();
    let plan = grid(&["badnets", "blended"], &["ft"]);
    let (summary, events) = run_shared(&bench, &plan, "badnets=fault", 1).await;
    assert_eq!((summary.finished.len(), summary.failed.len(), summary.skipped.len()), (2, 1, 1));
    assert_eq!(summary.failed[0].1, "a kernel failed; CUDA_ERROR_ILLEGAL_ADDRESS");
    assert_eq!(
        (returned(&events), bench.starts()),
        (vec![], vec!["badnets".into(), "blended".into(), "blended+ft".into()])
    );
    assert_eq!(processes(&bench, "blended"), processes(&bench, "blended+ft"), "they share a new one");
    assert_ne!(processes(&bench, "blended"), processes(&bench, "badnets"));
}

#[tokio::test]
async fn a_second_interrupt_kills_a_process_with_its_cells() {
    let bench = Bench::new();
    let plan = grid(&["badnets", "blended"], &[]);
    let (sender, interrupts) = Interrupts::channel();
    let interrupt = async {
        until("both starts", || bench.starts().len() == 2).await;
        sender.interrupt();
        tokio::time::sleep(Duration::from_millis(200)).await;
        sender.interrupt();
    };
    let options = options(&bench, "badnets=hang,blended=hang", 2);
    let ((summary, _), ()) = tokio::join!(bench.run_with(&plan, options, interrupts), interrupt);
    assert_eq!((summary.exit_code(), summary.stopped.len(), summary.failed.len()), (130, 2, 0));
    assert!(!is_alive(bench.last_child().unwrap()));
}

#[tokio::test]
async fn cells_whose_process_is_killed_or_aborts_go_on_in_processes_of_their_own() {
    for (behaviours, failed) in [("badnets=patient,blended=patient", 0), ("badnets=abort-later,blended=patient", 1)] {
        let bench = Bench::new();
        let plan = grid(&["badnets", "blended"], &[]);
        let cell = key(&plan, "blended", "none");
        let killer = async {
            let have_begun = || has_checkpoint(&bench.store, &cell) && !processes(&bench, "badnets").is_empty();
            until("a checkpoint", have_begun).await;
            match failed {
                0 => kill(processes(&bench, "blended")[0], Signal::SIGKILL).unwrap(),
                _ => go(&bench),
            }
        };
        let ((summary, events), ()) = tokio::join!(run_shared(&bench, &plan, behaviours, 2), killer);
        assert_eq!((summary.failed.len(), summary.finished.len()), (failed, 2 - failed), "{behaviours}: {events:?}");
        let reasons = returned(&events);
        assert!(reasons.iter().all(|(_, reason)| reason.contains("the process that it shared")), "{reasons:?}");
        assert!(processes(&bench, "badnets").len() == 2 && processes(&bench, "blended").len() == 2);
        if failed == 1 {
            let failure = bench.store.failure(&key(&plan, "badnets", "none")).unwrap().unwrap();
            assert!(failure.reason.contains("ended by signal 6"), "{}", failure.reason);
            assert!(failure.log_tail.iter().any(|line| line == "last words"), "{:?}", failure.log_tail);
        }
    }
}

/// The most cells that were at work together after the first of them was given back.
fn most_at_work_after_a_return(events: &[RunEvent]) -> usize {
    let (mut running, mut has_returned, mut most) = (BTreeSet::new(), false, 0);
    for event in events {
        match event {
            RunEvent::CellStarted { key, .. } => drop(running.insert(key)),
            RunEvent::CellFinished { key, .. } => drop(running.remove(key)),
            RunEvent::CellReturned { key, .. } => {
                has_returned = true;
                running.remove(key);
            }
            _ => {}
        }
        if has_returned && matches!(event, RunEvent::CellStarted { .. }) {
            most = most.max(running.len());
        }
    }
    most
}

#[tokio::test]
async fn after_a_kill_fewer_cells_are_at_work_and_a_further_one_costs_none() {
    let bench = Bench::new();
    let attacks = ["badnets", "blended", "none"];
    let plan = grid(&attacks, &[]);
    let killer = async {
        let bench = &bench;
        until("the starts", || attacks.iter().all(|attack| processes(bench, attack).len() == 1)).await;
        kill(processes(bench, "none")[0], Signal::SIGKILL).unwrap();
        let again = || attacks.iter().filter(|attack| processes(bench, attack).len() == 2).collect::<Vec<_>>();
        until("two starts", || again().len() == 2).await;
        kill(processes(bench, again()[0])[1], Signal::SIGKILL).unwrap();
        until("the killed one's end", || !is_alive(processes(bench, again()[0])[1])).await;
        go(bench);
    };
    let behaviours = "badnets=slow-later,blended=slow-later,none=slow-later";
    let ((summary, events), ()) = tokio::join!(run_shared(&bench, &plan, behaviours, 3), killer);
    assert_eq!((summary.finished.len(), summary.failed.len()), (3, 0), "{:?}", summary.failed);
    assert_eq!((returned(&events).len(), most_at_work_after_a_return(&events)), (4, 2));
}

#[tokio::test]
async fn a_cell_that_had_a_killed_process_to_itself_is_begun_once_more_in_one_of_its_own() {
    let bench = Bench::new();
    let plan = grid(&["badnets"], &[]);
    let killer = async {
        for times in 1..=2 {
            until("a start", || processes(&bench, "badnets").len() == times).await;
            kill(processes(&bench, "badnets")[times - 1], Signal::SIGKILL).unwrap();
        }
    };
    let ((summary, events), ()) = tokio::join!(run_shared(&bench, &plan, "badnets=hang", 2), killer);
    assert_eq!((summary.failed.len(), returned(&events).len(), bench.starts().len()), (1, 1, 2));
    assert!(summary.failed[0].1.contains("signal 9"), "{:?}", summary.failed);
}

#[tokio::test]
async fn the_memory_of_a_cell_in_a_record_is_not_that_of_an_earlier_one() {
    let bench = Bench::new();
    let plan = grid(&["badnets", "blended"], &[]);
    run_shared(&bench, &plan, "badnets=hungry", 1).await;
    assert_eq!(processes(&bench, "badnets"), processes(&bench, "blended"));
    let memory = |attack| bench.record(&key(&plan, attack, "none")).unwrap().provenance.peak_memory_bytes;
    let (hungry, other) = (memory("badnets"), memory("blended"));
    assert!(hungry >= HUNGER as u64 && other < hungry / 2, "{hungry} and {other} bytes");
}

#[tokio::test]
async fn a_silent_cell_is_killed_with_its_process_and_has_failed_alone() {
    let bench = Bench::new();
    let plan = grid(&["badnets", "blended"], &[]);
    let options = RunOptions {
        silence_limit: Some(Duration::from_secs(3)),
        ..options(&bench, "badnets=hang,blended=slow-later", 2)
    };
    let (_sender, interrupts) = Interrupts::channel();
    let start = async {
        until("the second start", || processes(&bench, "blended").len() == 2).await;
        go(&bench);
    };
    let ((summary, _), ()) = tokio::join!(bench.run_with(&plan, options, interrupts), start);
    assert_eq!((summary.failed.len(), summary.finished.len()), (1, 1));
    assert!(summary.failed[0].1.contains("told no progress"), "{:?}", summary.failed);
    assert_eq!((processes(&bench, "badnets").len(), processes(&bench, "blended").len()), (1, 2));
}

#[tokio::test]
async fn an_interrupt_stops_all_cells_of_a_process_and_the_next_run_continues() {
    let bench = Bench::new();
    let plan = grid(&["badnets", "blended"], &[]);
    let (badnets, blended) = (key(&plan, "badnets", "none"), key(&plan, "blended", "none"));
    let behaviours = "badnets=patient,blended=patient";
    let (sender, interrupts) = Interrupts::channel();
    let interrupt = async {
        until("checkpoints", || has_checkpoint(&bench.store, &badnets) && has_checkpoint(&bench.store, &blended)).await;
        sender.interrupt();
    };
    let options = options(&bench, behaviours, 2);
    let ((summary, _), ()) = tokio::join!(bench.run_with(&plan, options, interrupts), interrupt);
    assert_eq!((summary.exit_code(), summary.stopped.len(), summary.failed.len()), (130, 2, 0));
    let (summary, _) = run_shared(&bench, &plan, behaviours, 2).await;
    assert_eq!((summary.exit_code(), summary.finished.len()), (0, 2));
    assert!(bench.record(&badnets).unwrap().facts["first_epoch"].as_u64().unwrap() >= 1);
}

#[tokio::test]
async fn a_process_that_cannot_begin_with_a_cell_has_it_tried_alone() {
    let bench = Bench::new();
    let plan = grid(&["badnets"], &[]);
    let program = bench.store.root().with_file_name("no-hosts");
    let script = format!("#!/bin/sh\ntest \"$1\" = cells && exit 3\nexec {PROGRAM} \"$@\"\n");
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let options = RunOptions { program, ..options(&bench, "", 2) };
    let (_sender, interrupts) = Interrupts::channel();
    let (summary, events) = bench.run_with(&plan, options, interrupts).await;
    assert_eq!((summary.exit_code(), summary.finished.len()), (0, 1));
    let returned = returned(&events);
    assert!(returned[0].1.contains("before it began its process ended with exit code 3"), "{returned:?}");
}
