//! Attacks that control the training ("training-controllable" in BackdoorBench): the trigger is put on normalised
//! batches while the model learns, and may itself be learned with it.
//!
//! Such an attack is a step rule of the one training loop, with batches of its own making: see [`ControlledTraining`].
//! The images that ASR is measured on are 8-bit all the same ([`triggered_test`]).

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tsbd_data::{Dataset, Loader, Order, Subset};
use tsbd_nn::{BatchSource, Schedule, StepRule, Streams, TrainingConfig};
use tsbd_tensor::{Device, Tensor};

use crate::Error;
use crate::entry::PoisonFacts;
use crate::overlay::TriggeredTest;
use crate::parameters::{ParameterError, Poisoning};

/// Name of the file beside a model in which its training left the trigger it learned.
pub const LEARNED_TRIGGER: &str = "attack.safetensors";

/// What is known of the training when an experiment is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainingFacts {
    /// Passes over the training images.
    pub epochs: usize,
    /// Images per step, at most as many as there are.
    pub batch_size: usize,
}

/// How the profile would train, before the attack has its say.
#[derive(Debug, Clone)]
pub struct TrainingPlan {
    /// Epochs, optimiser and schedule.
    pub config: TrainingConfig,
    /// Images per step.
    pub batch_size: usize,
    /// Whether training images are augmented at all; in which way is the attack's choice.
    pub augment: bool,
    /// Where the model is.
    pub device: Device,
}

/// An attack that controls the training, for one data set and one seed.
pub trait TrainingControl: Send + Sync + Debug {
    /// Begins a training. Everything in it depends on the seed and on `plan` alone.
    fn begin(&self, plan: &TrainingPlan) -> Result<Box<dyn ControlledTraining>, Error>;

    /// The trigger, if it is learned together with the model.
    fn learned(&self) -> Option<&dyn LearnedTrigger> {
        None
    }
}

/// A trigger that is known only after a training.
pub trait LearnedTrigger {
    /// The triggered test images of the trigger that [`ControlledTraining::save_trigger`] wrote to `path`.
    fn triggered_test(&self, path: &Path) -> Result<Arc<TriggeredTest>, Error>;
}

/// One training under an attack's control. As a step rule it makes the gradients of the model and, where it learns its
/// trigger, trains that beside the model or in epochs before it; its state is part of every checkpoint.
pub trait ControlledTraining: StepRule {
    /// Epochs (those of the preparation among them), optimiser and schedule of the model.
    fn config(&self) -> &TrainingConfig;

    /// The batches that the step rule is to be given.
    fn batches(&self) -> Arc<dyn BatchSource>;

    /// How many images are poisoned.
    fn facts(&self) -> PoisonFacts;

    /// Writes the learned trigger to `path`; nothing where none is learned.
    fn save_trigger(&self, _path: &Path) -> Result<(), Error> {
        Ok(())
    }
}

/// Images per batch when test images are triggered. Part of the result only through rounding, and so fixed.
const TEST_BATCH: usize = 128;

/// The test images that count for ASR, triggered by `trigger` as normalised batches `f32` `[batch, height, width, 3]` and
/// stored with 8 bits, as BackdoorBench stores them ([`tsbd_data::Normalization::truncated_levels`]).
pub fn triggered_test(
    clean: &Dataset,
    poisoning: &Poisoning,
    trigger: impl Fn(&Tensor) -> Result<Tensor, Error>,
) -> Result<Arc<TriggeredTest>, Error> {
    let indices = TriggeredTest::indices(&clean.test, poisoning).into_iter().map(|index| index as u32).collect();
    let source = Arc::new(Subset::new(Arc::clone(&clean.test) as _, indices));
    let mut pixels = Vec::new();
    for batch in Loader::evaluation(source, clean.normalization, TEST_BATCH).into_epoch(0) {
        let triggered = trigger(&batch?.images)?.flatten_all().map_err(tsbd_nn::Error::from)?;
        let values = triggered.to_vec1::<f32>().map_err(tsbd_nn::Error::from)?;
        pixels.extend(clean.normalization.truncated_levels(&values));
    }
    Ok(Arc::new(TriggeredTest::from_pixels(Arc::clone(&clean.test), pixels, poisoning, clean.classes())))
}

/// The training images in batches as controlled attacks see them: shuffled under `purpose`, the last, smaller batch
/// included, augmented as the data set usually is or not at all.
pub fn shuffled(clean: &Dataset, plan: &TrainingPlan, augment: bool, streams: Streams, purpose: &str) -> Loader {
    Loader {
        source: Arc::clone(&clean.train) as _,
        normalization: clean.normalization,
        augmentation: augment.then(|| clean.augmentation()),
        batch_size: plan.batch_size,
        order: Order::Shuffled(purpose.to_owned()),
        drop_last: false,
        streams,
        device: plan.device.clone(),
    }
}

/// How many images of a batch are poisoned: `int(ratio * batch)`, in `f64` as Python computes it.
pub fn poisoned_in_batch(ratio: f64, batch: usize) -> usize {
    (ratio * batch as f64) as usize
}

/// Refuses a training in which no full batch has a poisoned image.
pub fn check_batches(poisoning: &Poisoning, training: &TrainingFacts) -> Result<(), ParameterError> {
    let (ratio, batch) = (poisoning.poisoning_ratio, training.batch_size);
    if poisoned_in_batch(ratio, batch) > 0 {
        return Ok(());
    }
    let reason = format!("poisons int({ratio} * {batch}) = 0 images of each batch of {batch}");
    let way_out = format!("give at least {}, or larger batches", 1.0 / batch.max(1) as f64);
    Err(ParameterError::new("poisoning_ratio", ratio, reason, way_out))
}

/// The number of images in each batch of an epoch.
pub fn batch_sizes(images: usize, batch_size: usize) -> impl Iterator<Item = usize> {
    (0..images).step_by(batch_size.max(1)).map(move |start| batch_size.min(images - start))
}

/// How the model's learning rate changes in a controlled training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleChoice {
    /// As BackdoorBench configures these attacks, whatever it does for others: multiplied by 0.1 at the model's epochs
    /// 100, 200, 300 and 400, so constant in a shorter training.
    #[default]
    Reference,
    /// As the profile says for every attack. A cosine that would end with the profile's epochs ends with the model's.
    Profile,
}

impl ScheduleChoice {
    /// The profile's configuration with this schedule, for `epochs` epochs of which the first `preparation` are not the
    /// model's.
    pub fn configure(self, profile: &TrainingConfig, epochs: usize, preparation: usize) -> TrainingConfig {
        let schedule = match (self, &profile.schedule) {
            (ScheduleChoice::Reference, _) => Schedule::MultiStep { milestones: vec![100, 200, 300, 400], gamma: 0.1 },
            (ScheduleChoice::Profile, Schedule::Cosine { t_max }) if *t_max == profile.epochs => {
                Schedule::Cosine { t_max: epochs - preparation }
            }
            (ScheduleChoice::Profile, schedule) => schedule.clone(),
        };
        TrainingConfig { epochs, schedule, ..profile.clone() }
    }
}

#[cfg(test)]
mod tests {
    use tsbd_data::{ImageSource, Images, Normalization};
    use tsbd_nn::{Precision, SgdConfig};

    use super::*;
    use crate::parameters::LabelRule;

    #[test]
    fn poisoned_images_of_a_batch_are_counted_as_python_counts_them() {
        assert_eq!([128, 80, 9, 10].map(|batch| poisoned_in_batch(0.1, batch)), [12, 8, 0, 1]);
        // CIFAR-10 in batches of 128: 390 full ones and one of 80.
        let sizes: Vec<usize> = batch_sizes(50_000, 128).collect();
        assert_eq!((sizes.len(), sizes[389], sizes[390]), (391, 128, 80));
        assert_eq!(sizes.iter().map(|&size| poisoned_in_batch(0.1, size)).sum::<usize>(), 4_688);
    }

    #[test]
    fn a_ratio_that_poisons_no_image_of_a_batch_is_refused_with_one_that_does() {
        let check = |ratio| {
            let poisoning = Poisoning { poisoning_ratio: ratio, ..Poisoning::default() };
            check_batches(&poisoning, &TrainingFacts { epochs: 1, batch_size: 128 })
        };
        assert!(check(0.1).is_ok() && check(0.0078125).is_ok());
        let error = check(0.005).unwrap_err();
        assert_eq!(
            (error.field.as_str(), error.way_out.as_str()),
            ("poisoning_ratio", "give at least 0.0078125, or larger batches")
        );
    }

    #[test]
    fn the_reference_schedule_is_constant_for_a_hundred_epochs_and_a_profiles_cosine_ends_with_the_model() {
        let sgd = SgdConfig { learning_rate: 0.1, momentum: 0.9, weight_decay: 0.0 };
        let schedule = Schedule::Cosine { t_max: 10 };
        let profile = TrainingConfig { epochs: 10, sgd, schedule, precision: Precision::F32 };
        let cosine = ScheduleChoice::Profile.configure(&profile, 16, 4);
        assert_eq!((cosine.epochs, cosine.schedule), (16, Schedule::Cosine { t_max: 12 }));
        let longer = TrainingConfig { schedule: Schedule::Cosine { t_max: 100 }, ..profile.clone() };
        assert_eq!(ScheduleChoice::Profile.configure(&longer, 16, 4).schedule, Schedule::Cosine { t_max: 100 });
        let reference = ScheduleChoice::Reference.configure(&profile, 10, 0);
        assert!(matches!(reference.schedule, Schedule::MultiStep { ref milestones, .. } if milestones[0] == 100));
    }

    #[test]
    fn triggered_test_images_are_those_that_count_cut_off_to_8_bits_in_the_clean_sets_order() {
        let pixels: Vec<u8> = (0..200u32 * 12).map(|value| (value * 7 % 251) as u8).collect();
        let labels = (0..200).map(|index| index % 3).collect();
        let test = Images::new(pixels, labels, (2, 2), 3);
        let train = Images::new(vec![0; 12], vec![0], (2, 2), 3);
        let normalization = Normalization { mean: [0.5; 3], std: [0.25; 3] };
        let clean = Dataset::new("test", train, test, &["a", "b", "c"], normalization, false);
        for labels in [LabelRule::AllToOne, LabelRule::AllToAll] {
            let poisoning = Poisoning { target_class: 1, labels, ..Poisoning::default() };
            // Half a level is added: cut off, every image stays as it is.
            let half = 0.5 / 255.0 / 0.25;
            let unchanged = triggered_test(&clean, &poisoning, |images| Ok((images + half).unwrap())).unwrap();
            let expected = if labels == LabelRule::AllToOne { 133 } else { 200 };
            assert_eq!(unchanged.len(), expected);
            for position in 0..unchanged.len() {
                let index = unchanged.index(position);
                assert_eq!(unchanged.image(position), clean.test.image(index));
                assert_eq!(unchanged.label(position), poisoning.given_label(clean.test.label(index), 3));
            }
        }
    }
}
