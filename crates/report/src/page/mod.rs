//! One HTML page with everything that was found: tables, figures, and for each cell how it was configured, what it measured on
//! the way, what it cost. Nothing is loaded from elsewhere; without scripts everything can be read, with them tables
//! are sorted and filtered.

mod curves;

use std::collections::HashSet;

use base64::prelude::{BASE64_STANDARD, Engine};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use tsbd_experiment::{CellKey, CellRecord, Failure, Provenance, ResultRow, RowState};

use crate::chart::Drawing;
use crate::metric::Metric;
use crate::render::{printed, row_head};
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
    /// Those of its cells that have a result or failed, parents first.
    pub cells: Vec<CellSheet>,
    /// The others: what people call them, and why they were not run, if another one is to blame.
    pub missing: Vec<String>,
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
}

/// How much is shown, each level with all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Detail {
    /// Tables alone.
    Tables,
    Figures,
    /// Every point of the grids.
    Points,
    /// What each cell cost.
    Cells,
    /// How each cell was configured, and its facts.
    Configurations,
    /// The curves of each cell.
    Curves,
    /// Logs and numbers on the way.
    Everything,
}

impl Detail {
    /// From everything down, with what that level adds.
    const ALL: [(Detail, &'static str); 7] = [
        (Detail::Everything, "logs and numbers over epochs"),
        (Detail::Curves, "curves over epochs"),
        (Detail::Configurations, "configurations and facts of cells"),
        (Detail::Cells, "cells"),
        (Detail::Points, "points of the grids"),
        (Detail::Figures, "figures"),
        (Detail::Tables, "tables"),
    ];

    /// What is left out, if anything is.
    fn left_out(self) -> Vec<String> {
        Self::ALL.iter().filter(|(level, _)| *level > self).map(|(_, what)| (*what).to_owned()).collect()
    }
}

/// The largest page, in bytes.
pub const LARGEST: usize = 5_000_000;

impl Page {
    /// The page, never larger than [`LARGEST`]. Where everything does not fit, first logs and numbers on the way are left
    /// out, then curves, configurations, cells, points, at last figures, and if the tables alone are too large, the last
    /// chapters; it says so.
    pub fn html(&self) -> String {
        for (detail, _) in Detail::ALL {
            let page = self.render(detail, self.chapters.len()).into_string();
            if page.len() <= LARGEST {
                return page;
            }
        }
        let tables = |chapters: usize| self.render(Detail::Tables, chapters).into_string();
        let counts: Vec<usize> = (1..self.chapters.len()).collect();
        tables(counts.partition_point(|count| tables(*count).len() <= LARGEST))
    }

    /// The first `count` chapters.
    fn render(&self, detail: Detail, count: usize) -> Markup {
        let chapters = &self.chapters[..count];
        let mut left_out = detail.left_out();
        if count < self.chapters.len() {
            left_out.push(format!("the last {} of {} experiments", self.chapters.len() - count, self.chapters.len()));
        }
        // Experiments share cells: each is shown where it comes first.
        let mut shown = HashSet::new();
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
                                @for (index, chapter) in chapters.iter().enumerate() {
                                    li { a href={ "#chapter-" (index) } { (chapter.table.title) } " (" (chapter.table.profile) ")" }
                                }
                            }
                        }
                    }
                    main id="results" {
                        @if self.chapters.is_empty() {
                            p { "No experiment has a result yet. Run one: " code { "tsbd run experiments/demo.toml" } }
                        }
                        @if !left_out.is_empty() {
                            p.note { "The page would be too large. Left out: " (left_out.join(", ")) ". The results folder has them." }
                        }
                        @for (index, chapter) in chapters.iter().enumerate() { (chapter.render(index, detail, &mut shown)) }
                    }
                    script { (PreEscaped(include_str!("page.js"))) }
                }
            }
        }
    }
}

impl Chapter {
    /// `shown` are the cells that chapters before this one have shown.
    fn render<'a>(&'a self, index: usize, detail: Detail, shown: &mut HashSet<&'a CellKey>) -> Markup {
        let (table, count) = (&self.table, self.table.count);
        let (own, before): (Vec<_>, Vec<_>) = self.cells.iter().partition(|cell| shown.insert(&cell.key));
        html! {
            section id={ "chapter-" (index) } aria-labelledby={ "title-" (index) } {
                h2 id={ "title-" (index) } { (table.title) }
                p.summary { (table.summary()) }
                p { "Made with " code { (self.command) } }
                @for (number, panel) in table.panels.iter().enumerate() { (wide(table, panel, &format!("wide-{index}-{number}"))) }
                ul.notes { @for note in table.notes("the best in bold") { li { (note) } } }
                @if detail >= Detail::Figures {
                    @match &self.figure {
                        Some(figure) => (scrolling(&format!("Figure of {}", table.title), figure.render(&table.title))),
                        None => {}
                    }
                }
                @if count.failed > 0 || !self.missing.is_empty() {
                    h3 { "Without a result" }
                    ul {
                        @for cell in &self.cells {
                            @if let CellState::Failed(failure) = &cell.state {
                                li { strong { (cell.label) } " failed: " (shortened(&failure.reason)) }
                            }
                        }
                        @if !self.missing.is_empty() { li { (missing(&self.missing)) } }
                    }
                }
                @if detail >= Detail::Points { (long(&self.rows, index)) }
                @if detail >= Detail::Cells && !self.cells.is_empty() {
                    h3 { "Cells" }
                    @for cell in own { (cell.render(detail)) }
                    @if !before.is_empty() {
                        p { "Shown above, with another experiment:"
                            @for cell in before { " " a href={ "#cell-" (cell.key) } { (cell.label) } }
                        }
                    }
                }
            }
        }
    }
}

/// Which cells have not been run: the first of very many.
fn missing(cells: &[String]) -> Markup {
    const NAMED: usize = 200;
    html! {
        details {
            summary { (cells.len()) @if cells.len() == 1 { " cell has" } @else { " cells have" } " not been run" }
            ul {
                @for cell in cells.iter().take(NAMED) { li { (cell) } }
                @if cells.len() > NAMED { li { "and " (cells.len() - NAMED) " more" } }
            }
        }
    }
}

impl Figure {
    fn render(&self, title: &str) -> Markup {
        html! {
            @match self {
                Figure::Chart(chart) => figure role="img" aria-label={ "Figure of " (title) } {
                    (PreEscaped(without_prologue(&chart.svg)))
                }
                Figure::Picture(png) => figure {
                    img alt={ "Figure of " (title) } src={ "data:image/png;base64," (BASE64_STANDARD.encode(png)) };
                }
            }
        }
    }
}

/// A drawing within a page needs no declaration.
fn without_prologue(svg: &str) -> &str {
    svg.find("<svg").map_or(svg, |start| &svg[start..])
}

/// A place where a wide table or figure can be moved sideways, by keyboard too.
fn scrolling(name: &str, content: Markup) -> Markup {
    html! { div.scroll role="region" tabindex="0" aria-label=(name) { (content) } }
}

/// The table of the experiment.
fn wide(table: &Table, panel: &Panel, id: &str) -> Markup {
    let caption = if panel.title.is_empty() { &table.title } else { &panel.title };
    let entries = |entries: &[Vec<Entry>]| {
        html! { @for (c, m, _, _) in table.slots() { (value(&entries[c][m])) } }
    };
    scrolling(
        caption,
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
                @if !panel.averages.is_empty() {
                    tfoot {
                        @for line in &panel.averages { tr { th scope="row" { (line.title) } (entries(&line.entries)) } }
                    }
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

/// Every grid point that was run, with its result, to be sorted and filtered.
fn long(rows: &[ResultRow], index: usize) -> Markup {
    let rows: Vec<&ResultRow> = rows.iter().filter(|row| row.state != RowState::Missing).collect();
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
        h3 { "Every point that was run" }
        p {
            label for={ "filter-" (index) } { "Show only rows with " }
            input type="search" id={ "filter-" (index) } data-filters={ "long-" (index) };
            output.count for={ "filter-" (index) } {}
        }
        (scrolling("Every point that was run", html! {
            table.sortable id={ "long-" (index) } {
                caption {
                    "Every point of the grid that was run; rates in percent, numbers of measurements as they are, memory of the \
                     process, which cells on a GPU may share"
                }
                thead { tr {
                    @for (column, head) in heads.iter().enumerate() { th scope="col" data-column=(column) { (sorting(head)) } }
                } }
                tbody {
                    @for row in &rows {
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
            details id={ "cell-" (self.key) } {
                summary { (self.label) " " span.key { (self.key.short()) } " " (self.result()) }
                @if let CellState::Done { record, log } = &self.state {
                    (cost(&record.key, &record.provenance))
                    @if detail >= Detail::Curves { (curves(&record.trace)) }
                    @if detail == Detail::Everything && !record.trace.is_empty() { (trace(record)) }
                    @if detail >= Detail::Configurations && !record.facts.is_empty() {
                        h4 { "Facts" }
                        dl { @for (name, fact) in &record.facts { dt { (name) } dd { (shortened(&fact.to_string())) } } }
                    }
                    @if detail == Detail::Everything && !log.is_empty() { h4 { "End of the log" } pre tabindex="0" { (log.join("\n")) } }
                }
                @if let CellState::Failed(failure) = &self.state {
                    p { "Failed: " (failure.reason) }
                    @if detail == Detail::Everything && !failure.log_tail.is_empty() { pre tabindex="0" { (failure.log_tail.join("\n")) } }
                }
                @if detail >= Detail::Configurations {
                    h4 { "Configuration" }
                    pre tabindex="0" { (self.parameters) }
                }
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
        }
    }
}

/// Facts may be lists of thousands, reasons of failures whole reports.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 300;
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    format!("{} …", text.chars().take(LONGEST).collect::<String>())
}

fn cost(key: &CellKey, provenance: &Provenance) -> Markup {
    let versions = &provenance.versions;
    let megabytes = |bytes: u64| format!("{:.0} MB", bytes as f64 / 1e6);
    let of_several = match provenance.other_cells {
        0 => String::new(),
        1 => ", of its process, in which another cell was computed, too".to_owned(),
        others => format!(", of its process, in which up to {others} other cells were computed"),
    };
    html! {
        dl {
            dt { "seconds" } dd { (format!("{:.1}", provenance.seconds)) }
            dt { "peak memory" } dd { (megabytes(provenance.peak_memory_bytes)) (of_several) }
            @if let Some(bytes) = provenance.peak_gpu_memory_bytes {
                dt { "peak GPU memory" } dd { (megabytes(bytes)) (of_several) }
            }
            dt { "device" } dd { (provenance.device) ", " (provenance.threads) " threads, " (provenance.kernels) }
            @if let Some(job) = &provenance.job { dt { "job" } dd { (job) " on " (provenance.host) } }
            dt { "program" } dd { "tsbd " (versions.tsbd) " (" (versions.revision) "), Candle " (versions.candle) }
            dt { "key" } dd { code { (key) } }
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
