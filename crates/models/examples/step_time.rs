//! How long one training step takes, beside PyTorch's in the same run.
//!
//!     TSBD_PYTHON=/path/to/python cargo run --release -p tsbd-models --example step_time -- [WIDTH] [STEPS]
//!
//! PreAct-ResNet18, batch 128, 32x32 images, f32, SGD with momentum and weight decay; the median of the steps after
//! two for warming up, in three rounds that alternate with PyTorch's (`tools/reference/training.py time`,
//! channels_last) when `$TSBD_PYTHON` names a Python that has it. Threads: `RAYON_NUM_THREADS` here, the same number
//! there. CPU time (Linux only) holds on a busy machine too, with one thread.

use std::process::Command;
use std::time::Instant;
use tsbd_models::preact_resnet18;
use tsbd_nn::{Batch, LossOptions, Mode, Model, Result, Sgd, SgdConfig, Streams};
use tsbd_tensor::{Device, Tensor};

const BATCH: usize = 128;
const SIZE: usize = 32;

fn main() -> Result<()> {
    tsbd_tensor::memory::keep_freed_pages();
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let mut next = |default| arguments.next().and_then(|number| number.ok()).unwrap_or(default);
    let (width, steps) = (next(16), next(15));
    let streams = Streams::new(0);
    let mut model = Model::new(preact_resnet18(width, 10), &mut streams.stream("weights", 0))?;
    let mut random = streams.stream("images", 0);
    let pixels: Vec<f32> = (0..BATCH * SIZE * SIZE * 3).map(|_| random.normal() as f32).collect();
    let labels: Vec<u32> = (0..BATCH).map(|_| random.below(10) as u32).collect();
    let batch = Batch {
        images: Tensor::from_vec(pixels, (BATCH, SIZE, SIZE, 3), &Device::Cpu)?,
        labels: Tensor::from_vec(labels, BATCH, &Device::Cpu)?,
        indices: (0..BATCH as u32).collect(),
    };
    let config = SgdConfig { learning_rate: 0.01, momentum: 0.9, weight_decay: 5e-4 };
    let mut optimizer = Sgd::new(config, &model.state)?;
    let threads = rayon::current_num_threads();
    println!(
        "PreAct-ResNet18 width {width}, batch {BATCH}, {SIZE}x{SIZE}, f32, {threads} threads, {steps} steps a round"
    );
    for round in 0..3 {
        let ours = measure(steps, || {
            let step = model.gradients(&batch, Mode::Train, &LossOptions::default())?;
            model.absorb(&step.statistics)?;
            optimizer.step(&mut model.state, &step.gradients)
        })?;
        let evaluation = measure(steps, || model.logits(&batch.images, Mode::Eval).map(drop))?;
        println!("round {round}: tsbd step {ours}; evaluation of {BATCH} images {evaluation}");
        match pytorch(width, steps, threads) {
            Some(theirs) => {
                let (wall, cpu) = (theirs.wall / ours.wall, theirs.cpu / ours.cpu);
                println!("         PyTorch step {theirs}: {wall:.2} times as long, {cpu:.2} times the CPU time");
            }
            None => println!("         PyTorch not measured: set TSBD_PYTHON"),
        }
    }
    Ok(())
}

/// Milliseconds a step: the median on the wall's clock, the mean of all threads' CPU time (NaN where it is unknown).
struct Time {
    wall: f64,
    cpu: f64,
}

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{:.1} ms ({:.1} ms CPU)", self.wall, self.cpu)
    }
}

/// The time of `steps` steps after two more.
fn measure(steps: usize, mut step: impl FnMut() -> Result<()>) -> Result<Time> {
    let (mut times, mut cpu) = (vec![], f64::NAN);
    for number in 0..steps + 2 {
        if number == 2 {
            cpu = cpu_milliseconds();
        }
        let begin = Instant::now();
        step()?;
        if number >= 2 {
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(Time { wall: times[times.len() / 2], cpu: (cpu_milliseconds() - cpu) / steps as f64 })
}

/// The CPU time of this process so far, from /proc/self/stat, whose unit is a hundredth of a second.
fn cpu_milliseconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The command's name, in brackets, may hold spaces; user and system time are fields 12 and 13 after it.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: Vec<f64> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    if ticks.len() == 2 { ticks.iter().sum::<f64>() * 10.0 } else { f64::NAN }
}

fn pytorch(width: usize, steps: usize, threads: usize) -> Option<Time> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/reference/training.py");
    let numbers = [width, steps, threads].map(|number| number.to_string());
    let mut command = Command::new(std::env::var_os("TSBD_PYTHON")?);
    let output = command.arg(script).arg("time").args(numbers).env("PYTHONDONTWRITEBYTECODE", "1").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (wall, cpu) = text.trim().split_once(' ')?;
    Some(Time { wall: wall.parse().ok()?, cpu: cpu.parse().ok()? })
}
