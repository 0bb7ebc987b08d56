//! How methods, data sets and models are called in a table's head.

use std::collections::BTreeMap;

/// Names for people by registry name: `badnets` -> `BadNets`. A name without a title is shown as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Titles {
    attacks: BTreeMap<String, String>,
    defenses: BTreeMap<String, String>,
    measures: BTreeMap<String, String>,
    datasets: BTreeMap<String, String>,
    models: BTreeMap<String, String>,
    /// By axis and value.
    choices: BTreeMap<(String, String), String>,
}

impl Titles {
    /// No titles but the two of `none`.
    pub fn new() -> Self {
        Self::default()
    }

    /// With the titles of attacks, as `(name, title)`.
    pub fn attacks<N: Into<String>, T: Into<String>>(mut self, pairs: impl IntoIterator<Item = (N, T)>) -> Self {
        self.attacks.extend(owned(pairs));
        self
    }

    /// With the titles of defenses.
    pub fn defenses<N: Into<String>, T: Into<String>>(mut self, pairs: impl IntoIterator<Item = (N, T)>) -> Self {
        self.defenses.extend(owned(pairs));
        self
    }

    /// With the titles of measurements.
    pub fn measures<N: Into<String>, T: Into<String>>(mut self, pairs: impl IntoIterator<Item = (N, T)>) -> Self {
        self.measures.extend(owned(pairs));
        self
    }

    /// With the titles of data sets.
    pub fn datasets<N: Into<String>, T: Into<String>>(mut self, pairs: impl IntoIterator<Item = (N, T)>) -> Self {
        self.datasets.extend(owned(pairs));
        self
    }

    /// With the titles of models.
    pub fn models<N: Into<String>, T: Into<String>>(mut self, pairs: impl IntoIterator<Item = (N, T)>) -> Self {
        self.models.extend(owned(pairs));
        self
    }

    /// With the titles of what an axis of parameters chooses between.
    pub fn choices<'a>(mut self, axis: &str, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        self.choices
            .extend(pairs.into_iter().map(|(value, title)| ((axis.to_owned(), value.to_owned()), title.to_owned())));
        self
    }

    /// The title of a value of an axis. A model is given as `name/width` and keeps its width.
    pub(crate) fn of(&self, axis: &str, value: &str) -> String {
        let title = |titles: &BTreeMap<String, String>, none: &str| match titles.get(value) {
            _ if value == "none" => none.to_owned(),
            Some(title) => title.clone(),
            None => value.to_owned(),
        };
        match axis {
            "attack" => title(&self.attacks, "No attack"),
            "defense" => title(&self.defenses, "No defense"),
            "measure" => title(&self.measures, "Rates"),
            "dataset" => title(&self.datasets, "none"),
            "model" => match value.rsplit_once('/') {
                Some((name, width)) => {
                    let name = self.models.get(name).map_or(name, String::as_str);
                    format!("{name}, width {width}")
                }
                None => title(&self.models, "none"),
            },
            _ => self.titled(axis, value).unwrap_or(value).to_owned(),
        }
    }

    /// What a value of an axis is called where no axis stands beside it: a number needs its key.
    pub(crate) fn choice(&self, axis: &str, value: &str) -> String {
        match axis {
            "attack" | "defense" | "measure" | "dataset" | "model" => self.of(axis, value),
            _ => self.titled(axis, value).map_or_else(|| format!("{axis} = {value}"), str::to_owned),
        }
    }

    fn titled(&self, axis: &str, value: &str) -> Option<&str> {
        self.choices.get(&(axis.to_owned(), value.to_owned())).map(String::as_str)
    }
}

fn owned<N: Into<String>, T: Into<String>>(
    pairs: impl IntoIterator<Item = (N, T)>,
) -> impl Iterator<Item = (String, String)> {
    pairs.into_iter().map(|(name, title)| (name.into(), title.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_title_is_shown_as_it_is() {
        let titles = Titles::new().attacks([("badnets", "BadNets")]);
        assert_eq!(titles.of("attack", "badnets"), "BadNets");
        assert_eq!(titles.of("attack", "wanet"), "wanet");
        assert_eq!(titles.of("defenses.tsbd.neuron_ratio", "0.15"), "0.15");
    }

    #[test]
    fn a_choice_has_its_title_on_its_own_axis_alone() {
        let titles = Titles::new().choices("defenses.fp.order", [("nwc", "NWC-FP")]);
        assert_eq!(titles.of("defenses.fp.order", "nwc"), "NWC-FP");
        assert_eq!(titles.of("defenses.fp.order", "activation"), "activation");
        assert_eq!(titles.of("measures.coverage.methods", "nwc"), "nwc");
        assert_eq!(titles.choice("defenses.fp.order", "nwc"), "NWC-FP");
        assert_eq!(titles.choice("attack.poisoning_ratio", "0.05"), "attack.poisoning_ratio = 0.05");
        assert_eq!(titles.choice("defense", "none"), "No defense");
    }

    #[test]
    fn none_is_spelled_out() {
        assert_eq!(Titles::new().of("attack", "none"), "No attack");
        assert_eq!(Titles::new().of("defense", "none"), "No defense");
    }

    #[test]
    fn a_model_keeps_its_width() {
        let titles = Titles::new().models([("preact-resnet18", "PreAct-ResNet18")]);
        assert_eq!(titles.of("model", "preact-resnet18/16"), "PreAct-ResNet18, width 16");
    }
}
