//! Small curves of what a cell measured on the way: one drawing for each stage, rates between 0 and 1.

use maud::{Markup, html};
use tsbd_experiment::TracePoint;

/// Metrics that are shares of images, with the class that colours them.
const RATES: [(&str, &str); 5] =
    [("acc", "a"), ("asr", "b"), ("ra", "c"), ("train_accuracy", "d"), ("selection_accuracy", "d")];

const WIDTH: f64 = 260.0;
const HEIGHT: f64 = 80.0;

/// The curves of every stage that measured a rate at least twice.
pub(super) fn curves(trace: &[TracePoint]) -> Markup {
    let mut stages: Vec<&str> = Vec::new();
    for point in trace {
        if !stages.contains(&point.stage.as_str()) {
            stages.push(&point.stage);
        }
    }
    html! { div.curves { @for stage in stages { (of_stage(stage, trace)) } } }
}

fn of_stage(stage: &str, trace: &[TracePoint]) -> Markup {
    let points: Vec<&TracePoint> = trace.iter().filter(|point| point.stage == stage).collect();
    let last = points.len().saturating_sub(1).max(1) as f64;
    let line = |name: &str| {
        let places: Vec<String> = (points.iter().enumerate())
            .filter_map(|(index, point)| Some((index, point.metrics.get(name).filter(|rate| rate.is_finite())?)))
            .map(|(index, rate)| {
                let (x, y) = (index as f64 / last * WIDTH, (1.0 - rate.clamp(0.0, 1.0)) * HEIGHT);
                format!("{x:.1},{y:.1}")
            })
            .collect();
        (places.len() > 1).then(|| places.join(" "))
    };
    let lines: Vec<(&str, &str, String)> =
        RATES.iter().filter_map(|(name, class)| Some((*name, *class, line(name)?))).collect();
    if lines.is_empty() {
        return html! {};
    }
    let said: Vec<&str> = lines.iter().map(|(name, ..)| *name).collect();
    html! {
        figure {
            svg viewBox={ "-2 -2 " (WIDTH + 4.0) " " (HEIGHT + 4.0) } width=(WIDTH) height=(HEIGHT) role="img"
                aria-label={ (stage) ": " (said.join(", ")) " over " (points.len()) " points, from 0 below to 1 above" } {
                rect.frame width=(WIDTH) height=(HEIGHT) {}
                @for (_, class, places) in &lines { polyline class=(class) points=(places) {} }
            }
            figcaption { (stage) ": " @for (name, class, _) in &lines { (sample(class)) span class=(class) { (name) } " " } }
        }
    }
}

/// A piece of a line as it is drawn, before its name.
fn sample(class: &str) -> Markup {
    html! { svg.sample viewBox="0 0 24 8" width="24" height="8" aria-hidden="true" { polyline class=(class) points="0,4 24,4" {} } }
}
