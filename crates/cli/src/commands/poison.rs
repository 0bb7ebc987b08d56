//! `tsbd poison`: the poisoned images as PNG files with a manifest. Nothing is trained, unless the attack starts from a
//! trained model.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;
use tsbd_attack::{TrainingSource, export};

use crate::command_line::examples;
use crate::commands::data;
use crate::failure::{Exit, Failure, Outcome};
use crate::options::{Folders, LearnedTrigger, OnePoint, OpenDevice};
use crate::planning;
use crate::terminal::{self, Talk};
use crate::workbench::{self, Workbench};

/// Write the poisoned images of an attack as PNG files with a manifest
///
/// They are the images that `tsbd attack` would train on, or measure with. manifest.csv has the columns
/// file,index,original_label,given_label; `index` counts in the clean data set.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd poison badnets --split train --out poisoned --dataset shapes"
    "tsbd poison blended --split test --out triggered --export-trigger trigger.png"
    "tsbd poison badnets --split train --out poisoned --set attack.poisoning_ratio=0.01"
))]
pub struct Arguments {
    /// Attack: one of `tsbd list attacks`
    name: String,

    /// Which images: the poisoned training images, or the triggered test images
    #[arg(long, value_enum)]
    split: Split,

    /// Folder for the images and manifest.csv; it must be empty or new
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Write the trigger as a PNG picture too
    #[arg(long, value_name = "FILE")]
    export_trigger: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    learned_trigger: LearnedTrigger,

    #[command(flatten)]
    point: OnePoint,

    #[command(flatten)]
    folders: Folders,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Split {
    /// The poisoned training images
    Train,
    /// The test images that the attack success rate is a share of
    Test,
}

/// Height and width for which an attack is asked whether its trigger is a picture at all.
const ANY_SIZE: usize = 32;

/// Writes the images.
pub fn run(arguments: Arguments, talk: &Talk) -> Outcome {
    let Arguments { name, split, out, export_trigger, json, learned_trigger, point, folders } = arguments;
    if out.is_file() {
        return Err(
            Failure::refused(format!("--out {}: a file has this name", out.display())).hint("give a new folder")
        );
    }
    if fs_err::read_dir(&out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Failure::refused(format!("--out {}: the folder is not empty", out.display()))
            .hint("give a new folder, so that images of different attacks do not mix"));
    }
    if let (Split::Train, Some(path)) = (split, learned_trigger.named()) {
        let path = path.display();
        return Err(Failure::refused(format!("--learned-trigger {path}: training images show no learned trigger"))
            .hint("leave the flag out, or ask for --split test"));
    }
    let plan = planning::one_point(&name, "none", &point, &folders.data.root())?;
    let no_picture = || {
        Failure::refused(format!(
            "--export-trigger: the trigger of \"{name}\" is no picture: what it changes depends on the image"
        ))
        .hint("leave the flag out; the images themselves show what becomes of each")
    };
    // Asked before anything is made that the attack starts from: without that, an attack says the same or that it lacks it.
    let attack = workbench::attack(&plan)?;
    if export_trigger.is_some() && matches!(attack.trigger_picture(ANY_SIZE, ANY_SIZE, None), Ok(None)) {
        return Err(no_picture());
    }
    let workbench = Workbench::of(&plan, &folders, OpenDevice::cpu(), talk)?;
    let poisoner = match split {
        Split::Train => workbench.prepare()?,
        Split::Test => workbench.poison(&learned_trigger, None)?,
    };
    let trigger = match &export_trigger {
        None => None,
        Some(path) => {
            let picture = workbench.attack.trigger_picture(workbench.size, workbench.size, workbench.material.as_ref());
            Some((path, picture.map_err(workbench::failed)?.ok_or_else(no_picture)?))
        }
    };
    // Before the images: where it cannot be written, no folder is left that would be in the way of another try.
    if let Some((path, picture)) = trigger {
        let size = (picture.height, picture.width);
        tsbd_data::write_png(path, &picture.pixels, size).map_err(data::failure)?;
    }
    let no_trigger = || {
        Failure::refused(format!("the attack \"{name}\" changes no image"))
            .hint("`tsbd list attacks` has those that do")
    };
    let count = match split {
        Split::Train => match &poisoner.train {
            TrainingSource::Static(images) if images.poisoned().is_empty() => return Err(no_trigger()),
            TrainingSource::Static(images) => export::write_train(images, &out),
            TrainingSource::Controlled(_) => {
                return Err(Failure::refused(format!(
                    "\"{name}\" has no poisoned training images: it poisons other images of each batch while it trains"
                ))
                .hint("--split test writes its triggered test images"));
            }
        },
        Split::Test => export::write_test(poisoner.test.as_ref().ok_or_else(no_trigger)?, &out),
    };
    let count = count.map_err(workbench::failed)?;
    let manifest = out.join("manifest.csv");
    if json {
        terminal::print_json(&json!({
            "attack": name, "dataset": workbench.dataset.name, "images": count, "manifest": manifest,
            "trigger": export_trigger, "parameters": workbench.attack.parameters(), "facts": poisoner.facts,
        }));
    } else {
        terminal::print(&format!("{count} images and {}\n", manifest.display()));
    }
    Ok(Exit::Done)
}
