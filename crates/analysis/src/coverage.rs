//! Coverage ratio: how many of the neurons that a method would take are those that the trigger moves most.

use crate::descending;

/// The share of the `int(neurons * ratio)` neurons with the largest `scores` that are also among as many neurons with the
/// largest `reference` (their TAC). `None` where the ratio selects no neuron.
///
/// Neurons that are equal at the cut share the places that are left: the result is the mean over all ways to order them
/// (masks have many zeros and ones, and the network's order would favour its first layers). A method that orders at random
/// covers `ratio` on average, and so does one that scores all alike.
///
/// # Panics
/// If the vectors differ in length, or the ratio selects more neurons than there are.
pub fn coverage(scores: &[f64], reference: &[f64], ratio: f64) -> Option<f64> {
    assert_eq!(scores.len(), reference.len(), "both score the same neurons");
    let count = (scores.len() as f64 * ratio) as usize;
    let (taken, wanted) = (places(scores, count)?, places(reference, count)?);
    let covered: f64 = taken.iter().zip(&wanted).map(|(taken, wanted)| taken * wanted).sum();
    Some(covered / count as f64)
}

/// For each neuron how much of one of the first `count` places it has: 1, 0, or where several are equal at the cut, their
/// share of the places left. `None` of no place.
fn places(scores: &[f64], count: usize) -> Option<Vec<f64>> {
    let order = descending(scores, None);
    let cut = scores[order[count.checked_sub(1)?]];
    let above = scores.iter().filter(|score| **score > cut).count();
    let equal = scores.iter().filter(|score| **score == cut).count();
    let share = (count - above) as f64 / equal as f64;
    let place = |score: &f64| if *score > cut { 1.0 } else { f64::from(u8::from(*score == cut)) * share };
    Some(scores.iter().map(place).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn coverage_is_that_of_sets_in_python() {
        let tac = golden::numbers("tac_backdoorbench");
        let scores = golden::numbers("coverage_scores");
        let cases = golden::value("coverage");
        let cases = cases.as_array().unwrap();
        assert!(cases.len() >= 4);
        for case in cases {
            let [ratio, expected] = ["ratio", "coverage"].map(|name| case[name].as_f64().unwrap());
            assert!((coverage(&scores, &tac, ratio).unwrap() - expected).abs() < 1e-12, "ratio {ratio}");
        }
    }

    #[test]
    fn coverage_by_hand() {
        let tac = [5.0, 4.0, 3.0, 2.0, 1.0, 0.0];
        assert_eq!(coverage(&[0.0, 9.0, 8.0, 7.0, 0.0, 0.0], &tac, 0.5), Some(2.0 / 3.0));
        assert_eq!(coverage(&tac, &tac, 0.34), Some(1.0));
        assert_eq!(coverage(&[0.0; 6], &tac, 0.5), Some(0.5), "all alike is as good as chance");
        // One place is certain, two are shared by four neurons of which two are wanted: 1 + 2 / 4 * 2 of 3.
        assert_eq!(coverage(&[9.0, 1.0, 1.0, 1.0, 1.0, 0.0], &tac, 0.5), Some(2.0 / 3.0));
        assert_eq!(coverage(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], &tac, 1.0), Some(1.0));
        assert_eq!(coverage(&tac, &tac, 0.1), None);
    }
}
