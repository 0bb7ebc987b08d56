//! What a plan needs to know of a data set: its digest, for the keys, and its counts, for the checks.
//!
//! Both come from loading it, which verifies its files (0.3 s for CIFAR-10). A run notes what it saw in
//! `results/datasets.json`, so that a table of its results can be made where the images are not.

use std::collections::BTreeMap;

use fs_err as fs;
use serde::{Deserialize, Serialize};
use tsbd_attack::DatasetFacts;
use tsbd_data::{DataRoot, DatasetParameters};

use crate::cell::canonical_json;
use crate::store::{Store, StoreError, write_atomically};

/// Which images, exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagesIdentity {
    /// Digest over both splits.
    pub digest: String,
    /// Counts.
    pub facts: DatasetFacts,
}

/// The identities of the data sets of a plan, by the canonical JSON of their parameters.
pub type KnownImages = BTreeMap<String, ImagesIdentity>;

/// Where a plan looks data sets up.
#[derive(Debug, Clone)]
pub enum ImagesFrom {
    /// On the disk: they are loaded, so their files are there and right. For whatever trains.
    Disk(DataRoot),
    /// In the notes of the last run in a results folder; on the disk if that run did not use them. For tables.
    Notes(Store, DataRoot),
}

impl ImagesFrom {
    pub(super) fn root(&self) -> &DataRoot {
        match self {
            Self::Disk(root) | Self::Notes(_, root) => root,
        }
    }

    /// What is known without loading.
    pub(super) fn notes(&self) -> KnownImages {
        match self {
            Self::Disk(_) => KnownImages::new(),
            // Notes that cannot be read are no notes: the images are loaded.
            Self::Notes(store, _) => store.images().unwrap_or_default(),
        }
    }
}

pub(crate) fn name(parameters: &DatasetParameters) -> String {
    canonical_json(&serde_json::to_value(parameters).expect("parameters have string keys only"))
}

pub(super) fn identify(parameters: &DatasetParameters, root: &DataRoot) -> tsbd_data::Result<ImagesIdentity> {
    let dataset = tsbd_data::load(parameters, root)?;
    Ok(ImagesIdentity { digest: dataset.digest.clone(), facts: DatasetFacts::of(&dataset) })
}

impl Store {
    /// What the runs in this folder saw of their data sets.
    pub fn images(&self) -> Result<KnownImages, StoreError> {
        match fs::read(self.root().join("datasets.json")) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(KnownImages::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Notes what a run saw. Called by the coordinator alone.
    pub fn note_images(&self, images: &KnownImages) -> Result<(), StoreError> {
        let mut known = self.images()?;
        let before = known.clone();
        known.extend(images.clone());
        if known == before {
            return Ok(());
        }
        let text = serde_json::to_string_pretty(&known).expect("identities have string keys only");
        write_atomically(&self.root().join("datasets.json"), text.as_bytes())
    }
}
