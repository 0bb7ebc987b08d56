//! What every defense of the registry keeps, whatever it does.

use std::ops::ControlFlow;
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::{Map, Value, json};
use tsbd_attack::{Evaluation, ParameterError};
use tsbd_data::Images;
use tsbd_nn::{Keeper, Model, Precision, Streams};
use tsbd_tensor::Tensor;
use tsbd_testing::Shelf;

use crate::tiny::{self, in_context};
use crate::{
    CleanSubset, DEFENSES, DatasetFacts, Defense, DefenseCommon, DefenseEntry, DefenseObserver, Error, NoObserver,
    Progress, Repaired,
};

/// A defense's own parameters, as a user writes them.
type Own = Map<String, Value>;

/// The defense as it comes, but for its counts of epochs, passes, rounds and iterations: those are 2. Enough of 24 images are
/// held out, and NC finds an outlier whatever the masks are: otherwise it would do nothing.
fn short(entry: &DefenseEntry) -> Own {
    let schema = (entry.schema)();
    let fields = schema.get("properties").and_then(Value::as_object).unwrap();
    let quick = |field: &String| match field.as_str() {
        "validation_share" => Some(json!(0.5)),
        "outlier_threshold" => Some(json!(1e-9)),
        count if ["epochs", "passes", "rounds", "iterations"].iter().any(|end| count.ends_with(end)) => Some(json!(2)),
        _ => None,
    };
    fields.keys().filter_map(|field| Some((field.clone(), quick(field)?))).collect()
}

/// The words that a part of a schema allows; none where it allows numbers or lists.
fn words<'s>(part: &'s Value, schema: &'s Value) -> Vec<&'s Value> {
    if let Some(place) = part.get("$ref").and_then(Value::as_str) {
        return words(schema.pointer(place.trim_start_matches('#')).unwrap(), schema);
    }
    let several = |key: &str| part.get(key).and_then(Value::as_array).into_iter().flatten();
    let of_parts = ["oneOf", "anyOf"].into_iter().flat_map(several).flat_map(|part| words(part, schema));
    part.get("const").into_iter().chain(several("enum")).chain(of_parts).filter(|word| word.is_string()).collect()
}

/// [`short`], and the same with every other word that one of its fields takes: `selection`, `variant`, and whatever else the
/// defense leaves to choose.
fn configurations(entry: &DefenseEntry) -> Vec<Own> {
    let schema = (entry.schema)().to_value();
    let mut found = vec![short(entry)];
    for (field, part) in schema["properties"].as_object().unwrap() {
        for word in words(part, &schema) {
            let mut own = short(entry);
            own.insert(field.clone(), word.clone());
            // What is written and what is meant without writing it are one.
            let parameters = |own: &Own| configured(entry, &tiny::common(8), own).parameters();
            if found.iter().all(|other| parameters(other) != parameters(&own)) {
                found.push(own);
            }
        }
    }
    found
}

#[test]
fn the_contract_walks_every_word_of_every_choice() {
    let walked = |entry: &DefenseEntry, field: &str| {
        let values = configurations(entry).into_iter().filter_map(|own| own.get(field).cloned());
        values.map(|value| value.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    // Beside what they come with.
    let (anp, tsbd) = (&crate::anp::ANP, &crate::tsbd::TSBD);
    assert_eq!(walked(anp, "selection"), ["fixed", "oracle"]);
    assert_eq!(walked(anp, "variant"), ["paper"]);
    assert_eq!(walked(tsbd, "selection"), ["validation", "oracle"]);
    assert_eq!(walked(tsbd, "reinitialisation"), ["v1", "v2"]);
    assert_eq!(walked(tsbd, "fine_tuning"), ["vanilla", "none"]);
    assert_eq!(walked(tsbd, "gradient_norm"), ["global"]);
    assert_eq!(walked(&crate::fp::FP, "order"), ["nwc"]);
}

fn configured(entry: &DefenseEntry, common: &DefenseCommon, own: &Own) -> Box<dyn Defense> {
    let configured = (entry.configure)(common, Value::Object(own.clone()));
    configured.unwrap_or_else(|error| panic!("{} {own:?}: {error}", entry.name))
}

/// All images of a training set in batches of 8, with the parameters `own` and with whatever its check of that set suggests
/// where it refuses them.
fn as_suggested(entry: &DefenseEntry, mut own: Own, dataset: &DatasetFacts) -> Box<dyn Defense> {
    loop {
        let defense = configured(entry, &tiny::common(8), &own);
        let Err(error) = defense.check(tiny::architecture().as_ref(), dataset) else { return defense };
        let Some((field, value)) = suggested(&error) else { panic!("{}, suggests no value: {error}", entry.name) };
        let before = own.insert(field, value.clone());
        assert_ne!(before, Some(value), "{}, as suggested: {error}", entry.name);
    }
}

/// What a way out says to write: `` `field = value` ``, or `give at least VALUE` for the field that was refused.
fn suggested(error: &ParameterError) -> Option<(String, Value)> {
    let ParameterError { field, way_out, .. } = error;
    let mut quoted = way_out.split('`').skip(1).step_by(2);
    let (field, value) = match quoted.find_map(|quoted| quoted.split_once(" = ")) {
        Some(setting) => setting,
        None => (field.as_str(), way_out.strip_prefix("give at least ")?.split([',', ' ']).next()?),
    };
    Some((field.to_owned(), serde_json::from_str(value).ok()?))
}

#[test]
fn what_a_way_out_suggests_is_read_off_it() {
    let of = |way_out: &str| suggested(&ParameterError::new("share", 0.1, "too few", way_out));
    let setting = "give a greater share, a greater `clean_ratio`, or `selection = \"oracle\"`";
    assert_eq!(of(setting), Some(("selection".to_owned(), json!("oracle"))));
    assert_eq!(of("give at least 0.5, or a greater `clean_ratio`"), Some(("share".to_owned(), json!(0.5))));
    assert_eq!(of("give at least 1"), Some(("share".to_owned(), json!(1))));
    assert_eq!(of("use another defense"), None);
}

fn repair(entry: &DefenseEntry, defense: &dyn Defense, model: &Model, clean: &CleanSubset, seed: u64) -> Repaired {
    let repaired = in_context(&mut NoObserver, |context| {
        context.streams = Streams::new(seed);
        context.evaluate = &rates;
        defense.repair(model, clean, context)
    });
    repaired.unwrap_or_else(|error| panic!("{}: {error}", entry.name))
}

fn assert_finite_and_of_the_same_network(entry: &DefenseEntry, before: &Model, after: &Model) {
    assert!(Arc::ptr_eq(&before.architecture, &after.architecture), "{}", entry.name);
    let shapes = |model: &Model| {
        let shape = |(name, entry): (&str, &tsbd_nn::Entry)| (name.to_owned(), entry.tensor.dims().to_vec());
        model.state.entries().map(shape).collect::<Vec<_>>()
    };
    assert_eq!(shapes(before), shapes(after), "{}", entry.name);
    for (name, tensor) in after.state.parameters().chain(after.state.buffers()) {
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(values.iter().all(|value| value.is_finite()), "{}: {name} is not finite", entry.name);
    }
}

#[test]
fn a_repair_leaves_a_finite_model_of_the_same_network_and_does_not_touch_its_input() {
    for entry in DEFENSES {
        for own in configurations(entry) {
            let model = tiny::model("backdoored");
            let digest = model.state.digest().unwrap();
            let defense = configured(entry, &tiny::common(8), &own);
            defense.check(model.architecture.as_ref(), &tiny::facts()).unwrap();
            let repaired = repair(entry, defense.as_ref(), &model, &tiny::clean(), 0);
            assert_eq!(model.state.digest().unwrap(), digest, "{} {own:?} touched its input", entry.name);
            assert_finite_and_of_the_same_network(entry, &model, &repaired.model);
            let zeros = repaired.zeroed().map_or(0, |vector| vector.values().filter(|zeroed| *zeroed > 0.0).count());
            assert_eq!(zeros, repaired.changed.len(), "{} {own:?}", entry.name);
            for change in &repaired.changed {
                let known = model.architecture.modules().iter().any(|module| module.name == change.layer);
                assert!(known, "{} {own:?} changed {}, which is no module", entry.name, change.layer);
            }
            // It found an outlier, and did not leave the model as it was.
            if entry.name == "nc" {
                assert_eq!(repaired.facts["fine_tuned"], json!(true), "{own:?}");
            }
        }
    }
}

#[test]
fn a_repair_has_the_same_bits_for_the_same_seed() {
    for entry in DEFENSES {
        for own in configurations(entry) {
            let bits = || {
                let defense = configured(entry, &tiny::common(8), &own);
                let repaired = repair(entry, defense.as_ref(), &tiny::model("backdoored"), &tiny::clean(), 3);
                (repaired.model.state.digest().unwrap(), repaired.changed)
            };
            assert_eq!(bits(), bits(), "{} {own:?}", entry.name);
        }
    }
}

#[test]
fn precision_is_in_the_key_of_what_trains_and_changes_nothing_where_it_is_not() {
    for entry in DEFENSES {
        let mut changes = false;
        for own in configurations(entry) {
            let of = |precision| {
                let common = DefenseCommon { precision, ..tiny::common(8) };
                let defense = configured(entry, &common, &own);
                let repaired = repair(entry, defense.as_ref(), &tiny::model("backdoored"), &tiny::clean(), 0);
                (defense.parameters(), (repaired.model.state.digest().unwrap(), repaired.trace))
            };
            let (full, usual) = of(Precision::F32);
            let (rounded, found) = of(Precision::Bf16);
            assert!(full.get("precision").is_none(), "{} {own:?}: the key of before", entry.name);
            let trains = !["clp", "i-bau"].contains(&entry.name) && own.get("fine_tuning") != Some(&json!("none"));
            assert_eq!(rounded.get("precision"), trains.then_some(&json!("bf16")), "{} {own:?}", entry.name);
            assert!(trains || found == usual, "{} {own:?}", entry.name);
            changes |= found != usual;
        }
        assert_eq!(changes, !["clp", "i-bau"].contains(&entry.name), "{}", entry.name);
    }
}

#[test]
fn a_dead_layer_and_one_clean_image_of_each_class_are_survived_or_refused_with_a_way_that_is_survived() {
    // Weights and running variances of 0: nothing passes the batch norm but its bias.
    let mut dead = tiny::model("backdoored");
    for name in ["conv1.weight", "bn1.running_mean", "bn1.running_var", "bn1.weight"] {
        let zeros = dead.state.get(name).unwrap().zeros_like().unwrap();
        dead.state.set(name, &zeros).unwrap();
    }
    let images = tiny::images();
    let first = |class| (0..24).find(|index| images.labels()[*index] == class).unwrap();
    let pixels = (0..3).flat_map(|class| tsbd_data::ImageSource::image(images.as_ref(), first(class)).to_vec());
    let three = Arc::new(Images::new(pixels.collect(), vec![0, 1, 2], (8, 8), 3));
    for entry in DEFENSES {
        for own in configurations(entry) {
            // Nothing is repaired that was not checked before.
            let defense = as_suggested(entry, own, &DatasetFacts::balanced(3, 3, 24, 8));
            let clean = defense.clean_subset(three.clone(), 0).unwrap();
            assert_eq!(clean.len(), 3, "{}", entry.name);
            for model in [&dead, &tiny::model("backdoored")] {
                let repaired = repair(entry, defense.as_ref(), model, &clean, 0);
                assert_finite_and_of_the_same_network(entry, model, &repaired.model);
            }
        }
    }
}

#[test]
fn no_clean_image_at_all_and_fewer_than_classes_are_refused_before_anything_runs() {
    for entry in DEFENSES {
        // A hundredth of 24 images is none, a twentieth is one.
        let of = |clean_ratio| configured(entry, &DefenseCommon { clean_ratio, ..tiny::common(8) }, &short(entry));
        for (defense, train) in
            [(of(0.01), tiny::images()), (of(1.0), Arc::new(Images::new(vec![], vec![], (8, 8), 3)))]
        {
            assert_eq!(defense.clean_subset(train, 0).unwrap_err().field, "clean_ratio", "{}", entry.name);
        }
        for clean_ratio in [0.01, 0.05] {
            let error = of(clean_ratio).check(tiny::architecture().as_ref(), &tiny::facts()).unwrap_err();
            assert_eq!(error.field, "clean_ratio", "{}", entry.name);
        }
    }
}

/// Keeps the stages of a repair in files and kills the repair in the step with a certain number, counted over all stages.
struct Killer<'s> {
    shelf: &'s mut Shelf,
    steps: usize,
    /// Steps of the stages that change a network.
    of_training: usize,
    killed_at: usize,
}

impl Killer<'_> {
    fn new(shelf: &mut Shelf, killed_at: usize) -> Killer<'_> {
        Killer { shelf, steps: 0, of_training: 0, killed_at }
    }
}

impl Keeper for Killer<'_> {
    fn keep(&mut self, stage: &str, run: &str, state: &IndexMap<String, Tensor>) -> tsbd_nn::Result<()> {
        self.shelf.keep(stage, run, state)
    }

    fn kept(&mut self, stage: &str, run: &str) -> Option<IndexMap<String, Tensor>> {
        self.shelf.kept(stage, run)
    }
}

impl DefenseObserver for Killer<'_> {
    fn progress(&mut self, progress: &Progress) -> ControlFlow<()> {
        self.steps += 1;
        // A candidate of the stage `pruning` is measured at most, and done anew.
        self.of_training += usize::from(progress.stage != "pruning");
        if self.steps == self.killed_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// Rates that depend on the network: the smaller the weights of its second layer, the lower the success rate.
fn rates(model: &Model) -> Result<Evaluation, tsbd_attack::Error> {
    let size = |name: &str| {
        let mean = model.state.get(name).unwrap().abs().unwrap().mean_all().unwrap();
        f64::from(mean.to_scalar::<f32>().unwrap())
    };
    let asr = size("conv2.weight") + size("bn2.weight");
    Ok(Evaluation { acc: 0.9, asr: Some(asr), ..Evaluation::default() })
}

/// Kills a repair in one step after the other, and again in the first step of its second life, and compares what the third
/// one leaves with what an undisturbed one leaves. How often something was kept, and how many steps there were of stages
/// that change a network.
fn assert_survives_kills(name: &str, defense: &dyn Defense) -> [usize; 2] {
    let repair = |shelf: &mut Shelf, killed_at: usize| {
        let mut killer = Killer::new(shelf, killed_at);
        let repaired = in_context(&mut killer, |context| {
            context.evaluate = &rates;
            defense.repair(&tiny::model("backdoored"), &tiny::clean(), context)
        });
        (repaired, killer.steps, killer.of_training)
    };
    // Everything but how long it took.
    let left = |repaired: Repaired| {
        let Repaired { model, changed, trace, mut facts, scores } = repaired;
        facts.retain(|fact, _| !fact.ends_with("seconds"));
        facts.entry("unlearning").and_modify(|unlearning| unlearning["seconds"] = json!(0.0));
        (model.state.digest().unwrap(), changed, trace, facts, scores)
    };
    let (whole, steps, of_training) = repair(&mut Shelf::new(), 0);
    let whole = left(whole.unwrap());
    let mut kept = 0;
    for killed_at in 1..=steps {
        let mut shelf = Shelf::new();
        assert!(matches!(repair(&mut shelf, killed_at).0, Err(Error::Stopped { .. })), "{name}, step {killed_at}");
        let something = !shelf.is_empty();
        // Perhaps no step is left.
        let _ = repair(&mut shelf, 1);
        let (resumed, again, _) = repair(&mut shelf, 0);
        assert!(left(resumed.unwrap()) == whole, "{name}: another result after step {killed_at} of {steps}");
        assert_eq!(again < steps, something, "{name}: {again} of {steps} steps after step {killed_at}");
        kept += usize::from(something);
    }
    [kept, of_training]
}

#[test]
fn a_repair_that_is_killed_in_any_step_goes_on_from_what_it_kept_and_ends_with_the_same_bits() {
    for entry in DEFENSES {
        let counts = configurations(entry).into_iter().map(|own| {
            let defense = configured(entry, &tiny::common(8), &own);
            assert_survives_kills(&format!("{} {own:?}", entry.name), defense.as_ref())
        });
        let [kept, of_training] = counts.fold([0, 0], |[kept, steps], [more, further]| [kept + more, steps + further]);
        // A repair that trains nothing, such as CLP's, has nothing to keep.
        assert!(kept > 0 || of_training == 0, "{} keeps none of its {of_training} steps", entry.name);
    }
}

#[test]
fn long_stages_sweeps_and_unlearnings_within_a_repair_are_kept_as_well() {
    let configured = |entry: &DefenseEntry, own| (entry.configure)(&tiny::common(16), own).unwrap();
    let sweep = json!({"selection": "oracle", "unlearning_epochs": 2, "fine_tuning_passes": 2});
    let nwc = json!({"order": "nwc", "selection": "oracle", "unlearning_epochs": 3, "epochs": 2});
    for (name, defense) in [
        ("anp", configured(&crate::anp::ANP, json!({"iterations": 120, "selection": "fixed"}))),
        ("tsbd", configured(&crate::tsbd::TSBD, sweep)),
        ("fp", configured(&crate::fp::FP, nwc)),
    ] {
        assert!(assert_survives_kills(name, defense.as_ref())[0] > 3, "{name}");
    }
}

#[test]
fn a_state_that_was_kept_for_another_network_or_in_another_precision_is_not_gone_on_from() {
    let repair = |shelf: &mut Shelf, name: &str, precision, killed_at| {
        let common = DefenseCommon { precision, ..tiny::common(8) };
        let defense = configured(&crate::ft::FT, &common, &short(&crate::ft::FT));
        let mut killer = Killer::new(shelf, killed_at);
        let model = tiny::model(name);
        let repaired = in_context(&mut killer, |context| defense.repair(&model, &tiny::clean(), context));
        (repaired.map(|repaired| repaired.model.state.digest().unwrap()), killer.steps)
    };
    for (name, precision) in [("unlearned", Precision::F32), ("backdoored", Precision::Bf16)] {
        let mut shelf = Shelf::new();
        assert!(repair(&mut shelf, "backdoored", Precision::F32, 5).0.is_err());
        let (other, steps) = repair(&mut shelf, name, precision, 0);
        assert_eq!(steps, 6, "from its beginning");
        assert_ne!(other.unwrap(), repair(&mut shelf, "backdoored", Precision::F32, 0).0.unwrap());
    }
}
