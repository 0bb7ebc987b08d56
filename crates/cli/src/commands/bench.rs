//! `tsbd bench`: how fast this machine trains, classifies, poisons, and does each operation.

mod groundwork;
mod ops;
mod poison;
mod scale;
mod steps;

pub use groundwork::groundwork_seconds;
pub use steps::training_images_per_second;

use std::time::Duration;

use clap::{Args, Subcommand};
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use tsbd_tensor::{ConvolutionAlgorithm, Precision};

use crate::command_line::examples;
use crate::failure::{Failure, Outcome};
use crate::terminal::Talk;

/// Measure speed on this machine
///
/// Run it on an otherwise idle machine. A second program on the same cores shows in the difference between the median
/// and the fastest measurement; processor time suffers less from it than wall-clock time.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd bench train                             the quick profile's network and batch"
    "tsbd bench train --width 64 --steps 10       the paper's width"
    "tsbd bench train --json | jq .images_per_second"
    "tsbd bench inference --batch 256             evaluation, without gradients"
    "tsbd bench ops --only 'conv 3x3'             each convolution beside the machine's peak"
    "tsbd bench poison badnets                    poisoning a data set before training"
))]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    Train(steps::Train),
    Inference(steps::Inference),
    Ops(ops::Ops),
    Poison(poison::Poison),
    #[command(hide = true)]
    Scale(scale::Scale),
}

/// Measures and prints.
pub fn run(arguments: Arguments, talk: &Talk) -> Outcome {
    match arguments.what {
        What::Train(train) => steps::train(&train),
        What::Inference(inference) => steps::inference(&inference),
        What::Ops(ops) => ops::run(&ops),
        What::Poison(poison) => poison::run(&poison, talk),
        What::Scale(scale) => scale::run(&scale),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("give a whole number of at least 1".to_owned()),
        Ok(number) => Ok(number),
    }
}

/// Gives the kernels so many threads; without a number they have what `RAYON_NUM_THREADS` says, else one per core.
fn use_threads(threads: Option<usize>) -> Result<(), Failure> {
    let Some(threads) = threads else { return Ok(()) };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|error| Failure::failed(format!("--threads {threads}: the threads cannot be started: {error}")))
}

/// The middle of sorted numbers.
fn median(sorted: &[f64]) -> f64 {
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}

/// What this process has used so far. The call fails only for a target that does not exist.
fn usage() -> Option<Usage> {
    getrusage(UsageWho::RUSAGE_SELF).ok()
}

/// User and system time of all threads.
fn processor_time(usage: &Usage) -> Duration {
    let duration = |time: TimeVal| Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap_or(0));
    duration(usage.user_time()) + duration(usage.system_time())
}

/// Largest resident memory this process has had, in MB. Linux counts in kibibytes.
fn peak_memory_mb() -> f64 {
    usage().map_or(0.0, |usage| usage.max_rss() as f64 * 1024.0 / 1e6)
}

/// How far passes round on a device that were told so far: a CPU knows no TF32, and `TSBD_CONV` may tell it to round all.
fn name_of(precision: Precision, device: &str) -> Result<&'static str, tsbd_tensor::Error> {
    let rounds_all = ConvolutionAlgorithm::current()? == ConvolutionAlgorithm::Bf16;
    Ok(match precision {
        _ if device != "cpu" => precision.name(),
        Precision::F32 | Precision::Tf32 if !rounds_all => Precision::F32.name(),
        _ => Precision::Bf16.name(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_lies_between_the_two_in_the_middle() {
        assert_eq!(median(&[1.0]), 1.0);
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
    }
}
