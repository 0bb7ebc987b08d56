//! Operations of training steps.

use std::fmt;

use candle_core::{DType, Device, Tensor};

use super::{BATCH, Finding, Forward, Input, List, TF32, noise};
use crate::{
    BatchNorm, BatchStatistics, Conv2d, CrossEntropy, Placement, Precision, Result, Statistics, Var, augment,
    count_correct, upload,
};

/// What a convolution's products are added to.
#[derive(Clone, Copy)]
pub(super) enum Addend {
    Nothing,
    Bias,
    Residual,
}

impl fmt::Display for Addend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Nothing => "",
            Self::Bias => ", bias",
            Self::Residual => ", residual",
        })
    }
}

impl List<'_> {
    #[expect(clippy::too_many_arguments, reason = "all sizes of a convolution")]
    pub(super) fn convolution(
        &mut self,
        network: &str,
        inputs: usize,
        outputs: usize,
        size: usize,
        options: Conv2d,
        kernel: usize,
        addend: Addend,
    ) {
        let Conv2d { stride, padding, precision } = options;
        let shape =
            format!("{network}, {inputs} to {outputs}, {size}x{size}, {kernel}x{kernel} stride {stride}{addend}");
        let operation = if precision == Precision::Tf32 { TF32 } else { "conv2d" };
        self.push(operation, shape, move |place| {
            let out = (size + 2 * padding - kernel) / stride + 1;
            // Products of the size of the numbers themselves.
            let scale = 1. / ((kernel * kernel * inputs) as f64).sqrt();
            let weight = Input::new("dweight", &[kernel, kernel, inputs, outputs], 2)?.scaled(scale)?;
            // As in training, `f32` beside `bf16`; and in some checks of the activations' own type.
            let weight = if matches!(addend, Addend::Bias) { weight } else { weight.single() };
            let mut list = vec![Input::new("dx", &[BATCH, size, size, inputs], 1)?, weight];
            match addend {
                Addend::Nothing => {}
                Addend::Bias => list.push(Input::new("dbias", &[outputs], 3)?),
                Addend::Residual => list.push(Input::new("dresidual", &[BATCH, out, out, outputs], 3)?),
            }
            place.compare(&list, None, |inputs| match addend {
                Addend::Nothing => inputs[0].conv2d(&inputs[1], None, options),
                Addend::Bias => inputs[0].conv2d(&inputs[1], Some(&inputs[2]), options),
                Addend::Residual => inputs[0].conv2d_add(&inputs[1], options, &inputs[2]),
            })
        });
    }

    /// With the statistics of the batch and given ones, rectified or not, and with a second use of the input, whose gradient
    /// is added.
    pub(super) fn batch_norm(&mut self, network: &str, channels: usize, size: usize) {
        for (given, relu) in [(false, true), (false, false), (true, true)] {
            let statistics = if given { "given" } else { "the batch's" };
            let rectified = if relu { ", relu" } else { "" };
            let shape = format!("{network}, {channels}, {size}x{size}, {statistics} statistics{rectified}");
            self.push("batch_norm", shape, move |place| {
                let inputs = [
                    Input::new("dx", &[BATCH, size, size, channels], 1)?,
                    Input::new("dweight", &[channels], 2)?.single(),
                    Input::new("dbias", &[channels], 3)?.single(),
                    Input::new("dmean", &[channels], 4)?.single(),
                    Input::new("dvariance", &[channels], 5)?.scaled(0.3)?.plus(0.8)?.single(),
                ];
                let normalized = move |inputs: &[Var], relu: bool| {
                    let [x, weight, bias, mean, variance] = inputs else { unreachable!("five inputs") };
                    let statistics = match given {
                        true => Statistics::Running { mean: mean.tensor(), variance: variance.tensor() },
                        false => Statistics::Batch,
                    };
                    Ok(x.batch_norm(weight, bias, BatchNorm { statistics, epsilon: 1e-5, relu })?.0)
                };
                let before_relu = move |inputs: &[Var]| normalized(inputs, false);
                let before_relu: Option<&Forward> = if relu { Some(&before_relu) } else { None };
                place.compare(&inputs, before_relu, move |inputs| {
                    let y = normalized(inputs, relu)?;
                    // The input twice: as the residual of a block is.
                    y.add(&inputs[0])
                })
            });
        }
    }

    /// What a batch norm tells of its batch, for the running estimates.
    pub(super) fn batch_statistics(&mut self, network: &str, channels: usize, size: usize) {
        self.push("batch_statistics", format!("{network}, {channels}, {size}x{size}"), move |place| {
            let stored = noise(&[BATCH, size, size, channels], 1)?.affine(3., 1.)?.to_dtype(place.dtype)?;
            let met = |x: Tensor, dtype: DType| -> Result<BatchStatistics> {
                let [weight, bias] =
                    [Tensor::ones(channels, dtype, x.device())?, Tensor::zeros(channels, dtype, x.device())?];
                let options = BatchNorm { statistics: Statistics::Batch, epsilon: 1e-5, relu: false };
                let [x, weight, bias] = [x, weight, bias].map(Var::constant);
                Ok(x.batch_norm(&weight, &bias, options)?.1.expect("those of the batch"))
            };
            let expected = met(stored.to_dtype(DType::F64)?, DType::F64)?;
            let found = met(stored.to_device(&place.device)?, DType::F32)?;
            let mean = Finding::of("mean", &found.mean, &expected.mean)?;
            Ok(vec![mean, Finding::of("variance", &found.variance, &expected.variance)?])
        });
    }

    pub(super) fn pooling(
        &mut self,
        network: &str,
        channels: usize,
        size: usize,
        kernel: usize,
        stride: usize,
        padding: usize,
    ) {
        let shape = format!("{network}, {channels}, {size}x{size}, {kernel}x{kernel} stride {stride}");
        let inputs = move || -> Result<[Input; 1]> { Ok([Input::new("dx", &[BATCH, size, size, channels], 1)?]) };
        self.push("max_pool2d", shape.clone(), move |place| {
            place.compare(&inputs()?, None, |x| x[0].max_pool2d(kernel, stride, padding))
        });
        self.push("avg_pool2d", shape, move |place| {
            place.compare(&inputs()?, None, |x| x[0].avg_pool2d(kernel, stride, padding))
        });
    }

    pub(super) fn global_average_pool(&mut self, network: &str, channels: usize, size: usize) {
        self.push("global_average_pool", format!("{network}, {channels}, {size}x{size}"), move |place| {
            let inputs = [Input::new("dx", &[BATCH, size, size, channels], 1)?];
            place.compare(&inputs, None, |x| x[0].global_average_pool())
        });
    }

    pub(super) fn linear(&mut self, network: &str, rows: usize, inputs: usize, outputs: usize) {
        self.push("linear", format!("{network}, {rows} rows, {inputs} to {outputs}"), move |place| {
            let list = [
                Input::new("dx", &[rows, inputs], 1)?,
                Input::new("dweight", &[outputs, inputs], 2)?.scaled(1. / (inputs as f64).sqrt())?,
                Input::new("dbias", &[outputs], 3)?,
            ];
            place.compare(&list, None, |list| list[0].linear(&list[1], Some(&list[2])))
        });
    }

    pub(super) fn rectified(&mut self, network: &str, channels: usize, size: usize) {
        self.push("relu", format!("{network}, {channels}, {size}x{size}"), move |place| {
            let inputs = [Input::new("dx", &[BATCH, size, size, channels], 1)?];
            place.compare(&inputs, Some(&|x| Ok(x[0].clone())), |x| x[0].relu())
        });
    }

    pub(super) fn cross_entropy(&mut self, network: &str, classes: usize) {
        const ROWS: usize = 128;
        let logits = move || -> Result<[Input; 1]> { Ok([Input::new("dlogits", &[ROWS, classes], 1)?.scaled(5.)?]) };
        let labels = move |device: &Device| -> Result<Tensor> {
            let labels: Vec<u32> = (0..ROWS).map(|row| (row * 7 % classes) as u32).collect();
            Ok(Tensor::from_vec(labels, ROWS, device)?)
        };
        for label_smoothing in [0., 0.1] {
            let shape = format!("{network}, {classes} classes, smoothing {label_smoothing}");
            let options = CrossEntropy { label_smoothing };
            self.push("cross_entropy", shape.clone(), move |place| {
                place.compare(&logits()?, None, |x| x[0].cross_entropy(&labels(x[0].tensor().device())?, options))
            });
            self.push("cross_entropy_per_sample", shape, move |place| {
                place.compare(&logits()?, None, |x| {
                    x[0].cross_entropy_per_sample(&labels(x[0].tensor().device())?, options)
                })
            });
        }
        self.push("count_correct", format!("{network}, {classes} classes"), move |place| {
            let count = |device: &Device| -> Result<Tensor> {
                let logits = noise(&[ROWS, classes], 1)?.to_device(device)?;
                count_correct(&logits, &labels(device)?)
            };
            Ok(vec![Finding::of("y", &count(&place.device)?, &count(&Device::Cpu)?)?])
        });
    }

    /// Bits that are not those of the CPU have an error of 1.
    pub(super) fn augment(&mut self, network: &str, size: usize) {
        self.push("augment", format!("{network}, {size}x{size}"), move |place| {
            let images = 10;
            let pixels: Vec<u8> = (0..images * size * size * 3).map(|index| (index * 97 % 251) as u8).collect();
            let table: [[f32; 256]; 3] =
                std::array::from_fn(|color| std::array::from_fn(|level| (color * 256 + level) as f32 / 99.));
            let indices: Vec<u32> = (0..64).map(|number| number * 7 % images as u32).collect();
            let draw = |number: i32| Placement { up: number % 9 - 4, left: number % 7 - 3, mirrored: number % 2 == 1 };
            let placements: Vec<Placement> = (0..64).map(draw).collect();
            let batch = |device: &Device| -> Result<Vec<f32>> {
                let pixels = upload(pixels.clone(), [images, size, size], device)?;
                Ok(augment(&pixels, &indices, &placements, &table)?.flatten_all()?.to_vec1()?)
            };
            let same = batch(&Device::Cpu)? == batch(&place.device)?;
            Ok(vec![Finding { what: "y", error: if same { 0. } else { 1. } }])
        });
    }

    /// What attacks and defenses compute beside a network: element by element, over rows and channels, and copied to other
    /// places. The inputs of most are two tensors of these sizes, moved by a number.
    pub(super) fn arithmetic(&mut self, network: &str, dims: [usize; 4]) {
        type Function = fn(&[Var]) -> Result<Var>;
        let shape = format!("{network}, {dims:?}");
        let functions: [(&'static str, f64, Function); 19] = [
            ("sub", 0., |x| x[0].sub(&x[1])),
            ("mul", 0., |x| x[0].mul(&x[1])),
            ("div", 1.5, |x| x[0].div(&x[1])),
            ("sqrt", 1.5, |x| x[0].sqrt()),
            ("abs", 0., |x| x[0].abs()),
            ("offset", 0., |x| x[0].offset(0.7)),
            ("scale", 0., |x| x[0].scale(-0.3)),
            // There and back: `f32` holds every number of either type.
            ("to_dtype", 0., |x| x[0].to_dtype(DType::F32)?.to_dtype(x[0].tensor().dtype())),
            ("sigmoid", 0., |x| x[0].sigmoid()),
            ("tanh", 0., |x| x[0].tanh()),
            ("sum", 0.5, |x| x[0].sum()),
            ("mean", 0.5, |x| x[0].mean()),
            ("mean_per_sample", 0.5, |x| x[0].mean_per_sample()),
            ("divide_by_norm", 0., |x| x[0].divide_by_norm(1e-3)),
            ("channel_products", 0.5, |x| x[0].channel_products(&x[1])),
            ("concat_channels", 0., |x| Var::concat_channels(&[&x[0], &x[1], &x[0]])),
            ("upsample_nearest", 0., |x| x[0].upsample_nearest(3)),
            ("pad_zeros", 0., |x| x[0].pad_zeros([1, 0, 2, 3])),
            ("mean_squared_error", 0., |x| x[0].mean_squared_error(&x[1])),
        ];
        for (operation, moved, function) in functions {
            self.push(operation, shape.clone(), move |place| {
                let inputs = [Input::new("dx", &dims, 1)?.plus(moved)?, Input::new("dother", &dims, 2)?.plus(moved)?];
                place.compare(&inputs, None, function)
            });
        }
        let [images, height, width, channels] = dims;
        self.push("broadcast_batch", shape.clone(), move |place| {
            place
                .compare(&[Input::new("dx", &[1, height, width, channels], 1)?], None, |x| x[0].broadcast_batch(images))
        });
        self.push("scale_channels", shape.clone(), move |place| {
            let vectors = [Input::new("dscale", &[channels], 2)?.plus(0.5)?, Input::new("dshift", &[channels], 3)?];
            let [scale, shift] = vectors;
            place.compare(&[Input::new("dx", &dims, 1)?, scale, shift], None, |x| {
                x[0].scale_channels(&x[1], Some(&x[2]))?.add(&x[0].scale_channels(&x[1], None)?)
            })
        });
        if self.dtype != DType::F32 {
            return;
        }
        self.push("tangent", shape.clone(), move |place| {
            place.compare(&[Input::new("dx", &dims, 1)?, Input::new("ddirection", &dims, 2)?], None, |x| {
                let moving = x[0].with_tangent(&x[1])?;
                let square = moving.mul(&moving)?.sub(&moving)?.offset(0.3)?.scale(-1.7)?.pad_zeros([1, 1, 0, 0])?;
                let joined = Var::concat_channels(&[&square, &square.detach()])?.upsample_nearest(2)?;
                let means = joined.mean_per_sample()?;
                Ok(means.tangent().expect("every operation has carried it on").clone())
            })
        });
        self.push("binary_cross_entropy", shape, move |place| {
            let targets = ((noise(&dims, 2)? + 1.)? * 0.5)?;
            place.compare(&[Input::new("dlogits", &dims, 1)?.scaled(5.)?], None, |logits| {
                let logits = &logits[0];
                let targets = targets.to_dtype(logits.tensor().dtype())?.to_device(logits.tensor().device())?;
                logits.binary_cross_entropy(&targets)
            })
        });
    }
}
