//! One pair of axes and what lies between them.

use std::ops::Range;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::axis::Layout;
use super::canvas::{Area, BLACK_TEXT, FINE, GREY_TEXT, at, bold, failed, text, text_width};
use super::style::{Style, style};
use super::{Mark, Mean, Panel, Point, Scale, Series};
use crate::error::Result;

const TITLE: i32 = 12;
const TICK: i32 = 10;
const LABEL: i32 = 11;
/// Share of a name's room that its bars fill.
const FILLED: f64 = 0.82;

type Axes<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<Layout, Layout>>;

/// Draws a panel into an area of its own.
pub(super) fn draw(area: &Area, panel: &Panel, legend: &[Series]) -> Result<()> {
    if let Some(series) = panel.marks.iter().filter_map(Mark::series).find(|series| *series >= legend.len()) {
        return Err(failed(format!("panel '{}': the legend has no series {series}", panel.title)));
    }
    let x = Layout::of(&panel.x.scale, panel.marks.iter().flat_map(Mark::xs));
    let y = Layout::of(&panel.y.scale, panel.marks.iter().flat_map(Mark::ys));
    let widest = y.ticks.iter().map(|(_, label)| text_width(label, &text(TICK, BLACK_TEXT)));
    let widest = widest.collect::<Result<Vec<i32>>>()?.into_iter().max().unwrap_or(0);
    let head = if panel.title.is_empty() { 6 } else { TITLE + 8 };
    let mut chart = ChartBuilder::on(area)
        .margin_top(head * FINE)
        .margin_right(8 * FINE)
        .set_label_area_size(LabelAreaPosition::Left, (widest + LABEL + 16) * FINE)
        .set_label_area_size(LabelAreaPosition::Bottom, (TICK + LABEL + 16) * FINE)
        .build_cartesian_2d(x.clone(), y.clone())
        .map_err(failed)?;
    let named = matches!(panel.x.scale, Scale::Names(_));
    let (label_x, label_y) = (|tick: &f64| x.label(*tick), |tick: &f64| y.label(*tick));
    let mut mesh = chart.configure_mesh();
    mesh.bold_line_style(RGBColor(226, 226, 226).stroke_width(FINE as u32))
        .light_line_style(TRANSPARENT)
        .axis_style(RGBColor(110, 110, 110).stroke_width(FINE as u32))
        .label_style(text(TICK, BLACK_TEXT))
        .axis_desc_style(text(LABEL, BLACK_TEXT))
        .x_desc(&panel.x.label)
        .y_desc(&panel.y.label)
        .x_label_formatter(&label_x)
        .y_label_formatter(&label_y)
        .x_labels(x.ticks.len())
        .y_labels(y.ticks.len())
        .set_all_tick_mark_size(4 * FINE);
    if named {
        mesh.disable_x_mesh();
    }
    mesh.draw().map_err(failed)?;

    let (columns, rows) = chart.plotting_area().get_pixel_range();
    let (left, top) = area.get_base_pixel();
    let frame = Frame { area, chart: &chart, ground: y.low.max(0.0).min(y.high), origin: (left, top) };
    let title = at(bold(TITLE), HPos::Center, VPos::Top);
    area.draw_text(&panel.title, &title, ((columns.start + columns.end) / 2 - left, 0)).map_err(failed)?;

    let is_bars = |mark: &&Mark| matches!(mark, Mark::Bars { .. });
    let bars = panel.marks.iter().filter(is_bars).count();
    let mut slot = 0;
    for mark in &panel.marks {
        match mark {
            Mark::Line { series, points } => frame.line(points, style(*series))?,
            Mark::Dots { series, points } => frame.dots(points, style(*series))?,
            Mark::Bars { series, heights } => {
                frame.bars(heights, slot, bars, style(*series))?;
                slot += 1;
            }
            Mark::Guide { points } => {
                let places = points.iter().map(|(x, y)| frame.place(*x, *y)).collect();
                frame.stroke(places, RGBColor(150, 150, 150).stroke_width(FINE as u32 * 3 / 2))?;
            }
        }
    }
    frame.remarks(panel, (columns, rows))
}

impl Mark {
    fn series(&self) -> Option<usize> {
        match self {
            Mark::Line { series, .. } | Mark::Dots { series, .. } | Mark::Bars { series, .. } => Some(*series),
            Mark::Guide { .. } => None,
        }
    }

    /// The points of lines and dots, which are data.
    fn points(&self) -> Vec<(f64, f64)> {
        match self {
            Mark::Line { points, .. } => points.iter().map(|point| (point.x, point.y.value)).collect(),
            Mark::Dots { points, .. } => {
                points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect()
            }
            Mark::Bars { .. } | Mark::Guide { .. } => Vec::new(),
        }
    }

    /// Everything that the horizontal axis has to show.
    fn xs(&self) -> Vec<f64> {
        self.points().into_iter().map(|(x, _)| x).collect()
    }

    /// Everything that the vertical axis has to show, with spreads.
    fn ys(&self) -> Vec<f64> {
        match self {
            Mark::Line { points, .. } => points.iter().flat_map(|point| point.y.ends()).collect(),
            Mark::Dots { points, .. } => points.iter().map(|(_, y)| *y).collect(),
            Mark::Bars { heights, .. } => heights.iter().flatten().flat_map(|mean| mean.ends()).chain([0.0]).collect(),
            Mark::Guide { .. } => Vec::new(),
        }
    }
}

/// A place on the page, in parts of a pixel.
type Place = (i32, i32);

/// The axes with the area around them.
struct Frame<'f, 'a> {
    area: &'f Area<'a>,
    chart: &'f Axes<'a>,
    /// Where bars stand.
    ground: f64,
    origin: Place,
}

impl Frame<'_, '_> {
    /// Where a datum lies.
    fn place(&self, x: f64, y: f64) -> Place {
        let (x, y) = self.chart.backend_coord(&(x, y));
        (x - self.origin.0, y - self.origin.1)
    }

    fn fill(&self, corners: Vec<Place>, style: impl Into<ShapeStyle>) -> Result<()> {
        self.area.draw(&Polygon::new(corners, style)).map_err(failed)
    }

    /// Draws a line, unless it has no length: the end of a dash may have none.
    fn stroke(&self, places: Vec<Place>, style: impl Into<ShapeStyle>) -> Result<()> {
        if places.windows(2).all(|pair| pair[0] == pair[1]) {
            return Ok(());
        }
        self.area.draw(&PathElement::new(places, style)).map_err(failed)
    }

    /// A line with its band and its markers.
    fn line(&self, points: &[Point], look: Style) -> Result<()> {
        let finite = |point: &&Point| point.x.is_finite() && point.y.value.is_finite();
        let points: Vec<&Point> = points.iter().filter(finite).collect();
        // Where no spread is known there is no band, rather than one without width.
        for stretch in points.split(|point| point.y.spread.is_none()) {
            let edge = |sign: f64| {
                move |point: &&Point| self.place(point.x, point.y.value + sign * point.y.spread.unwrap_or_default())
            };
            let band: Vec<Place> = stretch.iter().map(edge(1.0)).chain(stretch.iter().rev().map(edge(-1.0))).collect();
            match stretch.len() {
                0 => {}
                1 => self.stroke(band, look.color.mix(0.4).stroke_width(3 * FINE as u32))?,
                _ => self.fill(band, look.color.mix(0.18).filled())?,
            }
        }
        let places: Vec<Place> = points.iter().map(|point| self.place(point.x, point.y.value)).collect();
        for (start, end) in dashes(&places, look.dash) {
            self.stroke(vec![start, end], look.color.stroke_width(2 * FINE as u32))?;
        }
        // Markers of long curves would hide them.
        let marked = places.len() <= 25;
        for (point, place) in points.into_iter().zip(places) {
            if !point.y.complete {
                self.fill(corners(place, look, 4.6), look.color.filled())?;
                self.fill(corners(place, look, 2.8), WHITE.filled())?;
            } else if marked {
                self.area.draw(&marker(place, look, 3.6)).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Points by themselves. Many of them lie on each other: small and pale ones show how many.
    fn dots(&self, points: &[(f64, f64)], look: Style) -> Result<()> {
        let (size, color) = if points.len() > 60 { (2.2, look.color.mix(0.5)) } else { (3.4, look.color.mix(0.85)) };
        for (x, y) in points.iter().filter(|(x, y)| x.is_finite() && y.is_finite()) {
            self.fill(corners(self.place(*x, *y), look, size), color.filled())?;
        }
        Ok(())
    }

    /// The bars of one series: the `slot`-th of `slots` beside each other.
    fn bars(&self, heights: &[Option<Mean>], slot: usize, slots: usize, look: Style) -> Result<()> {
        let width = FILLED / slots as f64;
        for (name, height) in heights.iter().enumerate() {
            let left = name as f64 - FILLED / 2.0 + slot as f64 * width;
            let (right, middle) = (left + width * 0.92, left + width * 0.46);
            let Some(Mean { value, spread, complete }) = height.filter(|height| height.value.is_finite()) else {
                let missing = at(text(TICK, GREY_TEXT), HPos::Center, VPos::Bottom);
                self.area.draw_text("×", &missing, self.place(middle, self.ground)).map_err(failed)?;
                continue;
            };
            let rectangle = [self.place(left, value), self.place(right, self.ground)];
            if complete {
                self.area.draw(&Rectangle::new(rectangle, look.color.filled())).map_err(failed)?;
            } else {
                let outline = look.color.stroke_width(2 * FINE as u32);
                self.area.draw(&Rectangle::new(rectangle, look.color.mix(0.15).filled())).map_err(failed)?;
                self.area.draw(&Rectangle::new(rectangle, outline)).map_err(failed)?;
            }
            if let Some(spread) = spread {
                let ends = vec![self.place(middle, value - spread), self.place(middle, value + spread)];
                self.stroke(ends, BLACK_TEXT.stroke_width(FINE as u32))?;
            }
        }
        Ok(())
    }
}

impl Frame<'_, '_> {
    /// Writes the remarks into that corner of the axes, which span these pixels, where the fewest data lie.
    fn remarks(&self, panel: &Panel, (columns, rows): (Range<i32>, Range<i32>)) -> Result<()> {
        let widths = panel.remarks.iter().map(|remark| text_width(remark, &text(LABEL, BLACK_TEXT)));
        let Some(width) = widths.collect::<Result<Vec<i32>>>()?.into_iter().max() else { return Ok(()) };
        let (width, height) = (width * FINE, panel.remarks.len() as i32 * (LABEL + 5) * FINE);
        let inset = 8 * FINE;
        let (left, top) = (columns.start - self.origin.0 + inset, rows.start - self.origin.1 + inset);
        let (right, bottom) = (columns.end - self.origin.0 - inset - width, rows.end - self.origin.1 - inset - height);
        let data: Vec<Place> = panel.marks.iter().flat_map(Mark::points).map(|(x, y)| self.place(x, y)).collect();
        let covered = |(x, y): Place| {
            let inside = |place: &&Place| (x..x + width).contains(&place.0) && (y..y + height).contains(&place.1);
            data.iter().filter(inside).count()
        };
        let corners = [(left, top), (right, top), (right, bottom), (left, bottom)];
        let Some((x, y)) = corners.into_iter().min_by_key(|corner| covered(*corner)) else { return Ok(()) };
        // Grid lines would run through the letters.
        let room = 3 * FINE;
        let ground = Rectangle::new([(x - room, y - room), (x + width + room, y + height)], WHITE.mix(0.85).filled());
        self.area.draw(&ground).map_err(failed)?;
        for (index, remark) in panel.remarks.iter().enumerate() {
            let place = (x, y + index as i32 * (LABEL + 5) * FINE);
            self.area.draw_text(remark, &text(LABEL, BLACK_TEXT), place).map_err(failed)?;
        }
        Ok(())
    }
}

/// The pieces of a line through these places.
pub(super) fn dashes(places: &[Place], dash: Option<(u32, u32)>) -> Vec<(Place, Place)> {
    let whole = places.windows(2).map(|pair| (pair[0], pair[1]));
    let Some((on, off)) = dash else { return whole.collect() };
    let (on, period) = (f64::from(on) * f64::from(FINE), f64::from(on + off) * f64::from(FINE));
    let mut pieces = Vec::new();
    // How much of the pattern the line has gone through.
    let mut done = 0.0;
    for ((x, y), (to_x, to_y)) in whole {
        let (dx, dy) = (f64::from(to_x - x), f64::from(to_y - y));
        let length = dx.hypot(dy);
        let point = |along: f64| {
            let share = if length > 0.0 { along / length } else { 0.0 };
            (x + (dx * share).round() as i32, y + (dy * share).round() as i32)
        };
        let mut along = 0.0;
        while along < length {
            let phase = (done + along) % period;
            let step = if phase < on { on - phase } else { period - phase };
            let next = (along + step.max(1e-6)).min(length);
            if phase < on {
                pieces.push((point(along), point(next)));
            }
            along = next;
        }
        done += length;
    }
    pieces
}

/// The corners of a marker of this size in pixels.
fn corners((x, y): Place, look: Style, size: f64) -> Vec<Place> {
    let size = size * f64::from(FINE);
    let corner = |(dx, dy): &(f64, f64)| (x + (dx * size).round() as i32, y + (dy * size).round() as i32);
    look.marker.iter().map(corner).collect()
}

/// A marker.
pub(super) fn marker(place: Place, look: Style, size: f64) -> Polygon<Place> {
    Polygon::new(corners(place, look, size), look.color.filled())
}
