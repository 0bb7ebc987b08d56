use std::collections::BTreeMap;

use tsbd_experiment::TracePoint;

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
    let figure = Some(Figure::Chart(table.bars().unwrap().draw().unwrap()));
    let cells =
        vec![sheet("blended + tsbd", CellState::Failed(failure("blended"))), sheet("badnets + fp", CellState::Missing)];
    Page { chapters: vec![Chapter { command: "tsbd run x.toml".into(), table, figure, rows, cells }] }
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
        "has not been run",
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

#[test]
fn a_page_that_would_be_too_large_leaves_out_numbers_and_says_so() {
    let mut page = page();
    let long = vec!["x".repeat(1000); 6000];
    page.chapters[0].cells[0].state = CellState::Failed(Failure { log_tail: vec![], ..failure("blended") });
    assert!(!page.html().contains("too large"));
    // What never gets smaller is shown whole, however large.
    page.chapters[0].cells[0].state = CellState::Failed(Failure { log_tail: long, ..failure("blended") });
    assert!(page.html().contains("The page would be too large"));
}

#[test]
fn a_picture_is_on_the_page_unless_it_alone_is_too_large() {
    let mut page = page();
    page.chapters[0].figure = Some(Figure::Picture(b"PNG".to_vec()));
    assert!(page.html().contains("src=\"data:image/png;base64,UE5H\""));
    page.chapters[0].figure = Some(Figure::Picture(vec![0; LARGEST]));
    let html = page.html();
    assert!(
        !html.contains("data:image") && html.contains("figures, logs, numbers and curves over epochs are left out")
    );
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
