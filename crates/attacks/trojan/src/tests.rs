use std::io::Write as _;

use serde_json::json;
use tsbd_attack::groundwork::NoObserver;
use tsbd_attack::picture::to_levels;
use tsbd_attack::{GroundworkContext, TrainingSource};
use tsbd_data::{CHANNELS, ImageSource, Images, Normalization, read_rgb, write_png};
use tsbd_tensor::Device;
use tsbd_testing::Golden;
use tsbd_testing::groundwork::{dataset, model, numbers};

use super::*;
use crate::optimisation::{Optimised, most_connected};

fn configured(own: Value) -> Box<dyn Attack> {
    (TROJAN.configure)(&Poisoning::default(), own).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(own: Value) -> ParameterError {
    (TROJAN.configure)(&Poisoning::default(), own).unwrap_err()
}

/// Runs `work` in a context with the tiny network.
fn within<T>(seed: u64, work: impl FnOnce(&mut GroundworkContext<'_>) -> T) -> T {
    let (clean, model) = (dataset(), model());
    work(&mut GroundworkContext {
        clean: &clean,
        model: Some(&model),
        streams: Streams::new(seed),
        device: Device::Cpu,
        observer: &mut NoObserver,
    })
}

/// What `steps` steps make of `mask`, `u8` `[size, size, 3]`.
fn descended(mask: &[u8], size: usize, steps: usize, own: Value) -> Optimised {
    let parameters = Parameters { steps, ..read(&own).unwrap() };
    let optimisation = Optimisation::new(&parameters, drawing::picture());
    let levels: Vec<f32> = mask.iter().map(|level| f32::from(*level) / 255.0).collect();
    let images = || Images::new(vec![0; size * size * CHANNELS], vec![0], (size, size), 4);
    let clean = Dataset::new("mask", images(), images(), &["a", "b", "c", "d"], Normalization::IDENTITY, false);
    let mut context = GroundworkContext {
        clean: &Arc::new(clean),
        model: Some(&model()),
        streams: Streams::new(0),
        device: Device::Cpu,
        observer: &mut NoObserver,
    };
    optimisation.run(&mut context, &levels, &[5, 2]).unwrap()
}

fn optimised(steps: usize, own: Value) -> Optimised {
    descended(&Golden::read("groundwork/trojan").bytes("mask"), 16, steps, own)
}

#[track_caller]
fn assert_values(found: &[Vec<f32>; 2], size: usize) {
    let expected: [[f32; 2]; 2] = serde_json::from_value(numbers()["values"][size.to_string()].clone()).unwrap();
    for (ours, theirs) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert!((ours - theirs).abs() < 1e-4, "{found:?} {expected:?}");
    }
}

#[test]
fn steps_and_the_resulting_bytes_equal_pytorchs() {
    let golden = Golden::read("groundwork/trojan");
    for steps in [1, 25] {
        let Optimised { levels, values, steps: made, .. } = optimised(steps, json!({}));
        assert_eq!(made, steps);
        assert!(to_levels(&levels) == golden.bytes(&format!("bytes.{steps}")), "bytes after {steps} steps");
        let theirs = golden.floats(&format!("levels.{steps}"));
        assert!(levels.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 1e-6), "levels after {steps} steps");
        if steps == 25 {
            assert_values(&values, 16);
        }
    }
}

#[test]
fn bytes_and_values_after_25_steps_equal_pytorchs_at_32_and_64_pixels() {
    for size in [32, 64] {
        // The mask of `patch` in the reference program.
        let inside = |row, column| {
            (7 * size / 16..14 * size / 16).contains(&row) && (8 * size / 16..13 * size / 16).contains(&column)
        };
        let places = (0..size * size * CHANNELS)
            .map(|place| (place / CHANNELS / size, place / CHANNELS % size, place % CHANNELS));
        let mask: Vec<u8> = places
            .clone()
            .map(|(row, column, channel)| match inside(row, column) {
                true => ((37 * row + 101 * column + 59 * channel) % 256) as u8,
                false => 0,
            })
            .collect();
        let Optimised { levels, values, steps, .. } = descended(&mask, size, 25, json!({}));
        assert_eq!(steps, 25);
        assert_values(&values, size);
        let made = to_levels(&levels);
        let of = |within: bool| {
            let chosen = places.clone().zip(&made).filter(move |((row, column, _), _)| inside(*row, *column) == within);
            chosen.map(|(_, level)| *level).collect::<Vec<u8>>()
        };
        assert!(of(true) == Golden::read("groundwork/trojan").bytes(&format!("patch.{size}")), "at {size}");
        assert!(of(false).iter().all(|level| *level == 0), "black stays black at {size}");
    }
}

#[test]
fn levels_stay_in_their_bounds_and_black_stays_black() {
    let mask = Golden::read("groundwork/trojan").bytes("mask");
    let bounded = optimised(40, json!({"bound": 0.05, "step_size": 0.03}));
    assert!(bounded.levels.iter().zip(&mask).any(|(level, start)| (level - f32::from(*start) / 255.0).abs() > 0.04));
    for (level, start) in bounded.levels.iter().zip(&mask) {
        assert!((0.0..=1.0).contains(level) && (level - f32::from(*start) / 255.0).abs() < 0.0501);
        assert!(*start > 0 || *level == 0.0);
    }
    assert!(bounded.costs[1] < bounded.costs[0], "{:?}", bounded.costs);
}

#[test]
fn it_ends_when_the_neurons_have_the_value_that_is_wanted() {
    let mask: Vec<f32> =
        Golden::read("groundwork/trojan").bytes("mask").iter().map(|level| f32::from(*level) / 255.0).collect();
    let parameters: Parameters = read(&json!({"target_value": optimised(1, json!({})).values[0][0]})).unwrap();
    let optimisation = Optimisation::new(&parameters, drawing::picture());
    let found = within(0, |context| optimisation.run(context, &mask, &[5])).unwrap();
    assert_eq!(found.steps, 1, "the mask itself gives the value");
    assert!(found.costs[0] < 1e-3);
}

#[test]
fn neurons_are_ordered_by_the_sums_of_their_absolute_weights() {
    let golden = Golden::read("groundwork/trojan");
    let columns = golden.shape("weight")[1];
    let rows: Vec<Vec<f32>> = golden.floats("weight").chunks(columns).map(<[f32]>::to_vec).collect();
    assert_eq!(json!(most_connected(&rows, columns)), numbers()["connected"]);
    assert_eq!(most_connected(&[vec![1.0, -3.0, 3.0]], 2), [1, 2], "of equals the first");
}

#[test]
fn a_seed_chooses_neurons_and_trigger_and_a_trained_head_needs_none() {
    let made = |seed, own| {
        let attack = configured(own);
        let material = within(seed, |context| attack.groundwork().unwrap().make(context)).unwrap();
        (material.facts["neurons"].clone(), material.picture(TRIGGER).unwrap().pixels)
    };
    let few = json!({"steps": 5});
    assert_eq!(made(0, few.clone()), made(0, few.clone()));
    let neurons: Vec<_> = (0..4).map(|seed| made(seed, few.clone()).0).collect();
    assert!(neurons.iter().any(|other| *other != neurons[0]), "{neurons:?}");
    let trained = json!({"steps": 5, "connections": "trained-head"});
    assert_eq!(made(0, trained.clone()), made(1, trained.clone()));
    let rows = model().state.filter_rows("linear.weight").unwrap();
    assert_eq!(made(0, trained).0, json!(most_connected(&rows, 2)));
}

#[test]
fn poisoned_pixels_equal_numpys_wrapped_and_saturated_at_both_sizes() {
    let golden = Golden::read("groundwork/trojan");
    for size in [32, 64] {
        for (overflow, name) in [(Overflow::Wrap, "wrapped"), (Overflow::Saturate, "saturated")] {
            let mut image = golden.bytes(&format!("image.{size}"));
            Addition::new(golden.bytes(&format!("trigger.{size}")), overflow).apply(&mut image, 0);
            assert!(image == golden.bytes(&format!("{name}.{size}")), "{name} at {size}");
        }
    }
    let mut level = [200];
    Addition::new(vec![100], Overflow::Wrap).apply(&mut level, 0);
    assert_eq!(level, [44]);
}

#[test]
fn exactly_the_drawn_images_are_poisoned_where_the_mask_is() {
    let clean = dataset();
    let poisoning = Poisoning { poisoning_ratio: 0.5, ..Poisoning::default() };
    let attack = (TROJAN.configure)(&poisoning, json!({"steps": 3})).unwrap();
    assert!(matches!(attack.prepare(&clean, &Streams::new(0), None), Err(Error::NoMaterial)));
    let material = within(0, |context| attack.groundwork().unwrap().make(context)).unwrap();
    let poisoner = attack.prepare(&clean, &Streams::new(0), Some(&material)).unwrap();
    let TrainingSource::Static(train) = &poisoner.train else { panic!("not static") };
    assert_eq!((train.poisoned().len(), poisoner.facts.poison_count), (6, Some(6)));
    let trigger = attack.trigger_picture(16, 16, Some(&material)).unwrap().unwrap();
    for index in 0..12 {
        for (place, (after, before)) in train.image(index).iter().zip(clean.train.image(index)).enumerate() {
            let added = if train.is_poisoned(index) { trigger.pixels[place] } else { 0 };
            assert_eq!(*after, before.wrapping_add(added));
        }
    }
    let mask = drawing::picture().resized(16, 16);
    assert!(trigger.pixels.iter().zip(&mask.pixels).all(|(level, mask)| *mask > 0 || *level == 0));
    assert!(trigger.pixels.iter().any(|level| *level > 150));
}

#[test]
fn a_given_mask_is_part_of_the_groundwork_and_a_black_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.png");
    let dot = |level: u8| {
        let mut pixels = vec![0; 100 * 100 * 3];
        pixels[(40 * 100 + 40) * 3] = level;
        pixels
    };
    write_png(&path, &dot(255), (100, 100)).unwrap();
    let attack = configured(json!({"mask": path}));
    let parameters = attack.parameters();
    assert_eq!(TROJAN.from_parameters(&parameters).unwrap().parameters(), parameters);
    let groundwork = attack.groundwork().unwrap().parameters();
    assert_eq!(groundwork["mask_digest"], parameters["mask_digest"]);
    let facts = |size| DatasetFacts::balanced(4, 100, 100, size);
    assert!(attack.check(&facts(64)).is_ok());
    let error = attack.check(&facts(4)).unwrap_err();
    assert!(error.field == "mask" && error.reason.contains("4x4"), "{error}");

    write_png(&path, &dot(254), (100, 100)).unwrap();
    let error = TROJAN.from_parameters(&parameters).unwrap_err();
    assert!(error.field == "mask" && error.reason.contains("not the one it was"), "{error}");
    assert_eq!(refused(json!({"mask": folder.path().join("none.png")})).field, "mask");
}

#[test]
fn numbers_out_of_range_are_refused_by_name() {
    for (field, value) in [
        ("neurons", json!(0)),
        ("steps", json!(0)),
        ("step_size", json!(0)),
        ("step_size", json!(1.5)),
        ("bound", json!(-0.1)),
        ("overflow", json!("clip")),
        ("connections", json!("head")),
        ("mask_digest", json!("0a1b")),
    ] {
        assert_eq!(refused(json!({field: value})).field, field);
    }
    let many = configured(json!({"neurons": 13}));
    let error = many.groundwork().unwrap().check(model().architecture.as_ref()).unwrap_err();
    assert_eq!((error.field.as_str(), error.way_out.as_str()), ("neurons", "give at most 12"));
}

#[test]
fn parameters_are_canonical_and_what_becomes_of_sums_is_no_part_of_the_groundwork() {
    let expected = json!({
        "poisoning_ratio": 0.1, "target_class": 0, "labels": "all-to-one", "mask": "built-in", "neurons": 2,
        "connections": "random-head", "target_value": 100.0, "steps": 1000, "step_size": 0.1, "bound": 0.3,
        "overflow": "wrap",
    });
    let attack = configured(json!({}));
    assert_eq!(attack.parameters(), expected);
    assert_eq!(TROJAN.from_parameters(&expected).unwrap().parameters(), expected);
    let mut groundwork = expected;
    for field in ["poisoning_ratio", "target_class", "labels", "overflow"] {
        groundwork.as_object_mut().unwrap().remove(field);
    }
    assert_eq!(attack.groundwork().unwrap().parameters(), groundwork);
}

/// BackdoorBench's mask is not part of this project: run with `TSBD_TRIGGERS` set to a folder that has it.
#[test]
fn the_mask_of_the_published_code_is_read_and_resized_as_it_says() {
    let Some(folder) = std::env::var_os("TSBD_TRIGGERS").map(std::path::PathBuf::from) else {
        // Past the capture of `println!`: a skipped test should be seen.
        writeln!(std::io::stderr(), "skipped: TSBD_TRIGGERS is not set to a folder with BackdoorBench's mask").unwrap();
        return;
    };
    let small = read_rgb(&folder.join("apple4.png")).unwrap().resized(32, 32);
    let places: Vec<usize> = (0..32 * 32).filter(|place| small.pixels[place * 3] > 0).collect();
    assert_eq!(places.len(), 117);
    assert!(places.iter().all(|place| (16..30).contains(&(place / 32)) && (17..29).contains(&(place % 32))));
}
