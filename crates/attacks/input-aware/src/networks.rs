//! Both generators with their weights, and the trigger they make.

use std::path::Path;

use tsbd_data::{CHANNELS, Normalization};
use tsbd_nn::{Mode, Network, Pass, Result, StateDict, Streams};
use tsbd_tensor::{Device, Tensor, Var};

use crate::generator::{Generator, threshold};

/// Before the names of the pattern generator's tensors in files, and of the mask generator's: the reference's names.
pub(crate) const PATTERN: &str = "netG.";
pub(crate) const MASK: &str = "netM.";

/// The pattern generator and the mask generator.
#[derive(Debug, Clone)]
pub struct Networks {
    /// Makes three channels of an image.
    pub pattern: Generator,
    /// Its weights.
    pub pattern_state: StateDict,
    /// Makes one channel.
    pub mask: Generator,
    /// Its weights.
    pub mask_state: StateDict,
}

impl Networks {
    /// Both with PyTorch's default initialisation, drawn from `streams`.
    pub fn initial(width: usize, streams: &Streams) -> Result<Networks> {
        let (pattern, mask) = (Generator::new(width, CHANNELS), Generator::new(width, 1));
        let pattern_state = StateDict::initial(pattern.modules(), &mut streams.stream("input-aware/pattern", 0))?;
        let mask_state = StateDict::initial(mask.modules(), &mut streams.stream("input-aware/mask", 0))?;
        Ok(Networks { pattern, pattern_state, mask, mask_state })
    }

    /// Those in the file `path`, written by [`Networks::save`].
    pub fn load(width: usize, path: &Path) -> Result<Networks> {
        let (pattern, mask) = (Generator::new(width, CHANNELS), Generator::new(width, 1));
        let parts = [(PATTERN, pattern.modules()), (MASK, mask.modules())];
        let [pattern_state, mask_state] = StateDict::load_together(path, parts)?;
        Ok(Networks { pattern, pattern_state, mask, mask_state })
    }

    /// The same with their weights on another device.
    pub fn to_device(&self, device: &Device) -> Result<Networks> {
        let (pattern_state, mask_state) = (self.pattern_state.to_device(device)?, self.mask_state.to_device(device)?);
        Ok(Networks { pattern_state, mask_state, ..self.clone() })
    }

    /// Writes both to the safetensors file `path`, with PyTorch's names and layouts.
    pub fn save(&self, path: &Path) -> Result<()> {
        StateDict::save_together(path, &[(PATTERN, &self.pattern_state), (MASK, &self.mask_state)])
    }

    /// The masks of normalised images `[batch, height, width, 3]`: `[batch, height, width, 1]` in (0, 1), by running
    /// estimates and without gradients.
    pub fn masks(&self, images: &Tensor) -> Result<Tensor> {
        let pass = Pass::new(&self.mask, &self.mask_state, Mode::Eval);
        let output = self.mask.forward(&pass, &Var::constant(images.contiguous()?))?;
        Ok(threshold(&output)?.tensor().clone())
    }

    /// Images with their own triggers: [`stamped`] with their own patterns and masks, by running estimates.
    pub fn triggered(&self, images: &Tensor, normalization: &Normalization) -> Result<Tensor> {
        let images = Var::constant(images.contiguous()?);
        let pass = Pass::new(&self.pattern, &self.pattern_state, Mode::Eval);
        let patterns = normalized(&self.pattern.forward(&pass, &images)?, normalization)?;
        Ok(stamped(&images, &patterns, &self.masks(images.tensor())?)?.tensor().clone())
    }
}

/// A pattern generator's output `[batch, height, width, 3]` as the pixels of an image: minus the mean, over the deviation.
pub fn normalized(output: &Var, normalization: &Normalization) -> Result<Var> {
    let everywhere = |values: [f32; CHANNELS]| -> Result<Var> {
        let tensor = output.tensor();
        let values = Tensor::new(&values, tensor.device())?.to_dtype(tensor.dtype())?;
        Ok(Var::constant(values.broadcast_as(tensor.dims())?.contiguous()?))
    };
    Ok(output.sub(&everywhere(normalization.mean)?)?.div(&everywhere(normalization.std)?)?)
}

/// `image + (pattern - image) * mask`: `[batch, height, width, 3]`, the mask `[batch, height, width, 1]`.
pub fn stamped(images: &Var, patterns: &Var, masks: &Tensor) -> Result<Var> {
    let masks = Var::constant(masks.broadcast_as(images.dims())?.contiguous()?);
    Ok(images.add(&patterns.sub(images)?.mul(&masks)?)?)
}
