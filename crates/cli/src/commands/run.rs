//! `tsbd run`: trains and repairs what an experiment asks for and the results folder does not hold yet.

use std::path::PathBuf;

use clap::Args;
use tsbd_experiment::Store;
use tsbd_orchestrator::{CellsPerGpu, Devices, GpuSharing, Place};

use crate::command_line::examples;
use crate::failure::{Exit, Failure, Outcome};
use crate::options::{Folders, Overrides, no_device};
use crate::terminal::{self, Talk};
use crate::{grid, planning};

/// Train and repair everything an experiment asks for that is not done yet
///
/// The whole file is checked before anything is trained. Each model is trained, or repaired, in a process of its own, or on a
/// GPU in one with others; a backdoored model is trained once for all its defenses. Stop it at any time (Ctrl-C, a kill, a power cut): the same
/// command continues from the last checkpoint; one is written after each epoch, or after several where they are short. Results that
/// are there are never changed.
///
/// With --executor slurm the cells become job arrays of the cluster that this machine submits to; the section `[slurm]` of the
/// file says what each job asks for (partition, time, memory, cpus, ...). The command follows them until all are done, and
/// submits again what a failed node lost. Ctrl-C leaves the jobs in the queue, and the same command follows them again; a
/// second Ctrl-C within 5 s cancels them.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd run experiments/demo.toml                           minutes, no download"
    "tsbd run experiments/table1.toml                         Table 1 with the file's profile"
    "tsbd run experiments/table1.toml --profile paper --device cuda     as published, on GPUs"
    "tsbd run experiments/table1.toml --set attack.poisoning_ratio=0.05 --set 'seeds=[0, 1, 2]'"
    "tsbd run experiments/table1.toml --results /mnt/results --workers 2"
    "tsbd run experiments/table1.toml --results /shared/results --executor slurm --set slurm.partition=cpu --set slurm.time=120"
    ;
    "Exit codes: 0 all done, 1 some cells failed, 2 the file was refused, 130 interrupted (resumable)."
))]
pub struct Arguments {
    /// Experiment file
    file: PathBuf,

    /// Cells at a time on a CPU; the cores are divided among them [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: Option<u16>,

    /// Device: cpu, cuda (all GPUs), cuda:0,cuda:2 (these), or auto (GPUs if there are any, else the CPU)
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    device: String,

    /// Cells that share a GPU: a number, or auto (as many as it has memory for, up to 4; up to 8 while it idles; with
    /// --sharing turns, more than one only while it idles) [default: auto]
    #[arg(long, value_name = "N", value_parser = cells_per_gpu)]
    cells_per_gpu: Option<CellsPerGpu>,

    /// How cells share a GPU: in one-process at the same time; in a process each at the same time, by NVIDIA's Multi-Process
    /// Service (mps); or in processes that take turns, where a fault of one is nothing to the others [default: one-process]
    #[arg(long, value_name = "HOW", value_parser = gpu_sharing)]
    sharing: Option<GpuSharing>,

    /// Where cells are computed: on this machine, or in jobs of a Slurm cluster
    #[arg(long, value_name = "WHERE", default_value = "local", value_parser = ["local", "slurm"])]
    executor: String,

    /// Print a JSON summary at the end
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    overrides: Overrides,

    #[command(flatten)]
    folders: Folders,
}

/// Runs what is outstanding.
pub fn run(arguments: Arguments, talk: &Talk) -> Outcome {
    let place = arguments.place()?;
    let Arguments { file, json, overrides, folders, .. } = arguments;
    let data = folders.data.data.as_deref();
    let plan = planning::to_run(&file, &overrides, &folders)?;
    let store = Store::new(&folders.results);
    let options = grid::Options { data, place };
    let summary = grid::run(&plan, &store, options, talk)?;
    let exit = grid::exit(&summary);
    if json {
        terminal::print_json(&grid::to_json(&summary, &plan, &store));
    }
    if !talk.quiet || exit != Exit::Done {
        for line in grid::describe(&summary, &plan) {
            terminal::say(line);
        }
    }
    if !talk.quiet && exit == Exit::Done {
        terminal::say(format!("hint: tsbd table {}{}{}", file.display(), overrides.as_typed(), folders.as_typed()));
    }
    Ok(exit)
}

impl Arguments {
    /// Where cells are computed; flags that do not go together are refused.
    fn place(&self) -> Result<Place, Failure> {
        let Self { workers, device, cells_per_gpu, sharing, executor, .. } = self;
        if executor == "slurm" {
            let hint = "leave it out; [slurm] says what jobs ask for: `gpus`, and `at_once`, how many run at a time";
            let flags = [
                workers.map(|workers| format!("--workers {workers}")),
                (device != "cpu").then(|| format!("--device {device}")),
                cells_per_gpu.map(|_| "--cells-per-gpu".to_owned()),
                sharing.map(|_| "--sharing".to_owned()),
            ];
            return match flags.into_iter().flatten().next() {
                Some(flag) => {
                    Err(Failure::refused(format!("{flag} with --executor slurm: the cluster decides")).hint(hint))
                }
                None => Ok(Place::Slurm),
            };
        }
        if *sharing == Some(GpuSharing::Mps) && *cells_per_gpu == Some(CellsPerGpu::Exactly(1)) {
            return Err(Failure::refused("--sharing mps with --cells-per-gpu 1: nothing is shared")
                .hint("leave one of them out, or let more cells share a GPU"));
        }
        let on_the_cpu = || {
            let flags = [cells_per_gpu.map(|_| "--cells-per-gpu"), sharing.map(|_| "--sharing")];
            if let Some(flag) = flags.into_iter().flatten().next() {
                return Err(Failure::refused(format!("{flag} with --device {device}: there is no GPU in it"))
                    .hint("on a CPU, --workers says how many cells run at a time"));
            }
            Ok(Place::Local(Devices::Cpu { workers: usize::from(workers.unwrap_or(1)) }))
        };
        if device == "cpu" {
            return on_the_cpu();
        }
        match tsbd_tensor::gpus(if device == "auto" { "cuda" } else { device }) {
            Err(_) if device == "auto" => on_the_cpu(),
            Err(error) => Err(no_device(error)),
            Ok(_) if workers.is_some() => Err(Failure::refused("--workers with GPUs: a CPU's cores are not divided")
                .hint("--cells-per-gpu says how many cells share a GPU")),
            Ok(gpus) => {
                let cells = cells_per_gpu.unwrap_or(CellsPerGpu::Auto);
                let sharing = sharing.unwrap_or(GpuSharing::OneProcess);
                Ok(Place::Local(Devices::Gpus { gpus, cells, sharing }))
            }
        }
    }
}

fn cells_per_gpu(text: &str) -> Result<CellsPerGpu, String> {
    match (text, text.parse()) {
        ("auto", _) => Ok(CellsPerGpu::Auto),
        (_, Ok(cells)) if (1..=64).contains(&cells) => Ok(CellsPerGpu::Exactly(cells)),
        _ => Err("write `auto` or a number from 1 to 64".to_owned()),
    }
}

fn gpu_sharing(text: &str) -> Result<GpuSharing, String> {
    match text {
        "one-process" => Ok(GpuSharing::OneProcess),
        "mps" => Ok(GpuSharing::Mps),
        "turns" => Ok(GpuSharing::Turns),
        _ => Err("write `one-process`, `mps` or `turns`".to_owned()),
    }
}
