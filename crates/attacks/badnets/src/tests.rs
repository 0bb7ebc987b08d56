use serde_json::json;
use tsbd_data::{Images, Normalization, write_png};
use tsbd_testing::Golden;

use super::*;

/// Values computed with numpy and Pillow by `tools/reference/triggers.py`.
fn golden(name: &str) -> Vec<u8> {
    Golden::read("triggers/triggers").bytes(name)
}

fn configured(own: Value) -> Box<dyn Attack> {
    (BADNETS.configure)(&Poisoning::default(), own).unwrap()
}

/// Triggered test images of a data set whose every test image is `image`, of class 1.
fn triggered(attack: &dyn Attack, image: Vec<u8>, size: usize) -> Vec<u8> {
    let split = |count: usize| Images::new(image.repeat(count), vec![1; count], (size, size), 2);
    let clean = Arc::new(Dataset::new("test", split(10), split(1), &["a", "b"], Normalization::IDENTITY, true));
    attack.prepare(&clean, &Streams::new(0), None).unwrap().test.unwrap().image(0).to_vec()
}

#[test]
fn triggered_images_equal_numpys_and_pillows_at_both_sizes() {
    for size in [32, 64] {
        for name in ["square", "grid"] {
            let attack = configured(json!({"trigger": name}));
            let stamped = triggered(attack.as_ref(), golden(&format!("image.{size}")), size);
            assert!(stamped == golden(&format!("{name}.{size}")), "{name} at {size}");
        }
    }
}

#[test]
fn the_square_changes_nine_pixels_at_32_and_a_soft_edged_49_at_64() {
    for (size, pixels) in [(32, 9), (64, 49)] {
        let stamped = triggered(configured(json!({})).as_ref(), vec![1; size * size * 3], size);
        let changed = stamped.chunks(3).filter(|pixel| *pixel != [1, 1, 1]).count();
        assert_eq!(changed, pixels);
        assert_eq!(&stamped[size * size * 3 - 3..], [255; 3]);
    }
}

#[test]
fn a_picture_of_the_users_own_is_stamped_where_it_is_not_black() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trigger.png");
    let mut picture = vec![0; 2 * 2 * 3];
    picture[3..6].copy_from_slice(&[9, 0, 8]);
    write_png(&path, &picture, (2, 2)).unwrap();
    let attack = configured(json!({"trigger": path}));
    let stamped = triggered(attack.as_ref(), vec![100; 12], 2);
    assert_eq!(stamped, [100, 100, 100, 9, 100, 8, 100, 100, 100, 100, 100, 100]);

    let recorded = attack.parameters();
    assert_eq!(recorded["trigger_digest"].as_str().unwrap().len(), 32);
    assert_eq!(BADNETS.from_parameters(&recorded).unwrap().parameters(), recorded);

    write_png(&path, &[0; 12], (2, 2)).unwrap();
    let error = (BADNETS.configure)(&Poisoning::default(), json!({"trigger": path})).unwrap_err();
    assert!(error.reason.contains("black"), "{error}");
}

#[test]
fn parameters_are_canonical_and_configure_the_same_attack_again() {
    let attack = configured(json!({}));
    let expected = json!({"poisoning_ratio": 0.1, "target_class": 0, "labels": "all-to-one", "trigger": "square"});
    assert_eq!(attack.parameters(), expected);
    assert_eq!(BADNETS.from_parameters(&expected).unwrap().parameters(), expected);
}

#[test]
fn an_unknown_parameter_and_a_missing_picture_are_refused_by_name() {
    let refuse = |own| (BADNETS.configure)(&Poisoning::default(), own).unwrap_err();
    assert_eq!(refuse(json!({"patch": 3})).field, "patch");
    assert_eq!(refuse(json!({"trigger_digest": "0a1b"})).field, "trigger_digest");
    let error = refuse(json!({"trigger": "circle"}));
    assert_eq!(error.field, "trigger");
    assert!(error.to_string().contains("circle"), "{error}");
}
