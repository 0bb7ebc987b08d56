//! The sections `[data]`, `[model]` and `[training]` of a grid point.

use tsbd_data::{DATASETS, DatasetParameters};
use tsbd_models::MODELS;

use super::section::Section;
use crate::diagnostic::{Place, Problems, suggest};
use crate::document::Table;
use crate::parameters::{Augmentation, ModelParameters, Precision, Schedule, TrainingParameters};

pub(super) fn data(root: &Table, start: &Place, problems: &mut Problems) -> Option<DatasetParameters> {
    let known = ["name", "train_images", "test_images", "image_size", "seed"];
    let section = Section::open(root, "data", &known, start, problems);
    let before = problems.len();
    let name = name_of(&section, "a data set", "cifar10", DATASETS.iter().map(|entry| entry.name), problems);
    let train_images = section.integer("train_images", 1, problems);
    let test_images = section.integer("test_images", 1, problems);
    let image_size = section.integer("image_size", 1, problems);
    let seed = section.integer("seed", 0, problems).unwrap_or(0) as u64;
    let parameters = DatasetParameters { name: name?, train_images, test_images, image_size, seed };
    (problems.len() == before).then_some(parameters)
}

pub(super) fn model(root: &Table, start: &Place, problems: &mut Problems) -> Option<ModelParameters> {
    let section = Section::open(root, "model", &["name", "width"], start, problems);
    let before = problems.len();
    let name = name_of(&section, "a network", MODELS[0].name, MODELS.iter().map(|entry| entry.name), problems);
    let width = section.integer("width", 1, problems).unwrap_or(64);
    let parameters = ModelParameters { name: name?, width };
    (problems.len() == before).then_some(parameters)
}

/// A name that must be given and must be in the registry.
fn name_of(
    section: &Section<'_>,
    what: &str,
    example: &str,
    known: impl Iterator<Item = &'static str> + Clone,
    problems: &mut Problems,
) -> Option<String> {
    if section.get("name").is_none() {
        let hint = format!("write name = \"{example}\", or choose a profile that does");
        section.refuse("name", format!("{what} has to be named"), hint, problems);
        return None;
    }
    let name = section.text("name", problems)?;
    if known.clone().any(|known| known == name) {
        return Some(name);
    }
    section.refuse("name", format!("there is no such {}", &what[2..]), suggest(&name, known), problems);
    None
}

/// Keys that belong to one schedule.
const SCHEDULES: &[(&str, &[&str])] = &[
    ("constant", &[]),
    ("cosine", &["t_max"]),
    ("plateau", &["factor", "patience", "threshold"]),
    ("multi-step", &["milestones", "gamma"]),
];

/// Defaults as in BackdoorBench's CIFAR-10 configuration.
pub(super) fn training(root: &Table, start: &Place, problems: &mut Problems) -> Option<TrainingParameters> {
    let mut known = vec![
        "epochs",
        "batch_size",
        "learning_rate",
        "momentum",
        "weight_decay",
        "schedule",
        "augmentation",
        "precision",
    ];
    known.extend(SCHEDULES.iter().flat_map(|(_, keys)| keys.iter().copied()));
    let section = Section::open(root, "training", &known, start, problems);
    let before = problems.len();
    let epochs = section.integer("epochs", 1, problems).unwrap_or(100);
    let batch_size = section.integer("batch_size", 2, problems).unwrap_or(128);
    let learning_rate = section.number("learning_rate", |rate| rate > 0.0, "greater than 0", problems).unwrap_or(0.01);
    let in_range = |momentum: f64| (0.0..1.0).contains(&momentum);
    let momentum = section.number("momentum", in_range, "from 0 to less than 1", problems).unwrap_or(0.9);
    let weight_decay = section.number("weight_decay", |decay| decay >= 0.0, "of at least 0", problems).unwrap_or(5e-4);
    let schedule = schedule(&section, epochs, problems);
    let augmentation = match section.text("augmentation", problems).as_deref() {
        None | Some("standard") => Augmentation::Standard,
        Some("none") => Augmentation::None,
        Some(other) => {
            section.refuse(
                "augmentation",
                "there is no such augmentation",
                suggest(other, ["standard", "none"]),
                problems,
            );
            return None;
        }
    };
    let precision = match section.text("precision", problems) {
        None => Precision::F32,
        Some(name) => {
            let Some(precision) = Precision::from_name(&name) else {
                let hint = suggest(&name, Precision::ALL.map(Precision::name));
                section.refuse("precision", "there is no such precision", hint, problems);
                return None;
            };
            precision
        }
    };
    let parameters = TrainingParameters {
        epochs,
        batch_size,
        learning_rate,
        momentum,
        weight_decay,
        schedule: schedule?,
        augmentation,
        precision,
    };
    (problems.len() == before).then_some(parameters)
}

fn schedule(section: &Section<'_>, epochs: usize, problems: &mut Problems) -> Option<Schedule> {
    let name = section.text("schedule", problems).unwrap_or_else(|| "cosine".to_owned());
    let Some((_, own)) = SCHEDULES.iter().find(|(known, _)| *known == name) else {
        let hint = suggest(&name, SCHEDULES.iter().map(|(name, _)| *name));
        section.refuse("schedule", "there is no such schedule", hint, problems);
        return None;
    };
    for (other, keys) in SCHEDULES {
        for key in keys.iter().filter(|key| !own.contains(key) && section.get(key).is_some()) {
            let reason = format!("belongs to the schedule `{other}`, and the schedule is `{name}`");
            section.refuse(key, reason, format!("remove it, or write schedule = \"{other}\""), problems);
        }
    }
    let factor = |key, default, problems: &mut Problems| {
        let in_range = |factor: f64| factor > 0.0 && factor < 1.0;
        section.number(key, in_range, "between 0 and 1", problems).unwrap_or(default)
    };
    Some(match name.as_str() {
        "constant" => Schedule::Constant,
        "cosine" => Schedule::Cosine { t_max: section.integer("t_max", 1, problems).unwrap_or(epochs) },
        "plateau" => Schedule::Plateau {
            factor: factor("factor", 0.1, problems),
            patience: section.integer("patience", 0, problems).unwrap_or(10),
            threshold: section.number("threshold", |share| share >= 0.0, "of at least 0", problems).unwrap_or(1e-4),
        },
        _ => Schedule::MultiStep {
            milestones: match section.integers("milestones", problems) {
                Some(milestones) if milestones.is_sorted_by(|a, b| a < b) => milestones,
                Some(_) => {
                    section.refuse("milestones", "epochs have to increase", "sort them, each once", problems);
                    return None;
                }
                None => {
                    if section.get("milestones").is_none() {
                        let hint = "write milestones = [50, 75]";
                        section.refuse("milestones", "the schedule `multi-step` needs it", hint, problems);
                    }
                    return None;
                }
            },
            gamma: factor("gamma", 0.1, problems),
        },
    })
}
