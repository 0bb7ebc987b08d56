use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::json;
use tsbd_attack::groundwork::NoObserver;
use tsbd_attack::{GroundworkContext, GroundworkObserver, TrainingSource};
use tsbd_data::{ImageSource, Images, Normalization, write_png};
use tsbd_tensor::Device;
use tsbd_testing::Golden;
use tsbd_testing::groundwork::{dataset, model, numbers};

use super::*;
use crate::deepfool::{Network, targeted};
use crate::smoothing::smooth;

fn configured(own: Value) -> Box<dyn Attack> {
    (LF.configure)(&Poisoning::default(), own).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(own: Value) -> ParameterError {
    (LF.configure)(&Poisoning::default(), own).unwrap_err()
}

fn made(attack: &dyn Attack, clean: &Arc<Dataset>, observer: &mut dyn GroundworkObserver) -> Result<Material, Error> {
    let model = model();
    let mut context =
        GroundworkContext { clean, model: Some(&model), streams: Streams::new(0), device: Device::Cpu, observer };
    attack.groundwork().unwrap().make(&mut context)
}

/// Writes an array as `numpy.save` does.
fn save(path: &Path, descr: &str, shape: &str, data: &[u8]) {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    header.extend(std::iter::repeat_n(' ', 117 - header.len()));
    let bytes = [b"\x93NUMPY\x01\x00".as_slice(), &118u16.to_le_bytes(), header.as_bytes(), b"\n", data].concat();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn poisoned_pixels_equal_numpys_at_both_sizes() {
    let golden = Golden::read("groundwork/lf");
    for size in [32, 64] {
        let mut image = golden.bytes(&format!("image.{size}"));
        Addition::new(golden.bytes(&format!("given.{size}"))).apply(&mut image, 0);
        assert!(image == golden.bytes(&format!("poisoned.{size}")), "at {size}");
    }
}

#[test]
fn smoothing_equals_pytorchs_convolution() {
    let golden = Golden::read("groundwork/lf");
    for name in ["8x8", "32x32", "20x33"] {
        let shape = golden.shape(&format!("smoothing.{name}"));
        let ours = smooth(&golden.floats(&format!("smoothing.{name}")), (shape[0], shape[1], shape[2]));
        let theirs = golden.floats(&format!("smoothed.{name}"));
        assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 1e-7), "{name}");
    }
}

#[test]
fn targeted_deepfool_makes_pytorchs_steps() {
    let (golden, numbers, clean, model) = (Golden::read("groundwork/lf"), numbers(), dataset(), model());
    let network =
        Network { model: &model, normalization: Normalization::IDENTITY, height: 16, width: 16, device: Device::Cpu };
    for (place, case) in numbers["deepfool"].as_array().unwrap().iter().enumerate() {
        let number = |name: &str| case[name].as_u64().unwrap() as usize;
        let image: Vec<f32> =
            clean.train.image(number("image")).iter().map(|level| f32::from(*level) / 255.0).collect();
        let (before, target, most) = (number("before"), number("target"), number("most"));
        let way = targeted(&network, &image, before, target, most).unwrap().unwrap();
        assert_eq!(way.steps, number("steps"), "{case}");
        let theirs = golden.floats(&format!("deepfool.{place}"));
        let largest = theirs.iter().fold(1e-6f32, |largest, value| largest.max(value.abs()));
        let error = way.perturbation.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).max_by(f32::total_cmp).unwrap();
        assert!(error <= 2e-4 * largest, "{case}: {error} of {largest}");
        assert_eq!(targeted(&network, &image, (before + 1) % 4, target, most).unwrap(), None);
        if way.steps < most {
            let moved: Vec<f32> = image.iter().zip(&way.perturbation).map(|(level, step)| level + step).collect();
            assert_eq!(network.classes(&moved).unwrap(), [target], "{case}");
        }
    }
}

#[test]
fn gradients_are_those_of_the_levels_whatever_the_network_is_shown() {
    // A network on normalised levels is moved as far in levels as one that normalises by itself: the logits agree at
    // corresponding points, so the first step is the same up to the scale of each channel.
    let (clean, model) = (dataset(), model());
    let normalization = Normalization { mean: [0.4, 0.5, 0.6], std: [0.5, 0.25, 2.0] };
    let network = Network { model: &model, normalization, height: 16, width: 16, device: Device::Cpu };
    let image: Vec<f32> = clean.train.image(1).iter().map(|level| f32::from(*level) / 255.0).collect();
    let before = network.classes(&image).unwrap()[0];
    let target = (before + 1) % 4;
    let way = targeted(&network, &image, before, target, 1).unwrap().unwrap();
    assert_eq!(way.steps, 1);
    // DeepFool's step is right for a linear network: along it, the difference of the logits falls with this slope.
    let difference = |share: f32| {
        let moved: Vec<f32> = image.iter().zip(&way.perturbation).map(|(level, step)| level + share * step).collect();
        let entered: Vec<f32> = moved
            .iter()
            .enumerate()
            .map(|(place, level)| (level - normalization.mean[place % 3]) / normalization.std[place % 3])
            .collect();
        let images = tsbd_tensor::Tensor::from_vec(entered, (1, 16, 16, 3), &Device::Cpu).unwrap();
        let logits = model.logits(&images, tsbd_nn::Mode::Eval).unwrap().to_vec2::<f32>().unwrap();
        logits[0][before] - logits[0][target]
    };
    let (start, slope) = (difference(0.0), (difference(1e-2) - difference(0.0)) / 1e-2);
    assert!((slope / start + 1.02).abs() < 0.05, "{start} falls by {slope}");
}

#[test]
fn a_whole_search_equals_pytorchs_within_a_level() {
    let (golden, numbers, clean) = (Golden::read("groundwork/lf"), numbers(), dataset());
    let orders: Vec<Vec<usize>> = (0..3)
        .map(|pass| {
            let mut order: Vec<usize> = (0..6).collect();
            Streams::new(0).stream("lf/order", pass).shuffle(&mut order);
            order
        })
        .collect();
    assert_eq!(json!(orders), numbers["orders"], "the reference was made with other orders: change ORDERS there");
    #[derive(Default)]
    struct Rates(Vec<f64>);
    impl GroundworkObserver for Rates {
        fn round(&mut self, _: &str, round: usize, metrics: &[(&str, f64)]) {
            assert_eq!((round, metrics[0].0), (self.0.len(), "fooling_rate"));
            self.0.push(metrics[0].1);
        }
    }
    let attack = configured(json!({"search_images": 6, "passes": 3, "fooling_rate": 1.0}));
    let mut rates = Rates::default();
    let material = made(attack.as_ref(), &clean, &mut rates).unwrap();
    assert_eq!(json!(rates.0), numbers["fooling_rates"]);
    assert_eq!(material.metrics["fooling_rate"], *rates.0.last().unwrap());
    assert_eq!(material.facts["passes"], json!(3));
    let ours = material.picture(search::PATTERN).unwrap();
    assert_eq!((ours.height, ours.width, *ours.pixels.iter().max().unwrap()), (16, 16, 51));
    let theirs = golden.bytes("pattern");
    let different = ours.pixels.iter().zip(&theirs).filter(|(a, b)| a != b).count();
    assert!(ours.pixels.iter().zip(&theirs).all(|(a, b)| a.abs_diff(*b) <= 1), "more than a level");
    assert!(different <= 8, "{different} of 768 levels");

    let again = made(attack.as_ref(), &clean, &mut NoObserver).unwrap();
    assert_eq!(again.picture(search::PATTERN).unwrap(), ours, "the same seed gives the same bits");
    let easy = configured(json!({"search_images": 6, "passes": 3, "fooling_rate": 0.1}));
    assert_eq!(made(easy.as_ref(), &clean, &mut NoObserver).unwrap().facts["passes"], json!(1));
}

#[test]
fn a_search_is_stopped_on_request_and_one_that_finds_nothing_says_the_way_out() {
    struct Impatient;
    impl GroundworkObserver for Impatient {
        fn step(&mut self, _: &str, done: usize, total: usize, _: Option<f64>) -> ControlFlow<()> {
            assert_eq!(total, 50 * 6);
            if done < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        }
    }
    let attack = configured(json!({"search_images": 6}));
    let stopped = made(attack.as_ref(), &dataset(), &mut Impatient);
    assert!(matches!(stopped, Err(Error::Stopped { .. })), "{stopped:?}");
    // Too few steps for any image to arrive, which no configuration lets through: the search ends without a pattern.
    let hopeless = Search::new(0, &read(&json!({"search_images": 6, "steps": 1})).unwrap());
    let (model, clean) = (model(), dataset());
    let mut context = GroundworkContext {
        clean: &clean,
        model: Some(&model),
        streams: Streams::new(0),
        device: Device::Cpu,
        observer: &mut NoObserver,
    };
    let error = hopeless.make(&mut context).unwrap_err().to_string();
    assert!(error.contains("`input` = unit") && error.contains("input = \"normalized\""), "{error}");
}

#[test]
fn exactly_the_drawn_images_are_poisoned_with_the_pattern_of_the_material() {
    let clean = dataset();
    let attack = (LF.configure)(&Poisoning { poisoning_ratio: 0.5, ..Poisoning::default() }, json!({})).unwrap();
    assert!(matches!(attack.prepare(&clean, &Streams::new(0), None), Err(Error::NoMaterial)));
    let pattern: Vec<u8> = (0..768).map(|place| (place % 52) as u8).collect();
    let tensor = tsbd_tensor::Tensor::from_vec(pattern.clone(), (16, 16, 3), &Device::Cpu).unwrap();
    let material = Material::new().with_tensor("pattern", tensor);
    let poisoner = attack.prepare(&clean, &Streams::new(0), Some(&material)).unwrap();
    let TrainingSource::Static(train) = &poisoner.train else { panic!("not static") };
    assert_eq!((train.poisoned().len(), poisoner.facts.poison_count), (6, Some(6)));
    for index in 0..12 {
        let expected = clean.train.image(index).iter().zip(&pattern);
        match train.is_poisoned(index) {
            true => {
                assert!(train.image(index).iter().eq(&expected.map(|(a, b)| a.saturating_add(*b)).collect::<Vec<_>>()))
            }
            false => assert_eq!(train.image(index), clean.train.image(index)),
        }
    }
    assert_eq!(poisoner.test.unwrap().len(), 9);
    let picture = attack.trigger_picture(16, 16, Some(&material)).unwrap().unwrap();
    assert_eq!(picture.pixels, pattern);
}

#[test]
fn a_given_pattern_needs_no_groundwork_and_floats_become_levels() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let levels: Vec<u8> = (0..768).map(|place| (place % 52) as u8).collect();
    save(&path("levels.npy"), "|u1", "(16, 16, 3)", &levels);
    let shares: Vec<u8> = levels.iter().flat_map(|level| ((f32::from(*level) + 0.5) / 255.0).to_le_bytes()).collect();
    save(&path("shares.npy"), "<f4", "(1, 16, 16, 3)", &shares);
    save(&path("grey.npy"), "|u1", "(16, 16)", &levels[..256]);
    write_png(&path("picture.png"), &levels, (16, 16)).unwrap();
    let given = |name: &str| {
        let attack = configured(json!({"pattern": path(name)}));
        assert!(attack.groundwork().is_none());
        let parameters = attack.parameters();
        assert_eq!(LF.from_parameters(&parameters).unwrap().parameters(), parameters);
        assert!(attack.prepare(&dataset(), &Streams::new(0), None).is_ok());
        let picture = attack.trigger_picture(16, 16, None).unwrap().unwrap();
        (picture.pixels, parameters["pattern_digest"].clone())
    };
    let expected = given("levels.npy");
    assert_eq!(expected.0, levels);
    for name in ["shares.npy", "picture.png"] {
        assert_eq!(given(name), expected, "{name}: the same levels are the same pattern");
    }
    let grey: Vec<u8> = levels[..256].iter().flat_map(|level| [*level; 3]).collect();
    assert_eq!(given("grey.npy").0, grey);

    save(&path("levels.npy"), "|u1", "(16, 16, 3)", &[7; 768]);
    let error = refused(json!({"pattern": path("levels.npy"), "pattern_digest": expected.1}));
    assert!(error.field == "pattern" && error.reason.contains("not the one it was"), "{error}");
}

#[test]
fn patterns_that_cannot_be_used_are_refused_with_file_and_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    save(&path("black.npy"), "|u1", "(2, 2, 3)", &[0; 12]);
    save(&path("faint.npy"), "<f4", "(1, 1, 3)", &[0.003f32; 3].map(f32::to_le_bytes).concat());
    save(&path("scaled.npy"), "<f4", "(1, 1, 3)", &[51f32; 3].map(f32::to_le_bytes).concat());
    save(&path("nan.npy"), "<f4", "(1, 1, 3)", &[f32::NAN; 3].map(f32::to_le_bytes).concat());
    save(&path("flat.npy"), "|u1", "(12,)", &[1; 12]);
    save(&path("empty.npy"), "|u1", "(0, 2, 2, 3)", &[]);
    save(&path("cut.npy"), "|u1", "(2, 2, 3)", &[1; 11]);
    std::fs::write(path("text.npy"), "no array").unwrap();
    std::fs::write(path("text.png"), "no picture").unwrap();
    for (name, reason) in [
        ("black.npy", "every level"),
        ("faint.npy", "every level"),
        ("scaled.npy", "the value 51"),
        ("nan.npy", "NaN"),
        ("flat.npy", "[12]"),
        ("empty.npy", "[0, 2, 2, 3]"),
        ("cut.npy", "11 bytes"),
        ("text.npy", "numpy"),
        ("text.png", "text.png"),
        ("missing.npy", "missing.npy"),
    ] {
        let error = refused(json!({"pattern": path(name)}));
        assert!(error.field == "pattern" && error.value.contains(name), "{error}");
        assert!(error.reason.contains(reason) && !error.way_out.is_empty(), "{error}");
    }
    save(&path("small.npy"), "|u1", "(2, 2, 3)", &[1; 12]);
    let facts = DatasetFacts::balanced(4, 100, 100, 16);
    let error = configured(json!({"pattern": path("small.npy")})).check(&facts).unwrap_err();
    assert!(error.field == "pattern" && error.reason.contains("2x2") && error.reason.contains("16x16"), "{error}");
    let error = configured(json!({})).check(&DatasetFacts { train_images: 99, ..facts }).unwrap_err();
    assert_eq!((error.field.as_str(), error.way_out.as_str()), ("search_images", "give at most 99"));
}

#[test]
fn numbers_out_of_range_are_refused_by_name() {
    for (field, value) in [
        ("amplitude", json!(0)),
        ("amplitude", json!(0.0039)),
        ("amplitude", json!(1.5)),
        ("fooling_rate", json!(-0.1)),
        ("search_images", json!(0)),
        ("passes", json!(0)),
        ("steps", json!(2)),
        ("pattern_digest", json!("0a1b")),
        ("input", json!("raw")),
    ] {
        assert_eq!(refused(json!({field: value})).field, field);
    }
}

#[test]
fn parameters_are_canonical_and_those_of_the_search_leave_out_what_it_does_not_depend_on() {
    let expected = json!({
        "poisoning_ratio": 0.1, "target_class": 0, "labels": "all-to-one", "pattern": "searched", "amplitude": 0.2,
        "search_images": 100, "fooling_rate": 0.2, "passes": 50, "steps": 200, "input": "unit",
    });
    let attack = configured(json!({}));
    assert_eq!(attack.parameters(), expected);
    assert_eq!(LF.from_parameters(&expected).unwrap().parameters(), expected);
    let mut search = expected;
    for field in ["poisoning_ratio", "labels", "pattern"] {
        search.as_object_mut().unwrap().remove(field);
    }
    assert_eq!(attack.groundwork().unwrap().parameters(), search);
    assert!(attack.groundwork().unwrap().check(model().architecture.as_ref()).is_ok());
}

/// The patterns that BackdoorBench ships are not part of this project: run with `TSBD_TRIGGERS` set to a folder that has
/// them.
#[test]
fn the_patterns_of_the_published_code_are_read() {
    let Some(folder) = std::env::var_os("TSBD_TRIGGERS").map(std::path::PathBuf::from) else {
        writeln!(std::io::stderr(), "skipped: TSBD_TRIGGERS is not set to a folder with BackdoorBench's patterns")
            .unwrap();
        return;
    };
    // Sums as numpy gives them.
    for (data, size, sum) in [("cifar10", 32, 38394), ("gtsrb", 32, 41110), ("tiny", 64, 169982)] {
        let path = folder.join(format!("{data}_preactresnet18_0_255.npy"));
        let attack = configured(json!({"pattern": path}));
        let pattern = attack.trigger_picture(size, size, None).unwrap().unwrap();
        assert_eq!((pattern.height, pattern.width, *pattern.pixels.iter().max().unwrap()), (size, size, 51), "{data}");
        assert_eq!(pattern.pixels.iter().map(|level| u64::from(*level)).sum::<u64>(), sum, "{data}");
        let split = |count: usize| Images::new(vec![250; count * size * size * 3], vec![1; count], (size, size), 2);
        let clean = Arc::new(Dataset::new("test", split(10), split(1), &["a", "b"], Normalization::IDENTITY, true));
        let test = attack.prepare(&clean, &Streams::new(0), None).unwrap().test.unwrap();
        assert!(test.image(0).iter().zip(&pattern.pixels).all(|(value, level)| *value == 250u8.saturating_add(*level)));
    }
}
