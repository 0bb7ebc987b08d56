//! Flags that several subcommands share.

use std::path::{Path, PathBuf};

use clap::Args;
use tsbd_attack::LEARNED_TRIGGER;
use tsbd_data::DataRoot;
use tsbd_experiment::Setting;
use tsbd_orchestrator::{CellsPerGpu, Devices, GpuSharing, Place};
use tsbd_tensor::{Device, lacks_gpu_memory};

use crate::failure::{Exit, Failure};

/// Where results and data sets lie.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Folders")]
pub struct Folders {
    /// Results folder
    #[arg(long, value_name = "DIR", env = "TSBD_RESULTS", default_value = "results")]
    pub results: PathBuf,

    #[command(flatten)]
    pub data: DataFolder,
}

/// Where data sets lie.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Folders")]
pub struct DataFolder {
    /// Folder with the data sets, the only one looked in [default: $TSBD_DATA, then tsbd/datasets in the user's cache folder]
    // The environment variable is read by the data crate, which every other program uses too.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// Where the trigger lies that an attack learned with a model.
#[derive(Args, Debug, Clone)]
pub struct LearnedTrigger {
    /// Trigger that was learned with the model, for an attack that learns one [default: attack.safetensors beside the model]
    #[arg(long, value_name = "FILE")]
    learned_trigger: Option<PathBuf>,
}

impl LearnedTrigger {
    /// The file named.
    pub fn named(&self) -> Option<&Path> {
        self.learned_trigger.as_deref()
    }

    /// The file named, or else the one beside `model`, if there is a model.
    pub fn path(&self, model: Option<&Path>) -> Option<PathBuf> {
        let beside = || model.map(|model| model.with_file_name(LEARNED_TRIGGER));
        self.learned_trigger.clone().or_else(beside)
    }
}

/// Where is computed.
#[derive(Args, Debug, Clone)]
pub struct Computing {
    /// Device: cpu, cuda (the first GPU) or cuda:N; GPUs need a program built with `make build-cuda`
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    device: String,
}

impl Computing {
    /// The device, opened.
    pub fn device(&self) -> Result<Device, Failure> {
        tsbd_tensor::device(&self.device).map_err(no_device)
    }

    /// The device, opened, for a command that computes in cells as well.
    pub fn open(&self) -> Result<OpenDevice, Failure> {
        let device = self.device()?;
        if device.is_cpu() {
            return Ok(OpenDevice::cpu());
        }
        // `cuda` would be all of them there.
        let gpus = tsbd_tensor::gpus(self.name()).map_err(no_device)?;
        let devices = Devices::Gpus { gpus, cells: CellsPerGpu::Exactly(1), sharing: GpuSharing::Turns };
        Ok(OpenDevice { device, place: Place::Local(devices) })
    }

    /// The same flag as a user would type it, with a space before it; nothing for the CPU.
    pub fn as_typed(&self) -> String {
        if self.device == "cpu" { String::new() } else { flag("--device", &self.device) }
    }

    /// The device of this name.
    pub fn named(name: &str) -> Self {
        Self { device: name.to_owned() }
    }

    /// As results name it: the first GPU is `cuda:0`, however it was typed.
    pub fn name(&self) -> &str {
        if self.device == "cuda" { "cuda:0" } else { &self.device }
    }
}

/// A device that is there.
#[derive(Debug)]
pub struct OpenDevice {
    /// For what this process computes.
    pub device: Device,
    /// For cells, one at a time: each opens it in a process of its own.
    pub place: Place,
}

impl OpenDevice {
    /// The CPU.
    pub fn cpu() -> Self {
        Self { device: Device::Cpu, place: Place::Local(Devices::Cpu { workers: 1 }) }
    }
}

/// A device of --device that cannot be had.
pub fn no_device(error: tsbd_tensor::Error) -> Failure {
    match error {
        tsbd_tensor::Error::NoDevice { device, reason, way_out } => {
            Failure::refused(format!("--device {device}: {reason}")).hint(gpu_way_out(&reason).unwrap_or(way_out))
        }
        other => Failure::from_error(Exit::Refused, other),
    }
}

/// [`tsbd_tensor::gpu_way_out`] for what this process computes: no cells, of which fewer could share the GPU.
pub fn gpu_way_out(reason: &str) -> Option<&'static str> {
    const FULL: &str =
        "the GPU's memory is full: use a smaller batch, or a GPU with more; nvidia-smi says who else uses it";
    if lacks_gpu_memory(reason) { Some(FULL) } else { tsbd_tensor::gpu_way_out(reason) }
}

/// What changes an experiment without editing its file.
#[derive(Args, Debug, Clone, Default)]
pub struct Overrides {
    /// Profile that gives the defaults: smoke (seconds per cell), quick (minutes to an hour per cell on two cores), paper (as
    /// published, very long on a CPU). A file profiles/NAME.toml beside the experiment is one too: it is complete in itself,
    /// and comes before a built-in one of the same name [default: the file's]
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,

    /// Set one key of the experiment file; may be repeated. The value is TOML: 0.05, true, text, [0, 1]
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_setting)]
    pub set: Vec<Setting>,
}

impl Overrides {
    /// The same flags as a user would type them, each with a space before it.
    pub fn as_typed(&self) -> String {
        let profile = self.profile.iter().map(|profile| flag("--profile", profile));
        profile.chain(self.set.iter().map(typed)).collect()
    }
}

impl OnePoint {
    /// The same flags as a user would type them, each with a space before it.
    pub fn as_typed(&self) -> String {
        let dataset = self.dataset.iter().map(|dataset| flag("--dataset", dataset));
        let seed = (self.seed != 0).then(|| flag("--seed", &self.seed.to_string()));
        let set = self.set.iter().map(typed);
        std::iter::once(flag("--profile", &self.profile)).chain(dataset).chain(seed).chain(set).collect()
    }
}

impl Folders {
    /// The same flags as a user would type them, each with a space before it.
    pub fn as_typed(&self) -> String {
        let results =
            (self.results != Path::new("results")).then(|| flag("--results", &self.results.to_string_lossy()));
        let data = self.data.data.as_ref().map(|data| flag("--data", &data.to_string_lossy()));
        results.into_iter().chain(data).collect()
    }
}

impl DataFolder {
    /// Where data sets are looked for.
    pub fn root(&self) -> DataRoot {
        DataRoot::discover(self.data.as_deref())
    }
}

fn typed(setting: &Setting) -> String {
    flag("--set", &format!("{}={}", setting.key, setting.value))
}

/// A flag with its value, quoted for a shell where need be, with a space before it.
pub fn flag(name: &str, value: &str) -> String {
    let plain = |letter: char| letter.is_alphanumeric() || "=._-/:,+@%".contains(letter);
    if value.chars().all(plain) {
        format!(" {name} {value}")
    } else {
        format!(" {name} '{}'", value.replace('\'', "'\\''"))
    }
}

/// A grid of one point, described by flags instead of by a file.
#[derive(Args, Debug, Clone)]
pub struct OnePoint {
    /// Data set: one of `tsbd list datasets` [default: the profile's]
    #[arg(long, value_name = "NAME")]
    pub dataset: Option<String>,

    /// Seed of every random choice
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,

    /// Profile that gives the defaults: smoke (seconds per cell), quick (minutes to an hour per cell on two cores), paper (as
    /// published, very long on a CPU)
    #[arg(long, value_name = "NAME", default_value = "quick")]
    pub profile: String,

    /// Set one key as in an experiment file; may be repeated. The value is TOML: 0.05, true, text, [0, 1]
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_setting_of_one_point)]
    pub set: Vec<Setting>,
}

fn parse_setting(text: &str) -> Result<Setting, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() && !value.trim().is_empty() => {
            Ok(Setting::new(key.trim(), value.trim()))
        }
        _ => Err("write it as KEY=VALUE, for example attack.poisoning_ratio=0.05".to_owned()),
    }
}

/// [`parse_setting`], but for what the command line itself names: set as well, something else than it says would be computed.
fn parse_setting_of_one_point(text: &str) -> Result<Setting, String> {
    let setting = parse_setting(text)?;
    // A key that is no TOML is told with its place by who reads the setting.
    let sections = format!("{} = 0", setting.key).parse::<toml::Table>().unwrap_or_default();
    let named = [
        (
            "grid",
            "the command line names the attack and the defense; for a grid, write an experiment file and use `tsbd run`",
        ),
        ("seeds", "the command line names the seed: --seed N"),
        ("profile", "the command line names the profile: --profile NAME"),
    ];
    match named.into_iter().find(|(section, _)| sections.contains_key(*section)) {
        None => Ok(setting),
        Some((_, way_out)) => Err(way_out.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_split_at_its_first_equals_sign() {
        assert_eq!(parse_setting("attack.note = \"a=b\""), Ok(Setting::new("attack.note", "\"a=b\"")));
    }

    #[test]
    fn a_full_gpu_without_cells_is_not_told_to_have_fewer_of_them() {
        for full in
            ["DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")", "CublasError(CUBLAS_STATUS_ALLOC_FAILED)"]
        {
            let way_out = gpu_way_out(full).unwrap();
            assert!(way_out.contains("smaller batch") && !way_out.contains("--cells-per-gpu"), "{way_out}");
        }
        assert_eq!(gpu_way_out("CUDA_ERROR_NO_DEVICE"), tsbd_tensor::gpu_way_out("CUDA_ERROR_NO_DEVICE"));
        assert_eq!(gpu_way_out("the loss is not finite"), None);
    }

    #[test]
    fn flags_are_typed_as_a_shell_reads_them() {
        let set = vec![Setting::new("seeds", "[0, 1]"), Setting::new("defense.clean_ratio", "0.1")];
        let overrides = Overrides { profile: Some("quick".into()), set };
        assert_eq!(overrides.as_typed(), " --profile quick --set 'seeds=[0, 1]' --set defense.clean_ratio=0.1");
    }

    #[test]
    fn what_the_command_line_of_one_point_names_itself_is_not_set() {
        for (text, way_out) in [
            ("grid.attack=[\"none\"]", "`tsbd run`"),
            ("\"grid\" . defense=[\"ft\"]", "`tsbd run`"),
            ("grid={attack = [\"none\"]}", "`tsbd run`"),
            ("seeds=[1]", "--seed N"),
            ("profile=paper", "--profile NAME"),
        ] {
            let refused = parse_setting_of_one_point(text).unwrap_err();
            assert!(refused.contains(way_out), "{text}: {refused}");
            assert!(parse_setting(text).is_ok(), "{text}: an experiment file may be told otherwise");
        }
        for text in ["data.seed=1", "attack.poisoning_ratio=0.05", "table.rows=seed", "a..b=1"] {
            assert_eq!(parse_setting_of_one_point(text), parse_setting(text), "{text}");
        }
    }

    #[test]
    fn a_setting_without_key_or_value_is_refused_with_an_example() {
        for text in ["attack.poisoning_ratio", "=1", "attack.poisoning_ratio="] {
            assert!(parse_setting(text).unwrap_err().contains("attack.poisoning_ratio=0.05"), "{text}");
        }
    }
}
