//! How series look: colours that readers who see few of them can tell apart (Okabe and Ito, "Color Universal Design",
//! 2008), ordered so that neighbours differ in lightness too, with a marker and a dash for each.

use plotters::style::RGBColor;

/// A corner of a marker, in units of its size.
type Corner = (f64, f64);

/// The look of one series.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    pub(super) color: RGBColor,
    /// A polygon around the point.
    pub(super) marker: &'static [Corner],
    /// Length of dashes and gaps in pixels; `None`: no gaps.
    pub(super) dash: Option<(u32, u32)>,
}

const CIRCLE: &[Corner] = &[
    (1.0, 0.0),
    (0.924, 0.383),
    (0.707, 0.707),
    (0.383, 0.924),
    (0.0, 1.0),
    (-0.383, 0.924),
    (-0.707, 0.707),
    (-0.924, 0.383),
    (-1.0, 0.0),
    (-0.924, -0.383),
    (-0.707, -0.707),
    (-0.383, -0.924),
    (0.0, -1.0),
    (0.383, -0.924),
    (0.707, -0.707),
    (0.924, -0.383),
];
const SQUARE: &[Corner] = &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)];
const DIAMOND: &[Corner] = &[(0.0, -1.3), (1.1, 0.0), (0.0, 1.3), (-1.1, 0.0)];
const UP: &[Corner] = &[(0.0, -1.25), (1.15, 0.85), (-1.15, 0.85)];
const DOWN: &[Corner] = &[(0.0, 1.25), (1.15, -0.85), (-1.15, -0.85)];
const PLUS: &[Corner] = &[
    (-0.4, -1.2),
    (0.4, -1.2),
    (0.4, -0.4),
    (1.2, -0.4),
    (1.2, 0.4),
    (0.4, 0.4),
    (0.4, 1.2),
    (-0.4, 1.2),
    (-0.4, 0.4),
    (-1.2, 0.4),
    (-1.2, -0.4),
    (-0.4, -0.4),
];
const LEFT: &[Corner] = &[(-1.25, 0.0), (0.85, -1.15), (0.85, 1.15)];
const RIGHT: &[Corner] = &[(1.25, 0.0), (-0.85, -1.15), (-0.85, 1.15)];

const STYLES: [Style; 8] = [
    Style { color: RGBColor(0, 114, 178), marker: CIRCLE, dash: None },
    Style { color: RGBColor(230, 159, 0), marker: SQUARE, dash: Some((7, 3)) },
    Style { color: RGBColor(0, 115, 90), marker: UP, dash: Some((2, 2)) },
    Style { color: RGBColor(204, 121, 167), marker: DIAMOND, dash: Some((16, 3)) },
    Style { color: RGBColor(190, 75, 0), marker: DOWN, dash: Some((12, 6)) },
    Style { color: RGBColor(86, 180, 233), marker: PLUS, dash: Some((3, 5)) },
    Style { color: RGBColor(40, 40, 40), marker: LEFT, dash: Some((3, 3)) },
    Style { color: RGBColor(150, 140, 20), marker: RIGHT, dash: Some((2, 5)) },
];

/// The look of series number `series`. After eight the colours begin again, each with the marker and the dashes of another.
pub(super) fn style(series: usize) -> Style {
    let (round, place) = (series / STYLES.len(), series % STYLES.len());
    let Style { marker, dash, .. } = STYLES[(place + 3 * round) % STYLES.len()];
    Style { color: STYLES[place].color, marker, dash }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lightness as the eye weighs colours (Rec. 709), 0 to 1.
    fn lightness(RGBColor(red, green, blue): RGBColor) -> f64 {
        (0.2126 * f64::from(red) + 0.7152 * f64::from(green) + 0.0722 * f64::from(blue)) / 255.0
    }

    #[test]
    fn neighbours_can_be_told_apart_in_grey() {
        for pair in STYLES.windows(2) {
            let [first, second] = [pair[0], pair[1]].map(|style| lightness(style.color));
            assert!((first - second).abs() > 0.1, "{pair:?}: {first} and {second}");
        }
    }

    #[test]
    fn lines_that_are_one_grey_have_other_dashes() {
        let looks_alike = |one: Option<(u32, u32)>, other: Option<(u32, u32)>| match (one, other) {
            (Some((on, off)), Some((other_on, other_off))) => {
                let periods = f64::from(on + off) / f64::from(other_on + other_off);
                let shares =
                    f64::from(on) / f64::from(on + off) - f64::from(other_on) / f64::from(other_on + other_off);
                (0.7..1.4).contains(&periods) && shares.abs() < 0.25
            }
            (one, other) => one == other,
        };
        for (place, style) in STYLES.iter().enumerate() {
            for other in &STYLES[..place] {
                let is_one_grey = (lightness(style.color) - lightness(other.color)).abs() <= 0.1;
                assert!(!(is_one_grey && looks_alike(style.dash, other.dash)), "{style:?} and {other:?}");
            }
        }
    }

    #[test]
    fn the_series_of_a_figure_with_every_method_look_different() {
        let looks: Vec<Style> = (0..3 * STYLES.len()).map(style).collect();
        for (place, look) in looks.iter().enumerate() {
            for other in &looks[..place] {
                assert!(look.color != other.color || look.marker != other.marker, "series {place}");
            }
        }
    }

    #[test]
    fn no_two_series_have_the_same_marker_or_colour() {
        for (place, style) in STYLES.iter().enumerate() {
            for other in &STYLES[..place] {
                assert!(style.color != other.color && style.marker != other.marker);
            }
        }
    }
}
