//! A data set ready for use, what the user may choose about it, and the registry of those that exist.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Augmentation, DataRoot, Error, Images, Normalization, Official, Result, datasets};

/// Every data set, in the order in which they are listed. A new one is a file in `datasets` and a line here.
pub static DATASETS: &[&DatasetEntry] = &[&datasets::cifar10::ENTRY, &datasets::shapes::ENTRY];

/// What the registry knows about a data set without loading it.
#[derive(Debug)]
pub struct DatasetEntry {
    /// The name in experiment files and on the command line.
    pub name: &'static str,
    /// The name in prose.
    pub title: &'static str,
    /// Who made it.
    pub paper: &'static str,
    /// What it is, in a sentence.
    pub summary: &'static str,
    /// Number of classes.
    pub classes: usize,
    /// Images for training, unless `train_images` says otherwise.
    pub train_images: usize,
    /// Images for testing, unless `test_images` says otherwise.
    pub test_images: usize,
    /// Height and width of every image in pixels, unless `image_size` says otherwise.
    pub image_size: usize,
    /// The files it is read from, with where to get them; `None` for one that is drawn from a seed.
    pub official: Option<&'static Official>,
    /// Reads or draws it.
    pub load: fn(&DatasetParameters, &DataRoot) -> Result<Dataset>,
}

/// What the user chooses about a data set: the `[data]` section of an experiment file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetParameters {
    /// A name in [`DATASETS`].
    pub name: String,
    /// Use only so many images for training: the first ones in the data set's own order. All, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_images: Option<usize>,
    /// Use only so many images for testing: the first ones in the data set's own order. All, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_images: Option<usize>,
    /// Height and width in pixels; images of another size are resized (or drawn at this size). The data set's own, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// Seed of a drawn data set; the others ignore it.
    #[serde(default)]
    pub seed: u64,
}

/// A data set in memory.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Its name in the registry.
    pub name: String,
    /// Images to train with.
    pub train: Arc<Images>,
    /// Images to measure with.
    pub test: Arc<Images>,
    /// One name per class, by label.
    pub class_names: Vec<String>,
    /// Mean and deviation that networks of this data set expect to be removed.
    pub normalization: Normalization,
    /// Whether training may mirror its images (only where a mirrored image keeps its class).
    pub flip: bool,
    /// BLAKE3 over both splits in hexadecimal: equal digests mean equal data.
    pub digest: String,
}

impl DatasetParameters {
    /// The whole of the data set `name`, with seed 0.
    pub fn new(name: impl Into<String>) -> DatasetParameters {
        DatasetParameters { name: name.into(), train_images: None, test_images: None, image_size: None, seed: 0 }
    }
}

impl Dataset {
    /// Puts two splits together. Both must have the classes that `class_names` names.
    pub fn new(
        name: &str,
        train: Images,
        test: Images,
        class_names: &[&str],
        normalization: Normalization,
        flip: bool,
    ) -> Dataset {
        let mut hasher = blake3::Hasher::new_derive_key("tsbd data set, version 1: name, train digest, test digest");
        for part in [name, train.digest(), test.digest()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        Dataset {
            name: name.to_owned(),
            train: Arc::new(train),
            test: Arc::new(test),
            class_names: class_names.iter().map(|&class| class.to_owned()).collect(),
            normalization,
            flip,
            digest: hasher.finalize().to_hex().to_string(),
        }
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.class_names.len()
    }

    /// How BackdoorBench augments this data set in training: crops from 4 pixels of padding, mirroring where allowed.
    pub fn augmentation(&self) -> Augmentation {
        Augmentation { crop_padding: 4, flip: self.flip }
    }
}

/// The registry's entry named `name`, or an error that lists the names there are.
pub fn entry(name: &str) -> Result<&'static DatasetEntry> {
    DATASETS.iter().copied().find(|entry| entry.name == name).ok_or_else(|| Error::UnknownDataset {
        name: name.to_owned(),
        known: DATASETS.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", "),
    })
}

/// Loads the data set that `parameters` describes. Files are checked against their official SHA-256 each time.
pub fn load(parameters: &DatasetParameters, root: &DataRoot) -> Result<Dataset> {
    let entry = entry(&parameters.name)?;
    check_size(parameters.image_size)?;
    (entry.load)(parameters, root)
}

/// How many images to take where `wanted` were asked for and at most `available` can be had.
pub(crate) fn count(field: &'static str, wanted: Option<usize>, available: usize) -> Result<usize> {
    let wanted = wanted.unwrap_or(available);
    let refused = |reason: String| Error::Parameter {
        field,
        value: wanted.to_string(),
        reason,
        way_out: format!("choose 1 to {available}, or leave it out"),
    };
    match wanted {
        0 => Err(refused("there would be no image".to_owned())),
        _ if wanted > available => Err(refused(format!("there are only {available} images"))),
        _ => Ok(wanted),
    }
}

/// The sizes that images can have: networks halve them three times, and nothing published is larger.
const SIZES: std::ops::RangeInclusive<usize> = 8..=256;

fn check_size(size: Option<usize>) -> Result<()> {
    match size {
        Some(size) if !SIZES.contains(&size) => Err(Error::Parameter {
            field: "data.image_size",
            value: size.to_string(),
            reason: "images of this size are of no use to any network here".to_owned(),
            way_out: format!("choose {} to {} pixels, or leave it out", SIZES.start(), SIZES.end()),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_found_by_its_own_unique_name() {
        for registered in DATASETS {
            assert!(std::ptr::eq(entry(registered.name).unwrap(), *registered));
            assert!(!registered.summary.is_empty() && registered.classes > 1);
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = load(&DatasetParameters::new("cifar"), &DataRoot::new("/nowhere")).unwrap_err().to_string();
        assert_eq!(error, "there is no data set named \"cifar\"; known are: cifar10, shapes");
    }

    #[test]
    fn counts_and_sizes_that_cannot_be_are_refused_with_the_field_and_the_range() {
        let root = DataRoot::new("/nowhere");
        let refuse = |parameters: &DatasetParameters| load(parameters, &root).unwrap_err().to_string();
        let shapes = DatasetParameters::new("shapes");
        let error = refuse(&DatasetParameters { image_size: Some(4), ..shapes.clone() });
        assert!(error.starts_with("data.image_size = 4: ") && error.contains("8 to 256"), "{error}");
        let error = refuse(&DatasetParameters { train_images: Some(0), ..shapes });
        assert!(error.starts_with("data.train_images = 0: "), "{error}");
    }

    #[test]
    fn parameters_travel_through_text_and_unknown_keys_are_refused() {
        let parameters = DatasetParameters { train_images: Some(10), ..DatasetParameters::new("shapes") };
        let text = serde_json::to_string(&parameters).unwrap();
        assert_eq!(text, r#"{"name":"shapes","train_images":10,"seed":0}"#);
        assert_eq!(serde_json::from_str::<DatasetParameters>(&text).unwrap(), parameters);
        assert!(serde_json::from_str::<DatasetParameters>(r#"{"name":"shapes","image":3}"#).is_err());
    }
}
