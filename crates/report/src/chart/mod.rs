//! Charts: panels with axes beside each other, one legend for all of them, drawn as SVG and as PNG.
//!
//! A [`Chart`] says what is shown, [`Chart::draw`] how it looks: plotters draws on a canvas four times as fine as a
//! pixel, letters are those of DejaVu Sans, which the program carries with it, so that the same chart gives the same
//! bytes on every machine. Series differ by colour, by lightness, and by marker or dash, so that they can be told apart in
//! grey and by readers who see few colours.

mod axis;
mod canvas;
mod panel;
mod style;

pub use axis::{Axis, Scale};
pub use canvas::Drawing;

/// A figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// What it shows, in one line.
    pub title: String,
    /// Data set, network, profile, seeds: what a reader has to know to compare it.
    pub subtitle: String,
    /// The series, by number: marks name theirs. Empty: no legend.
    pub legend: Vec<Series>,
    /// From the top left, row by row.
    pub panels: Vec<Panel>,
    /// Panels beside each other, at least 1.
    pub columns: usize,
    /// Size of a panel in pixels: width and height.
    pub panel_size: (u32, u32),
    /// Lines below the panels: definitions, and what is missing.
    pub notes: Vec<String>,
}

/// A series as the legend shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// How its marks look.
    pub shape: Shape,
}

/// What kind of marks a series has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A line with markers.
    Line,
    /// Markers alone.
    Dots,
    /// A filled area.
    Bar,
}

/// A pair of axes with what is drawn between them.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// Above the axes.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// In the order of drawing.
    pub marks: Vec<Mark>,
    /// Lines in a corner that data leave free, such as a correlation.
    pub remarks: Vec<String>,
}

/// Data of one series, by its number in the legend. What is not finite is left out.
#[derive(Debug, Clone, PartialEq)]
pub enum Mark {
    /// Points joined by a line, with the spread of several seeds as a band where it is known. A line with a gap is two marks.
    Line {
        /// The series.
        series: usize,
        /// By ascending `x`.
        points: Vec<Point>,
    },
    /// Points by themselves.
    Dots {
        /// The series.
        series: usize,
        /// Place of each.
        points: Vec<(f64, f64)>,
    },
    /// One bar for each name of the horizontal axis, beside those of the other series.
    Bars {
        /// The series.
        series: usize,
        /// `None` where there is no result, which is marked.
        heights: Vec<Option<Mean>>,
    },
    /// A thin grey line of no series, which data are compared with: what chance gives. The notes say what it is.
    Guide {
        /// By ascending `x`.
        points: Vec<(f64, f64)>,
    },
}

/// A point of a line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Place on the horizontal axis.
    pub x: f64,
    /// Place on the vertical axis.
    pub y: Mean,
}

/// A mean over seeds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mean {
    /// The mean.
    pub value: f64,
    /// Standard deviation over the seeds; `None` of one seed.
    pub spread: Option<f64>,
    /// Whether every seed that was asked for is there. If not, the mark is hollow.
    pub complete: bool,
}

impl Mean {
    /// The ends of its spread; where none is known, both are the mean.
    pub(crate) fn ends(self) -> [f64; 2] {
        [-1.0, 1.0].map(|sign| self.value + sign * self.spread.unwrap_or(0.0))
    }
}

#[cfg(test)]
mod tests;
