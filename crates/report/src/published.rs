//! The nearest published numbers, below an experiment's own.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::metric::Metric;
use crate::table::{Column, Entry, Line, Panel, Table, Value};

/// Percent by data set, attack and defense.
type Numbers = BTreeMap<String, BTreeMap<String, BTreeMap<String, Vec<f64>>>>;

/// What they were measured at, by the axis that changes it.
const MEASURED_AT: [(&str, f64); 2] = [("attack.poisoning_ratio", 0.1), ("defense.clean_ratio", 0.05)];

/// Where the numbers of a data set are from.
fn source(dataset: &str) -> String {
    let place = match dataset {
        "tiny-imagenet" => "Table 2",
        _ => "Table 1",
    };
    format!(
        "Zhu et al., ICCV 2023 (FT-SAM, arXiv 2304.11823), {place}: BackdoorBench, PreAct-ResNet18 of width 64, 10 % poisoned, \
         5 % clean images, FP and ANP selected on the test sets (here `selection = \"oracle\"`); the TSBD paper's own numbers are not \
         published in a form that could be read"
    )
}

impl Table {
    /// The same table with the published numbers of each line below it, as far as there are any.
    ///
    /// # Errors
    /// Rows are not attacks and columns not defenses, or nothing of the data set, or of its attacks and defenses at the ratios of
    /// the panels, is published.
    pub fn with_published(mut self) -> Result<Table> {
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
        let number = |attack: &str, column: &Column, metric: &Metric| {
            let place = ["acc", "asr", "der"].iter().position(|name| *name == metric.name)?;
            of_dataset.get(attack)?.get(column.name.as_deref()?)?.get(place).copied()
        };
        for panel in self.panels.iter_mut().filter(|panel| is_comparable(panel)) {
            let ours = std::mem::take(&mut panel.lines);
            let attacks: Vec<&str> =
                ours.iter().filter_map(|line| line.name.as_deref()).filter(|name| *name != "none").collect();
            // Of our attacks, all or none.
            let average = |column: &Column, metric: &Metric| {
                let sum: f64 = attacks.iter().map(|attack| number(attack, column, metric)).sum::<Option<f64>>()?;
                Some(sum / attacks.len() as f64)
            };
            panel.averages.extend(published(&self.columns, "average", average).filter(|_| !panel.averages.is_empty()));
            for line in &ours {
                panel.lines.push(line.clone());
                let attack = line.name.as_deref().unwrap_or_default();
                panel.lines.extend(published(&self.columns, attack, |column, metric| number(attack, column, metric)));
            }
        }
        if self.panels.iter().all(|panel| panel.lines.iter().all(|line| !line.is_published)) {
            return Err(Error::Published(format!(
                "of {dataset}, there are none of these attacks and defenses at these ratios"
            )));
        }
        self.source = Some(source(dataset));
        Ok(self)
    }
}

/// Whether the published numbers were measured at the ratios that the panel chooses, if it does.
fn is_comparable(panel: &Panel) -> bool {
    let chosen = |axis: &str| panel.choice.iter().find(|(name, _)| name == axis);
    MEASURED_AT.iter().all(|(axis, at)| chosen(axis).is_none_or(|(_, value)| value.parse() == Ok(*at)))
}

/// The line below that of `name`; `None` if nothing in it is published.
fn published(columns: &[Column], name: &str, number: impl Fn(&Column, &Metric) -> Option<f64>) -> Option<Line> {
    let entry = |column: &Column, metric: &Metric| {
        let measured = |mean| Value::Measured { mean, deviation: None, seeds: 1, of: 1 };
        Entry { value: number(column, metric).map_or(Value::Undefined, measured), best: false }
    };
    let entries = columns.iter().map(|column| column.metrics.iter().map(|metric| entry(column, metric)).collect());
    let entries: Vec<Vec<Entry>> = entries.collect();
    let is_any = entries.iter().flatten().any(|entry| entry.value != Value::Undefined);
    let line = Line { name: Some(name.to_owned()), title: "  published".to_owned(), entries, is_published: true };
    is_any.then_some(line)
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
        table(&rows, &experiment(), &titles()).unwrap().with_published()
    }

    fn text(table: &Table) -> String {
        String::from_utf8(table.render(Format::Text, Emphasis::Star).unwrap()).unwrap()
    }

    fn all_attacks() -> Vec<tsbd_experiment::ResultRow> {
        let attacks = ["none", "badnets", "blended", "input-aware", "lf", "sig", "ssba", "trojan", "wanet"];
        let of = |attack| {
            ["none", "anp", "ft-sam"].map(|defense| {
                let row = done(attack, defense, 0, &[("acc", 0.9), ("asr", 0.5), ("der", 0.7)]);
                tsbd_experiment::ResultRow { dataset: "cifar10".into(), ..row }
            })
        };
        attacks.into_iter().flat_map(of).collect()
    }

    #[test]
    fn published_numbers_stand_below_ours_and_name_their_source() {
        let text = text(&of("cifar10").unwrap());
        let published = text.lines().find(|line| line.contains("  published")).unwrap();
        // In the order of our columns; nothing of TSBD is published.
        let numbers: Vec<&str> = published.split_whitespace().filter(|word| word.contains(['.', '–'])).collect();
        assert_eq!(numbers[..2], ["91.82", "93.79"]);
        assert_eq!(numbers[numbers.len() - 3..], ["–"; 3]);
        assert!(!published.contains('*'), "it does not compete");
        assert!(
            text.contains("BadNets") && text.contains("90.00") && text.contains("\nPublished: Zhu et al."),
            "{text}"
        );
    }

    #[test]
    fn the_average_of_the_published_attacks_is_that_of_the_source() {
        let rows = all_attacks();
        let published = table(&rows, &experiment(), &titles()).unwrap().with_published().unwrap();
        let text = String::from_utf8(published.render(Format::Csv, Emphasis::Star).unwrap()).unwrap();
        let averages: Vec<&str> = text.lines().filter(|line| line.contains("average,")).collect();
        assert!(averages[0].contains("average,false") && averages[1].contains("average,true"), "{averages:?}");
        // As the source prints them.
        for mean in ["91.99", "97.84", "91.64", "37.31", "92.30", "2.51", "97.37"] {
            assert!(averages[1].contains(mean), "{mean}: {averages:?}");
        }
        // The clean model has no published line.
        assert_eq!(text.lines().filter(|line| line.contains(",true,")).count(), 9);
        assert!(published.source.unwrap().contains("Table 1:"));
    }

    #[test]
    fn every_format_with_published_numbers_is_one_file() {
        let published = table(&all_attacks(), &experiment(), &titles()).unwrap().with_published().unwrap();
        let rendered = |format| published.render(format, Emphasis::Star).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&rendered(Format::Json)).unwrap();
        assert_eq!(json["panels"][0]["rows"][2]["published"], true);
        assert_eq!(json["panels"][0]["averages"].as_array().unwrap().len(), 2);
        assert!(json["published"].as_str().unwrap().contains("Zhu et al."));
        let csv = String::from_utf8(rendered(Format::Csv)).unwrap();
        let columns = |line: &str| line.matches(',').count();
        assert!(csv.lines().all(|line| columns(line) == columns(csv.lines().next().unwrap())), "{csv}");
        let latex = String::from_utf8(rendered(Format::Latex)).unwrap();
        assert_eq!((latex.matches("begin{table}").count(), latex.matches("published &").count()), (1, 9), "{latex}");
    }

    #[test]
    fn an_average_over_other_attacks_than_the_published_has_no_published_one() {
        let mut rows = all_attacks();
        rows.iter_mut().filter(|row| row.attack == "lf").for_each(|row| row.attack = "another".into());
        let published = table(&rows, &experiment(), &titles()).unwrap().with_published().unwrap();
        assert_eq!(published.panels[0].averages.len(), 1);
        assert_eq!(published.panels[0].lines.iter().filter(|line| line.is_published).count(), 7);
    }

    #[test]
    fn panels_at_other_ratios_have_no_published_lines() {
        let at = |ratio: f64| {
            let rows = all_attacks().into_iter().map(move |mut row| {
                row.axes.insert("attack.poisoning_ratio".to_owned(), ratio.to_string());
                row
            });
            rows.collect::<Vec<_>>()
        };
        let of = |rows: &[tsbd_experiment::ResultRow]| table(rows, &experiment(), &titles()).unwrap().with_published();
        let table = of(&[at(0.01), at(0.1)].concat()).unwrap();
        let published = |panel: &Panel| panel.lines.iter().filter(|line| line.is_published).count();
        assert_eq!(table.panels.iter().map(published).collect::<Vec<_>>(), [0, 8]);
        assert_eq!(table.panels.iter().map(|panel| panel.averages.len()).collect::<Vec<_>>(), [1, 2]);
        let error = of(&[at(0.01), at(0.05)].concat()).unwrap_err().to_string();
        assert!(error.contains("at these ratios"), "{error}");
    }

    #[test]
    fn a_data_set_without_published_numbers_is_refused() {
        let error = of("shapes").unwrap_err().to_string();
        assert!(error.contains("none of shapes") && error.contains("cifar10 and tiny-imagenet"), "{error}");
    }

    #[test]
    fn a_table_of_which_nothing_is_published_is_refused() {
        let row = done("badnets", "tsbd", 0, &[("acc", 0.9)]);
        let row = tsbd_experiment::ResultRow { dataset: "cifar10".into(), ..row };
        let error = table(&[row], &experiment(), &titles()).unwrap().with_published().unwrap_err().to_string();
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
                assert!((expected - der).abs() < 0.011, "{expected} is not {der}");
                checked += 1;
            }
        }
        assert_eq!(checked, 105);
    }
}
