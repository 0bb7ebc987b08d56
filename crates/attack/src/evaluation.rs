//! What an attack does to a model: accuracy, attack success rate, recovery accuracy.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tsbd_data::{ImageSource, Images, Loader, Normalization};
use tsbd_nn::Model;

use crate::Error;
use crate::overlay::TriggeredTest;

/// Rates of one model on the test sets, as fractions.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Evaluation {
    /// ACC: share of the clean test images that get their true label.
    pub acc: f64,
    /// ASR: share of the triggered test images that get the label the attacker wants. `None` without a backdoor.
    pub asr: Option<f64>,
    /// RA: share of the same images that get their true label. `None` without a backdoor.
    pub ra: Option<f64>,
    /// Number of clean test images.
    pub clean_images: usize,
    /// Number of triggered test images.
    pub triggered_images: usize,
}

/// Measures `model` in evaluation mode, without augmentation, on the device of its weights.
///
/// `batch_size` changes speed and memory, not the rates.
pub fn evaluate(
    model: &Model,
    clean: &Arc<Images>,
    triggered: Option<&Arc<TriggeredTest>>,
    normalization: Normalization,
    batch_size: usize,
) -> Result<Evaluation, Error> {
    let predict = |source: Arc<dyn ImageSource>| -> Result<Vec<u32>, Error> {
        let mut loader = Loader::evaluation(source, normalization, batch_size);
        if let Some((_, parameter)) = model.state.parameters().next() {
            loader = loader.on(parameter.device());
        }
        Ok(model.predict(&loader)?.classes)
    };
    let predicted = predict(Arc::clone(clean) as _)?;
    let mut evaluation = Evaluation {
        acc: share(&predicted, |index| clean.label(index)),
        clean_images: clean.len(),
        ..Evaluation::default()
    };
    if let Some(triggered) = triggered {
        let predicted = predict(Arc::clone(triggered) as _)?;
        evaluation.asr = Some(share(&predicted, |position| triggered.label(position)));
        evaluation.ra = Some(share(&predicted, |position| triggered.original_label(position)));
        evaluation.triggered_images = triggered.len();
    }
    Ok(evaluation)
}

/// Share of the positions whose prediction is `wanted`.
fn share(predicted: &[u32], wanted: impl Fn(usize) -> u32) -> f64 {
    let hits = predicted.iter().enumerate().filter(|(position, class)| **class == wanted(*position)).count();
    hits as f64 / predicted.len() as f64
}
