//! `tsbd bench`: how fast this machine trains.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::json;
use tsbd_models::ModelParameters;
use tsbd_nn::{Batch, Model, Schedule, SgdConfig, StepReport, Streams, TrainingConfig, TrainingObserver};
use tsbd_tensor::{Device, Tensor};

use crate::command_line::examples;
use crate::failure::{Exit, Failure, Outcome};
use crate::terminal;

/// Measure throughput on this machine
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd bench train                             the quick profile's network and batch"
    "tsbd bench train --width 64 --steps 10       the paper's width"
    "tsbd bench train --json | jq .images_per_second"
))]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    Train(Train),
}

/// Training steps (forward, backward, optimiser) on random images that are made beforehand
///
/// The training loop is the one that `tsbd run` uses. The first steps are left out of the measurement; the time of a
/// step is the median.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd bench train"
    "tsbd bench train --width 64 --steps 10"
    "RAYON_NUM_THREADS=1 tsbd bench train --json"
))]
struct Train {
    /// Network: one of `tsbd list models`
    #[arg(long, value_name = "NAME", default_value = "preact-resnet18")]
    model: String,

    /// Channels the network begins with; the paper's networks have 64
    #[arg(long, value_name = "N", default_value_t = 16)]
    width: usize,

    /// Images per step
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least_one)]
    batch: usize,

    /// Steps that are measured
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = at_least_one)]
    steps: usize,

    /// Steps before the measurement begins
    #[arg(long, value_name = "N", default_value_t = 3)]
    warmup: usize,

    /// Height and width of the images in pixels
    #[arg(long, value_name = "N", default_value_t = 32)]
    image_size: usize,

    /// Classes of the images
    #[arg(long, value_name = "N", default_value_t = 10)]
    classes: usize,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("give a whole number of at least 1".to_owned()),
        Ok(number) => Ok(number),
    }
}

/// Measures and prints.
pub fn run(arguments: Arguments) -> Outcome {
    let What::Train(train) = arguments.what;
    let parameters = ModelParameters {
        name: train.model.clone(),
        width: train.width,
        classes: train.classes,
        image_size: train.image_size,
    };
    let architecture = tsbd_models::build(&parameters).map_err(|error| Failure::from_error(Exit::Refused, error))?;
    let failed = |error| Failure::from_error(Exit::Failed, error);
    let streams = Streams::new(0);
    let mut model = Model::new(architecture, &mut streams.stream("initialisation", 0)).map_err(failed)?;
    let batch = random_batch(&train, &streams).map_err(failed)?;
    let batches = vec![batch; train.warmup + train.steps];
    let config = TrainingConfig {
        epochs: 1,
        sgd: SgdConfig { learning_rate: 0.01, momentum: 0.9, weight_decay: 5e-4 },
        schedule: Schedule::Constant,
    };
    let mut clock = Clock { last: Instant::now(), steps: Vec::new() };
    tsbd_nn::train(&mut model, &batches, &config, None, &mut clock).map_err(failed)?;

    let mut steps = clock.steps.split_off(train.warmup);
    steps.sort();
    let median = (steps[(steps.len() - 1) / 2] + steps[steps.len() / 2]).as_secs_f64() / 2.0;
    let images_per_second = train.batch as f64 / median;
    let peak_memory_mb = peak_memory_bytes() as f64 / 1e6;
    if train.json {
        terminal::print_json(&json!({
            "model": train.model, "width": train.width, "image_size": train.image_size, "batch": train.batch,
            "parameters": model.state.parameter_count(), "device": "cpu", "threads": rayon::current_num_threads(),
            "steps": train.steps, "images_per_second": images_per_second,
            "milliseconds_per_step": median * 1e3, "fastest_milliseconds_per_step": steps[0].as_secs_f64() * 1e3,
            "peak_memory_mb": peak_memory_mb,
        }));
    } else {
        terminal::print(&format!(
            "{} width {}, {size}x{size} pixels, batch {}, {} threads: {images_per_second:.0} images/s, \
             {:.1} ms a step (median of {}), {peak_memory_mb:.0} MB at most\n",
            train.model,
            train.width,
            train.batch,
            rayon::current_num_threads(),
            median * 1e3,
            train.steps,
            size = train.image_size,
        ));
    }
    Ok(Exit::Done)
}

/// Normally distributed images with random labels: kernels do not care what they see.
fn random_batch(train: &Train, streams: &Streams) -> tsbd_nn::Result<Batch> {
    let mut stream = streams.stream("bench", 0);
    let shape = (train.batch, train.image_size, train.image_size, 3);
    let pixels = (0..train.batch * train.image_size * train.image_size * 3).map(|_| stream.normal() as f32).collect();
    let labels = (0..train.batch).map(|_| stream.below(train.classes as u64) as u32).collect();
    Ok(Batch {
        images: Tensor::from_vec::<_, f32>(pixels, shape, &Device::Cpu)?,
        labels: Tensor::from_vec::<_, u32>(labels, train.batch, &Device::Cpu)?,
        indices: (0..train.batch as u32).collect(),
    })
}

/// Notes how long each step took.
struct Clock {
    last: Instant,
    steps: Vec<Duration>,
}

impl TrainingObserver for Clock {
    fn step(&mut self, _report: &StepReport) -> ControlFlow<()> {
        let now = Instant::now();
        self.steps.push(now - self.last);
        self.last = now;
        ControlFlow::Continue(())
    }
}

/// Largest resident memory this process has had.
fn peak_memory_bytes() -> u64 {
    use nix::sys::resource::{UsageWho, getrusage};
    // The call fails only for a target that does not exist. Linux counts in kibibytes.
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| u64::try_from(usage.max_rss()).unwrap_or(0) * 1024)
}
