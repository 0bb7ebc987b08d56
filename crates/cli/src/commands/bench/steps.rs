//! `tsbd bench train` and `tsbd bench inference`: whole steps, from 8-bit images on.

use std::cell::RefCell;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use clap::Args;
use clap::builder::PossibleValuesParser;
use serde_json::json;
use tsbd_data::{CHANNELS, Dataset, Images, Loader, Normalization};
use tsbd_models::ModelParameters;
use tsbd_nn::{Batch, BatchSource, IgnoreProgress, Model, Precision, Schedule, SgdConfig, Streams, TrainingConfig};
use tsbd_tensor::{Device, kernels_in_use};

use super::{at_least_one, median, name_of, peak_memory_mb, processor_time, usage, use_threads};
use crate::command_line::examples;
use crate::failure::{Exit, Failure, Outcome};
use crate::options::Computing;
use crate::terminal;
use crate::workbench::failed;

/// Training steps as `tsbd run` makes them: augmentation, forward, backward, optimiser
///
/// The images are random ones in memory, 8 bits per channel; each is seen once. Random crops out of 4 pixels of
/// padding, mirroring and normalisation are part of the step, as is everything else between one batch and the next.
/// The first steps are left out of the measurement; the time of a step is the median.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd bench train"
    "tsbd bench train --width 64 --steps 10"
    "tsbd bench train --threads 1 --json"
    "tsbd bench train --width 64 --device cuda    on a GPU, which is waited for at the end of each step"
    "TSBD_CONV=exact tsbd bench train             without Winograd's convolution"
    "tsbd bench train --precision bf16            convolutions of bf16 factors; on a GPU bf16 throughout"
    "tsbd bench train --device cuda --models 4    four models at once; their images a second are added"
))]
pub struct Train {
    /// How far the steps round: f32, tf32 or bf16, as `training.precision`
    #[arg(long, value_name = "NAME", default_value = "f32", value_parser = PossibleValuesParser::new(Precision::ALL.map(Precision::name)))]
    precision: String,

    /// Models that are trained at the same time, each by a thread of its own, on a GPU each with a stream of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    models: usize,

    #[command(flatten)]
    settings: Settings,
}

impl Train {
    fn precision(&self) -> Precision {
        Precision::from_name(&self.precision).expect("the command line knows no other name")
    }
}

/// Steps of an evaluation: normalisation, forward without gradients, predictions and loss
///
/// The images are random ones in memory, 8 bits per channel. The first steps are left out of the measurement; the time
/// of a step is the median.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd bench inference"
    "tsbd bench inference --width 64 --batch 256 --steps 10"
    "tsbd bench inference --threads 1 --json"
))]
pub struct Inference {
    #[command(flatten)]
    settings: Settings,
}

#[derive(Args, Debug)]
struct Settings {
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

    /// Threads; without it as many as RAYON_NUM_THREADS says, else one per core
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    threads: Option<usize>,

    #[command(flatten)]
    computing: Computing,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Measures training steps and prints.
pub fn train(train: &Train) -> Outcome {
    let (settings, precision) = (&train.settings, train.precision());
    use_threads(settings.threads)?;
    let start = Barrier::new(train.models);
    let runs: Result<Vec<Run>, Failure> = std::thread::scope(|scope| {
        let one = || scope.spawn(|| settings.trained(precision, &start));
        let threads: Vec<_> = (0..train.models).map(|_| one()).collect();
        threads.into_iter().map(|thread| thread.join().expect("what fails there is told as a failure")).collect()
    });
    settings.report("train", precision, &runs?)
}

/// Images a second in training steps of a network on a device, rounding so far: the median of a few steps.
pub fn training_images_per_second(
    network: &ModelParameters,
    batch: usize,
    precision: Precision,
    device: &str,
) -> Result<f64, Failure> {
    // A GPU's first steps load and record.
    let (warmup, steps) = if device == "cpu" { (2, 5) } else { (10, 20) };
    let settings = Settings {
        model: network.name.clone(),
        width: network.width,
        batch,
        steps,
        warmup,
        image_size: network.image_size,
        classes: network.classes,
        threads: None,
        computing: Computing::named(device),
        json: false,
    };
    let run = settings.trained(precision, &Barrier::new(1))?;
    Ok(batch as f64 / median(&sorted(&run.measured.steps)) * 1e3)
}

/// Measures steps of an evaluation and prints.
pub fn inference(Inference { settings }: &Inference) -> Outcome {
    let streams = Streams::new(0);
    use_threads(settings.threads)?;
    let device = settings.computing.device()?;
    let model = initial(&settings.network(), &streams, &device)?;
    let Dataset { train, normalization, .. } = settings.dataset(&streams);
    let stopwatch = Stopwatch::new(Loader::evaluation(train, normalization, settings.batch).on(&device));
    model.predict(&stopwatch).map_err(failed)?;
    let run = Run { parameters: model.state.parameter_count(), measured: stopwatch.measured(settings.warmup) };
    settings.report("inference", Precision::F32, &[run])
}

/// A network that is not trained.
fn initial(network: &ModelParameters, streams: &Streams, device: &Device) -> Result<Model, Failure> {
    let architecture = tsbd_models::build(network).map_err(|error| Failure::from_error(Exit::Refused, error))?;
    let model = Model::new(architecture, &mut streams.stream("initialisation", 0)).map_err(failed)?;
    if device.is_cpu() { Ok(model) } else { model.to_device(device).map_err(failed) }
}

/// Images of random levels and with random labels, for training and test the same: kernels do not care what they see.
pub fn random_images(count: usize, size: usize, classes: usize, streams: &Streams) -> Dataset {
    let mut stream = streams.stream("bench images", 0);
    let length = count * size * size * CHANNELS;
    let mut pixels = Vec::with_capacity(length + 7);
    while pixels.len() < length {
        pixels.extend(&stream.below(1 << 56).to_le_bytes()[..7]);
    }
    pixels.truncate(length);
    let labels = (0..count).map(|_| stream.below(classes as u64) as u32).collect();
    let images = Arc::new(Images::new(pixels, labels, (size, size), classes));
    Dataset {
        name: "random".to_owned(),
        digest: images.digest().to_owned(),
        test: Arc::clone(&images),
        train: images,
        class_names: (0..classes).map(|class| class.to_string()).collect(),
        normalization: Normalization { mean: [0.5; CHANNELS], std: [0.25; CHANNELS] },
        flip: true,
    }
}

/// What was measured of one model.
struct Run {
    /// How many numbers the model has.
    parameters: usize,
    measured: Measured,
}

fn sorted(times: &[f64]) -> Vec<f64> {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    times
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

impl Settings {
    /// Trains a model for the steps asked for, from the moment on that all are ready to.
    fn trained(&self, precision: Precision, start: &Barrier) -> Result<Run, Failure> {
        let prepared = self.prepared();
        // Also by what failed: the others wait for it.
        start.wait();
        let (mut model, stopwatch) = prepared?;
        let config = TrainingConfig {
            epochs: 1,
            sgd: SgdConfig { learning_rate: 0.01, momentum: 0.9, weight_decay: 5e-4 },
            schedule: Schedule::Constant,
            precision,
        };
        tsbd_nn::train(&mut model, &stopwatch, &config, None, &mut IgnoreProgress).map_err(failed)?;
        Ok(Run { parameters: model.state.parameter_count(), measured: stopwatch.measured(self.warmup) })
    }

    /// A model and what it is trained on.
    fn prepared(&self) -> Result<(Model, Stopwatch), Failure> {
        let streams = Streams::new(0);
        let device = self.computing.device()?;
        let model = initial(&self.network(), &streams, &device)?;
        let dataset = self.dataset(&streams);
        let loader = Loader::training(Arc::clone(&dataset.train) as _, &dataset, self.batch, streams, "bench");
        Ok((model, Stopwatch::new(loader.on(&device))))
    }

    fn network(&self) -> ModelParameters {
        ModelParameters {
            name: self.model.clone(),
            width: self.width,
            classes: self.classes,
            image_size: self.image_size,
        }
    }

    /// As many images as the steps need.
    fn dataset(&self, streams: &Streams) -> Dataset {
        random_images((self.warmup + self.steps) * self.batch, self.image_size, self.classes, streams)
    }

    fn report(&self, work: &str, precision: Precision, runs: &[Run]) -> Outcome {
        let kernels = kernels_in_use(precision).map_err(failed)?;
        let precision = name_of(precision, self.computing.name()).map_err(failed)?;
        let steps: Vec<Vec<f64>> = runs.iter().map(|run| sorted(&run.measured.steps)).collect();
        let (step, fastest) = (mean(steps.iter().map(|steps| median(steps))), mean(steps.iter().map(|steps| steps[0])));
        let images_per_second: f64 = steps.iter().map(|steps| self.batch as f64 / median(steps) * 1e3).sum();
        let data = mean(runs.iter().map(|run| median(&sorted(&run.measured.data))));
        let all =
            |times: fn(&Measured) -> &Vec<f64>| runs.iter().flat_map(move |run| times(&run.measured)).sum::<f64>();
        let data_share = all(|measured| &measured.data) / all(|measured| &measured.steps);
        // Each thread has seen the processor time of all.
        let (models, parameters) = (runs.len(), runs[0].parameters);
        let processor = mean(runs.iter().map(|run| run.measured.processor)) / models as f64;
        let peak_memory_mb = peak_memory_mb();
        let peak_gpu_memory_mb = tsbd_tensor::peak_gpu_memory(self.computing.name()).map(|bytes| bytes as f64 / 1e6);
        let (model_name, threads) = (&self.model, rayon::current_num_threads());
        if self.json {
            terminal::print_json(&json!({
                "work": work, "model": model_name, "width": self.width, "image_size": self.image_size,
                "classes": self.classes, "batch": self.batch, "models": models, "parameters": parameters,
                "device": self.computing.name(), "precision": precision, "kernels": kernels, "threads": threads,
                "steps": self.steps, "warmup": self.warmup, "images_per_second": images_per_second,
                "milliseconds_per_step": step, "fastest_milliseconds_per_step": fastest,
                "cpu_milliseconds_per_step": processor, "data_milliseconds_per_step": data, "data_share": data_share,
                "peak_memory_mb": peak_memory_mb, "peak_gpu_memory_mb": peak_gpu_memory_mb,
            }));
        } else {
            let Settings { width, image_size, batch, .. } = self;
            let on = match self.computing.name() {
                "cpu" => format!("{kernels}, {threads} threads of the CPU"),
                name => format!("device {name}"),
            };
            let at_once = if models == 1 { String::new() } else { format!(", {models} models at once") };
            let on_the_gpu = peak_gpu_memory_mb.map_or_else(String::new, |most| format!(", {most:.0} MB on the GPU"));
            terminal::print(&format!(
                "{work} {model_name}, width {width}, {image_size}x{image_size} pixels, batch {batch}, {precision}, {on}{at_once}\n\
                 images a second        {images_per_second:.0}\n\
                 a step                 {step:.2} ms (median of {}; fastest {fastest:.2})\n\
                 processor time a step  {processor:.2} ms\n\
                 data a step            {data:.2} ms, {:.1} % of the time\n\
                 peak memory            {peak_memory_mb:.0} MB{on_the_gpu}\n",
                self.steps,
                data_share * 100.0,
            ));
        }
        Ok(Exit::Done)
    }
}

/// A loader that notes when it is asked for a batch: a step lasts from one request to the next.
struct Stopwatch {
    loader: Loader,
    laps: RefCell<Vec<Lap>>,
}

/// One request for a batch.
#[derive(Clone, Copy)]
struct Lap {
    asked: Instant,
    answered: Instant,
    /// Processor time of all threads when it was asked.
    processor: Duration,
}

/// Milliseconds of the steps after the warm-up.
struct Measured {
    /// Of each step, its batch included.
    steps: Vec<f64>,
    /// Of each step's batch.
    data: Vec<f64>,
    /// Mean processor time of a step, all threads together.
    processor: f64,
}

impl Stopwatch {
    fn new(loader: Loader) -> Self {
        Self { loader, laps: RefCell::default() }
    }

    fn measured(&self, warmup: usize) -> Measured {
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
        let laps = self.laps.borrow();
        // The last request is the one that was answered with the end of the epoch.
        let laps = &laps[warmup..];
        let steps: Vec<f64> = laps.windows(2).map(|pair| milliseconds(pair[1].asked - pair[0].asked)).collect();
        let data = laps[..steps.len()].iter().map(|lap| milliseconds(lap.answered - lap.asked)).collect();
        let processor = laps[steps.len()].processor.saturating_sub(laps[0].processor);
        Measured { processor: milliseconds(processor) / steps.len() as f64, data, steps }
    }
}

impl BatchSource for Stopwatch {
    fn images_per_epoch(&self) -> usize {
        self.loader.images_per_epoch()
    }

    fn batches_per_epoch(&self) -> usize {
        self.loader.batches_per_epoch()
    }

    fn epoch<'a>(&'a self, epoch: usize) -> Box<dyn Iterator<Item = tsbd_nn::Result<Batch>> + 'a> {
        let lap = || (Instant::now(), usage().map_or(Duration::ZERO, |usage| processor_time(&usage)));
        // Shuffling belongs to the first step.
        let mut first = Some(lap());
        let mut batches = self.loader.epoch(epoch);
        Box::new(std::iter::from_fn(move || {
            let (asked, processor) = first.take().unwrap_or_else(lap);
            let batch = batches.next();
            self.laps.borrow_mut().push(Lap { asked, answered: Instant::now(), processor });
            batch
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            model: "preact-resnet18".to_owned(),
            width: 4,
            batch: 3,
            steps: 2,
            warmup: 1,
            image_size: 8,
            classes: 4,
            threads: None,
            computing: Computing::named("cpu"),
            json: false,
        }
    }

    #[test]
    fn a_step_lasts_from_one_request_to_the_next_and_the_warm_up_is_left_out() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let lap = |asked, answered, processor| Lap {
            asked: at(asked),
            answered: at(answered),
            processor: Duration::from_millis(processor),
        };
        let loader = Loader::evaluation(settings().dataset(&Streams::new(0)).train, Normalization::IDENTITY, 1);
        let stopwatch = Stopwatch::new(loader);
        stopwatch.laps.replace(vec![lap(0, 50, 0), lap(100, 101, 5), lap(110, 113, 25), lap(130, 130, 65)]);
        let Measured { steps, data, processor } = stopwatch.measured(1);
        assert_eq!((steps, data, processor), (vec![10.0, 20.0], vec![1.0, 3.0], 30.0));
    }

    #[test]
    fn every_batch_of_the_random_images_is_full_and_noted() {
        let settings = settings();
        let streams = Streams::new(0);
        let dataset = settings.dataset(&streams);
        let stopwatch =
            Stopwatch::new(Loader::training(Arc::clone(&dataset.train) as _, &dataset, 3, streams, "bench"));
        let sizes: Vec<usize> = stopwatch.epoch(0).map(|batch| batch.unwrap().len()).collect();
        assert_eq!(sizes, [3, 3, 3]);
        assert_eq!(stopwatch.laps.borrow().len(), 4);
        assert_eq!(stopwatch.measured(1).steps.len(), 2);
    }
}
