//! `tsbd selftest`: whether a device computes what it should, operation by operation.

use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};
use tsbd_tensor::selftest::{Check, Finding, checks};
use tsbd_tensor::{DType, Device};

use crate::command_line::examples;
use crate::failure::{Exit, Failure, Outcome};
use crate::options::{Computing, gpu_way_out};
use crate::terminal;

/// Check every operation on a device against f64 on the CPU, forward and backward
///
/// At the shapes of PreAct-ResNet18, VGG19-BN and ViT-B/16 and at odd ones; on a GPU in f32, TF32 and bf16. One line for each
/// operation and shape: the error of the result and the largest of its gradients, relative to the largest element.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd selftest                          the CPU"
    "tsbd selftest --device cuda            the first GPU"
    "tsbd selftest --device cuda --only 'conv2d odd'"
    "tsbd selftest --device cuda --json | jq '.[] | select(.verdict != \"right\")'"
    ;
    "The exit code is 0 if everything is right, 1 if something is wrong, 2 if there is no such device."
))]
pub struct Arguments {
    #[command(flatten)]
    computing: Computing,

    /// Only what has all of these words in its line: conv2d, odd, vgg19, bf16
    #[arg(long, value_name = "WORDS")]
    only: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One check, done.
struct Line {
    check: Check,
    tolerance: f64,
    milliseconds: f64,
    /// What was found, or why the operation was not done.
    outcome: Result<Vec<Finding>, String>,
}

/// Checks and prints.
pub fn run(arguments: &Arguments) -> Outcome {
    let device = arguments.computing.device()?;
    let words: Vec<&str> = arguments.only.as_deref().unwrap_or_default().split_whitespace().collect();
    let mut list = checks(&device);
    list.retain(|check| words.iter().all(|word| name(check).contains(word)));
    if list.is_empty() {
        return Err(Failure::refused(format!("--only '{}': no check has these words", words.join(" ")))
            .hint("`tsbd selftest` without it lists them all"));
    }
    let begin = Instant::now();
    let mut lines = Vec::with_capacity(list.len());
    if !arguments.json {
        let names = ["operation", "type", "forward", "gradients", "allowed", "ms", "shape", "verdict"];
        terminal::print(&row(&names.map(str::to_owned)));
    }
    for check in list {
        let line = Line::of(check, &device);
        if !arguments.json {
            // At once: what a device does that ends the program is the line after the last.
            terminal::print(&row(&line.cells()));
        }
        lines.push(line);
    }
    if arguments.json {
        terminal::print_json(&Value::from_iter(lines.iter().map(Line::json)));
    } else {
        let right = lines.iter().filter(|line| line.is_right()).count();
        terminal::print(&format!(
            "\n{right} of {} are right on {}; {:.0} s\n",
            lines.len(),
            arguments.computing.name(),
            begin.elapsed().as_secs_f64(),
        ));
    }
    let wrong: Vec<&Line> = lines.iter().filter(|line| !line.is_right()).collect();
    if wrong.is_empty() {
        return Ok(Exit::Done);
    }
    let verdicts: Vec<String> = wrong.iter().map(|line| format!("{}: {}", name(&line.check), line.verdict())).collect();
    let message = format!(
        "{} of {} operations are wrong on {}:\n  {}",
        wrong.len(),
        lines.len(),
        arguments.computing.name(),
        verdicts.join("\n  ")
    );
    let way_out = way_out(wrong.iter().map(|line| line.outcome.as_ref().err().map(String::as_str)));
    Err(Failure::failed(message).hint(way_out))
}

/// What to do about operations that are wrong, of which some may not have been done, for these reasons.
fn way_out<'a>(reasons: impl IntoIterator<Item = Option<&'a str>>) -> &'static str {
    // A missing library of CUDA answers each call so.
    const MISSING: [&str; 2] = ["STATUS_NOT_INITIALIZED", "NVRTC_ERROR_BUILTIN_OPERATION_FAILURE"];
    const INCOMPLETE: &str =
        "a library of CUDA is missing: with CUDA_LAZY_DEBUG=1 the program says where it looks for each";
    let of_machine = |reason: &str| {
        let is_missing = MISSING.iter().any(|status| reason.contains(status));
        gpu_way_out(reason).or(is_missing.then_some(INCOMPLETE))
    };
    let ways_out: Option<Vec<&str>> = reasons.into_iter().map(|reason| of_machine(reason?)).collect();
    let of_all = ways_out.and_then(|ways_out| ways_out.first().copied());
    of_all.unwrap_or("--only WORDS checks some of them again; please report this table")
}

/// A line of the table.
fn row([operation, dtype, forward, gradients, allowed, milliseconds, shape, verdict]: &[String; 8]) -> String {
    format!(
        "{operation:<22} {dtype:<4} {forward:>8} {gradients:>9} {allowed:>7} {milliseconds:>6}  {shape:<54} {verdict}\n"
    )
}

/// What `--only` searches.
fn name(check: &Check) -> String {
    format!("{} {}, {}", check.operation(), type_name(check), check.shape())
}

fn type_name(check: &Check) -> &'static str {
    if check.dtype() == DType::BF16 { "bf16" } else { check.dtype().as_str() }
}

impl Line {
    fn of(check: Check, device: &Device) -> Self {
        let begin = Instant::now();
        let outcome =
            check.run(device).map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned());
        let milliseconds = begin.elapsed().as_secs_f64() * 1e3;
        Self { tolerance: check.tolerance(device), milliseconds, outcome, check }
    }

    /// The findings that are not within the tolerance.
    fn wrong(&self) -> Vec<Finding> {
        // What is not a number is not within it either.
        let within = |finding: &&Finding| finding.error <= self.tolerance;
        self.outcome.iter().flatten().filter(|finding| !within(finding)).copied().collect()
    }

    fn is_right(&self) -> bool {
        self.outcome.is_ok() && self.wrong().is_empty()
    }

    fn verdict(&self) -> String {
        match &self.outcome {
            Err(error) => format!("FAILED: {error}"),
            Ok(_) if self.is_right() => "right".to_owned(),
            Ok(_) => {
                let wrong: Vec<String> =
                    self.wrong().iter().map(|Finding { what, error }| format!("{what} {error:.1e}")).collect();
                format!("WRONG: {}", wrong.join(", "))
            }
        }
    }

    fn cells(&self) -> [String; 8] {
        let largest = |findings: &[Finding]| {
            let larger = |worst: f64, error: f64| if error > worst || error.is_nan() { error } else { worst };
            findings
                .iter()
                .map(|finding| finding.error)
                .reduce(larger)
                .map_or("-".to_owned(), |error| format!("{error:.1e}"))
        };
        let (forward, gradients) = match &self.outcome {
            Ok(findings) => (largest(&findings[..1]), largest(&findings[1..])),
            Err(_) => ("-".to_owned(), "-".to_owned()),
        };
        [
            self.check.operation().to_owned(),
            type_name(&self.check).to_owned(),
            forward,
            gradients,
            format!("{:.0e}", self.tolerance),
            format!("{:.0}", self.milliseconds),
            self.check.shape().to_owned(),
            self.verdict(),
        ]
    }

    fn json(&self) -> Value {
        let errors: Option<Value> = self.outcome.as_ref().ok().map(|findings| {
            findings.iter().map(|Finding { what, error }| ((*what).to_owned(), json!(error))).collect()
        });
        json!({
            "operation": self.check.operation(), "shape": self.check.shape(), "type": type_name(&self.check),
            "errors": errors, "allowed": self.tolerance, "milliseconds": self.milliseconds, "verdict": self.verdict(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::way_out;

    #[test]
    fn a_table_is_to_be_reported_unless_all_that_is_wrong_is_the_machine() {
        let full = Some("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")");
        let missing = Some("cuDNN does not start: CudnnError(CUDNN_STATUS_NOT_INITIALIZED)");
        assert!(way_out([full, full]).contains("memory is full"));
        assert!(way_out([missing]).contains("CUDA_LAZY_DEBUG=1"));
        for reasons in [[full, None], [Some("CUDA_ERROR_NOT_FOUND"), missing]] {
            assert!(way_out(reasons).contains("please report"), "{reasons:?}");
        }
    }
}
