//! `tsbd bench poison`: how long an attack takes to poison a data set before training.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use tsbd_attack::TrainingSource;
use tsbd_data::ImageSource;
use tsbd_tensor::{Precision, kernels_in_use};

use super::{at_least_one, median, peak_memory_mb, processor_time, usage, use_threads};
use crate::command_line::examples;
use crate::failure::{Exit, Failure, Outcome};
use crate::options::{Folders, OnePoint, OpenDevice};
use crate::planning;
use crate::terminal::{self, Talk};
use crate::workbench::{self, Workbench};

/// Poisoning as `tsbd run` does it before training: the chosen training images and the test images, in memory
///
/// It is done several times; the time is the median. Reading the data set is not part of it, nor is what the attack starts
/// from (a pattern, an encoder): that is taken from the results folder, or made there.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd bench poison badnets"
    "tsbd bench poison blended --set attack.poisoning_ratio=1     every training image"
    "tsbd bench poison ssba --profile smoke --json | jq .images_per_second"
))]
pub struct Poison {
    /// Attack that poisons before training: one of `tsbd list attacks`
    name: String,

    /// Times it is done
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one)]
    rounds: usize,

    /// Threads; without it as many as RAYON_NUM_THREADS says, else one per core
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    threads: Option<usize>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    point: OnePoint,

    #[command(flatten)]
    folders: Folders,
}

/// Measures and prints.
pub fn run(Poison { name, rounds, threads, json, point, folders }: &Poison, talk: &Talk) -> Outcome {
    use_threads(*threads)?;
    let plan = planning::one_point(name, "none", point, &folders.data.root())?;
    let workbench = Workbench::of(&plan, folders, OpenDevice::cpu(), talk)?;
    let (train, test, size) = (workbench.dataset.train.len(), workbench.dataset.test.len(), workbench.size);
    let processor = || usage().map_or(Duration::ZERO, |usage| processor_time(&usage));
    let memory_before_mb = peak_memory_mb();
    let (begin, mut seconds, mut poisoned) = (processor(), Vec::new(), (0, 0));
    for _ in 0..*rounds {
        let round = Instant::now();
        let poisoner = workbench.prepare()?;
        seconds.push(round.elapsed().as_secs_f64());
        poisoned = match (&poisoner.train, &poisoner.test) {
            (TrainingSource::Static(images), Some(test)) => (images.poisoned().len(), test.len()),
            _ => {
                return Err(Failure::refused(format!("\"{name}\" poisons no image before training"))
                    .hint("`tsbd list attacks` has those that do"));
            }
        };
    }
    let processor_seconds = (processor().saturating_sub(begin)).as_secs_f64() / *rounds as f64;
    seconds.sort_by(f64::total_cmp);
    let (middle, fastest) = (median(&seconds), seconds[0]);
    let images_per_second = (poisoned.0 + poisoned.1) as f64 / middle;
    let data_set_mb = ((train + test) * size * size * tsbd_data::CHANNELS) as f64 / 1e6;
    let (memory_mb, threads) = (peak_memory_mb(), rayon::current_num_threads());
    let kernels = kernels_in_use(Precision::F32).map_err(workbench::failed)?;
    if *json {
        terminal::print_json(&json!({
            "work": "poison", "attack": name, "parameters": workbench.attack.parameters(),
            "dataset": workbench.dataset.name, "image_size": size, "train_images": train, "test_images": test,
            "poisoned_train_images": poisoned.0, "triggered_test_images": poisoned.1, "kernels": kernels,
            "threads": threads, "rounds": rounds, "seconds": middle, "fastest_seconds": fastest,
            "processor_seconds": processor_seconds, "images_per_second": images_per_second,
            "data_set_mb": data_set_mb, "peak_memory_before_mb": memory_before_mb, "peak_memory_mb": memory_mb,
        }));
    } else {
        terminal::print(&format!(
            "{name}: {} of {train} training and {} of {test} test images, {size}x{size} pixels, {kernels}, {threads} \
             threads of the CPU\n\
             all of them      {middle:.3} s (median of {rounds}; fastest {fastest:.3})\n\
             processor time   {processor_seconds:.3} s\n\
             images a second  {images_per_second:.0}\n\
             memory           {data_set_mb:.0} MB of images; peak {memory_before_mb:.0} MB before, {memory_mb:.0} MB after\n",
            poisoned.0, poisoned.1,
        ));
    }
    Ok(Exit::Done)
}
