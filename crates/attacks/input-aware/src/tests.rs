use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::json;
use tsbd_attack::LabelRule;
use tsbd_data::{CHANNELS, Images, Loader, Normalization};
use tsbd_nn::{
    Architecture, Batch, Checkpoint, IgnoreProgress, Layer, Layout, Mode, Model, Module, Outcome, Pass, Precision,
    Schedule, SgdConfig, StateDict, StepReport, StepRule, TrainingConfig, TrainingObserver, train_with,
};
use tsbd_tensor::{DType, Device, Tensor, Var};
use tsbd_testing::{Golden, convolution, golden_path, network};

use super::*;
use crate::generator::threshold;
use crate::losses::{diversity, excess};
use crate::networks::{MASK, PATTERN, normalized, stamped};

const CIFAR10: Normalization = Normalization { mean: [0.4914, 0.4822, 0.4465], std: [0.247, 0.243, 0.261] };
/// What the reference program takes: of images of this size it keeps everything, of those of 32 and 64 pixels products.
const SIZE: usize = 16;
const SIZES: [usize; 3] = [SIZE, 32, 64];
const WIDTH: usize = 2;
const POISONED: usize = 2;
/// How far weights may be off after a step of Adam.
const STEP: f64 = 1e-7;
/// The same for a convolution's bias, and for the running mean that it shifts: before a batch norm its gradient is nothing
/// but rounding errors, and Adam divides them by 1e-8.
const STEP_OF_BIAS: f64 = 1e-5;

/// The numbers `name` of images of `size` pixels, computed with PyTorch in double precision by
/// `tools/reference/input_aware.py`.
fn expected(size: usize, name: &str) -> Vec<f64> {
    let file = if size == SIZE { "values".to_owned() } else { size.to_string() };
    Golden::read(&format!("input_aware/{file}")).doubles(name)
}

/// A file of networks of the same program.
fn golden(name: &str) -> PathBuf {
    golden_path(&format!("input_aware/{name}.safetensors"))
}

/// What the reference program keeps of a tensor of which it does not keep everything.
fn product(values: &[f64]) -> f64 {
    values.iter().zip(1..).map(|(value, number)| value * (0.7548 * f64::from(number)).sin()).sum()
}

fn networks(name: &str) -> Networks {
    Networks::load(WIDTH, &golden(name)).unwrap()
}

fn images(batch: usize, size: usize) -> Tensor {
    let levels = (0..6 * size * size * CHANNELS).map(|index| ((7919 * index + 13 + 101 * batch) % 256) as u8);
    let normalized = levels.enumerate().map(|(index, level)| f64::from(CIFAR10.normalized(index % CHANNELS, level)));
    Tensor::from_vec(normalized.collect(), (6, size, size, CHANNELS), &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    let largest =
        found.iter().zip(expected).map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).max_by(f64::total_cmp).unwrap();
    assert!(largest <= tolerance, "largest difference {largest:e}");
}

/// Compares images, or masks, with the reference program's.
#[track_caller]
fn assert_images(found: &Tensor, size: usize, name: &str) {
    let (found, expected) = (values(found), expected(size, name));
    match size {
        SIZE => assert_close(&found, &expected, 1e-9),
        _ => assert_close(&[product(&found)], &expected, 1e-9),
    }
}

/// Compares a generator with the reference program's after the phase or step `name`.
#[track_caller]
fn assert_state(found: &StateDict, prefix: &str, size: usize, name: &str) {
    let tolerance = |name: &str| match name.rsplit_once('.') {
        Some((convolution, "bias")) if convolution.ends_with("conv2d") => STEP_OF_BIAS,
        Some((_, "running_mean")) => STEP_OF_BIAS,
        _ => STEP,
    };
    if size == SIZE {
        let networks = networks(name);
        let expected = if prefix == PATTERN { networks.pattern_state } else { networks.mask_state };
        for (name, entry) in expected.entries() {
            let (found, expected) = (values(found.get(name).unwrap()), values(&entry.tensor));
            let largest = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).max_by(f64::total_cmp).unwrap();
            assert!(largest <= tolerance(name), "{name}: {largest:e}");
        }
        return;
    }
    let expected = expected(size, &format!("{name}.{}", prefix.trim_end_matches('.')));
    assert_eq!(found.entries().count(), expected.len());
    for ((name, entry), expected) in found.entries().zip(expected) {
        let as_in_a_file = match entry.layout {
            Layout::Convolution => entry.tensor.permute((3, 2, 0, 1)).unwrap(),
            _ => entry.tensor.clone(),
        };
        let found = values(&as_in_a_file);
        let difference = (product(&found) - expected).abs();
        assert!(difference <= tolerance(name) * found.len() as f64, "{name} at {size}: {difference:e}");
    }
}

/// One convolution, one batch norm, one linear layer.
fn tiny() -> Arc<dyn Architecture> {
    let modules = vec![
        convolution("conv1", [3, 4], 2, true),
        Module::new("bn1", Layer::BatchNorm2d { channels: 4 }),
        Module::new("linear", Layer::Linear { in_features: 4, out_features: 4 }),
    ];
    network(modules, 4, |pass, images| {
        let x = pass.batch_norm_relu("bn1", &pass.conv("conv1", images)?)?;
        pass.linear("linear", &x.global_average_pool()?)
    })
}

fn clean() -> Arc<Dataset> {
    let split = |count: usize, start: usize| {
        let pixels = (0..count * SIZE * SIZE * CHANNELS).map(|value| ((value * 7 + start) * 31 % 253) as u8).collect();
        Images::new(pixels, (0..count).map(|index| (index % 4) as u32).collect(), (SIZE, SIZE), 4)
    };
    Arc::new(Dataset::new("test", split(44, 0), split(20, 7), &["a", "b", "c", "d"], CIFAR10, true))
}

fn poisoning() -> Poisoning {
    Poisoning { poisoning_ratio: 0.25, target_class: 3, ..Poisoning::default() }
}

fn configured(own: Value) -> Result<Box<dyn Attack>, ParameterError> {
    (INPUT_AWARE.configure)(&poisoning(), own)
}

fn plan() -> TrainingPlan {
    let sgd = SgdConfig { learning_rate: 0.05, momentum: 0.9, weight_decay: 5e-4 };
    let schedule = Schedule::Cosine { t_max: 4 };
    let config = TrainingConfig { epochs: 4, sgd, schedule, precision: Precision::F32 };
    TrainingPlan { config, batch_size: 16, augment: true, device: Device::Cpu }
}

/// The training of the reference program, in double precision.
fn reference(gradients: GeneratorGradients) -> Training {
    let parameters =
        Parameters { lambda_div: 1.5, generator_width: WIDTH, generator_gradients: gradients, ..Parameters::default() };
    let (clean, streams) = (clean(), Streams::new(0));
    let loader = |purpose: &str| shuffled(&clean, &plan(), false, streams, purpose);
    let setup = Setup {
        config: plan().config,
        mask_epochs: 1,
        parameters,
        poisoning: poisoning(),
        classes: 4,
        normalization: CIFAR10,
        streams,
        loader: loader("train"),
        others: loader("others"),
        facts: PoisonFacts { poison_count: None, poison_per_class: vec![], asr_denominator: 0 },
    };
    Training::new(setup, networks("begin")).unwrap()
}

#[test]
fn patterns_masks_and_triggered_images_equal_pytorchs_at_every_size() {
    let Networks { pattern, pattern_state, .. } = &networks("begin");
    for size in SIZES {
        let part = |batch: usize, start: usize| {
            Var::constant(images(batch, size).narrow(0, start, POISONED).unwrap().contiguous().unwrap())
        };
        let (own, giver) = (part(0, 0), part(1, POISONED));
        let made = |images| {
            let pass = Pass::new(pattern, pattern_state, Mode::Train);
            normalized(&pattern.forward(&pass, images).unwrap(), &CIFAR10).unwrap()
        };
        let patterns = made(&own);
        assert_images(patterns.tensor(), size, "step1.pattern");
        let masks = networks("begin").masks(own.tensor()).unwrap();
        assert_images(&masks, size, "step1.mask");
        let triggered = stamped(&own, &patterns, &masks).unwrap();
        let crossing = networks("begin").masks(giver.tensor()).unwrap();
        let crossed = stamped(&part(0, POISONED), &made(&giver), &crossing).unwrap();
        let rest = images(0, size).narrow(0, 2 * POISONED, 6 - 2 * POISONED).unwrap();
        let batch = Tensor::cat(&[triggered.tensor(), crossed.tensor(), &rest], 0).unwrap();
        assert_images(&batch, size, "step1.images");
        let diverse = diversity([&own, &giver], [&patterns, &made(&giver)]).unwrap();
        assert_close(&values(diverse.tensor()), &expected(size, "step1.losses")[1..], 1e-9);
        let triggered = networks("begin").triggered(own.tensor(), &CIFAR10).unwrap();
        assert_images(&triggered, size, "eval.triggered");
    }
}

#[test]
fn patterns_stay_inside_and_masks_nearly_reach_their_ranges() {
    let squash = |x: f64| {
        let x = Var::constant(Tensor::new(&[x], &Device::Cpu).unwrap());
        values(threshold(&x).unwrap().tensor())[0]
    };
    // The generator's own range is 0.5 -+ tanh(1) / 2.
    let edge = 1f64.tanh() / 2.0;
    assert!((squash(0.5 - edge) - 2.4e-7).abs() < 1e-7 && (squash(0.5) - 0.5).abs() < 1e-12);
    assert!((1.0 - squash(0.5 + edge) - 2.4e-7).abs() < 1e-7);
    let patterns = networks("begin");
    let pass = Pass::new(&patterns.pattern, &patterns.pattern_state, Mode::Train);
    let output = patterns.pattern.forward(&pass, &Var::constant(images(0, SIZE))).unwrap();
    assert!(values(output.tensor()).iter().all(|value| (value - 0.5).abs() <= edge));
}

#[test]
fn one_step_of_the_mask_phase_equals_pytorchs_at_every_size() {
    for size in SIZES {
        let mut training = reference(GeneratorGradients::Accumulated);
        let masks = {
            let Networks { mask, mask_state, .. } = &training.networks;
            let pass = Pass::new(mask, mask_state, Mode::Train);
            threshold(&mask.forward(&pass, &Var::constant(images(0, size))).unwrap()).unwrap()
        };
        assert_images(masks.tensor(), size, "mask.m1");
        let losses = expected(size, "mask.losses");
        assert_close(&values(excess(&masks, 0.032).unwrap().tensor()), &losses[..1], 1e-9);
        let loss = training.mask_step(&images(0, size), &images(1, size)).unwrap();
        assert_close(&[loss], &losses[2..], 1e-9);
        // Also the running estimates, which meet the first batch twice.
        assert_state(&training.networks.mask_state, MASK, size, "mask");
        assert_state(&training.networks.pattern_state, PATTERN, SIZE, "begin");
    }
}

#[test]
fn steps_of_the_classifier_phase_equal_pytorchs_with_gradients_accumulated_and_cleared_at_every_size() {
    let model = Model::load(tiny(), golden("classifier")).unwrap();
    let model = Model { state: model.state.to_dtype(DType::F64).unwrap(), ..model };
    let labels = Tensor::new(&[0u32, 1, 2, 3, 0, 1], &Device::Cpu).unwrap();
    let both = [GeneratorGradients::Accumulated, GeneratorGradients::Cleared];
    for (size, gradients) in SIZES.into_iter().flat_map(|size| both.map(|gradients| (size, gradients))) {
        let mut training = reference(gradients);
        for step in [1, 2] {
            let batch = Batch { images: images(step - 1, size), labels: labels.clone(), indices: (0..6).collect() };
            let made = training.classifier_step(&model, &batch, &images(2 - step, size), POISONED).unwrap();
            training.pattern_step().unwrap();
            if gradients == GeneratorGradients::Accumulated {
                assert_close(&[made.loss], &expected(size, &format!("step{step}.losses"))[..1], 1e-9);
                let weight = made.gradients.get("conv1.weight").unwrap().permute((3, 2, 0, 1)).unwrap();
                let theirs = expected(size, &format!("step{step}.conv1"));
                assert_close(&values(&weight.contiguous().unwrap()), &theirs, 1e-9);
            }
            if gradients == GeneratorGradients::Accumulated || step == 1 {
                assert_state(&training.networks.pattern_state, PATTERN, size, &format!("step{step}"));
            }
        }
        if gradients == GeneratorGradients::Cleared {
            assert_state(&training.networks.pattern_state, PATTERN, size, "cleared");
        }
        assert_state(&training.networks.mask_state, MASK, SIZE, "begin");
    }
    // What is compared tells the two rules apart.
    let differing = networks("step2").pattern_state.difference(&networks("cleared").pattern_state).unwrap();
    assert!(differing.global_norm().unwrap() > 1e-3);
}

#[test]
fn all_to_all_teaches_the_class_after_the_images_own() {
    let model = model();
    let model = Model { state: model.state.to_dtype(DType::F64).unwrap(), ..model };
    let step = |rule: LabelRule, target_class: u32| {
        let mut training = reference(GeneratorGradients::Cleared);
        training.setup.poisoning = Poisoning { labels: rule, target_class, ..poisoning() };
        // Two that are poisoned, of class 3; the others get their own labels under either rule.
        let labels = Tensor::new(&[3u32, 3, 0, 1, 2, 3], &Device::Cpu).unwrap();
        let batch = Batch { images: images(0, SIZE), labels, indices: (0..6).collect() };
        training.classifier_step(&model, &batch, &images(1, SIZE), POISONED).unwrap().loss
    };
    assert_eq!(step(LabelRule::AllToAll, 3), step(LabelRule::AllToOne, 0));
    assert_ne!(step(LabelRule::AllToAll, 3), step(LabelRule::AllToOne, 3));
}

#[test]
fn equal_images_in_both_loaders_leave_every_gradient_finite() {
    let mut training = reference(GeneratorGradients::Accumulated);
    assert!(training.mask_step(&images(0, SIZE), &images(0, SIZE)).unwrap().is_finite());
    let finite = |state: &StateDict| state.parameters().all(|(_, tensor)| values(tensor).iter().all(|v| v.is_finite()));
    assert!(finite(&training.networks.mask_state));
    let begin = networks("begin").mask_state.difference(&training.networks.mask_state).unwrap();
    assert!(begin.global_norm().unwrap() > 0.0, "the excess still has a gradient");
}

#[test]
fn losses_of_the_generators_have_the_right_gradients() {
    let sample = |start: f64| {
        let values: Vec<f64> = (0..3 * 2 * 2 * 2).map(|index| ((start + f64::from(index)) * 0.7548).sin()).collect();
        Tensor::from_vec(values, (3, 2, 2, 2), &Device::Cpu).unwrap()
    };
    let inputs = [sample(0.0), sample(50.0), sample(100.0), sample(150.0)];
    let checked = |v: &[Var]| diversity([&v[0], &v[1]], [&v[2], &v[3]]).map_err(unwrapped);
    tsbd_tensor::check::finite_differences(checked, &inputs, 1e-6).unwrap();
    let image = |v: &[Var]| stamped(&v[0], &v[1], &inputs[2].narrow(3, 0, 1).unwrap()).map_err(unwrapped);
    tsbd_tensor::check::finite_differences(image, &inputs[..2], 1e-6).unwrap();
}

fn unwrapped(error: tsbd_nn::Error) -> tsbd_tensor::Error {
    match error {
        tsbd_nn::Error::Tensor(error) => error,
        other => panic!("{other}"),
    }
}

fn begun(own: Value, seed: u64) -> (Poisoner, Box<dyn ControlledTraining>) {
    let mut parameters = json!({"generator_width": 2, "mask_epochs": 2});
    parameters.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
    let poisoner = configured(parameters).unwrap().prepare(&clean(), &Streams::new(seed), None).unwrap();
    let TrainingSource::Controlled(control) = &poisoner.train else { panic!("Input-aware controls the training") };
    let training = control.begin(&plan()).unwrap();
    (poisoner, training)
}

fn model() -> Model {
    Model::new(tiny(), &mut Streams::new(1).stream("weights", 0)).unwrap()
}

/// Trains a model and returns its digest, the learned trigger's file and the triggered test images.
fn trained(
    own: Value,
    seed: u64,
    resume: Option<Checkpoint>,
    observer: &mut dyn TrainingObserver,
    folder: &Path,
) -> (Outcome, String, Vec<u8>, Vec<u8>) {
    let (poisoner, mut training) = begun(own, seed);
    let (config, batches, mut model) = (training.config().clone(), training.batches(), model());
    let summary = train_with(training.as_mut(), &mut model, batches.as_ref(), &config, resume, observer).unwrap();
    let path = folder.join(tsbd_attack::LEARNED_TRIGGER);
    training.save_trigger(&path).unwrap();
    assert!(poisoner.awaits_trigger());
    let poisoner = poisoner.with_learned_trigger(&path).unwrap();
    assert!(!poisoner.awaits_trigger());
    let test = poisoner.test.unwrap();
    let pixels = (0..test.len()).flat_map(|position| test.image(position).to_vec()).collect();
    (summary.outcome, model.state.digest().unwrap(), std::fs::read(&path).unwrap(), pixels)
}

/// Keeps a checkpoint and interrupts an epoch.
struct Interrupting(PathBuf, usize);

impl TrainingObserver for Interrupting {
    fn step(&mut self, report: &StepReport) -> ControlFlow<()> {
        if (report.epoch, report.step) == (self.1, 1) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> tsbd_nn::Result<()> {
        checkpoint.save(&self.0)
    }
}

#[test]
fn a_training_interrupted_in_either_phase_and_resumed_ends_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    for gradients in ["accumulated", "cleared"] {
        let own = || json!({"generator_gradients": gradients});
        let whole = trained(own(), 0, None, &mut IgnoreProgress, folder.path());
        assert_eq!(whole.0, Outcome::Completed);
        for epoch in 1..4 {
            let mut observer = Interrupting(folder.path().join("checkpoint"), epoch);
            let first = trained(own(), 0, None, &mut observer, folder.path());
            assert!(first.0 == Outcome::Interrupted && first.2 != whole.2);
            let checkpoint = Checkpoint::load(&observer.0, tiny().modules()).unwrap();
            assert_eq!(checkpoint.next_epoch(), epoch);
            let second = trained(own(), 0, Some(checkpoint), &mut IgnoreProgress, folder.path());
            assert!(second == whole, "{gradients}, interrupted in epoch {epoch}");
        }
    }
}

#[test]
fn another_seed_gives_another_model_and_other_triggers() {
    let folder = tempfile::tempdir().unwrap();
    let of = |own, seed| trained(own, seed, None, &mut IgnoreProgress, folder.path());
    let (first, same, other) = (of(json!({}), 0), of(json!({}), 0), of(json!({}), 1));
    assert!(first == same);
    assert!(first.1 != other.1 && first.2 != other.2 && first.3 != other.3);
}

#[test]
fn test_images_that_count_are_triggered_and_keep_their_sizes() {
    let (poisoner, training) = begun(json!({}), 0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("attack.safetensors");
    training.save_trigger(&path).unwrap();
    let (test, clean) = (poisoner.with_learned_trigger(&path).unwrap().test.unwrap(), clean());
    assert_eq!((test.len(), training.facts().asr_denominator), (15, 15));
    for position in 0..test.len() {
        assert_eq!((test.label(position), test.original_label(position) == 3), (3, false));
        let (image, before) = (test.image(position), clean.test.image(test.index(position)));
        assert!(image.len() == before.len() && image != before);
    }
    let missing = begun(json!({}), 0).0.with_learned_trigger(&folder.path().join("none")).unwrap_err();
    assert!(missing.to_string().contains("none"), "{missing}");
    let wider = begun(json!({"generator_width": 3}), 0).0.with_learned_trigger(&path).unwrap_err();
    assert!(wider.to_string().contains("netG.convblock_down_0.conv2d.weight"), "{wider}");
}

#[test]
fn exactly_the_stated_number_of_images_of_each_batch_is_poisoned() {
    let mut training = reference(GeneratorGradients::Accumulated);
    assert_eq!([128, 80, 16, 7, 4].map(|size| training.poisoned(size)), [32, 20, 4, 1, 1]);
    // Less than one on average: as often as the mean says.
    let coins: usize = (0..4000).map(|_| training.poisoned(2)).sum();
    assert!((coins as f64 / 4000.0 - 0.5).abs() < 0.03);
    assert_eq!((0..100).map(|_| training.poisoned(1)).sum::<usize>(), 0, "there is no other image");
    // 44 images in batches of 16, 16 and 12.
    assert_eq!(begun(json!({}), 0).1.facts().poison_count, Some(4 + 4 + 3));
    assert_eq!(poisoned_in_epoch(0.1, 50_000, 128), 390 * 12 + 8);
}

#[test]
fn the_mask_generator_gets_a_quarter_of_all_epochs_unless_told_and_learning_rates_fall_as_in_the_reference() {
    let of = |own: Value, epochs| read::<Parameters>(&own).unwrap().epochs(epochs);
    assert_eq!(
        [of(json!({}), 100), of(json!({}), 10), of(json!({}), 2)].map(Result::unwrap),
        [(100, 25), (10, 3), (2, 1)]
    );
    assert_eq!(of(json!({"mask_epochs": 25}), 200).unwrap(), (200, 25));
    assert_eq!(of(json!({"epochs": 12}), 4).unwrap(), (12, 3));
    assert_eq!(of(json!({}), 1).unwrap_err().field, "mask_epochs");
    let clean = |own: Value| configured(own).unwrap().clean_epochs(100);
    assert_eq!((clean(json!({})), clean(json!({"epochs": 26, "mask_epochs": 4}))), (100, 22));

    let mut training = reference(GeneratorGradients::Accumulated);
    training.setup.mask_epochs = 25;
    let mut rates = |epoch| {
        training.begin_epoch(epoch).unwrap();
        (training.now.pattern_rate, training.now.mask_rate)
    };
    let close = |found: f64, expected: f64| (found - expected).abs() < 1e-12;
    for (epoch, mask) in [(0, 1e-2), (9, 1e-2), (10, 1e-3), (19, 1e-3), (20, 1e-4), (24, 1e-4)] {
        assert!(close(rates(epoch).1, mask), "epoch {epoch}");
    }
    for (epoch, pattern) in [(25, 1e-2), (224, 1e-2), (225, 1e-3)] {
        assert!(close(rates(epoch).0, pattern), "epoch {epoch}");
    }
}

#[test]
fn both_loaders_see_all_images_in_orders_of_their_own() {
    let (_, training) = begun(json!({}), 0);
    let indices = |batches: &mut dyn Iterator<Item = tsbd_nn::Result<Batch>>| -> Vec<u32> {
        batches.flat_map(|batch| batch.unwrap().indices).collect()
    };
    let first = indices(&mut training.batches().epoch(0));
    let others: Loader = shuffled(&clean(), &plan(), true, Streams::new(0), "input-aware/others");
    let second = indices(&mut others.into_epoch(0));
    assert_ne!(first, second);
    for mut seen in [first, second] {
        seen.sort_unstable();
        assert_eq!(seen, (0..44).collect::<Vec<_>>());
    }
}

#[test]
fn parameters_that_cannot_be_used_are_refused_by_name() {
    for (own, field) in [
        (json!({"mask_density": 1.5}), "mask_density"),
        (json!({"lambda_norm": -1.0}), "lambda_norm"),
        (json!({"lambda_div": -1.0}), "lambda_div"),
        (json!({"pattern_learning_rate": 0.0}), "pattern_learning_rate"),
        (json!({"mask_learning_rate": -0.1}), "mask_learning_rate"),
        (json!({"generator_width": 0}), "generator_width"),
        (json!({"generator_width": 1025}), "generator_width"),
        (json!({"mask_epochs": 0}), "mask_epochs"),
        (json!({"epochs": 0}), "epochs"),
        (json!({"generator_gradients": "kept"}), "generator_gradients"),
        (json!({"alpha": 1}), "alpha"),
    ] {
        assert_eq!(configured(own).unwrap_err().field, field);
    }
    let half = Poisoning { poisoning_ratio: 0.6, ..poisoning() };
    assert_eq!((INPUT_AWARE.configure)(&half, json!({})).unwrap_err().field, "poisoning_ratio");
    let attack = configured(json!({"mask_epochs": 5})).unwrap();
    let training = TrainingFacts { epochs: 5, batch_size: 8 };
    assert_eq!(attack.check_training(&training).unwrap_err().field, "mask_epochs");
    let odd = DatasetFacts { size: 20, ..DatasetFacts::of(&clean()) };
    assert_eq!(attack.check(&odd).unwrap_err().field, "image_size");
}

#[test]
fn parameters_are_canonical_and_configure_the_same_attack_again() {
    let expected = json!({
        "poisoning_ratio": 0.25, "target_class": 3, "labels": "all-to-one", "mask_density": 0.032, "lambda_norm": 100.0,
        "lambda_div": 1.0, "pattern_learning_rate": 0.01, "mask_learning_rate": 0.01, "generator_gradients": "accumulated",
        "generator_width": 32, "schedule": "reference",
    });
    assert_eq!(configured(json!({})).unwrap().parameters(), expected);
    assert_eq!(INPUT_AWARE.from_parameters(&expected).unwrap().parameters(), expected);
}
