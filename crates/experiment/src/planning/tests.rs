mod measurements;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tsbd_attack::DatasetFacts;
use tsbd_data::{DataRoot, DatasetParameters};

use super::*;
use crate::cell::CellKey;
use crate::diagnostic::Diagnostic;
use crate::plan::{GridPoint, outstanding};
use crate::store::Store;

/// A grid on a few tiny drawn images: it needs no files and is planned in milliseconds.
const SMALL: &str = r#"
title = "A test"
profile = "smoke"
[data]
train_images = 400
test_images = 50
image_size = 8
[model]
width = 4
[grid]
attack = ["none", "badnets", "blended"]
defense = ["none", "ft", "tsbd"]
"#;

fn request(text: &str, set: &[(&str, &str)]) -> Request {
    Request {
        source: ExperimentSource::Text { name: "test.toml".into(), text: text.into() },
        profile: None,
        set: set.iter().map(|(key, value)| Setting::new(*key, *value)).collect(),
        images: ImagesFrom::Disk(DataRoot::new("/nowhere")),
    }
}

fn planned(text: &str, set: &[(&str, &str)]) -> Plan {
    plan(&request(text, set)).unwrap_or_else(|refusal| panic!("{refusal}"))
}

fn refused(text: &str, set: &[(&str, &str)]) -> Vec<Diagnostic> {
    plan(&request(text, set)).expect_err("the experiment should be refused").diagnostics
}

/// The only thing that is wrong, as: place text, key, value, reason, hint.
fn only(diagnostics: &[Diagnostic]) -> (&str, &str, Option<&str>, &str, &str) {
    let [one] = diagnostics else { panic!("{} diagnostics: {diagnostics:#?}", diagnostics.len()) };
    (one.place.text(), &one.key, one.value.as_deref(), &one.reason, &one.hint)
}

#[test]
fn a_backdoored_model_is_shared_by_its_defenses_and_parents_come_first() {
    let plan = planned(SMALL, &[]);
    // Three trained, three unlearned for TSBD, six repaired.
    assert_eq!((plan.cells.len(), plan.points.len()), (12, 9));
    assert_eq!(plan.experiment.title, "A test");
    let mut seen = Vec::new();
    for (key, cell) in &plan.cells {
        assert!(cell.parents.iter().all(|parent| seen.contains(parent)));
        assert_eq!(&cell.key(), key);
        assert_eq!(cell.kind == CellKind::Train, cell.training.is_some());
        assert_eq!(cell.kind == CellKind::Defend, cell.defense.is_some());
        seen.push(key.clone());
    }
    let point = &plan.points[0];
    assert_eq!((point.attack.as_str(), point.defense.as_str()), ("none", "none"));
    assert_eq!(plan.cells[&point.cell].kind, CellKind::Train);
}

#[test]
fn the_same_experiment_has_the_same_keys_and_a_title_changes_none() {
    let keys = |plan: Plan| plan.cells.into_keys().collect::<Vec<_>>();
    let one = keys(planned(SMALL, &[]));
    assert_eq!(one, keys(planned(&SMALL.replace("A test", "Another"), &[])));
    assert_ne!(one, keys(planned(SMALL, &[("attack.target_class", "1")])));
}

#[test]
fn a_plan_tells_what_was_set_as_far_as_results_depend_on_it() {
    let set = [
        ("training.epochs", "5"),
        ("seeds", "[0, 1]"),
        ("attack.poisoning_ratio", "0.05"),
        ("title", "another"),
        ("table.metrics", "[\"acc\"]"),
        ("attack.poisoning_ratio", "0.01"),
    ];
    let told = planned(SMALL, &set).experiment.settings;
    assert_eq!(told, [Setting::new("training.epochs", "5"), Setting::new("attack.poisoning_ratio", "0.01")]);
    assert!(planned(SMALL, &[]).experiment.settings.is_empty());
}

#[test]
fn what_rounds_nothing_is_what_every_cell_does() {
    let key = |precision| planned(SMALL, &[("training.precision", precision)]).cells[0].key();
    let usual = planned(SMALL, &[]).cells[0].key();
    assert_eq!(key("f32"), usual);
    assert_ne!(key("bf16"), usual);
    assert_ne!(key("bf16"), key("tf32"));
}

#[test]
fn what_a_defense_rounds_is_in_its_key_and_in_no_other() {
    let text = SMALL.replace("\"tsbd\"]", "\"tsbd\", \"clp\"]");
    let keys = |settings: &[(&str, &str)]| {
        let cells = planned(&text, settings).cells.into_iter();
        cells.map(|(key, cell)| ((cell.label(), cell.kind), key)).collect::<BTreeMap<_, _>>()
    };
    let usual = keys(&[]);
    assert_eq!(keys(&[("defense.precision", "f32")]), usual);
    let changed = |settings: &[(&str, &str)]| {
        let keys = keys(settings);
        let changed = usual.iter().filter(|(cell, key)| keys[cell] != **key);
        changed.map(|((label, _), _)| label.clone()).collect::<Vec<_>>()
    };
    // CLP trains nothing, and an unlearning is f32.
    let tuned = changed(&[("defense.precision", "tf32")]);
    assert!(tuned.iter().all(|label| label.ends_with(" + ft") || label.ends_with(" + tsbd")), "{tuned:?}");
    assert_eq!(tuned.len(), 2 * usual.keys().filter(|(label, _)| label.ends_with(" + ft")).count());
    assert!(changed(&[("defenses.ft.precision", "bf16")]).iter().all(|label| label.ends_with(" + ft")));
    assert!(changed(&[("defenses.clp.precision", "bf16")]).is_empty());
    assert_ne!(keys(&[("defense.precision", "tf32")]), keys(&[("defense.precision", "bf16")]));
}

#[test]
fn set_comes_before_the_file_and_the_file_before_the_profile() {
    let plan = planned(SMALL, &[("model.width", "6"), ("training.epochs", "2")]);
    let cell = &plan.cells[0];
    assert_eq!((cell.model.as_ref().unwrap().width, cell.dataset.image_size), (6, Some(8)));
    let training = cell.training.as_ref().unwrap();
    // Batch size: from the profile alone. The cosine schedule follows the epochs that are in force.
    assert_eq!((training.epochs, training.batch_size), (2, 64));
    assert_eq!(training.schedule, crate::parameters::Schedule::Cosine { t_max: 2 });
}

#[test]
fn an_axis_of_one_defense_multiplies_that_defense_alone() {
    let text = format!("{SMALL}\"defenses.tsbd.neuron_ratio\" = [0.05, 0.15, 0.3]\n");
    let plan = planned(&text, &[]);
    // 3 attacks x (none, ft, 3 x tsbd).
    assert_eq!((plan.points.len(), plan.cells.len()), (15, 15 + 3), "an unlearned model for each attack");
    let of = |defense: &str| plan.points.iter().filter(|point| point.defense == defense).collect::<Vec<_>>();
    assert!(of("ft").iter().all(|point| point.axes.is_empty()));
    let ratios: Vec<_> = of("tsbd").iter().map(|point| point.axes["defenses.tsbd.neuron_ratio"].clone()).collect();
    assert_eq!(ratios[..3], [json!(0.05), json!(0.15), json!(0.3)]);
    for point in of("tsbd") {
        let parameters = &plan.cells[&point.cell].defense.as_ref().unwrap().parameters;
        assert_eq!(parameters["neuron_ratio"], point.axes["defenses.tsbd.neuron_ratio"]);
    }
    let dotted = planned(&format!("{SMALL}defenses.tsbd.neuron_ratio = [0.05, 0.15, 0.3]\n"), &[]);
    assert_eq!(dotted.points, plan.points);
}

#[test]
fn a_clean_model_is_trained_once_for_every_poisoning_ratio() {
    let plan = planned(&format!("{SMALL}\"attack.poisoning_ratio\" = [0.05, 0.1]\n"), &[]);
    let trained = plan.cells.values().filter(|cell| cell.kind == CellKind::Train);
    assert_eq!(trained.filter(|cell| cell.attack.name == "none").count(), 1);
    assert_eq!(plan.points.iter().filter(|point| point.attack == "badnets").count(), 6);
}

/// The only cell of a plan of this kind and attack.
fn the_cell<'a>(plan: &'a Plan, kind: CellKind, attack: &str) -> &'a Cell {
    let mut found = plan.cells.values().filter(|cell| cell.kind == kind && cell.attack.name == attack);
    let cell = found.next().unwrap_or_else(|| panic!("no {kind:?} cell of {attack}"));
    assert!(found.next().is_none(), "several {kind:?} cells of {attack}");
    cell
}

#[test]
fn an_attack_with_a_groundwork_starts_from_a_cell_of_its_own_and_that_from_the_clean_model() {
    // Without the attack `none` in the grid: the clean model is a cell all the same, and no point.
    let plan = planned(&SMALL.replace("\"none\", \"badnets\", \"blended\"", "\"lf\""), &[]);
    assert_eq!((plan.cells.len(), plan.points.len()), (6, 3));
    let clean = the_cell(&plan, CellKind::Train, "none");
    let prepare = the_cell(&plan, CellKind::Prepare, "lf");
    let train = the_cell(&plan, CellKind::Train, "lf");
    assert!(clean.parents.is_empty());
    assert_eq!((&prepare.parents, &train.parents), (&vec![clean.key()], &vec![prepare.key()]));
    assert!(plan.points.iter().all(|point| point.cell != prepare.key() && point.cell != clean.key()));
    for cell in plan.cells.values().filter(|cell| cell.kind == CellKind::Defend) {
        assert_eq!(cell.parents[..2], [train.key(), prepare.key()], "the trigger is needed to measure a repair");
    }
    let order: Vec<usize> = [clean, prepare, train].map(|cell| plan.cells.get_index_of(&cell.key()).unwrap()).to_vec();
    assert_eq!(order, [0, 1, 2]);
    assert_eq!(prepare.label(), "lf groundwork");
    assert_eq!(outstanding(&plan, &BTreeMap::new()).len(), 6);

    // The clean model is the one that the attack `none` trains.
    let with_none = planned(&SMALL.replace("\"badnets\", \"blended\"", "\"lf\""), &[]);
    assert_eq!(the_cell(&with_none, CellKind::Train, "none").key(), clean.key());
    assert_eq!(the_cell(&with_none, CellKind::Prepare, "lf").key(), prepare.key());
}

#[test]
fn a_groundwork_is_shared_by_all_points_that_it_does_not_depend_on() {
    let only_lf = SMALL.replace("\"none\", \"badnets\", \"blended\"", "\"lf\"");
    let of = |axis: &str| {
        let plan = planned(&format!("{only_lf}{axis}\n"), &[]);
        let count = |kind, attack: &str| {
            plan.cells.values().filter(|cell| cell.kind == kind && cell.attack.name == attack).count()
        };
        (count(CellKind::Train, "none"), count(CellKind::Prepare, "lf"), count(CellKind::Train, "lf"))
    };
    assert_eq!(of("\"attack.poisoning_ratio\" = [0.05, 0.1]"), (1, 1, 2));
    assert_eq!(of("\"attacks.lf.poisoning_ratio\" = [0.05, 0.1]"), (1, 1, 2));
    assert_eq!(of("\"attack.target_class\" = [0, 1]"), (1, 2, 2));
    assert_eq!(of("\"attacks.lf.amplitude\" = [0.1, 0.2]"), (1, 2, 2));
    assert_eq!(of("\"model.width\" = [4, 5]"), (2, 2, 2));
}

#[test]
fn what_a_groundwork_cannot_do_with_the_network_is_refused() {
    let text = SMALL.replace("\"none\", \"badnets\", \"blended\"", "\"trojan\"");
    let diagnostics = refused(&text, &[("attacks.trojan.neurons", "33")]);
    let (text, key, _, reason, hint) = only(&diagnostics);
    assert_eq!((text, key), ("33", "attacks.trojan.neurons"));
    assert!(reason.contains("32 inputs") && hint.contains("at most 32"), "{reason}; {hint}");
}

#[test]
fn seeds_make_cells_of_their_own() {
    let plan = planned(&SMALL.replace("title", "seeds = [0, 7]\ntitle"), &[]);
    assert_eq!(plan.points.len(), 18);
    assert_eq!(plan.cells.values().filter(|cell| cell.seed == 7).count(), 12);
}

#[test]
fn a_shared_parameter_can_be_overridden_for_one_method() {
    let plan = planned(SMALL, &[("attacks.blended.poisoning_ratio", "0.2")]);
    let ratio = |name: &str| {
        let cell = plan.cells.values().find(|cell| cell.attack.name == name).unwrap();
        cell.attack.parameters["poisoning_ratio"].clone()
    };
    assert_eq!((ratio("badnets"), ratio("blended")), (json!(0.1), json!(0.2)));
}

#[test]
fn an_unknown_key_is_refused_with_its_place_and_the_key_that_was_meant() {
    let diagnostics = refused(&format!("{SMALL}[attack]\npoisonning_ratio = 0.1\n"), &[]);
    let (text, key, _, reason, hint) = only(&diagnostics);
    assert_eq!((text, key), ("poisonning_ratio", "attack.poisonning_ratio"));
    assert_eq!((reason, hint), ("there is no such key", "did you mean `poisoning_ratio`?"));
    assert_eq!(diagnostics[0].place.line_and_column(), (14, 1));
    assert_eq!(diagnostics[0].place.source.name, "test.toml");
    for key in
        ["titel = \"x\"\n", "[data]\nimages = 1\n", "[defenses.tsbd]\nratio = 1\n", "[attacks.wannet]\nstrength = 1\n"]
    {
        let text = match key.starts_with("[data]") {
            true => SMALL.replace("[data]\n", key),
            false if key.starts_with('[') => format!("{SMALL}{key}"),
            false => format!("{key}{SMALL}"),
        };
        assert_eq!(only(&refused(&text, &[])).2, None, "{key}");
    }
}

#[test]
fn an_attack_that_controls_the_training_is_held_to_the_profiles_epochs_and_batches() {
    for (attack, set, (key, reason)) in [
        (
            "input-aware",
            ("attacks.input-aware.mask_epochs", "15"),
            ("attacks.input-aware.mask_epochs", "none of 15 epochs"),
        ),
        ("input-aware", ("data.image_size", "12"), ("data.image_size", "input-aware: the generators halve")),
        ("wanet", ("attack.poisoning_ratio", "0.015"), ("attack.poisoning_ratio", "0 images of each batch of 64")),
    ] {
        let text = SMALL.replace("\"none\", \"badnets\", \"blended\"", &format!("\"{attack}\""));
        // The profile may give the attack epochs of its own: those of the training are meant here.
        let epochs = ("attacks.input-aware.epochs", "15");
        let diagnostics = refused(&text, &[epochs, set]);
        assert!(diagnostics.iter().any(|told| told.key == key && told.reason.contains(reason)), "{diagnostics:?}");
    }
}

#[test]
fn a_ratio_of_one_and_a_half_is_refused_where_it_was_written() {
    let file = refused(&format!("{SMALL}[attack]\npoisoning_ratio = 1.5\n"), &[]);
    let (text, key, value, _, hint) = only(&file);
    assert_eq!((text, key, value), ("1.5", "attack.poisoning_ratio", Some("1.5")));
    assert!(hint.contains("at most 1"), "{hint}");

    let argument = refused(SMALL, &[("attack.poisoning_ratio", "1.5")]);
    assert_eq!(only(&argument).0, "1.5");
    let source = &argument[0].place.source;
    assert_eq!((source.name.as_str(), source.text.as_str()), ("--set", "attack.poisoning_ratio=1.5"));

    for (key, value) in
        [("defense.clean_ratio", "0"), ("defenses.tsbd.neuron_ratio", "1.5"), ("attacks.blended.alpha", "-1")]
    {
        let diagnostics = refused(SMALL, &[(key, value)]);
        assert_eq!((only(&diagnostics).0, only(&diagnostics).1), (value, key));
    }
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let text = SMALL.replace("width = 4", "width = \"four\"").replace("\"ft\"", "\"fft\"");
    let diagnostics =
        refused(&text, &[("training.epochs", "0"), ("training.momentum", "1"), ("attack.target_class", "10")]);
    let mut keys: Vec<_> = diagnostics.iter().map(|diagnostic| diagnostic.key.as_str()).collect();
    keys.sort();
    // The target class is checked against the data set, which needs a basis that is right.
    assert_eq!(keys, ["grid.defense", "model.width", "training.epochs", "training.momentum"]);
    let two = refused(
        SMALL,
        &[("attack.poisoning_ratio", "0"), ("attack.labels", "backwards"), ("defense.clean_ratio", "2")],
    );
    assert_eq!(two.len(), 3, "{two:#?}");
}

#[test]
fn impossible_combinations_with_the_data_set_are_refused() {
    for (key, value, reason) in [
        ("attack.target_class", "10", "10 classes"),
        ("attack.poisoning_ratio", "0.0001", "none of the 400"),
        ("defense.clean_ratio", "0.01", "fewer than one for each class"),
        ("training.batch_size", "401", "larger than the 400 training images"),
        ("data.image_size", "4", "no use to any network"),
        ("data.train_images", "0", "out of range"),
    ] {
        let diagnostics = refused(SMALL, &[(key, value)]);
        let (text, found, _, told, hint) = only(&diagnostics);
        assert_eq!((text, found), (value, key));
        assert!(told.contains(reason) && !hint.is_empty(), "{key}: {told}");
    }
}

#[test]
fn a_missing_data_set_is_refused_with_the_folders_and_the_command_that_gets_it() {
    let diagnostics = refused(SMALL, &[("data.name", "cifar10")]);
    let (_, key, _, reason, hint) = only(&diagnostics);
    assert_eq!(key, "data.name");
    assert!(reason.contains("/nowhere/cifar-10-batches-bin"), "{reason}");
    assert!(hint.contains("tsbd data fetch cifar10") && hint.contains("--data"), "{hint}");
}

#[test]
fn unknown_names_are_refused_with_those_there_are() {
    for (key, value, hint) in [
        ("data.name", "shape", "did you mean `shapes`?"),
        ("model.name", "resnet", "there are: preact-resnet18"),
        ("grid.attack", "[\"badnet\"]", "did you mean `badnets`?"),
        ("training.schedule", "cosin", "did you mean `cosine`?"),
        ("training.precision", "bf-16", "did you mean `bf16`?"),
        ("defense.precision", "bf-16", "write one of `f32`, `tf32`, `bf16`"),
        ("profile", "quik", "did you mean `quick`?"),
        ("table.metrics", "[\"acc\", \"ars\"]", "did you mean `asr`?"),
        ("table.rows", "atack", "did you mean `attack`?"),
    ] {
        assert_eq!(only(&refused(SMALL, &[(key, value)])).4, hint, "{key}");
    }
}

#[test]
fn a_key_of_another_schedule_is_refused() {
    let diagnostics = refused(SMALL, &[("training.schedule", "constant"), ("training.t_max", "5")]);
    assert!(only(&diagnostics).3.contains("belongs to the schedule `cosine`"));
}

#[test]
fn axes_that_cannot_be_are_refused() {
    for (axis, reason) in [
        ("\"model.width\" = []", "without values"),
        ("\"model.width\" = [4, 4]", "there twice"),
        ("\"modle.width\" = [4]", "no such axis"),
        ("\"attacks.refool.alpha\" = [0.1]", "no such attack"),
        ("\"defenses.fp.step\" = [0.1]", "not in the grid"),
        ("seed = [1, 2]", "seeds are no axis"),
        ("\"model.width\" = [4, 0]", "out of range"),
        ("\"training.epoch\" = [4, 5]", "no such key"),
        ("\"attack.posioning\" = [0.01, 0.1]", "no such key"),
        ("\"attack.poisoning_rate\" = [0.01, 0.1]", "no such key"),
        ("\"attack.alpha\" = [0.1, 0.2]", "no such key"),
        ("\"attacks.badnets.poisoning_rate\" = [0.01, 0.1]", "no such key"),
        ("\"attacks.badnets.poisoning_ratio.x\" = [0.01, 0.1]", "a table where a number is expected"),
        ("\"attacks.badnets\" = [0.01, 0.1]", "where a table is expected"),
        ("\"attacks.none.poisoning_ratio\" = [0.01, 0.1]", "no such attack"),
        ("\"defense.clean_rate\" = [0.05, 0.1]", "no such key"),
        ("\"defense.neuron_ratio\" = [0.05, 0.1]", "no such key"),
        ("\"defenses.ft.epoch\" = [1, 2]", "no such key"),
        ("defenses.ft.epoch = [1, 2]", "no such key"),
        ("\"measures.coverage.rankin\" = [\"layer\", \"network\"]", "no such key"),
    ] {
        let diagnostics = refused(&format!("{SMALL}{axis}\n"), &[]);
        assert!(diagnostics.iter().any(|diagnostic| diagnostic.reason.contains(reason)), "{axis}: {diagnostics:#?}");
    }
}

#[test]
fn a_misspelled_axis_is_refused_at_its_key_with_the_key_that_was_meant() {
    for (axis, key, hint) in [
        ("attack.poisoning_rate", "attack.poisoning_rate", "did you mean `poisoning_ratio`?"),
        ("attacks.badnet.poisoning_ratio", "attacks.badnet", "did you mean `badnets`?"),
        ("defense.clean_rate", "defense.clean_rate", "did you mean `clean_ratio`?"),
        ("defenses.ft.epoch", "defenses.ft.epoch", "did you mean `epochs`?"),
    ] {
        let diagnostics = refused(&format!("{SMALL}\"{axis}\" = [1, 2]\n"), &[]);
        let (text, told, value, reason, way_out) = only(&diagnostics);
        assert_eq!((text.trim_matches('"'), told, value, way_out), (axis, key, None, hint));
        assert!(reason.starts_with("there is no such "), "{reason}");
    }
    let far = refused(&format!("{SMALL}\"attack.posioning\" = [0.01, 0.1]\n"), &[]);
    assert!(only(&far).4.contains("there are: ") && only(&far).4.contains("poisoning_ratio"), "{far:#?}");
    let set = refused(SMALL, &[("grid.\"defenses.ft.epoch\"", "[1, 2]")]);
    assert_eq!((only(&set).1, only(&set).3), ("defenses.ft.epoch", "there is no such key"));
    assert_eq!(set[0].place.source.name, "--set");
}

#[test]
fn a_key_of_the_grid_that_is_no_axis_is_answered_with_one() {
    const DOTTED: &str = "a dotted key, as `\"model.width\" = [16, 64]`";
    let refused = |axis: &str| {
        let diagnostics = refused(&format!("{SMALL}{axis} = [4]\n"), &[]);
        let (_, key, _, reason, hint) = only(&diagnostics);
        assert_eq!((key, reason), (format!("grid.{axis}").as_str(), "there is no such axis"));
        hint.to_owned()
    };
    for (axis, meant) in
        [("attacks", "attack"), ("defenses", "defense"), ("measures", "measure"), ("defence", "defense")]
    {
        assert_eq!(refused(axis), format!("did you mean `{meant}`?; any other axis is {DOTTED}"));
    }
    for section in ["data", "model", "training"] {
        assert_eq!(refused(section), format!("write {DOTTED}"));
    }
    assert!(refused("modle.width").starts_with("did you mean `model`?; "));
    assert!(refused("measure.coverage").starts_with("did you mean `measures`?; "));
}

#[test]
fn an_axis_without_quotes_names_no_method() {
    let dotted = SMALL.replace("defense = [\"none\", \"ft\", \"tsbd\"]", "defense.clean_ratio = [0.05, 0.1]");
    assert_eq!(planned(&dotted, &[]).points.len(), 3, "the defense is `none`");
    let diagnostics = refused(SMALL, &[("grid.attack.poisoning_ratio", "[0.05, 0.1]")]);
    assert_eq!((only(&diagnostics).1, only(&diagnostics).3), ("grid.attack", "a grid needs attacks"));
}

#[test]
fn a_value_of_the_wrong_type_is_refused_in_the_same_words_in_every_table() {
    for (key, value, reason, hint) in [
        ("model.width", "\"4\"", "a text where a whole number is expected", "write a whole number"),
        ("attack.poisoning_ratio", "\"0.1\"", "a text where a number is expected", "write a number"),
        ("attack.target_class", "-1", "out of range", "give a whole number of at least 0"),
        (
            "defenses.tsbd.fine_tuning_passes",
            "2.5",
            "a number where a whole number is expected",
            "write a whole number of at least 0",
        ),
        (
            "defenses.tsbd.reinitialisation",
            "3",
            "a whole number where a text in quotes is expected",
            "write one of `v1`, `v2`, `v3`",
        ),
        ("defenses.tsbd.round_changes", "1", "a whole number where true or false is expected", "write true or false"),
    ] {
        let diagnostics = refused(SMALL, &[(key, value)]);
        assert_eq!(only(&diagnostics), (value, key, Some(value), reason, hint));
    }
}

#[test]
fn text_that_is_no_toml_is_refused_with_its_line() {
    let diagnostics = refused("title = \"x\"\n[grid\nattack = [\"badnets\"]\n", &[]);
    assert!(diagnostics[0].reason.contains("no TOML"), "{diagnostics:#?}");
    assert_eq!(diagnostics[0].place.line_and_column().0, 2);
}

#[test]
fn a_missing_file_is_refused_by_its_path() {
    let source = ExperimentSource::File("experiments/tabel1.toml".into());
    let refusal = plan(&Request { source, ..request("", &[]) }).unwrap_err();
    assert!(refusal.to_string().contains("experiments/tabel1.toml"), "{refusal}");
}

#[test]
fn a_profile_beside_the_experiment_comes_before_the_one_of_the_program() {
    let folder = tempfile::tempdir().unwrap();
    fs_err::create_dir(folder.path().join("profiles")).unwrap();
    fs_err::write(folder.path().join("profiles/mine.toml"), "model.name = \"preact-resnet18\"\nmodel.width = 5\n")
        .unwrap();
    let file = folder.path().join("small.toml");
    fs_err::write(
        &file,
        SMALL.replace("\"smoke\"", "\"mine\"").replace("[data]", "[data]\nname = \"shapes\"").replace("width = 4", ""),
    )
    .unwrap();
    let request = Request { source: ExperimentSource::File(file), ..request("", &[]) };
    let found = plan(&request).unwrap_or_else(|refusal| panic!("{refusal}"));
    assert_eq!((found.experiment.name.as_str(), found.experiment.profile.as_str()), ("small", "mine"));
    assert_eq!((found.cells[0].model.as_ref().unwrap().width, found.cells[0].profile.as_str()), (5, "mine"));
    fs_err::write(folder.path().join("profiles/mine.toml"), "seeds = [1]\n[model]\nwidht = 5\n").unwrap();
    let refusal = plan(&request).unwrap_err().to_string();
    assert!(refusal.contains("mine.toml:1:1: `seeds`"), "{refusal}");
}

#[test]
fn a_table_is_planned_from_the_notes_of_a_run_without_its_images() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path());
    let known = planned(SMALL, &[]);
    store.note_images(&known.images).unwrap();
    let mut notes = store.images().unwrap();
    // What tells notes from loading: another digest, as of an image set that is no longer here.
    notes.values_mut().for_each(|identity| identity.digest = "noted".into());
    store.note_images(&notes).unwrap();
    let request = Request { images: ImagesFrom::Notes(store, DataRoot::new("/nowhere")), ..request(SMALL, &[]) };
    let noted = plan(&request).unwrap();
    assert!(noted.cells.values().all(|cell| cell.data_digest == "noted"));
    assert_eq!(noted.points.len(), known.points.len());
}

/// A request about the real images of a data set, without them: what a run would note.
fn noted(folder: &tempfile::TempDir, request: Request, dataset: &str, digest: &str, facts: DatasetFacts) -> Request {
    let store = Store::new(folder.path());
    let name = images::name(&DatasetParameters::new(dataset));
    store.note_images(&[(name, ImagesIdentity { digest: digest.into(), facts })].into()).unwrap();
    Request { images: ImagesFrom::Notes(store, DataRoot::new("/nowhere")), ..request }
}

#[test]
fn a_defense_has_what_is_published_for_its_data_set_unless_something_is_written() {
    let text =
        "profile = \"paper\"\n[grid]\nattack = [\"badnets\"]\ndefense = [\"ft\", \"fp\", \"nad\", \"nc\", \"clp\"]\n";
    let parameters = |classes: usize, size: usize, set: &[(&str, &str)]| {
        let folder = tempfile::tempdir().unwrap();
        let facts = DatasetFacts::balanced(classes, 500 * classes, 50 * classes, size);
        // Under whatever name: what counts is the number of classes.
        let request = request(text, &[&[("data.name", "cifar10")][..], set].concat());
        let plan =
            plan(&noted(&folder, request, "cifar10", "0123", facts)).unwrap_or_else(|refusal| panic!("{refusal}"));
        let repairs = plan.cells.values().filter_map(|cell| cell.defense.clone());
        repairs.map(|method| (method.name.clone(), method.parameters.clone())).collect::<BTreeMap<String, Value>>()
    };
    let tiny = parameters(200, 64, &[]);
    for defense in ["ft", "fp", "nc"] {
        assert_eq!(
            (&tiny[defense]["epochs"], &tiny[defense]["schedule"]),
            (&json!(200), &json!("plateau")),
            "{defense}"
        );
    }
    assert_eq!((&tiny["nad"]["batch_size"], &tiny["ft"]["batch_size"]), (&json!(128), &json!(256)));
    let written = [("defenses.ft.schedule", "cosine"), ("defense.batch_size", "64"), ("defenses.nc.epochs", "3")];
    let told = parameters(200, 64, &written);
    assert_eq!((&told["ft"]["schedule"], &told["ft"]["epochs"]), (&Value::Null, &json!(200)));
    assert_eq!((&told["nad"]["batch_size"], &told["nc"]["epochs"]), (&json!(64), &json!(3)));
    let cifar = parameters(10, 32, &[]);
    assert_eq!((&cifar["ft"]["epochs"], &cifar["ft"]["schedule"]), (&json!(100), &Value::Null));
    assert_eq!(cifar["nad"]["batch_size"], 256);
}

#[test]
fn what_is_written_for_all_attacks_comes_before_what_a_lower_layer_wrote_for_one() {
    let ratios = |text: &str, set: &[(&str, &str)]| {
        let folder = tempfile::tempdir().unwrap();
        let facts = DatasetFacts::balanced(10, 50_000, 10_000, 32);
        let text = format!("profile = \"quick\"\n{text}");
        let plan = plan(&noted(&folder, request(&text, set), "cifar10", "0123", facts));
        let plan = plan.unwrap_or_else(|refusal| panic!("{refusal}"));
        let ratio = |point: &GridPoint| plan.cells[&point.cell].attack.parameters["poisoning_ratio"].as_f64().unwrap();
        plan.points.iter().map(ratio).collect::<Vec<_>>()
    };
    let grid = "[grid]\nattack = [\"badnets\", \"sig\"]\ndefense = [\"none\"]\n";
    assert_eq!(ratios(grid, &[]), [0.1, 0.05], "the profile has a ratio of SIG's own");
    assert_eq!(ratios(&format!("{grid}[attack]\npoisoning_ratio = 0.02\n"), &[]), [0.02, 0.02]);
    assert_eq!(ratios(grid, &[("attack.poisoning_ratio", "0.03")]), [0.03, 0.03]);
    let own = format!("{grid}[attack]\npoisoning_ratio = 0.02\n[attacks.sig]\npoisoning_ratio = 0.04\n");
    assert_eq!(ratios(&own, &[]), [0.02, 0.04], "in one layer the single method's comes first");
    assert_eq!(ratios(&own, &[("attack.poisoning_ratio", "0.03")]), [0.03, 0.03]);
    let axis = format!("{grid}\"attack.poisoning_ratio\" = [0.01, 0.1]\n");
    assert_eq!(ratios(&axis, &[]), [0.01, 0.1, 0.01, 0.1]);
}

/// An experiment of this repository in the profile `quick`, as if CIFAR-10 were here.
fn quick(experiment: &str) -> Plan {
    let folder = tempfile::tempdir().unwrap();
    let facts = DatasetFacts::balanced(10, 50_000, 10_000, 32);
    let file = PathBuf::from(format!("{}/../../experiments/{experiment}.toml", env!("CARGO_MANIFEST_DIR")));
    let request = Request { source: ExperimentSource::File(file), profile: Some("quick".into()), ..request("", &[]) };
    let digest = "ae2370367250a8f9951e6f75b82efacc2591f2f494feb8fe9c391ea58f82bbbe";
    plan(&noted(&folder, request, "cifar10", digest, facts)).unwrap_or_else(|refusal| panic!("{refusal}"))
}

#[test]
fn the_cells_of_tables_1_3_and_4_in_the_quick_profile_never_change_by_accident() {
    // A changed literal means that a table of hours is computed anew: only for a change that is meant, such as a revision.
    for (table, cells, digest) in
        [("table1", 111, "b996308c96b7b30c"), ("table3", 23, "f8e0207407499673"), ("table4", 23, "c6f836af78133af6")]
    {
        let plan = quick(table);
        let keys: Vec<&str> = plan.cells.keys().map(CellKey::as_str).collect();
        assert_eq!(keys.len(), cells, "{table}");
        let all = blake3::hash(keys.concat().as_bytes()).to_hex();
        assert_eq!(&all[..16], digest, "{table}");
    }
}

#[test]
fn ablations_and_tables_share_the_repairs_that_they_have_in_common() {
    let repairs = |experiment: &str| {
        let plan = quick(experiment);
        let repairs = plan.cells.iter().filter(|(_, cell)| cell.kind == CellKind::Defend);
        repairs.map(|(key, _)| key.clone()).collect::<HashSet<CellKey>>()
    };
    // Of four attacks TSBD itself, and alpha = 0, which is vanilla fine-tuning; or m = 1, which is V1.
    for (ablation, table) in [("ablation-alpha", "table4"), ("ablation-weight-ratio", "table3")] {
        assert_eq!(repairs(ablation).intersection(&repairs(table)).count(), 8, "{ablation} and {table}");
    }
}

#[test]
fn figures_and_ablations_train_no_model_that_table_1_has_not_trained() {
    let learned = |plan: &Plan| {
        let cells = plan.cells.iter().filter(|(_, cell)| matches!(cell.kind, CellKind::Train | CellKind::Prepare));
        cells.map(|(key, cell)| (key.clone(), cell.clone())).collect::<Vec<(CellKey, Cell)>>()
    };
    let table1 = quick("table1");
    for experiment in [
        "fig3",
        "fig4",
        "fig8",
        "ablation-radius",
        "ablation-clean-ratio",
        "ablation-alpha",
        "ablation-neuron-ratio",
        "ablation-weight-ratio",
        "ablation-unlearning-rate",
    ] {
        let cells = learned(&quick(experiment));
        assert!(!cells.is_empty(), "{experiment}");
        for (key, cell) in cells {
            assert!(table1.cells.contains_key(&key), "{experiment}: {:?} {}", cell.kind, cell.label());
        }
    }
    // Two of the three poisoning ratios are others than the table's, whatever the attack.
    let (shared, others): (Vec<_>, Vec<_>) =
        learned(&quick("fig6")).into_iter().partition(|(key, _)| table1.cells.contains_key(key));
    let ratio = |cell: &Cell| cell.attack.parameters["poisoning_ratio"].as_f64();
    for (_, cell) in &others {
        assert_eq!(cell.kind, CellKind::Train, "{}", cell.label());
        assert_ne!(ratio(cell), ratio(the_cell(&table1, CellKind::Train, &cell.attack.name)), "{}", cell.label());
    }
    assert_eq!(others.len(), 2 * 8);
    let attacked = shared.iter().filter(|(_, cell)| cell.kind == CellKind::Train && cell.attack.name != "none");
    assert_eq!(attacked.count(), 8);
}

#[test]
fn work_is_counted_in_images_that_go_through_the_network() {
    let plan = quick("table1");
    let passes = |kind: CellKind, attack: &str, defense: &str| {
        let wanted = |cell: &&Cell| (cell.kind, &*cell.attack.name, cell.defense_name()) == (kind, attack, defense);
        plan.image_passes(plan.cells.values().find(wanted).unwrap())
    };
    // Both test sets go forward once, a third each.
    let tested = 2.0 / 3.0 * 10_000.0;
    assert_eq!(passes(CellKind::Train, "badnets", "none"), Some(10.0 * 50_000.0 + tested));
    assert_eq!(passes(CellKind::Train, "wanet", "none"), Some(20.0 * 50_000.0 + tested), "it has epochs of its own");
    assert_eq!(passes(CellKind::Prepare, "lf", "none"), None);
    assert_eq!(passes(CellKind::Unlearn, "badnets", "none"), Some(10.0 * 2_500.0));
    let of_clean = |defense| passes(CellKind::Defend, "badnets", defense).map(|passes| (passes - tested) / 2_500.0);
    let close = |found: Option<f64>, expected: f64| (found.unwrap() - expected).abs() < 1e-9;
    assert!(close(of_clean("ft"), 20.0) && close(of_clean("ft-sam"), 40.0) && close(of_clean("clp"), 0.0));
    // Two gradients and a further pass forward a step; masks without the gradients of weights.
    assert!(close(of_clean("tsbd"), (2.0 + 1.0 / 3.0) * 21.0));
    assert!(close(of_clean("rnp"), 0.2 * (20.0 + 20.0 * 2.0 / 3.0)));
    let swept = |own: Value| {
        let tsbd = (tsbd_defense::tsbd::TSBD.configure)(&tsbd_defense::DefenseCommon::default(), own).unwrap();
        tsbd.image_passes(&DatasetFacts::balanced(10, 50_000, 10_000, 32)) / 2_500.0
    };
    assert!((swept(json!({"selection": "oracle"})) - 11.0 * 49.0).abs() < 1e-9, "eleven ratios");
    assert!((swept(json!({"selection": "validation"})) - 11.0 * 49.0 * 0.8).abs() < 1e-9, "a fifth is held out");
    assert!((swept(json!({"fine_tuning": "vanilla"})) - 28.0).abs() < 1e-9);
    assert!(close(of_clean("nc"), 200.0 * 2.0 / 3.0 + 20.0) && close(of_clean("i-bau"), 3.0 * 13.0));
    assert!(close(of_clean("anp"), 160.0 * 3.0 * 256.0 * 2.0 / 3.0 / 2_500.0));
}

#[test]
fn the_experiments_of_this_repository_are_valid() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../experiments");
    let mut count = 0;
    for entry in fs_err::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|end| end != "toml") {
            continue;
        }
        // With drawn images in place of those that may not be on this machine.
        let set = [("data.name", "shapes"), ("data.train_images", "2000"), ("data.test_images", "50")];
        // WaNet poisons each batch for itself: one of a hundred images needs batches of a hundred, which this profile has not.
        let too_small = |profile: &str| profile == "smoke" && path.ends_with("fig6.toml");
        for (profile, _) in PROFILES.iter().filter(|(profile, _)| !too_small(profile)) {
            let mut request = request("", &set);
            request.source = ExperimentSource::File(path.clone());
            request.profile = Some((*profile).to_owned());
            let found = plan(&request).unwrap_or_else(|refusal| panic!("{}: {refusal}", path.display()));
            assert_eq!(outstanding(&found, &BTreeMap::new()).len(), found.cells.len());
            count += 1;
        }
    }
    assert!(count >= 2 * PROFILES.len());
}
