//! Figures of a table: its rows along the horizontal axis, a series for each of its columns, a panel for each of its
//! metrics (and for each choice of what else varies).

use crate::chart::{Axis, Chart, Mark, Panel, Point, Scale, Series, Shape};
use crate::error::{Error, Result};
use crate::metric::Metric;
use crate::table::{Line, Table, Unit, Value};

impl Table {
    /// A curve for each column over the rows, whose names are numbers: an ablation. Standard deviations over seeds are bands.
    ///
    /// # Errors
    /// A row is no number (or not positive on a logarithmic axis), or there is nothing to draw.
    pub fn curves(&self, logarithmic: bool) -> Result<Chart> {
        let numbers = self.row_numbers(logarithmic)?;
        let mut chart = self.chart(Shape::Line, (380, 270));
        let scale = if logarithmic { Scale::Logarithmic(numbers.clone()) } else { Scale::Linear };
        let x = Axis { label: axis_title(&self.row_axis), scale };
        for (panel, metric, title) in self.facets() {
            let mark = |(series, column): (usize, usize)| {
                let mut points: Vec<Point> = (panel.lines.iter().zip(&numbers))
                    .filter_map(|(line, x)| {
                        let (y, spread) = self.measured(line, column, metric)?;
                        Some(Point { x: *x, y, spread })
                    })
                    .collect();
                points.sort_by(|a, b| a.x.total_cmp(&b.x));
                Mark::Line { series, points }
            };
            let marks = self.drawn_columns().into_iter().enumerate().map(mark).collect();
            let y = Axis { label: self.label(metric), scale: Scale::Linear };
            chart.panels.push(Panel { title, x: x.clone(), y, marks, remarks: Vec::new() });
        }
        chart.columns = self.metrics().len().clamp(1, 3);
        Ok(chart)
    }

    /// A group of bars for each row, a bar for each column. Standard deviations over seeds are lines on the bars.
    ///
    /// # Errors
    /// There is nothing to draw.
    pub fn bars(&self) -> Result<Chart> {
        let mut chart = self.chart(Shape::Bar, (760, 190));
        for (panel, metric, title) in self.facets() {
            let lines: Vec<&Line> = self.lines(panel).collect();
            let names = lines.iter().map(|line| line.title.clone()).collect();
            let mark = |(series, column): (usize, usize)| Mark::Bars {
                series,
                heights: lines.iter().map(|line| self.measured(line, column, metric)).collect(),
            };
            let marks = self.drawn_columns().into_iter().enumerate().map(mark).collect();
            let x = Axis { label: String::new(), scale: Scale::Names(names) };
            let scale = if self.unit == Unit::Percent { Scale::Within(0.0, 100.0) } else { Scale::Linear };
            let y = Axis { label: self.label(metric), scale };
            chart.panels.push(Panel { title, x, y, marks, remarks: Vec::new() });
        }
        chart.notes.insert(0, "×: no result, or none that can exist.".to_owned());
        Ok(chart)
    }

    /// The figure without its panels.
    fn chart(&self, shape: Shape, panel_size: (u32, u32)) -> Chart {
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        let plural = if seeds.len() > 1 { "seeds" } else { "seed" };
        let series = |column: usize| Series { name: self.columns[column].title.clone(), shape };
        let mut notes = Vec::new();
        if self.count.done < self.count.cells {
            notes.push(format!("{} of {} cells have a result.", self.count.done, self.count.cells));
        }
        if self.seeds.len() > 1 {
            notes.push("Means over the seeds, with their standard deviation.".to_owned());
        }
        Chart {
            title: self.title.clone(),
            subtitle: format!("{} · profile {} · {plural} {}", self.material, self.profile, seeds.join(", ")),
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

    /// What each panel of the figure shows, and its title: the choice of what else varies.
    fn facets(&self) -> Vec<(&crate::table::Panel, &Metric, String)> {
        let title = |panel: &crate::table::Panel| {
            let choice = panel.choice.iter().map(|(axis, value)| format!("{} {value}", axis_title(axis)));
            choice.collect::<Vec<_>>().join(", ")
        };
        let metrics = self.metrics();
        let facets =
            self.panels.iter().flat_map(|panel| metrics.iter().map(move |metric| (panel, *metric, title(panel))));
        facets.collect()
    }

    /// Mean and deviation in percent, where there is a result.
    fn measured(&self, line: &Line, column: usize, metric: &Metric) -> Option<(f64, Option<f64>)> {
        let place = self.columns[column].metrics.iter().position(|other| other == metric)?;
        match line.entries[column][place].value {
            Value::Measured { mean, deviation, .. } => Some((mean, deviation)),
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

/// What stands at an axis: the last part of its key, as words.
fn axis_title(axis: &str) -> String {
    axis.rsplit('.').next().unwrap_or(axis).replace('_', " ")
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
        let [Mark::Line { points: badnets, .. }, Mark::Line { points: blended, .. }] = &chart.panels[1].marks[..]
        else {
            panic!("{:?}", chart.panels[1].marks)
        };
        assert_eq!(badnets.iter().map(|point| point.x).collect::<Vec<_>>(), [0.01, 0.05, 0.1]);
        assert_eq!(blended.iter().map(|point| point.x).collect::<Vec<_>>(), [0.01, 0.1]);
        // Two seeds, 90 and 92 %: mean 91, sample deviation the root of 2.
        assert!((badnets[2].y - 91.0).abs() < 1e-9 && (badnets[2].spread.unwrap() - 2f64.sqrt()).abs() < 1e-9);
        assert!(chart.notes.iter().any(|note| note.starts_with("10 of 12 cells")), "{:?}", chart.notes);
        chart.draw().unwrap();
    }

    #[test]
    fn rows_that_are_no_numbers_have_no_curves() {
        let error = over_ratios(&["0.1", "many"]).curves(false).unwrap_err();
        assert!(error.to_string().contains("`many`"), "{error}");
        assert!(over_ratios(&["0", "1"]).curves(false).is_ok() && over_ratios(&["0", "1"]).curves(true).is_err());
    }

    #[test]
    fn bars_stand_for_every_row_and_the_average_and_say_where_there_is_no_result() {
        let chart = table(&grid(), &experiment(), &titles()).unwrap().bars().unwrap();
        let Scale::Names(names) = &chart.panels[0].x.scale else { panic!("names") };
        assert_eq!(names, &["No attack", "BadNets", "Blended", "Average"]);
        let Mark::Bars { heights, .. } = &chart.panels[1].marks[2] else { panic!("bars") };
        assert_eq!(chart.legend[2].name, "FP");
        let [None, None, Some((percent, None))] = heights[..3] else { panic!("{heights:?}") };
        assert!((percent - 76.54).abs() < 1e-9);
        chart.draw().unwrap();
    }
}
