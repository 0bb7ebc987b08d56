use serde_json::json;
use tsbd_attack::TrainingSource;
use tsbd_data::{Images, Normalization};
use tsbd_testing::Golden;

use super::*;

/// Values computed with numpy by `tools/reference/triggers.py`.
fn golden(name: &str) -> Vec<u8> {
    Golden::read("triggers/triggers").bytes(name)
}

fn configured(poisoning: Poisoning, own: Value) -> Box<dyn Attack> {
    (SIG.configure)(&poisoning, own).unwrap()
}

/// 20 training images of four classes, 8 test images; all of them are `image`.
fn dataset(image: &[u8], size: usize) -> Arc<Dataset> {
    let split = |count: usize| {
        Images::new(image.repeat(count), (0..count as u32).map(|index| index % 4).collect(), (size, size), 4)
    };
    let names = ["a", "b", "c", "d"];
    Arc::new(Dataset::new("test", split(20), split(8), &names, Normalization::IDENTITY, true))
}

#[test]
fn triggered_images_equal_numpys_at_both_sizes() {
    for size in [32, 64] {
        for (name, own) in [("sig", json!({})), ("sig.faint", json!({"delta": 7.5, "frequency": 2.5}))] {
            let clean = dataset(&golden(&format!("image.{size}")), size);
            let attack = configured(Poisoning::default(), own);
            let test = attack.prepare(&clean, &Streams::new(0), None).unwrap().test.unwrap();
            assert!(test.image(0) == golden(&format!("{name}.{size}")), "{name} at {size}");
        }
    }
}

#[test]
fn only_images_of_the_target_class_are_poisoned_and_no_label_changes() {
    let clean = dataset(&[100; 12], 2);
    let poisoning = Poisoning { poisoning_ratio: 0.2, target_class: 3, ..Poisoning::default() };
    let poisoner = configured(poisoning, json!({"frequency": 0.5})).prepare(&clean, &Streams::new(5), None).unwrap();
    let TrainingSource::Static(train) = &poisoner.train else { panic!("not static") };
    assert_eq!(poisoner.facts.poison_per_class, [0, 0, 0, 4]);
    for index in 0..20 {
        assert_eq!(train.label(index), clean.train.label(index));
        assert_eq!(train.is_poisoned(index), train.image(index) != clean.train.image(index));
    }
    let test = poisoner.test.unwrap();
    assert_eq!(test.len(), 6, "all test images but those of the target class");
    assert!((0..6).all(|position| test.label(position) == 3 && test.original_label(position) != 3));
}

#[test]
fn a_ratio_that_the_class_cannot_supply_is_refused_with_the_largest_that_it_can() {
    let refuse = |poisoning_ratio: f64, facts: &DatasetFacts| {
        let poisoning = Poisoning { poisoning_ratio, target_class: 1, ..Poisoning::default() };
        configured(poisoning, json!({})).check(facts).unwrap_err()
    };
    // CIFAR-100: 500 images of each class.
    let facts = DatasetFacts::balanced(100, 50_000, 10_000, 32);
    let error = refuse(0.1, &facts);
    assert_eq!((error.field.as_str(), error.way_out.as_str()), ("poisoning_ratio", "give at most 0.01"));
    assert!(error.reason.contains("5000") && error.reason.contains("500"), "{error}");
    // GTSRB: 210 images of class 0; the largest ratio is found by rounding, and works.
    let mut images_per_class = vec![928; 43];
    images_per_class[1] = 210;
    let facts = DatasetFacts { images_per_class, ..DatasetFacts::balanced(43, 39_209, 12_630, 32) };
    let way_out = refuse(0.1, &facts).way_out;
    let largest: f64 = way_out.strip_prefix("give at most ").unwrap().parse().unwrap();
    let poisoning = Poisoning { poisoning_ratio: largest, target_class: 1, ..Poisoning::default() };
    assert_eq!(poisoning.poison_count(39_209), 210);
    configured(poisoning, json!({})).check(&facts).unwrap();
}

#[test]
fn labels_that_change_and_waves_that_cannot_be_shown_are_refused() {
    let facts = DatasetFacts::balanced(10, 50_000, 10_000, 32);
    let all_to_all = Poisoning { labels: tsbd_attack::LabelRule::AllToAll, ..Poisoning::default() };
    let error = configured(all_to_all, json!({})).check(&facts).unwrap_err();
    assert_eq!(error.field, "labels");
    let error = configured(Poisoning::default(), json!({"frequency": 16})).check(&facts).unwrap_err();
    assert_eq!((error.field.as_str(), error.way_out.as_str()), ("frequency", "give less than 16"));
    configured(Poisoning::default(), json!({"frequency": 15.5})).check(&facts).unwrap();
    for (field, value) in [("delta", 0.0), ("delta", 256.0), ("frequency", 0.0), ("frequency", -1.0)] {
        let error = (SIG.configure)(&Poisoning::default(), json!({field: value})).unwrap_err();
        assert_eq!(error.field, field);
    }
}

#[test]
fn parameters_are_canonical_and_configure_the_same_attack_again() {
    let expected = json!({
        "poisoning_ratio": 0.1, "target_class": 0, "labels": "all-to-one", "delta": 40.0, "frequency": 6.0,
    });
    assert_eq!(configured(Poisoning::default(), json!({})).parameters(), expected);
    assert_eq!(SIG.from_parameters(&expected).unwrap().parameters(), expected);
}

#[test]
fn the_exported_trigger_is_the_signal_on_grey() {
    let picture = configured(Poisoning::default(), json!({})).trigger_picture(4, 32, None).unwrap().unwrap();
    let (least, most) = (picture.pixels.iter().min().unwrap(), picture.pixels.iter().max().unwrap());
    assert_eq!((picture.pixels.len(), *least, *most), (4 * 32 * 3, 88, 168));
}
