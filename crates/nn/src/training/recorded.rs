//! Plain steps on a GPU: recorded once, then done again with one call for each batch.
//!
//! Launching its hundreds of kernels one by one can keep the host busy for longer than a GPU computes. The bits are the same.

use super::{CrossEntropyStep, TrainingObserver};
use crate::model::QueuedStep;
use crate::module::BATCH_NORM_MOMENTUM;
use crate::{Batch, Model, Result, Sgd};
use tsbd_tensor::{Current, Device, Readback, Recording, Tensor, TensorId};

/// Decides which batches are done again from a recording.
pub(super) struct Recorder {
    is_possible: bool,
    /// Sizes of the last batch.
    last: Option<Vec<usize>>,
    recorded: Option<RecordedStep>,
}

/// Steps that may be queued before the outcome of the first of them is read: while the host looks at one and prepares the
/// next, the GPU computes.
const AHEAD: usize = 2;

/// A step with the memory that it reads and writes.
pub(super) struct RecordedStep {
    recording: Recording,
    images: Tensor,
    labels: Tensor,
    /// One number, and what it is.
    learning_rate: (Tensor, f64),
    /// Loss, and images classified as labelled.
    outcome: Tensor,
    /// Those of steps that were queued and not read.
    outcomes: Readback,
    unread: usize,
    /// Those whose estimates a step moves.
    batch_norms: Vec<String>,
    /// What was recorded, and of which tensors.
    rule: CrossEntropyStep,
    tensors: Vec<TensorId>,
}

/// The tensors that a step of `model` changes.
fn changed<'a>(model: &'a Model, optimizer: &'a Sgd) -> impl Iterator<Item = &'a Tensor> {
    // Counters are the host's, and replaced.
    let state = model.state.entries().map(|(_, entry)| &entry.tensor).filter(|tensor| tensor.device().is_cuda());
    state.chain(optimizer.velocities().values())
}

impl Recorder {
    /// A recorder of what trains `model`.
    pub(super) fn new(model: &Model) -> Result<Recorder> {
        let device = model.state.parameters().next().map(|(_, tensor)| tensor.device().clone());
        let is_possible = Recording::is_possible(&device.unwrap_or(Device::Cpu))?;
        Ok(Recorder { is_possible, last: None, recorded: None })
    }

    /// The recording of such a step of a batch of this size, which is made when the step has just been launched for a batch
    /// of the same size: so everything it needs is there. Nothing where the step has to be launched kernel by kernel.
    pub(super) fn recorded(
        &mut self,
        rule: Option<CrossEntropyStep>,
        model: &Model,
        optimizer: &Sgd,
        batch: &Batch,
        observer: &mut dyn TrainingObserver,
    ) -> Option<&mut RecordedStep> {
        let rule = rule.filter(|_| self.is_possible)?;
        let sizes = batch.images.dims();
        let is_stale = |recorded: &RecordedStep| {
            recorded.rule != rule || !recorded.tensors.iter().copied().eq(changed(model, optimizer).map(Tensor::id))
        };
        if let Some(stale) = self.recorded.as_ref().filter(|recorded| is_stale(recorded)) {
            // What it was asked for has to be read first.
            if stale.unread > 0 {
                return None;
            }
            // Another step has to be launched before it is recorded.
            (self.recorded, self.last) = (None, None);
        }
        if self.recorded.is_none() && self.last.as_deref() == Some(sizes) {
            match RecordedStep::new(rule, model, optimizer, batch) {
                Ok(recorded) => self.recorded = Some(recorded),
                Err(error) => {
                    self.is_possible = false;
                    let text = error.to_string();
                    observer.note(&format!(
                        "the training step is not recorded as a CUDA graph, but launched kernel by kernel: {}",
                        text.lines().next().unwrap_or_default()
                    ));
                }
            }
        }
        self.last = Some(sizes.to_vec());
        self.recorded.as_mut().filter(|recorded| recorded.images.dims() == batch.images.dims())
    }

    /// Waits for the first of the queued steps whose outcome has not been read: its loss, and how many images were classified
    /// as labelled. If the loss is not finite, that step has moved nothing.
    pub(super) fn outcome(&mut self, model: &mut Model) -> Result<(f64, usize)> {
        self.recorded.as_mut().expect("kept while an outcome is unread").outcome(model)
    }
}

impl RecordedStep {
    fn new(rule: CrossEntropyStep, model: &Model, optimizer: &Sgd, batch: &Batch) -> Result<RecordedStep> {
        let device = batch.images.device();
        let (images, labels) = (batch.images.zeros_like()?, batch.labels.zeros_like()?);
        let [learning_rate, outcome] = [vec![0f32], vec![0f32; 2]].map(|zeros| Tensor::new(zeros, device));
        let (learning_rate, outcome) = (learning_rate?, outcome?);
        // Once before the recording, as the rest of the step: what it needs is loaded.
        outcome.slice_set(&outcome.zeros_like()?, 0, 0)?;
        let lasting = changed(model, optimizer).chain([&images, &labels, &learning_rate, &outcome]);
        let tensors = changed(model, optimizer).map(Tensor::id).collect();
        let mut batch_norms = vec![];
        let recording = Recording::of(device, lasting.cloned().collect(), || {
            let indices = batch.indices.clone();
            let batch = Batch { images: images.clone(), labels: labels.clone(), indices };
            let step = model.queue_gradients(&batch, rule.mode, &rule.loss)?;
            let QueuedStep { loss, correct, gradients, statistics } = step;
            outcome.slice_set(&loss.reshape(1)?, 0, 0)?;
            outcome.slice_set(&correct.reshape(1)?, 0, 1)?;
            model.state.move_estimates(BATCH_NORM_MOMENTUM, &statistics, Some(&loss))?;
            batch_norms.extend(statistics.iter().map(|(name, _)| name.to_owned()));
            let current = Current { learning_rate: &learning_rate, loss: &loss };
            optimizer.move_parameters(f64::NAN, &model.state, &gradients, Some(current))
        })?;
        let learning_rate = (learning_rate, f64::NAN);
        let outcomes = Readback::new(device, AHEAD, 2)?;
        Ok(RecordedStep {
            recording,
            images,
            labels,
            learning_rate,
            outcome,
            outcomes,
            unread: 0,
            batch_norms,
            rule,
            tensors,
        })
    }

    /// Asks the GPU for the step of this batch.
    pub(super) fn queue(&mut self, batch: &Batch, learning_rate: f64) -> Result<()> {
        self.images.slice_set(&batch.images, 0, 0)?;
        self.labels.slice_set(&batch.labels, 0, 0)?;
        let (current, known) = &mut self.learning_rate;
        if *known != learning_rate {
            current.slice_set(&Tensor::new(&[learning_rate as f32], current.device())?, 0, 0)?;
            *known = learning_rate;
        }
        self.recording.replay()?;
        self.outcomes.put(&self.outcome)?;
        self.unread += 1;
        Ok(())
    }

    fn outcome(&mut self, model: &mut Model) -> Result<(f64, usize)> {
        let outcome = self.outcomes.take()?;
        self.unread -= 1;
        if outcome[0].is_finite() {
            model.state.count(self.batch_norms.iter().map(String::as_str))?;
        }
        Ok((f64::from(outcome[0]), outcome[1] as usize))
    }
}
