//! StegaStamp's two networks (M. Tancik, B. Mildenhall, R. Ng, "StegaStamp: Invisible Hyperlinks in Physical
//! Photographs", CVPR 2020), in the form that BackdoorBench's `resource/ssba/models.py` gives them: the encoder is a
//! U-Net that sees the image beside a picture of the fingerprint, the decoder a plain chain of convolutions.
//!
//! Vectors that a linear layer makes or takes are `[height, width, channel]` here and `[channel, height, width]` in
//! PyTorch, so the rows of `secret_dense` and the columns of `dense.0` are in another order than there.

use tsbd_data::CHANNELS;
use tsbd_nn::{Layer, Module, Network, Pass, Result};
use tsbd_tensor::{Conv2d, Tensor, Var};

/// Bits of a fingerprint.
pub const BITS: usize = 100;

/// Height and width of the picture that the encoder makes of a fingerprint, before it is enlarged to the image's.
pub const PICTURE: usize = 16;

fn conv(name: &str, in_channels: usize, out_channels: usize, stride: usize) -> Module {
    Module::new(name, Layer::Conv2d { in_channels, out_channels, kernel: 3, stride, padding: 1, bias: true })
}

/// Hides fingerprints in images.
#[derive(Debug, Clone)]
pub struct Encoder {
    modules: Vec<Module>,
}

impl Encoder {
    /// An encoder whose first convolution has `width` filters (32 in the reference); the others follow.
    pub fn new(width: usize) -> Encoder {
        // Enlarges by repeating pixels, then smooths.
        let up = |name, in_channels, out_channels| {
            Module::new(name, Layer::Conv2d { in_channels, out_channels, kernel: 2, stride: 1, padding: 0, bias: true })
        };
        let both = 2 * CHANNELS;
        let dense = Layer::Linear { in_features: BITS, out_features: PICTURE * PICTURE * CHANNELS };
        let point =
            Layer::Conv2d { in_channels: width, out_channels: CHANNELS, kernel: 1, stride: 1, padding: 0, bias: true };
        let modules = vec![
            Module::new("secret_dense", dense),
            conv("conv1", both, width, 1),
            conv("conv2", width, width, 2),
            conv("conv3", width, 2 * width, 2),
            conv("conv4", 2 * width, 4 * width, 2),
            conv("conv5", 4 * width, 8 * width, 2),
            up("up6", 8 * width, 4 * width),
            conv("conv6", 8 * width, 4 * width, 1),
            up("up7", 4 * width, 2 * width),
            conv("conv7", 4 * width, 2 * width, 1),
            up("up8", 2 * width, width),
            conv("conv8", 2 * width, width, 1),
            up("up9", width, width),
            conv("conv9", 2 * width + both, width, 1),
            conv("conv10", width, width, 1),
            Module::new("residual", point),
        ];
        Encoder { modules }
    }

    /// The pictures `[n, size, size, 3]` of fingerprints `[n, 100]` of zeros and ones, for images of `size` pixels.
    pub fn pictures(&self, pass: &Pass<'_, Encoder>, fingerprints: &Var, size: usize) -> Result<Var> {
        let count = fingerprints.dims()[0];
        let dense = pass.linear("secret_dense", fingerprints)?.relu()?;
        Ok(dense.reshape(&[count, PICTURE, PICTURE, CHANNELS])?.upsample_nearest(size / PICTURE)?)
    }

    /// Hides what [`Encoder::pictures`] made in `images`, `[n, size, size, 3]` from 0 to 1: images of the same shape and
    /// range. `size` is a multiple of 16.
    pub fn encode(&self, pass: &Pass<'_, Encoder>, images: &Var, pictures: &Var) -> Result<Var> {
        let conv = |name: &str, x: &Var| Ok::<Var, tsbd_nn::Error>(pass.conv(name, x)?.relu()?);
        let up = |name: &str, x: &Var| Ok::<Var, tsbd_nn::Error>(enlarged(pass, name, x)?.relu()?);
        let beside = |parts: &[&Var]| Var::concat_channels(parts);
        let both = beside(&[pictures, images])?;
        let conv1 = conv("conv1", &both)?;
        let conv2 = conv("conv2", &conv1)?;
        let conv3 = conv("conv3", &conv2)?;
        let conv4 = conv("conv4", &conv3)?;
        let conv5 = conv("conv5", &conv4)?;
        let conv6 = conv("conv6", &beside(&[&conv4, &up("up6", &conv5)?])?)?;
        let conv7 = conv("conv7", &beside(&[&conv3, &up("up7", &conv6)?])?)?;
        let conv8 = conv("conv8", &beside(&[&conv2, &up("up8", &conv7)?])?)?;
        let conv9 = self.conv9(pass, [&conv1, &up("up9", &conv8)?, &both])?.relu()?;
        let conv10 = conv("conv10", &conv9)?;
        Ok(pass.conv("residual", &conv10)?.sigmoid()?)
    }

    /// The convolution `conv9` of `parts` beside each other. Six channels too many to fill registers: with zeros added to
    /// them, and to the weight, it is one of the sizes that are computed fast, and most of the net's products are here.
    fn conv9(&self, pass: &Pass<'_, Encoder>, parts: [&Var; 3]) -> Result<Var> {
        let (weight, bias) = (pass.parameter("conv9.weight")?, pass.parameter("conv9.bias")?);
        let (channels, width) = (weight.dims()[2], weight.dims()[3]);
        let added = width - channels % width;
        let zeros = |dims: &[usize]| -> Result<Var> {
            Ok(Var::constant(Tensor::zeros(dims, weight.tensor().dtype(), weight.tensor().device())?))
        };
        let mut dims = parts[0].dims().to_vec();
        dims[3] = added;
        let [first, second, third] = parts;
        let x = Var::concat_channels(&[first, second, third, &zeros(&dims)?])?;
        let taps = weight.reshape(&[9, channels * width])?;
        let taps = Var::concat_channels(&[&taps, &zeros(&[9, added * width])?])?;
        let weight = taps.reshape(&[3, 3, channels + added, width])?;
        Ok(x.conv2d(&weight, Some(&bias), Conv2d { stride: 1, padding: 1, ..Conv2d::default() })?)
    }
}

/// The convolution `name`, 2x2, of `x` with its pixels repeated and a row and a column of zeros after them: as a convolution of
/// 3x3 whose first taps are zeros, which is computed faster.
fn enlarged(pass: &Pass<'_, Encoder>, name: &str, x: &Var) -> Result<Var> {
    let weight = pass.parameter(&format!("{name}.weight"))?;
    let (channels, filters) = (weight.dims()[2], weight.dims()[3]);
    let taps = weight.reshape(&[1, 2, 2, channels * filters])?.pad_zeros([1, 0, 1, 0])?;
    let weight = taps.reshape(&[3, 3, channels, filters])?;
    let bias = pass.parameter(&format!("{name}.bias"))?;
    Ok(x.upsample_nearest(2)?.conv2d(&weight, Some(&bias), Conv2d { stride: 1, padding: 1, ..Conv2d::default() })?)
}

impl Network for Encoder {
    fn name(&self) -> &str {
        "stegastamp-encoder"
    }
    fn modules(&self) -> &[Module] {
        &self.modules
    }
}

/// Reads fingerprints out of images.
#[derive(Debug, Clone)]
pub struct Decoder {
    modules: Vec<Module>,
}

/// The decoder's convolutions, whose numbers are their places in PyTorch's `Sequential`, with a ReLU after each.
const DECODER: [&str; 7] =
    ["decoder.0", "decoder.2", "decoder.4", "decoder.6", "decoder.8", "decoder.10", "decoder.12"];

impl Decoder {
    /// A decoder for images of `size` pixels whose first convolution has `width` filters (32 in the reference).
    pub fn new(width: usize, size: usize) -> Decoder {
        let mut modules = Vec::new();
        let (mut channels, mut side) = (CHANNELS, size);
        let shapes = [(1, 2), (1, 1), (2, 2), (2, 1), (2, 2), (4, 2), (4, 2)];
        for (name, (widths, stride)) in DECODER.into_iter().zip(shapes) {
            modules.push(conv(name, channels, widths * width, stride));
            (channels, side) = (widths * width, side.div_ceil(stride));
        }
        let hidden = 16 * width;
        let dense = |name, in_features, out_features| Module::new(name, Layer::Linear { in_features, out_features });
        modules.push(dense("dense.0", side * side * channels, hidden));
        modules.push(dense("dense.2", hidden, BITS));
        Decoder { modules }
    }

    /// The logits `[n, 100]` of the fingerprints in `images`, `[n, size, size, 3]` from 0 to 1: positive for a one.
    pub fn decode(&self, pass: &Pass<'_, Decoder>, images: &Var) -> Result<Var> {
        let mut x = images.clone();
        for name in DECODER {
            x = pass.conv(name, &x)?.relu()?;
        }
        let features = x.dims()[1..].iter().product();
        let hidden = pass.linear("dense.0", &x.reshape(&[x.dims()[0], features])?)?.relu()?;
        pass.linear("dense.2", &hidden)
    }
}

impl Network for Decoder {
    fn name(&self) -> &str {
        "stegastamp-decoder"
    }
    fn modules(&self) -> &[Module] {
        &self.modules
    }
}
