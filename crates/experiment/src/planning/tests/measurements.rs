//! Measurements in the grid: what they share with each other and with repairs, and what cannot be measured.

use super::*;

/// One attack, every measurement, TSBD and NWC-FP.
const MEASURED: &str = r#"
title = "Measurements"
profile = "smoke"
[data]
train_images = 400
test_images = 50
image_size = 8
[model]
width = 4
[measures.coverage]
methods = ["nwc", "fp"]
[grid]
attack = ["badnets"]
measure = ["nwc", "activeness", "activations", "tac", "coverage"]
"#;

/// The cell of a point with this measurement.
fn measured<'a>(plan: &'a Plan, measure: &str) -> &'a Cell {
    let point = plan.points.iter().find(|point| point.measure == measure).unwrap();
    &plan.cells[&point.cell]
}

/// The parents of a cell as their labels.
fn parents(plan: &Plan, cell: &Cell) -> Vec<String> {
    cell.parents.iter().map(|key| format!("{:?} {}", plan.cells[key].kind, plan.cells[key].label())).collect()
}

#[test]
fn measurements_share_the_unlearned_and_the_clean_models_that_they_need() {
    let plan = planned(MEASURED, &[]);
    assert_eq!(plan.points.len(), 5);
    // The backdoored and the clean model, the two unlearnings, five measurements.
    assert_eq!(plan.cells.len(), 9);
    let kinds = |kind| plan.cells.values().filter(|cell| cell.kind == kind).count();
    assert_eq!((kinds(CellKind::Train), kinds(CellKind::Unlearn), kinds(CellKind::Measure)), (2, 2, 5));
    let (model, unlearned) = ("Train badnets", "Unlearn badnets after unlearning");
    let poison = "Unlearn badnets after poison unlearning";
    assert_eq!(parents(&plan, measured(&plan, "nwc")), [model, unlearned, poison]);
    assert_eq!(parents(&plan, measured(&plan, "activeness")), [model, "Train none"]);
    assert_eq!(parents(&plan, measured(&plan, "activations")), [model, unlearned, poison, "Train none"]);
    assert_eq!(parents(&plan, measured(&plan, "tac")), [model]);
    assert_eq!(parents(&plan, measured(&plan, "coverage")), [model, unlearned]);
    let unlearnings: Vec<&Value> = measured(&plan, "nwc").parents[1..]
        .iter()
        .map(|key| &plan.cells[key].unlearning.as_ref().unwrap().parameters)
        .collect();
    assert_eq!((&unlearnings[0]["of"], &unlearnings[1]["of"]), (&json!("clean"), &json!("poison")));
    assert_eq!((&unlearnings[0]["clean_ratio"], &unlearnings[1]["stop_at"]), (&json!(0.1), &json!(0.05)));
    for (position, (key, cell)) in plan.cells.iter().enumerate() {
        assert!(cell.parents.iter().all(|parent| plan.cells.get_index_of(parent).unwrap() < position), "{key}");
    }
}

#[test]
fn a_clean_model_that_is_compared_with_learns_as_long_as_the_attacked_one() {
    let of = |attack: &str, set: &[(&str, &str)]| {
        let text = MEASURED.replace("[\"badnets\"]", &format!("[\"{attack}\"]"));
        let text = text.replace("measure = [", "measure = [\"activeness\"]\n#");
        let plan = planned(&text, &[&[("data.image_size", "16"), ("attack.poisoning_ratio", "0.2")][..], set].concat());
        let clean = the_cell(&plan, CellKind::Train, "none");
        let training = clean.training.clone().unwrap();
        assert_eq!(training.schedule, crate::parameters::Schedule::Cosine { t_max: training.epochs });
        assert!(measured(&plan, "activeness").parents.contains(&clean.key()));
        (training.epochs, clean.key())
    };
    let usual = of("badnets", &[]);
    assert_eq!(usual.0, 15);
    assert_eq!(of("wanet", &[("attacks.wanet.epochs", "40")]).0, 40);
    // In four of its epochs Input-aware trains its masks, and the model rests.
    let of_input_aware = of("input-aware", &[("attacks.input-aware.epochs", "26")]);
    assert_eq!(of_input_aware.0, 22);
    assert_eq!(of("wanet", &[("attacks.wanet.epochs", "15")]), usual, "the cell of the attack `none`");
}

#[test]
fn tsbd_fp_by_weight_changes_and_measurements_unlearn_once_when_their_numbers_agree() {
    let text = MEASURED.replace("measure = [", "defense = [\"none\", \"tsbd\", \"fp\"]\nmeasure = [\"none\"]\n#");
    // With so few images none can be held out.
    let settings = [
        ("defenses.fp.order", "nwc"),
        ("defenses.fp.selection", "oracle"),
        ("defenses.fp.unlearning_learning_rate", "1e-3"),
    ];
    let plan = planned(&text, &settings);
    let unlearned = the_cell(&plan, CellKind::Unlearn, "badnets").key();
    let repairs: Vec<&Cell> = plan.cells.values().filter(|cell| cell.kind == CellKind::Defend).collect();
    assert_eq!(repairs.len(), 2);
    assert!(repairs.iter().all(|cell| cell.parents.contains(&unlearned)));
    assert!(planned(MEASURED, &[]).cells.contains_key(&unlearned), "measurements start from the same");
    let sweep = "\"defenses.tsbd.neuron_ratio\" = [0.1, 0.2]\n\"defenses.tsbd.weight_ratio\" = [0.5, 0.7]\n\
                 \"defenses.tsbd.reinitialisation\" = [\"v1\", \"v3\"]\n\"defenses.tsbd.fine_tuning\" = [\"vanilla\", \"none\"]\n\
                 \"defenses.tsbd.radius\" = [0.05, 0.1]\n\"defenses.tsbd.alpha\" = [0.5, 0.7]\n";
    let swept = planned(&format!("{}{sweep}", text.replace(", \"fp\"", "")), &[]);
    assert_eq!(swept.points.len(), 1 + 64);
    assert_eq!(the_cell(&swept, CellKind::Unlearn, "badnets").key(), unlearned);
    // What it depends on makes another.
    let other =
        planned(&text, &[("defenses.fp.selection", "oracle"), ("defenses.tsbd.unlearning_learning_rate", "5e-3")]);
    assert!(!other.cells.contains_key(&unlearned));
}

#[test]
fn an_axis_of_the_unlearning_is_one_of_the_measurements_that_depend_on_it_and_of_no_other() {
    let axis =
        "\"defenses.tsbd.unlearning_learning_rate\" = [1e-3, 1e-4]\n\"defenses.tsbd.neuron_ratio\" = [0.1, 0.2]\n";
    let plan = planned(&format!("{MEASURED}{axis}"), &[]);
    let points = |measure: &str| plan.points.iter().filter(|point| point.measure == measure).count();
    assert_eq!(["nwc", "activeness", "activations", "tac", "coverage"].map(points), [2, 2, 2, 1, 2]);
    let axes: Vec<&String> = plan.points.iter().flat_map(|point| point.axes.keys()).collect();
    assert!(axes.iter().all(|axis| *axis == "defenses.tsbd.unlearning_learning_rate"));
}

#[test]
fn a_repaired_model_is_measured_as_the_backdoored_one_is() {
    let text = MEASURED.replace("measure = [", "defense = [\"ft\"]\nmeasure = [\"nwc\", \"tac\"]\n#");
    let plan = planned(&text, &[]);
    let (repair, unlearned) = ("Defend badnets + ft", "Unlearn badnets + ft after");
    let unlearned = [format!("{unlearned} unlearning"), format!("{unlearned} poison unlearning")];
    let nwc = parents(&plan, measured(&plan, "nwc"));
    assert_eq!((&nwc[..2], &nwc[2..]), (&[repair.to_owned(), "Train badnets".to_owned()][..], &unlearned[..]));
    assert_eq!(parents(&plan, measured(&plan, "tac")), [repair, "Train badnets"]);
    let poison = &plan.cells[&measured(&plan, "nwc").parents[3]];
    assert_eq!(parents(&plan, poison), [repair, "Train badnets"], "the trigger is needed");
}

#[test]
fn a_table_of_measurements_shows_their_numbers_unless_it_is_told_which() {
    let table = planned(MEASURED, &[]).experiment.table;
    assert_eq!((table.rows.as_str(), table.columns.as_str()), ("attack", "measure"));
    let has = |name: &str| table.metrics.iter().any(|metric| metric == name);
    assert!(
        ["pearson", "activeness_ratio", "tac_clp_max", "coverage_nwc", "coverage_fp"].map(has).iter().all(|has| *has)
    );
    assert!(!has("acc") && !has("coverage_*"));
    let told = planned(&format!("{MEASURED}[table]\nmetrics = [\"coverage_nwc_at_0.1\"]\n"), &[]);
    assert_eq!(told.experiment.table.metrics, ["coverage_nwc_at_0.1"]);
    let diagnostics = refused(&format!("{MEASURED}[table]\nmetrics = [\"pearsn\"]\n"), &[]);
    let (_, key, _, _, hint) = only(&diagnostics);
    assert_eq!((key, hint), ("table.metrics", "did you mean `pearson`?"));
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_runs() {
    let diagnostics = refused(&MEASURED.replace("[\"badnets\"]", "[\"none\"]"), &[("grid.measure", "tac")]);
    let (_, key, value, reason, hint) = only(&diagnostics);
    assert_eq!((key, value), ("grid.measure", Some("tac")));
    assert!(reason.contains("without an attack") && hint.contains("grid.attack"), "{reason}; {hint}");

    let wrong = [
        ("measures.nwc.layer", "conv9", "measures.nwc.layer"),
        ("measures.tac.images", "0", "measures.tac.images"),
        ("measures.coverage.methods", "[\"ft\"]", "measures.coverage.methods"),
        ("measures.coverage.methods", "[\"magic\"]", "measures.coverage.methods"),
        ("measures.nwc.layers", "conv1", "measures.nwc.layers"),
        ("measures.nwk.layer", "conv1", "measures.nwk"),
        ("grid.measure", "nwk", "grid.measure"),
    ];
    for (key, value, blamed) in wrong {
        let diagnostics = refused(MEASURED, &[(key, value)]);
        assert!(diagnostics.iter().any(|diagnostic| diagnostic.key == blamed), "{key}: {diagnostics:#?}");
    }
    let defended = MEASURED.replace("measure = [", "defense = [\"ft\"]\nmeasure = [\"coverage\"]\n#");
    assert!(planned(&defended, &[]).points.len() == 1, "nwc and fp are scored on whatever model");
}

#[test]
fn a_method_that_coverage_cannot_compare_is_refused_at_its_name_with_those_that_it_can() {
    let text = MEASURED.replace("[\"nwc\", \"fp\"]", "[\"nwc\", \"tsbd\", \"anpp\"]");
    let diagnostics = refused(&text, &[]);
    let [tsbd, misspelled] = &diagnostics[..] else { panic!("{diagnostics:#?}") };
    for (told, name) in [(tsbd, "\"tsbd\""), (misspelled, "\"anpp\"")] {
        let (text, key, value) = (told.place.text(), told.key.as_str(), told.value.as_deref());
        assert_eq!((text, key, value), (name, "measures.coverage.methods", Some(name)));
    }
    assert_eq!(tsbd.reason, "it orders no neurons");
    assert_eq!(tsbd.hint, "give some of fp, nwc, anp, clp, rnp");
    assert_eq!(
        (misspelled.reason.as_str(), misspelled.hint.as_str()),
        ("there is no such method", "did you mean `anp`?")
    );
}

#[test]
fn a_layer_that_a_compared_defense_does_not_score_and_a_ratio_that_selects_no_neuron_are_refused_before_anything_runs()
{
    let coverage = MEASURED.replace("measure = [", "measure = [\"coverage\"]\n#");
    let both = ("measures.coverage.methods", "[\"nwc\", \"clp\"]");
    let last = ("measures.coverage.layers", "[\"layer4.1.conv2\"]");
    let diagnostics = refused(&coverage, &[both, last]);
    let (_, key, _, reason, hint) = only(&diagnostics);
    assert_eq!((key, reason), ("measures.coverage.layers", "clp has no score for its neurons"));
    assert!(hint.contains("out of `layers`"), "{hint}");
    let half = ("measures.coverage.neuron_ratios", "[0.5]");
    planned(&coverage, &[last, half]);
    planned(&coverage, &[both, half, ("measures.coverage.layers", "[\"conv1\", \"layer4.0.conv1\"]")]);

    let none = ("measures.coverage.neuron_ratios", "[0.5, 0.0045]");
    // Of all 244 neurons it selects one, of the 212 that CLP scores none.
    let together = ("measures.coverage.ranking", "network");
    planned(&coverage, &[together, none]);
    let diagnostics = refused(&coverage, &[together, both, none]);
    let (_, key, _, reason, hint) = only(&diagnostics);
    assert_eq!((key, reason), ("measures.coverage.neuron_ratios", "selects none of the 212 neurons that are compared"));
    assert_eq!(hint, format!("give at least {}", 1.0 / 212.0));
    let diagnostics = refused(&coverage, &[none]);
    assert_eq!(only(&diagnostics).3, "selects none of the 32 neurons of the widest layer");
}
