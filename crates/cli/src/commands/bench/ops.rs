//! `tsbd bench ops`: each operation of a network, beside what the machine can do at best.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use tsbd_nn::Precision;
use tsbd_tensor::workload::{Cost, NetworkShape, Pass, Workload};
use tsbd_tensor::{MachinePeak, machine_peak};

use super::{at_least_one, median, name_of, peak_memory_mb, use_threads};
use crate::columns::Columns;
use crate::command_line::examples;
use crate::failure::{Exit, Failure, Outcome};
use crate::terminal;

/// Each operation of PreAct-ResNet18 alone, beside the machine's measured peak
///
/// Forward passes, and gradients with respect to one input at a time. GFLOP/s count the operations of the direct sum
/// of products, whatever algorithm is used, so Winograd's convolution can be above the peak. GB/s count the bytes that
/// an operation has to read and write when it is done alone; they are compared with those of copying large memory,
/// which tensors that fit into a cache exceed. "ms a step" is the time of as many calls as one training step makes.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd bench ops                               every operation at the quick profile's width"
    "tsbd bench ops --width 64 --only conv        the convolutions at the paper's width"
    "tsbd bench ops --only 'input gradient' --threads 1"
    "tsbd bench ops --json | jq '.operations[] | select(.share_of_peak < 0.3)'"
))]
pub struct Ops {
    /// Channels the network begins with; the paper's networks have 64
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_one)]
    width: usize,

    /// Images per step
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least_one)]
    batch: usize,

    /// Height and width of the images in pixels
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one)]
    image_size: usize,

    /// Classes of the images
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = at_least_one)]
    classes: usize,

    /// Only the operations with this in their name, as in "conv 3x3 stride 1, 16 to 16, 32x32, forward"
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,

    /// Seconds for each operation; it is done three times at least, and once before
    #[arg(long, value_name = "SECONDS", default_value = "0.3", value_parser = seconds)]
    seconds: Duration,

    /// Threads; without it as many as RAYON_NUM_THREADS says, else one per core
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    threads: Option<usize>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| "give a number of seconds, 0 or more".to_owned())
}

/// One measured operation.
struct Row {
    workload: Workload,
    /// Median milliseconds.
    milliseconds: f64,
    fastest: f64,
    repetitions: usize,
}

/// Measures and prints.
pub fn run(ops: &Ops) -> Outcome {
    let Ops { width, batch, image_size, classes, .. } = *ops;
    let mut workloads = NetworkShape { width, batch, image_size, classes }.workloads();
    if let Some(text) = &ops.only {
        workloads.retain(|workload| name(workload).contains(text.as_str()));
        if workloads.is_empty() {
            return Err(Failure::refused(format!("--only '{text}': no operation has this in its name"))
                .hint("`tsbd bench ops --seconds 0` lists them all"));
        }
    }
    use_threads(ops.threads)?;
    let failed = |error| Failure::from_error(Exit::Failed, error);
    let (peak, precision) = (machine_peak(), name_of(Precision::F32, "cpu").map_err(failed)?);
    let rows = workloads.into_iter().map(|workload| measure(workload, ops.seconds)).collect::<Result<Vec<_>, _>>()?;
    if ops.json {
        terminal::print_json(&json!({
            "width": width, "batch": batch, "image_size": image_size, "classes": classes, "precision": precision,
            "device": "cpu", "threads": peak.threads, "peak": peak_json(&peak),
            "milliseconds_per_step": milliseconds_per_step(&rows),
            "images_per_second": batch as f64 / milliseconds_per_step(&rows) * 1e3, "peak_memory_mb": peak_memory_mb(),
            "operations": rows.iter().map(|row| row.json(&peak)).collect::<Vec<_>>(),
        }));
    } else {
        terminal::print(&text(ops, precision, &peak, &rows));
    }
    Ok(Exit::Done)
}

/// What `--only` searches.
fn name(workload: &Workload) -> String {
    format!("{}, {}, {}", workload.operation(), workload.shape(), workload.pass())
}

fn measure(workload: Workload, least: Duration) -> Result<Row, Failure> {
    let failed = |error| Failure::from_error(Exit::Failed, error);
    let timer = workload.prepare().map_err(failed)?;
    timer.time().map_err(failed)?;
    let begin = Instant::now();
    let mut times = vec![];
    while times.len() < 3 || begin.elapsed() < least {
        times.push(timer.time().map_err(failed)?.as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(Row { workload, milliseconds: median(&times), fastest: times[0], repetitions: times.len() })
}

impl Row {
    /// Work per second: FLOP/s or B/s.
    fn rate(&self) -> f64 {
        let (Cost::Flops(work) | Cost::Bytes(work)) = self.workload.cost();
        work / self.milliseconds * 1e3
    }

    fn share_of_peak(&self, peak: &MachinePeak) -> f64 {
        self.rate()
            / match self.workload.cost() {
                Cost::Flops(_) => peak.flops,
                Cost::Bytes(_) => peak.copy,
            }
    }

    fn milliseconds_per_step(&self) -> f64 {
        self.milliseconds * self.workload.calls_per_step() as f64
    }

    fn json(&self, peak: &MachinePeak) -> Value {
        let rate = self.rate() / 1e9;
        let (gflops, gigabytes) = match self.workload.cost() {
            Cost::Flops(_) => (Some(rate), None),
            Cost::Bytes(_) => (None, Some(rate)),
        };
        json!({
            "operation": self.workload.operation(), "shape": self.workload.shape(),
            "pass": self.workload.pass().to_string(), "milliseconds": self.milliseconds,
            "fastest_milliseconds": self.fastest, "repetitions": self.repetitions, "gflops_per_second": gflops,
            "gigabytes_per_second": gigabytes, "share_of_peak": self.share_of_peak(peak),
            "calls_per_step": self.workload.calls_per_step(), "milliseconds_per_step": self.milliseconds_per_step(),
        })
    }
}

/// What a training step spends in these operations.
fn milliseconds_per_step(rows: &[Row]) -> f64 {
    rows.iter().map(Row::milliseconds_per_step).sum()
}

fn peak_json(peak: &MachinePeak) -> Value {
    json!({
        "instructions": peak.instructions.name(), "threads": peak.threads,
        "one_thread_gflops_per_second": peak.one_thread_flops / 1e9, "gflops_per_second": peak.flops / 1e9,
        "one_thread_copy_gigabytes_per_second": peak.one_thread_copy / 1e9,
        "copy_gigabytes_per_second": peak.copy / 1e9,
    })
}

fn text(ops: &Ops, precision: &str, peak: &MachinePeak, rows: &[Row]) -> String {
    let mut columns = Columns::headed(&[
        "operation",
        "channels, input",
        "pass",
        "ms",
        "fastest",
        "GFLOP/s",
        "GB/s",
        "of peak",
        "calls",
        "ms a step",
    ]);
    for row in rows {
        let rate = format!("{:.1}", row.rate() / 1e9);
        let (gflops, gigabytes) = match row.workload.cost() {
            Cost::Flops(_) => (rate, String::new()),
            Cost::Bytes(_) => (String::new(), rate),
        };
        columns.row([
            row.workload.operation(),
            row.workload.shape(),
            row.workload.pass().to_string(),
            format!("{:.3}", row.milliseconds),
            format!("{:.3}", row.fastest),
            gflops,
            gigabytes,
            format!("{:.0} %", row.share_of_peak(peak) * 100.0),
            row.workload.calls_per_step().to_string(),
            format!("{:.2}", row.milliseconds_per_step()),
        ]);
    }
    let MachinePeak { instructions, threads, one_thread_flops, flops, one_thread_copy, copy } = *peak;
    let instructions = instructions.name();
    let Ops { width, batch, image_size, .. } = ops;
    let mut text = format!(
        "PreAct-ResNet18, width {width}, {image_size}x{image_size} pixels, batch {batch}, {precision}, {threads} threads\n\
         peak, {instructions}: {:.0} GFLOP/s and {:.1} GB/s copied (one thread {:.0} and {:.1})\n\n{}",
        flops / 1e9,
        copy / 1e9,
        one_thread_flops / 1e9,
        one_thread_copy / 1e9,
        columns.render(usize::MAX),
    );
    text.push_str(&convolutions_of_a_step(rows));
    text.push_str(&format!(
        "all operations above: {:.1} ms a step; peak memory {:.0} MB\n",
        milliseconds_per_step(rows),
        peak_memory_mb()
    ));
    text
}

/// The convolutions of one training step together, pass by pass.
fn convolutions_of_a_step(rows: &[Row]) -> String {
    let mut text = String::new();
    for pass in [Pass::Forward, Pass::InputGradient, Pass::WeightGradient] {
        let (mut milliseconds, mut work) = (0.0, 0.0);
        for row in rows.iter().filter(|row| row.workload.pass() == pass) {
            // Of what counts operations, the convolutions are all but the linear layer.
            if let (Cost::Flops(flops), true) = (row.workload.cost(), row.workload.operation().starts_with("conv")) {
                milliseconds += row.milliseconds_per_step();
                work += flops * row.workload.calls_per_step() as f64;
            }
        }
        if milliseconds > 0.0 {
            let rate = work / milliseconds / 1e6;
            text.push_str(&format!("\nconvolutions above, {pass}: {milliseconds:.1} ms a step, {rate:.0} GFLOP/s"));
        }
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use tsbd_tensor::InstructionSet;

    use super::*;

    #[test]
    fn a_row_compares_operations_with_arithmetic_and_bytes_with_copying() {
        let peak = MachinePeak {
            instructions: InstructionSet::Avx512,
            threads: 2,
            one_thread_flops: 1e9,
            flops: 2e9,
            one_thread_copy: 1e9,
            copy: 4e9,
        };
        let shape = NetworkShape { width: 4, batch: 2, image_size: 8, classes: 10 };
        for workload in shape.workloads() {
            let row = Row { workload, milliseconds: 2.0, fastest: 1.0, repetitions: 3 };
            let expected = match workload.cost() {
                Cost::Flops(flops) => flops / 2e-3 / 2e9,
                Cost::Bytes(bytes) => bytes / 2e-3 / 4e9,
            };
            assert!((row.share_of_peak(&peak) / expected - 1.0).abs() < 1e-12, "{}", name(&workload));
        }
    }

    #[test]
    fn seconds_are_a_number_of_at_least_zero() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(seconds("0"), Ok(Duration::ZERO));
        assert!(seconds("-1").is_err() && seconds("soon").is_err() && seconds("nan").is_err());
    }
}
