//! The network that makes a pattern (three channels) or a mask (one channel) of an image: three halvings, three
//! doublings, twelve convolutions with batch norms, and a thirteenth in the middle.

use tsbd_nn::{Layer, Module, Network, Pass, Result};
use tsbd_tensor::Var;

/// Momentum of the generators' batch norms: the share of a running estimate that each batch replaces.
pub const MOMENTUM: f64 = 0.05;
/// What the reference adds to a divisor so that the outputs stay inside their range.
const EPSILON: f64 = 1e-7;
/// The names of the convolutions before the last, in definition order, with the widths of their input and output in units
/// of the generator's width; the first takes the image.
const BLOCKS: [(&str, usize, usize); 12] = [
    ("convblock_down_0", 0, 1),
    ("convblock_down_1", 1, 1),
    ("convblock_down_2", 1, 2),
    ("convblock_down_3", 2, 2),
    ("convblock_down_4", 2, 4),
    ("convblock_down_5", 4, 4),
    ("convblock_middle", 4, 4),
    ("convblock_up_0", 4, 4),
    ("convblock_up_1", 4, 2),
    ("convblock_up_2", 2, 2),
    ("convblock_up_3", 2, 1),
    ("convblock_up_4", 1, 1),
];
const LAST: &str = "convblock_up_5";

/// A generator without its weights.
#[derive(Debug, Clone)]
pub struct Generator {
    modules: Vec<Module>,
}

impl Generator {
    /// A generator of `outputs` channels whose first layer has `width` of them (32 in the reference).
    pub fn new(width: usize, outputs: usize) -> Generator {
        let block = |name: &str, in_channels: usize, out_channels: usize| {
            let convolution = Layer::Conv2d { in_channels, out_channels, kernel: 3, stride: 1, padding: 1, bias: true };
            [
                Module::new(format!("{name}.conv2d"), convolution),
                Module::new(format!("{name}.batch_norm"), Layer::BatchNorm2d { channels: out_channels }),
            ]
        };
        let channels = |factor: usize| if factor == 0 { tsbd_data::CHANNELS } else { factor * width };
        let mut modules: Vec<Module> =
            BLOCKS.iter().flat_map(|(name, from, to)| block(name, channels(*from), channels(*to))).collect();
        modules.extend(block(LAST, width, outputs));
        Generator { modules }
    }

    /// Takes normalised images `[batch, height, width, 3]`, height and width multiples of 8, to outputs of the same size in
    /// `[0.5 - tanh(1) / 2, 0.5 + tanh(1) / 2]`, which is about `[0.119, 0.881]`.
    pub fn forward(&self, pass: &Pass<Generator>, images: &Var) -> Result<Var> {
        let block = |x: &Var, name: &str| -> Result<Var> {
            pass.batch_norm_relu(&format!("{name}.batch_norm"), &pass.conv(&format!("{name}.conv2d"), x)?)
        };
        let doubled = |x: &Var| -> Result<Var> {
            let (_, height, width, _) = x.tensor().dims4()?;
            Ok(x.resize_bilinear(2 * height, 2 * width, false)?)
        };
        let mut x = images.clone();
        for (place, (name, ..)) in BLOCKS.iter().enumerate() {
            if [7, 9, 11].contains(&place) {
                x = doubled(&x)?;
            }
            x = block(&x, name)?;
            if [1, 3, 5].contains(&place) {
                x = x.max_pool2d(2, 2, 0)?;
            }
        }
        let last = pass.batch_norm(&format!("{LAST}.batch_norm"), &pass.conv(&format!("{LAST}.conv2d"), &x)?)?;
        // The reference's list of layers ends with a tanh, and its forward pass applies another.
        squashed(&last.tanh()?)
    }
}

impl Network for Generator {
    fn name(&self) -> &str {
        "input-aware generator"
    }

    fn modules(&self) -> &[Module] {
        &self.modules
    }
}

/// `tanh(x) / (2 + 1e-7) + 0.5`, inside (0, 1).
fn squashed(x: &Var) -> Result<Var> {
    Ok(x.tanh()?.scale(1.0 / (2.0 + EPSILON))?.offset(0.5)?)
}

/// What makes a mask of a mask generator's output: a steep step at 0.5, which stays inside (0, 1).
pub fn threshold(x: &Var) -> Result<Var> {
    squashed(&x.scale(20.0)?.offset(-10.0)?)
}
