use super::*;
use crate::tiny::{batches, model};
use crate::{IgnoreProgress, ParameterGradients, Statistics};
use std::path::PathBuf;
use tsbd_tensor::Tensor;

fn config(epochs: usize) -> TrainingConfig {
    TrainingConfig {
        epochs,
        sgd: SgdConfig { learning_rate: 0.1, momentum: 0.9, weight_decay: 5e-4 },
        schedule: Schedule::Cosine { t_max: 10 },
        precision: Precision::F32,
    }
}

/// A source whose batches come in another order each epoch, as shuffling makes them.
struct Rotating(Vec<Batch>);
impl BatchSource for Rotating {
    fn images_per_epoch(&self) -> usize {
        self.0.images_per_epoch()
    }
    fn batches_per_epoch(&self) -> usize {
        self.0.len()
    }
    fn epoch<'a>(&'a self, epoch: usize) -> Box<dyn Iterator<Item = Result<Batch>> + 'a> {
        Box::new((0..self.0.len()).map(move |step| Ok(self.0[(step + epoch) % self.0.len()].clone())))
    }
}

/// Keeps a checkpoint file and stops when told.
struct Keeper {
    path: PathBuf,
    interrupt_at: Option<(usize, usize)>,
    stop_after: Option<usize>,
}
impl TrainingObserver for Keeper {
    fn step(&mut self, report: &StepReport) -> ControlFlow<()> {
        match self.interrupt_at {
            Some(place) if place == (report.epoch, report.step) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }
    fn epoch_end(&mut self, report: &EpochReport, _: &Model) -> Result<ControlFlow<()>> {
        Ok(if self.stop_after == Some(report.epoch) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        checkpoint.save(&self.path)
    }
}

fn keeper(folder: &tempfile::TempDir) -> Keeper {
    Keeper { path: folder.path().join("training.checkpoint"), interrupt_at: None, stop_after: None }
}

/// A rule with a state and a preparation: adds up what it sees, and shifts the images by it.
struct Shifting {
    preparation: usize,
    shift: f64,
    epoch: usize,
}
impl Shifting {
    fn new() -> Shifting {
        Shifting { preparation: 2, shift: 0.0, epoch: 0 }
    }
}
impl StepRule for Shifting {
    fn preparation(&mut self) -> Option<&mut dyn Preparation> {
        Some(self)
    }
    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        self.epoch = epoch;
        Ok(())
    }
    fn compute(&mut self, model: &Model, batch: &Batch) -> Result<Step> {
        let images = (&batch.images + self.shift * self.epoch as f64)?;
        model.gradients(&Batch { images, ..batch.clone() }, Mode::Train, &LossOptions::default())
    }
    fn after(&mut self, model: &mut Model, _: &Batch) -> Result<()> {
        self.shift += 1e-3 * f64::from(model.state.get("linear.bias")?.to_vec1::<f32>()?[0]);
        Ok(())
    }
    fn describe(&self) -> String {
        format!("shifting after {}", self.preparation)
    }
    fn state(&self) -> Result<IndexMap<String, Tensor>> {
        Ok([("shift".to_owned(), Tensor::new(&[self.shift], &tsbd_tensor::Device::Cpu)?)].into())
    }
    fn restore(&mut self, state: IndexMap<String, Tensor>) -> Result<()> {
        self.shift = state["shift"].to_vec1()?[0];
        Ok(())
    }
}
impl Preparation for Shifting {
    fn epochs(&self) -> usize {
        self.preparation
    }
    fn step(&mut self, batch: &Batch) -> Result<f64> {
        self.shift += f64::from(batch.images.mean_all()?.to_scalar::<f32>()?) * 1e-2 * (self.epoch + 1) as f64;
        Ok(self.shift)
    }
}

#[test]
fn a_preparation_leaves_model_and_schedule_alone_and_the_rules_state_survives_every_interruption() {
    let config = TrainingConfig { schedule: Schedule::MultiStep { milestones: vec![1], gamma: 0.5 }, ..config(5) };
    let source = Rotating(batches(3));
    let mut whole = model(0);
    let before = whole.state.digest().unwrap();
    let mut expected_rule = Shifting::new();
    let expected = train_with(&mut expected_rule, &mut whole, &source, &config, None, &mut IgnoreProgress).unwrap();
    let rates: Vec<f64> = expected.history.iter().map(|report| report.learning_rate).collect();
    assert_eq!(rates, [0.1, 0.1, 0.1, 0.05, 0.05], "the schedule counts from the model's first epoch");
    let classified: Vec<bool> = expected.history.iter().map(|report| report.train_accuracy.is_some()).collect();
    assert_eq!(classified, [false, false, true, true, true]);

    for epoch in 1..5 {
        let folder = tempfile::tempdir().unwrap();
        let mut observer = Keeper { interrupt_at: Some((epoch, 1)), ..keeper(&folder) };
        train_with(&mut Shifting::new(), &mut model(0), &source, &config, None, &mut observer).unwrap();
        let checkpoint = Checkpoint::load(&observer.path, model(0).architecture.modules()).unwrap();
        assert_eq!(checkpoint.state().digest().unwrap() == before, epoch <= 2);
        let (mut resumed, mut rule) = (model(99), Shifting::new());
        let summary =
            train_with(&mut rule, &mut resumed, &source, &config, Some(checkpoint), &mut IgnoreProgress).unwrap();
        assert_eq!(without_time(&summary.history), without_time(&expected.history));
        assert_eq!(resumed.state.digest().unwrap(), whole.state.digest().unwrap(), "interrupted in epoch {epoch}");
        assert_eq!(rule.shift.to_bits(), expected_rule.shift.to_bits());
    }
}

/// Everything about an epoch but how long it took.
fn without_time(history: &[EpochReport]) -> Vec<EpochReport> {
    history.iter().map(|report| EpochReport { seconds: 0.0, ..*report }).collect()
}

#[test]
fn training_learns_to_tell_bright_from_dark() {
    let mut model = model(0);
    let before = model.predict(&batches(6)).unwrap().accuracy();
    let summary = train(&mut model, &Rotating(batches(6)), &config(10), None, &mut IgnoreProgress).unwrap();
    let after = model.predict(&batches(6)).unwrap();
    assert_eq!(summary.outcome, Outcome::Completed);
    assert!(before < 0.5 && after.accuracy() > 0.7, "{before} {after:?}");
    assert!(summary.history[9].mean_loss < summary.history[0].mean_loss / 2.0);
    assert_eq!(model.state.get("bn1.num_batches_tracked").unwrap().to_scalar::<i64>().unwrap(), 60);
}

#[test]
fn training_killed_in_any_epoch_and_resumed_ends_with_the_same_bits() {
    for schedule in [Schedule::Cosine { t_max: 10 }, Schedule::Plateau { factor: 0.5, patience: 0, threshold: 0.2 }] {
        let config = TrainingConfig { schedule, ..config(5) };
        let source = Rotating(batches(4));
        let mut whole = model(0);
        let expected = train(&mut whole, &source, &config, None, &mut IgnoreProgress).unwrap();
        let digest = whole.state.digest().unwrap();
        assert_ne!(digest, model(0).state.digest().unwrap());
        for epoch in 1..5 {
            let folder = tempfile::tempdir().unwrap();
            let mut observer = Keeper { interrupt_at: Some((epoch, 2)), ..keeper(&folder) };
            let first = train(&mut model(0), &source, &config, None, &mut observer).unwrap();
            assert_eq!((first.outcome, first.history.len()), (Outcome::Interrupted, epoch));

            // A new process: other weights, everything else from the file.
            let mut resumed = model(99);
            let checkpoint = Checkpoint::load(&observer.path, resumed.architecture.modules()).unwrap();
            assert_eq!(checkpoint.next_epoch(), epoch);
            let second = train(&mut resumed, &source, &config, Some(checkpoint), &mut IgnoreProgress).unwrap();
            assert_eq!(second.outcome, Outcome::Completed);
            assert_eq!(without_time(&second.history), without_time(&expected.history));
            assert_eq!(resumed.state.digest().unwrap(), digest, "interrupted in epoch {epoch}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_with_any_number_of_threads() {
    let digest = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut model = model(3);
            train(&mut model, &Rotating(batches(3)), &config(2), None, &mut IgnoreProgress).unwrap();
            model.state.digest().unwrap()
        })
    };
    assert_eq!(digest(1), digest(2));
}

#[test]
fn an_observer_can_end_training_after_an_epoch_with_the_model_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = model(0);
    let mut observer = Keeper { stop_after: Some(2), ..keeper(&folder) };
    let summary = train(&mut model, &batches(2), &config(9), None, &mut observer).unwrap();
    assert_eq!((summary.outcome, summary.history.len()), (Outcome::Stopped, 3));
    // Killed now and resumed, the third epoch is trained again and ends training again.
    let checkpoint = Checkpoint::load(&observer.path, model.architecture.modules()).unwrap();
    let mut resumed = crate::tiny::model(1);
    let summary = train(&mut resumed, &batches(2), &config(9), Some(checkpoint), &mut observer).unwrap();
    assert_eq!((summary.outcome, summary.history.len()), (Outcome::Stopped, 3));
    assert_eq!(resumed.state.digest().unwrap(), model.state.digest().unwrap());
}

#[test]
fn a_checkpoint_kept_by_cloning_does_not_move_with_the_training() {
    struct First(Option<(Checkpoint, String)>);
    impl TrainingObserver for First {
        fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<()> {
            let digest = checkpoint.state().digest()?;
            self.0.get_or_insert((checkpoint.clone(), digest));
            Ok(())
        }
    }
    let mut first = First(None);
    train(&mut model(0), &batches(2), &config(3), None, &mut first).unwrap();
    let (checkpoint, digest) = first.0.unwrap();
    assert_eq!(checkpoint.next_epoch(), 1);
    assert_eq!(checkpoint.state().digest().unwrap(), digest);
    let mut resumed = model(1);
    train(&mut resumed, &batches(2), &config(3), Some(checkpoint), &mut IgnoreProgress).unwrap();
    let mut whole = model(0);
    train(&mut whole, &batches(2), &config(3), None, &mut IgnoreProgress).unwrap();
    assert_eq!(resumed.state.digest().unwrap(), whole.state.digest().unwrap());
}

#[test]
fn a_kept_training_comes_back_with_its_notes_to_the_run_that_kept_it_and_to_no_other() {
    #[derive(Default)]
    struct Shelf(Option<(String, IndexMap<String, Tensor>)>);
    impl crate::Keeper for Shelf {
        fn keep(&mut self, stage: &str, run: &str, state: &IndexMap<String, Tensor>) -> Result<()> {
            let copies = state.iter().map(|(name, tensor)| Ok((name.clone(), tensor.copy()?)));
            self.0 = Some((format!("{stage}, {run}"), copies.collect::<Result<_>>()?));
            Ok(())
        }
        fn kept(&mut self, stage: &str, run: &str) -> Option<IndexMap<String, Tensor>> {
            self.0.as_ref().filter(|(kept, _)| *kept == format!("{stage}, {run}")).map(|(_, state)| state.clone())
        }
    }
    struct Watcher<'s>(&'s mut Shelf);
    impl TrainingObserver for Watcher<'_> {
        fn step(&mut self, report: &StepReport) -> ControlFlow<()> {
            if (report.epoch, report.step) == (2, 0) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
        fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<()> {
            checkpoint.keep(self.0, "training", "a", &format!("after {}", checkpoint.next_epoch()))
        }
    }
    let mut shelf = Shelf::default();
    train(&mut model(0), &batches(2), &config(4), None, &mut Watcher(&mut shelf)).unwrap();
    let mut resumed = model(1);
    let modules = resumed.architecture.modules().to_vec();
    assert!(Checkpoint::kept(&mut shelf, "training", "b", &modules).is_none());
    let (checkpoint, notes) = Checkpoint::kept(&mut shelf, "training", "a", &modules).unwrap();
    assert_eq!((notes.as_str(), checkpoint.next_epoch()), ("after 2", 2));
    train(&mut resumed, &batches(2), &config(4), Some(checkpoint), &mut IgnoreProgress).unwrap();
    let mut whole = model(0);
    train(&mut whole, &batches(2), &config(4), None, &mut IgnoreProgress).unwrap();
    assert_eq!(resumed.state.digest().unwrap(), whole.state.digest().unwrap());

    // A tensor that is missing, one too many, and one of another shape.
    let (_, state) = shelf.0.unwrap();
    let refused = |change: &dyn Fn(&mut IndexMap<String, Tensor>)| {
        let mut state = state.clone();
        state.shift_remove("notes");
        change(&mut state);
        Checkpoint::from_tensors(state, &modules).unwrap_err().to_string()
    };
    assert!(refused(&|state| drop(state.shift_remove("velocity.linear.bias"))).contains("velocity.linear.bias"));
    assert!(refused(&|state| drop(state.insert("more".into(), whole_tensor()))).contains("`more`"));
    assert!(refused(&|state| drop(state.insert("model.linear.bias".into(), whole_tensor()))).contains("linear.bias"));
}

fn whole_tensor() -> Tensor {
    Tensor::zeros(99, tsbd_tensor::DType::F32, &tsbd_tensor::Device::Cpu).unwrap()
}

#[test]
fn a_checkpoint_of_another_configuration_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut observer = keeper(&folder);
    train(&mut model(0), &batches(2), &config(1), None, &mut observer).unwrap();
    let load = || Checkpoint::load(&observer.path, model(0).architecture.modules()).unwrap();
    let error = train(&mut model(0), &batches(2), &config(2), Some(load()), &mut IgnoreProgress).unwrap_err();
    assert!(error.to_string().contains("epochs: 1"), "{error}");
    let mut ascent = CrossEntropyStep { loss: LossOptions::ascent(), mode: Mode::Train };
    let refused =
        train_with(&mut ascent, &mut model(0), &batches(2), &config(1), Some(load()), &mut IgnoreProgress).unwrap_err();
    assert!(matches!(refused, Error::ForeignCheckpoint { .. }));
}

#[test]
fn a_loss_that_is_not_finite_stops_before_the_weights_with_the_images_named() {
    let mut data = batches(3);
    data[1].images = (&data[1].images * f64::NAN).unwrap();
    let mut model = model(0);
    let error = train(&mut model, &data, &config(2), None, &mut IgnoreProgress).unwrap_err();
    match error {
        Error::NonFiniteLoss { epoch: 0, step: 1, ref indices, .. } => {
            assert_eq!(indices, &(8..16).collect::<Vec<_>>())
        }
        other => panic!("{other}"),
    }
    assert!(error.to_string().contains("epoch 0, step 1"), "{error}");
    for (name, tensor) in model.state.parameters().chain(model.state.buffers()) {
        let sum = tensor.sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(sum.is_finite(), "{name} was touched");
    }
}

#[test]
fn a_step_that_leaves_weights_which_are_not_finite_is_noticed_though_no_loss_follows_it() {
    let mut config = config(1);
    config.sgd.learning_rate = f64::from(f32::MAX);
    let mut model = model(0);
    let error = train(&mut model, &batches(1), &config, None, &mut IgnoreProgress).unwrap_err();
    let Error::NonFiniteState { epoch: 0, name } = &error else { panic!("{error}") };
    assert!(error.is_divergence() && model.state.names().any(|known| known == name), "{error}");
}

#[test]
fn an_epoch_without_batches_is_an_error() {
    let error = train(&mut model(0), &Vec::new(), &config(1), None, &mut IgnoreProgress).unwrap_err();
    assert!(matches!(error, Error::EmptyEpoch { epoch: 0, images: 0 }));
}

#[test]
fn ascending_the_loss_unlearns() {
    let mut model = model(0);
    let data = batches(4);
    train(&mut model, &data, &config(5), None, &mut IgnoreProgress).unwrap();
    let learned = model.predict(&data).unwrap();
    let mut ascent = CrossEntropyStep { loss: LossOptions::ascent(), mode: Mode::Train };
    let sgd = SgdConfig { learning_rate: 0.05, momentum: 0.9, weight_decay: 0.0 };
    let config = TrainingConfig { epochs: 5, sgd, schedule: Schedule::Constant, precision: Precision::F32 };
    let summary = train_with(&mut ascent, &mut model, &data, &config, None, &mut IgnoreProgress).unwrap();
    let unlearned = model.predict(&data).unwrap();
    assert!(unlearned.mean_loss > learned.mean_loss + 1.0, "{} {}", unlearned.mean_loss, learned.mean_loss);
    // What is reported stays the cross-entropy itself.
    assert!(summary.history.iter().all(|report| report.mean_loss > 0.0));
}

#[test]
fn what_a_rule_does_after_a_step_lasts() {
    /// Fine-pruning's mask: some inputs of the head stay cut off.
    struct CutFirstFeature;
    impl StepRule for CutFirstFeature {
        fn compute(&mut self, model: &Model, batch: &Batch) -> Result<Step> {
            model.gradients(batch, Mode::Train, &LossOptions::default())
        }
        fn after(&mut self, model: &mut Model, _: &Batch) -> Result<()> {
            let mut rows = model.state.filter_rows("linear.weight")?;
            rows.iter_mut().for_each(|row| row[0] = 0.0);
            model.state.set_filter_rows("linear.weight", &rows)
        }
        fn describe(&self) -> String {
            "first feature cut".into()
        }
    }
    let mut model = model(0);
    train_with(&mut CutFirstFeature, &mut model, &batches(2), &config(2), None, &mut IgnoreProgress).unwrap();
    let rows = model.state.filter_rows("linear.weight").unwrap();
    assert!(rows.iter().all(|row| row[0] == 0.0 && row[1] != 0.0), "{rows:?}");
}

#[test]
fn a_rule_that_forgets_a_parameter_is_an_error_that_names_it() {
    struct Forgetful;
    impl StepRule for Forgetful {
        fn compute(&mut self, model: &Model, batch: &Batch) -> Result<Step> {
            let step = model.gradients(batch, Mode::Train, &LossOptions::default())?;
            let kept = step.gradients.iter().filter(|(name, _)| *name != "bn1.bias");
            let gradients: ParameterGradients = kept.map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect();
            Ok(Step { gradients, statistics: Statistics::default(), ..step })
        }
        fn describe(&self) -> String {
            "forgetful".into()
        }
    }
    let error =
        train_with(&mut Forgetful, &mut model(0), &batches(1), &config(1), None, &mut IgnoreProgress).unwrap_err();
    assert!(matches!(error, Error::NoGradient { ref parameter } if parameter == "bn1.bias"), "{error}");
}

#[test]
fn a_loss_that_skips_a_layer_is_an_error_that_names_its_first_parameter() {
    let model = model(0);
    let batch = &batches(1)[0];
    // A loss on the features alone: the head gets no gradient.
    let error = model
        .differentiate(Mode::Train, &["avgpool"], |pass| {
            pass.forward(&batch.images)?;
            let features = pass.require_tap("avgpool")?;
            Ok(features.sum()?)
        })
        .unwrap_err();
    assert!(matches!(error, Error::NoGradient { ref parameter } if parameter == "linear.weight"), "{error}");
}

#[test]
fn only_training_mode_gives_statistics_and_only_absorbing_moves_the_estimates() {
    let batch = &batches(1)[0];
    let mut model = model(0);
    let count = |mode| model.gradients(batch, mode, &LossOptions::default()).unwrap().statistics.iter().count();
    assert_eq!([Mode::Train, Mode::TrainKeepingStatistics, Mode::Eval].map(count), [1, 0, 0]);
    let before = model.state.digest().unwrap();
    let step = model.gradients(batch, Mode::Train, &LossOptions::default()).unwrap();
    assert_eq!(model.state.digest().unwrap(), before);
    model.absorb(&step.statistics).unwrap();
    let mean: Vec<f32> = model.state.get("bn1.running_mean").unwrap().to_vec1().unwrap();
    let (_, met) = step.statistics.iter().next().unwrap();
    let expected: Vec<f32> = (&met.mean * 0.1f64).unwrap().to_vec1().unwrap();
    assert!(mean.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 1e-7));
    assert_eq!(model.state.get("bn1.num_batches_tracked").unwrap().to_scalar::<i64>().unwrap(), 1);
}

#[test]
fn a_damaged_checkpoint_is_refused_wherever_the_damage_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut observer = keeper(&folder);
    let mut model = model(0);
    train(&mut model, &batches(1), &config(1), None, &mut observer).unwrap();
    let good = std::fs::read(&observer.path).unwrap();
    let modules = model.architecture.modules();
    assert!(Checkpoint::load(&observer.path, modules).is_ok());
    let refuse = |bytes: &[u8]| {
        std::fs::write(&observer.path, bytes).unwrap();
        let error = Checkpoint::load(&observer.path, modules).unwrap_err();
        assert!(matches!(error, Error::DamagedCheckpoint { .. }), "{error}");
        assert!(error.to_string().contains("training.checkpoint"), "{error}");
    };
    for length in [0, 5, 8, 30, 40, good.len() / 2, good.len() - 1] {
        refuse(&good[..length]);
    }
    for place in (0..good.len()).step_by(97) {
        let mut bad = good.clone();
        bad[place] ^= 1;
        refuse(&bad);
    }
    refuse(&[good.clone(), vec![0]].concat());
    assert!(Checkpoint::load_if_present(folder.path().join("none"), modules).unwrap().is_none());
}

#[test]
fn numbers_of_an_epoch_survive_the_checkpoint_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let mut observer = keeper(&folder);
    let mut model = model(0);
    let summary = train(&mut model, &batches(2), &config(3), None, &mut observer).unwrap();
    let checkpoint = Checkpoint::load(&observer.path, model.architecture.modules()).unwrap();
    assert_eq!(checkpoint.history(), summary.history);
    assert_eq!(checkpoint.state().digest().unwrap(), model.state.digest().unwrap());
    assert!(
        checkpoint.velocities.values().any(|velocity: &Tensor| velocity
            .abs()
            .unwrap()
            .max_all()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap()
            > 0.0)
    );
}

#[test]
fn training_rounds_as_far_as_it_may_and_nothing_that_is_done_with_the_model_later_does() {
    let data = batches(3);
    let trained = |precision| {
        let mut model = model(1);
        let config = TrainingConfig { precision, ..config(2) };
        let summary = train(&mut model, &data, &config, None, &mut IgnoreProgress).unwrap();
        assert_eq!(model.precision, Precision::F32);
        let weights = model.state.get("conv1.weight").unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (weights, summary.history[1].mean_loss)
    };
    let (full, bf16) = (trained(Precision::F32), trained(Precision::Bf16));
    assert_eq!(trained(Precision::Tf32), full, "a CPU has no TF32");
    assert_ne!(full.0, bf16.0);
    let (exact, rounded) = (full.1, bf16.1);
    assert!((exact - rounded).abs() < 0.01 * exact, "{exact} {rounded}");
}

#[test]
fn only_passes_in_training_mode_round() {
    let (mut model, images) = (model(1), &batches(1)[0].images);
    let logits = |model: &Model, mode| model.logits(images, mode).unwrap().to_vec2::<f32>().unwrap();
    let modes = [Mode::Train, Mode::TrainKeepingStatistics, Mode::Eval];
    let full = modes.map(|mode| logits(&model, mode));
    model.precision = Precision::Bf16;
    assert_eq!(
        modes.map(|mode| logits(&model, mode)).iter().zip(&full).map(|(a, b)| a == b).collect::<Vec<_>>(),
        [false, false, true]
    );
    model.precision = Precision::Tf32;
    assert_eq!(modes.map(|mode| logits(&model, mode)), full);
}
