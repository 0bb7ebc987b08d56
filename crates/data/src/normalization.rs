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
}
