use std::collections::BTreeMap;

use tsbd_experiment::{Provenance, TracePoint};

use super::*;
use crate::sample::{experiment, grid, key, titles};
use crate::table;

fn trace(points: usize) -> Vec<TracePoint> {
    let point = |epoch: usize| TracePoint {
        stage: "fine-tuning".into(),
        epoch,
        metrics: BTreeMap::from([("acc".to_owned(), 0.5 + 0.001 * epoch as f64), ("loss".to_owned(), 1.0)]),
    };
    (0..points).map(point).collect()
}

fn failure(label: &str) -> Failure {
    Failure {
        format: 1,
        key: key(label, "tsbd", 0),
        reason: "the loss is <NaN>".into(),
        attempt: "1".into(),
        log_tail: vec!["last & words".into()],
        failed_unix: 0,
    }
}

fn sheet(label: &str, state: CellState) -> CellSheet {
    CellSheet { key: key(label, "tsbd", 0), label: label.into(), parameters: "kind = \"defend\"".into(), state }
}

fn page() -> Page {
    let rows = grid();
    let table = table(&rows, &experiment(), &titles()).unwrap();
    let figure = Some(Figure::Chart(table.bars().draw().unwrap()));
    let cells = vec![sheet("blended + tsbd", CellState::Failed(failure("blended")))];
    Page {
        chapters: vec![Chapter {
            command: "tsbd run x.toml".into(),
            table,
            figure,
            rows,
            cells,
            missing: vec!["badnets + ft".into()],
        }],
    }
}

#[test]
fn everything_is_on_the_page_and_nothing_comes_from_elsewhere() {
    let html = page().html();
    for text in [
        "Table 1: defenses",
        "tsbd run x.toml",
        "<strong>92.50</strong>",
        "profile smoke",
        "blended + tsbd",
        "the loss is &lt;NaN&gt;",
        "last &amp; words",
        "1 cell has not been run",
        "<li>badnets + ft</li>",
        "kind = &quot;defend&quot;",
        "<svg",
    ] {
        assert!(html.contains(text), "{text}");
    }
    for foreign in ["src=\"http", "src=\"/", "@import", "url(", "<link"] {
        assert!(!html.contains(foreign), "{foreign}");
    }
    // The only address is that of the SVG name space.
    assert_eq!(html.matches("http").count(), html.matches("http://www.w3.org/2000/svg").count());
}

#[test]
fn memory_that_cells_share_is_said_to_be_that_of_all() {
    let own =
        Provenance { peak_memory_bytes: 2_000_000_000, peak_gpu_memory_bytes: Some(500_000_000), ..Default::default() };
    let html = |provenance: &Provenance| cost(&key("badnets", "tsbd", 0), provenance).into_string();
    assert!(html(&own).contains("<dd>2000 MB</dd><dt>peak GPU memory</dt><dd>500 MB</dd>"), "{}", html(&own));
    let shared = html(&Provenance { other_cells: 3, ..own });
    assert_eq!(shared.matches("MB, of its process, in which up to 3 other cells were computed").count(), 2, "{shared}");
}

#[test]
fn the_same_results_make_the_same_page() {
    assert_eq!(page().html(), page().html());
}

#[test]
fn every_filter_has_its_table_and_every_link_its_target() {
    let html = page().html();
    let names = |attribute: &str| {
        let pattern = format!("{attribute}=\"");
        let parts = html.split(&pattern).skip(1);
        parts.map(|part| part.split('"').next().unwrap().trim_start_matches('#').to_owned()).collect::<Vec<_>>()
    };
    let ids = names(" id");
    for target in names("data-filters").into_iter().chain(names("href")).chain(names("for")) {
        assert!(ids.contains(&target), "{target} of {ids:?}");
    }
    assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), ids.len(), "an id stands twice: {ids:?}");
}

/// A page whose cells have configurations of `size` bytes each, and a log.
fn large(cells: usize, size: usize) -> Page {
    let mut page = page();
    let failed = |number: usize| {
        let label = format!("attack {number}");
        let failure = Failure { log_tail: vec!["x".repeat(1000); 3], ..failure(&label) };
        CellSheet { parameters: "y".repeat(size), ..sheet(&label, CellState::Failed(failure)) }
    };
    page.chapters[0].cells = (0..cells).map(failed).collect();
    page
}

#[test]
fn a_page_that_would_be_too_large_leaves_out_the_least_important_and_says_so() {
    let said = |page: &Page| {
        let html = page.html();
        assert!(html.len() <= LARGEST, "{} bytes", html.len());
        assert!(html.contains("Table 1: defenses"));
        let said = html.split("Left out: ").nth(1).map(|text| text.split('.').next().unwrap().to_owned());
        (said, html.contains("<svg"), html.contains("yyyy"))
    };
    assert_eq!(said(&large(100, 100)), (None, true, true));
    let logs = "logs and numbers over epochs";
    assert_eq!(said(&large(2000, 1000)), (Some(logs.to_owned()), true, true));
    // Figures stay longer than configurations and cells.
    let more = format!("{logs}, curves over epochs, configurations and facts of cells");
    assert_eq!(said(&large(2000, 4000)), (Some(more.clone()), true, false));
    assert_eq!(said(&large(25_000, 10)), (Some(format!("{more}, cells")), true, false));
}

#[test]
fn tables_that_are_too_large_themselves_leave_out_the_last_experiments() {
    let chapter = page().chapters.remove(0);
    let size = Page { chapters: vec![chapter.clone()] }.render(Detail::Tables, 1).into_string().len();
    let page = Page { chapters: vec![chapter; 3 * LARGEST / size] };
    let html = page.html();
    assert!(html.len() <= LARGEST && html.len() > LARGEST - size, "{} bytes", html.len());
    assert!(html.contains("figures, the last ") && html.contains(" experiments. The results folder"));
}

#[test]
fn a_cell_of_two_experiments_is_shown_once_and_cells_that_were_not_run_are_named() {
    let chapter = page().chapters.remove(0);
    let html = Page { chapters: vec![chapter.clone(), chapter] }.html();
    assert_eq!(html.matches("kind = &quot;defend&quot;").count(), 1);
    assert_eq!(html.matches("Shown above").count(), 1);
    assert_eq!(html.matches("1 cell has not been run").count(), 2);
}

#[test]
fn of_very_many_cells_that_were_not_run_the_first_are_named() {
    let mut page = page();
    page.chapters[0].missing = (0..1_000).map(|number| format!("cell {number}")).collect();
    let html = page.html();
    assert!(html.contains("1000 cells have not been run") && html.contains("<li>cell 199</li>"));
    assert!(!html.contains("<li>cell 200</li>") && html.contains("<li>and 800 more</li>"));
}

#[test]
fn a_picture_is_on_the_page_unless_it_alone_is_too_large() {
    let mut page = page();
    page.chapters[0].figure = Some(Figure::Picture(b"PNG".to_vec()));
    assert!(page.html().contains("src=\"data:image/png;base64,UE5H\""));
    page.chapters[0].figure = Some(Figure::Picture(vec![0; LARGEST]));
    let html = page.html();
    assert!(!html.contains("data:image") && html.contains("points of the grids, figures."));
    assert!(html.len() < LARGEST && html.contains("Table 1: defenses"));
}

#[test]
fn curves_are_drawn_of_rates_alone_and_only_where_there_are_two() {
    let html = curves(&trace(5)).into_string();
    assert!(html.contains("fine-tuning") && html.contains(">acc<") && !html.contains(">loss<"), "{html}");
    assert!(html.contains("0.0,40.0"), "an accuracy of one half is in the middle: {html}");
    assert!(!curves(&trace(1)).into_string().contains("polyline"));
}

#[test]
fn a_page_without_results_says_how_to_get_one() {
    assert!(Page { chapters: vec![] }.html().contains("No experiment has a result yet"));
}
