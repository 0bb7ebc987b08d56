//! Which training images are poisoned.
//!
//! The draw is numpy's legacy `numpy.random.seed(seed); numpy.random.choice(candidates, k, replace=False)`, so that a
//! seed poisons the same images as BackdoorBench does (its `generate_poison_index_from_label_transform`).

use tsbd_data::numpy_random;

use crate::parameters::{DatasetFacts, LabelRule, ParameterError, Poisoning};

/// Which images an attack may poison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Candidates {
    /// Every training image; those of the target class are eligible too (dirty-label attacks).
    All,
    /// Images of the target class only (clean-label attacks). The number of poisoned images is still a share of the
    /// whole training set.
    TargetClass,
}

impl Candidates {
    /// Refuses what this data set does not allow: what [`Poisoning::check`] refuses, and of clean-label attacks a ratio
    /// that the target class cannot supply and labels that change.
    pub fn check(self, poisoning: &Poisoning, dataset: &DatasetFacts) -> Result<(), ParameterError> {
        poisoning.check(dataset)?;
        if self == Candidates::All {
            return Ok(());
        }
        if poisoning.labels != LabelRule::AllToOne {
            return Err(ParameterError::new(
                "labels",
                "all-to-all",
                "this attack leaves the labels of its training images as they are: they are of the target class",
                "leave it out, or use another attack",
            ));
        }
        let (count, train_images) = (poisoning.poison_count(dataset.train_images), dataset.train_images);
        let available = dataset.images_per_class[poisoning.target_class as usize];
        if count > available { Err(too_many(poisoning, count, available, train_images)) } else { Ok(()) }
    }
}

fn too_many(poisoning: &Poisoning, count: usize, available: usize, train_images: usize) -> ParameterError {
    let reason = format!("needs {count} images, and only {available} of the {train_images} may be poisoned");
    let way_out = match available {
        0 => format!("choose another target class: no training image is of class {}", poisoning.target_class),
        _ => format!("give at most {}", available as f64 / train_images as f64),
    };
    ParameterError::new("poisoning_ratio", poisoning.poisoning_ratio, reason, way_out)
}

/// Draws the images to be poisoned from the images with these labels; the indices are in the order drawn.
///
/// Refused: a draw of no image, more images than there are candidates, a seed of more than 32 bits (numpy has none).
pub fn select(
    poisoning: &Poisoning,
    candidates: Candidates,
    labels: &[u32],
    seed: u64,
) -> Result<Vec<usize>, ParameterError> {
    let count = poisoning.poison_count(labels.len());
    let ratio = poisoning.poisoning_ratio;
    if count == 0 {
        return Err(ParameterError::new(
            "poisoning_ratio",
            ratio,
            format!("poisons none of the {} training images", labels.len()),
            "give a greater ratio, or use more training images",
        ));
    }
    let candidates: Vec<usize> = match candidates {
        Candidates::All => (0..labels.len()).collect(),
        Candidates::TargetClass => {
            let target = poisoning.target_class;
            labels.iter().enumerate().filter(|(_, label)| **label == target).map(|(index, _)| index).collect()
        }
    };
    match draw(candidates.len(), count, seed)? {
        Some(drawn) => Ok(drawn.into_iter().map(|position| candidates[position]).collect()),
        None => Err(too_many(poisoning, count, candidates.len(), labels.len())),
    }
}

/// `count` different numbers below `limit` as numpy draws them; nothing if there are not as many.
///
/// Refused: a seed of more than 32 bits (numpy has none).
pub fn draw(limit: usize, count: usize, seed: u64) -> Result<Option<Vec<usize>>, ParameterError> {
    let seed = u32::try_from(seed).map_err(|_| {
        ParameterError::new("seed", seed, "numpy's draw takes seeds of 32 bits", "give a seed below 4294967296")
    })?;
    let drawn = numpy_random::choice_without_replacement(seed, limit as u32, count as u32);
    Ok(drawn.map(|drawn| drawn.into_iter().map(|number| number as usize).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden values of numpy 1.x and 2.x: `numpy.random.seed(0); numpy.random.choice(numpy.arange(N), k, False)`.
    #[test]
    fn seed_0_poisons_the_images_that_numpy_draws() {
        let drawn = select(&Poisoning::default(), Candidates::All, &vec![1; 50_000], 0).unwrap();
        assert_eq!(drawn[..10], [11841, 19602, 45519, 25747, 42642, 31902, 30346, 12363, 32490, 26128]);
        assert_eq!(drawn.len(), 5_000);
        assert_eq!(drawn.iter().sum::<usize>(), 126_459_119);
        let drawn = select(&Poisoning::default(), Candidates::All, &vec![1; 39_209], 0).unwrap();
        assert_eq!(drawn[..5], [19138, 21703, 32087, 19762, 13970]);
        assert_eq!(drawn.iter().sum::<usize>(), 77_219_889);
    }

    #[test]
    fn images_of_the_target_class_are_eligible_unless_they_are_the_only_candidates() {
        let labels: Vec<u32> = (0..1_000).map(|index| index % 10).collect();
        let drawn = select(&Poisoning::default(), Candidates::All, &labels, 0).unwrap();
        let of_target = drawn.iter().filter(|index| labels[**index] == 0).count();
        assert!(of_target > 0 && of_target < drawn.len(), "{of_target}");

        let mut drawn = select(&Poisoning::default(), Candidates::TargetClass, &labels, 0).unwrap();
        drawn.sort_unstable();
        let all_of_class_0: Vec<usize> = (0..1_000).step_by(10).collect();
        assert_eq!(drawn, all_of_class_0, "10 % of ten equal classes is exactly one class");
    }

    #[test]
    fn a_clean_label_draw_of_more_images_than_the_class_has_is_refused() {
        let labels: Vec<u32> = (0..1_000).map(|index| index % 20).collect();
        let error = select(&Poisoning::default(), Candidates::TargetClass, &labels, 0).unwrap_err();
        assert!(error.reason.contains("100") && error.reason.contains("50"), "{error}");
        assert_eq!(error.way_out, "give at most 0.05");
        let absent = Poisoning { target_class: 20, ..Poisoning::default() };
        let error = select(&absent, Candidates::TargetClass, &labels, 0).unwrap_err();
        assert_eq!(error.way_out, "choose another target class: no training image is of class 20");
    }

    #[test]
    fn another_seed_draws_other_images_and_a_seed_of_64_bits_is_refused() {
        let labels = vec![0; 1_000];
        let of = |seed| select(&Poisoning::default(), Candidates::All, &labels, seed);
        assert_ne!(of(0).unwrap(), of(1).unwrap());
        assert_eq!(of(7).unwrap(), of(7).unwrap());
        assert_eq!(of(1 << 32).unwrap_err().field, "seed");
    }

    #[test]
    fn a_draw_of_no_image_is_refused() {
        let error = select(&Poisoning::default(), Candidates::All, &[0, 1, 2], 0).unwrap_err();
        assert_eq!(error.field, "poisoning_ratio");
    }
}
