//! Figures of a table: its rows along the horizontal axis, a series for each of its columns, a panel for each of its
//! metrics (and for each choice of what else varies).

use crate::chart::{Axis, Chart, Mark, Mean, Panel, Point, Scale, Series, Shape};
use crate::error::{Error, Result};
use crate::metric::Metric;
use crate::render::{configured, named_seeds};
use crate::table::{Line, Table, Unit, Value};

impl Table {
    /// A curve for each column over the rows, whose names are numbers: an ablation. Standard deviations over seeds are bands, and
    /// a curve is broken where a result is missing.
    ///
    /// # Errors
    /// A row is no number (or not positive on a logarithmic axis).
    pub fn curves(&self, logarithmic: bool) -> Result<Chart> {
        let numbers = self.row_numbers(logarithmic)?;
        let mut chart = self.chart(Shape::Line, (380, 270));
        let scale = if logarithmic { Scale::Logarithmic } else { Scale::Around };
        let scale = scale(numbers.clone());
        let x = Axis { label: axis_label(&self.row_axis), scale };
        for (panel, metric) in self.facets() {
            let mut order: Vec<usize> = (0..panel.lines.len()).collect();
            order.sort_by(|a, b| numbers[*a].total_cmp(&numbers[*b]));
            let point = |column: usize, line: usize| {
                Some(Point { x: numbers[line], y: self.measured(&panel.lines[line], column, metric)? })
            };
            let curve = |(series, column): (usize, usize)| {
                let points: Vec<Option<Point>> = order.iter().map(|line| point(column, *line)).collect();
                let stretches = points.split(Option::is_none).filter(|stretch| !stretch.is_empty());
                let stretches: Vec<Vec<Point>> =
                    stretches.map(|stretch| stretch.iter().copied().flatten().collect()).collect();
                stretches.into_iter().map(move |points| Mark::Line { series, points })
            };
            let marks = self.drawn_columns().into_iter().enumerate().flat_map(curve).collect();
            // One scale for the panels of a metric, which are there to be compared.
            let scale = if self.unit == Unit::Percent { Scale::Percent } else { Scale::Around };
            let y = Axis { label: self.label(metric), scale: scale(self.extent(metric)) };
            let title = panel.title.clone();
            chart.panels.push(Panel { title, x: x.clone(), y, marks, remarks: Vec::new() });
        }
        chart.columns = self.metrics().len().clamp(1, 3);
        Ok(chart)
    }

    /// A group of bars for each row, a bar for each column. Standard deviations over seeds are lines on the bars.
    pub fn bars(&self) -> Chart {
        let mut chart = self.chart(Shape::Bar, (760, 190));
        for (panel, metric) in self.facets() {
            let lines: Vec<&Line> = self.lines(panel).collect();
            let names = lines.iter().map(|line| line.title.clone()).collect();
            let mark = |(series, column): (usize, usize)| Mark::Bars {
                series,
                heights: lines.iter().map(|line| self.measured(line, column, metric)).collect(),
            };
            let marks = self.drawn_columns().into_iter().enumerate().map(mark).collect();
            let x = Axis { label: String::new(), scale: Scale::Names(names) };
            let scale = match self.unit {
                Unit::Percent => Scale::Within(0.0, 100.0),
                _ => Scale::Around(self.extent(metric)),
            };
            let y = Axis { label: self.label(metric), scale };
            let title = panel.title.clone();
            chart.panels.push(Panel { title, x, y, marks, remarks: Vec::new() });
        }
        let mut bars = chart.panels.iter().flat_map(|panel| &panel.marks);
        let is_incomplete =
            |mark: &Mark| matches!(mark, Mark::Bars { heights, .. } if heights.iter().any(Option::is_none));
        if bars.any(is_incomplete) {
            chart.notes.insert(0, "×: no result, or none that can exist.".to_owned());
        }
        chart
    }

    /// The figure without its panels.
    fn chart(&self, shape: Shape, panel_size: (u32, u32)) -> Chart {
        let series = |column: usize| Series { name: self.columns[column].title.clone(), shape };
        let mut notes: Vec<String> = done_of(self.count.done, self.count.cells).into_iter().collect();
        if self.seeds.len() > 1 {
            notes.push(MEANS.to_owned());
        }
        let entries =
            self.panels.iter().flat_map(|panel| self.lines(panel)).flat_map(|line| line.entries.iter().flatten());
        let partial = |value: Value| matches!(value, Value::Measured { seeds, of, .. } if seeds < of);
        if entries.map(|entry| entry.value).any(partial) {
            notes.push(HOLLOW.to_owned());
        }
        Chart {
            title: self.title.clone(),
            subtitle: subtitle(&self.material, &configured(&self.profile, &self.settings), &self.seeds),
            legend: self.drawn_columns().into_iter().map(series).collect(),
            panels: Vec::new(),
            columns: 1,
            panel_size,
            notes,
        }
    }

    /// What stands at the axis of a metric.
    fn label(&self, metric: &Metric) -> String {
        if self.unit == Unit::Percent { format!("{} (%)", metric.title) } else { metric.title.clone() }
    }

    /// Columns that have a metric.
    fn drawn_columns(&self) -> Vec<usize> {
        (0..self.columns.len()).filter(|column| !self.columns[*column].metrics.is_empty()).collect()
    }

    /// The metrics of all columns, each once.
    fn metrics(&self) -> Vec<&Metric> {
        let mut metrics: Vec<&Metric> = Vec::new();
        for metric in self.columns.iter().flat_map(|column| &column.metrics) {
            if !metrics.contains(&metric) {
                metrics.push(metric);
            }
        }
        metrics
    }

    /// What each panel of the figure shows.
    fn facets(&self) -> Vec<(&crate::table::Panel, &Metric)> {
        let metrics = self.metrics();
        self.panels.iter().flat_map(|panel| metrics.iter().map(move |metric| (panel, *metric))).collect()
    }

    /// What an axis has to show for all panels of a metric to have the same: every value, with its spread.
    fn extent(&self, metric: &Metric) -> Vec<f64> {
        let lines = self.panels.iter().flat_map(|panel| self.lines(panel));
        let measured =
            |line| self.drawn_columns().into_iter().filter_map(move |column| self.measured(line, column, metric));
        lines.flat_map(measured).flat_map(Mean::ends).collect()
    }

    /// Mean and deviation in percent, where there is a result.
    fn measured(&self, line: &Line, column: usize, metric: &Metric) -> Option<Mean> {
        let place = self.columns[column].metrics.iter().position(|other| other == metric)?;
        match line.entries[column][place].value {
            Value::Measured { mean, deviation, seeds, of } => {
                Some(Mean { value: mean, spread: deviation, complete: seeds == of })
            }
            Value::Missing | Value::Failed | Value::Undefined => None,
        }
    }

    fn row_numbers(&self, logarithmic: bool) -> Result<Vec<f64>> {
        let lines = self.panels.first().map_or(&[][..], |panel| &panel.lines);
        let number = |line: &Line| {
            let name = line.name.clone().unwrap_or_else(|| line.title.clone());
            let number: Option<f64> = name.parse().ok().filter(|number: &f64| number.is_finite());
            match number {
                Some(number) if number > 0.0 || !logarithmic => Ok(number),
                _ => Err(Error::NoNumber { axis: self.row_axis.clone(), value: name, logarithmic }),
            }
        };
        lines.iter().map(number).collect()
    }
}

/// Says what values and bands are where there are several seeds.
pub(crate) const MEANS: &str = "Means over the seeds, with their standard deviation.";

/// Says which marks are not what they will be.
pub(crate) const HOLLOW: &str = "Hollow: not all seeds are done.";

/// What a reader has to know to compare a figure.
pub(crate) fn subtitle(material: &str, configured: &str, seeds: &[u64]) -> String {
    format!("{material} · {configured} · {}", named_seeds(seeds))
}

/// Says how much of a figure is there, unless it is everything.
pub(crate) fn done_of(done: usize, cells: usize) -> Option<String> {
    (done < cells).then(|| format!("{done} of {cells} cells have a result."))
}

/// Settings that papers write with a letter, or that have a better name than their key.
const NAMED: [(&str, &str); 6] = [
    ("alpha", "share alpha of the second gradient"),
    ("clean_ratio", "share of clean images"),
    ("neuron_ratio", "neuron ratio n"),
    ("radius", "radius r"),
    ("unlearning_learning_rate", "learning rate of unlearning"),
    ("weight_ratio", "weight ratio m"),
];

/// What stands at the horizontal axis: a name of its own, or the last part of its key as words.
fn axis_label(axis: &str) -> String {
    let last = axis.rsplit('.').next().unwrap_or(axis);
    let named = NAMED.iter().find(|(key, _)| last == *key);
    named.map_or_else(|| last.replace('_', " "), |(_, label)| (*label).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{done, experiment, grid, key, missing, titles};
    use crate::table;
    use tsbd_experiment::{Experiment, TableSpec};

    const RATIO: &str = "attack.poisoning_ratio";

    fn over_ratios(ratios: &[&str]) -> Table {
        let mut rows = Vec::new();
        for (place, ratio) in ratios.iter().enumerate() {
            for seed in [0, 1] {
                for attack in ["badnets", "blended"] {
                    let asr = 0.9 - 0.1 * place as f64 + 0.02 * seed as f64;
                    let mut row = done(attack, "tsbd", seed, &[("acc", 0.9), ("asr", asr)]);
                    if (attack, place) == ("blended", 1) {
                        row = missing(attack, "tsbd", seed);
                    }
                    row.key = key(attack, ratio, seed);
                    row.axes.insert(RATIO.into(), (*ratio).into());
                    rows.push(row);
                }
            }
        }
        let metrics = vec!["acc".to_owned(), "asr".to_owned()];
        let spec = TableSpec { rows: RATIO.into(), columns: "attack".into(), metrics };
        table(&rows, &Experiment { table: spec, ..experiment() }, &titles()).unwrap()
    }

    #[test]
    fn curves_have_a_panel_for_each_metric_a_line_for_each_column_and_ascending_points() {
        let chart = over_ratios(&["0.1", "0.05", "0.01"]).curves(true).unwrap();
        assert_eq!(chart.panels.iter().map(|panel| panel.y.label.as_str()).collect::<Vec<_>>(), ["ACC (%)", "ASR (%)"]);
        assert_eq!(chart.panels[1].x.label, "poisoning ratio");
        assert_eq!(chart.legend.iter().map(|series| series.name.as_str()).collect::<Vec<_>>(), ["BadNets", "Blended"]);
        let lines = chart.panels[1].marks.iter().map(|mark| match mark {
            Mark::Line { series, points } => (*series, points.clone()),
            other => panic!("{other:?}"),
        });
        let lines: Vec<(usize, Vec<Point>)> = lines.collect();
        let badnets = &lines[0].1;
        assert_eq!(badnets.iter().map(|point| point.x).collect::<Vec<_>>(), [0.01, 0.05, 0.1]);
        // Blended has no result in the middle: two lines, not one that leads past it.
        let xs = |line: &(usize, Vec<Point>)| (line.0, line.1.iter().map(|point| point.x).collect::<Vec<_>>());
        assert_eq!(lines[1..].iter().map(xs).collect::<Vec<_>>(), [(1, vec![0.01]), (1, vec![0.1])]);
        // Two seeds, 90 and 92 %: mean 91, sample deviation the root of 2.
        assert!((badnets[2].y.value - 91.0).abs() < 1e-9 && (badnets[2].y.spread.unwrap() - 2f64.sqrt()).abs() < 1e-9);
        assert!(chart.notes.iter().any(|note| note.starts_with("10 of 12 cells")), "{:?}", chart.notes);
        chart.draw().unwrap();
    }

    #[test]
    fn panels_of_one_metric_are_named_and_have_one_scale() {
        let mut rows = Vec::new();
        for (defense, asr) in [("none", 0.95), ("tsbd", 0.02)] {
            for ratio in ["0.05", "0.1"] {
                let mut row = done("badnets", defense, 0, &[("asr", asr)]);
                row.key = key("badnets", defense, ratio.len() as u64);
                row.axes.insert(RATIO.into(), ratio.into());
                rows.push(row);
            }
        }
        let spec = TableSpec { rows: RATIO.into(), columns: "attack".into(), metrics: vec!["asr".into()] };
        let titles = titles().defenses([("tsbd", "TSBD")]);
        let chart = table(&rows, &Experiment { table: spec, ..experiment() }, &titles).unwrap().curves(false).unwrap();
        assert_eq!(chart.panels.iter().map(|panel| panel.title.as_str()).collect::<Vec<_>>(), ["No defense", "TSBD"]);
        for panel in &chart.panels {
            let Scale::Percent(among) = &panel.y.scale else { panic!("{:?}", panel.y) };
            assert!(among.contains(&95.0) && among.contains(&2.0), "{among:?}");
        }
    }

    #[test]
    fn what_lacks_seeds_is_hollow_and_said_and_settings_are_in_the_subtitle() {
        let ratios = ["0.1", "0.05"];
        let whole = over_ratios(&ratios);
        let mut rows = Vec::new();
        for (ratio, seed) in [("0.1", 0), ("0.1", 1), ("0.05", 0), ("0.05", 1)] {
            let mut row = match (ratio, seed) {
                ("0.05", 1) => missing("badnets", "tsbd", seed),
                _ => done("badnets", "tsbd", seed, &[("acc", 0.9), ("asr", 0.1)]),
            };
            row.key = key("badnets", ratio, seed);
            row.axes.insert(RATIO.into(), ratio.into());
            rows.push(row);
        }
        let spec = TableSpec { rows: RATIO.into(), columns: "attack".into(), metrics: vec!["acc".into()] };
        let settings = vec![tsbd_experiment::Setting::new("training.epochs", "5")];
        let partial = table(&rows, &Experiment { table: spec, settings, ..experiment() }, &titles()).unwrap();
        for chart in [partial.curves(false).unwrap(), partial.bars()] {
            let means: Vec<Mean> = match &chart.panels[0].marks[0] {
                Mark::Line { points, .. } => points.iter().map(|point| point.y).rev().collect(),
                Mark::Bars { heights, .. } => heights.iter().copied().flatten().collect(),
                other => panic!("{other:?}"),
            };
            let shown: Vec<_> = means.iter().map(|mean| (mean.complete, mean.spread.is_some())).collect();
            assert_eq!(shown, [(true, true), (false, false)]);
            assert!(chart.notes.iter().any(|note| note == HOLLOW), "{:?}", chart.notes);
            assert!(!chart.notes.iter().any(|note| note.starts_with('×')), "{:?}", chart.notes);
            assert!(chart.subtitle.contains("profile smoke, training.epochs = 5 · seeds 0, 1"), "{}", chart.subtitle);
            chart.draw().unwrap();
        }
        // Missing altogether is not the same.
        assert!(!whole.curves(true).unwrap().notes.iter().any(|note| note == HOLLOW));
    }

    #[test]
    fn rows_that_are_no_numbers_have_no_curves() {
        let error = over_ratios(&["0.1", "many"]).curves(false).unwrap_err();
        assert!(error.to_string().contains("`many`"), "{error}");
        assert!(over_ratios(&["0", "1"]).curves(false).is_ok() && over_ratios(&["0", "1"]).curves(true).is_err());
    }

    #[test]
    fn bars_stand_for_every_row_and_the_average_and_say_where_there_is_no_result() {
        let chart = table(&grid(), &experiment(), &titles()).unwrap().bars();
        let Scale::Names(names) = &chart.panels[0].x.scale else { panic!("names") };
        assert_eq!(names, &["No attack", "BadNets", "Blended", "Average"]);
        let Mark::Bars { heights, .. } = &chart.panels[1].marks[2] else { panic!("bars") };
        assert_eq!(chart.legend[2].name, "FP");
        let [None, None, Some(height)] = heights[..3] else { panic!("{heights:?}") };
        assert!((height.value - 76.54).abs() < 1e-9 && height.spread.is_none() && height.complete);
        assert!(chart.notes[0].starts_with('×'));
        chart.draw().unwrap();
    }
}
