//! What an attack is: its entry in the registry, its checked form, and what it makes of a clean data set.

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tsbd_data::{Dataset, Picture};
use tsbd_nn::random::Streams;

use crate::Error;
use crate::control::{LearnedTrigger, TrainingControl, TrainingFacts};
use crate::groundwork::{Groundwork, Material};
use crate::overlay::{PoisonedImages, TriggeredTest};
use crate::parameters::{self, DatasetFacts, ParameterError, Poisoning};

/// Makes a checked attack of the shared and of its own parameters.
pub type Configure = fn(&Poisoning, Value) -> Result<Box<dyn Attack>, ParameterError>;

/// One attack in the registry.
pub struct AttackEntry {
    /// Name as the user writes it, e.g. `badnets`.
    pub name: &'static str,
    /// Name as papers print it, e.g. `BadNets`.
    pub title: &'static str,
    /// Where it was published.
    pub paper: &'static str,
    /// One sentence: what the attack does to an image.
    pub summary: &'static str,
    /// Raised whenever results of the same parameters change; part of a cell's key.
    pub revision: u32,
    /// JSON schema of the attack's own parameters (without the shared ones of [`Poisoning`]).
    pub schema: fn() -> schemars::Schema,
    /// Checks the parameters as far as it goes without a data set. Reads trigger pictures if they name one.
    pub configure: Configure,
}

impl AttackEntry {
    /// The attack from one flat table of shared and own parameters, as [`Attack::parameters`] gives it.
    pub fn from_parameters(&self, value: &Value) -> Result<Box<dyn Attack>, ParameterError> {
        let (shared, own) = parameters::split(value, &schemars::schema_for!(Poisoning))?;
        (self.configure)(&parameters::read(&shared)?, own)
    }
}

impl Debug for AttackEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AttackEntry").field("name", &self.name).field("revision", &self.revision).finish()
    }
}

/// A configured attack.
pub trait Attack: Send + Sync + Debug {
    /// All parameters in one flat table, defaults filled: what identifies the attack in a cell's key.
    /// [`AttackEntry::from_parameters`] reads it back.
    fn parameters(&self) -> Value;

    /// Refuses what this data set does not allow.
    fn check(&self, dataset: &DatasetFacts) -> Result<(), ParameterError>;

    /// What has to be made before this attack can poison, in a cell of its own; `None` for most attacks.
    fn groundwork(&self) -> Option<&dyn Groundwork> {
        None
    }

    /// Refuses what does not fit how the model will be trained; for attacks that control the training.
    fn check_training(&self, _training: &TrainingFacts) -> Result<(), ParameterError> {
        Ok(())
    }

    /// Epochs of the clean model that a measurement compares the attacked one with, in a profile whose training has
    /// `profile_epochs`. As many as the profile's, as published; for an attack that was given epochs of its own, as many as
    /// its model learns in, so that the two models have seen as much.
    fn clean_epochs(&self, profile_epochs: usize) -> usize {
        profile_epochs
    }

    /// About how many images go forward and backward through the network while a model is trained on `images` images in a
    /// profile whose training has `profile_epochs`: what an estimate of its seconds is made of.
    fn image_passes(&self, images: usize, profile_epochs: usize) -> f64 {
        images as f64 * profile_epochs as f64
    }

    /// Makes the training source and the triggered test set. `streams` carries the cell's seed, `material` what the
    /// attack's groundwork made ([`Error::NoMaterial`] if it has one and nothing is given).
    fn prepare(&self, clean: &Arc<Dataset>, streams: &Streams, material: Option<&Material>) -> Result<Poisoner, Error>;

    /// The trigger as a picture of `height x width` pixels, for attacks that have one; `material` as in
    /// [`Self::prepare`].
    fn trigger_picture(
        &self,
        height: usize,
        width: usize,
        material: Option<&Material>,
    ) -> Result<Option<Picture>, Error>;
}

/// What the backdoored model is trained on.
#[derive(Debug, Clone)]
pub enum TrainingSource {
    /// Images that are poisoned once, before training (augmented afterwards, as clean ones are).
    Static(Arc<PoisonedImages>),
    /// The clean images, of which the attack poisons some in each batch while the model is trained.
    Controlled(Arc<dyn TrainingControl>),
}

/// What an attack makes of a clean data set.
#[derive(Debug, Clone)]
pub struct Poisoner {
    /// The training source.
    pub train: TrainingSource,
    /// The triggered test images; `None` for the attack `none`, whose ASR and RA are undefined, and for a trigger that
    /// is still to be learned ([`Poisoner::with_learned_trigger`]).
    pub test: Option<Arc<TriggeredTest>>,
    /// How many images were changed; of a controlled training, [`crate::ControlledTraining::facts`] knows more.
    pub facts: PoisonFacts,
}

impl Poisoner {
    /// Whether the trigger is learned together with the model and not known yet: the file [`crate::LEARNED_TRIGGER`]
    /// beside the model is needed to trigger an image.
    pub fn awaits_trigger(&self) -> bool {
        self.test.is_none() && self.learned().is_some()
    }

    /// The same with the triggered test images of the trigger that a training left in the file `path`. Without effect
    /// where nothing is learned.
    pub fn with_learned_trigger(mut self, path: &Path) -> Result<Poisoner, Error> {
        if let Some(trigger) = self.learned() {
            self.test = Some(trigger.triggered_test(path)?);
        }
        Ok(self)
    }

    fn learned(&self) -> Option<&dyn LearnedTrigger> {
        match &self.train {
            TrainingSource::Static(_) => None,
            TrainingSource::Controlled(control) => control.learned(),
        }
    }
}

/// Counts that go into a cell's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoisonFacts {
    /// Number of poisoned training images; in a controlled training, of those that one epoch poisons. `None` before such
    /// a training has begun: which images are poisoned is decided batch by batch, and how many depends on the batches.
    pub poison_count: Option<usize>,
    /// The same for each original class; empty for a controlled training, which poisons other images in each epoch.
    pub poison_per_class: Vec<usize>,
    /// Number of triggered test images that ASR and RA are shares of; 0 if the attack has none.
    pub asr_denominator: usize,
}
