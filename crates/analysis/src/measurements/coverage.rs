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
use crate::{Context, Error, NeuronLayer, NeuronVector, Neurons, TacForm, coverage, mean_activations};

/// The registry's entry.
pub static COVERAGE: MeasurementEntry = MeasurementEntry {
    name: "coverage",
    title: "Coverage",
    paper: "Lin et al., NeurIPS 2024, arXiv 2405.20291",
    summary: "the share of the neurons a method takes first that are among as many with the largest TAC",
    revision: 2,
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
/// Scored here: neurons whose weights move most in clean unlearning first, as TSBD selects but for its rounding.
const NWC: &str = "nwc";

/// Among which neurons a method's choice, and that of TAC, is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Ranking {
    /// The ratio is taken of every layer. TAC is larger the more positions a map has, and weight changes the closer a layer is
    /// to the end: neurons of different layers do not compare.
    Layer,
    /// The ratio is taken of all neurons together.
    Network,
}

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
    /// Whether neurons are ranked within their `layer`, or in the `network`.
    pub ranking: Ranking,
    /// The convolutions whose neurons are ranked; none given: all in which every method has scores.
    pub layers: Vec<String>,
    /// Pairs of a test image and its triggered version, as for `tac`.
    pub images: usize,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters {
            methods: [FP, "clp", "anp", "rnp", NWC].map(str::to_owned).to_vec(),
            neuron_ratios: vec![0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9],
            tac: TacForm::BackdoorBench,
            ranking: Ranking::Layer,
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

    fn check_scores(
        &self,
        architecture: &dyn Architecture,
        scored: &BTreeMap<String, Vec<String>>,
    ) -> Result<(), ParameterError> {
        let neurons = Neurons::of(architecture);
        let without = |layer: &NeuronLayer| {
            let has = |names: &[String]| names.iter().any(|name| layer.is_named(name));
            scored.iter().find(|(_, names)| !has(names)).map(|(method, _)| method.as_str())
        };
        let compared = self.compared(&neurons, without).map_err(|(layer, method)| {
            let reason = format!("{method} has no score for its neurons");
            ParameterError::new(
                "layers",
                json!(layer),
                reason,
                "take it out of `layers`, or the method out of `methods`",
            )
        })?;
        let filters = compared.iter().map(|layer| layer.filters);
        let count = match self.parameters.ranking {
            Ranking::Layer => filters.max().unwrap_or(0),
            Ranking::Network => filters.sum(),
        };
        let none = |ratio: &&f64| (count as f64 * **ratio) as usize == 0;
        match self.parameters.neuron_ratios.iter().find(none) {
            None => Ok(()),
            Some(ratio) => Err(ParameterError::new(
                "neuron_ratios",
                *ratio,
                match self.parameters.ranking {
                    Ranking::Layer => format!("selects none of the {count} neurons of the widest layer"),
                    Ranking::Network => format!("selects none of the {count} neurons that are compared"),
                },
                format!("give at least {}", 1.0 / count.max(1) as f64),
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
        let without = |layer: &NeuronLayer| {
            scores.iter().find(|(_, vector)| vector.layer(&layer.module).is_none()).map(|(method, _)| *method)
        };
        // A layer that was asked for is not left out in silence.
        let layers = self.compared(&neurons, without).map_err(|(layer, method)| Error::Mismatch {
            name: layer.to_owned(),
            reason: format!("{method} has no score for this layer: take it out of `layers`"),
        })?;
        let layers: Vec<&str> = layers.into_iter().map(|layer| layer.module.as_str()).collect();
        let within = |vector: &NeuronVector| -> NeuronVector {
            layers.iter().filter_map(|layer| Some(((*layer).to_owned(), vector.layer(layer)?.to_vec()))).collect()
        };
        let tac = within(&NeuronVector::of_all(&neurons, tac.form(*form)));
        let mut measured = Measured::default();
        for (method, vector) in &scores {
            let vector = within(vector);
            let mut sum = 0.0;
            for ratio in neuron_ratios {
                // A mean over fewer ratios would not be comparable.
                let covered = self.covered(&vector, &tac, *ratio).ok_or_else(|| Error::Mismatch {
                    name: "neuron_ratios".to_owned(),
                    reason: format!("{ratio} selects no neuron"),
                })?;
                sum += covered;
                measured = measured.with_scalar(format!("coverage_{method}_at_{ratio}"), Some(covered));
            }
            measured = measured
                .with_scalar(format!("coverage_{method}"), Some(sum / neuron_ratios.len() as f64))
                .with_vector(format!("score_{method}"), vector);
        }
        let compared = tac.values().count();
        Ok(measured
            .with_vector(form.vector(), tac)
            .with_fact("tac", json!(form))
            .with_fact("ranking", json!(self.parameters.ranking))
            .with_fact("layers", layers)
            .with_fact("neurons", compared)
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
            NWC => Ok(given(subject.unlearned, "the model after clean unlearning")?.nwc.clone()),
            defense => {
                let scores = subject.scores.get(defense);
                scores.ok_or_else(|| Error::NoScores { method: defense.to_owned() })?.by_convolution(neurons)
            }
        }
    }

    /// Of the neurons that `scores` takes at this ratio the share that `tac` takes too; nothing if none is taken.
    fn covered(&self, scores: &NeuronVector, tac: &NeuronVector, ratio: f64) -> Option<f64> {
        if self.parameters.ranking == Ranking::Network {
            let [scores, tac] = [scores, tac].map(|vector| vector.values().collect::<Vec<_>>());
            return coverage(&scores, &tac, ratio);
        }
        let (mut covered, mut taken) = (0.0, 0.0);
        for (layer, values) in scores.layers() {
            // A layer so narrow that the ratio selects none of it says nothing.
            let Some(share) = coverage(values, tac.layer(layer)?, ratio) else { continue };
            let count = (values.len() as f64 * ratio).floor();
            (covered, taken) = (covered + share * count, taken + count);
        }
        (taken > 0.0).then(|| covered / taken)
    }

    /// The layers that are compared, in the network's order; `without` names a method that has no scores for a layer. Of those
    /// that were asked for one without, and the method.
    fn compared<'n, 's>(
        &self,
        neurons: &'n Neurons,
        without: impl Fn(&NeuronLayer) -> Option<&'s str>,
    ) -> Result<Vec<&'n NeuronLayer>, (&'n str, &'s str)> {
        let asked = &self.parameters.layers;
        let mut layers = Vec::new();
        for layer in neurons.layers().iter().filter(|layer| asked.is_empty() || asked.contains(&layer.module)) {
            match without(layer) {
                None => layers.push(layer),
                Some(method) if !asked.is_empty() => return Err((&layer.module, method)),
                Some(_) => {}
            }
        }
        Ok(layers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{in_context, measured, with_subject};
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
    fn within_layers_a_method_is_not_judged_by_which_layer_it_prefers() {
        let tac = measured(&super::super::tac::TAC, json!({})).vectors["tac_clp"].clone();
        // The order of TAC within each layer, and one layer before the other.
        let covered = |ranking: &str, factors: [f64; 2]| {
            let scaled = tac
                .layers()
                .zip(factors)
                .map(|((name, values), factor)| (name.to_owned(), values.iter().map(|value| value * factor).collect()));
            let own = json!({"methods": ["anp"], "tac": "clp", "neuron_ratios": [0.25], "ranking": ranking});
            let found = with_scores(own, [("anp".to_owned(), scaled.collect::<NeuronVector>())].into()).unwrap();
            assert_eq!(found.facts["ranking"], ranking);
            found.scalars["coverage_anp"]
        };
        let orders = [[1e9, 1.0], [1.0, 1e9]];
        assert_eq!(orders.map(|factors| covered("layer", factors)), [1.0, 1.0]);
        assert!(orders.iter().any(|factors| covered("network", *factors) < 1.0));
    }

    #[test]
    fn layers_count_as_much_as_is_taken_of_them() {
        let vector = |layers: [&[f64]; 2]| -> NeuronVector {
            ["conv1", "conv2"]
                .into_iter()
                .zip(layers)
                .map(|(name, values)| (name.to_owned(), values.to_vec()))
                .collect()
        };
        let covered = |ranking: &str, scores: [&[f64]; 2], ratio| {
            let parameters = read(&json!({"ranking": ranking})).unwrap();
            Coverage { parameters }.covered(
                &vector(scores),
                &vector([&[1.0, 2.0], &[3.0, 4.0, 5.0, 6.0, 7.0, 8.0]]),
                ratio,
            )
        };
        let scores: [&[f64]; 2] = [&[1.0, 0.0], &[0.0, 0.0, 0.0, 1.0, 2.0, 3.0]];
        // The wrong one of two neurons, and the right three of six.
        assert_eq!(covered("layer", scores, 0.5), Some(3.0 / 4.0));
        // Of the first layer nothing is taken: it says nothing.
        assert_eq!(covered("layer", scores, 0.34), Some(1.0));
        assert_eq!(covered("layer", scores, 0.1), None);
        // Of all eight four are taken, one of them wrong.
        assert_eq!(covered("network", [&[2.0, 0.0], &[0.0, 0.0, 0.0, 1.0, 2.0, 3.0]], 0.5), Some(3.0 / 4.0));
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
    }
}
