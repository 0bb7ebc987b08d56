//! Axes: which part of the numbers they show, and where their ticks are.

use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};

/// One axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// What it measures, with the unit: `ASR (%)`.
    pub label: String,
    /// How numbers become places.
    pub scale: Scale,
}

/// How numbers become places on an axis.
#[derive(Debug, Clone, PartialEq)]
pub enum Scale {
    /// In proportion; from the smallest to the largest datum, widened to round numbers.
    Linear,
    /// The same, as if these were among the data: what is still missing has its place.
    Around(Vec<f64>),
    /// The same, percentages: over at least five points, so that a difference that means nothing does not fill the axis,
    /// and within 0 and 100 as far as the data are.
    Percent(Vec<f64>),
    /// In proportion, between these two.
    Within(f64, f64),
    /// By their logarithm, with these ticks; all positive.
    Logarithmic(Vec<f64>),
    /// Names beside each other, the first at 0.
    Names(Vec<String>),
}

/// The least that an axis of percentages spans.
const LEAST_POINTS: f64 = 5.0;

/// An axis laid out, as plotters wants its coordinates.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layout {
    /// The numbers at its ends.
    pub(super) low: f64,
    pub(super) high: f64,
    /// Numbers that are marked, with what stands there.
    pub(super) ticks: Vec<(f64, String)>,
    logarithmic: bool,
}

impl Layout {
    /// The layout of an axis for these data.
    pub(super) fn of(scale: &Scale, data: impl Iterator<Item = f64>) -> Layout {
        let more = if let Scale::Around(more) | Scale::Percent(more) = scale { &more[..] } else { &[] };
        let data: Vec<f64> = data.chain(more.iter().copied()).filter(|value| value.is_finite()).collect();
        let smallest = data.iter().copied().fold(f64::INFINITY, f64::min);
        let largest = data.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match scale {
            Scale::Names(names) => Layout {
                low: -0.5,
                high: names.len() as f64 - 0.5,
                ticks: names.iter().enumerate().map(|(place, name)| (place as f64, name.clone())).collect(),
                logarithmic: false,
            },
            Scale::Logarithmic(ticks) if ticks.is_empty() => Layout::round(0.0, 1.0, false),
            Scale::Logarithmic(ticks) => {
                let low = ticks.iter().copied().fold(smallest, f64::min);
                let high = ticks.iter().copied().fold(largest, f64::max);
                let room = (high / low).powf(0.04).max(1.02);
                let mut ticks = ticks.clone();
                ticks.sort_by(f64::total_cmp);
                // Labels need about a sixteenth of the axis.
                let apart = (high / low).powf(1.0 / 16.0);
                let mut labelled = f64::NEG_INFINITY;
                let label = |(tick, text): (f64, String)| {
                    let room = tick >= labelled * apart || labelled == f64::NEG_INFINITY;
                    labelled = if room { tick } else { labelled };
                    (tick, if room { text } else { String::new() })
                };
                let ticks = labelled_ticks(ticks).into_iter().map(label).collect();
                Layout { low: low / room, high: high * room, ticks, logarithmic: true }
            }
            Scale::Within(low, high) => Layout::round(*low, *high, false),
            Scale::Linear | Scale::Around(_) | Scale::Percent(_) if smallest > largest => {
                Layout::round(0.0, 1.0, false)
            }
            Scale::Linear | Scale::Around(_) => Layout::round(smallest, largest, true),
            Scale::Percent(_) => {
                let room = (LEAST_POINTS - (largest - smallest)).max(0.0) / 2.0;
                let (low, high) = (smallest - room, largest + room);
                // Room that there is not below is above.
                let shift = (0.0 - low).max(0.0).min(room) - (high - 100.0).max(0.0).min(room);
                Layout::round(low + shift, high + shift, true)
            }
        }
    }

    /// From `low` to `high`, `widened` to whole steps, with a tick at each multiple of a round step: four to eight of them.
    fn round(low: f64, high: f64, widened: bool) -> Layout {
        let (low, high) =
            if high - low > low.abs().max(high.abs()) * 1e-9 { (low, high) } else { (low - 0.5, high + 0.5) };
        let step = round_step((high - low) / 5.0);
        let (first, last) = match widened {
            true => ((low / step + 1e-9).floor(), (high / step - 1e-9).ceil()),
            false => ((low / step - 1e-9).ceil(), (high / step + 1e-9).floor()),
        };
        let ticks = (0..=(last - first) as usize).map(|index| (first + index as f64) * step).collect();
        let (low, high) = if widened { (first * step, last * step) } else { (low, high) };
        Layout { low, high, ticks: labelled_ticks(ticks), logarithmic: false }
    }

    /// What stands at a tick.
    pub(super) fn label(&self, tick: f64) -> String {
        let found = self.ticks.iter().find(|(at, _)| *at == tick);
        found.map_or(String::new(), |(_, label)| label.clone())
    }
}

impl Ranged for Layout {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    /// What lies beyond an end is shown at it.
    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let place = |value: f64| if self.logarithmic { value.log10() } else { value };
        let (low, high) = (place(self.low), place(self.high));
        let share = (place(value.clamp(self.low, self.high)) - low) / (high - low);
        limit.0 + (f64::from(limit.1 - limit.0) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.iter().map(|(at, _)| *at).collect() }
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

/// The smallest of 1, 2, 2.5 and 5 times a power of ten that is at least `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let rounded = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|factor| factor * power >= step * (1.0 - 1e-9));
    rounded.unwrap_or(10.0) * power
}

/// The ticks of an axis with what stands there: either all are written with a power of ten, or none is.
fn labelled_ticks(ticks: Vec<f64>) -> Vec<(f64, String)> {
    let powers = ticks.iter().any(|tick| needs_power(*tick));
    let label = |tick: f64| if powers && tick != 0.0 { with_power(tick) } else { plain(tick) };
    ticks.into_iter().map(|tick| (tick, label(tick))).collect()
}

/// Whether a number is so small or so large that it is written with a power of ten.
fn needs_power(value: f64) -> bool {
    value != 0.0 && !(1e-3..1e6).contains(&value.abs())
}

/// `2.5e−4`, of at most six significant digits.
fn with_power(value: f64) -> String {
    let text = format!("{value:.5e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    format!("{}e{exponent}", digits.trim_end_matches('0').trim_end_matches('.')).replace('-', "−")
}

/// `12.3457`: about six significant digits.
fn plain(value: f64) -> String {
    let decimals = if value.abs() < 1.0 { 6 } else { 4 };
    let text = format!("{value:.decimals$}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.replace('-', "−") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: &Scale, data: &[f64]) -> Vec<String> {
        Layout::of(scale, data.iter().copied()).ticks.into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_numbers_around_the_data() {
        assert_eq!(labels(&Scale::Linear, &[3.0, 97.0]), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(labels(&Scale::Linear, &[0.12, 0.31, f64::NAN]), ["0.1", "0.15", "0.2", "0.25", "0.3", "0.35"]);
        assert_eq!(labels(&Scale::Within(0.0, 100.0), &[]), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(labels(&Scale::Within(-4.0, 103.0), &[]), ["0", "25", "50", "75", "100"]);
        assert_eq!(labels(&Scale::Around(vec![0.0, 1.0]), &[0.7]), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(labels(&Scale::Linear, &[-1.0, 1.0]), ["−1", "−0.5", "0", "0.5", "1"]);
    }

    #[test]
    fn percentages_that_hardly_differ_do_not_fill_the_axis() {
        let ends = |data: &[f64]| {
            let layout = Layout::of(&Scale::Percent(Vec::new()), data.iter().copied());
            (layout.low, layout.high)
        };
        assert_eq!(ends(&[90.01, 90.04]), (87.0, 93.0));
        assert_eq!(ends(&[99.98, 100.0]), (95.0, 100.0));
        assert_eq!(ends(&[0.0, 0.03]), (0.0, 5.0));
        assert_eq!(ends(&[3.0, 97.0]), (0.0, 100.0));
        assert_eq!(ends(&[]), (0.0, 1.0));
        // A band may leave 0 and 100.
        assert!(ends(&[-2.0, 8.0]).0 <= -2.0);
        let beside = Layout::of(&Scale::Percent(vec![40.0]), [2.0, 4.0].into_iter());
        assert_eq!((beside.low, beside.high), (0.0, 40.0));
    }

    #[test]
    fn data_of_one_value_or_none_have_an_axis_too() {
        for data in [&[][..], &[5.0], &[0.0, 0.0]] {
            let layout = Layout::of(&Scale::Linear, data.iter().copied());
            assert!(layout.low < layout.high && layout.ticks.len() > 2, "{layout:?}");
            assert!(data.iter().all(|value| (layout.low..=layout.high).contains(value)));
        }
    }

    #[test]
    fn logarithms_place_ratios_alike_and_what_lies_beyond_at_the_end() {
        let layout = Layout::of(&Scale::Logarithmic(vec![0.01, 0.1, 1.0]), [0.01, 0.5].into_iter());
        let places = [0.01, 0.1, 1.0].map(|tick| layout.map(&tick, (0, 1000)));
        assert_eq!((places[1], places[0] + places[2]), (500, 1000));
        assert_eq!((layout.map(&1e9, (1000, 0)), layout.map(&0.0, (1000, 0))), (0, 1000));
        assert_eq!(layout.label(0.01), "0.01");
    }

    #[test]
    fn numbers_are_written_short_and_those_of_an_axis_alike() {
        let written =
            |ticks: &[f64]| labelled_ticks(ticks.to_vec()).into_iter().map(|(_, label)| label).collect::<Vec<_>>();
        assert_eq!(written(&[0.0, -0.0, 0.05, 100.0, 12.3456789, -3.0]), ["0", "0", "0.05", "100", "12.3457", "−3"]);
        assert_eq!(written(&[0.0, 1e-4, 3e-4, 0.001, 2.5e7]), ["0", "1e−4", "3e−4", "1e−3", "2.5e7"]);
    }
}
