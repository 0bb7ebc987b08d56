//! The nearest published numbers, beside an experiment's own.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::table::{Entry, Line, Table, Value};

/// Percent by data set, attack and defense.
type Numbers = BTreeMap<String, BTreeMap<String, BTreeMap<String, Vec<f64>>>>;

/// Where the numbers of a data set are from.
fn source(dataset: &str) -> String {
    let place = match dataset {
        "tiny-imagenet" => "Table 2",
        _ => "Table 1",
    };
    format!(
        "Zhu et al., ICCV 2023 (FT-SAM, arXiv 2304.11823), {place}: BackdoorBench, PreAct-ResNet18 of width 64, 10 % poisoned, \
         5 % clean images; the TSBD paper's own numbers are not published in a form that could be read"
    )
}

impl Table {
    /// The same table of published numbers, those rows and columns of it that have any.
    ///
    /// # Errors
    /// Rows are not attacks and columns not defenses, or nothing of the data set, or of its attacks and defenses, is published.
    pub fn published(&self) -> Result<Table> {
        let numbers: Numbers =
            toml::from_str(include_str!("published.toml")).map_err(|error| Error::Published(error.to_string()))?;
        if (self.row_axis.as_str(), self.column_axis.as_str()) != ("attack", "defense") {
            let reason =
                format!("rows are `{}` and columns `{}`, not attacks and defenses", self.row_axis, self.column_axis);
            return Err(Error::Published(reason));
        }
        let [dataset] = &self.datasets[..] else {
            return Err(Error::Published("the table mixes data sets".to_owned()));
        };
        let of_dataset = numbers.get(dataset).ok_or_else(|| {
            let known: Vec<&str> = numbers.keys().map(String::as_str).collect();
            Error::Published(format!("there are none of {dataset}, but of {}", known.join(" and ")))
        })?;
        let number = |attack: &str, defense: &str, metric: &str| {
            let place = ["acc", "asr", "der"].iter().position(|name| *name == metric)?;
            of_dataset.get(attack)?.get(defense)?.get(place).copied()
        };
        let mut table = self.clone();
        let known = |attack: &str, defense: &str| of_dataset.get(attack).is_some_and(|of| of.contains_key(defense));
        let attacks: Vec<&str> = of_dataset.keys().map(String::as_str).collect();
        table.columns.retain(|column| {
            column.name.as_deref().is_some_and(|defense| attacks.iter().any(|attack| known(attack, defense)))
        });
        let columns = &table.columns;
        let of_attack = |line: &Line| {
            let attack = line.name.as_deref().filter(|attack| of_dataset.contains_key(*attack))?;
            let entries = columns.iter().map(|column| {
                let entry = |metric: &crate::Metric| {
                    let mean = number(attack, column.name.as_deref().unwrap_or_default(), &metric.name);
                    let value = mean.map_or(Value::Undefined, |mean| Value::Measured {
                        mean,
                        deviation: None,
                        seeds: 1,
                        of: 1,
                    });
                    Entry { value, best: false }
                };
                column.metrics.iter().map(entry).collect()
            });
            Some(Line { name: line.name.clone(), title: line.title.clone(), entries: entries.collect() })
        };
        table.panels.truncate(1);
        for panel in &mut table.panels {
            panel.choice.clear();
            panel.lines = panel.lines.iter().filter_map(of_attack).collect();
            panel.average = average(&panel.lines);
        }
        if table.columns.is_empty() || table.panels.iter().all(|panel| panel.lines.is_empty()) {
            return Err(Error::Published(format!("of {dataset}, there are none of these attacks and defenses")));
        }
        table.title = "Nearest published numbers".to_owned();
        table.source = Some(source(dataset));
        table.failed.clear();
        Ok(table)
    }
}

/// The average of several attacks, where all have a number.
fn average(lines: &[Line]) -> Option<Line> {
    let [first, _, ..] = lines else { return None };
    let entry = |column: usize, metric: usize| {
        let numbers = lines.iter().map(|line| match line.entries[column][metric].value {
            Value::Measured { mean, .. } => Some(mean),
            Value::Missing | Value::Failed | Value::Undefined => None,
        });
        let sum: Option<f64> = numbers.sum();
        let measured = |sum: f64| Value::Measured { mean: sum / lines.len() as f64, deviation: None, seeds: 1, of: 1 };
        Entry { value: sum.map_or(Value::Undefined, measured), best: false }
    };
    let entries = (0..first.entries.len())
        .map(|column| (0..first.entries[column].len()).map(|metric| entry(column, metric)).collect());
    Some(Line { name: Some("average".into()), title: "Average".into(), entries: entries.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{done, experiment, titles};
    use crate::{Emphasis, Format, table};

    fn of(dataset: &str) -> Result<Table> {
        let rows = ["none", "ft", "fp", "tsbd"].map(|defense| {
            let mut row = done("badnets", defense, 0, &[("acc", 0.9), ("asr", 0.5), ("der", 0.7)]);
            row.dataset = dataset.to_owned();
            row
        });
        table(&rows, &experiment(), &titles()).unwrap().published()
    }

    #[test]
    fn published_numbers_stand_in_the_same_form_and_name_their_source() {
        let text = of("cifar10").unwrap().render(Format::Text, Emphasis::Star).unwrap();
        let text = String::from_utf8(text).unwrap();
        for part in ["Nearest published numbers", "Zhu et al.", "91.82", "93.79", "0.84", "96.45"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // Nothing of TSBD is published, and nothing of ours is among them.
        let titles = of("cifar10").unwrap().columns.into_iter().map(|column| column.title);
        assert_eq!(titles.collect::<Vec<_>>(), ["No defense", "FT", "FP"]);
        assert!(!text.contains("90.00") && !text.contains("cells done"), "{text}");
    }

    #[test]
    fn the_average_of_the_published_attacks_is_that_of_the_source() {
        let attacks = ["badnets", "blended", "input-aware", "lf", "sig", "ssba", "trojan", "wanet"];
        let rows = attacks.into_iter().flat_map(|attack| {
            ["none", "anp", "ft-sam"].map(|defense| {
                let row = done(attack, defense, 0, &[("acc", 0.9), ("asr", 0.5), ("der", 0.7)]);
                tsbd_experiment::ResultRow { dataset: "cifar10".into(), ..row }
            })
        });
        let rows: Vec<_> = rows.collect();
        let published = table(&rows, &experiment(), &titles()).unwrap().published().unwrap();
        let text = String::from_utf8(published.render(Format::Csv, Emphasis::Star).unwrap()).unwrap();
        let average = text.lines().find(|line| line.to_lowercase().contains("average")).unwrap();
        // As the source prints them.
        for mean in ["91.99", "97.84", "91.64", "37.31", "92.30", "2.51", "97.37"] {
            assert!(average.contains(mean), "{mean}: {average}");
        }
        assert!(published.source.unwrap().contains("Table 1:"));
    }

    #[test]
    fn a_data_set_without_published_numbers_is_refused() {
        let error = of("shapes").unwrap_err().to_string();
        assert!(error.contains("none of shapes") && error.contains("cifar10 and tiny-imagenet"), "{error}");
    }

    #[test]
    fn published_numbers_are_no_means_over_our_seeds() {
        let rows = [0, 1].map(|seed| {
            let row = done("badnets", "ft", seed, &[("acc", 0.9)]);
            tsbd_experiment::ResultRow { dataset: "cifar10".into(), ..row }
        });
        let own = table(&rows, &experiment(), &titles()).unwrap();
        let text = |table: &Table| String::from_utf8(table.render(Format::Text, Emphasis::Star).unwrap()).unwrap();
        assert!(text(&own).contains("standard deviation"));
        assert!(!text(&own.published().unwrap()).contains("standard deviation"));
    }

    #[test]
    fn a_table_of_which_nothing_is_published_is_refused() {
        let row = done("badnets", "tsbd", 0, &[("acc", 0.9)]);
        let row = tsbd_experiment::ResultRow { dataset: "cifar10".into(), ..row };
        let error = table(&[row], &experiment(), &titles()).unwrap().published().unwrap_err().to_string();
        assert!(error.contains("none of these attacks and defenses"), "{error}");
    }

    #[test]
    fn the_published_ratings_follow_from_the_published_rates() {
        let numbers: Numbers = toml::from_str(include_str!("published.toml")).unwrap();
        let mut checked = 0;
        for of_attack in numbers.values().flat_map(BTreeMap::values) {
            let [acc_before, asr_before] = of_attack["none"][..] else { panic!("two rates") };
            for rates in of_attack.iter().filter(|(defense, _)| *defense != "none").map(|(_, rates)| rates) {
                let [acc, asr, der] = rates[..] else { panic!("three rates") };
                let expected = ((asr_before - asr).max(0.0) - (acc_before - acc).max(0.0) + 100.0) / 2.0;
                // One published cell in a hundred is off by more than rounding.
                checked += usize::from((expected - der).abs() < 0.02);
            }
        }
        assert!(checked >= 100, "{checked} of 105 cells");
    }
}
