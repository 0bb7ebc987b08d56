use std::ops::ControlFlow;

use indexmap::IndexMap;
use serde_json::json;
use tsbd_attack::groundwork::NoObserver;
use tsbd_attack::{GroundworkObserver, TrainingSource};
use tsbd_data::Normalization;
use tsbd_nn::{AdamConfig, Layout, Module};
use tsbd_tensor::{DType, Device};
use tsbd_testing::Golden;

use super::*;
use crate::networks::{BITS, Decoder};
use crate::training::{ImageWeight, Pair};

fn sequence(count: usize, start: usize) -> Vec<f64> {
    (0..count).map(|index| ((index + start) as f64 * 0.7548).sin()).collect()
}

/// The weights of the reference: a sine of each element's number, which goes on from tensor to tensor.
fn weights(modules: &[Module], start: &mut usize) -> StateDict {
    let value = |_: &Module, slot: &tsbd_nn::Slot| {
        let dims = slot.layout.file_dims(&slot.dims);
        let fan_in: usize = if dims.len() > 1 { dims[1..].iter().product() } else { 16 };
        let count = dims.iter().product();
        let scale = (6.0 / fan_in as f64).sqrt();
        let values = sequence(count, *start).into_iter().map(|value| value * scale).collect::<Vec<f64>>();
        *start += count;
        let tensor = Tensor::from_vec(values, dims, &Device::Cpu)?;
        Ok(if slot.layout == Layout::Convolution { tensor.permute((2, 3, 1, 0))?.contiguous()? } else { tensor })
    };
    StateDict::build(modules, value).unwrap()
}

/// A tensor's numbers in PyTorch's order.
fn numbers(tensor: &Tensor) -> Vec<f64> {
    let tensor = if tensor.rank() == 4 && tensor.dims()[0] <= 3 {
        tensor.permute((3, 2, 0, 1)).unwrap()
    } else {
        tensor.clone()
    };
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

#[track_caller]
fn close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / expected.abs().max(1e-3);
        assert!(error < tolerance, "{what} {index}: {found} for {expected}");
    }
}

#[test]
fn outputs_losses_gradients_and_a_step_of_training_are_pytorchs_at_both_sizes() {
    for size in [32, 64] {
        // `tools/reference/ssba.py` says what they are.
        let golden = Golden::read(&format!("ssba/{size}"));
        let (encoder, decoder) = (Encoder::new(4), Decoder::new(4, size));
        let mut start = 1;
        let encoder_state = weights(encoder.modules(), &mut start);
        let decoder_state = weights(decoder.modules(), &mut start);
        let mut pair = Pair { encoder, decoder, encoder_state, decoder_state };
        let images = sequence(2 * size * size * 3, 7).into_iter().map(|value| value / 2.0 + 0.5).collect();
        let images = Tensor::from_vec(images, (2, size, size, 3), &Device::Cpu).unwrap();
        let bits = sequence(2 * BITS, 3).into_iter().map(|value| f64::from(u8::from(value > 0.0))).collect();
        let bits = Tensor::from_vec(bits, (2, BITS), &Device::Cpu).unwrap();

        let pass = Pass::new(&pair.encoder, &pair.encoder_state, Mode::Eval);
        let pictures = pair.encoder.pictures(&pass, &Var::constant(bits.clone()), size).unwrap();
        let encoded = pair.encoder.encode(&pass, &Var::constant(images.clone()), &pictures).unwrap();
        let found = encoded.tensor().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        close("encoded", &found, &golden.doubles("encoded"), 1e-6);
        let pass = Pass::new(&pair.decoder, &pair.decoder_state, Mode::Eval);
        let logits = pair.decoder.decode(&pass, &encoded).unwrap();
        close("logits", &numbers(logits.tensor()), &golden.doubles("logits"), 1e-9);

        let (_, gradients) = pair.differentiate(&images, &bits, 1.5).unwrap();
        let gradients: Vec<_> =
            gradients.iter().flat_map(|gradients| gradients.iter()).map(|(_, tensor)| numbers(tensor)).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let product = |values: &Vec<f64>| dot(values, &sequence(values.len(), 5));
        let norms: Vec<f64> = gradients.iter().map(|values| dot(values, values).sqrt()).collect();
        close("norms of gradients", &norms, &golden.doubles("gradient.norms"), 1e-9);
        close(
            "gradients",
            &gradients.iter().map(product).collect::<Vec<_>>(),
            &golden.doubles("gradient.products"),
            1e-9,
        );

        let before = [pair.encoder_state.clone(), pair.decoder_state.clone()];
        let mut optimizers = pair.optimizers(AdamConfig::new(1e-3)).unwrap();
        let losses = pair.step(&images, &bits, 1.5, &mut optimizers).unwrap();
        let expected = &golden.doubles("before");
        close("losses before", &[losses.image, losses.total], &[expected[0], expected[2]], 1e-12);
        let after = [&pair.encoder_state, &pair.decoder_state];
        let changes = after.iter().zip(&before).flat_map(|(after, before)| {
            let change = after.difference(before).unwrap();
            change.iter().map(|(_, tensor)| product(&numbers(tensor))).collect::<Vec<_>>()
        });
        close("changes", &changes.collect::<Vec<_>>(), &golden.doubles("change.products"), 1e-6);
        let losses = pair.differentiate(&images, &bits, 1.5).unwrap().0;
        let expected = &golden.doubles("after");
        close("losses after", &[losses.image, losses.total], &[expected[0], expected[2]], 1e-9);
    }
}

#[test]
fn levels_are_rounded_with_halves_up_and_cut_off() {
    let values: Vec<f32> = [0.0, 0.499, 0.5, 1.4999, 1.5, 254.5, 255.0].map(|level: f32| level / 255.0).into();
    let values = [&values[..], &[-0.1, 1.1]].concat();
    let found = levels(&Tensor::new(values.as_slice(), &Device::Cpu).unwrap()).unwrap();
    assert_eq!(found, [0, 0, 1, 1, 2, 255, 255, 0, 255]);
}

/// In `f32` most convolutions are computed by Winograd's algorithm, some of them over channels of zeros.
#[test]
fn images_encoded_in_single_precision_are_those_in_double_precision() {
    let encoder = Encoder::new(16);
    let state = weights(encoder.modules(), &mut 1);
    let images = sequence(3 * 32 * 32 * 3, 7).into_iter().map(|value| value / 2.0 + 0.5).collect();
    let images = Tensor::from_vec(images, (3, 32, 32, 3), &Device::Cpu).unwrap();
    let bits = sequence(3 * BITS, 3).into_iter().map(|value| f64::from(u8::from(value > 0.0))).collect();
    let bits = Tensor::from_vec(bits, (3, BITS), &Device::Cpu).unwrap();
    let encoded = |dtype: DType| {
        let state = state.to_dtype(dtype).unwrap();
        let of = |tensor: &Tensor| Var::constant(tensor.to_dtype(dtype).unwrap());
        let pass = Pass::new(&encoder, &state, Mode::Eval);
        let pictures = encoder.pictures(&pass, &of(&bits), 32).unwrap();
        encoder.encode(&pass, &of(&images), &pictures).unwrap().tensor().to_dtype(DType::F32).unwrap()
    };
    let [single, double] = [DType::F32, DType::F64].map(encoded);
    let largest = (&single - &double).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(largest < 2e-4, "{largest}");
    let [single, double] = [single, double].map(|images| levels(&images).unwrap());
    let differing = single.iter().zip(&double).filter(|(a, b)| a != b).count();
    assert!(differing * 50 < double.len(), "{differing} of {} levels differ", double.len());
}

#[test]
fn the_images_loss_waits_until_fingerprints_are_readable_and_then_rises() {
    let parameters =
        Parameters { image_loss_weight: 10.0, image_loss_wait: 2, image_loss_ramp: 4, ..Parameters::default() };
    let mut weight = ImageWeight::new(&parameters);
    let mut weights = Vec::new();
    // Readable once is enough: what comes after does not matter.
    for accuracy in [0.5, 0.9, 0.95, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5] {
        weights.push(weight.now());
        weight.advance(accuracy);
    }
    assert_eq!(weights, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.5, 5.0, 7.5, 10.0]);
    assert_eq!(weight.now(), 10.0);
}

/// Drawn images of 16 pixels: 96 for training and 40 for testing.
fn dataset() -> Arc<Dataset> {
    let mut stream = Streams::new(3).stream("images", 0);
    let mut split = |count: usize| {
        let images = (0..count).flat_map(|_| {
            let color = [stream.uniform(), stream.uniform(), stream.uniform()];
            (0..16 * 16 * 3)
                .map(|value| (40.0 + 160.0 * color[value % 3] + 30.0 * stream.uniform()) as u8)
                .collect::<Vec<_>>()
        });
        Images::new(images.collect(), (0..count as u32).map(|index| index % 2).collect(), (16, 16), 2)
    };
    let (train, test) = (split(96), split(40));
    Arc::new(Dataset::new("test", train, test, &["a", "b"], Normalization::IDENTITY, true))
}

fn small() -> Value {
    json!({
        "encoder_width": 2, "decoder_width": 2, "encoder_epochs": 2, "batch_size": 32, "image_loss_wait": 0, "image_loss_ramp": 1,
    })
}

fn configured(own: Value) -> Box<dyn Attack> {
    (SSBA.configure)(&Poisoning { poisoning_ratio: 0.5, ..Poisoning::default() }, own).unwrap()
}

fn made(attack: &dyn Attack, clean: &Arc<Dataset>, seed: u64) -> Material {
    let mut context = GroundworkContext {
        clean,
        model: None,
        streams: Streams::new(seed),
        device: Device::Cpu,
        observer: &mut NoObserver,
    };
    attack.groundwork().unwrap().make(&mut context).unwrap()
}

fn digest(material: &Material) -> Vec<(String, Vec<f64>)> {
    material.tensors().map(|(name, tensor)| (name.to_owned(), numbers(tensor))).collect()
}

#[test]
fn the_same_seed_trains_the_same_encoder_and_another_seed_another() {
    let (clean, attack) = (dataset(), configured(small()));
    let first = made(attack.as_ref(), &clean, 0);
    assert_eq!(digest(&first), digest(&made(attack.as_ref(), &clean, 0)));
    let other = made(attack.as_ref(), &clean, 1);
    for name in ["fingerprint", "encoder.conv1.weight"] {
        assert_ne!(numbers(first.tensor(name).unwrap()), numbers(other.tensor(name).unwrap()), "{name}");
    }
    for metric in ["bit_accuracy", "image_mse"] {
        assert!((0.0..1.0).contains(&first.metrics[metric]), "{metric} {}", first.metrics[metric]);
    }
}

/// Keeps the last state in memory and the metrics of each round, and stops after so many steps.
#[derive(Default)]
struct Keeping {
    stop_after: Option<usize>,
    kept: Option<(String, IndexMap<String, Tensor>)>,
    rounds: Vec<Vec<f64>>,
}

impl GroundworkObserver for Keeping {
    fn step(&mut self, _: &str, done: usize, _: usize, _: Option<f64>) -> ControlFlow<()> {
        if self.stop_after == Some(done) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn round(&mut self, _: &str, round: usize, metrics: &[(&str, f64)]) {
        assert_eq!((round, metrics.len()), (self.rounds.len(), 4));
        self.rounds.push(metrics.iter().map(|(_, value)| *value).collect());
    }

    fn keep(&mut self, run: &str, state: &IndexMap<String, Tensor>) -> tsbd_nn::Result<()> {
        // A copy: the training goes on in the same tensors.
        let copies = state.iter().map(|(name, tensor)| Ok((name.clone(), tensor.copy()?)));
        self.kept = Some((run.to_owned(), copies.collect::<tsbd_nn::Result<_>>()?));
        Ok(())
    }

    fn kept(&mut self, run: &str) -> Option<IndexMap<String, Tensor>> {
        self.kept.as_ref().filter(|(of, _)| of == run).map(|(_, state)| state.clone())
    }
}

#[test]
fn a_training_that_was_stopped_goes_on_from_its_last_epoch_and_ends_with_the_same_bits() {
    let clean = dataset();
    let mut own = small();
    own["encoder_epochs"] = json!(3);
    own["image_loss_wait"] = json!(0);
    let attack = configured(own);
    let make = |observer: &mut Keeping, seed| {
        let mut context = GroundworkContext {
            clean: &clean,
            model: None,
            streams: Streams::new(seed),
            device: Device::Cpu,
            observer,
        };
        attack.groundwork().unwrap().make(&mut context)
    };
    let bits = |material: &Material| {
        let tensors = material.tensors().map(|(name, tensor)| (name.to_owned(), numbers(tensor)));
        (tensors.collect::<Vec<_>>(), material.metrics.clone())
    };
    let mut watched = Keeping::default();
    let whole = make(&mut watched, 0).unwrap();
    let batches = clean.train.len().div_ceil(read::<Parameters>(&small()).unwrap().batch_size);
    for epoch in [1, 2] {
        let mut observer = Keeping { stop_after: Some(epoch * batches + 1), ..Keeping::default() };
        assert!(matches!(make(&mut observer, 0), Err(Error::Stopped { .. })));
        assert_eq!(observer.rounds, watched.rounds[..epoch]);
        let kept = observer.kept.clone();
        let mut observer = Keeping { kept: observer.kept, ..Keeping::default() };
        let resumed = make(&mut observer, 0).unwrap();
        assert_eq!(observer.rounds, watched.rounds, "rounds that were kept are told again");
        assert!(bits(&resumed) == bits(&whole), "stopped in epoch {epoch}");
        // What another seed kept is of no use.
        let mut other = Keeping { kept: observer.kept, ..Keeping::default() };
        assert!(bits(&make(&mut other, 1).unwrap()) == bits(&make(&mut Keeping::default(), 1).unwrap()));
        // So brief a training never makes fingerprints readable: that they were belongs to the state too.
        let (run, mut state) = kept.unwrap();
        state.insert("readable_steps".to_owned(), Tensor::new(5i64, &Device::Cpu).unwrap());
        let mut readable = Keeping { kept: Some((run, state)), ..Keeping::default() };
        assert!(bits(&make(&mut readable, 0).unwrap()) != bits(&whole) && readable.rounds[2][3] > 0.0);
        assert_eq!(watched.rounds[2][3], 0.0);
    }
}

#[test]
fn poisoned_images_are_encoded_alike_in_any_batch_and_with_any_number_of_threads() {
    let (clean, attack) = (dataset(), configured(small()));
    let material = made(attack.as_ref(), &clean, 0);
    let poisoner = attack.prepare(&clean, &Streams::new(0), Some(&material)).unwrap();
    let TrainingSource::Static(train) = &poisoner.train else { panic!("not static") };
    assert_eq!((train.poisoned().len(), poisoner.facts.asr_denominator), (48, 20));
    let parameters = Parameters { encoder_width: 2, ..Parameters::default() };
    let hiding = Hiding::of(&parameters, Some(&material)).unwrap();
    for &index in train.poisoned() {
        let alone = hiding.stamp(&clean.train, &[index]).unwrap();
        assert!(alone == train.image(index) && alone != clean.train.image(index), "image {index}");
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let serial = pool.install(|| attack.prepare(&clean, &Streams::new(0), Some(&material)).unwrap());
    let (serial, test) = (serial.test.unwrap(), poisoner.test.unwrap());
    assert!((0..test.len()).all(|position| serial.image(position) == test.image(position)));
}

#[test]
fn poisoning_without_an_encoder_or_with_one_of_another_width_is_refused() {
    let (clean, attack) = (dataset(), configured(small()));
    let nothing = attack.prepare(&clean, &Streams::new(0), None).unwrap_err();
    assert!(matches!(nothing, Error::NoMaterial));
    let material = made(attack.as_ref(), &clean, 0);
    let wider = configured(json!({"encoder_width": 4})).prepare(&clean, &Streams::new(0), Some(&material)).unwrap_err();
    assert!(wider.to_string().contains("conv1.weight"), "{wider}");
}

#[test]
fn sizes_and_trainings_that_cannot_be_are_refused() {
    let facts = |size| DatasetFacts::balanced(10, 100, 100, size);
    configured(json!({})).check(&facts(64)).unwrap();
    let error = configured(json!({})).check(&facts(28)).unwrap_err();
    assert_eq!(
        (error.field.as_str(), error.way_out.as_str()),
        ("image_size", "set data.image_size to one, for example 32")
    );
    let positive = ["learning_rate", "image_loss_weight", "image_loss_ramp"];
    for field in ["encoder_width", "decoder_width", "encoder_epochs", "batch_size"].into_iter().chain(positive) {
        assert_eq!((SSBA.configure)(&Poisoning::default(), json!({field: 0})).unwrap_err().field, field);
    }
    let huge = (SSBA.configure)(&Poisoning::default(), json!({"encoder_width": 1025})).unwrap_err();
    assert_eq!((huge.field.as_str(), huge.way_out.as_str()), ("encoder_width", "give a whole number from 1 to 1024"));
}

#[test]
fn parameters_are_canonical_and_what_the_groundwork_needs_makes_the_same_groundwork() {
    let attack = configured(small());
    let parameters = attack.parameters();
    assert_eq!(SSBA.from_parameters(&parameters).unwrap().parameters(), parameters);
    let groundwork = attack.groundwork().unwrap().parameters();
    assert!(groundwork.get("poisoning_ratio").is_none() && groundwork["encoder_width"] == 2);
    let again = SSBA.from_parameters(&groundwork).unwrap();
    assert_eq!(again.groundwork().unwrap().parameters(), groundwork);
}
