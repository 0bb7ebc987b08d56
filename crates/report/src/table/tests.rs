use super::*;
use crate::sample::{done, experiment, failed, grid, missing, titles};

fn made(rows: &[ResultRow]) -> Table {
    table(rows, &experiment(), &titles()).unwrap()
}

fn entry<'a>(table: &'a Table, row: &str, column: &str, metric: &str) -> &'a Entry {
    let panel = &table.panels[0];
    let line = table.lines(panel).find(|line| line.name.as_deref() == Some(row)).unwrap();
    let (c, column) =
        table.columns.iter().enumerate().find(|(_, other)| other.name.as_deref() == Some(column)).unwrap();
    &line.entries[c][column.metrics.iter().position(|other| other.name == metric).unwrap()]
}

#[test]
fn every_cell_is_counted_once_and_failures_keep_their_reason() {
    let mut rows = grid();
    rows.push(rows[0].clone());
    let table = made(&rows);
    assert_eq!(table.count, Count { cells: 12, done: 10, missing: 1, failed: 1 });
    assert_eq!(table.failed.len(), 1);
    assert_eq!(table.failed[0].place, "Blended, TSBD, seed 0");
    assert!(table.failed[0].reason.contains("NaN"));
}

#[test]
fn missing_failed_and_undefined_are_three_things() {
    let table = made(&grid());
    assert_eq!(entry(&table, "badnets", "fp", "asr").value, Value::Missing);
    assert_eq!(entry(&table, "blended", "tsbd", "asr").value, Value::Failed);
    assert_eq!(entry(&table, "none", "ft", "asr").value, Value::Undefined);
}

#[test]
fn a_rating_that_cannot_exist_has_no_column() {
    let table = made(&grid());
    let metrics = |c: usize| table.columns[c].metrics.iter().map(|m| m.name.as_str()).collect::<Vec<_>>();
    assert_eq!(metrics(0), ["acc", "asr"], "no defense, nothing to rate");
    assert_eq!(metrics(1), ["acc", "asr", "der"]);
}

#[test]
fn the_average_leaves_the_clean_model_out_and_wants_every_attack() {
    let table = made(&grid());
    let Value::Measured { mean, .. } = entry(&table, "average", "ft", "acc").value else { panic!() };
    assert!((mean - (90.11 + 91.11) / 2.0).abs() < 1e-9);
    assert_eq!(entry(&table, "average", "fp", "acc").value, Value::Missing);
    assert_eq!(entry(&table, "average", "tsbd", "der").value, Value::Missing);
}

#[test]
fn one_attack_has_no_average() {
    let table = made(&[done("none", "ft", 0, &[("acc", 0.9)]), done("badnets", "ft", 0, &[("acc", 0.9)])]);
    assert_eq!(table.panels[0].averages, []);
}

#[test]
fn the_best_is_the_highest_accuracy_and_the_lowest_success_rate_of_the_defenses() {
    let mut rows = grid();
    let fp = rows.iter_mut().find(|row| row.state == RowState::Missing).unwrap();
    *fp = done("badnets", "fp", 0, &[("acc", 0.9), ("asr", 0.5), ("der", 0.7)]);
    let table = made(&rows);
    assert!(entry(&table, "badnets", "ft", "acc").best);
    assert!(entry(&table, "badnets", "tsbd", "asr").best);
    assert!(entry(&table, "badnets", "tsbd", "der").best);
    assert!(!entry(&table, "badnets", "none", "acc").best, "the undefended model does not compete");
    assert!(!entry(&table, "badnets", "ft", "asr").best);
}

#[test]
fn values_that_print_the_same_are_equally_good() {
    let table = made(&grid());
    assert!(entry(&table, "none", "ft", "acc").best && entry(&table, "none", "fp", "acc").best);
    let close = made(&[
        done("badnets", "ft", 0, &[("acc", 0.900_001)]),
        done("badnets", "fp", 0, &[("acc", 0.900_002)]),
        done("badnets", "tsbd", 0, &[("acc", 0.8999)]),
    ]);
    assert!(entry(&close, "badnets", "ft", "acc").best && entry(&close, "badnets", "fp", "acc").best);
    assert!(!entry(&close, "badnets", "tsbd", "acc").best);
    // Means of two seeds lie on halves: in binary 85.005 is a little less and is printed as 85.00.
    let halves = |fp: [f64; 2]| {
        let of = |defense, [first, second]: [f64; 2]| {
            [done("badnets", defense, 0, &[("acc", first)]), done("badnets", defense, 1, &[("acc", second)])]
        };
        let table = made(&[of("ft", [0.85, 0.85]), of("fp", fp)].concat());
        [entry(&table, "badnets", "ft", "acc").best, entry(&table, "badnets", "fp", "acc").best]
    };
    assert_eq!(format!("{:.2}", (0.85 + 0.8501) / 2.0 * 100.0), "85.00");
    assert_eq!(halves([0.85, 0.8501]), [true, true]);
    assert_eq!(halves([0.8501, 0.8501]), [false, true]);
}

#[test]
fn a_defense_without_rivals_is_not_the_best() {
    let alone = [done("badnets", "none", 0, &[("acc", 0.9)]), done("badnets", "ft", 0, &[("acc", 0.8)])];
    assert!(!entry(&made(&alone), "badnets", "ft", "acc").best);
    let [undefended, ft] = alone;
    let rival_missing = [undefended, ft, missing("badnets", "fp", 0)];
    assert!(!entry(&made(&rival_missing), "badnets", "ft", "acc").best);
}

#[test]
fn nothing_is_the_best_while_a_rival_is_missing_or_failed() {
    let table = made(&grid());
    for (attack, defense) in [("badnets", "ft"), ("badnets", "tsbd"), ("blended", "ft"), ("blended", "fp")] {
        for metric in ["acc", "asr", "der"] {
            assert!(!entry(&table, attack, defense, metric).best, "{attack}, {defense}, {metric}");
        }
    }
}

#[test]
fn seeds_become_mean_and_sample_deviation() {
    let table = made(&[
        done("badnets", "ft", 0, &[("acc", 0.90)]),
        done("badnets", "ft", 1, &[("acc", 0.92)]),
        done("badnets", "ft", 2, &[("acc", 0.94)]),
    ]);
    let Value::Measured { mean, deviation, seeds, of } = entry(&table, "badnets", "ft", "acc").value else { panic!() };
    assert!((mean - 92.0).abs() < 1e-9);
    // Sample standard deviation of 90, 92, 94: sqrt((4 + 0 + 4) / 2).
    assert!((deviation.unwrap() - 2.0).abs() < 1e-9);
    assert_eq!((seeds, of), (3, 3));
}

#[test]
fn a_mean_over_part_of_the_seeds_neither_wins_nor_enters_the_average() {
    let table = made(&[
        done("badnets", "ft", 0, &[("acc", 0.99)]),
        missing("badnets", "ft", 1),
        done("badnets", "fp", 0, &[("acc", 0.90)]),
        done("badnets", "fp", 1, &[("acc", 0.90)]),
        done("blended", "ft", 0, &[("acc", 0.9)]),
        done("blended", "ft", 1, &[("acc", 0.9)]),
        done("blended", "fp", 0, &[("acc", 0.8)]),
        done("blended", "fp", 1, &[("acc", 0.8)]),
        done("badnets", "tsbd", 0, &[("acc", 0.80)]),
        done("badnets", "tsbd", 1, &[("acc", 0.80)]),
    ]);
    let partial = entry(&table, "badnets", "ft", "acc");
    assert_eq!(partial.value, Value::Measured { mean: 99.0, deviation: None, seeds: 1, of: 2 });
    assert!(!partial.best);
    // What is done will not win once the other seed of its rival is.
    assert!(!entry(&table, "badnets", "fp", "acc").best && !entry(&table, "badnets", "tsbd", "acc").best);
    assert_eq!(entry(&table, "average", "ft", "acc").value, Value::Missing);
}

#[test]
fn the_deviation_of_the_average_is_that_of_the_averages_per_seed() {
    let table = made(&[
        done("badnets", "ft", 0, &[("acc", 0.90)]),
        done("badnets", "ft", 1, &[("acc", 0.80)]),
        done("blended", "ft", 0, &[("acc", 0.80)]),
        done("blended", "ft", 1, &[("acc", 0.90)]),
    ]);
    let Value::Measured { mean, deviation, .. } = entry(&table, "average", "ft", "acc").value else { panic!() };
    assert!((mean - 85.0).abs() < 1e-9);
    assert!(deviation.unwrap() < 1e-9, "both seeds average to 85");
}

#[test]
fn settings_of_a_defense_as_rows_compete_down_the_column() {
    let ratio = "defenses.tsbd.neuron_ratio";
    let mut rows = Vec::new();
    for (value, asr) in [("0.05", 0.5), ("0.15", 0.1)] {
        let mut row = done("badnets", "tsbd", 0, &[("asr", asr)]);
        row.axes.insert(ratio.into(), value.into());
        rows.push(row);
    }
    let mut experiment = experiment();
    experiment.table.rows = ratio.into();
    experiment.table.columns = "attack".into();
    let table = table(&rows, &experiment, &titles()).unwrap();
    let best: Vec<bool> = table.panels[0].lines.iter().map(|line| line.entries[0][1].best).collect();
    assert_eq!(best, [false, true]);
    assert_eq!(table.panels[0].averages, []);
}

#[test]
fn an_axis_beside_rows_and_columns_makes_panels() {
    let ratio = "attack.poisoning_ratio";
    let mut rows = Vec::new();
    for (value, asr) in [("0.1", 0.9), ("0.01", 0.3)] {
        for defense in ["none", "ft"] {
            let mut row = done("badnets", defense, 0, &[("asr", asr)]);
            row.axes.insert(ratio.into(), value.into());
            rows.push(row);
        }
    }
    let table = made(&rows);
    let choices: Vec<&str> = table.panels.iter().map(|panel| panel.choice[0].1.as_str()).collect();
    assert_eq!(choices, ["0.1", "0.01"]);
    let titles: Vec<&str> = table.panels.iter().map(|panel| panel.title.as_str()).collect();
    assert_eq!(titles, ["attack.poisoning_ratio = 0.1", "attack.poisoning_ratio = 0.01"]);
    let means: Vec<Option<f64>> =
        table.panels.iter().map(|panel| panel.lines[0].entries[0][1].value.complete()).collect();
    assert_eq!(means, [Some(90.0), Some(30.0)]);
}

#[test]
fn what_cannot_be_a_table_is_refused_with_the_way_out() {
    let refused = |change: fn(&mut Experiment, &mut Vec<ResultRow>)| {
        let (mut experiment, mut rows) = (experiment(), grid());
        change(&mut experiment, &mut rows);
        table(&rows, &experiment, &titles()).unwrap_err().to_string()
    };
    assert!(refused(|_, rows| rows.clear()).contains("grid is empty"));
    assert!(
        refused(|_, rows| rows[3].profile = "paper".into()).contains("two different profiles, `smoke` and `paper`")
    );
    assert!(
        refused(|e, _| e.table.rows = "attacks".into())
            .contains("it has attack, defense, measure, dataset, model, seed")
    );
    assert!(refused(|e, _| e.table.columns = "attack".into()).contains("give two different axes"));
    assert!(refused(|e, _| e.table.metrics.clear()).contains("metrics = [\"acc\", \"asr\", \"der\"]"));
}

#[test]
fn a_grid_that_only_failed_is_still_a_table() {
    let table = made(&[failed("badnets", "none", 0, "out of memory"), missing("badnets", "ft", 0)]);
    assert_eq!(entry(&table, "badnets", "none", "acc").value, Value::Failed);
    assert_eq!(entry(&table, "badnets", "ft", "der").value, Value::Missing);
}
