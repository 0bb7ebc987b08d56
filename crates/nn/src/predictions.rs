//! What a network says about a whole set of images.

use crate::{Batch, BatchSource, Error, Mode, Model, Result};
use tsbd_tensor::{CrossEntropy, DType, Var, predicted_classes};

/// A network's answers to a set of images.
#[derive(Debug, Clone, PartialEq)]
pub struct Predictions {
    /// The images' numbers in their data set.
    pub indices: Vec<u32>,
    /// The label each image was given.
    pub labels: Vec<u32>,
    /// The class with the largest logit.
    pub classes: Vec<u32>,
    /// The mean over batches of the batch's mean cross-entropy (as BackdoorBench reports it); NaN without any image.
    pub mean_loss: f64,
}

impl Predictions {
    /// How many images there were.
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    /// Whether there were none.
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// How many were classified as labelled.
    pub fn correct(&self) -> usize {
        self.classes.iter().zip(&self.labels).filter(|(class, label)| class == label).count()
    }

    /// The fraction classified as labelled, in `[0, 1]`; NaN without any image.
    pub fn accuracy(&self) -> f64 {
        self.correct() as f64 / self.len() as f64
    }
}

impl Model {
    /// Classifies the first epoch of `source` in [`Mode::Eval`], recording nothing.
    pub fn predict(&self, source: &dyn BatchSource) -> Result<Predictions> {
        let mut all = Predictions { indices: vec![], labels: vec![], classes: vec![], mean_loss: f64::NAN };
        let mut losses = vec![];
        for batch in source.epoch(0) {
            let batch = batch?;
            let logits = self.logits(&batch.images, Mode::Eval)?;
            all.classes.extend(predicted_classes(&logits)?);
            all.labels.extend(batch.labels.to_vec1::<u32>()?);
            all.indices.extend(&batch.indices);
            let loss = Var::constant(logits).cross_entropy(&batch.labels, CrossEntropy { label_smoothing: 0.0 })?;
            losses.push(loss.tensor().to_dtype(DType::F64)?.reshape(())?.to_scalar::<f64>()?);
        }
        all.mean_loss = losses.iter().sum::<f64>() / losses.len() as f64;
        Ok(all)
    }

    /// The mean over all images of the first epoch of `source` (and over positions, for maps) of the output `tap`, one
    /// number per channel, in [`Mode::Eval`]. With [`crate::Architecture::features`] it is the mean input of the last
    /// linear layer. `step` is called after each batch with how many are done; its error ends the pass.
    pub fn mean_output<E: From<Error>>(
        &self,
        source: &dyn BatchSource,
        tap: &str,
        step: &mut dyn FnMut(usize) -> std::result::Result<(), E>,
    ) -> std::result::Result<Vec<f64>, E> {
        let values = |batch: Result<Batch>| -> Result<(usize, Vec<f64>)> {
            let (_, outputs) = self.tapped(&batch?.images, Mode::Eval, &[tap])?;
            let output = &outputs[tap];
            let channels = output.dim(candle_core::D::Minus1)?;
            Ok((channels, output.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?))
        };
        let mut sums: Vec<f64> = vec![];
        let mut count = 0;
        for (number, batch) in source.epoch(0).enumerate() {
            let (channels, values) = values(batch)?;
            sums.resize(channels, 0.0);
            for position in values.chunks_exact(channels) {
                for (sum, value) in sums.iter_mut().zip(position) {
                    *sum += value;
                }
                count += 1;
            }
            step(number + 1)?;
        }
        Ok(sums.into_iter().map(|sum| sum / f64::from(count.max(1))).collect())
    }
}
