//! A Markdown table, readable as it stands and in any renderer.

use super::{printed, row_head};
use crate::table::{Entry, Table};

pub(super) fn render(table: &Table) -> String {
    let mut text = format!("**{}**\n\n{}\n", table.title, table.summary());
    for panel in &table.panels {
        text.push('\n');
        if !panel.title.is_empty() {
            text += &format!("*{}*\n\n", escaped(&panel.title));
        }
        let heads = table.slots().map(|(_, _, column, metric)| format!("{} {}", column.title, metric.title));
        text += &row(&row_head(&table.row_axis), heads);
        text += &format!("|---|{}\n", "---:|".repeat(table.slots().count()));
        for line in table.lines(panel) {
            text += &row(&line.title, table.slots().map(|(c, m, _, _)| value(&line.entries[c][m])));
        }
    }
    text.push('\n');
    for note in table.notes("the best in bold") {
        text += &format!("{note}\n");
    }
    for failed in &table.failed {
        let reason = failed.reason.split_whitespace().collect::<Vec<_>>().join(" ");
        text += &format!("\n- failed: {} (cell `{}`): {reason}", failed.place, failed.key.short());
    }
    if !table.failed.is_empty() {
        text.push('\n');
    }
    text
}

fn row(first: &str, cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<String> = cells.map(|cell| escaped(&cell)).collect();
    format!("| {} | {} |\n", escaped(first), cells.join(" | "))
}

fn value(entry: &Entry) -> String {
    let text = printed(&entry.value, " ± ");
    if entry.best { format!("**{text}**") } else { text }
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
}
