//! What is known of each metric: its title, and whether more of it is better.

use tsbd_experiment::ResultRow;

/// Which end of the scale a defense wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// As accuracy.
    Higher,
    /// As attack success rate.
    Lower,
}

/// A metric of the result rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metric {
    /// Its name in the records: `acc`, `asr`, `ra`, `der`, ...
    pub name: String,
    /// Its name in a table's head: `ACC`.
    pub title: String,
    /// Which values win; `None` where winning makes no sense.
    pub better: Option<Better>,
}

impl Metric {
    /// The metric of this name. A name that is not known here is shown in words, without a best value; a measurement's stands
    /// under the measurement's name and needs not repeat it.
    pub fn named(name: &str) -> Self {
        let in_words = name.replace('_', " ");
        let own =
            ["activeness ", "activation ", "coverage "].into_iter().find_map(|measure| in_words.strip_prefix(measure));
        let (title, better) = match name {
            "acc" => ("ACC", Some(Better::Higher)),
            "asr" => ("ASR", Some(Better::Lower)),
            "ra" => ("RA", Some(Better::Higher)),
            "der" => ("DER", Some(Better::Higher)),
            "acc_before" => ("ACC before", None),
            "asr_before" => ("ASR before", None),
            _ => (own.unwrap_or(&in_words), None),
        };
        Self { name: name.to_owned(), title: title.to_owned(), better }
    }

    /// Whether the metric can exist for this point. DER compares a repaired model with the backdoored one, so there is
    /// none without a defense; ASR and RA need a trigger. A measurement gives its own numbers and no others.
    pub(crate) fn is_defined(&self, row: &ResultRow) -> bool {
        let ResultRow { attack, defense, measure, .. } = row;
        if measure != "none" {
            return tsbd_experiment::measurement_gives(measure, &self.name);
        }
        let needs_trigger = matches!(self.name.as_str(), "asr" | "ra" | "der" | "asr_before");
        let needs_repair = matches!(self.name.as_str(), "der" | "acc_before" | "asr_before");
        !(needs_trigger && attack == "none" || needs_repair && defense == "none")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::missing;

    #[test]
    fn der_needs_an_attack_and_a_defense() {
        let der = Metric::named("der");
        assert!(der.is_defined(&missing("badnets", "ft", 0)));
        assert!(!der.is_defined(&missing("badnets", "none", 0)));
        assert!(!der.is_defined(&missing("none", "ft", 0)));
    }

    #[test]
    fn a_metric_without_a_title_is_shown_in_words() {
        let titles = ["slope", "coverage_anp_at_0.05", "activeness_median_clean", "acc_first_epoch"];
        let titles = titles.map(|name| Metric::named(name).title);
        assert_eq!(titles, ["slope", "anp at 0.05", "median clean", "acc first epoch"]);
    }

    #[test]
    fn accuracy_is_always_defined() {
        assert!(Metric::named("acc").is_defined(&missing("none", "none", 0)));
    }

    #[test]
    fn a_measurement_gives_its_own_numbers_alone() {
        let row = ResultRow { measure: "nwc".into(), ..missing("badnets", "none", 0) };
        let defined = |name: &str| Metric::named(name).is_defined(&row);
        assert_eq!(["pearson", "acc", "activeness_ratio"].map(defined), [true, false, false]);
    }
}
