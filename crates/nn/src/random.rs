//! Random streams: every use of randomness has its own, named by its purpose.
//!
//! A stream is a function of (seed, purpose, index) alone. Nothing that other code draws, no order of work and no
//! number of threads can change what a stream gives.

use rand::{SeedableRng, TryRng};
use rand_chacha::ChaCha8Rng;
use std::convert::Infallible;

/// All the random streams that one seed gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    seed: u64,
}

impl Streams {
    /// The streams of `seed`.
    pub fn new(seed: u64) -> Streams {
        Streams { seed }
    }

    /// The seed these streams come from.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The stream for `purpose` (such as `"shuffle"`) and `index` (such as the epoch, or the image's number).
    ///
    /// The same three values always give the same numbers: the ChaCha8 key is BLAKE3 of all three.
    pub fn stream(&self, purpose: &str, index: u64) -> RandomStream {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"tsbd random stream 1");
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(&(purpose.len() as u64).to_le_bytes());
        hasher.update(purpose.as_bytes());
        hasher.update(&index.to_le_bytes());
        RandomStream(ChaCha8Rng::from_seed(*hasher.finalize().as_bytes()))
    }

    /// Streams that are independent of these: for a part of the work that has its own purposes.
    pub fn child(&self, purpose: &str) -> Streams {
        use rand::Rng;
        Streams { seed: self.stream(purpose, u64::MAX).next_u64() }
    }
}

/// A stream of random numbers; implements [`rand::Rng`], so everything of `rand` works on it.
///
/// The methods here are this project's own, so that results do not move when `rand` changes its algorithms.
#[derive(Debug, Clone)]
pub struct RandomStream(ChaCha8Rng);

impl TryRng for RandomStream {
    type Error = Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.0.try_next_u32()
    }
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0.try_next_u64()
    }
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.try_fill_bytes(bytes)
    }
}

impl RandomStream {
    fn bits(&mut self) -> u64 {
        let Ok(bits) = self.0.try_next_u64();
        bits
    }

    /// Uniform in `[0, 1)`, 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `[low, high)`.
    pub fn uniform_in(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Uniform in `0..bound`, without bias.
    ///
    /// # Panics
    /// When `bound` is 0: there is no number to draw.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "a random number below 0 was asked for");
        let rest = u64::MAX % bound;
        loop {
            let bits = self.bits();
            // Accept only below the largest multiple of `bound`, so that every remainder is equally likely.
            if bits < u64::MAX - rest {
                return bits % bound;
            }
        }
    }

    /// A fair coin.
    pub fn coin(&mut self) -> bool {
        self.bits() >> 63 == 1
    }

    /// Normally distributed with mean 0 and deviation 1 (Box and Muller's transform).
    pub fn normal(&mut self) -> f64 {
        // 1 - u lies in (0, 1]: the logarithm is finite.
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Shuffles in place (Fisher and Yates): every order is equally likely.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }

    /// The numbers `0..n` in random order.
    pub fn permutation(&mut self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        self.shuffle(&mut order);
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn a_stream_depends_on_seed_purpose_and_index_only() {
        let first = |seed, purpose, index| Streams::new(seed).stream(purpose, index).next_u64();
        assert_eq!(first(0, "shuffle", 3), first(0, "shuffle", 3));
        let others = [first(1, "shuffle", 3), first(0, "shuffle", 4), first(0, "crop", 3), first(0, "shuffl", 3)];
        assert!(others.iter().all(|&other| other != first(0, "shuffle", 3)));
    }

    #[test]
    fn streams_never_change_from_version_to_version() {
        // Made once with this code; it may not move, because results are stored under their seeds.
        let mut stream = Streams::new(0).stream("shuffle", 0);
        assert_eq!(stream.permutation(10), [0, 9, 5, 8, 2, 4, 3, 6, 1, 7]);
    }

    #[test]
    fn shuffling_makes_every_order_equally_likely() {
        let mut stream = Streams::new(7).stream("test", 0);
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..12_000 {
            *counts.entry(stream.permutation(3)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|&count: &i32| (count - 2000).abs() < 200), "{counts:?}");
    }

    #[test]
    fn uniform_numbers_fill_the_unit_interval_and_normal_ones_have_unit_variance() {
        let mut stream = Streams::new(1).stream("test", 0);
        let n = 20_000;
        let uniform: Vec<f64> = (0..n).map(|_| stream.uniform()).collect();
        assert!(uniform.iter().all(|u| (0.0..1.0).contains(u)));
        assert!((uniform.iter().sum::<f64>() / n as f64 - 0.5).abs() < 0.01);
        let normal: Vec<f64> = (0..n).map(|_| stream.normal()).collect();
        let mean = normal.iter().sum::<f64>() / n as f64;
        let variance = normal.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }
}
