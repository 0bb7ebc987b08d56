//! One HTML page with everything that was found: tables, figures, and for each cell how it was configured, what it measured on
//! the way, what it cost. Nothing is loaded from elsewhere; without scripts everything can be read, with them tables
//! are sorted and filtered.

mod curves;

use base64::prelude::{BASE64_STANDARD, Engine};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use tsbd_experiment::{CellKey, CellRecord, Failure, ResultRow, RowState};

use crate::chart::Drawing;
use crate::metric::Metric;
use crate::render::{panel_title, printed, row_head};
use crate::table::{Entry, Panel, Table, Value};
use curves::curves;

/// What a page shows.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// One for each experiment and profile.
    pub chapters: Vec<Chapter>,
}

/// An experiment in one profile.
#[derive(Debug, Clone, PartialEq)]
pub struct Chapter {
    /// The command that makes its results.
    pub command: String,
    /// Its table.
    pub table: Table,
    /// Its figure, if it has one.
    pub figure: Option<Figure>,
    /// Its grid points.
    pub rows: Vec<ResultRow>,
    /// Its cells, parents first.
    pub cells: Vec<CellSheet>,
}

/// A figure of a chapter.
#[derive(Debug, Clone, PartialEq)]
pub enum Figure {
    /// A chart of its results.
    Chart(Drawing),
    /// A picture: the bytes of a PNG file.
    Picture(Vec<u8>),
}

/// What is known of a cell.
#[derive(Debug, Clone, PartialEq)]
pub struct CellSheet {
    /// Its key.
    pub key: CellKey,
    /// What people call it, e.g. `badnets + tsbd`.
    pub label: String,
    /// Its parameters, as TOML.
    pub parameters: String,
    /// What became of it.
    pub state: CellState,
}

/// What became of a cell.
#[derive(Debug, Clone, PartialEq)]
pub enum CellState {
    /// It has a result.
    Done {
        /// The record.
        record: Box<CellRecord>,
        /// The last lines of its log.
        log: Vec<String>,
    },
    /// Its last attempt failed.
    Failed(Failure),
    /// It has not been run.
    Missing,
}

/// How much is shown, from everything down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Detail {
    /// Tables, and of each cell configuration and cost.
    Cost,
    /// Figures too.
    Figures,
    /// The curves of each cell too.
    Curves,
    /// Logs and numbers on the way too.
    Everything,
}

impl Detail {
    /// What is left out.
    fn left_out(self) -> &'static str {
        match self {
            Detail::Everything => "nothing is",
            Detail::Curves => "logs and numbers over epochs are",
            Detail::Figures => "logs, numbers and curves over epochs are",
            Detail::Cost => "figures, logs, numbers and curves over epochs are",
        }
    }
}

/// The largest page, in bytes.
pub const LARGEST: usize = 5_000_000;

impl Page {
    /// The page. If it would be larger than [`LARGEST`], logs and numbers on the way are left out, then curves, then figures;
    /// it says so.
    pub fn html(&self) -> String {
        let mut page = String::new();
        for detail in [Detail::Everything, Detail::Curves, Detail::Figures, Detail::Cost] {
            page = self.render(detail).into_string();
            if page.len() <= LARGEST {
                break;
            }
        }
        page
    }

    fn render(&self, detail: Detail) -> Markup {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { "Backdoor attacks and defenses: results" }
                    style { (PreEscaped(include_str!("page.css"))) }
                }
                body {
                    a.skip href="#results" { "Skip to the results" }
                    header {
                        h1 { "Backdoor attacks and defenses: results" }
                        nav aria-label="Experiments" {
                            ul {
                                @for (index, chapter) in self.chapters.iter().enumerate() {
                                    li { a href={ "#chapter-" (index) } { (chapter.table.title) } " (" (chapter.table.profile) ")" }
                                }
                            }
                        }
                    }
                    main id="results" {
                        @if self.chapters.is_empty() {
                            p { "No experiment has a result yet. Run one: " code { "tsbd run experiments/demo.toml" } }
                        }
                        @if detail != Detail::Everything {
                            p.note { "The page would be too large: " (detail.left_out()) " left out. The results folder has them." }
                        }
                        @for (index, chapter) in self.chapters.iter().enumerate() { (chapter.render(index, detail)) }
                    }
                    script { (PreEscaped(include_str!("page.js"))) }
                }
            }
        }
    }
}

impl Chapter {
    fn render(&self, index: usize, detail: Detail) -> Markup {
        let (table, count) = (&self.table, self.table.count);
        html! {
            section id={ "chapter-" (index) } aria-labelledby={ "title-" (index) } {
                h2 id={ "title-" (index) } { (table.title) }
                p.summary { (table.summary()) }
                p { "Made with " code { (self.command) } }
                @for (number, panel) in table.panels.iter().enumerate() { (wide(table, panel, &format!("wide-{index}-{number}"))) }
                ul.notes { @for note in table.notes("the best in bold") { li { (note) } } }
                @if detail >= Detail::Figures {
                    @match &self.figure {
                        Some(Figure::Chart(chart)) => figure role="img" aria-label={ "Figure of " (table.title) } {
                            (PreEscaped(without_prologue(&chart.svg)))
                        }
                        Some(Figure::Picture(png)) => figure {
                            img alt={ "Figure of " (table.title) } src={ "data:image/png;base64," (BASE64_STANDARD.encode(png)) };
                        }
                        None => {}
                    }
                }
                @if count.failed > 0 || count.missing > 0 {
                    h3 { "Without a result" }
                    ul {
                        @for cell in &self.cells {
                            @match &cell.state {
                                CellState::Failed(failure) => li { strong { (cell.label) } " failed: " (failure.reason) }
                                CellState::Missing => li { strong { (cell.label) } " has not been run" }
                                CellState::Done { .. } => {}
                            }
                        }
                    }
                }
                (long(&self.rows, index))
                h3 { "Cells" }
                @for cell in &self.cells { (cell.render(detail)) }
            }
        }
    }
}

/// A drawing within a page needs no declaration.
fn without_prologue(svg: &str) -> &str {
    svg.find("<svg").map_or(svg, |start| &svg[start..])
}

/// A place where a wide table can be moved sideways, by keyboard too.
fn scrolling(name: &str, table: Markup) -> Markup {
    html! { div.scroll role="region" tabindex="0" aria-label=(name) { (table) } }
}

/// The table of the experiment.
fn wide(table: &Table, panel: &Panel, id: &str) -> Markup {
    let caption = if panel.choice.is_empty() { table.title.clone() } else { panel_title(panel) };
    let entries = |entries: &[Vec<Entry>]| {
        html! { @for (c, m, _, _) in table.slots() { (value(&entries[c][m])) } }
    };
    scrolling(
        &caption,
        html! {
            table.sortable id=(id) {
                caption { (caption) }
                thead {
                    tr {
                        th rowspan="2" scope="col" data-column="0" { (sorting(&row_head(&table.row_axis))) }
                        @for column in &table.columns {
                            @if !column.metrics.is_empty() { th.group colspan=(column.metrics.len()) scope="colgroup" { (column.title) } }
                        }
                    }
                    tr {
                        @for (index, (_, _, column, metric)) in table.slots().enumerate() {
                            th scope="col" data-column=(index + 1) {
                                button type="button" aria-label={ "Sort by " (column.title) " " (metric.title) } { (metric.title) }
                            }
                        }
                    }
                }
                tbody {
                    @for line in &panel.lines { tr { th scope="row" { (line.title) } (entries(&line.entries)) } }
                }
                @if let Some(average) = &panel.average {
                    tfoot { tr { th scope="row" { (average.title) } (entries(&average.entries)) } }
                }
            }
        },
    )
}

/// The button that sorts by a column.
fn sorting(title: &str) -> Markup {
    html! { button type="button" { (title) } }
}

fn value(entry: &Entry) -> Markup {
    let text = printed(&entry.value, " ± ");
    let number = match entry.value {
        Value::Measured { mean, .. } => Some(format!("{mean}")),
        Value::Missing | Value::Failed | Value::Undefined => None,
    };
    html! { td.without[number.is_none()] data-value=[number.as_ref()] { @if entry.best { strong { (text) } } @else { (text) } } }
}

/// Every grid point with its result, to be sorted and filtered.
fn long(rows: &[ResultRow], index: usize) -> Markup {
    let mut names = vec!["acc", "asr", "ra", "der"];
    for name in rows.iter().flat_map(|row| row.metrics.keys()) {
        if !names.contains(&name.as_str()) && !["acc_before", "asr_before"].contains(&name.as_str()) {
            names.push(name);
        }
    }
    names.retain(|name| rows.iter().any(|row| row.metrics.contains_key(*name)));
    let metrics: Vec<Metric> = names.into_iter().map(Metric::named).collect();
    let measured = rows.iter().any(|row| row.measure != "none");
    let axes: std::collections::BTreeSet<&String> = rows.iter().flat_map(|row| row.axes.keys()).collect();
    let number = |number: Option<f64>, decimals: usize| {
        let text = number.map_or("–".to_owned(), |number| format!("{number:.decimals$}"));
        html! { td data-value=[number.map(|number| number.to_string())] { (text) } }
    };
    let heads =
        ["attack", "defense"].into_iter().chain(measured.then_some("measure")).chain(["seed"]).map(str::to_owned);
    let heads = heads.chain(axes.iter().map(|axis| (*axis).clone()));
    let heads = heads.chain(metrics.iter().map(|metric| metric.title.clone()));
    let heads: Vec<String> = heads.chain(["seconds", "peak MB", "state"].map(str::to_owned)).collect();
    html! {
        h3 { "Every point of the grid" }
        p {
            label for={ "filter-" (index) } { "Show only rows with " }
            input type="search" id={ "filter-" (index) } data-filters={ "long-" (index) };
            output.count for={ "filter-" (index) } {}
        }
        (scrolling("Every point of the grid", html! {
            table.sortable id={ "long-" (index) } {
                caption { "Every point of the grid; rates in percent, numbers of measurements as they are" }
                thead { tr {
                    @for (column, head) in heads.iter().enumerate() { th scope="col" data-column=(column) { (sorting(head)) } }
                } }
                tbody {
                    @for row in rows {
                        tr {
                            th scope="row" { (row.attack) }
                            td { (row.defense) }
                            @if measured { td { (row.measure) } }
                            td data-value=(row.seed) { (row.seed) }
                            @for axis in &axes { td { (row.axes.get(*axis).map_or("–", String::as_str)) } }
                            @for metric in &metrics { (number(row.shown(&metric.name), 2)) }
                            (number(row.seconds, 1))
                            (number(row.peak_memory_mb, 0))
                            td { (match &row.state { RowState::Done => "done", RowState::Failed(_) => "failed", RowState::Missing => "missing" }) }
                        }
                    }
                }
            }
        }))
    }
}

impl CellSheet {
    fn render(&self, detail: Detail) -> Markup {
        html! {
            details {
                summary { (self.label) " " span.key { (self.key.short()) } " " (self.result()) }
                @if let CellState::Done { record, log } = &self.state {
                    (cost(record))
                    @if detail >= Detail::Curves { (curves(&record.trace)) }
                    @if detail == Detail::Everything && !record.trace.is_empty() { (trace(record)) }
                    @if !record.facts.is_empty() {
                        h4 { "Facts" }
                        dl { @for (name, fact) in &record.facts { dt { (name) } dd { (shortened(&fact.to_string())) } } }
                    }
                    @if detail == Detail::Everything && !log.is_empty() { h4 { "End of the log" } pre tabindex="0" { (log.join("\n")) } }
                }
                @if let CellState::Failed(failure) = &self.state {
                    p { "Failed: " (failure.reason) }
                    @if !failure.log_tail.is_empty() { pre tabindex="0" { (failure.log_tail.join("\n")) } }
                }
                h4 { "Configuration" }
                pre tabindex="0" { (self.parameters) }
            }
        }
    }

    /// A few words for the line of the cell.
    fn result(&self) -> String {
        match &self.state {
            CellState::Done { record, .. } => {
                let metric = |name: &str| {
                    let fraction = record.metrics.get(name)?;
                    Some(format!("{} {:.2}", Metric::named(name).title, fraction * 100.0))
                };
                let parts = ["acc", "asr", "der"].iter().filter_map(|name| metric(name));
                parts.chain([format!("{:.0} s", record.provenance.seconds)]).collect::<Vec<_>>().join(" · ")
            }
            CellState::Failed(_) => "failed".to_owned(),
            CellState::Missing => "missing".to_owned(),
        }
    }
}

/// Facts may be lists of thousands.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 300;
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    format!("{} …", text.chars().take(LONGEST).collect::<String>())
}

fn cost(record: &CellRecord) -> Markup {
    let provenance = &record.provenance;
    let versions = &provenance.versions;
    html! {
        dl {
            dt { "seconds" } dd { (format!("{:.1}", provenance.seconds)) }
            dt { "peak memory" } dd { (format!("{:.0} MB", provenance.peak_memory_bytes as f64 / 1e6)) }
            dt { "device" } dd { (provenance.device) ", " (provenance.threads) " threads, " (provenance.kernels) }
            dt { "program" } dd { "tsbd " (versions.tsbd) " (" (versions.revision) "), Candle " (versions.candle) }
            dt { "key" } dd { code { (record.key) } }
        }
    }
}

/// The metrics on the way as numbers.
fn trace(record: &CellRecord) -> Markup {
    let names: std::collections::BTreeSet<&String> =
        record.trace.iter().flat_map(|point| point.metrics.keys()).collect();
    html! {
        details {
            summary { "Numbers over epochs" }
            (scrolling("Numbers over epochs", html! {
                table {
                    thead { tr { th scope="col" { "stage" } th scope="col" { "epoch" } @for name in &names { th scope="col" { (name) } } } }
                    tbody {
                        @for point in &record.trace {
                            tr {
                                td { (point.stage) }
                                td { (point.epoch) }
                                @for name in &names { td { (point.metrics.get(*name).map_or(String::new(), |value| format!("{value:.4}"))) } }
                            }
                        }
                    }
                }
            }))
        }
    }
}

#[cfg(test)]
mod tests;
