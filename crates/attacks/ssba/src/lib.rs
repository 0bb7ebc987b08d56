//! SSBA: every image carries a trigger of its own, a fingerprint that a trained encoder hides in it.
//!
//! Y. Li, Y. Li, B. Wu, L. Li, R. He, S. Lyu, "Invisible Backdoor Attack with Sample-Specific Triggers", ICCV 2021 (arXiv
//! 2012.03816), in the form of BackdoorBench's `attack/ssba.py` and `resource/ssba`.
//!
//! The groundwork trains StegaStamp's encoder and decoder ([`networks`]) on the training images and draws one
//! fingerprint of 100 bits. Poisoning replaces an image by what the encoder makes of it with that fingerprint, rounded to
//! 8 bits. Dirty label. BackdoorBench looks encoded images up in files that have to be downloaded; here they are made,
//! and only those that are poisoned.

pub mod networks;
mod training;

use std::sync::Arc;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tsbd_attack::parameters::{join, read};
use tsbd_attack::trigger::poison;
use tsbd_attack::{
    Attack, AttackEntry, Candidates, DatasetFacts, Error, Groundwork, GroundworkContext, Material, ParameterError,
    Poisoner, Poisoning, Stamp,
};
use tsbd_data::{CHANNELS, Dataset, ImageSource, Images, Picture};
use tsbd_nn::random::Streams;
use tsbd_nn::{Mode, Network, Pass, StateDict};
use tsbd_tensor::{Tensor, Var};

use networks::{Encoder, PICTURE};
use training::{levels, pixels, random_fingerprints};

/// The registry's entry.
pub static SSBA: AttackEntry = AttackEntry {
    name: "ssba",
    title: "SSBA",
    paper: "Li et al. 2021, arXiv 2012.03816",
    summary: "a trained encoder hides a fingerprint in the image",
    revision: 1,
    schema: || schemars::schema_for!(Parameters),
    configure,
};

/// How the encoder's and the decoder's weights begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Initialization {
    /// PyTorch's defaults, as in BackdoorBench: each layer weakens its input, so that it takes many steps before anything
    /// of the fingerprint reaches the decoder.
    #[default]
    Pytorch,
    /// That of He et al. 2015 (variance 2 / fan-in, biases 0), as in StegaStamp's own code: the fingerprint reaches the
    /// decoder from the first step on, and ten times the learning rate works.
    He,
}

/// SSBA's own parameters. All of them are about the training of the encoder; defaults as in BackdoorBench.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// Filters of the encoder's first convolution; the others follow. Decides what poisoning costs.
    pub encoder_width: usize,
    /// Filters of the decoder's first convolution; the others follow. Its last has four times as many, for 100 bits.
    pub decoder_width: usize,
    /// How many times the encoder is shown the training images.
    pub encoder_epochs: usize,
    /// `pytorch` or `he`: how the encoder's weights begin.
    pub initialization: Initialization,
    /// Images per step of the encoder's training.
    pub batch_size: usize,
    /// Learning rate of the encoder's training (Adam).
    pub learning_rate: f64,
    /// Full weight of the image's loss (mean squared change of values from 0 to 1); the loss of the bits has 1.
    pub image_loss_weight: f64,
    /// Steps between the first batch with more than 90 % of the bits read right and the first with a weight above 0.
    pub image_loss_wait: usize,
    /// Steps in which the weight rises to its full height.
    pub image_loss_ramp: usize,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters {
            encoder_width: 32,
            decoder_width: 32,
            encoder_epochs: 20,
            initialization: Initialization::Pytorch,
            batch_size: 64,
            learning_rate: 1e-4,
            image_loss_weight: 10.0,
            image_loss_wait: 1000,
            image_loss_ramp: 3000,
        }
    }
}

/// The attack, checked.
#[derive(Debug, Clone)]
struct Ssba {
    poisoning: Poisoning,
    training: EncoderTraining,
}

fn configure(poisoning: &Poisoning, own: Value) -> Result<Box<dyn Attack>, ParameterError> {
    poisoning.check_ranges()?;
    let parameters: Parameters = read(&own)?;
    ParameterError::unless_width("encoder_width", parameters.encoder_width)?;
    ParameterError::unless_width("decoder_width", parameters.decoder_width)?;
    ParameterError::unless_nonzero("encoder_epochs", parameters.encoder_epochs)?;
    ParameterError::unless_nonzero("batch_size", parameters.batch_size)?;
    ParameterError::unless_positive("learning_rate", parameters.learning_rate)?;
    ParameterError::unless_positive("image_loss_weight", parameters.image_loss_weight)?;
    ParameterError::unless_nonzero("image_loss_ramp", parameters.image_loss_ramp)?;
    Ok(Box::new(Ssba { poisoning: poisoning.clone(), training: EncoderTraining { parameters } }))
}

/// The groundwork: both networks, trained, and the fingerprint.
#[derive(Debug, Clone)]
struct EncoderTraining {
    parameters: Parameters,
}

impl Groundwork for EncoderTraining {
    fn parameters(&self) -> Value {
        join(&serde_json::Map::new(), &self.parameters)
    }

    fn needs_clean_model(&self) -> bool {
        false
    }

    fn make(&self, context: &mut GroundworkContext<'_>) -> Result<Material, Error> {
        let pair = training::train(&self.parameters, context)?;
        let measured = pair.measure(&context.clean.test, &mut context.streams.stream("ssba/measured", 0))?;
        let fingerprint = random_fingerprints(&mut context.streams.stream("ssba/fingerprint", 0), 1)?;
        Ok(Material::new()
            .with_state("encoder", &pair.encoder_state)
            .with_state("decoder", &pair.decoder_state)
            .with_tensor("fingerprint", fingerprint)
            .with_metric("bit_accuracy", measured.bit_accuracy)
            .with_metric("image_mse", measured.image))
    }
}

/// An encoder that hides one fingerprint.
#[derive(Debug)]
struct Hiding {
    encoder: Encoder,
    state: StateDict,
    fingerprint: Tensor,
}

/// Images that are encoded together.
const BATCH: usize = 16;

impl Hiding {
    fn of(parameters: &Parameters, material: Option<&Material>) -> Result<Hiding, Error> {
        let material = material.ok_or(Error::NoMaterial)?;
        let encoder = Encoder::new(parameters.encoder_width);
        let state = material.state("encoder", encoder.modules())?;
        Ok(Hiding { encoder, state, fingerprint: material.tensor("fingerprint")?.clone() })
    }

    fn encode(&self, clean: &Images, indices: &[usize], picture: &Tensor) -> tsbd_nn::Result<Vec<u8>> {
        let images = Var::constant(pixels(clean, indices)?);
        let pictures = Var::constant(picture.clone()).broadcast_batch(indices.len())?;
        let pass = Pass::new(&self.encoder, &self.state, Mode::Eval);
        levels(self.encoder.encode(&pass, &images, &pictures)?.tensor())
    }
}

impl Stamp for Hiding {
    fn stamp(&self, clean: &Images, indices: &[usize]) -> Result<Vec<u8>, Error> {
        let pass = Pass::new(&self.encoder, &self.state, Mode::Eval);
        let fingerprint = Var::constant(self.fingerprint.clone());
        let picture = self.encoder.pictures(&pass, &fingerprint, clean.height())?;
        let picture = picture.tensor();
        let image = clean.height() * clean.width() * CHANNELS;
        let mut pixels = vec![0; indices.len() * image];
        let batches = indices.par_chunks(BATCH).zip(pixels.par_chunks_mut(BATCH * image));
        batches.try_for_each(|(indices, pixels)| -> tsbd_nn::Result<()> {
            pixels.copy_from_slice(&self.encode(clean, indices, picture)?);
            Ok(())
        })?;
        Ok(pixels)
    }
}

impl Attack for Ssba {
    fn parameters(&self) -> Value {
        join(&self.poisoning, &self.training.parameters)
    }

    fn check(&self, dataset: &DatasetFacts) -> Result<(), ParameterError> {
        self.poisoning.check(dataset)?;
        if dataset.size == 0 || !dataset.size.is_multiple_of(PICTURE) {
            return Err(ParameterError::new(
                "image_size",
                dataset.size,
                format!("the encoder takes images whose sides are multiples of {PICTURE} pixels"),
                format!("set data.image_size to one, for example {}", dataset.size.max(1).next_multiple_of(PICTURE)),
            ));
        }
        Ok(())
    }

    fn groundwork(&self) -> Option<&dyn Groundwork> {
        Some(&self.training)
    }

    fn prepare(&self, clean: &Arc<Dataset>, streams: &Streams, material: Option<&Material>) -> Result<Poisoner, Error> {
        let hiding = Hiding::of(&self.training.parameters, material)?;
        poison(clean, streams, &self.poisoning, Candidates::All, &hiding)
    }

    /// None: the trigger depends on the image.
    fn trigger_picture(&self, _: usize, _: usize, _: Option<&Material>) -> Result<Option<Picture>, Error> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
