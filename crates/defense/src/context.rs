//! What surrounds a repair: randomness, the test sets, and who watches.

use std::ops::ControlFlow;
use std::sync::Arc;

use indexmap::IndexMap;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tsbd_analysis::{UnlearnedModel, Unlearning};
use tsbd_attack::Evaluation;
use tsbd_data::{Augmentation, ImageSource, Normalization};
use tsbd_nn::{Keeper, Model, Streams, tensor_text, text_tensor};
use tsbd_tensor::{Device, Tensor};

use crate::{CleanSubset, Error, TracePoint};

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
    /// What [`crate::Defense::unlearning`] asks for, if somebody has already done it: so a sweep does it once.
    pub unlearned: Option<&'a UnlearnedModel>,
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

/// Watches a repair, can stop it, and may keep how far its stages have come.
pub trait DefenseObserver: Keeper {
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

impl Keeper for NoObserver {}

impl DefenseObserver for NoObserver {}

/// Name of the notes among the tensors of a stage that is kept.
const NOTES: &str = "notes";

impl Context<'_> {
    /// Reports a step outside of training; an error if the observer wants to stop.
    pub(crate) fn step(&mut self, stage: &'static str, done: usize, total: usize) -> Result<(), Error> {
        match self.observer.progress(&Progress { stage, done, total, loss: None }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Stopped { stage }),
        }
    }

    /// Keeps how far `stage` has come: tensors, and what can be told as JSON.
    pub(crate) fn keep(
        &mut self,
        stage: &str,
        run: &str,
        mut tensors: IndexMap<String, Tensor>,
        notes: &impl Serialize,
    ) -> Result<(), Error> {
        let notes = serde_json::to_string(notes).map_err(tsbd_nn::Error::observer)?;
        tensors.insert(NOTES.to_owned(), text_tensor(&notes)?);
        Ok(self.observer.keep(stage, run, &tensors)?)
    }

    /// What [`Self::keep`] kept last for this stage and run by a repair that was killed.
    pub(crate) fn kept<N: DeserializeOwned>(
        &mut self,
        stage: &str,
        run: &str,
    ) -> Option<(IndexMap<String, Tensor>, N)> {
        let tensors = self.observer.kept(stage, run)?;
        let notes = tensor_text(tensors.get(NOTES)?).ok()?;
        Some((tensors, serde_json::from_str(&notes).ok()?))
    }

    /// Does the unlearning that a defense starts from, with the streams of this context. Those of a repair that is to be
    /// the same as in a grid are the child [`Unlearning::STREAMS`] of the cell's.
    pub fn unlearn(
        &mut self,
        unlearning: &Unlearning,
        backdoored: &Model,
        clean: &CleanSubset,
        trace: &mut Vec<TracePoint>,
    ) -> Result<UnlearnedModel, Error> {
        let steps = unlearning.epochs * clean.len().div_ceil(unlearning.batch_size);
        self.observer.stage(unlearning.of.stage(), steps);
        let mut observer = UnlearningObserver { observer: self.observer, trace };
        let mut context = tsbd_analysis::Context {
            streams: self.streams,
            device: self.device.clone(),
            normalization: self.normalization,
            augmentation: self.augmentation,
            observer: &mut observer,
        };
        Ok(unlearning.run(backdoored, clean.images(), &mut context)?)
    }

    /// What was unlearned for this repair, or else unlearns it here.
    pub(crate) fn unlearned(
        &mut self,
        unlearning: &Unlearning,
        backdoored: &Model,
        clean: &CleanSubset,
        trace: &mut Vec<TracePoint>,
    ) -> Result<UnlearnedModel, Error> {
        match self.unlearned {
            Some(unlearned) => Ok(unlearned.clone()),
            None => self.unlearn(unlearning, backdoored, clean, trace),
        }
    }

    /// Reports a point and keeps it.
    pub(crate) fn trace(&mut self, trace: &mut Vec<TracePoint>, point: TracePoint) {
        self.observer.trace(&point);
        trace.push(point);
    }
}

/// Tells the progress of an unlearning to whoever watches the repair.
struct UnlearningObserver<'o> {
    observer: &'o mut dyn DefenseObserver,
    trace: &'o mut Vec<TracePoint>,
}

impl Keeper for UnlearningObserver<'_> {
    fn keep(&mut self, stage: &str, run: &str, state: &IndexMap<String, Tensor>) -> tsbd_nn::Result<()> {
        self.observer.keep(stage, run, state)
    }

    fn kept(&mut self, stage: &str, run: &str) -> Option<IndexMap<String, Tensor>> {
        self.observer.kept(stage, run)
    }
}

impl tsbd_analysis::Observer for UnlearningObserver<'_> {
    fn step(&mut self, stage: &'static str, done: usize, total: usize, loss: Option<f64>) -> ControlFlow<()> {
        self.observer.progress(&Progress { stage, done, total, loss })
    }

    fn epoch(&mut self, stage: &'static str, epoch: usize, metrics: &[(&'static str, f64)]) {
        let point = TracePoint::new(stage, epoch, metrics.iter().copied());
        self.observer.trace(&point);
        self.trace.push(point);
    }
}
