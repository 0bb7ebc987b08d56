//! `activeness`: how large the gradients of each neuron's weights are in the first epoch of clean unlearning, in the
//! model and in a clean one (Observation 2 and Figure 1 of the TSBD paper).

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tsbd_attack::ParameterError;
use tsbd_attack::parameters::read;
use tsbd_nn::{Architecture, Model};

use crate::measurement::{
    Measured, Measurement, MeasurementEntry, Needs, Scalar, Subject, check_layer, given, layer_named,
};
use crate::{Context, Error, NeuronVector, Neurons, activeness, median};

/// The registry's entry.
pub static ACTIVENESS: MeasurementEntry = MeasurementEntry {
    name: "activeness",
    title: "Activeness",
    paper: "Lin et al., NeurIPS 2024, arXiv 2405.20291",
    summary: "the mean gradient norm of each neuron in one epoch of clean unlearning, beside a clean model's",
    revision: 1,
    scalars: &[
        Scalar { name: "activeness_median", meaning: "median over the neurons of `layer` in the model, an L1 norm" },
        Scalar { name: "activeness_median_clean", meaning: "the same in the clean model" },
        Scalar { name: "activeness_ratio", meaning: "the first over the second" },
    ],
    schema: || schemars::schema_for!(Parameters),
    configure: |own| Ok(Box::new(Activeness { parameters: read(own)? })),
};

/// Parameters of `activeness`. How the models unlearn is said by `[defense]` and `[defenses.tsbd]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// The convolution whose medians are told; the last one by default. Vectors are of all layers.
    pub layer: Option<String>,
}

#[derive(Debug, Clone)]
struct Activeness {
    parameters: Parameters,
}

impl Measurement for Activeness {
    fn parameters(&self) -> Value {
        json!(self.parameters)
    }

    fn needs(&self) -> Needs {
        Needs { clean_model: true, unlearning: true, ..Needs::default() }
    }

    fn check(&self, architecture: &dyn Architecture) -> Result<(), ParameterError> {
        check_layer(&self.parameters.layer, architecture)
    }

    fn measure(&self, subject: &Subject, context: &mut Context) -> Result<Measured, Error> {
        let model = given(subject.model, "the model")?;
        let clean_model = given(subject.clean_model, "the clean model")?;
        let (unlearning, images) = given(subject.unlearning.as_ref(), "an unlearning and its images")?;
        let neurons = Neurons::of(model.architecture.as_ref());
        let mut of = |model: &Model| -> Result<NeuronVector, Error> {
            let values = activeness(model, Arc::clone(images), unlearning, context)?;
            Ok(NeuronVector::of_all(&neurons, &values))
        };
        let (own, clean) = (of(model)?, of(clean_model)?);
        let layer = layer_named(&self.parameters.layer, &neurons).map_or("", |layer| layer.module.as_str());
        let [own_median, clean_median] = [&own, &clean].map(|vector| vector.layer(layer).and_then(median));
        let ratio = own_median.zip(clean_median).map(|(own, clean)| own / clean).filter(|ratio| ratio.is_finite());
        Ok(Measured::default()
            .with_scalar("activeness_median", own_median)
            .with_scalar("activeness_median_clean", clean_median)
            .with_scalar("activeness_ratio", ratio)
            .with_vector("activeness", own)
            .with_vector("activeness_clean", clean)
            .with_fact("layer", layer)
            .with_fact("images", images.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{self, assert_close, measured};

    #[test]
    fn the_clean_models_activeness_is_pytorchs_and_medians_are_those_of_the_layer() {
        let found = measured(&ACTIVENESS, json!({"layer": "conv1"}));
        let clean: Vec<f64> = found.vectors["activeness_clean"].values().collect();
        assert_close(&clean, &golden::numbers("activeness"), 1e-5);
        assert_eq!(found.scalars["activeness_median_clean"], median(&clean[..4]).unwrap());
        let own = found.vectors["activeness"].layer("conv1").and_then(median).unwrap();
        assert_eq!(found.scalars["activeness_ratio"], own / found.scalars["activeness_median_clean"]);
        assert_ne!(found.vectors["activeness"], found.vectors["activeness_clean"]);
    }
}
