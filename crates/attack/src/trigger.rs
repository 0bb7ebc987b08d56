//! Triggers that change images once, before training, and the poisoning they all share.

use std::fmt::Debug;
use std::sync::Arc;

use rayon::prelude::*;
use tsbd_data::{CHANNELS, Dataset, ImageSource, Images};
use tsbd_nn::random::Streams;

use crate::Error;
use crate::entry::{PoisonFacts, Poisoner, TrainingSource};
use crate::overlay::{PoisonedImages, TriggeredTest};
use crate::parameters::Poisoning;
use crate::selection::{self, Candidates};

/// A trigger that is a function of one 8-bit image: applied once, before any augmentation.
pub trait ImageTrigger: Send + Sync + Debug {
    /// Stamps `image`, `u8` `[height, width, 3]` in RGB order, in place. `index` is the image's place in its data set.
    fn apply(&self, image: &mut [u8], index: usize);
}

/// A trigger that is put on many images at once: an [`ImageTrigger`] on each, or a network on batches of them.
pub trait Stamp: Send + Sync + Debug {
    /// Triggered copies of the images `indices` of `clean`, one after the other: `u8` `[indices, height, width, 3]`. The
    /// same whatever the number of threads, and whatever other images are stamped beside them.
    fn stamp(&self, clean: &Images, indices: &[usize]) -> Result<Vec<u8>, Error>;
}

/// Images that one piece of work stamps.
const PIECE: usize = 64;

impl<T: ImageTrigger> Stamp for T {
    fn stamp(&self, clean: &Images, indices: &[usize]) -> Result<Vec<u8>, Error> {
        let bytes = clean.height() * clean.width() * CHANNELS;
        let mut pixels = vec![0; indices.len() * bytes];
        pixels.par_chunks_mut(PIECE * bytes).zip(indices.par_chunks(PIECE)).for_each(|(pixels, indices)| {
            for (pixels, &index) in pixels.chunks_exact_mut(bytes).zip(indices) {
                pixels.copy_from_slice(clean.image(index));
                self.apply(pixels, index);
            }
        });
        Ok(pixels)
    }
}

/// The poisoning of every attack that stamps images once: selects training images, stamps and relabels them, stamps
/// the test images that count for the attack success rate.
pub fn poison(
    clean: &Arc<Dataset>,
    streams: &Streams,
    poisoning: &Poisoning,
    candidates: Candidates,
    trigger: &dyn Stamp,
) -> Result<Poisoner, Error> {
    let classes = clean.class_names.len();
    let labels: Vec<u32> = (0..clean.train.len()).map(|index| clean.train.label(index)).collect();
    let selected = selection::select(poisoning, candidates, &labels, streams.seed())?;
    let train = PoisonedImages::stamp(Arc::clone(&clean.train), selected, trigger, poisoning, classes)?;
    let test = TriggeredTest::stamp(Arc::clone(&clean.test), trigger, poisoning, classes)?;
    let facts = PoisonFacts {
        poison_count: Some(train.poisoned().len()),
        poison_per_class: train.poison_per_class(classes),
        asr_denominator: test.len(),
    };
    Ok(Poisoner { train: TrainingSource::Static(Arc::new(train)), test: Some(Arc::new(test)), facts })
}

#[cfg(test)]
mod tests {
    use tsbd_data::{Images, Normalization};

    use super::*;
    use crate::parameters::LabelRule;

    /// Inverts an image, and writes the image's index into its first value.
    #[derive(Debug)]
    struct Invert;

    impl ImageTrigger for Invert {
        fn apply(&self, image: &mut [u8], index: usize) {
            image.iter_mut().for_each(|value| *value = 255 - *value);
            image[0] = index as u8;
        }
    }

    const CLASSES: usize = 4;

    fn split(count: usize) -> Images {
        let pixels = (0..count * 2 * 2 * 3).map(|value| (value % 200) as u8).collect();
        let labels = (0..count).map(|index| (index % CLASSES) as u32).collect();
        Images::new(pixels, labels, (2, 2), CLASSES)
    }

    fn dataset() -> Arc<Dataset> {
        let names = ["a", "b", "c", "d"];
        Arc::new(Dataset::new("test", split(40), split(20), &names, Normalization::IDENTITY, true))
    }

    fn poisoned(poisoning: &Poisoning) -> (Arc<Dataset>, Poisoner) {
        let clean = dataset();
        let poisoner = poison(&clean, &Streams::new(0), poisoning, Candidates::All, &Invert).unwrap();
        (clean, poisoner)
    }

    #[test]
    fn exactly_the_drawn_training_images_change_and_all_others_are_those_of_the_clean_set() {
        let poisoning = Poisoning { poisoning_ratio: 0.3, target_class: 2, ..Poisoning::default() };
        let (clean, poisoner) = poisoned(&poisoning);
        let TrainingSource::Static(train) = &poisoner.train else { panic!("not static") };
        assert_eq!((train.len(), train.poisoned().len(), poisoner.facts.poison_count), (40, 12, Some(12)));
        for index in 0..40 {
            assert_eq!(train.original_label(index), clean.train.label(index));
            if train.is_poisoned(index) {
                assert_eq!(train.label(index), 2);
                assert_eq!(train.image(index)[0], index as u8, "the trigger is told the image's own index");
                assert_eq!(train.image(index)[5], 255 - clean.train.image(index)[5]);
            } else {
                assert_eq!(
                    (train.image(index), train.label(index)),
                    (clean.train.image(index), clean.train.label(index))
                );
                assert!(std::ptr::eq(train.image(index), clean.train.image(index)), "a clean image is not copied");
            }
        }
        let mut drawn = tsbd_data::numpy_random::choice_without_replacement(0, 40, 12).unwrap();
        drawn.sort_unstable();
        assert_eq!(train.poisoned(), drawn.iter().map(|index| *index as usize).collect::<Vec<_>>());
    }

    #[test]
    fn poisoned_images_are_counted_by_their_original_class_those_of_the_target_class_too() {
        let (clean, poisoner) = poisoned(&Poisoning { poisoning_ratio: 0.5, ..Poisoning::default() });
        let TrainingSource::Static(train) = &poisoner.train else { panic!("not static") };
        let mut counts = vec![0; CLASSES];
        train.poisoned().iter().for_each(|index| counts[clean.train.label(*index) as usize] += 1);
        assert_eq!(poisoner.facts.poison_per_class, counts);
        assert_eq!(counts.iter().sum::<usize>(), 20);
        assert!(counts[0] > 0);
    }

    #[test]
    fn test_images_of_the_target_class_are_left_out_and_all_others_are_triggered() {
        let (clean, poisoner) = poisoned(&Poisoning { poisoning_ratio: 0.5, target_class: 1, ..Poisoning::default() });
        let test = poisoner.test.unwrap();
        assert_eq!((test.len(), poisoner.facts.asr_denominator), (15, 15));
        for position in 0..test.len() {
            let index = test.index(position);
            assert_ne!(test.original_label(position), 1);
            assert_eq!((test.label(position), test.original_label(position)), (1, clean.test.label(index)));
            assert_eq!(
                (test.image(position)[0], test.image(position)[7]),
                (index as u8, 255 - clean.test.image(index)[7])
            );
        }
    }

    #[test]
    fn all_to_all_triggers_every_test_image_and_gives_the_next_label() {
        let poisoning = Poisoning { poisoning_ratio: 0.5, labels: LabelRule::AllToAll, ..Poisoning::default() };
        let (_, poisoner) = poisoned(&poisoning);
        let test = poisoner.test.unwrap();
        assert_eq!(test.len(), 20);
        assert!((0..20).all(|position| test.label(position) == (test.original_label(position) + 1) % 4));
        let TrainingSource::Static(train) = &poisoner.train else { panic!("not static") };
        assert!(train.poisoned().iter().all(|index| train.label(*index) == (train.original_label(*index) + 1) % 4));
    }

    #[test]
    fn an_export_holds_the_poisoned_images_and_a_manifest_of_them() {
        let (_, poisoner) = poisoned(&Poisoning { poisoning_ratio: 0.1, ..Poisoning::default() });
        let TrainingSource::Static(train) = &poisoner.train else { panic!("not static") };
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("train");
        assert_eq!(crate::export::write_train(train, &out).unwrap(), 4);
        let manifest = fs_err::read_to_string(out.join("manifest.csv")).unwrap();
        let mut lines = manifest.lines();
        assert_eq!(lines.next(), Some("file,index,original_label,given_label"));
        for (line, &index) in lines.by_ref().zip(train.poisoned()) {
            let original = train.original_label(index);
            assert_eq!(line, format!("{original}/{index}.png,{index},{original},0"));
            let picture = tsbd_data::read_rgb(&out.join(format!("{original}/{index}.png"))).unwrap();
            assert_eq!(picture.pixels, train.image(index));
        }
        assert_eq!(manifest.lines().count(), 5);

        let test = poisoner.test.unwrap();
        assert_eq!(crate::export::write_test(&test, &folder.path().join("test")).unwrap(), 15);
    }

    #[test]
    fn an_export_that_fails_leaves_nothing_behind() {
        let (_, poisoner) = poisoned(&Poisoning { poisoning_ratio: 0.1, ..Poisoning::default() });
        let TrainingSource::Static(train) = &poisoner.train else { panic!("not static") };
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        fs_err::create_dir(&out).unwrap();
        fs_err::write(out.join("other"), "of somebody else").unwrap();
        crate::export::write_train(train, &out).unwrap_err();
        let left: Vec<_> = fs_err::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["out"], "no half of an export");
        assert_eq!(fs_err::read_dir(&out).unwrap().count(), 1);
    }

    #[test]
    fn stamped_images_do_not_depend_on_the_number_of_threads() {
        let clean = split(300);
        let indices: Vec<usize> = (0..300).rev().collect();
        let stamped = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Invert.stamp(&clean, &indices).unwrap())
        };
        assert_eq!(stamped(1), stamped(3));
        assert_eq!(stamped(1)[0], 299u32 as u8, "in the order of the indices");
    }
}
