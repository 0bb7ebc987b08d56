//! Python's `random.seed(int)` and `random.sample(range(n), k)`, reproduced bit for bit (CPython 3.2 and later).
//!
//! BackdoorBench's defenses draw their clean subset with `random.sample(range(n), int(n * ratio))` right after `random.seed(0)`.
//! Reproducing it gives the same subset. Some of them draw twice and use the second draw, so a generator can be kept.
//! Not for anything of our own: that uses [`tsbd_nn::random::Streams`].

use std::collections::HashSet;

use crate::mersenne::Mersenne;

/// Python's module-level generator after `random.seed(seed)`; successive draws continue the sequence as in Python.
#[derive(Clone)]
pub struct PythonRandom {
    generator: Mersenne,
}

impl PythonRandom {
    /// `random.seed(seed)` with a non-negative integer.
    pub fn new(seed: u64) -> PythonRandom {
        let (low, high) = (seed as u32, (seed >> 32) as u32);
        let key = if high == 0 { &[low][..] } else { &[low, high][..] };
        PythonRandom { generator: Mersenne::from_key(key) }
    }

    /// `random.sample(range(n), k)`, in the order drawn. `None` where Python raises a ValueError: `k > n`.
    ///
    /// Like CPython, it keeps a pool of what is left where that is the smaller structure, and a set of what was drawn otherwise.
    pub fn sample(&mut self, n: u32, k: u32) -> Option<Vec<u32>> {
        if k > n {
            return None;
        }
        if u64::from(n) <= set_size(k) {
            let mut pool: Vec<u32> = (0..n).collect();
            let mut take = || {
                let position = self.below(pool.len() as u32);
                pool.swap_remove(position as usize)
            };
            Some((0..k).map(|_| take()).collect())
        } else {
            let mut seen = HashSet::with_capacity(k as usize);
            let mut drawn = Vec::with_capacity(k as usize);
            while drawn.len() < k as usize {
                let candidate = self.below(n);
                if seen.insert(candidate) {
                    drawn.push(candidate);
                }
            }
            Some(drawn)
        }
    }

    /// Uniform in `0..n` for `n > 0`: as many of the highest bits as `n` has, rejecting what is not below it.
    fn below(&mut self, n: u32) -> u32 {
        loop {
            let value = self.generator.next_u32() >> n.leading_zeros();
            if value < n {
                return value;
            }
        }
    }
}

/// The first `random.sample(range(n), k)` after `random.seed(seed)`, in the order drawn.
/// `None` where Python raises a ValueError: `k > n`.
pub fn sample(seed: u64, n: u32, k: u32) -> Option<Vec<u32>> {
    PythonRandom::new(seed).sample(n, k)
}

/// What CPython takes as the size of a set of `k` elements: 21, and above five elements the power of four at or above `3 k` more.
fn set_size(k: u32) -> u64 {
    if k <= 5 {
        return 21;
    }
    let mut power = 1u64;
    while power < 3 * u64::from(k) {
        power *= 4;
    }
    21 + power
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    /// First elements of the clean subsets that BackdoorBench publishes (5 % of CIFAR-10, GTSRB, Tiny ImageNet), and of the second
    /// draw after the same seed, which its fine-pruning and Neural Cleanse use.
    #[test]
    fn seed_zero_draws_the_published_clean_subsets() {
        let cases: [(u32, u32, [u32; 5], [u32; 5]); 3] = [
            (50_000, 2_500, [25247, 49673, 27562, 2653, 16968], [9606, 14403, 49424, 7425, 49259]),
            (39_209, 1_960, [25247, 27562, 2653, 16968, 33506], [24109, 3054, 1394, 26616, 13587]),
            (100_000, 5_000, [50494, 99346, 55125, 5306, 33936], [26505, 62700, 94058, 85760, 25097]),
        ];
        for (n, k, first, second) in cases {
            let mut random = PythonRandom::new(0);
            assert_eq!(random.sample(n, k).unwrap()[..5], first, "n = {n}");
            assert_eq!(random.sample(n, k).unwrap()[..5], second, "n = {n}");
        }
    }

    #[test]
    fn pools_sets_and_the_border_between_them_draw_as_cpython() {
        for case in golden::draws("python") {
            let mut random = PythonRandom::new(case.seed);
            for (expected, total) in [(&case.first, case.first_sum), (&case.second, case.second_sum)] {
                let drawn = random.sample(case.n, case.k).unwrap();
                assert_eq!(&drawn[..expected.len()], &expected[..], "{case:?}");
                assert_eq!(drawn.iter().map(|&index| u64::from(index)).sum::<u64>(), total, "{case:?}");
            }
        }
    }

    #[test]
    fn a_sample_larger_than_its_population_is_refused_as_python_refuses_it() {
        assert_eq!(sample(0, 10, 11), None);
    }
}
