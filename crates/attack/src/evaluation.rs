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

#[cfg(test)]
mod tests {
    use tsbd_nn::{Layer, Module, Streams};
    use tsbd_tensor::{Device, Tensor};
    use tsbd_testing::network;

    use super::*;
    use crate::parameters::Poisoning;
    use crate::trigger::ImageTrigger;

    /// Classifies an image by its brightest channel.
    fn model() -> Model {
        let linear = Module::new("linear", Layer::Linear { in_features: 3, out_features: 3 });
        let network = network(vec![linear], 3, |pass, images| pass.linear("linear", &images.global_average_pool()?));
        let mut model = Model::new(network, &mut Streams::new(0).stream("test", 0)).unwrap();
        let identity = Tensor::eye(3, tsbd_tensor::DType::F32, &Device::Cpu).unwrap();
        model.state.set("linear.weight", &identity).unwrap();
        model.state.set("linear.bias", &Tensor::zeros(3, tsbd_tensor::DType::F32, &Device::Cpu).unwrap()).unwrap();
        model
    }

    /// Images of 2x2 pixels whose channel `channel` is the brightest, labelled `label`.
    fn images(of: &[(usize, u32)]) -> Arc<Images> {
        let mut pixels = Vec::new();
        for (channel, _) in of {
            pixels.extend((0..12).map(|value| if value % 3 == *channel { 200 } else { 10 }));
        }
        Arc::new(Images::new(pixels, of.iter().map(|(_, label)| *label).collect(), (2, 2), 3))
    }

    /// Makes the first channel the brightest of images with an even index.
    #[derive(Debug)]
    struct Redden;

    impl ImageTrigger for Redden {
        fn apply(&self, image: &mut [u8], index: usize) {
            if index.is_multiple_of(2) {
                image.iter_mut().step_by(3).for_each(|value| *value = 255);
            }
        }
    }

    #[test]
    fn the_three_rates_are_those_counted_by_hand() {
        // Predicted 0 1 2 2 1, labelled 0 1 2 1 1: four of five are right.
        let clean = images(&[(0, 0), (1, 1), (2, 2), (2, 1), (1, 1)]);
        // Left out: image 0, of the target class. Triggered and reddened: images 2 and 4, predicted 0 = the target.
        // Images 1 and 3 stay 1 and 2, labelled 1 and 1: one of the four keeps its true label.
        let triggered = Arc::new(TriggeredTest::stamp(Arc::clone(&clean), &Redden, &Poisoning::default(), 3).unwrap());
        let measured = evaluate(&model(), &clean, Some(&triggered), Normalization::IDENTITY, 2).unwrap();
        let expected = Evaluation { acc: 0.8, asr: Some(0.5), ra: Some(0.25), clean_images: 5, triggered_images: 4 };
        assert_eq!(measured, expected);
    }

    #[test]
    fn without_a_backdoor_two_of_the_rates_are_undefined() {
        let measured = evaluate(&model(), &images(&[(0, 0), (1, 0)]), None, Normalization::IDENTITY, 256).unwrap();
        assert_eq!(measured, Evaluation { acc: 0.5, clean_images: 2, ..Evaluation::default() });
    }
}
