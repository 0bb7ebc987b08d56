//! `activations`: how strongly each neuron answers to images without and with the trigger, in the model, in a clean one,
//! and how clean and poison unlearning change that (Figure 3 of the TSBD paper).

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tsbd_attack::ParameterError;
use tsbd_attack::parameters::read;
use tsbd_nn::Architecture;

use super::tac::{DRAW, PASS};
use crate::measurement::{
    Measured, Measurement, MeasurementEntry, Needs, Scalar, Subject, check_layer, given, layer_named,
};
use crate::{Context, Error, NeuronVector, Neurons, mean_activations, median};

/// The registry's entry.
pub static ACTIVATIONS: MeasurementEntry = MeasurementEntry {
    name: "activations",
    title: "Activations",
    paper: "Lin et al., NeurIPS 2024, arXiv 2405.20291",
    summary: "the mean activation of each neuron on clean and on triggered images, and its change in unlearning",
    revision: 1,
    scalars: &[
        Scalar {
            name: "activation_clean_median",
            meaning: "median over `layer` of the model's activation on clean images",
        },
        Scalar { name: "activation_poison_median", meaning: "the same on triggered images" },
        Scalar { name: "activation_gap_max", meaning: "largest excess of the second over the first among its neurons" },
    ],
    schema: || schemars::schema_for!(Parameters),
    configure: |own| {
        let parameters: Parameters = read(own)?;
        ParameterError::unless_nonzero("images", parameters.images)?;
        ParameterError::unless_within("poison_unlearning_asr", parameters.poison_unlearning_asr, 0.0, 1.0)?;
        Ok(Box::new(Activations { parameters }))
    },
};

/// Parameters of `activations`. How the model unlearns is said by `[defense]` and `[defenses.tsbd]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// The convolution whose medians are told; the last one by default. Vectors are of all layers.
    pub layer: Option<String>,
    /// Pairs of a test image and its triggered version, as for `tac`.
    pub images: usize,
    /// Poison unlearning stops when the attack success rate is at most this; from 0 to 1.
    pub poison_unlearning_asr: f64,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters { layer: None, images: 5000, poison_unlearning_asr: 0.05 }
    }
}

#[derive(Debug, Clone)]
struct Activations {
    parameters: Parameters,
}

impl Measurement for Activations {
    fn parameters(&self) -> Value {
        json!(self.parameters)
    }

    fn needs(&self) -> Needs {
        let poison_unlearned = Some(self.parameters.poison_unlearning_asr);
        Needs { clean_model: true, unlearned: true, poison_unlearned, ..Needs::default() }
    }

    fn check(&self, architecture: &dyn Architecture) -> Result<(), ParameterError> {
        check_layer(&self.parameters.layer, architecture)
    }

    fn measure(&self, subject: &Subject, context: &mut Context) -> Result<Measured, Error> {
        let model = given(subject.model, "the model")?;
        let models = [
            ("", model),
            ("_clean_model", given(subject.clean_model, "the clean model")?),
            ("_unlearned", &given(subject.unlearned, "the model after clean unlearning")?.model),
            ("_poison_unlearned", &given(subject.poison_unlearned, "the model after poison unlearning")?.model),
        ];
        let pairs = given(subject.pairs.as_ref(), "test images with a trigger")?;
        let pairs = pairs.at_most(self.parameters.images, &mut context.streams.stream(DRAW, 0));
        let neurons = Neurons::of(model.architecture.as_ref());
        let mut measured = Measured::default();
        let batches = pairs.clean.len().div_ceil(PASS);
        let (mut passes, total) = (0, 2 * models.len() * batches);
        for (name, model) in models {
            for (of, images) in [("clean", &pairs.clean), ("poison", &pairs.triggered)] {
                let source = context.plain(Arc::clone(images), PASS);
                let mut step = |done| context.step("activations", passes * batches + done, total);
                let values = mean_activations(model, &source, &mut step)?;
                passes += 1;
                measured =
                    measured.with_vector(format!("activation_{of}{name}"), NeuronVector::of_all(&neurons, &values));
            }
        }
        let layer = layer_named(&self.parameters.layer, &neurons).map_or("", |layer| layer.module.as_str());
        let of_layer = |of: &str| measured.vectors[of].layer(layer).unwrap_or_default().to_vec();
        let [clean, poison] = ["activation_clean", "activation_poison"].map(of_layer);
        let gaps = clean.iter().zip(&poison).map(|(clean, poison)| poison - clean);
        let largest = gaps.reduce(f64::max);
        Ok(measured
            .with_scalar("activation_clean_median", median(&clean))
            .with_scalar("activation_poison_median", median(&poison))
            .with_scalar("activation_gap_max", largest)
            .with_fact("layer", layer)
            .with_fact("images", pairs.clean.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::measured;

    #[test]
    fn four_models_are_measured_with_and_without_the_trigger() {
        let found = measured(&ACTIVATIONS, json!({}));
        let names: Vec<&str> = found.vectors.keys().map(String::as_str).collect();
        let expected = [
            "activation_clean",
            "activation_clean_clean_model",
            "activation_clean_poison_unlearned",
            "activation_clean_unlearned",
            "activation_poison",
            "activation_poison_clean_model",
            "activation_poison_poison_unlearned",
            "activation_poison_unlearned",
        ];
        assert_eq!(names, expected);
        for (place, name) in expected.iter().enumerate() {
            let vector = &found.vectors[*name];
            assert_eq!(vector.values().count(), 16);
            assert!(vector.values().all(|value| value >= 0.0), "after a ReLU");
            assert!(expected[..place].iter().all(|other| found.vectors[*other] != *vector), "{name} is its own");
        }
        let gap = |filter: usize| {
            let of = |name: &str| found.vectors[name].layer("conv2").unwrap()[filter];
            of("activation_poison") - of("activation_clean")
        };
        let largest = (0..12).map(gap).fold(f64::NEG_INFINITY, f64::max);
        assert_eq!(found.scalars["activation_gap_max"], largest);
    }
}
