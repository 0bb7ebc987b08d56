//! Pruning of batch-norm channels: a score for each channel, pruned networks for a row of thresholds, and who chooses
//! among them. ANP, CLP and RNP share it; they differ in the score.

use std::time::Instant;

use serde_json::{Value, json};
use tsbd_analysis::NeuronVector;
use tsbd_attack::ParameterError;
use tsbd_nn::{Architecture, Layer, Model};
use tsbd_tensor::Tensor;

use crate::entry::{ChangedNeuron, Repaired, TracePoint, noted};
use crate::selection::{Judge, ThresholdSelection};
use crate::{Context, Error};

const STAGE: &str = "pruning";

/// The thresholds that BackdoorBench sweeps over masks: 0, 0.05, ... 0.90.
fn mask_thresholds() -> impl Iterator<Item = f64> {
    (0..19).map(|number| f64::from(number) * 0.05)
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

/// How one of several candidates is chosen, and what it prunes of a channel.
pub(crate) struct Choice {
    pub(crate) judge: Judge,
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
        let (chosen, accuracy_before) = if self.judge.selection == ThresholdSelection::Fixed {
            (Some(0), None)
        } else {
            let before = self.judge.measure(model, context, &mut TracePoint::new(STAGE, 0, []))?;
            let mut measured = Vec::with_capacity(steps);
            for (number, candidate) in candidates.iter().enumerate() {
                let pruned = prune(model, &candidate.channels, self.zeroed)?;
                let count = candidate.channels.len() as f64;
                let metrics = [("threshold", candidate.threshold), ("channels_pruned", count)];
                let mut point = TracePoint::new(STAGE, number, metrics);
                measured.push(self.judge.measure(&pruned, context, &mut point)?);
                context.trace(trace, point);
                context.step(STAGE, number + 1, steps)?;
            }
            (self.judge.best(before, &measured), Some(before.accuracy))
        };
        let chosen = chosen.and_then(|number| candidates.into_iter().nth(number));
        let channels = chosen.as_ref().map_or(&[][..], |candidate| &candidate.channels);
        Ok(Pruned { model: prune(model, channels, self.zeroed)?, chosen, zeroed: self.zeroed, accuracy_before })
    }
}

impl Pruned {
    /// What was pruned, in network order.
    pub(crate) fn changed(&self) -> Vec<ChangedNeuron> {
        let (zeroed, what) = match self.zeroed {
            Zeroed::Weight => (1, "weight of the batch norm set to 0"),
            Zeroed::WeightAndBias => (2, "weight and bias of the batch norm set to 0"),
        };
        let change = |channel: &Channel| ChangedNeuron {
            layer: channel.norm.clone(),
            neuron: channel.channel,
            zeroed,
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

/// The end of ANP and RNP: channels whose mask is at most a threshold lose their batch norm's weight, in the original
/// network. The threshold is `fixed` or chosen among [`mask_thresholds`].
pub(crate) struct MaskPruning<'a> {
    pub(crate) masks: &'a ChannelScores,
    pub(crate) fixed: f64,
    pub(crate) judge: Judge,
}

impl MaskPruning<'_> {
    /// Prunes `backdoored`. `facts` are those of the masks; what came before is in `trace`.
    pub(crate) fn repair(
        self,
        backdoored: &Model,
        facts: impl IntoIterator<Item = (&'static str, Value)>,
        context: &mut Context,
        mut trace: Vec<TracePoint>,
    ) -> Result<Repaired, Error> {
        let MaskPruning { masks, fixed, judge } = self;
        let (start, selection) = (Instant::now(), judge.selection);
        let candidate = |threshold| Candidate { threshold, channels: masks.at_most(threshold) };
        let candidates = match selection {
            ThresholdSelection::Fixed => vec![candidate(fixed)],
            ThresholdSelection::Validation | ThresholdSelection::Oracle => mask_thresholds().map(candidate).collect(),
        };
        let choice = Choice { judge, zeroed: Zeroed::Weight };
        let pruned = choice.prune(backdoored, candidates, context, &mut trace)?;
        let own = [("selection", json!(selection)), ("pruning_seconds", json!(start.elapsed().as_secs_f64()))];
        let facts = noted(facts.into_iter().chain(own).chain(pruned.facts()));
        Ok(Repaired {
            changed: pruned.changed(),
            model: pruned.model,
            trace,
            facts,
            scores: Some(masks.scores(|_, mask| 1.0 - mask)),
        })
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
        let judge = Judge { selection, tolerance: 0.1, held_out: tiny::clean().images(), batch_size: 24 };
        Choice { judge, zeroed: Zeroed::WeightAndBias }
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
