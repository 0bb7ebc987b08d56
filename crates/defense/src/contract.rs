//! What every defense of the registry keeps, whatever it does.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use tsbd_data::Images;
use tsbd_nn::{Model, Streams};

use crate::tiny::{self, in_context};
use crate::{CleanSubset, DEFENSES, Defense, DefenseCommon, DefenseEntry, NoObserver, Repaired};

/// The defense as it comes, but for its counts of epochs, passes, rounds and iterations: those are 2.
fn short(entry: &DefenseEntry, common: &DefenseCommon) -> Box<dyn Defense> {
    let schema = (entry.schema)();
    let fields = schema.get("properties").and_then(Value::as_object).unwrap();
    let counts = fields
        .keys()
        .filter(|field| ["epochs", "passes", "rounds", "iterations"].iter().any(|count| field.ends_with(count)));
    let own: Map<String, Value> = counts.map(|field| (field.clone(), json!(2))).collect();
    (entry.configure)(common, Value::Object(own)).unwrap()
}

fn repair(entry: &DefenseEntry, model: &Model, clean: &CleanSubset, seed: u64) -> Repaired {
    let repaired = in_context(&mut NoObserver, |context| {
        context.streams = Streams::new(seed);
        short(entry, &tiny::common(8)).repair(model, clean, context)
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
        let model = tiny::model("backdoored");
        let digest = model.state.digest().unwrap();
        let repaired = repair(entry, &model, &tiny::clean(), 0);
        assert_eq!(model.state.digest().unwrap(), digest, "{} touched its input", entry.name);
        assert_finite_and_of_the_same_network(entry, &model, &repaired.model);
        assert_eq!(repaired.facts["clean_count"], 24, "{}", entry.name);
        for change in &repaired.changed {
            let known = model.architecture.modules().iter().any(|module| module.name == change.layer);
            assert!(known, "{} changed {}, which is no module", entry.name, change.layer);
        }
    }
}

#[test]
fn a_repair_has_the_same_bits_for_the_same_seed() {
    for entry in DEFENSES {
        let bits = || {
            let repaired = repair(entry, &tiny::model("backdoored"), &tiny::clean(), 3);
            (repaired.model.state.digest().unwrap(), repaired.changed)
        };
        assert_eq!(bits(), bits(), "{}", entry.name);
    }
}

#[test]
fn a_dead_layer_and_one_clean_image_of_each_class_are_survived() {
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
        let clean = short(entry, &tiny::common(8)).clean_subset(three.clone(), 0).unwrap();
        assert_eq!(clean.len(), 3, "{}", entry.name);
        for model in [&dead, &tiny::model("backdoored")] {
            let repaired = repair(entry, model, &clean, 0);
            assert_finite_and_of_the_same_network(entry, model, &repaired.model);
        }
    }
}

#[test]
fn no_clean_image_at_all_and_fewer_than_classes_are_refused_before_anything_runs() {
    for entry in DEFENSES {
        // A hundredth of 24 images is none, a twentieth is one.
        let of = |clean_ratio| short(entry, &DefenseCommon { clean_ratio, batch_size: 8 });
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
