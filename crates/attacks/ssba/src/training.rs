//! Training of the encoder and the decoder, on the attacker's training images.
//!
//! As BackdoorBench's `resource/ssba/train.py`: every image of a batch gets a random fingerprint of its own; the loss is
//! the binary cross-entropy of the decoder's bits plus a weight times the mean squared change of the image (values from
//! 0 to 1). The weight is 0 until the decoder reads more than nine bits of ten, stays 0 for a while after that, and then
//! rises to its full height: first the fingerprints become readable, then invisible.

use indexmap::IndexMap;
use tsbd_attack::GroundworkContext;
use tsbd_data::{CHANNELS, ImageSource, Images};
use tsbd_nn::{
    Adam, AdamConfig, Error, Mode, Module, Network, ParameterGradients, Pass, RandomStream, Result, StateDict,
};
use tsbd_tensor::{DType, Device, Tape, Tensor, Var};

use crate::networks::{BITS, Decoder, Encoder};
use crate::{Initialization, Parameters};

/// The bit accuracy of a batch beyond which the image's loss is on its way.
const READABLE: f64 = 0.9;

/// The weight of the image's loss.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageWeight {
    full: f64,
    wait: usize,
    ramp: usize,
    /// Steps since a batch was readable.
    steps: Option<usize>,
}

impl ImageWeight {
    pub(crate) fn new(parameters: &Parameters) -> ImageWeight {
        let Parameters { image_loss_weight, image_loss_wait, image_loss_ramp, .. } = *parameters;
        ImageWeight { full: image_loss_weight, wait: image_loss_wait, ramp: image_loss_ramp, steps: None }
    }

    /// The weight for the next step.
    pub(crate) fn now(&self) -> f64 {
        let beyond = self.steps.unwrap_or(0) as f64 - self.wait as f64;
        (self.full * beyond / self.ramp as f64).clamp(0.0, self.full)
    }

    /// Goes on after a step whose batch had this bit accuracy.
    pub(crate) fn advance(&mut self, bit_accuracy: f64) {
        self.steps = match self.steps {
            None => (bit_accuracy > READABLE).then_some(0),
            Some(steps) => Some(steps + 1),
        };
    }
}

/// Both networks with their weights.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub encoder: Encoder,
    pub decoder: Decoder,
    pub encoder_state: StateDict,
    pub decoder_state: StateDict,
}

/// What one batch gave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Losses {
    /// What was minimised.
    pub total: f64,
    /// The mean squared change of the image.
    pub image: f64,
    /// The share of the bits that the decoder read right.
    pub bit_accuracy: f64,
}

/// The optimisers of both networks.
pub(crate) struct Optimizers {
    encoder: Adam,
    decoder: Adam,
}

impl Pair {
    pub(crate) fn new(parameters: &Parameters, size: usize, stream: &mut RandomStream) -> Result<Pair> {
        let Parameters { encoder_width, decoder_width, initialization, .. } = *parameters;
        let (encoder, decoder) = (Encoder::new(encoder_width), Decoder::new(decoder_width, size));
        let encoder_state = initial(initialization, encoder.modules(), stream)?;
        let decoder_state = initial(initialization, decoder.modules(), stream)?;
        Ok(Pair { encoder, decoder, encoder_state, decoder_state })
    }

    pub(crate) fn optimizers(&self, config: AdamConfig) -> Result<Optimizers> {
        Ok(Optimizers {
            encoder: Adam::new(config, &self.encoder_state)?,
            decoder: Adam::new(config, &self.decoder_state)?,
        })
    }

    /// The losses of `images` `[n, size, size, 3]` (0 to 1) with `fingerprints` `[n, 100]`, and the gradients of their
    /// total for the encoder and for the decoder.
    pub(crate) fn differentiate(
        &self,
        images: &Tensor,
        fingerprints: &Tensor,
        image_weight: f64,
    ) -> Result<(Losses, [ParameterGradients; 2])> {
        let tape = Tape::new();
        let encoder = Pass::new(&self.encoder, &self.encoder_state, Mode::Train).on_tape(&tape);
        let decoder = Pass::new(&self.decoder, &self.decoder_state, Mode::Train).on_tape(&tape);
        let clean = Var::constant(images.clone());
        let pictures = self.encoder.pictures(&encoder, &Var::constant(fingerprints.clone()), images.dims()[1])?;
        let encoded = self.encoder.encode(&encoder, &clean, &pictures)?;
        let logits = self.decoder.decode(&decoder, &encoded)?;
        let image = encoded.mean_squared_error(&clean)?;
        let total = image.scale(image_weight)?.add(&logits.binary_cross_entropy(fingerprints)?)?;
        let losses = Losses {
            total: number(total.tensor())?,
            image: number(image.tensor())?,
            bit_accuracy: bit_accuracy(logits.tensor(), fingerprints)?,
        };
        let mut gradients = tape.clone().backward(&total)?;
        Ok((losses, [encoder.gradients(&mut gradients)?, decoder.gradients(&mut gradients)?]))
    }

    /// One step of training on a batch; see [`Self::differentiate`].
    pub(crate) fn step(
        &mut self,
        images: &Tensor,
        fingerprints: &Tensor,
        image_weight: f64,
        optimizers: &mut Optimizers,
    ) -> Result<Losses> {
        let (losses, [encoder, decoder]) = self.differentiate(images, fingerprints, image_weight)?;
        optimizers.encoder.step(&mut self.encoder_state, &encoder)?;
        optimizers.decoder.step(&mut self.decoder_state, &decoder)?;
        Ok(losses)
    }
}

/// The weights that a network begins with.
fn initial(kind: Initialization, modules: &[Module], stream: &mut RandomStream) -> Result<StateDict> {
    if kind == Initialization::Pytorch {
        return StateDict::initial(modules, stream);
    }
    StateDict::build(modules, |_, slot| {
        let dims = slot.layout.file_dims(&slot.dims);
        let values = match dims[1..].iter().product::<usize>() {
            _ if dims.len() == 1 => vec![0.0; dims[0]],
            fan_in => {
                let bound = (6.0 / fan_in as f64).sqrt();
                (0..dims.iter().product()).map(|_| stream.uniform_in(-bound, bound) as f32).collect()
            }
        };
        Ok(Tensor::from_vec(values, slot.dims.as_slice(), &Device::Cpu)?)
    })
}

/// Images that a trained pair is measured on.
const MEASURED: usize = 1000;

impl Pair {
    /// How well fingerprints are read out of encoded 8-bit images, and how far those are from the images, as means over
    /// the first of `images` with random fingerprints.
    pub(crate) fn measure(&self, images: &Images, stream: &mut RandomStream) -> Result<Measured> {
        let encoder = Pass::new(&self.encoder, &self.encoder_state, Mode::Eval);
        let decoder = Pass::new(&self.decoder, &self.decoder_state, Mode::Eval);
        let indices: Vec<usize> = (0..images.len().min(MEASURED)).collect();
        let (mut right, mut change) = (0.0, 0.0);
        for indices in indices.chunks(50) {
            let fingerprints = random_fingerprints(stream, indices.len())?;
            let clean = Var::constant(pixels(images, indices)?);
            let pictures = self.encoder.pictures(&encoder, &Var::constant(fingerprints.clone()), images.height())?;
            let encoded = levels(self.encoder.encode(&encoder, &clean, &pictures)?.tensor())?;
            let encoded = encoded.into_iter().map(|level| f32::from(level) / 255.0).collect();
            let encoded = Var::constant(Tensor::from_vec(encoded, clean.dims(), &Device::Cpu)?);
            let logits = self.decoder.decode(&decoder, &encoded)?;
            right += bit_accuracy(logits.tensor(), &fingerprints)? * indices.len() as f64;
            change += number(encoded.mean_squared_error(&clean)?.tensor())? * indices.len() as f64;
        }
        let count = indices.len() as f64;
        Ok(Measured { bit_accuracy: right / count, image: change / count })
    }
}

/// What a pair was measured to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    /// The share of the bits that the decoder reads right.
    pub bit_accuracy: f64,
    /// The mean squared change of the image, of values from 0 to 1.
    pub image: f64,
}

/// A training between two epochs.
struct Progress {
    pair: Pair,
    optimizers: Optimizers,
    weight: ImageWeight,
    /// The means over each epoch so far: loss, bit accuracy, image loss and its weight.
    history: Vec<[f64; 4]>,
}

/// Names of the history's numbers in the record.
const METRICS: [&str; 4] = ["loss", "bit_accuracy", "image_mse", "image_loss_weight"];
const HISTORY: &str = "history";
/// Steps since a batch was readable; -1 if none was.
const READABLE_STEPS: &str = "readable_steps";
/// Before the names of each network's tensors and of its optimiser's.
const ENCODER: &str = "encoder.";
const DECODER: &str = "decoder.";

impl Progress {
    fn tensors(&self) -> Result<IndexMap<String, Tensor>> {
        let Pair { encoder_state, decoder_state, .. } = &self.pair;
        let mut tensors: IndexMap<_, _> =
            encoder_state.tensors(ENCODER).chain(decoder_state.tensors(DECODER)).collect();
        tensors.extend(self.optimizers.encoder.tensors(ENCODER)?);
        tensors.extend(self.optimizers.decoder.tensors(DECODER)?);
        let steps = self.weight.steps.map_or(-1, |steps| steps as i64);
        tensors.insert(READABLE_STEPS.to_owned(), Tensor::new(steps, &Device::Cpu)?);
        tensors.insert(HISTORY.to_owned(), Tensor::new(self.history.concat(), &Device::Cpu)?);
        Ok(tensors)
    }

    fn restore(&mut self, tensors: &IndexMap<String, Tensor>) -> Result<()> {
        self.pair.encoder_state.restore(ENCODER, tensors)?;
        self.pair.decoder_state.restore(DECODER, tensors)?;
        self.optimizers.encoder.restore(ENCODER, tensors)?;
        self.optimizers.decoder.restore(DECODER, tensors)?;
        let find = |name: &str| {
            let example = tensors.keys().next().cloned().unwrap_or_default();
            tensors.get(name).ok_or_else(|| Error::UnknownTensor { name: name.to_owned(), example })
        };
        self.weight.steps = usize::try_from(find(READABLE_STEPS)?.to_scalar::<i64>()?).ok();
        self.history = find(HISTORY)?.to_vec1::<f64>()?.as_chunks().0.to_vec();
        Ok(())
    }
}

/// Trains a pair, from the last epoch that was kept on, if one was; the same images, parameters and streams give the same bits.
pub(crate) fn train(parameters: &Parameters, context: &mut GroundworkContext<'_>) -> Result<Pair, tsbd_attack::Error> {
    const STAGE: &str = "train the encoder";
    let train = &context.clean.train;
    let streams = context.streams;
    let tell = |context: &mut GroundworkContext<'_>, epoch: usize, means: [f64; 4]| {
        let metrics: Vec<_> = METRICS.into_iter().zip(means).collect();
        context.round(STAGE, epoch, &metrics);
    };
    let pair = Pair::new(parameters, train.height(), &mut streams.stream("ssba/weights", 0))?;
    let optimizers = pair.optimizers(AdamConfig::new(parameters.learning_rate))?;
    let mut progress = Progress { pair, optimizers, weight: ImageWeight::new(parameters), history: Vec::new() };
    let run = format!("SSBA, {parameters:?}, images {}, seed {}", train.digest(), streams.seed());
    if let Some(kept) = context.kept(&run) {
        progress.restore(&kept)?;
        progress.history.iter().enumerate().for_each(|(epoch, means)| tell(context, epoch, *means));
    }
    let batches = train.len().div_ceil(parameters.batch_size);
    let total = parameters.encoder_epochs * batches;
    for epoch in progress.history.len()..parameters.encoder_epochs {
        let Progress { pair, optimizers, weight, history } = &mut progress;
        let order = streams.stream("ssba/order", epoch as u64).permutation(train.len());
        let (mut accuracy, mut image, mut loss) = (0.0, 0.0, 0.0);
        for (batch, indices) in order.chunks(parameters.batch_size).enumerate() {
            let step = epoch * batches + batch;
            let fingerprints = random_fingerprints(&mut streams.stream("ssba/bits", step as u64), indices.len())?;
            let places: Vec<usize> = indices.iter().map(|&index| index as usize).collect();
            let images = pixels(train, &places)?;
            let losses = pair.step(&images, &fingerprints, weight.now(), optimizers)?;
            if !losses.total.is_finite() {
                let indices = indices.to_vec();
                return Err(Error::NonFiniteLoss { epoch, step: batch, loss: losses.total, indices }.into());
            }
            weight.advance(losses.bit_accuracy);
            (accuracy, image, loss) = (accuracy + losses.bit_accuracy, image + losses.image, loss + losses.total);
            context.step(STAGE, step + 1, total, Some(losses.total))?;
        }
        let mean = |sum: f64| sum / batches as f64;
        let means = [mean(loss), mean(accuracy), mean(image), weight.now()];
        tell(context, epoch, means);
        history.push(means);
        context.keep(&run, &progress.tensors()?)?;
    }
    Ok(progress.pair)
}

/// `[count, 100]` fair coins.
pub(crate) fn random_fingerprints(stream: &mut RandomStream, count: usize) -> Result<Tensor> {
    let bits: Vec<f32> = (0..count * BITS).map(|_| if stream.coin() { 1.0 } else { 0.0 }).collect();
    Ok(Tensor::from_vec(bits, (count, BITS), &Device::Cpu)?)
}

/// Images as `[n, size, size, 3]` from 0 to 1.
pub(crate) fn pixels(images: &Images, indices: &[usize]) -> Result<Tensor> {
    let levels = indices.iter().flat_map(|&index| images.image(index));
    let values: Vec<f32> = levels.map(|&level| f32::from(level) / 255.0).collect();
    let dims = (indices.len(), images.height(), images.width(), CHANNELS);
    Ok(Tensor::from_vec(values, dims, &Device::Cpu)?)
}

/// Values from 0 to 1 as 8-bit levels; a half is rounded up, as torchvision's `save_image` does.
pub(crate) fn levels(images: &Tensor) -> Result<Vec<u8>> {
    let values = images.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(|value| (value * 255.0 + 0.5).clamp(0.0, 255.0) as u8).collect())
}

/// The share of the bits whose logits have the right sign.
pub(crate) fn bit_accuracy(logits: &Tensor, fingerprints: &Tensor) -> Result<f64> {
    let flat = |tensor: &Tensor| tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let (logits, bits) = (flat(logits)?, flat(fingerprints)?);
    let right = logits.iter().zip(&bits).filter(|(logit, bit)| (**logit > 0.0) == (**bit > 0.5)).count();
    Ok(right as f64 / bits.len() as f64)
}

fn number(tensor: &Tensor) -> Result<f64> {
    Ok(tensor.to_dtype(DType::F64)?.to_scalar::<f64>()?)
}
