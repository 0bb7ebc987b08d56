use std::ops::ControlFlow;

use serde_json::json;
use tsbd_attack::{LEARNED_TRIGGER, LabelRule};
use tsbd_data::{CHANNELS, Images, Normalization};
use tsbd_nn::{
    Checkpoint, IgnoreProgress, Outcome, Precision, Schedule, SgdConfig, StepReport, TrainingObserver, train_with,
};
use tsbd_tensor::Device;
use tsbd_testing::Golden;

use super::*;

const CIFAR10: Normalization = Normalization { mean: [0.4914, 0.4822, 0.4465], std: [0.247, 0.243, 0.261] };

/// Values computed with PyTorch by `tools/reference/wanet.py`.
fn golden(name: &str) -> Golden {
    Golden::read(&format!("wanet/{name}"))
}

/// The images of the reference.
fn images(count: usize, size: usize) -> Tensor {
    let levels = (0..count * size * size * CHANNELS).map(|index| ((7919 * index + 13) % 256) as u8);
    let values = levels.enumerate().map(|(index, level)| CIFAR10.normalized(index % CHANNELS, level)).collect();
    Tensor::from_vec(values, (count, size, size, CHANNELS), &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let largest = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).max_by(f32::total_cmp).unwrap();
    assert!(largest <= tolerance, "largest difference {largest}");
}

const DEFAULT: Strength = Strength { strength: 0.5, grid_rescale: 1.0 };

#[test]
fn the_grid_and_the_warped_images_equal_pytorchs_at_both_sizes() {
    for size in [32, 64] {
        let golden = golden(&size.to_string());
        let field = golden.floats("field");
        let warp = Warp::new(&field, size, DEFAULT);
        assert_close(warp.grid(), &golden.floats("grid"), 3e-7);
        let zoomed = Warp::new(&field, size, Strength { strength: 1.5, grid_rescale: 0.9 });
        assert_close(&zoomed.grid()[size / 3 * size * 2..][..size * 2], &golden.floats("zoomed.row"), 3e-7);

        let warped = values(&warp.apply(&images(1, size)).unwrap());
        // Neighbouring pixels differ by up to 4.2, and a place by up to 3e-7 * size / 2 pixels.
        assert_close(&warped, &golden.floats("warped"), 5e-5);
        let (ours, theirs) = (CIFAR10.truncated_levels(&warped), golden.bytes("truncated"));
        let differing = ours.iter().zip(&theirs).filter(|(a, b)| a != b).count();
        assert!(ours.iter().zip(&theirs).all(|(a, b)| a.abs_diff(*b) <= 1));
        assert!(differing * 1000 <= theirs.len(), "{differing} of {} levels differ", theirs.len());
    }
}

#[test]
fn noise_moves_every_source_as_in_pytorch() {
    for size in [32, 64] {
        let golden = golden(&size.to_string());
        let warp = Warp::new(&golden.floats("field"), size, DEFAULT);
        let noise = golden.floats("noise");
        let mut next = noise.iter().copied();
        let warped = warp.apply_noisily(&images(1, size), || next.next().unwrap()).unwrap();
        assert!(next.next().is_none(), "every number is used");
        assert_close(&values(&warped), &golden.floats("noisily_warped"), 5e-5);
    }
}

#[test]
fn a_batch_is_cropped_rotated_and_mirrored_as_by_pytorch_bit_for_bit() {
    let golden = golden("augmentation");
    let none = BatchAugmentation { crop: None, rotation: None, flip: false };
    for (name, augmentation) in [
        ("crop", BatchAugmentation { crop: Some((0, 10)), ..none }),
        ("rotation", BatchAugmentation { rotation: Some(7.25), ..none }),
        ("flip", BatchAugmentation { flip: true, ..none }),
        ("all", BatchAugmentation { crop: Some((8, 3)), rotation: Some(-9.5), flip: true }),
    ] {
        assert_eq!(values(&augmentation.apply(&images(2, 16)).unwrap()), golden.floats(name), "{name}");
    }
    let unchanged = none.apply(&images(2, 16)).unwrap();
    assert_eq!(values(&unchanged), values(&images(2, 16)));
}

#[test]
fn augmentations_are_drawn_as_often_and_as_far_as_they_should() {
    let mut random = Streams::new(0).stream("test", 0);
    let drawn: Vec<_> = (0..4000).map(|_| BatchAugmentation::draw(true, &mut random)).collect();
    let share =
        |counts: &dyn Fn(&BatchAugmentation) -> bool| drawn.iter().filter(|drawn| counts(drawn)).count() as f64 / 4e3;
    assert!((share(&|drawn| drawn.crop.is_some()) - 0.8).abs() < 0.03);
    assert!((share(&|drawn| drawn.rotation.is_some()) - 0.5).abs() < 0.03);
    assert!((share(&|drawn| drawn.flip) - 0.5).abs() < 0.03);
    let rows: std::collections::BTreeSet<_> = drawn.iter().filter_map(|drawn| Some(drawn.crop?.0)).collect();
    assert_eq!(rows, (0..=10).collect());
    let angles: Vec<f64> = drawn.iter().filter_map(|drawn| drawn.rotation).collect();
    assert!(angles.iter().all(|angle| angle.abs() <= 10.0) && angles.iter().any(|angle| angle.abs() > 9.5));
    assert!((0..100).all(|_| !BatchAugmentation::draw(false, &mut random).flip));
}

fn clean() -> Arc<Dataset> {
    let split = |count: usize, start: usize| {
        let pixels = (0..count * 16 * 16 * CHANNELS).map(|value| ((value + start) * 31 % 253) as u8).collect();
        Images::new(pixels, (0..count).map(|index| (index % 4) as u32).collect(), (16, 16), 4)
    };
    Arc::new(Dataset::new("test", split(50, 0), split(20, 7), &["a", "b", "c", "d"], CIFAR10, true))
}

fn configured(own: Value) -> Result<Box<dyn Attack>, ParameterError> {
    (WANET.configure)(&Poisoning { poisoning_ratio: 0.25, target_class: 2, ..Poisoning::default() }, own)
}

fn prepared(own: Value, seed: u64) -> Poisoner {
    configured(own).unwrap().prepare(&clean(), &Streams::new(seed), None).unwrap()
}

fn plan(augment: bool) -> TrainingPlan {
    let sgd = SgdConfig { learning_rate: 0.05, momentum: 0.9, weight_decay: 5e-4 };
    let schedule = Schedule::Cosine { t_max: 2 };
    let config = TrainingConfig { epochs: 2, sgd, schedule, precision: Precision::F32 };
    TrainingPlan { config, batch_size: 16, augment, device: Device::Cpu }
}

fn begun(poisoner: &Poisoner, augment: bool) -> Box<dyn ControlledTraining> {
    let TrainingSource::Controlled(control) = &poisoner.train else { panic!("WaNet controls the training") };
    control.begin(&plan(augment)).unwrap()
}

fn epoch(training: &dyn ControlledTraining, epoch: usize) -> Vec<Batch> {
    training.batches().epoch(epoch).map(Result::unwrap).collect()
}

#[test]
fn each_batch_has_exactly_its_warped_its_noisy_and_its_clean_images() {
    let poisoner = prepared(json!({"cross_ratio": 1.5}), 0);
    let training = begun(&poisoner, false);
    let clean = clean();
    let batches = epoch(training.as_ref(), 0);
    assert_eq!(batches.iter().map(Batch::len).collect::<Vec<_>>(), [16, 16, 16, 2], "the last batch is kept");
    let field = warp::draw_field(4, &mut Streams::new(0).stream("wanet/field", 0));
    let warp = Warp::new(&field, 16, DEFAULT);
    let mut seen = vec![];
    for batch in &batches {
        let [poisoned, cross] = if batch.len() == 16 { [4, 6] } else { [0, 0] };
        let labels = batch.labels.to_vec1::<u32>().unwrap();
        for (place, &index) in batch.indices.iter().enumerate() {
            let (image, table) = (clean.train.image(index as usize), CIFAR10.table());
            let mut original = vec![0.0; image.len()];
            Normalization::normalize_into(&table, image, &mut original);
            let found = values(&batch.images.narrow(0, place, 1).unwrap());
            assert!(found.iter().all(|value| value.is_finite() && value.abs() < 2.2), "sampling leaves the range");
            let original_label = clean.train.label(index as usize);
            assert_eq!(labels[place], if place < poisoned { 2 } else { original_label });
            let tensor = Tensor::from_vec(original.clone(), (1, 16, 16, CHANNELS), &Device::Cpu).unwrap();
            let warped = values(&warp.apply(&tensor).unwrap());
            assert_eq!(found == warped, place < poisoned, "place {place}");
            assert_eq!(found == original, place >= poisoned + cross, "place {place}");
        }
        seen.extend_from_slice(&batch.indices);
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..50).collect::<Vec<_>>());
    assert_eq!(training.facts(), PoisonFacts { poison_count: Some(12), poison_per_class: vec![], asr_denominator: 15 });
}

#[test]
fn all_to_all_gives_what_is_warped_the_class_after_its_own_and_tests_every_image() {
    let poisoning = Poisoning { poisoning_ratio: 0.25, labels: LabelRule::AllToAll, ..Poisoning::default() };
    let attack = (WANET.configure)(&poisoning, json!({})).unwrap();
    let poisoner = attack.prepare(&clean(), &Streams::new(0), None).unwrap();
    let test = poisoner.test.clone().unwrap();
    assert_eq!(test.len(), 20);
    assert!((0..20).all(|position| test.label(position) == (test.original_label(position) + 1) % 4));
    let clean = clean();
    for batch in epoch(begun(&poisoner, false).as_ref(), 0) {
        let poisoned = if batch.len() == 16 { 4 } else { 0 };
        let expected = batch.indices.iter().enumerate().map(|(place, &index)| {
            let original = clean.train.label(index as usize);
            if place < poisoned { (original + 1) % 4 } else { original }
        });
        assert_eq!(batch.labels.to_vec1::<u32>().unwrap(), expected.collect::<Vec<_>>());
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_and_another_seed_or_epoch_others() {
    let numbers = |seed, at| {
        let poisoner = prepared(json!({}), seed);
        let batches = epoch(begun(&poisoner, true).as_ref(), at);
        let test = poisoner.test.unwrap();
        let pixels: Vec<u8> = (0..test.len()).flat_map(|position| test.image(position).to_vec()).collect();
        (batches.iter().flat_map(|batch| values(&batch.images)).collect::<Vec<_>>(), pixels)
    };
    let (batches, test) = numbers(3, 1);
    assert_eq!(numbers(3, 1), (batches.clone(), test.clone()));
    assert!(numbers(3, 0).0 != batches && numbers(3, 0).1 == test);
    assert!(numbers(4, 1).0 != batches && numbers(4, 1).1 != test);
}

#[test]
fn test_images_are_warped_before_training_with_the_target_label_and_no_trigger_is_learned() {
    let poisoner = prepared(json!({}), 0);
    assert!(!poisoner.awaits_trigger());
    let (test, clean) = (poisoner.test.clone().unwrap(), clean());
    assert_eq!((test.len(), poisoner.facts.asr_denominator), (15, 15));
    for position in 0..test.len() {
        assert_eq!((test.label(position), test.original_label(position) == 2), (2, false));
        assert_ne!(test.image(position), clean.test.image(test.index(position)));
    }
    let unchanged =
        poisoner.with_learned_trigger(std::path::Path::new("nowhere").join(LEARNED_TRIGGER).as_path()).unwrap();
    assert!(Arc::ptr_eq(&unchanged.test.unwrap(), &test));
}

/// Keeps a checkpoint and interrupts the second epoch.
struct Interrupting(std::path::PathBuf);

impl TrainingObserver for Interrupting {
    fn step(&mut self, report: &StepReport) -> ControlFlow<()> {
        if (report.epoch, report.step) == (1, 1) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> tsbd_nn::Result<()> {
        checkpoint.save(&self.0)
    }
}

#[test]
fn a_training_that_is_interrupted_and_resumed_ends_with_the_same_bits() {
    let poisoner = prepared(json!({"epochs": 3}), 0);
    let model = || Model::new(tsbd_models::preact_resnet18(2, 4), &mut Streams::new(1).stream("weights", 0)).unwrap();
    let train = |model: &mut Model, resume, observer: &mut dyn TrainingObserver| {
        let mut training = begun(&poisoner, true);
        let (config, batches) = (training.config().clone(), training.batches());
        train_with(training.as_mut(), model, batches.as_ref(), &config, resume, observer).unwrap()
    };
    let mut whole = model();
    assert_eq!(train(&mut whole, None, &mut IgnoreProgress).history.len(), 3);
    let folder = tempfile::tempdir().unwrap();
    let mut observer = Interrupting(folder.path().join("checkpoint"));
    assert_eq!(train(&mut model(), None, &mut observer).outcome, Outcome::Interrupted);
    let mut resumed = model();
    let checkpoint = Checkpoint::load(&observer.0, resumed.architecture.modules()).unwrap();
    train(&mut resumed, Some(checkpoint), &mut IgnoreProgress);
    assert_eq!(resumed.state.digest().unwrap(), whole.state.digest().unwrap());
}

#[test]
fn parameters_that_cannot_be_used_are_refused_by_name() {
    for (own, field) in [
        (json!({"strength": 0.0}), "strength"),
        (json!({"strength": 1e308}), "strength"),
        (json!({"grid_size": 1}), "grid_size"),
        (json!({"grid_size": 1_000_000}), "grid_size"),
        (json!({"grid_rescale": -1.0}), "grid_rescale"),
        (json!({"cross_ratio": 3.1}), "cross_ratio"),
        (json!({"cross_ratio": -1.0}), "cross_ratio"),
        (json!({"epochs": 0}), "epochs"),
        (json!({"schedule": "cosine"}), "schedule"),
        (json!({"noise": 1}), "noise"),
    ] {
        assert_eq!(configured(own).unwrap_err().field, field);
    }
    let attack = configured(json!({})).unwrap();
    let refused = attack.check_training(&TrainingFacts { epochs: 1, batch_size: 3 }).unwrap_err();
    assert_eq!((refused.field.as_str(), refused.way_out.contains("0.333")), ("poisoning_ratio", true));
}

#[test]
fn parameters_are_canonical_and_configure_the_same_attack_again() {
    let expected = json!({
        "poisoning_ratio": 0.25, "target_class": 2, "labels": "all-to-one", "strength": 0.5, "grid_size": 4,
        "grid_rescale": 1.0, "cross_ratio": 2.0, "schedule": "reference",
    });
    assert_eq!(configured(json!({})).unwrap().parameters(), expected);
    assert_eq!(WANET.from_parameters(&expected).unwrap().parameters(), expected);
}
