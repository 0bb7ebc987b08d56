//! Coverage ratio: how many of the neurons that a method would take are those that the trigger moves most.

use crate::descending;

/// The share of the `int(neurons * ratio)` neurons with the largest `scores` that are also among as many neurons with the
/// largest `reference` (their TAC). Ties keep the network's order. `None` where the ratio selects no neuron.
///
/// A method that orders at random covers `ratio` on average.
///
/// # Panics
/// If the vectors differ in length, or the ratio selects more neurons than there are.
pub fn coverage(scores: &[f64], reference: &[f64], ratio: f64) -> Option<f64> {
    assert_eq!(scores.len(), reference.len(), "both score the same neurons");
    let count = (scores.len() as f64 * ratio) as usize;
    let mut wanted = vec![false; scores.len()];
    descending(reference, None)[..count].iter().for_each(|neuron| wanted[*neuron] = true);
    let covered = descending(scores, None)[..count].iter().filter(|neuron| wanted[**neuron]).count();
    (count > 0).then(|| covered as f64 / count as f64)
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
        assert_eq!(coverage(&[0.0; 6], &tac, 0.5), Some(1.0), "ties keep the network's order");
        assert_eq!(coverage(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], &tac, 1.0), Some(1.0));
        assert_eq!(coverage(&tac, &tac, 0.1), None);
    }
}
