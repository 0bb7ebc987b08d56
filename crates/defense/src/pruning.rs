//! Pruning of batch-norm channels: a score for each channel, pruned networks for a row of thresholds, and who chooses
//! among them. ANP, CLP and RNP share it; they differ in the score.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tsbd_analysis::NeuronVector;
use tsbd_attack::ParameterError;
use tsbd_data::ImageSource;
use tsbd_nn::{Architecture, Layer, Model};
use tsbd_tensor::Tensor;

use crate::entry::{ChangedNeuron, TracePoint};
use crate::{Context, Error};

const STAGE: &str = "pruning";

/// The thresholds that BackdoorBench sweeps over masks: 0, 0.05, ... 0.90.
pub(crate) fn mask_thresholds() -> impl Iterator<Item = f64> {
    (0..19).map(|number| f64::from(number) * 0.05)
}

/// Who decides how much is pruned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ThresholdSelection {
    /// Nobody: one threshold, fixed in advance.
    Fixed,
    /// Held-out clean images: of the thresholds swept, the one that prunes most and keeps the accuracy on them within
    /// the tolerance.
    Validation,
    /// The test sets: of the thresholds swept that keep the test accuracy within the tolerance and lower the attack
    /// success rate, the one with the lowest attack success rate. An upper bound, no defender has them. A network
    /// without a backdoor stays as it is.
    Oracle,
}

/// The batch norms of a network with their channels, in network order.
pub(crate) fn batch_norms(architecture: &dyn Architecture) -> impl Iterator<Item = (&str, usize)> {
    architecture.modules().iter().filter_map(|module| match module.layer {
        Layer::BatchNorm2d { channels } => Some((module.name.as_str(), channels)),
        _ => None,
    })
}

/// Refuses a network without batch norms, whose channels `defense` prunes.
pub(crate) fn require_batch_norms(architecture: &dyn Architecture, defense: &str) -> Result<(), ParameterError> {
    if batch_norms(architecture).next().is_some() {
        return Ok(());
    }
    Err(ParameterError::new(
        "defense",
        format!("\"{defense}\""),
        format!("it prunes channels of batch norms, and {} has none", architecture.name()),
        "take a network with batch norms (`tsbd list models`), or another defense",
    ))
}

/// A channel of a batch norm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// Name of the batch norm, e.g. `layer4.1.bn2`.
    pub norm: String,
    /// Number of the channel.
    pub channel: usize,
}

/// One number for each channel of each batch norm, in network order.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelScores {
    /// Name of each batch norm, and the numbers of its channels.
    pub layers: Vec<(String, Vec<f64>)>,
}

impl ChannelScores {
    /// How soon each channel is pruned: `order` of a layer's scores and of the channel's; the larger, the sooner.
    pub(crate) fn scores(&self, order: impl Fn(&[f64], f64) -> f64) -> NeuronVector {
        let layers = self.layers.iter();
        layers.map(|(norm, layer)| (norm.clone(), layer.iter().map(|score| order(layer, *score)).collect())).collect()
    }

    /// The channels whose score is at most `threshold`.
    pub fn at_most(&self, threshold: f64) -> Vec<Channel> {
        self.select(|_, score| score <= threshold)
    }

    /// The channels that `wanted` takes, given all scores of the layer and the channel's own.
    pub(crate) fn select(&self, wanted: impl Fn(&[f64], f64) -> bool) -> Vec<Channel> {
        let of_layer = |(norm, scores): &(String, Vec<f64>)| {
            let taken = scores.iter().enumerate().filter(|(_, score)| wanted(scores, **score));
            taken.map(|(channel, _)| Channel { norm: norm.clone(), channel }).collect::<Vec<_>>()
        };
        self.layers.iter().flat_map(of_layer).collect()
    }
}

/// What is set to 0 in a pruned channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zeroed {
    /// The weight; the bias goes on as a constant.
    Weight,
    /// Weight and bias: the channel is 0.
    WeightAndBias,
}

/// A copy of `model` without `channels`.
pub fn prune(model: &Model, channels: &[Channel], zeroed: Zeroed) -> Result<Model, Error> {
    let mut pruned = model.clone();
    let tensors = match zeroed {
        Zeroed::Weight => &["weight"][..],
        Zeroed::WeightAndBias => &["weight", "bias"],
    };
    for of_norm in channels.chunk_by(|a, b| a.norm == b.norm) {
        for tensor in tensors {
            let name = format!("{}.{tensor}", of_norm[0].norm);
            let old = pruned.state.get(&name)?;
            let mut values = old.to_vec1::<f32>()?;
            for Channel { channel, .. } in of_norm {
                values[*channel] = 0.0;
            }
            let new = Tensor::new(values, old.device())?;
            pruned.state.set(&name, &new)?;
        }
    }
    Ok(pruned)
}

/// What a threshold prunes.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) threshold: f64,
    pub(crate) channels: Vec<Channel>,
}

/// How one of several candidates is chosen.
pub(crate) struct Choice {
    pub(crate) selection: ThresholdSelection,
    /// A candidate counts while the accuracy has lost less than this share of its first value.
    pub(crate) tolerance: f64,
    /// The clean images that `validation` measures on.
    pub(crate) held_out: Arc<dyn ImageSource>,
    pub(crate) batch_size: usize,
    pub(crate) zeroed: Zeroed,
}

/// The pruned network, and how it was chosen.
#[derive(Debug)]
pub(crate) struct Pruned {
    pub(crate) model: Model,
    /// Nothing where no candidate was good enough: then nothing is pruned.
    chosen: Option<Candidate>,
    zeroed: Zeroed,
    /// What the choice compared with; `None` where nothing was measured.
    accuracy_before: Option<f64>,
}

/// Accuracy and, from the test sets, attack success rate.
#[derive(Debug, Clone, Copy)]
struct Measured {
    accuracy: f64,
    asr: Option<f64>,
}

impl Choice {
    /// Prunes `model` by the candidate that is chosen. Candidates are in the order of growing pruning; `fixed` takes the
    /// first and measures nothing. Each measured candidate leaves a point of the trace.
    pub(crate) fn prune(
        &self,
        model: &Model,
        candidates: Vec<Candidate>,
        context: &mut Context,
        trace: &mut Vec<TracePoint>,
    ) -> Result<Pruned, Error> {
        let steps = candidates.len();
        context.observer.stage(STAGE, steps);
        let (chosen, accuracy_before) = if self.selection == ThresholdSelection::Fixed {
            (Some(0), None)
        } else {
            let before = self.measure(model, context, &mut TracePoint::new(STAGE, 0, []))?;
            let mut measured = Vec::with_capacity(steps);
            for (number, candidate) in candidates.iter().enumerate() {
                let pruned = prune(model, &candidate.channels, self.zeroed)?;
                let count = candidate.channels.len() as f64;
                let metrics = [("threshold", candidate.threshold), ("channels_pruned", count)];
                let mut point = TracePoint::new(STAGE, number, metrics);
                measured.push(self.measure(&pruned, context, &mut point)?);
                context.trace(trace, point);
                context.step(STAGE, number + 1, steps)?;
            }
            (self.best(before, &measured), Some(before.accuracy))
        };
        let chosen = chosen.and_then(|number| candidates.into_iter().nth(number));
        let channels = chosen.as_ref().map_or(&[][..], |candidate| &candidate.channels);
        Ok(Pruned { model: prune(model, channels, self.zeroed)?, chosen, zeroed: self.zeroed, accuracy_before })
    }

    fn measure(&self, model: &Model, context: &Context, point: &mut TracePoint) -> Result<Measured, Error> {
        let measured = if self.selection == ThresholdSelection::Oracle {
            let evaluation = (context.evaluate)(model)?;
            point.add(&evaluation);
            Measured { accuracy: evaluation.acc, asr: evaluation.asr }
        } else {
            let images = context.plain(self.held_out.clone(), self.batch_size);
            Measured { accuracy: model.predict(&images)?.accuracy(), asr: None }
        };
        point.metrics.insert("selection_accuracy".to_owned(), measured.accuracy);
        Ok(measured)
    }

    /// The number of the best candidate: see [`ThresholdSelection`].
    fn best(&self, before: Measured, candidates: &[Measured]) -> Option<usize> {
        let within =
            |candidate: &Measured| (candidate.accuracy - before.accuracy).abs() < self.tolerance * before.accuracy;
        let mut kept = candidates.iter().enumerate().filter(|(_, candidate)| within(candidate));
        if self.selection != ThresholdSelection::Oracle {
            return kept.next_back().map(|(number, _)| number);
        }
        let lowered = kept.filter_map(|(number, candidate)| {
            candidate.asr.zip(before.asr).filter(|(asr, before)| asr < before).map(|(asr, _)| (number, asr))
        });
        lowered.min_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(number, _)| number)
    }
}

impl Pruned {
    /// What was pruned, in network order.
    pub(crate) fn changed(&self) -> Vec<ChangedNeuron> {
        let what = match self.zeroed {
            Zeroed::Weight => "weight of the batch norm set to 0",
            Zeroed::WeightAndBias => "weight and bias of the batch norm set to 0",
        };
        let change = |channel: &Channel| ChangedNeuron {
            layer: channel.norm.clone(),
            neuron: channel.channel,
            what: what.to_owned(),
        };
        self.channels().iter().map(change).collect()
    }

    fn channels(&self) -> &[Channel] {
        self.chosen.as_ref().map_or(&[], |candidate| &candidate.channels)
    }

    /// For the record: the threshold, or null where none was good enough, and how many channels it prunes.
    pub(crate) fn facts(&self) -> [(&'static str, Value); 3] {
        let threshold = self.chosen.as_ref().map(|candidate| candidate.threshold);
        [
            ("threshold", json!(threshold)),
            ("channels_pruned", json!(self.channels().len())),
            ("accuracy_before_pruning", json!(self.accuracy_before)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tsbd_attack::Evaluation;

    use super::*;
    use crate::NoObserver;
    use crate::tiny::{self, in_context};

    fn choice(selection: ThresholdSelection) -> Choice {
        let held_out = tiny::clean().images();
        Choice { selection, tolerance: 0.1, held_out, batch_size: 24, zeroed: Zeroed::WeightAndBias }
    }

    fn best(selection: ThresholdSelection, before: (f64, Option<f64>), after: &[(f64, Option<f64>)]) -> Option<usize> {
        let measured = |&(accuracy, asr): &(f64, Option<f64>)| Measured { accuracy, asr };
        choice(selection).best(measured(&before), &after.iter().map(measured).collect::<Vec<_>>())
    }

    #[test]
    fn the_test_sets_choose_the_lowest_success_rate_within_the_tolerance() {
        let oracle = |before, after: &[(f64, f64)]| {
            let after: Vec<_> = after.iter().map(|(accuracy, asr)| (*accuracy, Some(*asr))).collect();
            best(ThresholdSelection::Oracle, (0.9, before), &after)
        };
        let first = oracle(Some(0.8), &[(0.9, 0.7), (0.85, 0.3), (0.82, 0.3), (0.5, 0.0)]);
        assert_eq!(first, Some(1), "the first of equals");
        let none = oracle(Some(0.8), &[(0.9, 0.8), (0.85, 0.9), (0.5, 0.0)]);
        assert_eq!(none, None, "an equal success rate is not lower");
        assert_eq!(oracle(None, &[(0.9, 0.0)]), None, "without a backdoor nothing can be lowered");
    }

    #[test]
    fn held_out_images_choose_what_prunes_most_within_the_tolerance() {
        let best = |after: &[f64]| {
            let after: Vec<_> = after.iter().map(|accuracy| (*accuracy, None)).collect();
            best(ThresholdSelection::Validation, (0.9, None), &after)
        };
        assert_eq!(best(&[0.9, 0.88, 0.82, 0.5, 0.1]), Some(2));
        assert_eq!(best(&[0.8, 0.5]), None);
    }

    #[test]
    fn a_pruned_channel_is_zero_in_a_copy_and_nothing_else_changes() {
        let model = tiny::model("backdoored");
        let digest = model.state.digest().unwrap();
        let channel = |norm: &str, channel| Channel { norm: norm.into(), channel };
        let channels = [channel("bn1", 2), channel("bn2", 0), channel("bn2", 11)];
        for (zeroed, bias_too) in [(Zeroed::Weight, false), (Zeroed::WeightAndBias, true)] {
            let pruned = prune(&model, &channels, zeroed).unwrap();
            for (name, entry) in model.state.entries() {
                let values = |tensor: &Tensor| {
                    tensor.flatten_all().unwrap().to_dtype(tsbd_tensor::DType::F64).unwrap().to_vec1::<f64>().unwrap()
                };
                let (mut expected, found) = (values(&entry.tensor), values(pruned.state.get(name).unwrap()));
                for Channel { norm, channel } in &channels {
                    if name == format!("{norm}.weight") || (bias_too && name == format!("{norm}.bias")) {
                        expected[*channel] = 0.0;
                    }
                }
                assert_eq!(found, expected, "{name}");
            }
        }
        assert_eq!(model.state.digest().unwrap(), digest);
    }

    #[test]
    fn scores_equal_to_the_threshold_are_pruned_and_thresholds_end_at_nine_tenths() {
        let thresholds: Vec<f64> = mask_thresholds().collect();
        assert_eq!((thresholds.len(), thresholds[0]), (19, 0.0));
        // A mask of just a threshold's decimals is at most the threshold, as numpy's arange gives it.
        for (number, threshold) in thresholds.iter().enumerate() {
            let mask: f64 = format!("0.{:02}", number * 5).parse().unwrap();
            let scores = ChannelScores { layers: vec![("bn".into(), vec![mask, mask + 1e-4])] };
            assert_eq!(scores.at_most(*threshold), [Channel { norm: "bn".into(), channel: 0 }], "{threshold}");
        }
    }

    #[test]
    fn a_sweep_measures_each_candidate_and_stops_on_request() {
        static MEASURED: AtomicU32 = AtomicU32::new(0);
        let candidates = || {
            let channels = |count| (0..count).map(|channel| Channel { norm: "bn2".into(), channel }).collect();
            (0..4).map(|count| Candidate { threshold: count as f64, channels: channels(count) }).collect::<Vec<_>>()
        };
        let mut trace = Vec::new();
        let pruned = in_context(&mut NoObserver, |context| {
            context.evaluate = &|_| {
                let asr = 1.0 / f64::from(MEASURED.fetch_add(1, Ordering::Relaxed) + 1);
                Ok(Evaluation { acc: 0.9, asr: Some(asr), ..Evaluation::default() })
            };
            let choice = choice(ThresholdSelection::Oracle);
            choice.prune(&tiny::model("backdoored"), candidates(), context, &mut trace).unwrap()
        });
        assert_eq!((MEASURED.load(Ordering::Relaxed), trace.len(), pruned.changed().len()), (5, 4, 3));
        assert_eq!((trace[3].metrics["asr"], trace[3].metrics["channels_pruned"]), (0.2, 3.0));
        let facts = [("threshold", json!(3.0)), ("channels_pruned", json!(3)), ("accuracy_before_pruning", json!(0.9))];
        assert_eq!(pruned.facts(), facts);
        let stopped = in_context(&mut tiny::StopAfter(2), |context| {
            let choice = choice(ThresholdSelection::Validation);
            choice.prune(&tiny::model("backdoored"), candidates(), context, &mut Vec::new())
        });
        assert!(matches!(stopped, Err(Error::Stopped { stage: STAGE })));
    }
}
