//! ANP: adversarial neuron pruning, which removes the channels whose perturbation hurts the clean task.
//!
//! D. Wu, Y. Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021 (arXiv 2110.14430), in the
//! form of BackdoorBench's `defense/anp.py`:
//!
//! 1. Each channel of each batch norm has a mask m, 1 at first. In each of 2,000 iterations a batch of clean images is
//!    drawn with replacement; a perturbation of masks and biases is drawn and moved so that the loss grows; then the masks
//!    descend `alpha` times the loss without and `1 - alpha` times the loss with the perturbation.
//! 2. Channels whose mask (rounded to four decimals) is at most a threshold lose their batch norm's weight, in the
//!    original network. The threshold is chosen among 0, 0.05, ... 0.90.
//!
//! Cost: three forward and backward passes per iteration, without the gradients of convolutions' weights; 2,000
//! iterations of 256 images are 600 times the images of FT's epoch.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tsbd_attack::parameters::{join, read};
use tsbd_attack::{DatasetFacts, ParameterError};
use tsbd_data::{ImageSource, Loader, Subset};
use tsbd_nn::{Architecture, Batch, BatchSource, Model, RandomStream, Streams};
use tsbd_tensor::{Sgd, Tensor};

use crate::entry::{Defense, DefenseCommon, DefenseEntry, Repaired, TracePoint, as_everywhere};
use crate::masks::{ChannelMasks, MaskTraining, Noise, Slope};
use crate::pruning::{ChannelScores, MaskPruning, batch_norms, require_batch_norms};
use crate::selection::{Judge, ThresholdSelection};
use crate::{CleanSubset, Context, Error};

/// The registry's entry.
pub static ANP: DefenseEntry = DefenseEntry {
    name: "anp",
    title: "ANP",
    paper: "Wu and Wang, NeurIPS 2021, arXiv 2110.14430",
    summary: "prunes the batch-norm channels whose adversarial perturbation hurts clean images",
    revision: 1,
    schema: || schemars::schema_for!(Parameters),
    configure: |common, own| Ok(Box::new(Anp::new(common.clone(), read(&own)?)?)),
    published: as_everywhere,
};

/// Iterations after which the mean loss is reported, as in BackdoorBench.
const REPORTED: usize = 500;

/// Where BackdoorBench's code departs from the paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// As BackdoorBench: a perturbation may leave the range in which it was drawn.
    #[default]
    Reference,
    /// As the paper: after each of its steps the perturbation is cut off at `epsilon`.
    Paper,
}

/// ANP's own parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// Who chooses the threshold: `validation` (clean images held out of the subset), `oracle` (the test sets, as
    /// BackdoorBench does) or `fixed` (`threshold` as given).
    pub selection: ThresholdSelection,
    /// `reference` or `paper`.
    pub variant: Variant,
    /// Share of the clean images that is held out with `selection = "validation"`; greater than 0, less than 1.
    pub validation_share: f64,
    /// With `selection = "fixed"`: channels whose mask is at most this are pruned; from 0 to 1.
    pub threshold: f64,
    /// With `validation` and `oracle`: the accuracy may lose less than this share of its first value.
    pub tolerance: f64,
    /// Steps of the masks' optimiser, rounded up to a multiple of 500 when there are more.
    pub iterations: usize,
    /// Learning rate of the masks. BackdoorBench's 0.01; the paper has 0.2.
    pub learning_rate: f64,
    /// Momentum of the masks' optimiser.
    pub momentum: f64,
    /// Range of the random perturbation of masks, and of biases as a share of them: from `-epsilon` to `epsilon`.
    pub epsilon: f64,
    /// Steps that make the perturbation adversarial, each of `epsilon / perturbation_steps` along the gradient's signs.
    pub perturbation_steps: usize,
    /// Share of the loss without perturbation in what the masks descend, from 0 to 1.
    pub alpha: f64,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters {
            selection: ThresholdSelection::Validation,
            variant: Variant::Reference,
            validation_share: 0.2,
            threshold: 0.2,
            tolerance: 0.1,
            iterations: 2000,
            learning_rate: 0.01,
            momentum: 0.9,
            epsilon: 0.4,
            perturbation_steps: 1,
            alpha: 0.2,
        }
    }
}

impl Parameters {
    fn check(&self) -> Result<(), ParameterError> {
        for (field, share) in [("threshold", self.threshold), ("momentum", self.momentum), ("alpha", self.alpha)] {
            ParameterError::unless_within(field, share, 0.0, 1.0)?;
        }
        ParameterError::unless_share("tolerance", self.tolerance)?;
        ParameterError::unless_positive("learning_rate", self.learning_rate)?;
        ParameterError::unless_within("epsilon", self.epsilon, 0.0, f64::MAX)?;
        ParameterError::unless_nonzero("iterations", self.iterations)?;
        ParameterError::unless_nonzero("perturbation_steps", self.perturbation_steps)?;
        ParameterError::unless_between("validation_share", self.validation_share, 0.0, 1.0)
    }

    /// One form for everything that means the same: a field that the selection does not use has its default, and iterations
    /// are as many as are made.
    fn canonical(self) -> Parameters {
        let fields = |of: &Parameters| [of.validation_share, of.threshold, of.tolerance];
        let [validation_share, threshold, tolerance] =
            self.selection.effective(fields(&self), fields(&Parameters::default()));
        let iterations = match self.iterations {
            few @ ..=REPORTED => few,
            more => more.next_multiple_of(REPORTED),
        };
        Parameters { validation_share, threshold, tolerance, iterations, ..self }
    }
}

/// ANP with checked parameters.
#[derive(Debug, Clone)]
pub struct Anp {
    common: DefenseCommon,
    parameters: Parameters,
}

impl Anp {
    /// Checks the parameters.
    pub fn new(common: DefenseCommon, parameters: Parameters) -> Result<Anp, ParameterError> {
        common.check_ranges()?;
        parameters.check()?;
        Ok(Anp { common, parameters: parameters.canonical() })
    }

    /// Step 1: the masks after training on `images`, rounded to four decimals, and the seconds that it took. Backdoor channels
    /// have the smallest.
    pub fn channel_masks(
        &self,
        model: &Model,
        images: Arc<dyn ImageSource>,
        context: &mut Context,
        trace: &mut Vec<TracePoint>,
    ) -> Result<(ChannelScores, f64), Error> {
        let Parameters { iterations, epsilon, .. } = self.parameters;
        let source = WithReplacement {
            batches: iterations.min(REPORTED),
            streams: context.streams,
            loader: context.augmented(images, "anp/augmentation", self.common.batch_size),
        };
        let training =
            MaskTraining { stage: "masks", rate_parameter: "learning_rate", epochs: iterations.div_ceil(REPORTED) };
        let model = &Model { precision: self.common.precision, ..model.clone() };
        let mut masks = ChannelMasks::ones(model)?;
        let (streams, run) = (context.streams, model.state.digest()?);
        let seconds = training.run(&mut masks, &source, &run, context, trace, &mut |masks, number, batch| {
            let noise = Noise::draw(model, epsilon, &mut streams.stream("anp/perturbation", number as u64))?;
            self.step(model, masks, batch, noise)
        })?;
        Ok((masks.rounded()?, seconds))
    }

    /// One iteration that begins with the perturbation `noise`; the loss that the masks descended.
    fn step(&self, model: &Model, masks: &mut ChannelMasks, batch: &Batch, noise: Noise) -> Result<f64, Error> {
        let Parameters { learning_rate, momentum, .. } = self.parameters;
        let adversarial = self.adversarial(model, masks, batch, noise)?;
        let Slope { loss, gradients } = self.slope(model, masks, batch, &adversarial)?;
        masks.descend(&gradients, Sgd { learning_rate, momentum, weight_decay: 0.0 })?;
        Ok(loss)
    }

    /// The perturbation `noise`, moved so that the loss grows.
    fn adversarial(
        &self,
        model: &Model,
        masks: &ChannelMasks,
        batch: &Batch,
        mut noise: Noise,
    ) -> Result<Noise, Error> {
        let Parameters { variant, epsilon, perturbation_steps, .. } = self.parameters;
        for _ in 0..perturbation_steps {
            let slope = masks.noise_slope(model, batch, &noise)?;
            noise = noise.uphill(&slope.gradients, epsilon / perturbation_steps as f64)?;
            if variant == Variant::Paper {
                noise = noise.within(epsilon)?;
            }
        }
        Ok(noise)
    }

    /// `alpha` times the loss without and `1 - alpha` times the loss with `noise`, and its gradients with respect to the masks.
    fn slope(
        &self,
        model: &Model,
        masks: &ChannelMasks,
        batch: &Batch,
        noise: &Noise,
    ) -> Result<Slope<Vec<Tensor>>, Error> {
        let alpha = self.parameters.alpha;
        let perturbed = masks.slope(model, batch, Some(noise))?;
        let natural = masks.slope(model, batch, None)?;
        let mixed = natural.gradients.iter().zip(&perturbed.gradients);
        let mixed = mixed.map(|(natural, perturbed)| (natural * alpha)? + (perturbed * (1.0 - alpha))?);
        let loss = alpha * natural.loss + (1.0 - alpha) * perturbed.loss;
        Ok(Slope { loss, gradients: mixed.collect::<Result<_, _>>()? })
    }
}

impl Noise {
    /// Uniform numbers from `-epsilon` to `epsilon` for masks and biases of every batch norm.
    fn draw(model: &Model, epsilon: f64, stream: &mut RandomStream) -> Result<Noise, Error> {
        let mut noise = Noise { weights: Vec::new(), biases: Vec::new() };
        for (norm, channels) in batch_norms(model.architecture.as_ref()) {
            let device = model.state.get(&format!("{norm}.weight"))?.device();
            for part in [&mut noise.weights, &mut noise.biases] {
                let drawn: Vec<f32> = (0..channels).map(|_| stream.uniform_in(-epsilon, epsilon) as f32).collect();
                part.push(Tensor::new(drawn, device)?);
            }
        }
        Ok(noise)
    }

    /// A step of `length` along the signs of the gradient; a number whose gradient is 0 stays.
    fn uphill(&self, gradients: &Noise, length: f64) -> Result<Noise, Error> {
        let moved = |values: &[Tensor], gradients: &[Tensor]| {
            values.iter().zip(gradients).map(|(value, gradient)| value + (gradient.sign()? * length)?).collect()
        };
        let weights: candle_core::Result<_> = moved(&self.weights, &gradients.weights);
        let biases: candle_core::Result<_> = moved(&self.biases, &gradients.biases);
        Ok(Noise { weights: weights?, biases: biases? })
    }

    /// Cut off at `-epsilon` and `epsilon`.
    fn within(&self, epsilon: f64) -> Result<Noise, Error> {
        let cut = |values: &[Tensor]| values.iter().map(|value| value.clamp(-epsilon, epsilon)).collect();
        let (weights, biases): (candle_core::Result<_>, candle_core::Result<_>) =
            (cut(&self.weights), cut(&self.biases));
        Ok(Noise { weights: weights?, biases: biases? })
    }
}

/// Batches of images drawn with replacement, as PyTorch's `RandomSampler` draws them.
struct WithReplacement {
    /// Batches of each epoch.
    batches: usize,
    streams: Streams,
    /// What loads the images once they are drawn.
    loader: Loader,
}

impl BatchSource for WithReplacement {
    fn images_per_epoch(&self) -> usize {
        self.batches * self.loader.batch_size
    }

    fn batches_per_epoch(&self) -> usize {
        self.batches
    }

    fn epoch<'a>(&'a self, epoch: usize) -> Box<dyn Iterator<Item = tsbd_nn::Result<Batch>> + 'a> {
        let (mut stream, images) = (self.streams.stream("anp/draw", epoch as u64), self.loader.source.len() as u64);
        let drawn = (0..self.images_per_epoch()).map(|_| stream.below(images) as u32).collect();
        let source = Arc::new(Subset::new(self.loader.source.clone(), drawn));
        Box::new(Loader { source, ..self.loader.clone() }.into_epoch(epoch))
    }
}

impl Defense for Anp {
    fn parameters(&self) -> Value {
        join(&self.common, &self.parameters)
    }

    fn common(&self) -> &DefenseCommon {
        &self.common
    }

    fn check(&self, architecture: &dyn Architecture, dataset: &DatasetFacts) -> Result<(), ParameterError> {
        self.common.check(dataset)?;
        if self.parameters.selection == ThresholdSelection::Validation {
            self.common.check_held_out(dataset, self.parameters.validation_share)?;
        }
        require_batch_norms(architecture, ANP.name)
    }

    fn scored_layers(&self, architecture: &dyn Architecture) -> Vec<String> {
        batch_norms(architecture).map(|(norm, _)| norm.to_owned()).collect()
    }

    /// An iteration takes the gradient of each step of the perturbation, and one with and one without it; none of them those
    /// of the weights.
    fn image_passes(&self, _: &DatasetFacts) -> f64 {
        let Parameters { iterations, perturbation_steps, .. } = self.parameters;
        (iterations * (perturbation_steps + 2) * self.common.batch_size) as f64 * 2.0 / 3.0
    }

    fn repair(&self, backdoored: &Model, clean: &CleanSubset, context: &mut Context) -> Result<Repaired, Error> {
        let Parameters { selection, variant, validation_share, threshold, tolerance, .. } = self.parameters;
        let (images, held_out) = selection.split(clean, validation_share);
        let (images_used, mut trace) = (images.len(), Vec::new());
        let (masks, masks_seconds) = self.channel_masks(backdoored, images, context, &mut trace)?;
        let facts =
            [("variant", json!(variant)), ("images_used", json!(images_used)), ("masks_seconds", json!(masks_seconds))];
        let judge = Judge { selection, tolerance, held_out, batch_size: self.common.batch_size };
        MaskPruning { masks: &masks, fixed: threshold, judge }.repair(backdoored, facts, context, trace)
    }
}

#[cfg(test)]
mod tests;
