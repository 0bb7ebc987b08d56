//! Who chooses among candidates that take more and more of a network: ANP, CLP and RNP among thresholds, TSBD among neuron
//! ratios.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tsbd_data::ImageSource;
use tsbd_nn::Model;

use crate::entry::TracePoint;
use crate::{CleanSubset, Context, Error};

/// What a defense tunes itself on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// Clean images held out of the defender's subset.
    #[default]
    Validation,
    /// The test sets, as the published code does: an upper bound, no defender has them.
    Oracle,
}

impl From<Selection> for ThresholdSelection {
    fn from(selection: Selection) -> ThresholdSelection {
        match selection {
            Selection::Validation => ThresholdSelection::Validation,
            Selection::Oracle => ThresholdSelection::Oracle,
        }
    }
}

/// Who decides how much is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ThresholdSelection {
    /// Nobody: one threshold (or ratio), fixed in advance.
    Fixed,
    /// Held-out clean images: of the candidates swept, the one that takes most and keeps the accuracy on them within the
    /// tolerance.
    Validation,
    /// The test sets: of the candidates swept that keep the test accuracy within the tolerance and lower the attack
    /// success rate, the one with the lowest attack success rate. An upper bound, no defender has them. A network
    /// without a backdoor stays as it is.
    Oracle,
}

impl ThresholdSelection {
    /// Whether an accuracy that was `before` and is `after` is within the `tolerance`, a share of the first. The published
    /// codes, which measure on the test sets, compare the size of the difference; a gain is no loss.
    pub(crate) fn keeps(self, before: f64, after: f64, tolerance: f64) -> bool {
        let loss = before - after;
        let counted = if self == ThresholdSelection::Oracle { loss.abs() } else { loss };
        counted < tolerance * before
    }

    /// Of a share to hold out, a threshold and a tolerance those that have an effect; in the place of the others the usual ones.
    pub(crate) fn effective(self, given: [f64; 3], usual: [f64; 3]) -> [f64; 3] {
        match self {
            ThresholdSelection::Fixed => [usual[0], given[1], usual[2]],
            ThresholdSelection::Validation => [given[0], usual[1], given[2]],
            ThresholdSelection::Oracle => [usual[0], usual[1], given[2]],
        }
    }

    /// The images that a defense works with, and those that `validation` measures on: the last `share` of them, held out. The
    /// others hold out none.
    pub(crate) fn split(self, clean: &CleanSubset, share: f64) -> (Arc<dyn ImageSource>, Arc<dyn ImageSource>) {
        match self {
            ThresholdSelection::Validation => clean.hold_out(share),
            ThresholdSelection::Fixed | ThresholdSelection::Oracle => (clean.images(), clean.images()),
        }
    }
}

/// Accuracy and, from the test sets, attack success rate.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) accuracy: f64,
    pub(crate) asr: Option<f64>,
}

/// Measures candidates and tells the best of them. With `fixed` there is nothing to do for it.
pub(crate) struct Judge {
    pub(crate) selection: ThresholdSelection,
    /// A candidate counts while the accuracy has lost less than this share of its first value. With `oracle`, as the reference
    /// has it, also while it has gained no more.
    pub(crate) tolerance: f64,
    /// The clean images that `validation` measures on.
    pub(crate) held_out: Arc<dyn ImageSource>,
    pub(crate) batch_size: usize,
}

impl Judge {
    /// What the choice is made by; added to `point` as well.
    pub(crate) fn measure(&self, model: &Model, context: &Context, point: &mut TracePoint) -> Result<Measured, Error> {
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

    /// The number of the best candidate, in the order of growing change: see [`ThresholdSelection`]. Of the first few
    /// candidates it is the best of all or comes before it.
    pub(crate) fn best(&self, before: Measured, candidates: &[Measured]) -> Option<usize> {
        let within = |candidate: &Measured| self.selection.keeps(before.accuracy, candidate.accuracy, self.tolerance);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny;

    fn best(selection: ThresholdSelection, before: (f64, Option<f64>), after: &[(f64, Option<f64>)]) -> Option<usize> {
        let measured = |&(accuracy, asr): &(f64, Option<f64>)| Measured { accuracy, asr };
        let judge = Judge { selection, tolerance: 0.1, held_out: tiny::clean().images(), batch_size: 24 };
        judge.best(measured(&before), &after.iter().map(measured).collect::<Vec<_>>())
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
    fn held_out_images_choose_what_takes_most_within_the_tolerance() {
        let best = |after: &[f64]| {
            let after: Vec<_> = after.iter().map(|accuracy| (*accuracy, None)).collect();
            best(ThresholdSelection::Validation, (0.9, None), &after)
        };
        assert_eq!(best(&[0.9, 0.88, 0.82, 0.5, 0.1]), Some(2));
        assert_eq!(best(&[0.8, 0.5]), None);
    }

    #[test]
    fn a_gain_is_no_loss_but_for_the_published_rule() {
        let after = [(0.5, Some(0.8)), (0.7, Some(0.1)), (0.3, Some(0.0))];
        assert_eq!(best(ThresholdSelection::Validation, (0.5, None), &after), Some(1));
        assert_eq!(best(ThresholdSelection::Oracle, (0.5, Some(0.9)), &after), Some(0), "0.7 is too far from 0.5");
    }
}
