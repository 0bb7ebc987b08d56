//! The defense effectiveness rating.

use tsbd_attack::Evaluation;

/// DER of a defense, from the measurements before and after it: the drop of the attack success rate minus the drop of
/// the accuracy, neither counted when it is a rise, brought to 0..=1:
/// `(max(0, ASR_before - ASR_after) - max(0, ACC_before - ACC_after) + 1) / 2`.
///
/// 0.5 is a defense that changes nothing. `None` where the attack success rate is undefined (a model without a
/// backdoor). Source: Zhu et al., "Enhancing Fine-Tuning based Backdoor Defense with Sharpness-Aware Minimization",
/// ICCV 2023.
pub fn der(before: &Evaluation, after: &Evaluation) -> Option<f64> {
    let asr_drop = (before.asr? - after.asr?).max(0.0);
    let acc_drop = (before.acc - after.acc).max(0.0);
    Some((asr_drop - acc_drop + 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(acc: f64, asr: Option<f64>) -> Evaluation {
        Evaluation { acc, asr, ra: None, ..Evaluation::default() }
    }

    /// Cells of Table 1 of the FT-SAM paper (CIFAR-10, PreAct-ResNet18): ACC, ASR before; ACC, ASR, DER after.
    #[test]
    fn published_cells_are_reproduced() {
        for [acc_before, asr_before, acc, asr, published] in [
            [91.82, 93.79, 90.29, 1.70, 95.28],
            [93.44, 97.71, 92.57, 8.32, 94.26],
            [94.03, 98.35, 94.11, 98.98, 50.00],
            [84.49, 97.87, 90.47, 5.74, 96.06],
        ] {
            let before = measured(acc_before / 100.0, Some(asr_before / 100.0));
            let after = measured(acc / 100.0, Some(asr / 100.0));
            let der = 100.0 * der(&before, &after).unwrap();
            assert!((der - published).abs() < 0.011, "{der} against {published}");
        }
    }

    #[test]
    fn a_rise_of_either_rate_does_not_count() {
        assert_eq!(der(&measured(0.9, Some(0.5)), &measured(0.95, Some(0.8))), Some(0.5));
        assert_eq!(der(&measured(1.0, Some(0.0)), &measured(0.0, Some(1.0))), Some(0.0));
        assert_eq!(der(&measured(0.9, Some(1.0)), &measured(0.9, Some(0.0))), Some(1.0));
    }

    #[test]
    fn without_a_backdoor_there_is_no_rating() {
        assert_eq!(der(&measured(0.9, None), &measured(0.8, None)), None);
    }
}
