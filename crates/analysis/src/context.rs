//! What surrounds a measurement: randomness, the data set's ways, and who watches.

use std::ops::ControlFlow;
use std::sync::Arc;

use tsbd_data::{Augmentation, ImageSource, Loader, Normalization, Order};
use tsbd_nn::{Keeper, Streams};
use tsbd_tensor::Device;

use crate::Error;

/// What surrounds a measurement.
pub struct Context<'a> {
    /// Random streams of the measurement.
    pub streams: Streams,
    /// The device of the model.
    pub device: Device,
    /// The data set's normalisation.
    pub normalization: Normalization,
    /// The data set's training augmentation.
    pub augmentation: Augmentation,
    /// Who watches.
    pub observer: &'a mut dyn Observer,
}

/// Watches a measurement or an unlearning, can stop it, and may keep how far it has come.
pub trait Observer: Keeper {
    /// Step `done` of at most `total` of `stage` is done. `Break` stops: the measurement ends with [`Error::Stopped`].
    fn step(&mut self, _stage: &'static str, _done: usize, _total: usize, _loss: Option<f64>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// Epoch `epoch` of `stage`, from 0, has ended with these metrics.
    fn epoch(&mut self, _stage: &'static str, _epoch: usize, _metrics: &[(&'static str, f64)]) {}
}

/// Watches nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoObserver;

impl Keeper for NoObserver {}

impl Observer for NoObserver {}

/// Batches of images.
impl Context<'_> {
    /// In order, augmented afresh in each epoch. `purpose` names the random stream of the augmentation.
    pub fn augmented(&self, images: Arc<dyn ImageSource>, purpose: &str, batch_size: usize) -> Loader {
        Loader {
            source: images,
            normalization: self.normalization,
            augmentation: Some(self.augmentation),
            batch_size,
            order: Order::Sequential,
            drop_last: false,
            streams: self.streams.child(purpose),
            device: self.device.clone(),
        }
    }

    /// In order, as they are.
    pub fn plain(&self, images: Arc<dyn ImageSource>, batch_size: usize) -> Loader {
        Loader::evaluation(images, self.normalization, batch_size).on(&self.device)
    }

    /// Tells that a step is done; an error if the observer wants to stop.
    pub(crate) fn step(&mut self, stage: &'static str, done: usize, total: usize) -> Result<(), Error> {
        match self.observer.step(stage, done, total, None) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Stopped { stage }),
        }
    }
}
