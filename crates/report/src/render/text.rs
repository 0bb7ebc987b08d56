//! For a terminal: one column per method, its metrics side by side under a common head. Methods that do not fit beside each
//! other make blocks below each other.

use comfy_table::{Cell, presets};

use super::{printed, row_head};
use crate::format::Emphasis;
use crate::table::{Entry, Panel, Table};

/// Stand before and behind the best values while the grid is laid out; each is as wide as the space it replaces.
const BEST: (char, char) = ('\u{e000}', '\u{e001}');

pub(super) fn render(table: &Table, emphasis: Emphasis, width: Option<usize>) -> String {
    let mut text = format!("{}\n{}\n", table.title, table.summary());
    for panel in &table.panels {
        if !panel.title.is_empty() {
            text += &format!("\n{}\n", panel.title);
        }
        let (before, behind) = match emphasis {
            Emphasis::Star => (" ", "*"),
            Emphasis::Bold => (" \u{1b}[1m", "\u{1b}[0m "),
        };
        for block in blocks(table, panel, width) {
            text += &grid(table, panel, &block).replace(BEST.0, before).replace(BEST.1, behind);
            text.push('\n');
        }
    }
    let best = match emphasis {
        Emphasis::Star => "* marks the best",
        Emphasis::Bold => "the best in bold",
    };
    for note in table.notes(best) {
        text += &format!("{note}\n");
    }
    for failed in &table.failed {
        text += &format!("failed: {} (cell {}): {}\n", failed.place, failed.key.short(), failed.reason);
    }
    text
}

/// The columns that stand beside each other in this width, at least one at a time.
fn blocks(table: &Table, panel: &Panel, width: Option<usize>) -> Vec<Vec<usize>> {
    let titles = table.lines(panel).map(|line| line.title.chars().count());
    let first = titles.chain([row_head(&table.row_axis).chars().count()]).max().unwrap_or(0) + 4;
    let mut blocks: Vec<Vec<usize>> = vec![Vec::new()];
    let mut used = first;
    for (c, column) in table.columns.iter().enumerate().filter(|(_, column)| !column.metrics.is_empty()) {
        // Each metric has a space on either side, each column a line behind it.
        let metrics = widths(table, panel, c).iter().map(|width| width + 2).sum::<usize>();
        let wide = metrics.max(column.title.chars().count()) + 1;
        if width.is_some_and(|width| used + wide > width) && blocks.last().is_some_and(|block| !block.is_empty()) {
            blocks.push(Vec::new());
            used = first;
        }
        used += wide;
        blocks.last_mut().expect("there is always one").push(c);
    }
    blocks
}

fn grid(table: &Table, panel: &Panel, shown: &[usize]) -> String {
    let mut grid = comfy_table::Table::new();
    grid.load_style(presets::UTF8_FULL_CONDENSED).force_no_tty();
    let widths: Vec<Vec<usize>> = shown.iter().map(|&c| widths(table, panel, c)).collect();

    let mut head = vec![Cell::new(format!("\n{}", row_head(&table.row_axis)))];
    for (&c, widths) in shown.iter().zip(&widths) {
        let column = &table.columns[c];
        let metrics = column.metrics.iter().zip(widths).map(|(metric, width)| format!(" {:>width$} ", metric.title));
        let metrics: String = metrics.collect();
        let title = format!("{:^width$}", column.title, width = metrics.chars().count());
        head.push(Cell::new(format!("{title}\n{metrics}")));
    }
    grid.set_header(head);
    for line in table.lines(panel) {
        let mut cells = vec![Cell::new(&line.title)];
        for (&c, widths) in shown.iter().zip(&widths) {
            let values = line.entries[c].iter().zip(widths).map(|(entry, &width)| value(entry, width));
            cells.push(Cell::new(values.collect::<String>()));
        }
        grid.add_row(cells);
    }
    // Values bring their own space on either side.
    for column in grid.column_iter_mut().skip(1) {
        column.set_padding((0, 0));
    }
    grid.to_string()
}

/// Widths of the metrics of a column, without the space on either side.
fn widths(table: &Table, panel: &Panel, c: usize) -> Vec<usize> {
    let metrics = table.columns[c].metrics.iter().enumerate();
    let width = |(m, metric): (usize, &crate::metric::Metric)| {
        let values = table.lines(panel).map(|line| printed(&line.entries[c][m].value, " ± ").chars().count());
        values.chain([metric.title.chars().count()]).max().unwrap_or(0)
    };
    metrics.map(width).collect()
}

fn value(entry: &Entry, width: usize) -> String {
    let (before, behind) = if entry.best { BEST } else { (' ', ' ') };
    format!("{before}{:>width$}{behind}", printed(&entry.value, " ± "))
}
