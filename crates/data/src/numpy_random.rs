//! numpy's legacy draws (`np.random.seed`, `np.random.choice`), reproduced bit for bit.
//!
//! BackdoorBench selects the images to poison with `np.random.choice(arange(n), k, replace=False)` as the first draw after
//! `np.random.seed(0)`. Reproducing it gives the same poisoned images, so that its published models and ours can be compared
//! image by image. Not for anything of our own: that uses [`tsbd_nn::random::Streams`].

use crate::mersenne::Mersenne;

/// numpy's global legacy generator after `np.random.seed(seed)`; successive draws continue the sequence as in numpy.
#[derive(Clone)]
pub struct LegacyRandom {
    generator: Mersenne,
}

impl LegacyRandom {
    /// `np.random.seed(seed)`.
    pub fn new(seed: u32) -> LegacyRandom {
        LegacyRandom { generator: Mersenne::from_seed(seed) }
    }

    /// `np.random.permutation(n)`: Fisher-Yates from the last position downwards.
    pub fn permutation(&mut self, n: u32) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i as usize, self.up_to(i) as usize);
        }
        order
    }

    /// `np.random.choice(arange(n), k, replace=False)`: the first `k` entries of a permutation, in the order drawn.
    /// `None` where numpy raises a ValueError: `k > n`.
    pub fn choice_without_replacement(&mut self, n: u32, k: u32) -> Option<Vec<u32>> {
        if k > n {
            return None;
        }
        let mut order = self.permutation(n);
        order.truncate(k as usize);
        Some(order)
    }

    /// Uniform in `0..=max`, by masking to the smallest all-ones mask and rejecting what is above. `max` must not be 0.
    fn up_to(&mut self, max: u32) -> u32 {
        let mask = u32::MAX >> max.leading_zeros();
        loop {
            let value = self.generator.next_u32() & mask;
            if value <= max {
                return value;
            }
        }
    }
}

/// The first `np.random.choice(arange(n), k, replace=False)` after `np.random.seed(seed)`, in the order drawn.
/// `None` where numpy raises a ValueError: `k > n`.
pub fn choice_without_replacement(seed: u32, n: u32, k: u32) -> Option<Vec<u32>> {
    LegacyRandom::new(seed).choice_without_replacement(n, k)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    fn sum(indices: &[u32]) -> u64 {
        indices.iter().map(|&index| u64::from(index)).sum()
    }

    /// The poisoned indices of BackdoorBench's seed 0 at a poisoning ratio of 0.1, checked there with numpy.
    #[test]
    fn seed_zero_selects_the_published_poisoned_images() {
        let cases: [(u32, u32, &[u32], u64); 3] = [
            (50_000, 5_000, &[11841, 19602, 45519, 25747, 42642, 31902, 30346, 12363, 32490, 26128], 126_459_119),
            (39_209, 3_921, &[19138, 21703, 32087, 19762, 13970], 77_219_889),
            (100_000, 10_000, &[3582, 60498, 53227, 21333, 3885], 499_851_984),
        ];
        for (n, k, first, total) in cases {
            let drawn = choice_without_replacement(0, n, k).unwrap();
            assert_eq!(drawn.len(), k as usize);
            assert_eq!(&drawn[..first.len()], first, "n = {n}");
            assert_eq!(sum(&drawn), total, "n = {n}");
        }
        let mut drawn = choice_without_replacement(0, 50_000, 5_000).unwrap();
        drawn.sort_unstable();
        assert_eq!(drawn[..10], [14, 22, 24, 28, 64, 76, 84, 91, 105, 134]);
    }

    #[test]
    fn first_and_second_draws_equal_numpys() {
        for case in golden::draws("numpy") {
            let mut random = LegacyRandom::new(case.seed as u32);
            for (expected, total) in [(&case.first, case.first_sum), (&case.second, case.second_sum)] {
                let drawn = random.choice_without_replacement(case.n, case.k).unwrap();
                assert_eq!(&drawn[..expected.len()], &expected[..], "{case:?}");
                assert_eq!(sum(&drawn), total, "{case:?}");
            }
        }
    }

    #[test]
    fn more_draws_than_candidates_are_refused_as_numpy_refuses_them() {
        assert_eq!(choice_without_replacement(0, 210, 3_921), None);
    }
}
