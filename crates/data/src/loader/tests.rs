use std::{collections::HashMap, time::Instant};

use super::*;
use crate::Images;

/// `count` images of `size x size` pixels with distinct values, labels `0, 1, 2, 0, ..`.
fn images(count: usize, size: usize) -> Arc<Images> {
    let pixels = (0..count * size * size * CHANNELS).map(|i| (i * 31 % 251) as u8 + 1).collect();
    Arc::new(Images::new(pixels, (0..count as u32).map(|i| i % 3).collect(), (size, size), 3))
}

fn loader(source: Arc<Images>, batch_size: usize, augmentation: Option<Augmentation>) -> Loader {
    Loader {
        augmentation,
        order: Order::Shuffled("train".to_owned()),
        streams: Streams::new(3),
        ..Loader::evaluation(source, Normalization { mean: [0.5, 0.4, 0.3], std: [0.2, 0.3, 0.4] }, batch_size)
    }
}

const BOTH: Augmentation = Augmentation { crop_padding: 4, flip: true };

fn epoch(loader: &Loader, epoch: usize) -> Vec<Batch> {
    loader.epoch(epoch).collect::<tsbd_nn::Result<_>>().unwrap()
}

fn values(batches: &[Batch]) -> Vec<f32> {
    batches.iter().flat_map(|batch| batch.images.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

fn indices(batches: &[Batch]) -> Vec<u32> {
    batches.iter().flat_map(|batch| batch.indices.clone()).collect()
}

/// The window as the specification says it, pixel by pixel and without any table: pad with black, cut, mirror, normalise.
fn window_as_specified(
    source: &Images,
    index: usize,
    (dy, dx): (usize, usize),
    flip: bool,
    n: Normalization,
) -> Vec<f32> {
    let (size, padding) = (source.height(), 4);
    let mut window = Vec::new();
    for y in 0..size {
        for x in 0..size {
            let x = if flip { size - 1 - x } else { x };
            let inside = (padding..padding + size).contains(&(y + dy)) && (padding..padding + size).contains(&(x + dx));
            for channel in 0..CHANNELS {
                let level = match inside {
                    true => source.image(index)[((y + dy - padding) * size + x + dx - padding) * CHANNELS + channel],
                    false => 0,
                };
                window.push((f32::from(level) / 255.0 - n.mean[channel]) / n.std[channel]);
            }
        }
    }
    window
}

#[test]
fn every_augmented_image_is_one_of_the_specified_windows_and_all_of_them_occur_equally_often() {
    for size in [3, 5, 8] {
        let source = images(1, size);
        let loader = loader(source.clone(), 1, Some(BOTH));
        let mut windows = HashMap::new();
        for placement in 0..162 {
            let (dy, dx, flip) = (placement / 18, placement / 2 % 9, placement % 2 == 1);
            let window = window_as_specified(&source, 0, (dy, dx), flip, loader.normalization);
            windows.entry(window.into_iter().map(f32::to_bits).collect::<Vec<_>>()).or_insert((0, 0)).0 += 1;
        }
        let epochs = 162 * 40;
        for number in 0..epochs {
            let seen: Vec<u32> = values(&epoch(&loader, number)).into_iter().map(f32::to_bits).collect();
            windows.get_mut(&seen).expect("a window that the specification does not have").1 += 1;
        }
        for (placements, seen) in windows.values() {
            let expected = f64::from(placements * 40);
            // Six standard deviations of a Poisson variable.
            assert!(
                (f64::from(*seen) - expected).abs() < 6.0 * expected.sqrt(),
                "{placements} placements, {seen} seen"
            );
        }
    }
}

#[test]
fn without_augmentation_images_come_in_order_and_unchanged() {
    let source = images(7, 4);
    let loader = Loader { order: Order::Sequential, ..loader(source.clone(), 3, None) };
    let batches = epoch(&loader, 0);
    assert_eq!(batches.iter().map(Batch::len).collect::<Vec<_>>(), [3, 3, 1]);
    assert_eq!((loader.batches_per_epoch(), loader.images_per_epoch()), (3, 7));
    assert_eq!(batches[2].images.dims(), [1, 4, 4, 3]);
    assert_eq!(batches[1].labels.to_vec1::<u32>().unwrap(), [0, 1, 2]);
    assert_eq!(indices(&batches), [0, 1, 2, 3, 4, 5, 6]);
    let expected: Vec<f32> =
        source.pixels().iter().enumerate().map(|(i, &level)| loader.normalization.normalized(i % 3, level)).collect();
    assert_eq!(values(&batches), expected);
    assert_eq!(values(&epoch(&loader, 1)), expected);
}

#[test]
fn a_shuffled_epoch_is_a_permutation_of_its_own_that_can_be_had_again() {
    let loader = loader(images(50, 2), 8, Some(BOTH));
    let orders: Vec<Vec<u32>> = (0..3).map(|number| indices(&epoch(&loader, number))).collect();
    for order in &orders {
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<u32>>());
    }
    assert!(orders[0] != orders[1] && orders[1] != orders[2] && orders[0] != orders[2]);
    assert_eq!(indices(&epoch(&loader, 1)), orders[1]);
    assert_eq!(values(&epoch(&loader, 1)), values(&epoch(&loader, 1)));
    let other = Loader { order: Order::Shuffled("fine-tune".to_owned()), ..loader.clone() };
    assert_ne!(indices(&epoch(&other, 1)), orders[1]);
}

#[test]
fn labels_follow_their_images_through_the_shuffle() {
    let source = images(20, 2);
    for batch in epoch(&loader(source.clone(), 6, None), 4) {
        let labels = batch.labels.to_vec1::<u32>().unwrap();
        assert!(batch.indices.iter().zip(labels).all(|(&index, label)| source.label(index as usize) == label));
    }
}

#[test]
fn dropping_the_last_batch_leaves_full_ones_only() {
    let loader = Loader { drop_last: true, ..loader(images(20, 2), 6, None) };
    assert_eq!((loader.batches_per_epoch(), loader.images_per_epoch()), (3, 18));
    assert!(epoch(&loader, 0).iter().all(|batch| batch.len() == 6));
    let none = Loader { batch_size: 21, ..loader };
    assert_eq!((none.batches_per_epoch(), epoch(&none, 0).len()), (0, 0));
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let loader = loader(images(300, 9), 128, Some(BOTH));
    let in_pool = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| values(&epoch(&loader, 2)))
    };
    assert_eq!(in_pool(1), in_pool(5));
}

#[test]
fn a_batch_size_of_zero_is_an_error_and_no_panic() {
    let loader = loader(images(3, 2), 0, None);
    assert_eq!(loader.batches_per_epoch(), 0);
    let error = loader.epoch(0).next().unwrap().unwrap_err().to_string();
    assert!(error.contains("batch_size = 0"), "{error}");
}

/// A training step of the smallest network that is trained on such images takes some 20 ms or more.
#[test]
fn a_batch_of_128_images_takes_less_than_the_shadow_of_a_training_step() {
    let loader = loader(images(1280, 32), 128, Some(BOTH));
    let fastest = (0..5)
        .map(|number| {
            let started = Instant::now();
            let images: usize = loader.epoch(number).map(|batch| batch.unwrap().len()).sum();
            started.elapsed().as_secs_f64() / (images / 128) as f64
        })
        .fold(f64::INFINITY, f64::min);
    println!("a batch of 128 images of 32x32: {:.3} ms", fastest * 1e3);
    // Ten times what is measured on an idle machine: this fails for a mistake, not for a busy machine.
    assert!(fastest < 5e-3, "{:.3} ms", fastest * 1e3);
}

#[test]
fn batches_cut_out_of_uploaded_pixels_are_the_same_to_the_bit() {
    let loader = Loader { order: Order::Shuffled("upload".to_owned()), ..loader(images(23, 3), 5, Some(BOTH)) };
    let table = loader.normalization.table();
    let pixels = resident(&loader.source, &Device::Cpu).unwrap();
    let mut random = loader.stream("augment", 4);
    for batch in loader.epoch(4) {
        let batch = batch.unwrap();
        let placements = loader.placements(batch.len(), &mut random);
        let cut_out = loader.cut_out(&pixels, &batch.indices, &table, &placements).unwrap();
        let bits = |batch: &Batch| -> Vec<u32> {
            let values: Vec<f32> = batch.images.flatten_all().unwrap().to_vec1().unwrap();
            values.into_iter().map(f32::to_bits).collect()
        };
        assert_eq!(bits(&cut_out), bits(&batch));
        assert_eq!(cut_out.labels.to_vec1::<u32>().unwrap(), batch.labels.to_vec1::<u32>().unwrap());
    }
}
