//! What every defense of the registry owes to every network of its registry, whichever they are.

use std::sync::Arc;

use serde_json::Value;
use tsbd_attack::DatasetFacts;
use tsbd_data::{DataRoot, Dataset, DatasetParameters};
use tsbd_defense::{Context, DEFENSES, Defense, DefenseCommon, DefenseEntry, Evaluation, NoObserver};
use tsbd_models::{MODELS, ModelEntry, ModelParameters};
use tsbd_nn::{Model, Streams};
use tsbd_tensor::Device;

/// Drawn images of 16 pixels, ten classes: 80 for training, 20 for testing.
fn dataset() -> Dataset {
    let parameters = DatasetParameters {
        train_images: Some(80),
        test_images: Some(20),
        image_size: Some(16),
        ..DatasetParameters::new("shapes")
    };
    tsbd_data::load(&parameters, &DataRoot::new("/nowhere")).unwrap()
}

/// The defense with all training images, as it comes but for its counts of epochs, passes, rounds and iterations: those are 1.
fn quick(entry: &DefenseEntry) -> Box<dyn Defense> {
    let common = DefenseCommon { clean_ratio: 1.0, batch_size: 40, ..DefenseCommon::default() };
    let schema = (entry.schema)();
    let fields = schema.get("properties").and_then(Value::as_object).unwrap().keys();
    let counts =
        fields.filter(|field| ["epochs", "passes", "rounds", "iterations"].iter().any(|end| field.ends_with(end)));
    let mut own: serde_json::Map<String, Value> = counts.map(|field| (field.clone(), 1.into())).collect();
    if entry.name == "nc" {
        // Whatever mask is the smallest counts as an outlier: otherwise it would leave the network as it is.
        own.insert("outlier_threshold".to_owned(), 1e-9.into());
    }
    (entry.configure)(&common, own.into()).unwrap()
}

/// The untrained network of two channels.
fn untrained(entry: &ModelEntry, facts: &DatasetFacts) -> Model {
    let name = entry.name.to_owned();
    let parameters = ModelParameters { name, width: 2, classes: facts.classes, image_size: facts.size };
    let network = tsbd_models::build(&parameters).unwrap();
    Model::new(network, &mut Streams::new(0).stream("contract/weights", 0)).unwrap()
}

/// Name and shape of every tensor, in order.
fn tensors(model: &Model) -> Vec<(String, Vec<usize>)> {
    model.state.entries().map(|(name, entry)| (name.to_owned(), entry.tensor.dims().to_vec())).collect()
}

#[test]
fn every_defense_repairs_every_network_and_leaves_the_one_it_was_given_as_it_was() {
    let dataset = dataset();
    let facts = DatasetFacts::of(&dataset);
    for network in MODELS {
        let model = untrained(network, &facts);
        let digest = model.state.digest().unwrap();
        for entry in DEFENSES {
            let pair = format!("{} on {}", entry.name, network.name);
            let defense = quick(entry);
            defense.check(model.architecture.as_ref(), &facts).unwrap_or_else(|error| panic!("{pair}: {error}"));
            let clean = defense.clean_subset(dataset.train.clone(), 0).unwrap();
            let mut context = Context {
                streams: Streams::new(0),
                device: Device::Cpu,
                normalization: dataset.normalization,
                augmentation: dataset.augmentation(),
                clean_test: dataset.test.clone(),
                evaluate: &|_: &Model| Ok(Evaluation { acc: 0.5, asr: Some(0.5), ..Evaluation::default() }),
                unlearned: None,
                observer: &mut NoObserver,
            };
            let repaired =
                defense.repair(&model, &clean, &mut context).unwrap_or_else(|error| panic!("{pair}: {error}"));
            assert_eq!(model.state.digest().unwrap(), digest, "{pair} touched its input");
            assert!(Arc::ptr_eq(&repaired.model.architecture, &model.architecture), "{pair}");
            assert_eq!(tensors(&repaired.model), tensors(&model), "{pair}");
            for (name, tensor) in repaired.model.state.parameters().chain(repaired.model.state.buffers()) {
                let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert!(values.iter().all(|value| value.is_finite()), "{pair}: {name} is not finite");
            }
            // Pruning may find nothing in a network that was never trained; whoever trains has changed it.
            if !["anp", "clp", "rnp"].contains(&entry.name) {
                assert_ne!(repaired.model.state.digest().unwrap(), digest, "{pair} did nothing");
            }
        }
    }
}
