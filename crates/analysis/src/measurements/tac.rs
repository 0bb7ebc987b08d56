//! `tac`: trigger-activated change of each neuron, in both published forms.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tsbd_attack::ParameterError;
use tsbd_attack::parameters::read;
use tsbd_nn::{Architecture, BatchSource};

use crate::measurement::{Measured, Measurement, MeasurementEntry, Needs, Scalar, Subject, given};
use crate::{Context, Error, NeuronVector, Neurons, Tac, TacForm, median, spearman, tac};

/// Images per forward pass: changes speed and memory, not results.
pub(crate) const PASS: usize = 128;

/// Random stream of the images that are measured.
pub(crate) const DRAW: &str = "pairs";

/// The registry's entry.
pub static TAC: MeasurementEntry = MeasurementEntry {
    name: "tac",
    title: "TAC",
    paper: "Zheng et al., ECCV 2022, arXiv 2208.03111, and BackdoorBench (Wu et al., NeurIPS 2022)",
    summary: "how far the trigger moves each neuron's output, in BackdoorBench's form and in the CLP paper's",
    revision: 1,
    scalars: &[
        Scalar { name: "tac_backdoorbench_median", meaning: "median over all neurons of TAC in BackdoorBench's form" },
        Scalar { name: "tac_backdoorbench_max", meaning: "the largest of them" },
        Scalar { name: "tac_clp_median", meaning: "median over all neurons of TAC in the form of the CLP paper" },
        Scalar { name: "tac_clp_max", meaning: "the largest of them" },
        Scalar { name: "tac_forms_spearman", meaning: "rank correlation of the two forms over all neurons, -1 to 1" },
    ],
    schema: || schemars::schema_for!(Parameters),
    configure: |own| {
        let parameters: Parameters = read(own)?;
        ParameterError::unless_nonzero("images", parameters.images)?;
        Ok(Box::new(Measure { parameters }))
    },
};

/// Parameters of `tac`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// Pairs of a test image and its triggered version, drawn from those that count for the attack success rate; all, if
    /// there are fewer. 5,000 as BackdoorBench.
    pub images: usize,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters { images: 5000 }
    }
}

#[derive(Debug, Clone)]
struct Measure {
    parameters: Parameters,
}

impl Measurement for Measure {
    fn parameters(&self) -> Value {
        json!(self.parameters)
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn check(&self, _: &dyn Architecture) -> Result<(), ParameterError> {
        Ok(())
    }

    fn measure(&self, subject: &Subject, context: &mut Context) -> Result<Measured, Error> {
        let (neurons, found, images) = of_subject(subject, self.parameters.images, context)?;
        let vector = |values: &[f64]| NeuronVector::of_all(&neurons, values);
        let max = |values: &[f64]| values.iter().copied().reduce(f64::max);
        Ok(Measured::default()
            .with_scalar("tac_backdoorbench_median", median(&found.backdoorbench))
            .with_scalar("tac_backdoorbench_max", max(&found.backdoorbench))
            .with_scalar("tac_clp_median", median(&found.clp))
            .with_scalar("tac_clp_max", max(&found.clp))
            .with_scalar("tac_forms_spearman", spearman(&found.backdoorbench, &found.clp))
            .with_vector(TacForm::BackdoorBench.vector(), vector(&found.backdoorbench))
            .with_vector(TacForm::Clp.vector(), vector(&found.clp))
            .with_fact("images", images))
    }
}

/// The TAC of the subject's model over at most `images` pairs, and how many they were.
pub(crate) fn of_subject(
    subject: &Subject,
    images: usize,
    context: &mut Context,
) -> Result<(Neurons, Tac, usize), Error> {
    let model = given(subject.model, "the model")?;
    let pairs = given(subject.pairs.as_ref(), "test images with a trigger")?;
    let pairs = pairs.at_most(images, &mut context.streams.stream(DRAW, 0));
    let count = pairs.clean.len();
    let [clean, triggered] = [pairs.clean, pairs.triggered].map(|images| context.plain(images, PASS));
    let total = clean.batches_per_epoch();
    let found = tac(model, &clean, &triggered, &mut |done| context.step("TAC", done, total))?;
    Ok((Neurons::of(model.architecture.as_ref()), found, count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{assert_close, measured};

    #[test]
    fn vectors_name_their_form_and_cover_every_layer() {
        let found = measured(&TAC, json!({}));
        let names: Vec<&String> = found.vectors.keys().collect();
        assert_eq!(names, ["tac_backdoorbench", "tac_clp"]);
        for vector in found.vectors.values() {
            let layers: Vec<(&str, usize)> = vector.layers().map(|(name, values)| (name, values.len())).collect();
            assert_eq!(layers, [("conv1", 4), ("conv2", 12)]);
        }
        let largest = found.vectors["tac_clp"].values().fold(0.0, f64::max);
        assert_close(&[found.scalars["tac_clp_max"]], &[largest], 1e-12);
        assert_eq!(found.facts["images"], 16);
        assert_eq!(measured(&TAC, json!({"images": 3})).facts["images"], 3);
    }
}
