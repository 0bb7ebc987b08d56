//! The program on a GPU that does not exist (tools/cuda-simulator.sh): every line of its own runs, the kernels included, and
//! the CPU computes. `make test-cuda` runs these; without the feature `cuda` there is nothing here.

#![cfg(feature = "cuda")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use common::{assert_contains, experiment, stderr, stdout, tsbd};
use serde_json::Value;

/// As small and as short as can be: the simulated GPU is slow. A method without a table here runs as the profile has it.
const SMALL: &str = r#"
profile = "smoke"

[data]
train_images = 200
test_images = 40

[model]
width = 4

[training]
epochs = 1

[attacks.ssba]
encoder_epochs = 1
encoder_width = 4
decoder_width = 4

[attacks.lf]
amplitude = 1.0
input = "normalized"
passes = 1
search_images = 6
steps = 20

[attacks.trojan]
steps = 3

[attacks.wanet]
epochs = 1

[attacks.input-aware]
epochs = 2
mask_epochs = 1

[defense]
clean_ratio = 0.5
batch_size = 32

[defenses.ft]
epochs = 1

[defenses.fp]
epochs = 1

[defenses.nad]
epochs = 1
teacher_epochs = 1

[defenses.nc]
search_epochs = 1
epochs = 1

[defenses.anp]
iterations = 4

[defenses.i-bau]
rounds = 1
iterations = 2

[defenses.rnp]
unlearning_epochs = 1
recovering_epochs = 1

[defenses.ft-sam]
epochs = 1

[defenses.tsbd]
unlearning_epochs = 1
fine_tuning_passes = 1

[grid]
"#;

const REPAIRS: &str = r#"
attack = ["badnets"]
defense = ["none", "ft", "i-bau"]
"#;

fn every_attack() -> String {
    let names: Vec<&str> = tsbd_experiment::ATTACKS.iter().map(|entry| entry.name).collect();
    format!("attack = {names:?}\ndefense = [\"none\"]\n")
}

fn every_defense() -> String {
    let names: Vec<&str> = tsbd_defense::DEFENSES.iter().map(|entry| entry.name).collect();
    format!("attack = [\"badnets\"]\ndefense = {names:?}\n")
}

fn every_measurement() -> String {
    let names: Vec<&str> = tsbd_analysis::MEASUREMENTS.iter().map(|entry| entry.name).collect();
    format!("attack = [\"badnets\"]\nmeasure = {names:?}\n")
}

/// The folder with the simulator's libraries; `None`, and a line on standard error, where there is no C++ compiler.
fn simulator() -> Option<&'static Path> {
    static MADE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        if Command::new("g++").arg("--version").output().is_err() {
            eprintln!("skipped: a simulated GPU needs g++");
            return None;
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simulator");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/cuda-simulator.sh");
        let output = Command::new(script).arg(&folder).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        Some(folder)
    });
    made.as_deref()
}

fn on(simulator: &Path, settings: &[(&str, &str)], arguments: &[&str]) -> Output {
    let settings = settings.iter().copied();
    tsbd().env("CUDA_LAZY_PATH", simulator).envs(settings).args(arguments).output().unwrap()
}

fn assert_done(output: &Output) {
    assert!(output.status.success(), "{}{}", stdout(output), stderr(output));
}

/// The records of a results folder.
fn records(results: &Path) -> Vec<Value> {
    let folders = std::fs::read_dir(results.join("cells")).unwrap();
    let read = |folder: std::io::Result<std::fs::DirEntry>| {
        serde_json::from_slice(&std::fs::read(folder.unwrap().path().join("record.json")).unwrap()).unwrap()
    };
    folders.map(read).collect()
}

#[test]
fn every_operation_is_right_at_odd_shapes() {
    let Some(simulator) = simulator() else { return };
    let output = on(simulator, &[], &["selftest", "--device", "cuda", "--only", "odd"]);
    assert_done(&output);
    assert_contains(&stdout(&output), &["batch_norm", "bf16", "are right on cuda"]);
}

#[test]
fn convolutions_of_split_factors_are_as_right_as_those_in_f32() {
    let Some(simulator) = simulator() else { return };
    let split = ("TSBD_CONV", "split");
    let output = on(simulator, &[split], &["selftest", "--device", "cuda", "--only", "conv f32 odd", "--json"]);
    assert_done(&output);
    let checks: Vec<Value> = serde_json::from_str(&stdout(&output)).unwrap();
    for check in &checks {
        for (what, error) in check["errors"].as_object().unwrap().iter().filter(|(what, _)| *what != "dbias") {
            // TF32 that is asked for is not split.
            let is_rounded = check["operation"] == "conv2d tf32";
            assert_eq!(error.as_f64().unwrap() > 1e-5, is_rounded, "{what} of {check}");
        }
    }
    assert!(checks.iter().any(|check| check["operation"] == "conv2d tf32"));
}

/// A folder with an experiment, and its results.
struct Bench {
    folder: tempfile::TempDir,
    file: PathBuf,
}

impl Bench {
    fn new(grid: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = experiment(folder.path(), "small.toml", &format!("{SMALL}{grid}"));
        Self { folder, file }
    }

    fn results(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The digests of all models, by cell.
    fn models(&self, results: &str) -> BTreeMap<String, String> {
        let digest = |record: &Value| {
            (record["key"].to_string(), record["artefacts"]["model.safetensors"]["blake3"].to_string())
        };
        records(&self.results(results)).iter().map(digest).collect()
    }

    fn run(&self, simulator: &Path, settings: &[(&str, &str)], device: &[&str], results: &str) -> Output {
        let results = self.results(results);
        let mut arguments =
            vec!["run", self.file.to_str().unwrap(), "--results", results.to_str().unwrap(), "--device"];
        arguments.extend(device);
        on(simulator, settings, &arguments)
    }
}

/// Sums by the definition, in the order that is as close to the simulated GPU's as there is: a network that rounds otherwise
/// soon takes another way.
const EXACT: [(&str, &str); 2] = [("TSBD_CONV", "exact"), ("TSBD_SIMD", "portable")];

#[test]
fn trainings_and_repairs_are_those_of_the_cpu_but_for_rounding() {
    let Some(simulator) = simulator() else { return };
    let bench = Bench::new(REPAIRS);
    let run = |device: &str| {
        assert_done(&bench.run(simulator, &EXACT, &[device], device));
        let mut records = records(&bench.results(device));
        records.sort_by_key(|record| record["key"].to_string());
        records
    };
    let (here, there) = (run("cpu"), run("cuda"));
    assert_eq!((here.len(), there.len()), (3, 3));
    for (here, there) in here.iter().zip(&there) {
        assert_eq!(here["key"], there["key"], "the device is no part of a cell");
        assert_eq!(there["provenance"]["device"], "cuda:0");
        assert_eq!(there["provenance"]["kernels"], "Simulated GPU");
        assert!(there["provenance"]["peak_gpu_memory_bytes"].as_u64().unwrap() > 100_000);
        assert_eq!(here["provenance"].get("peak_gpu_memory_bytes"), None);
        assert_same_losses(here, there);
    }
}

/// Asserts that what has a trace, a record or what `tsbd defend` prints, has the same losses on both devices, but for rounding.
fn assert_same_losses(here: &Value, there: &Value) {
    let losses = |record: &Value| -> Vec<f64> {
        let points = record["trace"].as_array().unwrap().iter().flat_map(|point| point["metrics"].as_object().unwrap());
        points.filter(|(name, _)| name.contains("loss")).filter_map(|(_, value)| value.as_f64()).collect()
    };
    let (here, there) = (losses(here), losses(there));
    assert!(!here.is_empty() && here.len() == there.len());
    for (here, there) in here.iter().zip(&there) {
        assert!((here - there).abs() < 1e-4 * here.abs(), "{here} on the CPU, {there} on the simulated GPU");
    }
}

#[test]
fn attack_evaluate_and_defend_do_on_a_gpu_what_they_do_on_the_cpu_but_for_rounding() {
    let Some(simulator) = simulator() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let settings = [
        "data.train_images=200",
        "data.test_images=40",
        "model.width=4",
        "training.epochs=1",
        "defense.clean_ratio=0.5",
        "defense.batch_size=32",
        "defenses.ft.epochs=1",
    ];
    let small: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let tell = |device: &str, arguments: &[&str]| -> Value {
        let flags = ["--profile", "smoke", "--json", "--device", device];
        let output = on(simulator, &EXACT, &[arguments, &flags, &small[..]].concat());
        assert_done(&output);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(told["device"], if device == "cuda" { "cuda:0" } else { device }, "{told}");
        told
    };
    let evaluate = |device: &str, model: &str| {
        tell(device, &["evaluate", "--attack", "badnets", "--model", model])["metrics"].take()
    };
    let rates = |metrics: &Value| ["acc", "asr", "ra"].map(|rate| metrics[rate].as_f64().unwrap());

    let [here, there] = ["cpu", "cuda"].map(|device| tell(device, &["attack", "badnets", "--results", &path(device)]));
    assert_eq!(here["key"], there["key"]);
    let [trained_here, trained_there] = ["cpu", "cuda"].map(|device| records(&folder.path().join(device)).remove(0));
    assert_same_losses(&trained_here, &trained_there);

    // Of the same weights, both devices tell the same classes.
    let (model, other) = (here["model"].as_str().unwrap(), there["model"].as_str().unwrap());
    assert_eq!(rates(&evaluate("cuda", model)), rates(&here["metrics"]));
    assert_eq!(rates(&evaluate("cpu", other)), rates(&there["metrics"]));

    let [repaired_here, repaired_there] = ["cpu", "cuda"].map(|device| {
        let out = path(&format!("{device}.safetensors"));
        let repaired = tell(device, &["defend", "ft", "--attack", "badnets", "--model", model, "--out", &out]);
        assert_eq!(rates(&repaired["before"]), rates(&here["metrics"]), "{device}");
        assert_eq!(rates(&repaired["after"]), rates(&evaluate("cpu", &out)), "{device}");
        repaired
    });
    assert_same_losses(&repaired_here, &repaired_there);
}

#[test]
fn training_in_tf32_and_in_bf16_rounds_as_much_as_they_may() {
    let Some(simulator) = simulator() else { return };
    let bench = Bench::new(
        "attack = [\"badnets\"]\ndefense = [\"none\"]\n\"training.precision\" = [\"f32\", \"tf32\", \"bf16\"]\n",
    );
    assert_done(&bench.run(simulator, &EXACT, &["cuda"], "results"));
    let records = records(&bench.results("results"));
    assert_eq!(records.len(), 3);
    let loss = |precision: Option<&str>| {
        let is = |record: &&Value| record["cell"]["training"].get("precision").and_then(Value::as_str) == precision;
        let record = records.iter().find(is).unwrap();
        record["trace"][0]["metrics"]["mean_loss"].as_f64().unwrap()
    };
    let full = loss(None);
    let moved = [loss(Some("tf32")), loss(Some("bf16"))].map(|loss| (loss - full).abs() / full);
    // An epoch of an untrained network, in which rounding decides what some ReLUs pass.
    let [tf32, bf16] = moved;
    assert!(0. < tf32 && tf32 < 0.01 && 0. < bf16 && bf16 < 0.03, "moved by {moved:?} from {full}");

    // Where cuDNN does not multiply bf16 of so few channels, f32 steps in; outputs are rounded as they were.
    let few = [EXACT[0], EXACT[1], ("TSBD_SIMULATED_CUDNN", "eights")];
    assert_done(&bench.run(simulator, &few, &["cuda"], "few"));
    let record = self::records(&bench.results("few")).into_iter();
    let bf16_again = record
        .filter(|record| record["cell"]["training"].get("precision").and_then(Value::as_str) == Some("bf16"))
        .map(|record| record["trace"][0]["metrics"]["mean_loss"].as_f64().unwrap())
        .next()
        .unwrap();
    assert!((bf16_again - full).abs() / full < 0.03, "{bf16_again} and not {full}");
}

#[test]
fn every_defense_trains_in_tf32_and_in_bf16() {
    let Some(simulator) = simulator() else { return };
    let bench = Bench::new(&format!("{}\"defense.precision\" = [\"tf32\", \"bf16\"]\n", every_defense()));
    assert_done(&bench.run(simulator, &[], &["cuda"], "results"));
    for name in tsbd_defense::DEFENSES.iter().map(|entry| entry.name) {
        let of_this = |record: &Value| record["cell"]["defense"]["name"] == name;
        let cells = records(&bench.results("results")).into_iter().filter(of_this);
        let results: BTreeSet<String> = cells.map(|record| record["trace"].to_string()).collect();
        // Those that train nothing, or only in f32, have one result; that of the others depends on how they round.
        assert_eq!(results.len(), if ["clp", "i-bau"].contains(&name) { 1 } else { 2 }, "{name}");
    }
}

/// Batches of 32 and, in the repair, a last one of 4.
#[test]
fn a_step_done_again_from_a_graph_has_the_bits_of_one_launched_kernel_by_kernel() {
    let Some(simulator) = simulator() else { return };
    for precision in ["f32", "bf16"] {
        let training = format!("\"training.precision\" = [\"{precision}\"]\n\"training.epochs\" = [2]\n");
        let bench = Bench::new(&format!("attack = [\"badnets\"]\ndefense = [\"ft\"]\n{training}"));
        let run = |name: &str, settings: &[(&str, &str)]| {
            assert_done(&bench.run(simulator, settings, &["cuda"], name));
            let results = bench.results(name);
            let mut cells: Vec<(String, [String; 2], String)> = records(&results)
                .iter()
                .map(|record| {
                    let key = record["key"].as_str().unwrap().to_owned();
                    let log = std::fs::read_to_string(results.join("cells").join(&key).join("log")).unwrap();
                    let model = record["artefacts"]["model.safetensors"]["blake3"].to_string();
                    (key, [model, trace_without_seconds(record)], log)
                })
                .collect();
            cells.sort();
            cells
        };
        let recorded = run("recorded", &[]);
        let others = [
            ("launched", ("TSBD_CUDA_GRAPHS", "0")),
            ("refused", ("TSBD_SIMULATED_CAPTURE", "refused")),
            ("halfway", ("TSBD_SIMULATED_CAPTURE", "halfway")),
            ("broken", ("TSBD_SIMULATED_CAPTURE", "broken")),
            ("large", ("TSBD_SIMULATED_CAPTURE", "large")),
        ];
        // What the driver does with a capture does not depend on the precision.
        let others = if precision == "f32" { &others[..] } else { &others[..1] };
        let is_recorded = |log: &str| log.contains("simulated GPU: a graph of");
        assert!(recorded.iter().all(|(_, _, log)| is_recorded(log)), "{recorded:?}");
        for &(name, setting) in others {
            for ((key, result, log), (_, expected, _)) in run(name, &[setting]).iter().zip(&recorded) {
                assert_eq!(result, expected, "{name}: {key}");
                assert!(!is_recorded(log), "{name}: {log}");
                let is_told = log.contains("the training step is not recorded as a CUDA graph");
                assert_eq!(is_told, setting.0 == "TSBD_SIMULATED_CAPTURE", "{name}: {log}");
            }
        }
    }
}

/// What was measured on the way, in bits.
fn trace_without_seconds(record: &Value) -> String {
    let mut trace = record["trace"].clone();
    for point in trace.as_array_mut().unwrap() {
        point["metrics"].as_object_mut().unwrap().retain(|name, _| name != "seconds");
    }
    let trace = trace.to_string();
    assert!(trace.contains("loss\":") && trace.contains("train_accuracy\":"), "{trace}");
    trace
}

/// The loss of a recorded step is read when the next one is queued.
#[test]
fn a_loss_that_is_not_finite_ends_a_cell_at_the_same_step_with_and_without_a_graph() {
    let Some(simulator) = simulator() else { return };
    // Steps of 16 images, each of which multiplies the weights by hundreds.
    let diverges = "\"training.batch_size\" = [16]\n\"training.learning_rate\" = [1e6]\n";
    let bench = Bench::new(&format!("attack = [\"badnets\"]\ndefense = [\"none\"]\n{diverges}"));
    let failure = |name: &str, settings: &[(&str, &str)]| {
        let output = bench.run(simulator, settings, &["cuda"], name);
        assert!(!output.status.success(), "{}", stdout(&output));
        let mut cells = std::fs::read_dir(bench.results(name).join("cells")).unwrap();
        let cell = cells.next().unwrap().unwrap().path();
        let read = |name: &str| std::fs::read_to_string(cell.join(name)).unwrap();
        let failure: Value = serde_json::from_str(&read("failure.json")).unwrap();
        (failure["reason"].to_string(), failure["log_tail"].to_string().contains("simulated GPU: a graph of"))
    };
    let (launched, was_recorded) = failure("launched", &[("TSBD_CUDA_GRAPHS", "0")]);
    assert!(!was_recorded);
    let step: usize = launched.split_once("in epoch 0, step ").unwrap().1.split_once(' ').unwrap().0.parse().unwrap();
    assert!((2..12).contains(&step), "a step that is recorded, before the last: {launched}");
    assert_eq!(failure("recorded", &[]), (launched, true));
}

#[test]
fn several_models_train_at_once_in_one_process() {
    let Some(simulator) = simulator() else { return };
    let small =
        ["bench", "train", "--width", "4", "--batch", "4", "--steps", "2", "--warmup", "1", "--image-size", "8"];
    let flags = ["--device", "cuda", "--models", "2", "--precision", "bf16", "--json"];
    let output = on(simulator, &[], &[&small[..], &flags[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let measured: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&measured["models"], &measured["precision"]), (&2.into(), &"bf16".into()));
    assert!(measured["peak_gpu_memory_mb"].as_f64().unwrap() > 0.1, "{measured}");
}

#[test]
fn every_attack_trains_and_every_measurement_measures() {
    let Some(simulator) = simulator() else { return };
    for grid in [every_attack(), every_measurement()] {
        let bench = Bench::new(&grid);
        assert_done(&bench.run(simulator, &[], &["cuda", "--cells-per-gpu", "2"], "results"));
    }
}

#[test]
fn every_defense_repairs_on_two_gpus_and_goes_on_with_the_same_bits_after_it_was_stopped() {
    let Some(simulator) = simulator() else { return };
    let bench = Bench::new(&every_defense());
    let two = [("TSBD_SIMULATED_GPUS", "2")];
    assert_done(&bench.run(simulator, &two, &["cuda"], "whole"));
    let devices: Vec<String> =
        records(&bench.results("whole")).iter().map(|record| record["provenance"]["device"].to_string()).collect();
    assert!(
        ["\"cuda:0\"", "\"cuda:1\""].iter().all(|device| devices.iter().any(|found| found == device)),
        "{devices:?}"
    );
    let results = bench.results("stopped");
    for seconds in [3, 5, 8, 12] {
        let mut command = tsbd();
        command.env("CUDA_LAZY_PATH", simulator).args(["run", bench.file.to_str().unwrap(), "--device", "cuda"]);
        let mut child = command.arg("--results").arg(&results).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_secs(seconds));
        if child.try_wait().unwrap().is_some_and(|status| status.success()) {
            break;
        }
        let process = nix::unistd::Pid::from_raw(child.id().cast_signed());
        nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGINT).unwrap();
        child.wait().unwrap();
    }
    assert_done(&bench.run(simulator, &[], &["cuda"], "stopped"));
    assert_eq!(bench.models("whole"), bench.models("stopped"));
}

#[test]
fn cells_in_one_process_have_the_bits_of_those_in_processes_of_their_own() {
    let Some(simulator) = simulator() else { return };
    let bench = Bench::new("attack = [\"badnets\", \"blended\"]\ndefense = [\"none\", \"ft\", \"tsbd\"]\n");
    assert_done(&bench.run(simulator, &[], &["cuda", "--cells-per-gpu", "3"], "together"));
    assert_done(&bench.run(simulator, &[], &["cuda", "--cells-per-gpu", "1", "--sharing", "turns"], "apart"));
    assert_eq!(bench.models("together"), bench.models("apart"));
    let others = |results: &str| -> Vec<Option<u64>> {
        records(&bench.results(results)).iter().map(|record| record["provenance"]["other_cells"].as_u64()).collect()
    };
    assert!(others("together").iter().flatten().any(|others| *others >= 1), "{:?}", others("together"));
    assert_eq!(others("apart"), vec![None; 8]);
}

#[test]
fn cells_that_begin_and_end_disturb_no_other_ones_recording_and_use_each_others_streams() {
    let Some(simulator) = simulator() else { return };
    let bench = Bench::new("attack = [\"badnets\", \"blended\", \"sig\"]\ndefense = [\"none\", \"ft\", \"fp\"]\n");
    // The host's own, and one for each cell at a time.
    let settings = [("TSBD_SIMULATED_CAPTURE", "slow"), ("TSBD_SIMULATED_STREAMS", "4")];
    assert_done(&bench.run(simulator, &settings, &["cuda", "--cells-per-gpu", "3"], "together"));
    let results = bench.results("together");
    let log = |record: &Value| {
        std::fs::read_to_string(results.join("cells").join(record["key"].as_str().unwrap()).join("log")).unwrap()
    };
    let logs: Vec<String> = records(&results).iter().map(log).collect();
    assert_eq!(logs.len(), 9);
    assert!(logs.iter().any(|log| log.contains("a graph of")), "nothing was recorded");
    assert!(!logs.iter().any(|log| log.contains("not recorded")), "{logs:?}");
}

#[test]
fn a_gpu_or_a_driver_that_is_too_old_is_refused_with_what_is_needed() {
    let Some(simulator) = simulator() else { return };
    for (setting, found, needed) in [
        (("TSBD_SIMULATED_CAPABILITY", "7"), "compute capability 7.0", "8.0"),
        (("TSBD_SIMULATED_DRIVER", "12080"), "CUDA 12.8", "580"),
    ] {
        let output = on(simulator, &[setting], &["selftest", "--device", "cuda"]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert_contains(&stderr(&output), &[found, needed]);
    }
}

#[test]
fn a_fault_of_the_gpu_costs_one_of_the_cells_that_share_it() {
    let Some(simulator) = simulator() else { return };
    let bench = Bench::new("attack = [\"badnets\"]\ndefense = [\"none\", \"ft\", \"nc\"]\n");
    // The first kernel that NC alone has.
    let fault = [("TSBD_SIMULATED_FAULT", "tanh_f32x4")];
    let output = bench.run(simulator, &fault, &["cuda", "--cells-per-gpu", "2"], "results");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_contains(
        &stderr(&output),
        &[
            "badnets + ft: waits again, because the GPU failed",
            "badnets + nc: FAILED",
            "CUDA_ERROR_ILLEGAL_ADDRESS",
            "3 cells: 2 done, 1 failed in",
        ],
    );
    assert_done(&bench.run(simulator, &[], &["cuda"], "results"));
}

#[test]
fn cells_that_share_a_gpu_do_so_through_nvidias_service_which_ends_with_the_run() {
    let Some(simulator) = simulator() else { return };
    let bench = Bench::new("attack = [\"badnets\"]\ndefense = [\"none\"]\n");
    let (service, notes) = (bench.folder.path().join("nvidia-cuda-mps-control"), bench.folder.path().join("notes"));
    let script = format!("#!/bin/sh\n{{ echo \"$1\"; test \"$1\" = -d || cat; }} >>{}\n", notes.display());
    std::fs::write(&service, script).unwrap();
    std::fs::set_permissions(&service, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bench.folder.path().display(), std::env::var("PATH").unwrap());
    let logs = |results: &str| -> String {
        let results = bench.results(results);
        let log = |record: &Value| results.join("cells").join(record["key"].as_str().unwrap()).join("log");
        records(&results).iter().map(|record| std::fs::read_to_string(log(record)).unwrap()).collect()
    };
    assert_done(&bench.run(simulator, &[("PATH", &path)], &["cuda", "--sharing", "mps"], "together"));
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), "-d\n\nquit\n");
    assert!(logs("together").contains("simulated GPU: shared by the service at"));
    assert_done(&bench.run(
        simulator,
        &[("PATH", &path)],
        &["cuda", "--cells-per-gpu", "2", "--sharing", "turns"],
        "apart",
    ));
    assert_eq!(std::fs::read_to_string(&notes).unwrap().lines().count(), 3, "not started");
    assert!(!logs("apart").contains("shared by the service"));
    std::fs::write(&service, "#!/bin/sh\necho no GPU here >&2; exit 1\n").unwrap();
    let output = bench.run(simulator, &[("PATH", &path)], &["cuda", "--sharing", "mps"], "without");
    assert_done(&output);
    assert_contains(&stderr(&output), &["cells on a GPU take turns, without NVIDIA's MPS", "no GPU here"]);
}

#[test]
fn a_gpu_without_enough_memory_ends_the_cell_with_a_way_out() {
    let Some(simulator) = simulator() else { return };
    let output = Bench::new(REPAIRS).run(simulator, &[("TSBD_SIMULATED_MEMORY", "1000000")], &["cuda"], "results");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_contains(
        &stderr(&output),
        &["OUT_OF_MEMORY", "the GPU's memory is full", "--cells-per-gpu", "smaller batch"],
    );
    // A library that says of what it lacks no more than that it is not initialised.
    let output = on(simulator, &[("TSBD_SIMULATED_MEMORY", "1000")], &["selftest", "--device", "cuda"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert_contains(&stderr(&output), &["NOT_INITIALIZED", "0 MB free", "the GPU's memory is full"]);
}

#[test]
fn cells_without_memory_beside_others_go_on_when_fewer_share_the_gpu() {
    let Some(simulator) = simulator() else { return };
    let bench = Bench::new("attack = [\"badnets\", \"blended\"]\ndefense = [\"none\"]\n");
    // Without graphs, which take more while they are recorded and are done without where that fails.
    let launched = ("TSBD_CUDA_GRAPHS", "0");
    assert_done(&bench.run(simulator, &[launched], &["cuda", "--cells-per-gpu", "1"], "roomy"));
    let peak = |record: &Value| record["provenance"]["peak_gpu_memory_bytes"].as_u64();
    let most = records(&bench.results("roomy")).iter().filter_map(peak).max().unwrap();
    // Enough for either of them.
    let memory = (most + most / 10).to_string();
    let settings = [launched, ("TSBD_SIMULATED_MEMORY", &memory)];
    let output = bench.run(simulator, &settings, &["cuda", "--cells-per-gpu", "2"], "full");
    assert_done(&output);
    assert_contains(&stderr(&output), &["waits again, because others left it too little of the GPU's memory"]);
    assert_eq!(bench.models("full"), bench.models("roomy"));
}

#[test]
fn a_gpu_that_is_not_there_is_refused_with_what_there_is() {
    let Some(simulator) = simulator() else { return };
    let bench = Bench::new(REPAIRS);
    for (devices, reason) in [("cuda:2", "the driver sees 2 of them"), ("cuda:0,cuda:0", "it is named twice")] {
        let output = bench.run(simulator, &[("TSBD_SIMULATED_GPUS", "2")], &[devices], "results");
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert_contains(&stderr(&output), &[reason]);
    }
}
