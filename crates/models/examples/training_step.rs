//! How long one training step takes, beside PyTorch's in the same run.
//!
//!     TSBD_PYTHON=/path/to/python cargo run --release -p tsbd-models --example training_step -- [WIDTH] [STEPS]
//!
//! PreAct-ResNet18, batch 128, 32x32 images, f32, SGD with momentum and weight decay; the median of the steps after
//! two for warming up, in three rounds that alternate with PyTorch's (`tools/reference/training.py time`,
//! channels_last) when `$TSBD_PYTHON` names a Python that has it. Threads: `RAYON_NUM_THREADS` here, the same number
//! there.

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
        let ours = median(steps, || {
            let step = model.gradients(&batch, Mode::Train, &LossOptions::default())?;
            model.absorb(&step.statistics)?;
            optimizer.step(&mut model.state, &step.gradients)
        })?;
        let evaluation = median(steps, || model.logits(&batch.images, Mode::Eval).map(drop))?;
        print!("round {round}: tsbd {ours:.1} ms a step, {evaluation:.1} ms an evaluation of {BATCH}");
        match pytorch(width, steps, threads) {
            Some(theirs) => println!("; PyTorch {theirs:.1} ms a step: {:.2} times as long", theirs / ours),
            None => println!("; PyTorch not measured: set TSBD_PYTHON"),
        }
    }
    Ok(())
}

/// The median wall-clock milliseconds of `steps` steps after two more.
fn median(steps: usize, mut step: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = vec![];
    for number in 0..steps + 2 {
        let begin = Instant::now();
        step()?;
        if number >= 2 {
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

fn pytorch(width: usize, steps: usize, threads: usize) -> Option<f64> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/reference/training.py");
    let numbers = [width, steps, threads].map(|number| number.to_string());
    let mut command = Command::new(std::env::var_os("TSBD_PYTHON")?);
    let output = command.arg(script).arg("time").args(numbers).env("PYTHONDONTWRITEBYTECODE", "1").output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}
