//! `coverage`: how many of the neurons that a method would take first are those that the trigger moves most (Figure 4 of
//! the TSBD paper).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tsbd_attack::ParameterError;
use tsbd_attack::parameters::read;
use tsbd_nn::{Architecture, BatchSource};

use super::tac::{PASS, of_subject};
use crate::measurement::{Measured, Measurement, MeasurementEntry, Needs, Scalar, Subject, given};
use crate::{Context, Error, NeuronVector, Neurons, TacForm, coverage, mean_activations, weight_change};

/// The registry's entry.
pub static COVERAGE: MeasurementEntry = MeasurementEntry {
    name: "coverage",
    title: "Coverage",
    paper: "Lin et al., NeurIPS 2024, arXiv 2405.20291",
    summary: "the share of the neurons a method takes first that are among as many with the largest TAC",
    revision: 1,
    scalars: &[Scalar {
        name: "coverage_*",
        meaning: "`coverage_<method>_at_<ratio>`: coverage ratio of a method at a neuron ratio, from 0 to 1; \
                  `coverage_<method>`: their mean over the ratios. By chance it is the neuron ratio",
    }],
    schema: || schemars::schema_for!(Parameters),
    configure: |own| {
        let parameters: Parameters = read(own)?;
        parameters.check()?;
        Ok(Box::new(Coverage { parameters }))
    },
};

/// Scored here: dormant neurons first, as FP prunes.
const FP: &str = "fp";
/// Scored here: neurons whose weights move most in clean unlearning first, as TSBD selects.
const NWC: &str = "nwc";

/// Parameters of `coverage`. Clean images and unlearning are said by `[defense]` and `[defenses.tsbd]`, what other
/// defenses do by their own tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// What is compared: `nwc`, `fp` (the neurons with the smallest mean activation on clean images first) and defenses
    /// that score neurons, by their names.
    pub methods: Vec<String>,
    /// Shares of the neurons that are taken, each greater than 0 and at most 1.
    pub neuron_ratios: Vec<f64>,
    /// The form of TAC: `backdoor-bench` or `clp`.
    pub tac: TacForm,
    /// The convolutions whose neurons are ranked together; none given: all in which every method has scores.
    pub layers: Vec<String>,
    /// Pairs of a test image and its triggered version, as for `tac`.
    pub images: usize,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters {
            methods: [FP, "clp", "anp", "rnp", NWC].map(str::to_owned).to_vec(),
            neuron_ratios: vec![0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9],
            tac: TacForm::BackdoorBench,
            layers: Vec::new(),
            images: 5000,
        }
    }
}

impl Parameters {
    fn check(&self) -> Result<(), ParameterError> {
        ParameterError::unless_nonzero("images", self.images)?;
        let wrong = |field: &str, value: Value, reason: &str, way_out: &str| {
            Err(ParameterError::new(field, value, reason, way_out))
        };
        let twice = (1..self.methods.len()).find(|place| self.methods[..*place].contains(&self.methods[*place]));
        if self.methods.is_empty() || twice.is_some() {
            return wrong("methods", json!(self.methods), "no method, or one twice", "give different methods");
        }
        let in_range = |ratio: &f64| *ratio > 0.0 && *ratio <= 1.0;
        if self.neuron_ratios.is_empty() || !self.neuron_ratios.iter().all(in_range) {
            let way_out = "give numbers greater than 0 and at most 1";
            return wrong("neuron_ratios", json!(self.neuron_ratios), "out of range, or none", way_out);
        }
        Ok(())
    }

    fn uses(&self, method: &str) -> bool {
        self.methods.iter().any(|name| name == method)
    }
}

#[derive(Debug, Clone)]
struct Coverage {
    parameters: Parameters,
}

impl Measurement for Coverage {
    fn parameters(&self) -> Value {
        json!(self.parameters)
    }

    fn needs(&self) -> Needs {
        let scored_here = |name: &&String| [FP, NWC].contains(&name.as_str());
        let scores = self.parameters.methods.iter().filter(|name| !scored_here(name)).cloned().collect();
        let (unlearning, unlearned) = (self.parameters.uses(FP), self.parameters.uses(NWC));
        Needs { unlearning, unlearned, scores, ..Needs::default() }
    }

    fn check(&self, architecture: &dyn Architecture) -> Result<(), ParameterError> {
        let neurons = Neurons::of(architecture);
        let names: Vec<&str> = neurons.layers().iter().map(|layer| layer.module.as_str()).collect();
        match self.parameters.layers.iter().find(|layer| !names.contains(&layer.as_str())) {
            None => Ok(()),
            Some(layer) => Err(ParameterError::new(
                "layers",
                json!(layer),
                format!("{} has no such convolution", architecture.name()),
                format!("give some of {}", names.join(", ")),
            )),
        }
    }

    fn measure(&self, subject: &Subject, context: &mut Context) -> Result<Measured, Error> {
        let Parameters { methods, neuron_ratios, tac: form, images, .. } = &self.parameters;
        let (neurons, tac, count) = of_subject(subject, *images, context)?;
        let mut scores = BTreeMap::new();
        for method in methods {
            scores.insert(method.as_str(), self.scores(method, &neurons, subject, context)?);
        }
        let layers = self.layers(&neurons, &scores)?;
        let within = |vector: &NeuronVector| -> NeuronVector {
            layers.iter().filter_map(|layer| Some(((*layer).to_owned(), vector.layer(layer)?.to_vec()))).collect()
        };
        let tac = within(&NeuronVector::of_all(&neurons, tac.form(*form)));
        let reference: Vec<f64> = tac.values().collect();
        let mut measured = Measured::default();
        for (method, vector) in &scores {
            let vector = within(vector);
            let values: Vec<f64> = vector.values().collect();
            let points: Vec<(f64, f64)> = neuron_ratios
                .iter()
                .filter_map(|ratio| Some((*ratio, coverage(&values, &reference, *ratio)?)))
                .collect();
            for (ratio, covered) in &points {
                measured = measured.with_scalar(format!("coverage_{method}_at_{ratio}"), Some(*covered));
            }
            let mean = points.iter().map(|(_, covered)| covered).sum::<f64>() / points.len() as f64;
            measured = measured
                .with_scalar(format!("coverage_{method}"), mean.is_finite().then_some(mean))
                .with_vector(format!("score_{method}"), vector);
        }
        let form = json!(form);
        Ok(measured
            .with_vector(format!("tac_{}", form.as_str().unwrap_or_default().replace('-', "")), tac)
            .with_fact("tac", form)
            .with_fact("layers", layers)
            .with_fact("neurons", reference.len())
            .with_fact("images", count))
    }
}

impl Coverage {
    /// The scores of one method, by convolution: the larger, the sooner it takes the neuron.
    fn scores(
        &self,
        method: &str,
        neurons: &Neurons,
        subject: &Subject,
        context: &mut Context,
    ) -> Result<NeuronVector, Error> {
        let model = given(subject.model, "the model")?;
        match method {
            FP => {
                let (_, images) = given(subject.unlearning.as_ref(), "clean images")?;
                let source = context.plain(images.clone(), PASS);
                let total = source.batches_per_epoch();
                let mut step = |done| context.step("activations", done, total);
                let means = mean_activations(model, &source, &mut step)?;
                let dormancy: Vec<f64> = means.into_iter().map(|mean| -mean).collect();
                Ok(NeuronVector::of_all(neurons, &dormancy))
            }
            NWC => {
                let unlearned = given(subject.unlearned, "the model after clean unlearning")?;
                let change = weight_change(model.architecture.as_ref(), &model.state, &unlearned.state)?;
                Ok(NeuronVector::of_all(neurons, &change.per_neuron))
            }
            defense => {
                let scores = subject.scores.get(defense);
                scores.ok_or_else(|| Error::NoScores { method: defense.to_owned() })?.by_convolution(neurons)
            }
        }
    }

    /// The layers that are compared, in the network's order.
    fn layers<'n>(&self, neurons: &'n Neurons, scores: &BTreeMap<&str, NeuronVector>) -> Result<Vec<&'n str>, Error> {
        let asked = &self.parameters.layers;
        let mut layers = Vec::new();
        for layer in neurons.layers().iter().filter(|layer| asked.is_empty() || asked.contains(&layer.module)) {
            match scores.iter().find(|(_, vector)| vector.layer(&layer.module).is_none()) {
                None => layers.push(layer.module.as_str()),
                // A layer that was asked for is not left out in silence.
                Some((method, _)) if !asked.is_empty() => {
                    return Err(Error::Mismatch {
                        name: layer.module.clone(),
                        reason: format!("{method} has no score for this layer: take it out of `layers`"),
                    });
                }
                Some(_) => {}
            }
        }
        Ok(layers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{in_context, measured, subject_scores, with_subject};
    use crate::{Measured, NoObserver};

    fn with_scores(own: Value, scores: BTreeMap<String, NeuronVector>) -> Result<Measured, Error> {
        let measurement = (COVERAGE.configure)(&own).unwrap();
        with_subject(|subject| {
            let subject = Subject { scores, ..subject.clone() };
            in_context(&mut NoObserver, |context| measurement.measure(&subject, context))
        })
    }

    #[test]
    fn a_method_that_ranks_as_tac_does_covers_everything_and_one_that_ranks_it_backwards_nothing() {
        let tac = measured(&super::super::tac::TAC, json!({})).vectors["tac_clp"].clone();
        let backwards =
            tac.layers().map(|(name, values)| (name.to_owned(), values.iter().map(|value| -value).collect())).collect();
        let own = json!({"methods": ["anp", "rnp"], "tac": "clp", "neuron_ratios": [0.25, 0.5]});
        let found = with_scores(own, [("anp".to_owned(), tac), ("rnp".to_owned(), backwards)].into()).unwrap();
        assert_eq!(found.scalars["coverage_anp_at_0.25"], 1.0);
        assert_eq!((found.scalars["coverage_anp"], found.scalars["coverage_rnp"]), (1.0, 0.0));
        assert_eq!(found.facts["tac"], "clp");
        assert_eq!(
            (found.facts["layers"].clone(), found.facts["neurons"].clone()),
            (json!(["conv1", "conv2"]), json!(16))
        );
        assert!(found.vectors.contains_key("tac_clp") && !found.vectors.contains_key("tac_backdoorbench"));
    }

    #[test]
    fn scores_of_batch_norms_count_for_their_convolutions_and_only_layers_that_all_score_are_compared() {
        let of_first: NeuronVector = [("bn1".to_owned(), vec![3.0, 1.0, 2.0, 0.0])].into_iter().collect();
        let own = |layers: Value| json!({"methods": ["nwc", "fp", "clp"], "neuron_ratios": [0.5], "layers": layers});
        let found = with_scores(own(json!([])), [("clp".to_owned(), of_first.clone())].into()).unwrap();
        assert_eq!(found.facts["layers"], json!(["conv1"]));
        assert_eq!(found.facts["neurons"], 4);
        assert_eq!(found.vectors["score_clp"].layer("conv1").unwrap(), [3.0, 1.0, 2.0, 0.0]);
        assert!(found.vectors.values().all(|vector| vector.layers().count() == 1));
        let error = with_scores(own(json!(["conv2"])), [("clp".to_owned(), of_first)].into()).unwrap_err().to_string();
        assert!(error.starts_with("conv2: clp has no score"), "{error}");
        let error = with_scores(own(json!([])), BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains("`clp`"), "{error}");
    }

    #[test]
    fn what_is_needed_follows_the_methods() {
        let needs = |own: Value| (COVERAGE.configure)(&own).unwrap().needs();
        assert_eq!(needs(json!({})).scores, ["clp", "anp", "rnp"]);
        let nwc = needs(json!({"methods": ["nwc"]}));
        assert!(nwc.unlearned && !nwc.unlearning && nwc.scores.is_empty());
        assert!(needs(json!({"methods": ["fp"]})).unlearning);
        for (field, value) in [
            ("methods", json!([])),
            ("methods", json!(["nwc", "nwc"])),
            ("neuron_ratios", json!([0.1, 1.5])),
            ("tac", json!("mean")),
            ("images", json!(0)),
        ] {
            assert_eq!((COVERAGE.configure)(&json!({field: value})).unwrap_err().field, field);
        }
        assert_eq!(subject_scores().len(), 3);
    }
}
