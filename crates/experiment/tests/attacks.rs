//! What every attack of the registry owes, whichever it is.

use std::sync::Arc;

use serde_json::{Value, json};
use tsbd_attack::groundwork::NoObserver;
use tsbd_attack::{
    Attack, AttackEntry, ControlledTraining, DatasetFacts, GroundworkContext, LEARNED_TRIGGER, LabelRule,
    ParameterError, PoisonedImages, Poisoner, Poisoning, TrainingPlan, TrainingSource,
};
use tsbd_data::{DataRoot, Dataset, DatasetParameters, ImageSource};
use tsbd_experiment::ATTACKS;
use tsbd_nn::{Batch, Model, Precision, Schedule, SgdConfig, Streams, TrainingConfig};
use tsbd_tensor::Device;

/// What makes an attack that trains or searches first quick. An attack without a line here runs with its defaults.
fn quick(name: &str) -> Value {
    match name {
        "input-aware" => json!({"generator_width": 2, "mask_epochs": 1}),
        "lf" => json!({"search_images": 8, "passes": 1, "steps": 40, "input": "normalized"}),
        "ssba" => json!({"encoder_width": 4, "decoder_width": 4, "encoder_epochs": 2}),
        "trojan" => json!({"steps": 3}),
        _ => json!({}),
    }
}

fn attacks() -> impl Iterator<Item = &'static AttackEntry> {
    ATTACKS.iter().copied().filter(|entry| entry.name != "none")
}

fn configured(entry: &AttackEntry, poisoning: &Poisoning) -> Result<Box<dyn Attack>, ParameterError> {
    (entry.configure)(poisoning, quick(entry.name))
}

/// Drawn images of 16 pixels, ten classes: 80 for training, 40 for testing.
fn dataset() -> Arc<Dataset> {
    let parameters = DatasetParameters {
        train_images: Some(80),
        test_images: Some(40),
        image_size: Some(16),
        ..DatasetParameters::new("shapes")
    };
    Arc::new(tsbd_data::load(&parameters, &DataRoot::new("/nowhere")).unwrap())
}

/// Four of the 80 training images, which every class can supply.
fn poisoning() -> Poisoning {
    Poisoning { poisoning_ratio: 0.05, target_class: 1, ..Poisoning::default() }
}

fn poisoned(entry: &AttackEntry, poisoning: &Poisoning, clean: &Arc<Dataset>, seed: u64) -> Poisoner {
    let attack = configured(entry, poisoning).unwrap();
    let facts = DatasetFacts::of(clean);
    attack.check(&facts).unwrap();
    let streams = Streams::new(seed);
    let material = attack.groundwork().map(|groundwork| {
        let network = tsbd_models::ModelParameters {
            name: "preact-resnet18".to_owned(),
            width: 4,
            classes: facts.classes,
            image_size: facts.size,
        };
        let network = tsbd_models::build(&network).unwrap();
        // One model for all seeds: not every untrained one takes some image for another class than the target.
        let model = Model::new(network, &mut Streams::new(0).stream("contract/weights", 0)).unwrap();
        let mut context = GroundworkContext {
            clean,
            model: groundwork.needs_clean_model().then_some(&model),
            streams,
            device: Device::Cpu,
            observer: &mut NoObserver,
        };
        groundwork.make(&mut context).unwrap()
    });
    attack.prepare(clean, &streams, material.as_ref()).unwrap()
}

/// The poisoned training images; `None` if the attack controls the training, where no fixed image is poisoned.
fn images(poisoner: &Poisoner) -> Option<&PoisonedImages> {
    match &poisoner.train {
        TrainingSource::Static(images) => Some(images),
        TrainingSource::Controlled(_) => None,
    }
}

/// The beginning of a training under the attack's control, in two batches.
fn begun(poisoner: &Poisoner) -> Option<Box<dyn ControlledTraining>> {
    let TrainingSource::Controlled(control) = &poisoner.train else { return None };
    let sgd = SgdConfig { learning_rate: 0.1, momentum: 0.9, weight_decay: 0.0 };
    let schedule = Schedule::Cosine { t_max: 2 };
    let config = TrainingConfig { epochs: 2, sgd, schedule, precision: Precision::F32 };
    let plan = TrainingPlan { config, batch_size: 40, augment: true, device: Device::Cpu };
    Some(control.begin(&plan).unwrap())
}

/// The triggered test images; a trigger that is learned is taken as it is before the first step.
fn with_test(poisoner: Poisoner) -> Poisoner {
    match begun(&poisoner) {
        Some(training) if poisoner.awaits_trigger() => {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(LEARNED_TRIGGER);
            training.save_trigger(&path).unwrap();
            poisoner.with_learned_trigger(&path).unwrap()
        }
        _ => poisoner,
    }
}

#[test]
fn every_attack_changes_the_training_images_it_names_and_no_others() {
    let clean = dataset();
    for entry in attacks() {
        let (name, poisoner) = (entry.name, poisoned(entry, &poisoning(), &clean, 0));
        let Some(train) = images(&poisoner) else {
            assert_eq!(poisoner.facts.poison_count, None, "{name} decides in each batch");
            assert_eq!(begun(&poisoner).unwrap().facts().poison_count, Some(4), "{name}");
            continue;
        };
        let sizes = |source: &dyn ImageSource| (source.len(), source.height(), source.width());
        assert_eq!(sizes(train), sizes(&*clean.train), "{name}");
        assert_eq!((train.poisoned().len(), poisoner.facts.poison_count), (4, Some(4)), "{name}");
        assert_eq!(poisoner.facts.poison_per_class, train.poison_per_class(clean.classes()), "{name}");
        for index in 0..train.len() {
            let (before, after) = (clean.train.image(index), train.image(index));
            if train.poisoned().contains(&index) {
                assert!(train.is_poisoned(index) && before != after, "{name} leaves image {index} as it is");
                assert_eq!((after.len(), train.label(index)), (before.len(), 1), "{name}, image {index}");
            } else {
                assert!(!train.is_poisoned(index) && before == after, "{name} changes image {index}");
                assert_eq!(train.label(index), clean.train.label(index), "{name}, image {index}");
            }
        }
    }
}

#[test]
fn every_attack_triggers_all_test_images_but_those_of_the_target_class() {
    let clean = dataset();
    for entry in attacks() {
        let (name, poisoner) = (entry.name, with_test(poisoned(entry, &poisoning(), &clean, 0)));
        let test = poisoner.test.as_ref().unwrap();
        let others: Vec<usize> = (0..clean.test.len()).filter(|&index| clean.test.label(index) != 1).collect();
        let triggered: Vec<usize> = (0..test.len()).map(|position| test.index(position)).collect();
        assert_eq!((&triggered, poisoner.facts.asr_denominator), (&others, others.len()), "{name}");
        for position in 0..test.len() {
            let index = test.index(position);
            assert_eq!((test.label(position), test.original_label(position)), (1, clean.test.label(index)), "{name}");
            assert_eq!(test.image(position).len(), clean.test.image(index).len(), "{name}");
            assert!(test.image(position) != clean.test.image(index), "{name} leaves test image {index} as it is");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_and_another_seed_poisons_other_images() {
    let clean = dataset();
    let levels = |source: &dyn ImageSource| {
        (0..source.len()).map(|index| (source.label(index), source.image(index).to_vec())).collect::<Vec<_>>()
    };
    let bits = |batch: Batch| {
        let values: Vec<f32> = batch.images.flatten_all().unwrap().to_vec1().unwrap();
        (batch.indices.clone(), values.into_iter().map(f32::to_bits).collect::<Vec<_>>())
    };
    for entry in attacks() {
        // All labels and all levels of what is trained on and of what is measured with.
        let everything = |seed| {
            let poisoner = with_test(poisoned(entry, &poisoning(), &clean, seed));
            let batches = begun(&poisoner)
                .map(|training| training.batches().epoch(0).map(|batch| bits(batch.unwrap())).collect::<Vec<_>>());
            let train = images(&poisoner).map(|train| (train.poisoned().to_vec(), levels(train)));
            (batches, train, levels(&**poisoner.test.as_ref().unwrap()))
        };
        let first = everything(0);
        assert!(first == everything(0), "{}", entry.name);
        // Seeds 0 and 1 happen to draw the same four of the eight images that a clean-label attack may poison.
        let other = everything(2);
        let drawn = |train: &Option<(Vec<usize>, _)>| train.as_ref().map(|(poisoned, _)| poisoned.clone());
        assert!(first.0 != other.0 || drawn(&first.1) != drawn(&other.1), "{}", entry.name);
        match entry.name {
            "badnets" | "blended" | "sig" => assert!(first.2 == other.2, "{}: its trigger is drawn", entry.name),
            "input-aware" | "ssba" | "wanet" => {
                assert!(first.2 != other.2, "{}: its trigger does not depend on the seed", entry.name);
            }
            // Others may do either. The searches of `lf` and `trojan` start from one model here.
            _ => {}
        }
    }
}

#[test]
fn all_to_all_gives_every_image_the_next_class_or_is_refused() {
    let clean = dataset();
    let all_to_all = Poisoning { labels: LabelRule::AllToAll, ..poisoning() };
    for entry in attacks() {
        if let Err(error) = configured(entry, &all_to_all).unwrap().check(&DatasetFacts::of(&clean)) {
            assert_eq!(error.field, "labels", "{}: {error}", entry.name);
            continue;
        }
        let poisoner = with_test(poisoned(entry, &all_to_all, &clean, 0));
        let test = poisoner.test.as_ref().unwrap();
        assert_eq!(test.len(), clean.test.len(), "{}", entry.name);
        let next = |label: u32| (label + 1) % clean.classes() as u32;
        if let Some(train) = images(&poisoner) {
            assert_eq!(train.poisoned().len(), 4, "{}", entry.name);
            assert!(train.poisoned().iter().all(|&index| train.label(index) == next(train.original_label(index))));
        }
        assert!((0..test.len()).all(|position| test.label(position) == next(test.original_label(position))));
    }
}

#[test]
fn ratios_and_classes_that_cannot_be_are_refused_before_anything_is_made() {
    let facts = DatasetFacts::of(&dataset());
    let usual = poisoning();
    for entry in attacks() {
        let refused = |poisoning: Poisoning, field: &str| {
            let error = configured(entry, &poisoning).and_then(|attack| attack.check(&facts)).unwrap_err();
            assert_eq!(error.field, field, "{}: {error}", entry.name);
            assert!(!error.reason.is_empty() && !error.way_out.is_empty(), "{}: {error}", entry.name);
        };
        for poisoning_ratio in [0.0, -0.1, 1.001, f64::NAN, f64::INFINITY, 1e-4] {
            refused(Poisoning { poisoning_ratio, ..usual.clone() }, "poisoning_ratio");
        }
        refused(Poisoning { target_class: 10, ..usual.clone() }, "target_class");
    }
}
