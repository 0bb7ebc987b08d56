//! What a network learns from: batches, and what makes them.

use crate::Result;
use tsbd_tensor::Tensor;

/// Some images with their labels.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `f32` `[batch, height, width, channel]`, normalised with the data set's mean and deviation.
    pub images: Tensor,
    /// `u32` `[batch]`.
    pub labels: Tensor,
    /// The images' numbers in their data set, `batch` of them.
    pub indices: Vec<u32>,
}

impl Batch {
    /// How many images the batch holds.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether the batch holds no image.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }
}

/// Makes the batches of each epoch.
///
/// What an epoch gives may depend on its number (shuffling, augmentation) and on nothing else: training that resumes
/// after epoch k asks for epoch k + 1 and must get the same batches as training that never stopped.
pub trait BatchSource {
    /// How many images one epoch gives.
    fn images_per_epoch(&self) -> usize;
    /// How many batches one epoch gives.
    fn batches_per_epoch(&self) -> usize;
    /// The batches of epoch `epoch`, counted from 0. Errors of the source itself come as [`crate::Error::Source`].
    fn epoch<'a>(&'a self, epoch: usize) -> Box<dyn Iterator<Item = Result<Batch>> + 'a>;
}

/// The same batches in every epoch: for tests and for small fixed sets.
impl BatchSource for Vec<Batch> {
    fn images_per_epoch(&self) -> usize {
        self.iter().map(Batch::len).sum()
    }
    fn batches_per_epoch(&self) -> usize {
        self.len()
    }
    fn epoch<'a>(&'a self, _epoch: usize) -> Box<dyn Iterator<Item = Result<Batch>> + 'a> {
        Box::new(self.iter().cloned().map(Ok))
    }
}
