//! The networks of the paper, with a width of their own choosing, and the registry they are found in.

mod preact_resnet;

pub use preact_resnet::{PreActResNet18, preact_resnet18};

use std::sync::Arc;
use tsbd_nn::Architecture;

/// What a user says about a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelParameters {
    /// The registry's name: `preact-resnet18`.
    pub name: String,
    /// The number of channels the network begins with; the paper's networks have 64.
    pub width: usize,
    /// How many classes the data set has.
    pub classes: usize,
    /// Height and width of the images in pixels.
    pub image_size: usize,
}

/// A network that users can ask for.
#[derive(Debug)]
pub struct ModelEntry {
    /// The name in experiment files.
    pub name: &'static str,
    /// The name in tables.
    pub title: &'static str,
    /// What it is, in a sentence.
    pub summary: &'static str,
    /// The smallest image, in pixels per side, that it takes.
    pub smallest_image: usize,
    /// Makes it.
    pub build: fn(&ModelParameters) -> Arc<dyn Architecture>,
}

/// Every network, in the order in which they are listed.
pub static MODELS: &[ModelEntry] = &[ModelEntry {
    name: "preact-resnet18",
    title: "PreAct-ResNet18",
    summary: "18-layer residual network that normalises before each convolution (He et al. 2016), for small images",
    smallest_image: 8,
    build: |parameters| preact_resnet18(parameters.width, parameters.classes),
}];

/// Why a network cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// No network has this name.
    #[error("model.name = \"{name}\": no such network; there are {}", known())]
    UnknownName {
        /// The name asked for.
        name: String,
    },
    /// A number is too small.
    #[error("model.{field} = {value}: must be at least {least}")]
    TooSmall {
        /// Which number.
        field: &'static str,
        /// What it was.
        value: usize,
        /// What it may be.
        least: usize,
    },
    /// A number is so large that no memory holds the network.
    #[error("model.{field} = {value}: must be at most {most}")]
    TooLarge {
        /// Which number.
        field: &'static str,
        /// What it was.
        value: usize,
        /// What it may be.
        most: usize,
    },
}

/// The largest width: sixteen times the paper's.
const WIDEST: usize = 1024;

fn known() -> String {
    MODELS.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ")
}

/// Makes the network that `parameters` ask for.
pub fn build(parameters: &ModelParameters) -> Result<Arc<dyn Architecture>, ModelError> {
    let entry = MODELS
        .iter()
        .find(|entry| entry.name == parameters.name)
        .ok_or_else(|| ModelError::UnknownName { name: parameters.name.clone() })?;
    let limits = [
        ("width", parameters.width, 1),
        ("classes", parameters.classes, 2),
        ("image_size", parameters.image_size, entry.smallest_image),
    ];
    for (field, value, least) in limits {
        if value < least {
            return Err(ModelError::TooSmall { field, value, least });
        }
    }
    if parameters.width > WIDEST {
        return Err(ModelError::TooLarge { field: "width", value: parameters.width, most: WIDEST });
    }
    Ok((entry.build)(parameters))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(name: &str) -> ModelParameters {
        ModelParameters { name: name.into(), width: 4, classes: 10, image_size: 16 }
    }

    #[test]
    fn every_entry_builds_a_network_of_its_own_name_with_distinct_modules() {
        for entry in MODELS {
            let network = build(&parameters(entry.name)).unwrap();
            assert_eq!(network.name(), entry.name);
            assert_eq!(network.classes(), 10);
            let mut names: Vec<_> = network.modules().iter().map(|module| &module.name).collect();
            assert!(names.iter().any(|name| *name == network.head()), "{} lacks its head", entry.name);
            names.sort();
            names.dedup();
            assert_eq!(names.len(), network.modules().len());
        }
    }

    #[test]
    fn a_wrong_name_is_answered_with_the_right_ones_and_a_wrong_number_with_its_limit() {
        let error = build(&parameters("resnet")).unwrap_err();
        assert!(error.to_string().contains("preact-resnet18"), "{error}");
        let error = build(&ModelParameters { width: 0, ..parameters("preact-resnet18") }).unwrap_err();
        assert_eq!(error.to_string(), "model.width = 0: must be at least 1");
        let error = build(&ModelParameters { width: 1025, ..parameters("preact-resnet18") }).unwrap_err();
        assert_eq!(error.to_string(), "model.width = 1025: must be at most 1024");
    }
}
