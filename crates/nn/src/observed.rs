//! What a trained network says about images, and how that changes with the images: for whatever searches images or
//! triggers on a fixed network.

use tsbd_tensor::{Tape, Tensor, Var};

use crate::{Error, Mode, Model, Result};

/// An output of a network in [`Mode::Eval`], recorded so that it can be differentiated with respect to the images once.
#[derive(Debug)]
pub struct Observed {
    tape: Tape,
    images: Var,
    output: Var,
}

impl Model {
    /// The logits of `images` `[batch, height, width, channel]`, or the output `tap` (see [`crate::Pass::tapping`]), by
    /// the running estimates of batch norms. The weights are constants: no work is spent on their gradients.
    pub fn observe(&self, images: &Tensor, tap: Option<&str>) -> Result<Observed> {
        let tape = Tape::new();
        let images = tape.leaf(images);
        let pass = self.pass(Mode::Eval).tapping(tap);
        let logits = pass.through(&images)?;
        let output = match tap {
            Some(tap) => pass.require_tap(tap)?,
            None => logits,
        };
        Ok(Observed { tape, images, output })
    }
}

impl Observed {
    /// The output.
    pub fn output(&self) -> &Tensor {
        self.output.tensor()
    }

    /// The gradient of `Σ seed · output` with respect to the images, in their shape; `seed` has the output's shape.
    pub fn gradient(self, seed: &Tensor) -> Result<Tensor> {
        let mut gradients = self.tape.backward_from(&[(&self.output, seed)])?;
        gradients.take(&self.images).ok_or(Error::InputUnused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny::{batches, model};
    use tsbd_tensor::{DType, Device};

    /// The slope along a direction, by the gradient and by two evaluations beside the point, in double precision.
    fn slopes(tap: Option<&str>) -> (f64, f64) {
        let mut model = model(1);
        model.state = model.state.to_dtype(DType::F64).unwrap();
        let images = batches(1)[0].images.to_dtype(DType::F64).unwrap();
        let noise = |shift: usize| {
            let count = images.elem_count();
            let values: Vec<f64> = (0..count).map(|place| ((place * 37 + shift) % 19) as f64 / 9.0 - 1.0).collect();
            Tensor::from_vec(values, images.dims(), &Device::Cpu).unwrap()
        };
        let direction = noise(3);
        let observed = model.observe(&images, tap).unwrap();
        let count = observed.output().elem_count();
        let seed: Vec<f64> = (0..count).map(|place| (place % 7) as f64 - 2.5).collect();
        let seed = Tensor::from_vec(seed, observed.output().dims(), &Device::Cpu).unwrap();
        let sum = |tensor: Tensor| tensor.sum_all().unwrap().to_scalar::<f64>().unwrap();
        let value = |step: f64| {
            let moved = (&images + (&direction * step).unwrap()).unwrap();
            sum((model.observe(&moved, tap).unwrap().output() * &seed).unwrap())
        };
        let step = 1e-6;
        let numeric = (value(step) - value(-step)) / (2.0 * step);
        (sum((observed.gradient(&seed).unwrap() * &direction).unwrap()), numeric)
    }

    #[test]
    fn gradients_with_respect_to_the_images_agree_with_finite_differences() {
        for tap in [None, Some("avgpool")] {
            let (exact, numeric) = slopes(tap);
            assert!((exact - numeric).abs() < 1e-6 * exact.abs().max(1.0), "{tap:?}: {exact} {numeric}");
        }
    }

    #[test]
    fn a_tap_that_the_network_does_not_have_is_named() {
        let error = model(0).observe(&batches(1)[0].images, Some("layer9")).unwrap_err().to_string();
        assert!(error.contains("layer9"), "{error}");
    }
}
