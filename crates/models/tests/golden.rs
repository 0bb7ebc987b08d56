//! PreAct-ResNet18 against PyTorch: `tools/reference/model.py` and `training.py` made the numbers, in f64.

mod formula;

use formula::{batch, compare, error, golden, network, numbers, tensors};
use tsbd_models::preact_resnet18;
use tsbd_nn::{
    Batch, BatchSource, IgnoreProgress, LossOptions, Mode, Model, Precision, Schedule, SgdConfig, TrainingConfig, train,
};
use tsbd_tensor::DType;

const CASES: [(usize, usize); 4] = [(4, 16), (4, 13), (8, 16), (8, 13)];

fn case(width: usize, size: usize, dtype: DType, outputs: f64, gradients: f64) {
    let expected = tensors(&format!("model/preact-w{width}-s{size}.safetensors"));
    let mut model = network(width, dtype);
    let batch = batch(size, 1000, dtype);
    let close = |name: &str, found: Vec<f64>| {
        let error = error(&found, &numbers(&expected[name]));
        assert!(error < outputs, "{name} of width {width}, size {size}, {dtype:?}: {error:e}");
    };
    close("logits_eval", numbers(&model.logits(&batch.images, Mode::Eval).unwrap()));
    close("logits_train", numbers(&model.logits(&batch.images, Mode::Train).unwrap()));
    let (_, taps) = model.tapped(&batch.images, Mode::TrainKeepingStatistics, &["avgpool"]).unwrap();
    close("features", numbers(&taps["avgpool"]));

    let step = model.gradients(&batch, Mode::Train, &LossOptions::default()).unwrap();
    close("loss", vec![step.loss]);
    compare(step.gradients.iter(), &expected["gradients"], gradients);
    model.absorb(&step.statistics).unwrap();
    compare(model.state.buffers(), &expected["buffers"], outputs);
}

#[test]
fn in_f64_it_agrees_with_pytorch_to_rounding() {
    for (width, size) in CASES {
        case(width, size, DType::F64, 1e-12, 1e-10);
    }
}

#[test]
fn in_f32_it_agrees_with_pytorch_to_a_ten_thousandth() {
    for (width, size) in CASES {
        case(width, size, DType::F32, 1e-4, 2e-3);
    }
}

#[test]
fn four_epochs_of_momentum_decay_and_cosine_end_where_pytorchs_do() {
    let expected = tensors("training/preact-w4-s16.safetensors");
    for (dtype, tolerance) in [(DType::F64, 1e-9), (DType::F32, 1e-2)] {
        let mut model = network(4, dtype);
        let source = vec![batch(16, 1000, dtype), batch(16, 1001, dtype)];
        let config = TrainingConfig {
            epochs: 4,
            sgd: SgdConfig { learning_rate: 0.05, momentum: 0.9, weight_decay: 5e-4 },
            schedule: Schedule::Cosine { t_max: 5 },
            precision: Precision::F32,
        };
        let summary = train(&mut model, &source, &config, None, &mut IgnoreProgress).unwrap();
        let rates: Vec<f64> = summary.history.iter().map(|epoch| epoch.learning_rate).collect();
        assert!(error(&rates, &numbers(&expected["rates"])) < 1e-12, "{rates:?}");
        let losses: Vec<f64> = summary.history.iter().map(|epoch| epoch.mean_loss).collect();
        let losses_error = error(&losses, &numbers(&expected["losses"]));
        assert!(losses_error < tolerance, "{dtype:?}: {losses:?} differ by {losses_error:e}");
        compare(model.state.parameters(), &expected["parameters"], tolerance);
        compare(model.state.buffers(), &expected["buffers"], tolerance);
    }
}

#[test]
fn schedules_give_pytorchs_learning_rates() {
    let text = std::fs::read_to_string(golden("training/schedules.json")).unwrap();
    let golden: std::collections::BTreeMap<String, Vec<f64>> = serde_json::from_str(&text).unwrap();
    let schedules = [
        ("cosine-100", Schedule::Cosine { t_max: 100 }),
        ("cosine-20", Schedule::Cosine { t_max: 20 }),
        ("plateau", Schedule::plateau()),
        ("multi-step-5-30", Schedule::MultiStep { milestones: vec![5, 30], gamma: 0.3 }),
    ];
    for (name, schedule) in schedules {
        let mut state = tsbd_nn::ScheduleState::new(0.01);
        for (epoch, expected) in golden[name].iter().enumerate() {
            let found = state.learning_rate();
            assert!((found - expected).abs() <= 1e-12 * 0.01, "{name}, epoch {epoch}: {found}, not {expected}");
            state.step(&schedule, golden["losses"][epoch]);
        }
    }
}

#[test]
fn a_file_that_pytorch_saved_gives_pytorchs_logits() {
    let model = Model::load(preact_resnet18(1, 10), golden("model/pytorch-w1.safetensors")).unwrap();
    assert_eq!(model.state.get("layer1.0.bn1.num_batches_tracked").unwrap().to_scalar::<i64>().unwrap(), 3);
    let logits = model.logits(&batch(16, 1000, DType::F32).images, Mode::Eval).unwrap();
    let expected = numbers(&tensors("model/pytorch-w1-logits.safetensors")["logits"]);
    assert!(error(&numbers(&logits), &expected) < 1e-4);
}

#[test]
fn every_gradient_agrees_with_finite_differences_of_the_loss() {
    // The whole network in f64: the slope along a random direction of each parameter's tensor, in all three modes.
    let model = network(1, DType::F64);
    let batch = batch(9, 1000, DType::F64);
    for (mode, options) in [
        (Mode::Train, LossOptions::default()),
        (Mode::TrainKeepingStatistics, LossOptions { label_smoothing: 0.1, scale: -2.0 }),
        (Mode::Eval, LossOptions::default()),
    ] {
        let step = model.gradients(&batch, mode, &options).unwrap();
        for (name, gradient) in step.gradients.iter() {
            let direction = formula::values(3000, gradient.elem_count());
            let direction = tsbd_tensor::Tensor::from_vec(direction, gradient.dims(), gradient.device()).unwrap();
            let slope: f64 = (gradient * &direction).unwrap().sum_all().unwrap().to_scalar().unwrap();
            let loss_at = |distance: f64| {
                let mut moved = model.clone();
                let way = [(name.to_owned(), direction.clone())].into_iter().collect();
                moved.state.add_scaled(&way, |_| distance).unwrap();
                options.scale * moved.gradients(&batch, mode, &options).unwrap().loss
            };
            // Narrow enough to miss the kinks of the ReLUs, wide enough for the rounding of f64.
            let width = 1e-8;
            let expected = (loss_at(width) - loss_at(-width)) / (2.0 * width);
            let error = (slope - expected).abs();
            assert!(
                error < 1e-6 + 1e-6 * expected.abs(),
                "{name} in {mode:?}: slope {slope}, finite difference {expected}"
            );
        }
    }
}

#[test]
fn a_training_step_has_the_same_bits_on_one_thread_and_on_two() {
    let digest = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut model = network(8, DType::F32);
            let source: Vec<Batch> = vec![batch(16, 1000, DType::F32), batch(13, 1001, DType::F32)];
            let config = TrainingConfig {
                epochs: 2,
                sgd: SgdConfig { learning_rate: 0.01, momentum: 0.9, weight_decay: 5e-4 },
                schedule: Schedule::Constant,
                precision: Precision::F32,
            };
            assert_eq!(source.images_per_epoch(), 8);
            train(&mut model, &source, &config, None, &mut IgnoreProgress).unwrap();
            model.state.digest().unwrap()
        })
    };
    assert_eq!(digest(1), digest(2));
}

#[test]
fn every_module_and_block_can_be_tapped_without_changing_the_logits() {
    let model = network(4, DType::F64);
    let images = batch(16, 1000, DType::F64).images;
    let plain = numbers(&model.logits(&images, Mode::Eval).unwrap());
    let mut names: Vec<String> = model.architecture.modules().iter().map(|module| module.name.clone()).collect();
    names.extend(["layer1", "layer2", "layer3", "layer4", "layer3.0", "avgpool"].map(String::from));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (logits, taps) = model.tapped(&images, Mode::Eval, &names).unwrap();
    assert!(error(&numbers(&logits), &plain) < 1e-12);
    assert_eq!(taps["linear"].dims(), [4, 10]);
    assert_eq!(taps["layer3"].dims(), [4, 4, 4, 16]);
    assert_eq!(taps["avgpool"].dims(), [4, 32]);
    // A batch norm's tap is its own output, before the ReLU; a convolution's is without the residual.
    assert!(numbers(&taps["layer4.1.bn2"]).iter().any(|&value| value < 0.0));
    let sum = (&taps["layer3.1.conv2"] + &taps["layer3.0"]).unwrap();
    assert!(error(&numbers(&sum), &numbers(&taps["layer3"])) < 1e-12);
}

#[test]
fn a_pass_knows_which_batch_norms_it_met_on_the_way_to_a_tap() {
    let model = network(4, DType::F64);
    assert_eq!(model.architecture.attention(), ["layer3", "layer4", "avgpool"]);
    let pass = model.pass(Mode::Train).tapping(["conv1", "layer3", "layer4", "avgpool"]);
    assert!(pass.statistics_before("layer3").is_none(), "nothing was met yet");
    pass.forward(&batch(16, 1000, DType::F64).images).unwrap();
    for (tap, met) in [("conv1", 0), ("layer3", 12), ("layer4", 16), ("avgpool", 16)] {
        let names: Vec<_> = pass.statistics_before(tap).unwrap().iter().map(|(name, _)| name.to_owned()).collect();
        assert_eq!(names.len(), met, "{tap}");
        assert!(tap != "layer3" || names.iter().all(|name| !name.starts_with("layer4")), "{names:?}");
    }
    let met = pass.statistics_before("layer3").unwrap().then(pass.take_statistics());
    assert_eq!(met.iter().count(), 28);
}

#[test]
fn a_tap_that_does_not_exist_is_an_error_that_names_it() {
    let model = network(4, DType::F32);
    let images = batch(16, 1000, DType::F32).images;
    let error = model.tapped(&images, Mode::Eval, &["layer5"]).unwrap_err();
    assert!(error.to_string().contains("`layer5`"), "{error}");
}

#[test]
fn the_mean_input_of_the_head_is_the_mean_of_the_features() {
    let model = network(4, DType::F64);
    let source = vec![batch(16, 1000, DType::F64), batch(16, 1001, DType::F64)];
    let mean = model.mean_output::<tsbd_nn::Error>(&source, model.architecture.features(), &mut |_| Ok(())).unwrap();
    let mut expected = vec![0.0; 32];
    for batch in &source {
        let (_, taps) = model.tapped(&batch.images, Mode::Eval, &["avgpool"]).unwrap();
        numbers(&taps["avgpool"]).iter().enumerate().for_each(|(place, value)| expected[place % 32] += value / 8.0);
    }
    assert!(error(&mean, &expected) < 1e-12);
    let predictions = model.predict(&source).unwrap();
    assert_eq!(predictions.labels, [1, 4, 7, 0, 1, 4, 7, 0]);
    assert_eq!(predictions.len(), 8);
    assert!((0.0..=1.0).contains(&predictions.accuracy()) && predictions.mean_loss > 0.0);
}
