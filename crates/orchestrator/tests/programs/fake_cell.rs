//! A stand-in for `tsbd cell` and `tsbd cells` that behaves as its environment says, and (`fake-cell coordinate RESULTS`) for a
//! coordinator that a test can kill. It uses the real workspace, protocol and publication; only the work is made up.

#[path = "../support/mod.rs"]
mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use tsbd_experiment::{Store, Versions};
use tsbd_orchestrator::{
    CellArguments, CellError, CellWorkspace, CellsArguments, Conclusion, Devices, Findings, Interrupts, Place,
    RunOptions, run_cell, run_cells,
};

fn main() -> ExitCode {
    tsbd_tensor::memory::keep_freed_pages();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments[0].as_str() {
        "coordinate" => coordinate(Path::new(&arguments[1])),
        "cell" => {
            let CellsArguments { results, data, device, threads } = shared(&arguments);
            let key = arguments[1].parse().expect("the coordinator gives a key");
            let attempt = value(&arguments, "--attempt");
            let arguments = CellArguments { key, results, data, device, threads, attempt };
            ExitCode::from(run_cell(&arguments, Versions::default(), work))
        }
        "cells" => {
            let open = || {
                open(&value(&arguments, "--device").expect("always given"))?;
                Ok(|| match IS_FAULTY.load(Ordering::Relaxed) {
                    true => Err("CUDA_ERROR_ILLEGAL_ADDRESS".into()),
                    false => Ok(()),
                })
            };
            run_cells(&shared(&arguments), &Versions::default(), open, work).expect("it is told which");
            ExitCode::SUCCESS
        }
        other => panic!("unknown subcommand {other}"),
    }
}

/// Whether the GPU that there is not has failed.
static IS_FAULTY: AtomicBool = AtomicBool::new(false);

/// Whether a device can be opened.
fn open(device: &str) -> Result<(), tsbd_tensor::Error> {
    match std::env::var(support::LOST).as_deref() {
        Ok(lost) if lost == device => Err(tsbd_tensor::Error::NoDevice {
            device: device.to_owned(),
            reason: "GPU is lost".to_owned(),
            way_out: "use another one",
        }),
        _ => Ok(()),
    }
}

fn value(arguments: &[String], flag: &str) -> Option<String> {
    let position = arguments.iter().position(|argument| argument == flag)?;
    arguments.get(position + 1).cloned()
}

fn shared(arguments: &[String]) -> CellsArguments {
    let value = |flag| value(arguments, flag);
    CellsArguments {
        results: value("--results").expect("always given").into(),
        data: value("--data").map(PathBuf::from),
        device: value("--device").expect("always given"),
        threads: value("--threads").and_then(|threads| threads.parse().ok()).expect("always given"),
    }
}

fn coordinate(results: &Path) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let plan = support::grid(&["badnets", "blended"], &["ft"]);
    let summary = runtime.block_on(async {
        let options = RunOptions { place: Place::Local(Devices::Cpu { workers: 2 }), ..RunOptions::new()? };
        let (events, mut received) = tokio::sync::mpsc::channel(64);
        tokio::spawn(async move { while received.recv().await.is_some() {} });
        tsbd_orchestrator::run(&plan, &Store::new(results), options, Interrupts::from_signals()?, events).await
    });
    match summary {
        Ok(summary) => ExitCode::from(summary.exit_code()),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// A share of the memory of a GPU that has so many, until it is dropped.
fn room_on_the_gpu(results: &Path, shares: usize) -> Result<std::fs::File, CellError> {
    for share in 0..shares {
        let file = std::fs::File::create(results.join(format!("memory-{share}")))?;
        if file.try_lock().is_ok() {
            return Ok(file);
        }
    }
    Err("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")".into())
}

fn work(workspace: &CellWorkspace) -> Result<Conclusion, CellError> {
    let label = workspace.cell().label().replace(" + ", "+");
    let results = &workspace.arguments().results;
    let mut starts = std::fs::OpenOptions::new().create(true).append(true).open(results.join("starts"))?;
    starts.write_all(format!("{label} {}\n", std::process::id()).as_bytes())?;
    if std::env::var_os(support::ALONE).is_some() {
        let device = &workspace.arguments().device;
        let gpu = std::fs::File::create(results.join(device))?;
        gpu.try_lock().map_err(|error| format!("another cell is on {device}: {error}"))?;
        // Held until the process ends.
        std::mem::forget(gpu);
    }
    let _room = match std::env::var(support::ROOM) {
        Ok(room) => Some(room_on_the_gpu(results, room.parse()?)?),
        Err(_) => None,
    };
    open(&workspace.arguments().device)?;
    if std::env::var(support::FULL).is_ok_and(|full| full == workspace.arguments().device) {
        room_on_the_gpu(results, 0)?;
    }
    for parent in &workspace.cell().parents {
        workspace.parent(parent)?;
    }
    let behaviours = std::env::var(support::BEHAVIOURS).unwrap_or_default();
    let behaviour = behaviours.split(',').find_map(|pair| pair.split_once('=').filter(|(name, _)| *name == label));
    let reporter = workspace.reporter();
    reporter.stage("train");
    let mut first_epoch = 0;
    let behaviour = behaviour.map(|(_, behaviour)| behaviour);
    let later = behaviour.and_then(|behaviour| behaviour.strip_suffix("-later"));
    while later.is_some() && !results.join(support::GO).exists() {
        std::thread::sleep(Duration::from_millis(20));
        reporter.step("train", (0, 1), (1, 1), Some(1.0), None);
    }
    match later.or(behaviour) {
        Some("fail") => return Err("the loss is NaN in epoch 3; lower the learning rate".into()),
        Some("fault") => {
            IS_FAULTY.store(true, Ordering::Relaxed);
            return Err("a kernel failed".into());
        }
        Some("panic") => panic!("an index is out of bounds"),
        Some("abort") => {
            eprintln!("last words");
            std::process::abort()
        }
        Some("vanish") => std::process::exit(0),
        Some("hang") => loop {
            std::thread::sleep(Duration::from_secs(1));
        },
        Some("chatter") => println!("a library says hello\n{{\"event\": \"unknown\"}}"),
        Some("hungry") => {
            // What stays between freed pieces keeps the allocator from giving their pages back by itself.
            let pieces: Vec<_> = (0..support::HUNGER >> 20).map(|_| (vec![1_u8; 1 << 20], Box::new(1_u8))).collect();
            for (large, small) in std::hint::black_box(pieces) {
                drop(large);
                std::mem::forget(small);
            }
        }
        Some("slow") => std::thread::sleep(Duration::from_millis(400)),
        Some("patient") => {
            let checkpoint = workspace.checkpoint();
            if checkpoint.exists() {
                first_epoch = std::fs::read_to_string(&checkpoint)?.parse()?;
            }
            for epoch in first_epoch..support::EPOCHS {
                std::thread::sleep(Duration::from_millis(50));
                reporter.step("train", (epoch, support::EPOCHS), (1, 1), Some(1.0), None);
                workspace.save("", || {
                    let next = checkpoint.with_extension("next");
                    std::fs::write(&next, (epoch + 1).to_string())?;
                    std::fs::rename(&next, &checkpoint)
                })?;
                if workspace.cancellation().is_cancelled() {
                    return Ok(Conclusion::Stopped);
                }
            }
        }
        Some(other) => return Err(format!("unknown behaviour {other}").into()),
        None => {}
    }
    std::fs::write(workspace.directory().join("model.safetensors"), &label)?;
    let mut findings = Findings { artefacts: vec!["model.safetensors".into()], ..Findings::default() };
    findings.metrics.insert("acc".into(), 0.5);
    findings.facts.insert("first_epoch".into(), json!(first_epoch));
    Ok(Conclusion::Done(findings))
}
