//! MT19937, the generator that numpy's legacy functions and Python's `random` share.
//!
//! M. Matsumoto and T. Nishimura, "Mersenne Twister", ACM TOMACS 8(1), 1998, with the seeding of their 2002 revision.
//! Only the two reproductions in this crate use it; everything of our own draws from [`tsbd_nn::random`].

const SIZE: usize = 624;
const SHIFT: usize = 397;

/// The state of one generator: 624 words and the position of the next one.
#[derive(Clone)]
pub(crate) struct Mersenne {
    words: [u32; SIZE],
    next: usize,
}

impl Mersenne {
    /// `init_genrand`: what numpy's `seed(int)` does.
    pub(crate) fn from_seed(seed: u32) -> Mersenne {
        let mut words = [seed; SIZE];
        for i in 1..SIZE {
            words[i] = 1_812_433_253u32.wrapping_mul(words[i - 1] ^ (words[i - 1] >> 30)).wrapping_add(i as u32);
        }
        Mersenne { words, next: SIZE }
    }

    /// `init_by_array`: what Python's `random.seed(int)` does with the integer's 32-bit digits, lowest first.
    /// `key` must not be empty.
    pub(crate) fn from_key(key: &[u32]) -> Mersenne {
        let mut generator = Mersenne::from_seed(19_650_218);
        let words = &mut generator.words;
        let (mut i, mut j) = (1, 0);
        for _ in 0..SIZE.max(key.len()) {
            words[i] = (words[i] ^ (words[i - 1] ^ (words[i - 1] >> 30)).wrapping_mul(1_664_525))
                .wrapping_add(key[j])
                .wrapping_add(j as u32);
            (i, j) = (following(words, i), (j + 1) % key.len());
        }
        for _ in 1..SIZE {
            words[i] =
                (words[i] ^ (words[i - 1] ^ (words[i - 1] >> 30)).wrapping_mul(1_566_083_941)).wrapping_sub(i as u32);
            i = following(words, i);
        }
        words[0] = 0x8000_0000;
        generator
    }

    /// The next 32 random bits.
    pub(crate) fn next_u32(&mut self) -> u32 {
        if self.next == SIZE {
            self.twist();
        }
        let mut word = self.words[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn twist(&mut self) {
        for i in 0..SIZE {
            let mixed = (self.words[i] & 0x8000_0000) | (self.words[(i + 1) % SIZE] & 0x7fff_ffff);
            let odd = if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
            self.words[i] = self.words[(i + SHIFT) % SIZE] ^ (mixed >> 1) ^ odd;
        }
        self.next = 0;
    }
}

/// The index after `i` in the seeding loops, which run over 1..624 and carry the last word over to the front.
fn following(words: &mut [u32; SIZE], i: usize) -> usize {
    if i + 1 < SIZE {
        return i + 1;
    }
    words[0] = words[SIZE - 1];
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The 10,000th output of `std::mt19937` with its default seed 5489 is 4123659995 (C++ standard, [rand.predef]).
    #[test]
    fn the_ten_thousandth_word_is_the_one_the_cpp_standard_demands() {
        let mut generator = Mersenne::from_seed(5489);
        let last = (0..10_000).map(|_| generator.next_u32()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    /// First outputs of the authors' mt19937ar.out, which seeds with the key {0x123, 0x234, 0x345, 0x456}.
    #[test]
    fn seeding_by_a_key_gives_the_authors_published_outputs() {
        let mut generator = Mersenne::from_key(&[0x123, 0x234, 0x345, 0x456]);
        let first: Vec<u32> = (0..5).map(|_| generator.next_u32()).collect();
        assert_eq!(first, [1_067_595_299, 955_945_823, 477_289_528, 4_107_218_783, 4_228_976_476]);
    }
}
