//! Unlearning: gradient ascent until a network no longer does what it did to some images.
//!
//! On clean images it is stage 1 of TSBD; on triggered ones with the target label it is what the paper compares that
//! with (Observation 1). Source: Lin et al., NeurIPS 2024 (arXiv 2405.20291) and its released code.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tsbd_attack::DatasetFacts;
use tsbd_data::{ImageSource, Loader};
use tsbd_nn::{
    Batch, BatchSource, Checkpoint, CrossEntropyStep, EpochReport, LossOptions, Mode, Model, Outcome, Precision,
    Schedule, SgdConfig, StepReport, StepRule, TrainingConfig, TrainingObserver, describe_run, train_with,
};

use crate::context::{Context, Observer};
use crate::{Error, NeuronVector, weight_change};

/// Which images are unlearned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unlearned {
    /// Clean images with their true labels.
    Clean,
    /// Triggered images with the label that the attacker wants.
    Poison,
}

/// How a network is made to unlearn. Everything that determines the result beside the images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unlearning {
    /// What is unlearned.
    pub of: Unlearned,
    /// Share of the clean training images that is used; clean unlearning only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean_ratio: Option<f64>,
    /// Images per step.
    pub batch_size: usize,
    /// Learning rate (SGD, constant, no weight decay, all parameters).
    pub learning_rate: f64,
    /// Momentum.
    pub momentum: f64,
    /// Ends when the share of the images that get their label is at most this.
    pub stop_at: f64,
    /// Ends after so many epochs in any case.
    pub epochs: usize,
}

/// A model that has unlearned, and how it came about.
#[derive(Debug, Clone)]
pub struct UnlearnedModel {
    /// The model.
    pub model: Model,
    /// How far each neuron's weights have moved: [`crate::WeightChange::of_neurons`].
    pub nwc: NeuronVector,
    /// Share of the images that get their label after each epoch, in evaluation mode.
    pub rates: Vec<f64>,
    /// Whether the share fell to [`Unlearning::stop_at`] before the epochs ran out.
    pub reached: bool,
    /// Wall-clock seconds.
    pub seconds: f64,
}

impl Unlearned {
    /// Name in cells, progress and traces.
    pub fn stage(self) -> &'static str {
        match self {
            Unlearned::Clean => "unlearning",
            Unlearned::Poison => "poison unlearning",
        }
    }

    /// Name of the share that is measured after each epoch.
    pub fn rate(self) -> &'static str {
        match self {
            Unlearned::Clean => "clean_accuracy",
            Unlearned::Poison => "asr",
        }
    }

    /// Name of the vector with the weight change of each neuron, where those of both may stand.
    pub fn nwc(self) -> &'static str {
        match self {
            Unlearned::Clean => "nwc_clean",
            Unlearned::Poison => "nwc_poison",
        }
    }
}

impl Unlearning {
    /// The random streams of an unlearning are this child of the cell's, whoever asks for it: so TSBD, the measurements and
    /// the cell that does it for all of them unlearn the same.
    pub const STREAMS: &'static str = "tsbd";
    /// Raised whenever the same numbers give other results; part of a cell's key.
    pub const REVISION: u32 = 1;
    /// How many epochs an estimate counts, where so many are allowed.
    const ASSUMED_EPOCHS: usize = 10;

    /// The same on triggered images: until the attack success rate is at most `asr`.
    pub fn of_poison(&self, asr: f64) -> Unlearning {
        Unlearning { of: Unlearned::Poison, clean_ratio: None, stop_at: asr, ..self.clone() }
    }

    /// About how many images go forward and backward through the network, as of a defense: the epochs that it takes are not
    /// known before; so many are assumed.
    pub fn image_passes(&self, dataset: &DatasetFacts) -> f64 {
        let images = match self.of {
            Unlearned::Clean => dataset.train_images as f64 * self.clean_ratio.unwrap_or(1.0),
            Unlearned::Poison => dataset.test_images_per_class.iter().sum::<usize>() as f64,
        };
        images * self.epochs.min(Self::ASSUMED_EPOCHS) as f64
    }

    /// Unlearns `images` from a copy of `model`.
    ///
    /// Batch norms use and move their statistics in training; images are augmented afresh in each epoch and not shuffled.
    /// After each epoch the share of images that get their label is measured in evaluation mode: clean unlearning
    /// measures a further augmentation of the same images, as the released code of TSBD does, poison unlearning the
    /// images as they are, which is the attack success rate. Each epoch is offered to be kept.
    pub fn run(
        &self,
        model: &Model,
        images: Arc<dyn ImageSource>,
        context: &mut Context,
    ) -> Result<UnlearnedModel, Error> {
        let training = self.training(Arc::clone(&images), context);
        let measured = match self.of {
            Unlearned::Clean => context.augmented(images, "tsbd/unlearning-accuracy", self.batch_size),
            Unlearned::Poison => context.plain(images, self.batch_size),
        };
        let (stage, config) = (self.of.stage(), self.config(self.epochs));
        let run = format!("{}, from {}", describe_run(&ascent(), model, &training, &config), model.state.digest()?);
        let kept = Checkpoint::kept(&mut *context.observer, stage, &run, model.architecture.modules());
        let kept = kept.and_then(|(checkpoint, notes)| Some((checkpoint, serde_json::from_str::<Notes>(&notes).ok()?)));
        let (resume, notes) = kept.map_or((None, Notes::default()), |(checkpoint, notes)| (Some(checkpoint), notes));
        for (report, rate) in resume.iter().flat_map(Checkpoint::history).zip(&notes.rates) {
            context.observer.epoch(stage, report.epoch, &metrics(self.of, report, Some(*rate)));
        }

        let mut unlearned = model.clone();
        let (start, earlier) = (Instant::now(), notes.seconds);
        let tracking = Tracking { run, measured, stop_at: self.stop_at, notes, start, earlier };
        let mut watcher = Watcher { of: self.of, observer: &mut *context.observer, tracking: Some(tracking) };
        self.ascend(&mut ascent(), &mut unlearned, &training, &config, resume, &mut watcher)?;
        let rates = watcher.tracking.map(|tracking| tracking.notes.rates).unwrap_or_default();
        let reached = rates.last().is_some_and(|rate| *rate <= self.stop_at);
        let seconds = earlier + start.elapsed().as_secs_f64();
        let nwc = weight_change(model.architecture.as_ref(), &model.state, &unlearned.state)?.of_neurons();
        Ok(UnlearnedModel { model: unlearned, nwc, rates, reached, seconds })
    }

    /// The first epoch alone, with another `rule`. Nothing is measured, and nothing kept.
    pub(crate) fn first_epoch(
        &self,
        rule: &mut dyn StepRule,
        model: &mut Model,
        source: &dyn BatchSource,
        observer: &mut dyn Observer,
    ) -> Result<(), Error> {
        let mut watcher = Watcher { of: self.of, observer, tracking: None };
        self.ascend(rule, model, source, &self.config(1), None, &mut watcher)
    }

    /// The batches that are unlearned.
    pub(crate) fn training(&self, images: Arc<dyn ImageSource>, context: &Context) -> Loader {
        let purpose = match self.of {
            Unlearned::Clean => "tsbd/unlearning",
            Unlearned::Poison => "tsbd/poison-unlearning",
        };
        context.augmented(images, purpose, self.batch_size)
    }

    fn config(&self, epochs: usize) -> TrainingConfig {
        let sgd = SgdConfig { learning_rate: self.learning_rate, momentum: self.momentum, weight_decay: 0.0 };
        TrainingConfig { epochs, sgd, schedule: Schedule::Constant, precision: Precision::F32 }
    }

    fn ascend(
        &self,
        rule: &mut dyn StepRule,
        model: &mut Model,
        source: &dyn BatchSource,
        config: &TrainingConfig,
        resume: Option<Checkpoint>,
        watcher: &mut Watcher,
    ) -> Result<(), Error> {
        let stage = self.of.stage();
        let summary =
            train_with(rule, model, source, config, resume, watcher).map_err(|error| match error.is_divergence() {
                true => Error::Diverged { stage, source: Box::new(error) },
                false => Error::Network(error),
            })?;
        match summary.outcome {
            Outcome::Interrupted => Err(Error::Stopped { stage }),
            Outcome::Completed | Outcome::Stopped => Ok(()),
        }
    }
}

/// Gradient ascent on the cross-entropy, batch norms in training mode.
pub(crate) fn ascent() -> CrossEntropyStep {
    CrossEntropyStep { loss: LossOptions::ascent(), mode: Mode::Train }
}

/// What is told of an epoch.
fn metrics(of: Unlearned, report: &EpochReport, rate: Option<f64>) -> Vec<(&'static str, f64)> {
    let metrics = [("loss", Some(report.mean_loss)), ("train_accuracy", report.train_accuracy), (of.rate(), rate)];
    metrics.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// What is kept with each checkpoint.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Notes {
    rates: Vec<f64>,
    seconds: f64,
}

/// Measures the rate after each epoch, and keeps both.
struct Tracking {
    /// Which unlearning is kept.
    run: String,
    /// What the rate is measured on.
    measured: Loader,
    stop_at: f64,
    notes: Notes,
    start: Instant,
    /// Seconds before `start`, up to the checkpoint that was gone on from.
    earlier: f64,
}

struct Watcher<'w> {
    of: Unlearned,
    observer: &'w mut dyn Observer,
    tracking: Option<Tracking>,
}

impl TrainingObserver for Watcher<'_> {
    fn step(&mut self, report: &StepReport) -> ControlFlow<()> {
        let done = report.epoch * report.steps + report.step + 1;
        self.observer.step(self.of.stage(), done, report.epochs * report.steps, Some(report.loss))
    }

    fn epoch_end(&mut self, report: &EpochReport, model: &Model) -> tsbd_nn::Result<ControlFlow<()>> {
        let (mut rate, mut end) = (None, false);
        if let Some(tracking) = &mut self.tracking {
            let source = OneEpoch { source: &tracking.measured, epoch: report.epoch };
            let measured = model.predict(&source)?.accuracy();
            tracking.notes.rates.push(measured);
            (rate, end) = (Some(measured), measured <= tracking.stop_at);
        }
        self.observer.epoch(self.of.stage(), report.epoch, &metrics(self.of, report, rate));
        Ok(if end { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> tsbd_nn::Result<()> {
        let Some(tracking) = &mut self.tracking else { return Ok(()) };
        tracking.notes.seconds = tracking.earlier + tracking.start.elapsed().as_secs_f64();
        let notes = serde_json::to_string(&tracking.notes).map_err(tsbd_nn::Error::observer)?;
        checkpoint.keep(&mut *self.observer, self.of.stage(), &tracking.run, &notes)
    }
}

/// One epoch of another source, whichever is asked for.
struct OneEpoch<'a> {
    source: &'a Loader,
    epoch: usize,
}

impl BatchSource for OneEpoch<'_> {
    fn images_per_epoch(&self) -> usize {
        self.source.images_per_epoch()
    }

    fn batches_per_epoch(&self) -> usize {
        self.source.batches_per_epoch()
    }

    fn epoch<'a>(&'a self, _: usize) -> Box<dyn Iterator<Item = tsbd_nn::Result<Batch>> + 'a> {
        self.source.epoch(self.epoch)
    }
}

#[cfg(test)]
mod tests {
    use indexmap::IndexMap;
    use tsbd_nn::Keeper;
    use tsbd_tensor::Tensor;
    use tsbd_testing::Shelf;

    use super::*;
    use crate::golden::{self, assert_close, in_context};
    use crate::{NoObserver, pearson};

    fn unlearning() -> Unlearning {
        Unlearning {
            of: Unlearned::Clean,
            clean_ratio: Some(1.0),
            batch_size: 16,
            learning_rate: 0.05,
            momentum: 0.9,
            stop_at: 0.5,
            epochs: 50,
        }
    }

    #[test]
    fn poison_unlearning_ends_where_pytorch_ends_with_the_same_model() {
        let planted = golden::model("planted");
        let found = in_context(&mut NoObserver, |context| {
            unlearning().of_poison(0.05).run(&planted, golden::images("poison"), context).unwrap()
        });
        let expected = golden::numbers("poison_unlearning_rates");
        assert!(found.reached && expected.len() > 1);
        assert_close(&found.rates, &expected, 1e-9);
        let nwc = |unlearned: &Model| {
            let change = weight_change(planted.architecture.as_ref(), &planted.state, &unlearned.state).unwrap();
            change.of_neurons().values().collect::<Vec<f64>>()
        };
        assert_eq!(found.nwc.values().collect::<Vec<f64>>(), nwc(&found.model));
        assert_close(&nwc(&found.model), &golden::numbers("poison_weight_change"), 1e-3);
        assert_close(&nwc(&golden::model("poison-unlearned")), &golden::numbers("poison_weight_change"), 1e-5);
    }

    #[test]
    fn the_correlation_of_the_two_unlearnings_is_numpys() {
        let [clean, poison] = ["clean_weight_change", "poison_weight_change"].map(golden::numbers);
        let expected = golden::value("weight_change_pearson").as_f64().unwrap();
        assert!((pearson(&clean, &poison).unwrap() - expected).abs() < 1e-9);
    }

    #[test]
    fn an_unlearning_that_never_gets_there_says_so_and_one_that_diverges_says_what_to_lower() {
        let images = || golden::images("poison");
        let run = |unlearning: Unlearning| {
            in_context(&mut NoObserver, |context| unlearning.run(&golden::model("planted"), images(), context))
        };
        let short = run(Unlearning { epochs: 1, ..unlearning().of_poison(0.0) }).unwrap();
        assert!(!short.reached && short.rates.len() == 1);
        let error = run(Unlearning { learning_rate: 1e30, stop_at: -1.0, ..unlearning() }).unwrap_err().to_string();
        assert!(error.starts_with("unlearning: ") && error.contains("unlearning_learning_rate"), "{error}");
    }

    #[test]
    fn an_unlearning_killed_in_any_step_goes_on_from_its_last_epoch_with_the_same_bits_and_the_same_trace() {
        struct Killer<'s> {
            shelf: &'s mut Shelf,
            steps: usize,
            killed_at: usize,
            told: Vec<(usize, Vec<(&'static str, f64)>)>,
        }
        impl Keeper for Killer<'_> {
            fn keep(&mut self, stage: &str, run: &str, state: &IndexMap<String, Tensor>) -> tsbd_nn::Result<()> {
                self.shelf.keep(stage, run, state)
            }
            fn kept(&mut self, stage: &str, run: &str) -> Option<IndexMap<String, Tensor>> {
                self.shelf.kept(stage, run)
            }
        }
        impl Observer for Killer<'_> {
            fn step(&mut self, _: &'static str, _: usize, _: usize, _: Option<f64>) -> ControlFlow<()> {
                self.steps += 1;
                if self.steps == self.killed_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }
            fn epoch(&mut self, _: &'static str, epoch: usize, metrics: &[(&'static str, f64)]) {
                self.told.push((epoch, metrics.to_vec()));
            }
        }
        let poison = unlearning().of_poison(0.05);
        let run = |shelf: &mut Shelf, killed_at| {
            let mut killer = Killer { shelf, steps: 0, killed_at, told: Vec::new() };
            let found = in_context(&mut killer, |context| {
                poison.run(&golden::model("planted"), golden::images("poison"), context)
            });
            (found, killer.steps, killer.told)
        };
        let (whole, steps, told) = run(&mut Shelf::new(), 0);
        let whole = whole.unwrap();
        assert!(steps >= 4 && whole.rates.len() == told.len());
        for killed_at in 1..=steps {
            let mut shelf = Shelf::new();
            assert!(matches!(run(&mut shelf, killed_at).0, Err(Error::Stopped { .. })));
            let kept = !shelf.is_empty();
            let (resumed, again, told_again) = run(&mut shelf, 0);
            let resumed = resumed.unwrap();
            assert_eq!(resumed.model.state.digest().unwrap(), whole.model.state.digest().unwrap(), "step {killed_at}");
            assert_eq!((&resumed.rates, resumed.reached, &told_again), (&whole.rates, whole.reached, &told));
            assert_eq!(again < steps, kept, "{again} of {steps} steps after step {killed_at}");
        }
    }

    #[test]
    fn a_request_to_stop_ends_it() {
        struct Impatient;
        impl Keeper for Impatient {}
        impl Observer for Impatient {
            fn step(&mut self, _: &'static str, done: usize, total: usize, _: Option<f64>) -> ControlFlow<()> {
                assert!(done <= total);
                if done < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            }
        }
        let stopped = in_context(&mut Impatient, |context| {
            unlearning().run(&golden::model("planted"), golden::images("poison"), context)
        });
        assert!(matches!(stopped, Err(Error::Stopped { stage: "unlearning" })));
    }
}
