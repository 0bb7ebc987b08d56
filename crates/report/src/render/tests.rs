//! Whole tables against `snapshots/`, which were checked by eye: every number in them stands in [`crate::sample`], and
//! every mean and deviation is that of two or three of these.

use std::io::Cursor;

use polars::prelude::*;
use tsbd_experiment::Setting;

use crate::sample::{done, experiment, grid, missing, titles};
use crate::{Emphasis, Format, Table, long, table};

fn made() -> Table {
    table(&grid(), &experiment(), &titles()).unwrap()
}

/// Two attacks, FT and FP, three seeds, of which Blended with FT lacks the last.
fn several_seeds() -> Table {
    let mut rows = Vec::new();
    for (seed, step) in [(0, 0.0), (1, 0.01), (2, 0.03)] {
        for attack in ["badnets", "blended"] {
            rows.push(done(attack, "fp", seed, &[("acc", 0.8 + step), ("asr", 0.5 - step)]));
            rows.push(match (attack, seed) {
                ("blended", 2) => missing(attack, "ft", seed),
                _ => done(attack, "ft", seed, &[("acc", 0.9 + step), ("asr", 0.9 - step)]),
            });
        }
    }
    let mut experiment = experiment();
    experiment.table.metrics = vec!["acc".into(), "asr".into()];
    table(&rows, &experiment, &titles()).unwrap()
}

fn written(table: &Table, format: Format) -> String {
    String::from_utf8(table.render(format, Emphasis::Star).unwrap()).unwrap()
}

/// Compares line by line, so that a difference is shown where it is.
fn assert_lines(actual: &str, expected: &str) {
    for (position, (actual, expected)) in actual.lines().zip(expected.lines()).enumerate() {
        assert_eq!(actual, expected, "line {}", position + 1);
    }
    assert_eq!(actual.lines().count(), expected.lines().count());
}

#[test]
fn text_marks_the_best_the_missing_and_the_failed() {
    assert_lines(&written(&made(), Format::Text), include_str!("snapshots/one_seed.txt"));
}

#[test]
fn text_of_several_seeds_has_deviations_and_counts_of_seeds() {
    assert_lines(&written(&several_seeds(), Format::Text), include_str!("snapshots/several_seeds.txt"));
}

#[test]
fn bold_text_is_the_starred_text_with_other_marks() {
    let bold = String::from_utf8(made().render(Format::Text, Emphasis::Bold).unwrap()).unwrap();
    let line = |text: &str| text.lines().find(|line| line.contains("No attack ")).unwrap().to_owned();
    assert!(line(&bold).contains(" \u{1b}[1m92.50\u{1b}[0m "), "{}", line(&bold));
    let grid = |text: &str| text.lines().filter(|line| line.starts_with('│')).collect::<Vec<_>>().join("\n");
    let starred = grid(&bold).replace("\u{1b}[1m", "").replace("\u{1b}[0m ", "*");
    assert_eq!(starred, grid(&written(&made(), Format::Text)));
    assert!(bold.contains("the best in bold") && !bold.contains('*'));
}

#[test]
fn text_for_a_narrow_terminal_has_blocks_that_fit_with_every_column_once() {
    let widest = |text: &str| {
        let of_grid = |line: &&str| line.starts_with(['┌', '│', '╞', '└']);
        text.lines().filter(of_grid).map(|line| line.chars().count()).max().unwrap()
    };
    let whole = made().text(Emphasis::Star, None);
    assert_eq!(whole, made().text(Emphasis::Star, Some(widest(&whole))));
    for (width, blocks) in [(widest(&whole) - 1, 2), (60, 3), (1, 4)] {
        let text = made().text(Emphasis::Star, Some(width));
        // A block has at least one column.
        assert!(widest(&text) <= width.max(42), "{} letters in {width}:\n{text}", widest(&text));
        assert_eq!(text.matches('┌').count(), blocks, "{text}");
        assert_eq!(text.matches("│ BadNets ").count(), blocks);
        for column in ["No defense", " FT ", " FP ", " TSBD "] {
            assert_eq!(text.matches(column).count(), 1, "{column}\n{text}");
        }
    }
}

#[test]
fn markdown_is_a_table_with_a_heading_and_notes() {
    assert_lines(&written(&made(), Format::Markdown), include_str!("snapshots/one_seed.md"));
}

#[test]
fn latex_is_a_booktabs_table() {
    assert_lines(&written(&made(), Format::Latex), include_str!("snapshots/one_seed.tex"));
}

#[test]
fn latex_of_several_seeds_has_balanced_braces_and_full_lines() {
    let text = written(&several_seeds(), Format::Latex);
    assert_eq!(text.matches('{').count(), text.matches('}').count());
    assert!(text.contains("BadNets & 81.33\\,$\\pm$\\,1.53 & \\textbf{48.67\\,$\\pm$\\,1.53} & "), "{text}");
    for line in text.lines().filter(|line| line.starts_with("    BadNets") || line.starts_with("    Average")) {
        assert_eq!(line.matches('&').count(), 4, "{line}");
    }
}

#[test]
fn csv_has_words_where_there_is_no_result() {
    assert_lines(&written(&made(), Format::Csv), include_str!("snapshots/one_seed.csv"));
}

#[test]
fn csv_of_several_seeds_has_deviations_and_counts_of_seeds() {
    let text = written(&several_seeds(), Format::Csv);
    let mut lines = text.lines().map(|line| line.split(',').skip(8).collect::<Vec<_>>().join(","));
    assert_eq!(
        lines.next().unwrap(),
        "attack,fp_acc,fp_acc_std,fp_acc_seeds,fp_asr,fp_asr_std,fp_asr_seeds,\
         ft_acc,ft_acc_std,ft_acc_seeds,ft_asr,ft_asr_std,ft_asr_seeds"
    );
    assert_eq!(lines.next().unwrap(), "badnets,81.33,1.53,3,48.67,1.53,3,91.33,1.53,3,88.67,1.53,3");
    assert_eq!(lines.next().unwrap(), "blended,81.33,1.53,3,48.67,1.53,3,90.50,0.71,2,89.50,0.71,2");
    assert_eq!(lines.next().unwrap(), "average,81.33,1.53,3,48.67,1.53,3,missing,,0,missing,,0");
}

#[test]
fn parquet_has_the_numbers_of_the_table_and_null_where_there_is_none() {
    let bytes = made().render(Format::Parquet, Emphasis::Star).unwrap();
    let frame = ParquetReader::new(Cursor::new(bytes)).finish().unwrap();
    assert_eq!(frame.shape(), (4, 20));
    let attacks = frame.column("attack").unwrap().str().unwrap();
    assert_eq!(attacks.iter().flatten().collect::<Vec<_>>(), ["none", "badnets", "blended", "average"]);
    let rounded = |name: &str| {
        let values = frame.column(name).unwrap().f64().unwrap();
        values.iter().map(|value| value.map(|value| (value * 1000.0).round() / 1000.0)).collect::<Vec<_>>()
    };
    assert_eq!(rounded("none_acc"), [Some(93.12), Some(91.23), Some(92.34), Some(91.785)]);
    assert_eq!(rounded("fp_asr"), [None, None, Some(76.54), None]);
    assert_eq!(frame.column("cells_missing").unwrap().u64().unwrap().get(0), Some(1));
    assert_eq!(frame.column("profile").unwrap().str().unwrap().get(0), Some("smoke"));
}

#[test]
fn json_says_of_every_place_what_it_is() {
    let value: serde_json::Value = serde_json::from_str(&written(&made(), Format::Json)).unwrap();
    assert_eq!(value["cells"], serde_json::json!({ "all": 12, "done": 10, "missing": 1, "failed": 1 }));
    let rows = &value["panels"][0]["rows"];
    assert_eq!(rows[1]["name"], "badnets");
    assert_eq!(rows[1]["columns"]["fp"]["asr"]["state"], "missing");
    assert_eq!(rows[2]["columns"]["tsbd"]["der"]["state"], "failed");
    assert_eq!(rows[0]["columns"]["ft"]["asr"]["state"], "undefined");
    assert_eq!(
        (&rows[0]["columns"]["ft"]["acc"]["best"], &rows[1]["columns"]["tsbd"]["asr"]["best"]),
        (&true.into(), &false.into())
    );
    assert_eq!(rows[1]["columns"]["tsbd"]["asr"]["state"], "done");
    assert_eq!(value["failures"][0]["reason"], "the loss is NaN at epoch 3, step 17");
}

#[test]
fn settings_from_the_command_line_are_told_in_every_format() {
    let mut experiment = experiment();
    experiment.settings = vec![Setting::new("attack.poisoning_ratio", "0.01"), Setting::new("training.epochs", "5")];
    let changed = table(&grid(), &experiment, &titles()).unwrap();
    let said = "profile smoke, attack.poisoning_ratio = 0.01, training.epochs = 5 · data";
    for format in [Format::Text, Format::Markdown] {
        assert!(written(&changed, format).contains(said), "{}", written(&changed, format));
        assert!(written(&made(), format).contains("profile smoke · data"));
    }
    assert!(written(&changed, Format::Latex).contains("attack.poisoning\\_ratio = 0.01"));
    let json: serde_json::Value = serde_json::from_str(&written(&changed, Format::Json)).unwrap();
    assert_eq!(json["settings"]["attack.poisoning_ratio"], "0.01");
    let csv = written(&changed, Format::Csv);
    assert!(csv.lines().all(|line| line.split(',').count() == csv.lines().next().unwrap().split(',').count()));
    assert!(csv.contains(",settings,cells,") && csv.contains(",attack.poisoning_ratio=0.01 training.epochs=5,"));
    assert!(!written(&made(), Format::Csv).contains("settings"));
}

#[test]
fn the_undefended_model_is_spoken_of_where_it_is() {
    let without: Vec<_> = several_seeds().notes("the best in bold");
    assert!(without.iter().all(|note| !note.contains("undefended")), "{without:?}");
    let with = made().notes("the best in bold");
    assert!(with[0].contains("the undefended model not competing"), "{with:?}");
}

#[test]
fn the_same_rows_give_the_same_bytes_in_every_format() {
    for format in Format::ALL {
        let bytes = || made().render(format, Emphasis::Star).unwrap();
        assert!(bytes() == bytes(), "{format}");
    }
}

#[test]
fn panels_are_named_by_what_they_hold() {
    let mut rows = Vec::new();
    for ratio in ["0.1", "0.01"] {
        let mut row = done("badnets", "ft", 0, &[("acc", 0.9)]);
        row.axes.insert("attack.poisoning_ratio".into(), ratio.into());
        rows.push(row);
    }
    let table = table(&rows, &experiment(), &titles()).unwrap();
    assert!(written(&table, Format::Text).contains("\nattack.poisoning_ratio = 0.01\n"));
    assert!(written(&table, Format::Markdown).contains("*attack.poisoning_ratio = 0.01*"));
    assert!(written(&table, Format::Latex).contains("\\emph{attack.poisoning\\_ratio = 0.01}"));
    let csv = written(&table, Format::Csv);
    assert!(csv.lines().next().unwrap().contains(",attack.poisoning_ratio,attack,ft_acc,"));
    assert!(csv.lines().nth(2).unwrap().contains(",0.01,badnets,90.00,"));
}

#[test]
fn the_long_form_fits_on_a_terminal_without_keys_and_facts() {
    let text = String::from_utf8(long(&grid()).unwrap().render(Format::Text).unwrap()).unwrap();
    assert!(text.contains("peak_memory_mb") && !text.contains("facts"));
    let line = text.lines().find(|line| line.contains("badnets ┆ tsbd")).unwrap();
    assert!(line.contains("89.56 ┆  1.23 ┆ 88.00 ┆ 98.50 ┆   12.50"), "{line}");
}
