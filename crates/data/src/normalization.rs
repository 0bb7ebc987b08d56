//! From 8-bit levels to the numbers a network sees, exactly as torchvision's ToTensor and Normalize compute them.

use crate::CHANNELS;

/// Mean and standard deviation per channel (red, green, blue) of levels scaled to 0..1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalization {
    /// Subtracted first.
    pub mean: [f32; CHANNELS],
    /// Divided by then.
    pub std: [f32; CHANNELS],
}

/// The normalised value of each level 0..=255, per channel.
pub type LevelTable = [[f32; 256]; CHANNELS];

impl Normalization {
    /// Levels divided by 255 and nothing else.
    pub const IDENTITY: Normalization = Normalization { mean: [0.0; CHANNELS], std: [1.0; CHANNELS] };

    /// `(level / 255 - mean) / std` in f32, in this order, as torch computes it.
    pub fn normalized(&self, channel: usize, level: u8) -> f32 {
        (f32::from(level) / 255.0 - self.mean[channel]) / self.std[channel]
    }

    /// All values there can be: normalising an image is looking them up.
    pub fn table(&self) -> LevelTable {
        std::array::from_fn(|channel| std::array::from_fn(|level| self.normalized(channel, level as u8)))
    }

    /// The 8-bit levels that BackdoorBench stores for normalised `values` `[.., channel]`: normalisation is undone as two
    /// of torchvision's `Normalize`, `value / (1 / std)` and then `- -mean`, and the result times 255 is cut off (not
    /// rounded), modulo 256, as `ToPILImage` does. All in f32: a level that was only normalised comes back one lower now
    /// and then.
    pub fn truncated_levels(&self, values: &[f32]) -> Vec<u8> {
        // Python divides in f64 the number that was written; f32 keeps the result.
        let inverse = self.std.map(|std| (1.0 / std.to_string().parse().unwrap_or(f64::from(std))) as f32);
        let level = |(place, &value): (usize, &f32)| {
            let channel = place % CHANNELS;
            let scaled = value / inverse[channel] + self.mean[channel];
            // Through a signed integer, as a conversion to `u8` would saturate.
            (scaled * 255.0) as i64 as u8
        };
        values.iter().enumerate().map(level).collect()
    }

    /// Writes the normalised values of `pixels` `[.., channel]` to `values`, which has the same length.
    pub fn normalize_into(table: &LevelTable, pixels: &[u8], values: &mut [f32]) {
        let [red, green, blue] = table;
        for (value, pixel) in values.chunks_exact_mut(CHANNELS).zip(pixels.chunks_exact(CHANNELS)) {
            value[0] = red[pixel[0] as usize];
            value[1] = green[pixel[1] as usize];
            value[2] = blue[pixel[2] as usize];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn every_level_of_every_channel_equals_torchs_value_bit_for_bit() {
        let tensors = golden::tensors("normalize.safetensors");
        let cifar10 = Normalization { mean: [0.4914, 0.4822, 0.4465], std: [0.247, 0.243, 0.261] };
        let shapes = Normalization { mean: [0.5; 3], std: [0.25; 3] };
        for (name, normalization) in [("cifar10", cifar10), ("shapes", shapes)] {
            let expected = tensors[name].to_vec2::<f32>().unwrap();
            for (row, expected) in normalization.table().iter().zip(expected) {
                assert_eq!(row.as_slice(), expected, "{name}");
            }
        }
    }
    /// The numbers of levels that cutting off lowers were counted with numpy from torch's order of operations, for the
    /// normalisations of CIFAR-10, CIFAR-100, Tiny ImageNet and GTSRB.
    #[test]
    fn as_many_levels_come_back_one_lower_as_with_torch_and_none_moves_further() {
        let cases = [
            ([0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261], [68, 40, 48]),
            ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762], [49, 58, 61]),
            ([0.4802, 0.4481, 0.3975], [0.2302, 0.2265, 0.2262], [90, 41, 34]),
            ([0.0; 3], [1.0; 3], [0; 3]),
        ];
        for (mean, std, expected) in cases {
            let normalization = Normalization { mean, std };
            let mut lowered = [0; CHANNELS];
            for level in 0..=255u8 {
                let back = normalization.truncated_levels(&std::array::from_fn::<_, CHANNELS, _>(|channel| {
                    normalization.normalized(channel, level)
                }));
                for (lowered, back) in lowered.iter_mut().zip(back) {
                    assert!(level - back <= 1, "level {level} became {back}");
                    *lowered += u32::from(level - back);
                }
            }
            assert_eq!(lowered, expected, "{mean:?}");
        }
    }

    #[test]
    fn a_value_outside_the_levels_wraps_as_in_torch() {
        let values = [256.5, 255.0, -0.5, -1.5, 0.0, 300.0].map(|level| level / 255.0);
        assert_eq!(Normalization::IDENTITY.truncated_levels(&values), [0, 255, 0, 255, 0, 44]);
    }
}
