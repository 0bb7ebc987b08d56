use std::io::Write as _;

use serde_json::json;
use tsbd_data::{Images, Normalization, read_rgb};
use tsbd_testing::Golden;

use super::*;

/// Values computed with numpy and Pillow by `tools/reference/triggers.py`.
fn golden(name: &str) -> Picture {
    let golden = Golden::read("triggers/triggers");
    let shape = golden.shape(name);
    Picture { pixels: golden.bytes(name), height: shape[0], width: shape[1] }
}

fn configured(own: Value) -> Box<dyn Attack> {
    (BLENDED.configure)(&Poisoning::default(), own).unwrap()
}

#[test]
fn blended_images_equal_numpys_and_pillows_at_both_sizes() {
    let picture = golden("picture");
    for size in [32, 64] {
        for alpha in [0.2, 0.1] {
            let mut image = golden(&format!("image.{size}")).pixels;
            Blend::new(alpha, &picture.resized(size, size).pixels).apply(&mut image, 0);
            assert!(image == golden(&format!("blended.{alpha}.{size}")).pixels, "alpha {alpha} at {size}");
        }
    }
}

#[test]
fn the_built_in_picture_equals_the_one_that_numpy_draws() {
    let drawn = configured(json!({})).trigger_picture(32, 32, None).unwrap().unwrap();
    assert_eq!(drawn, golden("drawing.32"));
}

#[test]
fn test_images_carry_the_picture_and_keep_the_image() {
    let split = |count: usize| Images::new(vec![100; count * 32 * 32 * 3], vec![1; count], (32, 32), 2);
    let clean = Arc::new(Dataset::new("test", split(10), split(1), &["a", "b"], Normalization::IDENTITY, true));
    let test = configured(json!({})).prepare(&clean, &Streams::new(0), None).unwrap().test.unwrap();
    let (darkest, brightest) = (test.image(0).iter().min().unwrap(), test.image(0).iter().max().unwrap());
    assert_eq!((*darkest, *brightest), (80, 131), "0.8 * 100 and 0.8 * 100 + 0.2 * 255");
}

#[test]
fn alpha_1_gives_the_picture_itself_and_alpha_0_is_refused_as_is_a_digest_of_no_file() {
    let picture = golden("picture").pixels;
    let mut image = vec![77; picture.len()];
    Blend::new(1.0, &picture).apply(&mut image, 0);
    // Scaling to 0..1 and back in single precision leaves some levels a little below: truncation loses a level there,
    // in the reference too.
    assert!(image.iter().zip(&picture).all(|(blended, level)| level - blended <= 1));
    for alpha in [0.0, -0.2, 1.5] {
        let error = (BLENDED.configure)(&Poisoning::default(), json!({"alpha": alpha})).unwrap_err();
        assert_eq!(error.field, "alpha");
    }
    let error = (BLENDED.configure)(&Poisoning::default(), json!({"trigger_digest": "0a1b"})).unwrap_err();
    assert_eq!(error.field, "trigger_digest");
}

#[test]
fn parameters_are_canonical_and_configure_the_same_attack_again() {
    let expected = json!({
        "poisoning_ratio": 0.1, "target_class": 0, "labels": "all-to-one", "alpha": 0.2, "trigger": "built-in",
    });
    assert_eq!(configured(json!({})).parameters(), expected);
    assert_eq!(BLENDED.from_parameters(&expected).unwrap().parameters(), expected);
}

/// BackdoorBench's own picture is not part of this project. To compare this project's JPEG decoder with Pillow's on it:
/// `python tools/reference/triggers.py hello_kitty.jpeg hello_kitty.png`, then run this test with `TSBD_HELLO_KITTY` set
/// to the path of the JPEG, the PNG beside it.
#[test]
fn a_jpeg_blends_as_pillow_decodes_it_within_two_levels() {
    let Some(jpeg) = std::env::var_os("TSBD_HELLO_KITTY").map(std::path::PathBuf::from) else {
        // Past the capture of `println!`: a skipped test should be seen.
        writeln!(std::io::stderr(), "skipped: TSBD_HELLO_KITTY is not set to the path of hello_kitty.jpeg").unwrap();
        return;
    };
    let [jpeg, png] = [jpeg.clone(), jpeg.with_extension("png")].map(|path| read_rgb(&path).unwrap());
    let blended = |picture: &Picture| {
        let mut image = golden("image.32").pixels;
        Blend::new(0.2, &picture.resized(32, 32).pixels).apply(&mut image, 0);
        image
    };
    let (ours, theirs) = (blended(&jpeg), blended(&png));
    let largest = ours.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    println!("largest difference after blending: {largest} levels");
    assert!(largest <= 2);
}
