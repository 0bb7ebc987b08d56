//! The page: title, legend, panels, notes; and the formats it is written in.

use std::sync::{Arc, LazyLock};

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};
use resvg::{tiny_skia, usvg};

use super::style::style;
use super::{Chart, Series, Shape, panel};
use crate::error::{Error, Result};

/// Parts of a pixel that the canvas knows: it takes whole numbers.
pub(super) const FINE: i32 = 4;

pub(super) const FONT: &str = "DejaVu Sans";
pub(super) const BLACK_TEXT: RGBColor = RGBColor(30, 30, 30);
pub(super) const GREY_TEXT: RGBColor = RGBColor(95, 95, 95);

const TITLE: i32 = 15;
const SUBTITLE: i32 = 11;
const LEGEND: i32 = 12;
const NOTE: i32 = 10;
/// Around everything, and between its parts.
const MARGIN: i32 = 12;
/// Between panels.
const GAP: i32 = 14;

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A chart, drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drawing {
    /// The file's text.
    pub svg: String,
}

/// Letters for plotters, which measures with them; they are registered once.
static FONTS: LazyLock<std::result::Result<(), String>> = LazyLock::new(|| {
    let fonts = [(FontStyle::Normal, dejavu::sans::regular()), (FontStyle::Bold, dejavu::sans::bold())];
    for (style, bytes) in fonts {
        register_font(FONT, style, bytes).map_err(|_| "DejaVu Sans cannot be read".to_owned())?;
    }
    Ok(())
});

/// What plotters says went wrong.
pub(super) fn failed(error: impl std::fmt::Display) -> Error {
    Error::Chart(error.to_string())
}

pub(super) fn text(size: i32, color: RGBColor) -> TextStyle<'static> {
    TextStyle { color: color.to_backend_color(), ..TextStyle::from((FONT, size * FINE).into_font()) }
}

pub(super) fn bold(size: i32) -> TextStyle<'static> {
    TextStyle::from((FONT, size * FINE, FontStyle::Bold).into_font()).color(&BLACK_TEXT)
}

/// The same text from this corner or middle on.
pub(super) fn at(style: TextStyle<'static>, h: HPos, v: VPos) -> TextStyle<'static> {
    style.pos(Pos::new(h, v))
}

/// A line of the legend: its series with the places where they begin.
type LegendLine = Vec<(usize, i32)>;

impl Chart {
    /// Draws the chart.
    ///
    /// # Errors
    /// A mark names a series that the legend does not have, or there is no column.
    pub fn draw(&self) -> Result<Drawing> {
        FONTS.clone().map_err(failed)?;
        if self.columns == 0 {
            return Err(failed("a chart needs at least one column of panels"));
        }
        let (panel_width, panel_height) = (self.panel_size.0 as i32, self.panel_size.1 as i32);
        let columns = self.columns.min(self.panels.len()).max(1) as i32;
        let rows = (self.panels.len() as i32 + columns - 1) / columns;
        let width = 2 * MARGIN + columns * panel_width + (columns - 1) * GAP;
        let legend = self.legend_lines(width - 2 * MARGIN)?;
        let wrapped = |texts: &[String], style: TextStyle| lines(texts, &style, width - 2 * MARGIN);
        let title = wrapped(std::slice::from_ref(&self.title), bold(TITLE))?;
        let subtitle = wrapped(std::slice::from_ref(&self.subtitle), text(SUBTITLE, GREY_TEXT))?;
        let notes = wrapped(&self.notes, text(NOTE, GREY_TEXT))?;
        let below_title = MARGIN + title.len() as i32 * (TITLE + 6);
        let head = below_title + subtitle.len() as i32 * (SUBTITLE + 6);
        let top = head + legend.len() as i32 * (LEGEND + 8) + 4;
        let bottom = top + rows * panel_height + (rows - 1).max(0) * GAP;
        let height = bottom + MARGIN + notes.len() as i32 * (NOTE + 4);

        let mut svg = String::new();
        {
            let size = ((width * FINE) as u32, (height * FINE) as u32);
            let page = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            page.fill(&WHITE).map_err(failed)?;
            let put = |line: &str, style: &TextStyle, x: i32, y: i32| {
                page.draw_text(line, style, (x * FINE, y * FINE)).map_err(failed)
            };
            for (index, line) in title.iter().enumerate() {
                put(line, &bold(TITLE), MARGIN, MARGIN + index as i32 * (TITLE + 6))?;
            }
            for (index, line) in subtitle.iter().enumerate() {
                put(line, &text(SUBTITLE, GREY_TEXT), MARGIN, below_title + index as i32 * (SUBTITLE + 6))?;
            }
            for (row, line) in legend.iter().enumerate() {
                let y = head + row as i32 * (LEGEND + 8);
                for (series, x) in line {
                    draw_entry(&page, &self.legend[*series], *series, MARGIN + x, y)?;
                }
            }
            for (index, panel) in self.panels.iter().enumerate() {
                let (row, column) = (index as i32 / columns, index as i32 % columns);
                let (x, y) = (MARGIN + column * (panel_width + GAP), top + row * (panel_height + GAP));
                let area = page.clone().shrink((x * FINE, y * FINE), (panel_width * FINE, panel_height * FINE));
                panel::draw(&area, panel, &self.legend)?;
            }
            for (index, line) in notes.iter().enumerate() {
                put(line, &text(NOTE, GREY_TEXT), MARGIN, bottom + 6 + index as i32 * (NOTE + 4))?;
            }
            page.present().map_err(failed)?;
        }
        Ok(Drawing { svg: finished(&svg, width, height) })
    }

    /// The legend's lines in this width.
    fn legend_lines(&self, width: i32) -> Result<Vec<LegendLine>> {
        let mut lines: Vec<LegendLine> = Vec::new();
        let mut x = width;
        for (index, series) in self.legend.iter().enumerate() {
            let entry = SAMPLE + 6 + text_width(&series.name, &text(LEGEND, BLACK_TEXT))? + 18;
            if x + entry > width || lines.is_empty() {
                lines.push(Vec::new());
                x = 0;
            }
            if let Some(line) = lines.last_mut() {
                line.push((index, x));
            }
            x += entry;
        }
        Ok(lines)
    }
}

/// Texts, broken at spaces into lines of this width in pixels; nothing of an empty one.
fn lines(texts: &[String], style: &TextStyle, width: i32) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for text in texts.iter().filter(|text| !text.is_empty()) {
        let mut line = String::new();
        for word in text.split(' ') {
            let longer = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
            if !line.is_empty() && text_width(&longer, style)? > width {
                lines.push(std::mem::replace(&mut line, word.to_owned()));
            } else {
                line = longer;
            }
        }
        lines.push(line);
    }
    Ok(lines)
}

/// Width of a text in pixels, rounded up.
pub(super) fn text_width(text: &str, style: &TextStyle) -> Result<i32> {
    let ((left, _), (right, _)) = style.font.layout_box(text).map_err(failed)?;
    Ok((right - left + FINE - 1) / FINE)
}

/// Width of a legend's sample.
const SAMPLE: i32 = 22;

/// A sample of the series, and its name.
fn draw_entry(page: &Area, series: &Series, number: usize, x: i32, y: i32) -> Result<()> {
    let middle = (y + LEGEND / 2 + 1) * FINE;
    let (left, right) = (x * FINE, (x + SAMPLE) * FINE);
    let look = style(number);
    match series.shape {
        Shape::Bar => {
            let (top, bottom) = (middle - LEGEND / 2 * FINE, middle + LEGEND / 2 * FINE);
            page.draw(&Rectangle::new([(left, top), (right, bottom)], look.color.filled())).map_err(failed)?;
        }
        Shape::Line => {
            for (start, end) in panel::dashes(&[(left, middle), (right, middle)], look.dash) {
                page.draw(&PathElement::new(vec![start, end], look.color.stroke_width(2 * FINE as u32)))
                    .map_err(failed)?;
            }
            page.draw(&panel::marker(((left + right) / 2, middle), look, 4.0)).map_err(failed)?;
        }
        Shape::Dots => page.draw(&panel::marker(((left + right) / 2, middle), look, 4.0)).map_err(failed)?,
    }
    let name = at(text(LEGEND, BLACK_TEXT), HPos::Left, VPos::Center);
    page.draw_text(&series.name, &name, (right + 6 * FINE, middle)).map_err(failed)
}

/// The page at its size in pixels, with letters that look alike where DejaVu Sans is not installed.
fn finished(svg: &str, width: i32, height: i32) -> String {
    let fine = format!("width=\"{}\" height=\"{}\"", width * FINE, height * FINE);
    svg.replacen(&fine, &format!("width=\"{width}\" height=\"{height}\""), 1)
        .replace("font-family=\"DejaVu Sans\"", "font-family=\"DejaVu Sans, Verdana, sans-serif\"")
}

impl Drawing {
    /// The drawing as PNG with `scale` dots to a pixel.
    ///
    /// # Errors
    /// The scale is not positive, or the picture would be too large.
    pub fn png(&self, scale: f32) -> Result<Vec<u8>> {
        static LETTERS: LazyLock<Arc<usvg::fontdb::Database>> = LazyLock::new(|| {
            let mut letters = usvg::fontdb::Database::new();
            letters.load_font_data(dejavu::sans::regular().to_vec());
            letters.load_font_data(dejavu::sans::bold().to_vec());
            Arc::new(letters)
        });
        let options = usvg::Options { fontdb: LETTERS.clone(), ..usvg::Options::default() };
        let tree = usvg::Tree::from_str(&self.svg, &options).map_err(failed)?;
        let size = tree.size();
        let (width, height) = ((size.width() * scale).round() as u32, (size.height() * scale).round() as u32);
        let mut pixels = tiny_skia::Pixmap::new(width, height).ok_or_else(|| {
            failed(format!("a picture of {width}x{height} dots cannot be made; choose another scale"))
        })?;
        resvg::render(&tree, tiny_skia::Transform::from_scale(scale, scale), &mut pixels.as_mut());
        pixels.encode_png().map_err(failed)
    }
}
