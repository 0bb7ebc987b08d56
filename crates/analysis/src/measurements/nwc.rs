//! `nwc`: how far each neuron's weights move in clean and in poison unlearning, and how much the two agree
//! (Observation 1 and Figure 1 of the TSBD paper).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tsbd_attack::ParameterError;
use tsbd_attack::parameters::read;
use tsbd_nn::Architecture;

use crate::measurement::{
    Measured, Measurement, MeasurementEntry, Needs, Scalar, Subject, check_layer, given, layer_named,
};
use crate::{Context, Error, Neurons, Unlearned, pearson, slope, spearman};

/// The registry's entry.
pub static NWC: MeasurementEntry = MeasurementEntry {
    name: "nwc",
    title: "NWC",
    paper: "Lin et al., NeurIPS 2024, arXiv 2405.20291",
    summary: "the weight change of each neuron in clean and in poison unlearning, and their correlation",
    revision: 1,
    scalars: &[
        Scalar { name: "pearson", meaning: "Pearson correlation of the two weight changes in `layer`, from -1 to 1" },
        Scalar { name: "spearman", meaning: "the same of their ranks" },
        Scalar {
            name: "slope",
            meaning: "slope of the least-squares line of poison on clean weight change in `layer`",
        },
        Scalar { name: "pearson_all", meaning: "Pearson correlation over the neurons of all layers, from -1 to 1" },
        Scalar { name: "spearman_all", meaning: "the same of their ranks" },
    ],
    schema: || schemars::schema_for!(Parameters),
    configure: |own| {
        let parameters: Parameters = read(own)?;
        ParameterError::unless_within("poison_unlearning_asr", parameters.poison_unlearning_asr, 0.0, 1.0)?;
        Ok(Box::new(Nwc { parameters }))
    },
};

/// Parameters of `nwc`. How the model unlearns is said by `[defense]` and `[defenses.tsbd]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// The convolution whose neurons are correlated; the last one by default. Vectors are of all layers.
    pub layer: Option<String>,
    /// Poison unlearning stops when the attack success rate is at most this; from 0 to 1.
    pub poison_unlearning_asr: f64,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters { layer: None, poison_unlearning_asr: 0.05 }
    }
}

#[derive(Debug, Clone)]
struct Nwc {
    parameters: Parameters,
}

impl Measurement for Nwc {
    fn parameters(&self) -> Value {
        json!(self.parameters)
    }

    fn needs(&self) -> Needs {
        let poison_unlearned = Some(self.parameters.poison_unlearning_asr);
        Needs { unlearned: true, poison_unlearned, ..Needs::default() }
    }

    fn check(&self, architecture: &dyn Architecture) -> Result<(), ParameterError> {
        check_layer(&self.parameters.layer, architecture)
    }

    fn measure(&self, subject: &Subject, _: &mut Context) -> Result<Measured, Error> {
        let model = given(subject.model, "the model")?;
        let clean = &given(subject.unlearned, "the model after clean unlearning")?.nwc;
        let poison = &given(subject.poison_unlearned, "the model after poison unlearning")?.nwc;
        let neurons = Neurons::of(model.architecture.as_ref());
        let layer = layer_named(&self.parameters.layer, &neurons).map_or("", |layer| layer.module.as_str());
        let [x, y] = [clean, poison].map(|vector| vector.layer(layer).unwrap_or_default());
        let [all_x, all_y] = [clean, poison].map(|vector| vector.values().collect::<Vec<f64>>());
        Ok(Measured::default()
            .with_scalar("pearson", pearson(x, y))
            .with_scalar("spearman", spearman(x, y))
            .with_scalar("slope", slope(x, y))
            .with_scalar("pearson_all", pearson(&all_x, &all_y))
            .with_scalar("spearman_all", spearman(&all_x, &all_y))
            .with_vector(Unlearned::Clean.nwc(), clean.clone())
            .with_vector(Unlearned::Poison.nwc(), poison.clone())
            .with_fact("layer", layer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{self, assert_close, measured};

    #[test]
    fn vectors_and_correlations_are_pytorchs_and_numpys() {
        let found = measured(&NWC, json!({}));
        let values = |name: &str| found.vectors[name].values().collect::<Vec<f64>>();
        assert_close(&values("nwc_clean"), &golden::numbers("clean_weight_change"), 1e-4);
        assert_close(&values("nwc_poison"), &golden::numbers("poison_weight_change"), 1e-4);
        let expected = golden::value("weight_change_pearson").as_f64().unwrap();
        assert!((found.scalars["pearson_all"] - expected).abs() < 1e-4);
        assert_eq!(found.facts["layer"], "conv2");
        let [x, y] = ["nwc_clean", "nwc_poison"].map(|name| found.vectors[name].layer("conv2").unwrap().to_vec());
        assert_eq!((x.len(), found.scalars["pearson"]), (12, pearson(&x, &y).unwrap()));
        let first = measured(&NWC, json!({"layer": "conv1"}));
        assert_ne!(first.scalars["pearson"], found.scalars["pearson"]);
    }
}
