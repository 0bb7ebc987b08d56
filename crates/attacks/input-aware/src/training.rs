//! One training: epochs in which the mask generator is trained, then epochs in which classifier and pattern generator are
//! trained together.

use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;
use tsbd_attack::control::poisoned_in_batch;
use tsbd_attack::{ControlledTraining, Error, PoisonFacts, Poisoning};
use tsbd_data::{Loader, Normalization};
use tsbd_nn::{
    Adam, AdamConfig, Batch, BatchSource, Mode, Model, ParameterGradients, Pass, Preparation, RandomStream, Result,
    Schedule, ScheduleState, Statistics, Step, StepRule, Streams, TrainingConfig, count_correct,
};
use tsbd_tensor::{CrossEntropy, Tape, Tensor, Var};

use crate::generator::{MOMENTUM, threshold};
use crate::losses::{diversity, excess};
use crate::networks::{MASK, Networks, PATTERN, normalized, stamped};
use crate::{GeneratorGradients, Parameters};

/// Adam as the reference configures it for both generators.
const BETAS: [f64; 2] = [0.5, 0.9];
/// The classifier's epochs at which the pattern generator's learning rate drops to a tenth.
const PATTERN_MILESTONES: [usize; 4] = [200, 300, 400, 500];
/// The shares of the mask epochs after which the mask generator's learning rate drops to a tenth: 10 and 20 of 25.
const MASK_MILESTONES: [f64; 2] = [0.4, 0.8];

type Batches = Box<dyn Iterator<Item = Result<Batch>>>;

/// What a training is begun with.
pub(crate) struct Setup {
    /// The classifier's configuration, for all epochs.
    pub config: TrainingConfig,
    /// How many of the epochs, the first ones, are the mask generator's.
    pub mask_epochs: usize,
    pub parameters: Parameters,
    pub poisoning: Poisoning,
    pub classes: usize,
    pub normalization: Normalization,
    pub streams: Streams,
    /// Gives the images that are trained on.
    pub loader: Loader,
    /// Gives the images whose triggers are put on others.
    pub others: Loader,
    pub facts: PoisonFacts,
}

/// The training in progress.
pub(crate) struct Training {
    pub(crate) setup: Setup,
    pub(crate) networks: Networks,
    pattern_adam: Adam,
    mask_adam: Adam,
    /// The sum of all gradients of the pattern generator so far, if they are never cleared.
    accumulated: Option<ParameterGradients>,
    pub(crate) now: Now,
}

/// What belongs to the current epoch and step.
pub(crate) struct Now {
    others: Batches,
    coin: RandomStream,
    pub pattern_rate: f64,
    pub mask_rate: f64,
    /// The pattern generator's gradients and batch statistics of a step that is not finished.
    pending: Option<(ParameterGradients, Statistics)>,
}

impl Training {
    pub(crate) fn new(setup: Setup, networks: Networks) -> Result<Training> {
        let Parameters { pattern_learning_rate, mask_learning_rate, .. } = setup.parameters;
        let adam = |learning_rate| AdamConfig { betas: BETAS, ..AdamConfig::new(learning_rate) };
        let now = Now {
            others: Box::new(std::iter::empty()),
            coin: setup.streams.stream("input-aware/coin", 0),
            pattern_rate: pattern_learning_rate,
            mask_rate: mask_learning_rate,
            pending: None,
        };
        Ok(Training {
            pattern_adam: Adam::new(adam(pattern_learning_rate), &networks.pattern_state)?,
            mask_adam: Adam::new(adam(mask_learning_rate), &networks.mask_state)?,
            setup,
            networks,
            accumulated: None,
            now,
        })
    }

    /// The images of the second loader that belong to the current step.
    fn others(&mut self) -> Result<Tensor> {
        match self.now.others.next() {
            Some(batch) => Ok(batch?.images),
            None => unreachable!("both loaders have as many batches, and an epoch was begun"),
        }
    }

    /// How many of `size` images are poisoned. Where it is less than one on average, a coin decides; a poisoned image needs
    /// another for the cross trigger.
    pub(crate) fn poisoned(&mut self, size: usize) -> usize {
        let ratio = self.setup.poisoning.poisoning_ratio;
        let count = match poisoned_in_batch(ratio, size) {
            0 => usize::from(self.now.coin.uniform() < ratio * size as f64),
            count => count,
        };
        count.min(size / 2)
    }

    /// A step of the mask generator on two batches: the loss. Its batch norms meet the first batch twice, because the
    /// reference takes it through the generator once more and throws the output away.
    pub(crate) fn mask_step(&mut self, images: &Tensor, others: &Tensor) -> Result<f64> {
        let Parameters { mask_density, lambda_norm, lambda_div, .. } = self.setup.parameters;
        let Networks { mask, mask_state, .. } = &mut self.networks;
        let [images, others] = [images, others].map(|images| Var::constant(images.clone()));
        let tape = Tape::new();
        let (loss, gradients, met) = {
            let pass = Pass::new(mask, mask_state, Mode::Train).on_tape(&tape);
            let first = threshold(&mask.forward(&pass, &images)?)?;
            let met_first = pass.take_statistics();
            let second = threshold(&mask.forward(&pass, &others)?)?;
            let met = [met_first.clone(), met_first, pass.take_statistics()];
            let diverse = diversity([&images, &others], [&first, &second])?.scale(lambda_div)?;
            // The reference multiplies by lambda_div twice.
            let loss = excess(&first, mask_density)?.scale(lambda_norm)?.add(&diverse.scale(lambda_div)?)?;
            let value = scalar(&loss)?;
            let mut gradients = tape.clone().backward(&loss)?;
            (value, pass.gradients(&mut gradients)?, met)
        };
        // A loss that is not finite must not reach the weights; the training loop refuses it.
        if loss.is_finite() {
            for met in &met {
                mask_state.absorb_at(MOMENTUM, met)?;
            }
            self.mask_adam.step_at(self.now.mask_rate, mask_state, &gradients)?;
        }
        Ok(loss)
    }

    /// The classifier's step on a batch of which the first `poisoned` images get their own trigger and the next as many
    /// the trigger of the same image of `others`.
    pub(crate) fn classifier_step(
        &mut self,
        model: &Model,
        batch: &Batch,
        others: &Tensor,
        poisoned: usize,
    ) -> Result<Step> {
        let mut labels = batch.labels.to_vec1::<u32>()?;
        for label in &mut labels[..poisoned] {
            *label = self.setup.poisoning.given_label(*label, self.setup.classes);
        }
        let labels = Tensor::from_vec(labels, batch.len(), batch.labels.device())?;
        let tape = Tape::new();
        let pass = model.pass(Mode::Train).on_tape(&tape);
        let generator = &self.networks.pattern;
        let generating = Pass::new(generator, &self.networks.pattern_state, Mode::Train).on_tape(&tape);

        let mut images = Var::constant(batch.images.clone());
        let mut diverse = None;
        if poisoned > 0 {
            let part =
                |tensor: &Tensor, start: usize, count: usize| Ok::<_, tsbd_nn::Error>(tensor.narrow(0, start, count)?);
            let own = Var::constant(part(&batch.images, 0, poisoned)?);
            let cross = Var::constant(part(&batch.images, poisoned, poisoned)?);
            let givers = Var::constant(part(others, poisoned, poisoned)?);
            let own_patterns = normalized(&generator.forward(&generating, &own)?, &self.setup.normalization)?;
            let cross_patterns = normalized(&generator.forward(&generating, &givers)?, &self.setup.normalization)?;
            let triggered = stamped(&own, &own_patterns, &self.networks.masks(own.tensor())?)?;
            let crossed = stamped(&cross, &cross_patterns, &self.networks.masks(givers.tensor())?)?;
            let rest = batch.len() - 2 * poisoned;
            let clean = (rest > 0).then(|| part(&batch.images, 2 * poisoned, rest)).transpose()?.map(Var::constant);
            images = stacked(&[Some(triggered), Some(crossed), clean].into_iter().flatten().collect::<Vec<_>>())?;
            diverse = Some(diversity([&own, &givers], [&own_patterns, &cross_patterns])?);
        }
        let logits = pass.through(&images)?;
        let correct = count_correct(logits.tensor(), &labels)?;
        let classified = logits.cross_entropy(&labels, CrossEntropy::default())?;
        let cross_entropy = scalar(&classified)?;
        let loss = match &diverse {
            Some(diverse) => classified.add(&diverse.scale(self.setup.parameters.lambda_div)?)?,
            None => classified,
        };
        let whole = scalar(&loss)?;
        let mut gradients = tape.clone().backward(&loss)?;
        let model_gradients = pass.gradients(&mut gradients)?;
        let pending = diverse
            .map(|_| Ok::<_, tsbd_nn::Error>((generating.gradients(&mut gradients)?, generating.take_statistics())));
        let statistics = pass.take_statistics();
        drop((pass, generating));
        self.now.pending = pending.transpose()?;
        // What is reported is the cross-entropy, unless the other term is not finite.
        let loss = if whole.is_finite() { cross_entropy } else { whole };
        Ok(Step { loss, correct, gradients: model_gradients, statistics })
    }

    /// The pattern generator's part of a classifier step, after the classifier's own.
    pub(crate) fn pattern_step(&mut self) -> Result<()> {
        let Some((gradients, met)) = self.now.pending.take() else { return Ok(()) };
        let state = &mut self.networks.pattern_state;
        state.absorb_at(MOMENTUM, &met)?;
        let gradients = match (self.setup.parameters.generator_gradients, self.accumulated.take()) {
            (GeneratorGradients::Accumulated, Some(sum)) => sum.mix(1.0, &gradients, 1.0)?,
            _ => gradients,
        };
        self.pattern_adam.step_at(self.now.pattern_rate, state, &gradients)?;
        if self.setup.parameters.generator_gradients == GeneratorGradients::Accumulated {
            self.accumulated = Some(gradients);
        }
        Ok(())
    }
}

impl StepRule for Training {
    fn preparation(&mut self) -> Option<&mut dyn Preparation> {
        Some(self)
    }

    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        let after = |milestones: Vec<usize>, rate, epochs| {
            let mut schedule = ScheduleState::new(rate);
            let steps = Schedule::MultiStep { milestones, gamma: 0.1 };
            (0..epochs).for_each(|_| schedule.step(&steps, 0.0));
            schedule.learning_rate()
        };
        let mask_milestones = MASK_MILESTONES.map(|share| (share * self.setup.mask_epochs as f64).round() as usize);
        let classified = epoch.saturating_sub(self.setup.mask_epochs);
        self.now = Now {
            others: Box::new(self.setup.others.clone().into_epoch(epoch)),
            coin: self.setup.streams.stream("input-aware/coin", epoch as u64),
            pattern_rate: after(PATTERN_MILESTONES.to_vec(), self.setup.parameters.pattern_learning_rate, classified),
            mask_rate: after(mask_milestones.to_vec(), self.setup.parameters.mask_learning_rate, epoch),
            pending: None,
        };
        Ok(())
    }

    fn compute(&mut self, model: &Model, batch: &Batch) -> Result<Step> {
        let others = self.others()?;
        let poisoned = self.poisoned(batch.len());
        self.classifier_step(model, batch, &others, poisoned)
    }

    fn after(&mut self, _: &mut Model, _: &Batch) -> Result<()> {
        self.pattern_step()
    }

    fn describe(&self) -> String {
        let augmented = self.setup.loader.augmentation.is_some();
        format!(
            "Input-aware, {:?}, {:?}, {} mask epochs, augmented {augmented}",
            self.setup.poisoning, self.setup.parameters, self.setup.mask_epochs
        )
    }

    fn state(&self) -> Result<IndexMap<String, Tensor>> {
        let Networks { pattern_state, mask_state, .. } = &self.networks;
        let mut state: IndexMap<_, _> = pattern_state.tensors(PATTERN).chain(mask_state.tensors(MASK)).collect();
        state.extend(self.pattern_adam.tensors(PATTERN)?);
        state.extend(self.mask_adam.tensors(MASK)?);
        let sums = self.accumulated.iter().flat_map(ParameterGradients::iter);
        state.extend(sums.map(|(name, sum)| (format!("{SUM}{name}"), sum.clone())));
        Ok(state)
    }

    fn restore(&mut self, state: IndexMap<String, Tensor>) -> Result<()> {
        self.networks.pattern_state.restore(PATTERN, &state)?;
        self.networks.mask_state.restore(MASK, &state)?;
        self.pattern_adam.restore(PATTERN, &state)?;
        self.mask_adam.restore(MASK, &state)?;
        // There are sums from the pattern generator's first step on.
        let summed = self.setup.parameters.generator_gradients == GeneratorGradients::Accumulated
            && self.pattern_adam.steps() > 0;
        let sum = |(name, parameter): (&str, &Tensor)| match state.get(&format!("{SUM}{name}")) {
            Some(sum) => Ok((name.to_owned(), sum.to_device(parameter.device())?)),
            None => {
                let example = state.keys().next().cloned().unwrap_or_default();
                Err(tsbd_nn::Error::UnknownTensor { name: format!("{SUM}{name}"), example })
            }
        };
        let sums = || self.networks.pattern_state.parameters().map(sum).collect::<Result<ParameterGradients>>();
        self.accumulated = summed.then(sums).transpose()?;
        Ok(())
    }
}

/// Before the names of summed gradients in a checkpoint.
const SUM: &str = "sum.";

impl Preparation for Training {
    fn epochs(&self) -> usize {
        self.setup.mask_epochs
    }

    fn step(&mut self, batch: &Batch) -> Result<f64> {
        let others = self.others()?;
        self.mask_step(&batch.images, &others)
    }
}

impl ControlledTraining for Training {
    fn config(&self) -> &TrainingConfig {
        &self.setup.config
    }

    fn batches(&self) -> Arc<dyn BatchSource> {
        Arc::new(self.setup.loader.clone())
    }

    fn facts(&self) -> PoisonFacts {
        self.setup.facts.clone()
    }

    fn save_trigger(&self, path: &Path) -> Result<(), Error> {
        Ok(self.networks.save(path)?)
    }
}

/// Images `[a, height, width, 3]`, `[b, height, width, 3]`, ... one after another.
fn stacked(parts: &[Var]) -> Result<Var> {
    let flat =
        parts.iter().map(|part| part.reshape(&[1, part.tensor().elem_count()])).collect::<Result<Vec<_>, _>>()?;
    let mut dims = parts[0].dims().to_vec();
    dims[0] = parts.iter().map(|part| part.dims()[0]).sum();
    Ok(Var::concat_channels(&flat.iter().collect::<Vec<_>>())?.reshape(&dims)?)
}

fn scalar(value: &Var) -> Result<f64> {
    Ok(value.tensor().to_dtype(tsbd_tensor::DType::F64)?.to_scalar::<f64>()?)
}
