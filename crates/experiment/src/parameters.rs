//! The checked parameters of a cell. They are part of its key and of its record on disk, so this crate owns them:
//! a field that is renamed here renames every cell.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use tsbd_data::DatasetParameters;
pub use tsbd_nn::Precision;

/// Which network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelParameters {
    /// Name in the registry of models, e.g. `preact-resnet18`.
    pub name: String,
    /// Channels of the first layer; 64 is the paper's.
    pub width: usize,
}

impl ModelParameters {
    /// What the registry of models needs to make the network for images of a data set.
    pub fn for_images(&self, classes: usize, image_size: usize) -> tsbd_models::ModelParameters {
        tsbd_models::ModelParameters { name: self.name.clone(), width: self.width, classes, image_size }
    }
}

/// How a backdoored (or clean) model is trained: SGD over shuffled batches, the last incomplete batch dropped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingParameters {
    /// Passes over the training images.
    pub epochs: usize,
    /// Images per step.
    pub batch_size: usize,
    /// Learning rate of the first epoch.
    pub learning_rate: f64,
    /// Momentum of SGD, in [0, 1).
    pub momentum: f64,
    /// Weight decay on every parameter, batch norm and biases included, as in PyTorch.
    pub weight_decay: f64,
    /// How the learning rate changes from epoch to epoch.
    pub schedule: Schedule,
    /// What is done to an image each time it is shown.
    pub augmentation: Augmentation,
    /// How far the steps round. What rounds nothing is not in the key.
    #[serde(default, skip_serializing_if = "Precision::is_full")]
    pub precision: Precision,
}

impl TrainingParameters {
    /// The same for so many epochs. A cosine that ends with the training still does.
    pub fn lasting(&self, epochs: usize) -> TrainingParameters {
        let schedule = match &self.schedule {
            Schedule::Cosine { t_max } if *t_max == self.epochs => Schedule::Cosine { t_max: epochs },
            schedule => schedule.clone(),
        };
        TrainingParameters { epochs, schedule, ..self.clone() }
    }
}

/// Learning-rate schedules, stepped once per epoch as in PyTorch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// The same learning rate throughout.
    Constant,
    /// `CosineAnnealingLR` down to 0.
    Cosine {
        /// Epochs until 0 is reached. BackdoorBench always uses 100; here the number of epochs unless given.
        t_max: usize,
    },
    /// `ReduceLROnPlateau` on the mean training loss.
    Plateau {
        /// What the rate is multiplied by.
        factor: f64,
        /// Epochs without improvement that are tolerated.
        patience: usize,
        /// Relative improvement that counts.
        threshold: f64,
    },
    /// `MultiStepLR`.
    MultiStep {
        /// Epochs at which the rate drops.
        milestones: Vec<usize>,
        /// What the rate is multiplied by.
        gamma: f64,
    },
}

/// What is done to a training image each time it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Augmentation {
    /// Random crop with padding 4, and a horizontal flip where the data set allows it (CIFAR-10 does).
    Standard,
    /// Nothing.
    None,
}

/// A method with all of its parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodParameters {
    /// Name in the registry, e.g. `badnets`.
    pub name: String,
    /// The method's revision: raised in the registry whenever the same parameters give other results.
    pub revision: u32,
    /// Canonical parameters: one flat table of the shared and the method's own, all defaults filled.
    pub parameters: Value,
}

impl MethodParameters {
    /// As cells share them.
    pub fn new(name: impl Into<String>, revision: u32, parameters: Value) -> Arc<Self> {
        Arc::new(Self { name: name.into(), revision, parameters })
    }
}
