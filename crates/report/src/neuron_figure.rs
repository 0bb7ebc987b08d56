//! Figures of what measurements found inside networks: a panel for each attack (and each other choice of the grid).

use std::collections::{BTreeMap, BTreeSet};

use tsbd_experiment::{Experiment, NeuronRows, ResultRow};

use crate::aggregate;
use crate::chart::{Axis, Chart, Mark, Mean, Panel, Point, Scale, Series, Shape};
use crate::error::{Error, Result};
use crate::figure::{HOLLOW, MEANS, done_of, subtitle};
use crate::render::configured;
use crate::titles::Titles;

/// What a figure shows of neurons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeuronFigure {
    /// Weight changes in clean against those in poison unlearning, a dot for each neuron of a layer (Figure 1, top, of the
    /// TSBD paper): the measurement `nwc`.
    WeightChanges,
    /// Gradient norms of the neurons of a layer in the backdoored and in the clean model (Figure 1, bottom): `activeness`.
    Activeness,
    /// Activations of the neurons of a layer on clean and on triggered images, in the clean and in the backdoored model, and
    /// how unlearning changes them (Figure 3): `activations`.
    Activations,
    /// Share of the neurons that the trigger changes most among those that each method would take first, over how many it
    /// takes (Figure 4): `coverage`.
    Coverage,
}

impl NeuronFigure {
    /// The measurement that it shows.
    pub fn measure(self) -> &'static str {
        match self {
            NeuronFigure::WeightChanges => "nwc",
            NeuronFigure::Activeness => "activeness",
            NeuronFigure::Activations => "activations",
            NeuronFigure::Coverage => "coverage",
        }
    }

    /// Draws it of the measured cells among these. `grid` are the rows of all points, which tell what is still to come.
    ///
    /// Neurons of different seeds have nothing to do with each other: each seed has its panel. Coverages are averaged
    /// over the seeds, with the standard deviation as a band.
    ///
    /// # Errors
    /// None of the cells has the measurement, or one lacks the layer or the vectors.
    pub fn chart(
        self,
        cells: &[NeuronRows],
        grid: &[ResultRow],
        experiment: &Experiment,
        titles: &Titles,
    ) -> Result<Chart> {
        let is_shown = |row: &ResultRow| row.measure == self.measure();
        let measured: Vec<&NeuronRows> = cells.iter().filter(|cell| is_shown(&cell.row)).collect();
        let Some(first) = measured.first() else { return Err(Error::NotMeasured { measure: self.measure() }) };
        let asked: Vec<&ResultRow> = grid.iter().filter(|row| is_shown(row)).collect();
        let seeds: Vec<u64> = asked.iter().map(|row| row.seed).collect::<BTreeSet<u64>>().into_iter().collect();
        let (dataset, model) = (titles.of("dataset", &first.row.dataset), titles.of("model", &first.row.model));
        let configured = configured(&experiment.profile, &experiment.settings);
        let mut chart = Chart {
            title: experiment.title.clone(),
            subtitle: subtitle(&format!("data {dataset} · model {model}"), &configured, &seeds),
            legend: Vec::new(),
            panels: Vec::new(),
            columns: 4,
            panel_size: (250, 230),
            notes: Vec::new(),
        };
        if self == NeuronFigure::Coverage {
            coverage(&mut chart, &measured, &asked, titles);
        }
        for cell in &measured {
            let title = title(&cell.row, titles, seeds.len() > 1);
            match self {
                NeuronFigure::WeightChanges => weight_changes(&mut chart, cell, title)?,
                NeuronFigure::Activeness => activeness(&mut chart, cell, title)?,
                NeuronFigure::Activations => activations(&mut chart, cell, &title)?,
                NeuronFigure::Coverage => {}
            }
        }
        let cells = asked.iter().map(|row| &row.key).collect::<BTreeSet<_>>().len();
        chart.notes.splice(0..0, done_of(measured.len(), cells));
        Ok(chart)
    }
}

/// The attack, where the point lies on the other axes, and the seed if there are several.
fn title(row: &ResultRow, titles: &Titles, several_seeds: bool) -> String {
    let axes = row.axes.iter().map(|(axis, value)| format!(", {} {value}", axis.rsplit('.').next().unwrap_or(axis)));
    let seed = several_seeds.then(|| format!(", seed {}", row.seed));
    std::iter::once(titles.of("attack", &row.attack)).chain(axes).chain(seed).collect()
}

/// The layer that the measurement's numbers are of.
fn layer(row: &ResultRow) -> &str {
    row.facts.get("layer").and_then(serde_json::Value::as_str).unwrap_or_default()
}

/// The values of the measurement's layer in one of its vectors.
fn of_layer<'a>(cell: &'a NeuronRows, vector: &str) -> Result<&'a [f64]> {
    let name = layer(&cell.row);
    let found = cell.vectors.get(vector).and_then(|vector| vector.layer(name));
    found.ok_or_else(|| Error::Chart(format!("cell {} has no `{vector}` of layer `{name}`", cell.row.key.short())))
}

fn linear(label: impl Into<String>) -> Axis {
    Axis { label: label.into(), scale: Scale::Linear }
}

fn legend<const N: usize>(names: [&str; N], shape: Shape) -> Vec<Series> {
    names.map(|name| Series { name: name.to_owned(), shape }).into()
}

/// The numbers of a layer's neurons.
fn neurons(values: &[f64]) -> Axis {
    Axis { label: "neuron".to_owned(), scale: Scale::Within(-1.0, values.len() as f64) }
}

/// Neuron by neuron: their number and the value.
fn numbered(values: &[f64]) -> Vec<(f64, f64)> {
    values.iter().enumerate().map(|(neuron, value)| (neuron as f64, *value)).collect()
}

fn weight_changes(chart: &mut Chart, cell: &NeuronRows, title: String) -> Result<()> {
    let (clean, poison) = (of_layer(cell, "nwc_clean")?, of_layer(cell, "nwc_poison")?);
    let number = |name: &str, text: &str| cell.row.metrics.get(name).map(|value| format!("{text} {value:.2}"));
    chart.legend = legend(["a neuron"], Shape::Dots);
    let layer = layer(&cell.row);
    chart.notes =
        vec![format!("Neurons of {layer}. The weight change of a neuron is the sum of |Δw| over its weights.")];
    chart.panels.push(Panel {
        title,
        x: linear("weight change, clean unlearning"),
        y: linear("weight change, poison unlearning"),
        marks: vec![Mark::Dots { series: 0, points: clean.iter().copied().zip(poison.iter().copied()).collect() }],
        remarks: [number("pearson", "Pearson r ="), number("slope", "slope")].into_iter().flatten().collect(),
    });
    Ok(())
}

fn activeness(chart: &mut Chart, cell: &NeuronRows, title: String) -> Result<()> {
    let (own, clean) = (of_layer(cell, "activeness")?, of_layer(cell, "activeness_clean")?);
    chart.legend = legend(["backdoored model", "clean model"], Shape::Dots);
    chart.notes =
        vec![format!("Mean L1 norm of the loss gradient over an epoch of clean unlearning, {}.", layer(&cell.row))];
    chart.panels.push(Panel {
        title,
        x: neurons(own),
        y: linear("gradient norm"),
        marks: vec![Mark::Dots { series: 0, points: numbered(own) }, Mark::Dots { series: 1, points: numbered(clean) }],
        remarks: Vec::new(),
    });
    Ok(())
}

fn activations(chart: &mut Chart, cell: &NeuronRows, title: &str) -> Result<()> {
    let of = |name: &str| of_layer(cell, name);
    let change = |images: &str, unlearned: &str| -> Result<Vec<f64>> {
        let (before, after) = (of(&format!("activation_{images}"))?, of(&format!("activation_{images}_{unlearned}"))?);
        Ok(after.iter().zip(before).map(|(after, before)| after - before).collect())
    };
    chart.legend = legend(["clean images", "triggered images"], Shape::Dots);
    chart.notes = vec![format!("Mean over images and positions after a ReLU, {}.", layer(&cell.row))];
    let mut panel = |part: &str, y: Axis, clean: &[f64], poison: &[f64]| {
        chart.panels.push(Panel {
            title: format!("{title}: {part}"),
            x: neurons(clean),
            y,
            marks: vec![
                Mark::Dots { series: 0, points: numbered(clean) },
                Mark::Dots { series: 1, points: numbered(poison) },
            ],
            remarks: Vec::new(),
        });
    };
    let in_clean = [of("activation_clean_clean_model")?, of("activation_poison_clean_model")?];
    let in_backdoored = [of("activation_clean")?, of("activation_poison")?];
    // Both models on one scale: what a trigger does to the clean one is small.
    let everything = in_clean.iter().chain(&in_backdoored).flat_map(|values| values.iter().copied()).collect();
    let y = Axis { label: "activation".to_owned(), scale: Scale::Around(everything) };
    panel("clean model", y.clone(), in_clean[0], in_clean[1]);
    panel("backdoored", y, in_backdoored[0], in_backdoored[1]);
    for (part, unlearned) in [("clean unlearning", "unlearned"), ("poison unlearning", "poison_unlearned")] {
        panel(part, linear("change of activation"), &change("clean", unlearned)?, &change("poison", unlearned)?);
    }
    Ok(())
}

/// What the coverages of these rows are of, in a sentence for each kind there is.
pub(crate) fn coverages<'a>(rows: impl Iterator<Item = &'a ResultRow>) -> BTreeSet<String> {
    let sentence = |row: &ResultRow| {
        let text = |name| row.facts.get(name)?.as_str();
        let (form, neurons) = (text("tac")?, row.facts.get("neurons")?.as_u64()?);
        let convolutions = match row.facts.get("layers")?.as_array()?.len() {
            1 => "1 convolution".to_owned(),
            count => format!("{count} convolutions"),
        };
        let ranked = if text("ranking")? == "network" { "together" } else { "within their layer" };
        Some(format!(
            "Coverage is that of TAC in the form {form}: {neurons} neurons of {convolutions}, ranked {ranked}."
        ))
    };
    rows.filter(|row| row.measure == NeuronFigure::Coverage.measure()).filter_map(sentence).collect()
}

/// The sizes of the groups within which a cell of `coverage` ranks neurons: layers, or the network.
fn ranked(cell: &NeuronRows) -> Vec<usize> {
    let scores = cell.vectors.iter().find(|(name, _)| name.starts_with("score_"));
    let layers: Vec<usize> =
        scores.into_iter().flat_map(|(_, vector)| vector.layers()).map(|(_, of)| of.len()).collect();
    match cell.row.facts.get("ranking").and_then(serde_json::Value::as_str) {
        Some("network") => vec![layers.iter().sum()],
        _ => layers,
    }
}

/// What neurons in any order cover on average: a little less than the ratio, of which whole neurons are taken.
fn chance(sizes: &[usize], ratios: &BTreeSet<&str>) -> Vec<(f64, f64)> {
    let at = |ratio: f64| {
        // Of n neurons k are taken, and each is one of k wanted ones with probability k / n.
        let taken = sizes.iter().map(|&size| (size as f64, (size as f64 * ratio).floor()));
        let (covered, taken) =
            taken.fold((0.0, 0.0), |(covered, all), (size, taken)| (covered + taken * taken / size, all + taken));
        (taken > 0.0).then(|| (ratio, covered / taken))
    };
    let ratios = ratios.iter().filter_map(|ratio| ratio.parse().ok());
    let mut points: Vec<(f64, f64)> = [(0.0, 0.0), (1.0, 1.0)].into_iter().chain(ratios.filter_map(at)).collect();
    points.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    points
}

/// A panel for each attack and choice of the grid, over its seeds.
fn coverage(chart: &mut Chart, measured: &[&NeuronRows], asked: &[&ResultRow], titles: &Titles) {
    let mut places: Vec<String> = Vec::new();
    for cell in measured {
        let place = title(&cell.row, titles, false);
        if !places.contains(&place) {
            places.push(place);
        }
    }
    for place in places {
        let of_place: Vec<&ResultRow> =
            measured.iter().map(|cell| &cell.row).filter(|row| title(row, titles, false) == place).collect();
        let seeds = asked.iter().filter(|row| title(row, titles, false) == place).map(|row| row.seed);
        let seeds = seeds.collect::<BTreeSet<u64>>().len();
        let form = of_place.iter().find_map(|row| row.facts.get("tac")?.as_str());
        let label = form.map_or("coverage of TAC".to_owned(), |form| format!("coverage of TAC ({form})"));
        // By method, then by the ratio as it is written.
        let mut curves: BTreeMap<&str, BTreeMap<&str, Vec<f64>>> = BTreeMap::new();
        for (name, value) in of_place.iter().flat_map(|row| &row.metrics) {
            let named = name.strip_prefix("coverage_").and_then(|rest| rest.split_once("_at_"));
            if let Some((method, ratio)) = named {
                curves.entry(method).or_default().entry(ratio).or_default().push(*value);
            }
        }
        let ratios: BTreeSet<&str> = curves.values().flat_map(BTreeMap::keys).copied().collect();
        let sizes = measured.iter().find(|cell| title(&cell.row, titles, false) == place).map(|cell| ranked(cell));
        let mut marks = vec![Mark::Guide { points: chance(&sizes.unwrap_or_default(), &ratios) }];
        for (method, ratios) in curves {
            let point = |(ratio, values): (&str, Vec<f64>)| {
                let (value, spread) = aggregate::mean(&values)?;
                Some(Point { x: ratio.parse().ok()?, y: Mean { value, spread, complete: values.len() == seeds } })
            };
            let mut points: Vec<Point> = ratios.into_iter().filter_map(point).collect();
            points.sort_by(|a, b| a.x.total_cmp(&b.x));
            let name = method.to_uppercase();
            let series = chart.legend.iter().position(|series| series.name == name).unwrap_or_else(|| {
                chart.legend.push(Series { name, shape: Shape::Line });
                chart.legend.len() - 1
            });
            marks.push(Mark::Line { series, points });
        }
        let share = |label| Axis { label, scale: Scale::Within(0.0, 1.0) };
        let (x, y) = (share("neuron ratio".to_owned()), share(label));
        chart.panels.push(Panel { title: place, x, y, marks, remarks: Vec::new() });
    }
    chart.notes = vec!["Grey: what chance covers. Neurons of equal score share places.".to_owned()];
    chart.notes.extend(coverages(measured.iter().map(|cell| &cell.row)));
    let marks = || chart.panels.iter().flat_map(|panel| &panel.marks);
    let points = || marks().flat_map(|mark| if let Mark::Line { points, .. } = mark { &points[..] } else { &[] });
    let spread = points().any(|point| point.y.spread.is_some());
    let partial = points().any(|point| !point.y.complete);
    chart.notes.extend(spread.then(|| MEANS.to_owned()));
    chart.notes.extend(partial.then(|| HOLLOW.to_owned()));
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tsbd_experiment::NeuronVector;

    use super::*;
    use crate::sample::{done, experiment, key, missing, titles};

    fn cell(measure: &str, attack: &str, metrics: &[(&str, f64)], vectors: &[(&str, [f64; 3])]) -> NeuronRows {
        let mut row = done(attack, "none", 0, metrics);
        row.measure = measure.to_owned();
        row.facts.insert("layer".to_owned(), json!("conv2"));
        let vector = |values: &[f64; 3]| NeuronVector::from_iter([("conv2".to_owned(), values.to_vec())]);
        let vectors = vectors.iter().map(|(name, values)| ((*name).to_owned(), vector(values))).collect();
        NeuronRows { row, vectors }
    }

    fn chart(figure: NeuronFigure, cells: &[NeuronRows]) -> Result<Chart> {
        let grid: Vec<ResultRow> = cells.iter().map(|cell| cell.row.clone()).collect();
        let chart = figure.chart(cells, &grid, &experiment(), &titles())?;
        chart.draw()?;
        Ok(chart)
    }

    #[test]
    fn weight_changes_are_dots_with_their_correlation() {
        let vectors = [("nwc_clean", [1.0, 2.0, 3.0]), ("nwc_poison", [2.0, 4.0, 6.0])];
        let cells =
            ["badnets", "blended"].map(|attack| cell("nwc", attack, &[("pearson", 1.0), ("slope", 2.0)], &vectors));
        let chart = chart(NeuronFigure::WeightChanges, &cells).unwrap();
        assert_eq!(chart.panels.iter().map(|panel| panel.title.as_str()).collect::<Vec<_>>(), ["BadNets", "Blended"]);
        assert_eq!(chart.panels[0].remarks, ["Pearson r = 1.00", "slope 2.00"]);
        assert_eq!(chart.panels[0].marks, [Mark::Dots { series: 0, points: vec![(1.0, 2.0), (2.0, 4.0), (3.0, 6.0)] }]);
    }

    #[test]
    fn activeness_shows_both_models_neuron_by_neuron() {
        let vectors = [("activeness", [3.0, 2.0, 1.0]), ("activeness_clean", [1.0, 1.0, 1.0])];
        let chart = chart(NeuronFigure::Activeness, &[cell("activeness", "badnets", &[], &vectors)]).unwrap();
        assert_eq!(
            chart.panels[0].marks[0],
            Mark::Dots { series: 0, points: vec![(0.0, 3.0), (1.0, 2.0), (2.0, 1.0)] }
        );
        assert_eq!(chart.legend[1].name, "clean model");
    }

    #[test]
    fn activations_have_four_panels_and_changes_are_differences() {
        let names = ["", "_clean_model", "_unlearned", "_poison_unlearned"];
        let names: Vec<String> =
            names.iter().flat_map(|of| ["clean", "poison"].map(|on| format!("activation_{on}{of}"))).collect();
        let vectors: Vec<(&str, [f64; 3])> =
            names.iter().enumerate().map(|(place, name)| (name.as_str(), [place as f64; 3])).collect();
        let chart = chart(NeuronFigure::Activations, &[cell("activations", "badnets", &[], &vectors)]).unwrap();
        let titles: Vec<&str> = chart.panels.iter().map(|panel| panel.title.as_str()).collect();
        assert_eq!(
            titles,
            ["BadNets: clean model", "BadNets: backdoored", "BadNets: clean unlearning", "BadNets: poison unlearning"]
        );
        let Mark::Dots { points, .. } = &chart.panels[2].marks[1] else { panic!("dots") };
        assert_eq!(points[0].1, 5.0 - 1.0);
    }

    #[test]
    fn coverage_has_a_curve_for_each_method() {
        let metrics = [
            ("coverage_nwc_at_0.5", 0.9),
            ("coverage_nwc_at_0.1", 0.6),
            ("coverage_nwc", 0.7),
            ("coverage_fp_at_0.1", 0.2),
        ];
        let chart = chart(NeuronFigure::Coverage, &[cell("coverage", "badnets", &metrics, &[])]).unwrap();
        assert_eq!(chart.legend.iter().map(|series| series.name.as_str()).collect::<Vec<_>>(), ["FP", "NWC"]);
        assert_eq!(chart.panels[0].marks[0], Mark::Guide { points: vec![(0.0, 0.0), (1.0, 1.0)] });
        let Mark::Line { points, .. } = &chart.panels[0].marks[2] else { panic!("a line") };
        assert_eq!(points.iter().map(|point| (point.x, point.y.value)).collect::<Vec<_>>(), [(0.1, 0.6), (0.5, 0.9)]);
    }

    #[test]
    fn chance_takes_whole_neurons() {
        let ratios = BTreeSet::from(["0.5", "0.3"]);
        // Of three neurons one and none, of ten five and three.
        let points = chance(&[3, 10], &ratios);
        assert_eq!(points.iter().map(|(ratio, _)| *ratio).collect::<Vec<_>>(), [0.0, 0.3, 0.5, 1.0]);
        assert_eq!((points[1].1, points[2].1), (0.9 / 3.0, (1.0 / 3.0 + 2.5) / 6.0));
        let mut cell = cell("coverage", "badnets", &[("coverage_nwc_at_0.5", 0.9)], &[("score_nwc", [3.0, 1.0, 2.0])]);
        assert_eq!(ranked(&cell), [3]);
        for (name, value) in [("ranking", json!("network")), ("tac", json!("clp")), ("neurons", json!(3))] {
            cell.row.facts.insert(name.to_owned(), value);
        }
        cell.row.facts.insert("layers".to_owned(), json!(["conv2"]));
        let chart = chart(NeuronFigure::Coverage, &[cell]).unwrap();
        assert_eq!(chart.panels[0].marks[0], Mark::Guide { points: vec![(0.0, 0.0), (0.5, 1.0 / 3.0), (1.0, 1.0)] });
        assert_eq!(
            chart.notes[1],
            "Coverage is that of TAC in the form clp: 3 neurons of 1 convolution, ranked together."
        );
    }

    #[test]
    fn coverages_of_several_seeds_are_one_panel_with_a_band_that_names_its_form_of_tac() {
        let of_seed = |attack: &str, seed: u64, value: f64| {
            let mut cell = cell("coverage", attack, &[("coverage_nwc_at_0.1", value)], &[]);
            cell.row.facts.insert("tac".to_owned(), json!("clp"));
            (cell.row.seed, cell.row.key) = (seed, key(attack, "none", seed));
            cell
        };
        let cells = [of_seed("badnets", 0, 0.6), of_seed("badnets", 1, 0.8), of_seed("blended", 0, 0.5)];
        let mut grid: Vec<ResultRow> = cells.iter().map(|cell| cell.row.clone()).collect();
        grid.push(ResultRow { measure: "coverage".into(), ..missing("blended", "none", 1) });
        let chart = NeuronFigure::Coverage.chart(&cells, &grid, &experiment(), &titles()).unwrap();
        chart.draw().unwrap();
        let titles: Vec<&str> = chart.panels.iter().map(|panel| panel.title.as_str()).collect();
        assert_eq!(titles, ["BadNets", "Blended"]);
        assert_eq!(chart.panels[0].y.label, "coverage of TAC (clp)");
        let means = chart.panels.iter().map(|panel| match &panel.marks[1] {
            Mark::Line { points, .. } => points[0].y,
            other => panic!("{other:?}"),
        });
        let means: Vec<Mean> = means.collect();
        // The sample deviation of 0.6 and 0.8 is 0.1 times the root of 2.
        assert!((means[0].value - 0.7).abs() < 1e-9 && (means[0].spread.unwrap() - 0.1 * 2f64.sqrt()).abs() < 1e-9);
        assert!(means[0].complete && !means[1].complete && means[1].spread.is_none());
        assert_eq!(chart.notes[0], "3 of 4 cells have a result.");
        assert!(chart.notes.iter().any(|note| note == HOLLOW) && chart.subtitle.ends_with("seeds 0, 1"));
    }

    #[test]
    fn what_was_not_measured_is_refused_with_the_way_out() {
        let error = chart(NeuronFigure::Coverage, &[cell("nwc", "badnets", &[], &[])]).unwrap_err().to_string();
        assert!(error.contains("measure = [\"coverage\"]"), "{error}");
        let error = chart(NeuronFigure::WeightChanges, &[cell("nwc", "badnets", &[], &[])]).unwrap_err().to_string();
        assert!(error.contains("`nwc_clean` of layer `conv2`"), "{error}");
    }
}
