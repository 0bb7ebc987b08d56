//! WaNet: the image is warped by a smooth field that no eye notices.
//!
//! A. Nguyen, A. Tran, "WaNet - Imperceptible Warping-based Backdoor Attack", ICLR 2021 (arXiv 2102.10369), in the form
//! of BackdoorBench's `attack/wanet.py`.
//!
//! The attack controls the training. In each batch the first images are warped by the one field of the seed and get the
//! attacker's label; the next ones, [`Parameters::cross_ratio`] times as many, are warped with fresh noise on top and keep
//! theirs, so that the field itself is learned and not warping as such. Then the whole batch is cropped, rotated and
//! mirrored as one ([`augmentation`]). Test images are warped once, before training, and stored with 8 bits.

pub mod augmentation;
pub mod warp;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tsbd_attack::control::{batch_sizes, check_batches, poisoned_in_batch, shuffled, triggered_test};
use tsbd_attack::parameters::{join, read};
use tsbd_attack::{
    Attack, AttackEntry, ControlledTraining, DatasetFacts, Error, Material, ParameterError, PoisonFacts, Poisoner,
    Poisoning, ScheduleChoice, TrainingControl, TrainingFacts, TrainingPlan, TrainingSource,
};
use tsbd_data::{Dataset, ImageSource, Loader, Picture};
use tsbd_nn::{Batch, BatchSource, CrossEntropyStep, Model, RandomStream, Step, StepRule, Streams, TrainingConfig};
use tsbd_tensor::Tensor;

use augmentation::BatchAugmentation;
use warp::{Strength, Warp};

/// The registry's entry.
pub static WANET: AttackEntry = AttackEntry {
    name: "wanet",
    title: "WaNet",
    paper: "Nguyen and Tran, ICLR 2021, arXiv 2102.10369",
    summary: "the image is warped by a smooth field; controls the training",
    revision: 1,
    schema: || schemars::schema_for!(Parameters),
    configure,
};

/// WaNet's own parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// Mean displacement in half pixels; greater than 0.
    pub strength: f64,
    /// Points per side of the field of random displacements that is interpolated to every pixel; at least 2.
    pub grid_size: usize,
    /// Factor on the warped coordinates, which zooms the image about its middle; greater than 0.
    pub grid_rescale: f64,
    /// Images per poisoned one that are warped with noise and keep their label; at least 0.
    pub cross_ratio: f64,
    /// Epochs of training; those of the profile if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// Schedule of the learning rate: `reference` or `profile`.
    pub schedule: ScheduleChoice,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters {
            strength: 0.5,
            grid_size: 4,
            grid_rescale: 1.0,
            cross_ratio: 2.0,
            epochs: None,
            schedule: ScheduleChoice::Reference,
        }
    }
}

/// The attack, checked.
#[derive(Debug, Clone)]
pub struct WaNet {
    poisoning: Poisoning,
    parameters: Parameters,
}

fn configure(poisoning: &Poisoning, own: Value) -> Result<Box<dyn Attack>, ParameterError> {
    poisoning.check_ranges()?;
    let parameters: Parameters = read(&own)?;
    for (field, factor) in [("strength", parameters.strength), ("grid_rescale", parameters.grid_rescale)] {
        ParameterError::unless_positive(field, factor)?;
        ParameterError::unless_within(field, factor, 0.0, 1e3)?;
    }
    ParameterError::unless_within("cross_ratio", parameters.cross_ratio, 0.0, 1e6)?;
    ParameterError::unless_nonzero("epochs", parameters.epochs.unwrap_or(1))?;
    if !(2..=1024).contains(&parameters.grid_size) {
        let way_out = "give a whole number from 2 to 1024";
        return Err(ParameterError::new("grid_size", parameters.grid_size, "out of range", way_out));
    }
    let share = poisoning.poisoning_ratio * (1.0 + parameters.cross_ratio);
    if share > 1.0 {
        return Err(ParameterError::new(
            "cross_ratio",
            parameters.cross_ratio,
            format!("poisoned and noisy images are {share} times a batch"),
            format!("give at most {}, or poison fewer images", 1.0 / poisoning.poisoning_ratio - 1.0),
        ));
    }
    Ok(Box::new(WaNet { poisoning: poisoning.clone(), parameters }))
}

impl Attack for WaNet {
    fn parameters(&self) -> Value {
        join(&self.poisoning, &self.parameters)
    }

    fn check(&self, dataset: &DatasetFacts) -> Result<(), ParameterError> {
        self.poisoning.check(dataset)
    }

    fn check_training(&self, training: &TrainingFacts) -> Result<(), ParameterError> {
        check_batches(&self.poisoning, training)
    }

    fn clean_epochs(&self, profile_epochs: usize) -> usize {
        self.parameters.epochs.unwrap_or(profile_epochs)
    }

    fn image_passes(&self, images: usize, profile_epochs: usize) -> f64 {
        images as f64 * self.clean_epochs(profile_epochs) as f64
    }

    fn prepare(&self, clean: &Arc<Dataset>, streams: &Streams, _: Option<&Material>) -> Result<Poisoner, Error> {
        let Parameters { strength, grid_size, grid_rescale, .. } = self.parameters;
        let field = warp::draw_field(grid_size, &mut streams.stream("wanet/field", 0));
        let warp = Arc::new(Warp::new(&field, clean.train.height(), Strength { strength, grid_rescale }));
        let test = triggered_test(clean, &self.poisoning, |images| Ok(warp.apply(images)?))?;
        let facts = PoisonFacts { poison_count: None, poison_per_class: vec![], asr_denominator: test.len() };
        let control =
            Control { attack: self.clone(), warp, clean: Arc::clone(clean), streams: *streams, facts: facts.clone() };
        Ok(Poisoner { train: TrainingSource::Controlled(Arc::new(control)), test: Some(test), facts })
    }

    fn trigger_picture(&self, _: usize, _: usize, _: Option<&Material>) -> Result<Option<Picture>, Error> {
        Ok(None)
    }
}

/// The attack on one data set.
#[derive(Debug)]
struct Control {
    attack: WaNet,
    warp: Arc<Warp>,
    clean: Arc<Dataset>,
    streams: Streams,
    facts: PoisonFacts,
}

impl TrainingControl for Control {
    fn begin(&self, plan: &TrainingPlan) -> Result<Box<dyn ControlledTraining>, Error> {
        let Parameters { cross_ratio, epochs, schedule, .. } = self.attack.parameters;
        let poisoning = &self.attack.poisoning;
        check_batches(poisoning, &TrainingFacts { epochs: plan.config.epochs, batch_size: plan.batch_size })?;
        let count = batch_sizes(self.clean.train.len(), plan.batch_size)
            .map(|size| poisoned_in_batch(poisoning.poisoning_ratio, size))
            .sum();
        let batches = WarpedBatches {
            clean: shuffled(&self.clean, plan, false, self.streams, "train"),
            warp: Arc::clone(&self.warp),
            poisoning: poisoning.clone(),
            classes: self.clean.classes(),
            cross_ratio,
            augment: plan.augment,
            may_flip: self.clean.flip,
            streams: self.streams,
        };
        Ok(Box::new(Training {
            attack: self.attack.clone(),
            config: schedule.configure(&plan.config, epochs.unwrap_or(plan.config.epochs), 0),
            batches: Arc::new(batches),
            facts: PoisonFacts { poison_count: Some(count), ..self.facts.clone() },
        }))
    }
}

/// Batches of clean images, some of which are warped.
struct WarpedBatches {
    clean: Loader,
    warp: Arc<Warp>,
    poisoning: Poisoning,
    classes: usize,
    cross_ratio: f64,
    augment: bool,
    may_flip: bool,
    streams: Streams,
}

impl WarpedBatches {
    fn poison(&self, batch: Batch, random: &mut RandomStream) -> tsbd_nn::Result<Batch> {
        let size = batch.len();
        let poisoned = poisoned_in_batch(self.poisoning.poisoning_ratio, size);
        let cross = ((poisoned as f64 * self.cross_ratio) as usize).min(size - poisoned);
        let mut labels = batch.labels.to_vec1::<u32>()?;
        for label in &mut labels[..poisoned] {
            *label = self.poisoning.given_label(*label, self.classes);
        }
        let mut parts = vec![];
        if poisoned > 0 {
            parts.push(self.warp.apply(&batch.images.narrow(0, 0, poisoned)?)?);
        }
        if cross > 0 {
            let images = batch.images.narrow(0, poisoned, cross)?;
            parts.push(self.warp.apply_noisily(&images, || random.uniform() as f32)?);
        }
        if poisoned + cross < size {
            parts.push(batch.images.narrow(0, poisoned + cross, size - poisoned - cross)?);
        }
        let mut images = Tensor::cat(&parts, 0)?;
        if self.augment {
            images = BatchAugmentation::draw(self.may_flip, random).apply(&images)?;
        }
        let labels = Tensor::from_vec(labels, size, batch.labels.device())?;
        Ok(Batch { images, labels, indices: batch.indices })
    }
}

impl BatchSource for WarpedBatches {
    fn images_per_epoch(&self) -> usize {
        self.clean.images_per_epoch()
    }

    fn batches_per_epoch(&self) -> usize {
        self.clean.batches_per_epoch()
    }

    fn epoch<'a>(&'a self, epoch: usize) -> Box<dyn Iterator<Item = tsbd_nn::Result<Batch>> + 'a> {
        let mut random = self.streams.stream("wanet/batches", epoch as u64);
        Box::new(self.clean.epoch(epoch).map(move |batch| self.poison(batch?, &mut random)))
    }
}

/// One training: plain cross-entropy on the warped batches.
struct Training {
    attack: WaNet,
    config: TrainingConfig,
    batches: Arc<WarpedBatches>,
    facts: PoisonFacts,
}

impl StepRule for Training {
    fn compute(&mut self, model: &Model, batch: &Batch) -> tsbd_nn::Result<Step> {
        CrossEntropyStep::default().compute(model, batch)
    }

    fn plain(&self) -> Option<CrossEntropyStep> {
        Some(CrossEntropyStep::default())
    }

    fn describe(&self) -> String {
        format!("{:?}, augmented {}", self.attack, self.batches.augment)
    }
}

impl ControlledTraining for Training {
    fn config(&self) -> &TrainingConfig {
        &self.config
    }

    fn batches(&self) -> Arc<dyn BatchSource> {
        Arc::clone(&self.batches) as _
    }

    fn facts(&self) -> PoisonFacts {
        self.facts.clone()
    }
}

#[cfg(test)]
mod tests;
