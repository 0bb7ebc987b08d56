//! Input-aware: every image has a trigger of its own, made by a network that is trained with the classifier.
//!
//! A. Nguyen, A. Tran, "Input-Aware Dynamic Backdoor Attack", NeurIPS 2020 (arXiv 2010.08138), in the form of
//! BackdoorBench's `attack/inputaware.py`.
//!
//! One generator makes a pattern of an image, another a mask that says where the pattern shows; the triggered image is
//! `image + (pattern - image) * mask`. The attack controls the training, in two phases:
//!
//! 1. the mask generator is trained alone: masks small, and different for different images;
//! 2. classifier and pattern generator are trained together. In each batch the first images get their own trigger and the
//!    attacker's label; as many others get the trigger of some *other* image and keep their label, so that a trigger works
//!    on its own image alone; patterns of different images are driven apart.
//!
//! Images are triggered as normalised numbers; test images are stored with 8 bits after training. The trained generators
//! are left beside the model, so that whoever measures it can trigger images.

pub mod generator;
pub mod losses;
pub mod networks;
mod training;

use std::path::Path;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tsbd_attack::control::{batch_sizes, poisoned_in_batch, shuffled, triggered_test};
use tsbd_attack::parameters::{join, read};
use tsbd_attack::{
    Attack, AttackEntry, ControlledTraining, DatasetFacts, Error, LearnedTrigger, Material, ParameterError,
    PoisonFacts, Poisoner, Poisoning, ScheduleChoice, TrainingControl, TrainingFacts, TrainingPlan, TrainingSource,
    TriggeredTest,
};
use tsbd_data::{Dataset, ImageSource, Picture};
use tsbd_nn::Streams;

use networks::Networks;
use training::{Setup, Training};

/// The registry's entry.
pub static INPUT_AWARE: AttackEntry = AttackEntry {
    name: "input-aware",
    title: "Input-aware",
    paper: "Nguyen and Tran, NeurIPS 2020, arXiv 2010.08138",
    summary: "a pattern of its own for every image, made by a network; controls the training",
    revision: 1,
    schema: || schemars::schema_for!(Parameters),
    configure,
};

/// What becomes of the pattern generator's gradients after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GeneratorGradients {
    /// They are never cleared, so that each step goes along the sum of all gradients so far: what the reference does.
    #[default]
    Accumulated,
    /// They are cleared, as for every other network.
    Cleared,
}

/// Input-aware's own parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// Share of an image that a mask may cover before it costs anything, 0 to 1.
    pub mask_density: f64,
    /// Weight of a mask's excess over that share; at least 0.
    pub lambda_norm: f64,
    /// Weight of the terms that drive masks and patterns of different images apart; at least 0. The masks' term has its
    /// square, as in the reference.
    pub lambda_div: f64,
    /// Learning rate of the pattern generator (Adam); greater than 0. A tenth from the classifier's epochs 200, 300, 400
    /// and 500 on.
    pub pattern_learning_rate: f64,
    /// Learning rate of the mask generator (Adam); greater than 0. A tenth after 2/5 and again after 4/5 of its epochs.
    pub mask_learning_rate: f64,
    /// `accumulated` or `cleared`.
    pub generator_gradients: GeneratorGradients,
    /// Channels of the generators' first layer; at least 1.
    pub generator_width: usize,
    /// Epochs in which the mask generator is trained, at the beginning of all epochs; the classifier gets the others. A
    /// quarter of all, rounded up, if not given: 25 of the 100 on CIFAR-10, which is what the reference has for every data
    /// set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_epochs: Option<usize>,
    /// Epochs of training, the mask generator's included; those of the profile if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// Schedule of the classifier's learning rate: `reference` or `profile`.
    pub schedule: ScheduleChoice,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters {
            mask_density: 0.032,
            lambda_norm: 100.0,
            lambda_div: 1.0,
            pattern_learning_rate: 0.01,
            mask_learning_rate: 0.01,
            generator_gradients: GeneratorGradients::Accumulated,
            generator_width: 32,
            mask_epochs: None,
            epochs: None,
            schedule: ScheduleChoice::Reference,
        }
    }
}

impl Parameters {
    /// All epochs, and those of the mask generator among them, in a profile of `profile_epochs`.
    fn epochs(&self, profile_epochs: usize) -> Result<(usize, usize), ParameterError> {
        let epochs = self.epochs.unwrap_or(profile_epochs);
        let mask_epochs = self.mask_epochs.unwrap_or(epochs.div_ceil(4));
        if mask_epochs < epochs {
            return Ok((epochs, mask_epochs));
        }
        let reason = format!("leaves the classifier none of {epochs} epochs");
        Err(ParameterError::new("mask_epochs", mask_epochs, reason, "give fewer, or more epochs in all"))
    }
}

/// The attack, checked.
#[derive(Debug, Clone)]
pub struct InputAware {
    poisoning: Poisoning,
    parameters: Parameters,
}

fn configure(poisoning: &Poisoning, own: Value) -> Result<Box<dyn Attack>, ParameterError> {
    poisoning.check_ranges()?;
    if poisoning.poisoning_ratio > 0.5 {
        return Err(ParameterError::new(
            "poisoning_ratio",
            poisoning.poisoning_ratio,
            "as many images again get the trigger of another image",
            "give at most 0.5",
        ));
    }
    let parameters: Parameters = read(&own)?;
    ParameterError::unless_within("mask_density", parameters.mask_density, 0.0, 1.0)?;
    for (field, weight) in [("lambda_norm", parameters.lambda_norm), ("lambda_div", parameters.lambda_div)] {
        ParameterError::unless_within(field, weight, 0.0, 1e9)?;
    }
    ParameterError::unless_positive("pattern_learning_rate", parameters.pattern_learning_rate)?;
    ParameterError::unless_positive("mask_learning_rate", parameters.mask_learning_rate)?;
    ParameterError::unless_width("generator_width", parameters.generator_width)?;
    ParameterError::unless_nonzero("mask_epochs", parameters.mask_epochs.unwrap_or(1))?;
    ParameterError::unless_nonzero("epochs", parameters.epochs.unwrap_or(1))?;
    Ok(Box::new(InputAware { poisoning: poisoning.clone(), parameters }))
}

impl Attack for InputAware {
    fn parameters(&self) -> Value {
        join(&self.poisoning, &self.parameters)
    }

    fn check(&self, dataset: &DatasetFacts) -> Result<(), ParameterError> {
        if dataset.size < 16 || !dataset.size.is_multiple_of(8) {
            return Err(ParameterError::new(
                "image_size",
                dataset.size,
                "the generators halve an image three times, to more than one pixel, and double it again",
                "set data.image_size to a multiple of 8 that is at least 16",
            ));
        }
        self.poisoning.check(dataset)
    }

    fn check_training(&self, training: &TrainingFacts) -> Result<(), ParameterError> {
        self.parameters.epochs(training.epochs).map(|_| ())
    }

    fn clean_epochs(&self, profile_epochs: usize) -> usize {
        match (self.parameters.epochs, self.parameters.epochs(profile_epochs)) {
            (Some(_), Ok((epochs, mask_epochs))) => epochs - mask_epochs,
            _ => profile_epochs,
        }
    }

    /// Twice the classifier's: the generators are trained as well.
    fn image_passes(&self, images: usize, profile_epochs: usize) -> f64 {
        2.0 * images as f64 * self.parameters.epochs.unwrap_or(profile_epochs) as f64
    }

    fn prepare(&self, clean: &Arc<Dataset>, streams: &Streams, _: Option<&Material>) -> Result<Poisoner, Error> {
        let asr_denominator = TriggeredTest::indices(&clean.test, &self.poisoning).len();
        let facts = PoisonFacts { poison_count: None, poison_per_class: vec![], asr_denominator };
        let control = Control { attack: self.clone(), clean: Arc::clone(clean), streams: *streams };
        Ok(Poisoner { train: TrainingSource::Controlled(Arc::new(control)), test: None, facts })
    }

    fn trigger_picture(&self, _: usize, _: usize, _: Option<&Material>) -> Result<Option<Picture>, Error> {
        Ok(None)
    }
}

/// How many images an epoch poisons; of a batch in which a coin decides, the mean.
fn poisoned_in_epoch(ratio: f64, images: usize, batch_size: usize) -> usize {
    let in_batch = |size| match poisoned_in_batch(ratio, size) {
        0 => ratio * size as f64,
        count => count as f64,
    };
    batch_sizes(images, batch_size).map(in_batch).sum::<f64>().round() as usize
}

/// The attack on one data set.
#[derive(Debug)]
struct Control {
    attack: InputAware,
    clean: Arc<Dataset>,
    streams: Streams,
}

impl TrainingControl for Control {
    fn begin(&self, plan: &TrainingPlan) -> Result<Box<dyn ControlledTraining>, Error> {
        let InputAware { poisoning, parameters } = &self.attack;
        let (epochs, mask_epochs) = parameters.epochs(plan.config.epochs)?;
        let loader = |purpose| shuffled(&self.clean, plan, plan.augment, self.streams, purpose);
        let facts = PoisonFacts {
            poison_count: Some(poisoned_in_epoch(poisoning.poisoning_ratio, self.clean.train.len(), plan.batch_size)),
            poison_per_class: vec![],
            asr_denominator: TriggeredTest::indices(&self.clean.test, poisoning).len(),
        };
        let setup = Setup {
            config: parameters.schedule.configure(&plan.config, epochs, mask_epochs),
            mask_epochs,
            parameters: parameters.clone(),
            poisoning: poisoning.clone(),
            classes: self.clean.classes(),
            normalization: self.clean.normalization,
            streams: self.streams,
            loader: loader("train"),
            others: loader("input-aware/others"),
            facts,
        };
        let networks = Networks::initial(parameters.generator_width, &self.streams)?.to_device(&plan.device)?;
        Ok(Box::new(Training::new(setup, networks)?))
    }

    fn learned(&self) -> Option<&dyn LearnedTrigger> {
        Some(self)
    }
}

impl LearnedTrigger for Control {
    fn triggered_test(&self, path: &Path) -> Result<Arc<TriggeredTest>, Error> {
        let InputAware { poisoning, parameters } = &self.attack;
        let networks = Networks::load(parameters.generator_width, path)?;
        triggered_test(&self.clean, poisoning, |images| Ok(networks.triggered(images, &self.clean.normalization)?))
    }
}

#[cfg(test)]
mod tests;
