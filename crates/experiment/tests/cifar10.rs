//! Poisoned images of the real CIFAR-10, every pixel of them, against numpy and Pillow. Digests alone are stored; they
//! are made by `tools/reference/triggers.py`, which says of what.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use sha2::{Digest, Sha256};
use tsbd_attack::{Poisoning, TrainingSource};
use tsbd_data::{CHANNELS, DataRoot, DatasetParameters, ImageSource, write_png};
use tsbd_experiment::registry;
use tsbd_nn::Streams;

fn digest<'a>(images: impl Iterator<Item = &'a [u8]>) -> String {
    let mut hasher = Sha256::new();
    images.for_each(|image| hasher.update(image));
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The pattern that the reference program gives LF, as a picture in `folder`.
fn pattern(folder: &Path, size: usize) -> PathBuf {
    let level = |place: usize| {
        let (pixel, channel) = (place / CHANNELS, place % CHANNELS);
        ((7 * (pixel / size) + 3 * (pixel % size) + 11 * channel) % 52) as u8
    };
    let path = folder.join(format!("{size}.png"));
    write_png(&path, &(0..size * size * CHANNELS).map(level).collect::<Vec<u8>>(), (size, size)).unwrap();
    path
}

#[test]
fn poisoned_images_of_cifar10_are_numpys_and_pillows_at_both_sizes() {
    let root = DataRoot::discover(None);
    if root.find("cifar-10-batches-bin").is_none() {
        // Past the capture of `println!`: a skipped test should be seen.
        writeln!(std::io::stderr(), "skipped: CIFAR-10 is not on this machine (run `tsbd data fetch cifar10`)")
            .unwrap();
        return;
    }
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/reference/golden/triggers/cifar10.json");
    let golden: BTreeMap<String, String> = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for (size, limits, poisoning_ratio) in [(32, None, 0.1), (64, Some((2000, 500)), 0.05)] {
        let parameters = DatasetParameters {
            train_images: limits.map(|(train, _)| train),
            test_images: limits.map(|(_, test)| test),
            image_size: Some(size),
            ..DatasetParameters::new("cifar10")
        };
        let clean = Arc::new(tsbd_data::load(&parameters, &root).unwrap());
        let given = json!({"pattern": pattern(folder.path(), size)});
        for (name, own) in [("badnets", json!({})), ("blended", json!({})), ("sig", json!({})), ("lf", given)] {
            let entry = registry::attack(name).unwrap();
            let attack = (entry.configure)(&Poisoning { poisoning_ratio, ..Poisoning::default() }, own).unwrap();
            let begin = Instant::now();
            let poisoner = attack.prepare(&clean, &Streams::new(0), None).unwrap();
            let seconds = begin.elapsed().as_secs_f64();
            let TrainingSource::Static(train) = &poisoner.train else { unreachable!("{name} poisons before training") };
            let test = poisoner.test.unwrap();
            println!("{name} at {size}: {} and {} images in {seconds:.3} s", train.poisoned().len(), test.len());
            let found = [
                ("train", digest(train.poisoned().iter().map(|&index| train.image(index)))),
                ("test", digest((0..test.len()).map(|position| test.image(position)))),
            ];
            for (split, found) in found {
                assert_eq!(found, golden[&format!("{name}.{split}.{size}")], "{name}, {split}, {size}");
                compared += 1;
            }
        }
    }
    assert_eq!(compared, golden.len());
}
