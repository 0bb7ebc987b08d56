//! The sections `[table]` and `[figure]`: how the results of an experiment are shown. They are part of no cell's key.

use serde_json::Value;
use tsbd_analysis::MeasurementEntry;

use super::grid::{self, Grid};
use super::layers::Layers;
use super::methods;
use super::section::Section;
use crate::diagnostic::{Problems, suggest};
use crate::plan::{FigureSpec, TableSpec};

/// Metrics that a table can show.
const METRICS: &[&str] = &["acc", "asr", "ra", "der"];

/// `[table]`, with what a table of these measurements shows unless it is told.
pub(super) fn table(layers: &Layers, grid: &Grid, problems: &mut Problems) -> TableSpec {
    let mut spec = TableSpec::default();
    let section = Section::open(&layers.table, "table", &["rows", "columns", "metrics"], &layers.start, problems);
    let measurements: Vec<&MeasurementEntry> =
        grid.measures.iter().filter_map(|(name, _)| tsbd_analysis::find(name)).collect();
    if !measurements.is_empty() {
        // What a table of measurements shows unless it is told: which measurement found what.
        spec.columns = "measure".into();
        if grid.measures.iter().all(|(name, _)| name != grid::NO_MEASURE) {
            spec.metrics.clear();
        }
        let named = measurements.iter().flat_map(|entry| entry.scalars).filter(|scalar| !scalar.name.ends_with('*'));
        spec.metrics.extend(named.map(|scalar| scalar.name.to_owned()));
        if measurements.iter().any(|entry| entry.name == "coverage") {
            spec.metrics.extend(covering(layers, grid));
        }
    }
    let axes: Vec<&str> = ["attack", "defense", "measure", "seed"]
        .into_iter()
        .chain(grid.axes.iter().map(|(axis, _)| axis.as_str()))
        .collect();
    for (name, field) in [("rows", &mut spec.rows), ("columns", &mut spec.columns)] {
        let Some(axis) = section.text(name, problems) else { continue };
        if !axes.contains(&axis.as_str()) {
            let hint = suggest(&axis, axes.iter().copied());
            section.refuse(name, "there is no such axis in the grid", hint, problems);
        }
        *field = axis;
    }
    if spec.rows == spec.columns {
        let hint = "choose two different axes for rows and columns";
        section.refuse("columns", format!("rows are already made of `{}`", spec.rows), hint, problems);
    }
    if let Some(metrics) = section.texts("metrics", problems) {
        if metrics.is_empty() {
            section.refuse(
                "metrics",
                "a table without metrics is empty",
                "write metrics = [\"acc\", \"asr\"]",
                problems,
            );
        }
        let is_known = |name: &str| METRICS.contains(&name) || measurements.iter().any(|entry| entry.gives(name));
        for unknown in metrics.iter().filter(|metric| !is_known(metric)) {
            let scalars = measurements.iter().flat_map(|entry| entry.scalars).map(|scalar| scalar.name);
            let hint = suggest(unknown, METRICS.iter().copied().chain(scalars));
            section.refuse("metrics", format!("there is no metric `{unknown}`"), hint, problems);
        }
        spec.metrics = metrics;
    }
    spec
}

/// The means of the methods that `coverage` compares.
fn covering(layers: &Layers, grid: &Grid) -> Vec<String> {
    let place = grid.measures.first().map_or(&layers.start, |(_, place)| place);
    let entry = &tsbd_analysis::measurements::coverage::COVERAGE;
    // What is wrong with its parameters is told with its points.
    let configured = methods::measurement(entry, &layers.table, place, &mut Problems::default());
    let parameters = configured.map(|configured| configured.parameters());
    let methods = parameters.as_ref().and_then(|parameters| parameters["methods"].as_array());
    methods.into_iter().flatten().filter_map(Value::as_str).map(|method| format!("coverage_{method}")).collect()
}

/// `[figure]`; `None` where there is none, or none that can be drawn.
pub(super) fn figure(layers: &Layers, problems: &mut Problems) -> Option<FigureSpec> {
    const WAY_OUT: &str = "write one of curves, bars, triggers, weight-changes, activeness, activations, coverage";
    layers.table.get("figure")?;
    let section = Section::open(&layers.table, "figure", &["kind", "image", "logarithmic"], &layers.start, problems);
    let kind = section.text("kind", problems);
    let only_for = |name: &str, of: &str, problems: &mut Problems| {
        if section.get(name).is_some() && kind.as_deref() != Some(of) {
            section.refuse(
                name,
                "this kind of figure has none",
                format!("leave it out, or write kind = \"{of}\""),
                problems,
            );
        }
    };
    only_for("image", "triggers", problems);
    only_for("logarithmic", "curves", problems);
    match kind.as_deref() {
        Some("triggers") => Some(FigureSpec::Triggers { image: section.integer("image", 0, problems).unwrap_or(0) }),
        Some("curves") => {
            let logarithmic = section.truth("logarithmic", problems).unwrap_or(false);
            Some(FigureSpec::Curves { logarithmic })
        }
        Some("bars") => Some(FigureSpec::Bars),
        Some("weight-changes") => Some(FigureSpec::WeightChanges),
        Some("activeness") => Some(FigureSpec::Activeness),
        Some("activations") => Some(FigureSpec::Activations),
        Some("coverage") => Some(FigureSpec::Coverage),
        Some(_) => {
            section.refuse("kind", "there is no such figure", WAY_OUT, problems);
            None
        }
        None => {
            if section.get("kind").is_none() {
                section.refuse("kind", "a figure is of some kind", WAY_OUT, problems);
            }
            None
        }
    }
}
