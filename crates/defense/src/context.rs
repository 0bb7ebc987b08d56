//! What surrounds a repair: randomness, the test sets, and who watches.

use std::ops::ControlFlow;
use std::sync::Arc;

use tsbd_attack::Evaluation;
use tsbd_data::{Augmentation, ImageSource, Normalization};
use tsbd_nn::{Model, Streams};
use tsbd_tensor::Device;

use crate::{Error, TracePoint};

/// What surrounds a repair.
pub struct Context<'a> {
    /// Random streams of the cell's seed.
    pub streams: Streams,
    /// The device of the model.
    pub device: Device,
    /// The data set's normalisation.
    pub normalization: Normalization,
    /// The data set's training augmentation.
    pub augmentation: Augmentation,
    /// The clean test images: read by `selection = "oracle"` only.
    pub clean_test: Arc<dyn ImageSource>,
    /// Measures a model on the test sets: for traces and for `selection = "oracle"`, never for anything else.
    pub evaluate: &'a dyn Fn(&Model) -> Result<Evaluation, tsbd_attack::Error>,
    /// Who watches.
    pub observer: &'a mut dyn DefenseObserver,
}

/// One step of a stage is done.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// The stage, e.g. `unlearning`.
    pub stage: &'static str,
    /// Steps done, 1 or more.
    pub done: usize,
    /// Steps of the stage, at most.
    pub total: usize,
    /// Loss of the step, where there is one.
    pub loss: Option<f64>,
}

/// Watches a repair, and can stop it.
pub trait DefenseObserver {
    /// A stage begins, of at most `steps` steps.
    fn stage(&mut self, _stage: &str, _steps: usize) {}

    /// A step is done. `Break` stops the repair: it ends with [`Error::Stopped`].
    fn progress(&mut self, _progress: &Progress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// A point of the trace was measured.
    fn trace(&mut self, _point: &TracePoint) {}
}

/// Watches nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoObserver;

impl DefenseObserver for NoObserver {}

impl Context<'_> {
    /// Reports a step outside of training; an error if the observer wants to stop.
    pub(crate) fn step(&mut self, stage: &'static str, done: usize, total: usize) -> Result<(), Error> {
        match self.observer.progress(&Progress { stage, done, total, loss: None }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Stopped { stage }),
        }
    }

    /// Reports a point and keeps it.
    pub(crate) fn trace(&mut self, trace: &mut Vec<TracePoint>, point: TracePoint) {
        self.observer.trace(&point);
        trace.push(point);
    }
}
