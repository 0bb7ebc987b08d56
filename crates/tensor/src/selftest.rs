//! Every operation on a device against the same operation in `f64` on the CPU, forward and backward, at the shapes of the
//! networks of this project and at odd ones. `tsbd selftest` prints what is found.
//!
//! The values are repeatable and without pattern. Gradients begin at the output with numbers of the same kind, except that
//! none begins where a rectified value is so close to 0 that rounding decides whether it passes.

use std::fmt;

use candle_core::{DType, Device, Tensor};

use crate::{
    Adam, BatchNorm, Conv2d, ConvTranspose2d, CrossEntropy, GridPadding, GridSample, Placement, Precision, Result, Sgd,
    Statistics, Tape, Var, adam_step, amsgrad_step, augment, move_estimates, sgd_steps, upload,
};

/// One operation at one shape, in one element type.
pub struct Check {
    operation: &'static str,
    shape: String,
    dtype: DType,
    run: Run,
}

type Run = Box<dyn Fn(&Place) -> Result<Vec<Finding>>>;

/// One result of an operation: its value, or the gradient of one of its inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finding {
    /// What was compared: `y`, `dx`, `dweight`, ...
    pub what: &'static str,
    /// The largest difference from the reference, relative to the reference's largest element.
    pub error: f64,
}

/// Where an operation is done, and in which element type.
struct Place {
    device: Device,
    dtype: DType,
}

/// An input of an operation.
#[derive(Clone)]
struct Input {
    /// The name of its gradient.
    gradient: &'static str,
    values: Tensor,
    /// Whether it is `f32` also beside `bf16` activations.
    always_single: bool,
}

/// A convolution that may round its factors.
const TF32: &str = "conv2d tf32";

/// Rectified values closer to 0 than this get no gradient.
const MARGIN: f64 = 1e-3;

impl Check {
    /// The operation in words.
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    /// Its sizes.
    pub fn shape(&self) -> &str {
        &self.shape
    }

    /// The element type of its tensors.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The largest error that is right: 1e-4 in `f32` on a GPU, 5e-4 on a CPU (see
    /// [`crate::ConvolutionAlgorithm::Fast`]), 2e-3 in TF32, 1e-2 in `bf16`. An error that is not a number is never right.
    pub fn tolerance(&self, device: &Device) -> f64 {
        match (self.dtype, device) {
            (DType::BF16, _) => 1e-2,
            (_, Device::Cpu) => 5e-4,
            _ if self.operation == TF32 => 2e-3,
            _ => 1e-4,
        }
    }

    /// Does it on `device`.
    ///
    /// # Errors
    /// If the operation is refused there or fails: that too is a finding.
    pub fn run(&self, device: &Device) -> Result<Vec<Finding>> {
        (self.run)(&Place { device: device.clone(), dtype: self.dtype })
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Check").field("operation", &self.operation).field("shape", &self.shape).finish()
    }
}

/// What is checked on `device`: everything in `f32`, on GPUs what takes it in `bf16` too. Shapes that belong to no network
/// are called `odd`.
pub fn checks(device: &Device) -> Vec<Check> {
    let mut checks = vec![];
    let dtypes: &[DType] = if device.is_cpu() { &[DType::F32] } else { &[DType::F32, DType::BF16] };
    for &dtype in dtypes {
        let mut list = List { dtype, checks: &mut checks };
        list.odd_shapes();
        list.residual_network();
        list.vgg();
        list.vision_transformer();
        list.beyond_training();
    }
    checks
}

struct List<'a> {
    dtype: DType,
    checks: &'a mut Vec<Check>,
}

/// Images per check: enough for several blocks, few enough for a reference in `f64`.
const BATCH: usize = 4;

impl List<'_> {
    fn odd_shapes(&mut self) {
        for (size, inputs, outputs, kernel, stride) in
            [(5, 3, 5, 3, 1), (7, 5, 3, 3, 2), (6, 4, 7, 1, 2), (9, 2, 9, 5, 3)]
        {
            self.convolution(
                "odd",
                inputs,
                outputs,
                size,
                Conv2d { stride, padding: kernel / 2, ..Conv2d::default() },
                kernel,
                Addend::Bias,
            );
        }
        for (size, channels) in [(3, 1), (5, 3), (7, 66), (2, 1100)] {
            self.batch_norm("odd", channels, size);
        }
        for (size, channels, kernel, stride, padding) in [(7, 3, 3, 2, 1), (5, 5, 2, 2, 0), (9, 4, 4, 3, 2)] {
            self.pooling("odd", channels, size, kernel, stride, padding);
        }
        if self.dtype == DType::F32 {
            let tf32 = Conv2d { stride: 2, padding: 1, precision: Precision::Tf32 };
            self.convolution("odd", 5, 3, 7, tf32, 3, Addend::Bias);
        }
        self.global_average_pool("odd", 5, 3);
        self.linear("odd", 7, 13, 3);
        self.rectified("odd", 3, 5);
        self.arithmetic("odd", [3, 5, 4, 3]);
        self.arithmetic("odd", [2, 1, 3, 66]);
        if self.dtype == DType::F32 {
            self.cross_entropy("odd", 3);
            self.augment("odd", 7);
            self.sgd("odd", &[3, 3, 5, 7]);
            self.adam("odd", &[3, 3, 5, 7]);
        }
    }

    fn residual_network(&mut self) {
        const NETWORK: &str = "preact-resnet18";
        let three = |stride| Conv2d { stride, padding: 1, ..Conv2d::default() };
        self.convolution(NETWORK, 3, 64, 32, three(1), 3, Addend::Nothing);
        let (mut channels, mut size) = (64, 32);
        for stage in 0..4 {
            if stage > 0 {
                self.convolution(NETWORK, channels, 2 * channels, size, three(2), 3, Addend::Nothing);
                self.convolution(
                    NETWORK,
                    channels,
                    2 * channels,
                    size,
                    Conv2d { stride: 2, padding: 0, ..Conv2d::default() },
                    1,
                    Addend::Nothing,
                );
                (channels, size) = (2 * channels, size / 2);
            }
            self.convolution(NETWORK, channels, channels, size, three(1), 3, Addend::Residual);
            if self.dtype == DType::F32 {
                let tf32 = Conv2d { precision: Precision::Tf32, ..three(1) };
                self.convolution(NETWORK, channels, channels, size, tf32, 3, Addend::Nothing);
            }
            self.batch_norm(NETWORK, channels, size);
        }
        self.global_average_pool(NETWORK, channels, size);
        self.linear(NETWORK, 128, channels, 10);
        self.arithmetic(NETWORK, [BATCH, 32, 32, 64]);
        if self.dtype == DType::F32 {
            self.cross_entropy(NETWORK, 10);
            self.augment(NETWORK, 32);
            self.sgd(NETWORK, &[3, 3, 256, 256]);
            self.adam(NETWORK, &[3, 3, 256, 256]);
        }
    }

    fn vgg(&mut self) {
        const NETWORK: &str = "vgg19-bn";
        let mut inputs = 3;
        for (outputs, size) in [(64, 32), (128, 16), (256, 8), (512, 4), (512, 2)] {
            self.convolution(
                NETWORK,
                inputs,
                outputs,
                size,
                Conv2d { stride: 1, padding: 1, ..Conv2d::default() },
                3,
                Addend::Bias,
            );
            self.pooling(NETWORK, outputs, size, 2, 2, 0);
            inputs = outputs;
        }
        self.linear(NETWORK, BATCH, 512, 4096);
        self.rectified(NETWORK, 64, 8);
    }

    fn vision_transformer(&mut self) {
        const NETWORK: &str = "vit-b-16";
        self.convolution(
            NETWORK,
            3,
            768,
            224,
            Conv2d { stride: 16, padding: 0, ..Conv2d::default() },
            16,
            Addend::Bias,
        );
        self.linear(NETWORK, 197, 768, 3072);
        self.linear(NETWORK, 197, 3072, 768);
    }

    /// What attacks, defenses and other networks need beyond the training step of a convolutional one.
    fn beyond_training(&mut self) {
        for (network, rows, columns) in [("odd", 7, 3), ("odd", 5, 1100), ("vit-b-16", 591, 197)] {
            let shape = format!("{network}, {rows} rows of {columns}");
            let inputs = move || -> Result<[Input; 1]> { Ok([Input::new("dx", &[rows, columns], 1)?.scaled(3.)?]) };
            self.push("softmax", shape.clone(), move |place| place.compare(&inputs()?, None, |x| x[0].softmax()));
            self.push("log_softmax", shape, move |place| place.compare(&inputs()?, None, |x| x[0].log_softmax()));
        }
        for (network, rows, columns) in [("odd", 7, 3), ("odd", 5, 1100), ("vit-b-16", 788, 768)] {
            self.push("layer_norm", format!("{network}, {rows} rows of {columns}"), move |place| {
                let inputs = [
                    Input::new("dx", &[rows, columns], 1)?.plus(0.5)?,
                    Input::new("dweight", &[columns], 2)?.single(),
                    Input::new("dbias", &[columns], 3)?.single(),
                ];
                place.compare(&inputs, None, |v| v[0].layer_norm(&v[1], &v[2], 1e-5))
            });
        }
        for (network, rows, columns) in [("odd", 3, 5), ("vit-b-16", 197, 3072)] {
            self.push("gelu", format!("{network}, {rows}x{columns}"), move |place| {
                place.compare(&[Input::new("dx", &[rows, columns], 1)?.scaled(4.)?], None, |x| x[0].gelu())
            });
        }
        for (network, channels, from, to) in
            [("odd", 3, [5, 7], [11, 10]), ("odd", 4, [9, 6], [4, 3]), ("input-aware", 128, [8, 8], [16, 16])]
        {
            for align_corners in [false, true] {
                let shape = format!("{network}, {channels}, {from:?} to {to:?}, corners aligned {align_corners}");
                self.push("resize_bilinear", shape, move |place| {
                    let inputs = [Input::new("dx", &[BATCH, from[0], from[1], channels], 1)?];
                    place.compare(&inputs, None, |x| x[0].resize_bilinear(to[0], to[1], align_corners))
                });
            }
        }
        for (network, channels, from, to) in [("odd", 5, [5, 7], [3, 4]), ("wanet", 3, [32, 32], [32, 32])] {
            for (padding, align_corners) in [(GridPadding::Zeros, false), (GridPadding::Border, true)] {
                let shape = format!("{network}, {channels}, {from:?} at {to:?}, {padding:?} outside");
                self.push("grid_sample", shape, move |place| {
                    let inputs = [
                        Input::new("dx", &[BATCH, from[0], from[1], channels], 1)?,
                        Input::new("dgrid", &[BATCH, to[0], to[1], 2], 2)?.scaled(1.2)?.single(),
                    ];
                    place.compare(&inputs, None, |v| v[0].grid_sample(&v[1], GridSample { padding, align_corners }))
                });
            }
        }
        for (network, inputs, outputs, size, kernel, stride, padding, output_padding) in
            [("odd", 5, 3, 4, 3, 2, 1, 1), ("odd", 3, 7, 5, 4, 3, 0, 0), ("decoder", 64, 3, 16, 4, 2, 1, 0)]
        {
            let shape = format!("{network}, {inputs} to {outputs}, {size}x{size}, {kernel}x{kernel} stride {stride}");
            self.push("conv_transpose2d", shape, move |place| {
                let scale = 1. / ((kernel * kernel * inputs) as f64 / (stride * stride) as f64).sqrt();
                let list = [
                    Input::new("dx", &[BATCH, size, size, inputs], 1)?,
                    Input::new("dweight", &[kernel, kernel, outputs, inputs], 2)?.scaled(scale)?,
                    Input::new("dbias", &[outputs], 3)?,
                ];
                let options = ConvTranspose2d { stride, padding, output_padding };
                // The input twice: its gradients are added.
                place.compare(&list, None, |v| {
                    let twice = v[0].conv_transpose2d(&v[1], Some(&v[2]), options)?;
                    v[0].conv_transpose2d(&v[1], None, options)?.add(&twice)
                })
            });
        }
        if self.dtype == DType::F32 {
            self.second_derivatives();
        }
    }

    /// The slope of a small network's loss when a pattern that is added to all images moves, and its gradients: with respect
    /// to the pattern the product of the Hessian and the direction, with respect to the direction the gradient of the loss.
    /// These numbers were chosen so that rounding decides nothing: of what is rectified nothing is closer to 0 than 2e-3, and
    /// of what competes for a maximum no two are closer.
    fn second_derivatives(&mut self) {
        for given in [false, true] {
            let statistics = if given { "given" } else { "the batch's" };
            self.push("hessian_vector_product", format!("odd, {statistics} statistics"), move |place| {
                let (size, channels, classes) = (5, 4, 4);
                let inputs = [
                    Input::new("dpattern", &[1, size, size, 3], 351)?,
                    Input::new("ddirection", &[1, size, size, 3], 352)?,
                    Input::new("dimages", &[BATCH, size, size, 3], 353)?,
                    Input::new("dfirst", &[3, 3, 3, channels], 354)?,
                    Input::new("dscale", &[channels], 355)?,
                    Input::new("dshift", &[channels], 356)?,
                    Input::new("dsecond", &[3, 3, channels, channels], 357)?,
                    Input::new("dthird", &[1, 1, channels, channels], 358)?,
                    Input::new("dweight", &[classes, channels], 359)?,
                    Input::new("dbias", &[classes], 360)?,
                ];
                place.compare(&inputs, None, move |inputs| {
                    let [pattern, direction, images, first, scale, shift, second, third, weight, bias] = inputs else {
                        unreachable!("ten inputs")
                    };
                    let device = pattern.tensor().device();
                    let labels = Tensor::new(&[1u32, 3, 0, 2], device)?;
                    let (mean, variance) = (shift.tensor().affine(0.5, 0.1)?, scale.tensor().sqr()?.affine(1., 0.5)?);
                    let statistics = match given {
                        true => Statistics::Running { mean: &mean, variance: &variance },
                        false => Statistics::Batch,
                    };
                    let options = BatchNorm { statistics, epsilon: 1e-3, relu: true };
                    let (same, pointwise) = (
                        Conv2d { stride: 1, padding: 1, ..Conv2d::default() },
                        Conv2d { stride: 1, padding: 0, ..Conv2d::default() },
                    );
                    let moving = pattern.with_tangent(direction)?;
                    let x = moving.broadcast_batch(BATCH)?.add(images)?.conv2d(first, None, same)?;
                    let y = x.batch_norm(scale, shift, options)?.0.conv2d_add(second, same, &x)?;
                    let y = y.batch_norm(shift, scale, BatchNorm { relu: false, ..options })?.0.relu()?;
                    let pooled = y.max_pool2d(2, 2, 1)?.avg_pool2d(2, 1, 0)?.conv2d(third, None, pointwise)?;
                    let logits = pooled.global_average_pool()?.linear(weight, Some(bias))?;
                    let loss = logits.cross_entropy(&labels, CrossEntropy { label_smoothing: 0.1 })?;
                    let loss = loss.add(&moving.mul(&moving)?.mean()?)?;
                    Ok(loss.tangent().expect("the pattern moves").clone())
                })
            });
        }
    }

    fn push(&mut self, operation: &'static str, shape: String, run: impl Fn(&Place) -> Result<Vec<Finding>> + 'static) {
        self.checks.push(Check { operation, shape, dtype: self.dtype, run: Box::new(run) });
    }

    #[expect(clippy::too_many_arguments, reason = "all sizes of a convolution")]
    fn convolution(
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
            let mut list = vec![
                Input::new("dx", &[BATCH, size, size, inputs], 1)?,
                Input::new("dweight", &[kernel, kernel, inputs, outputs], 2)?.scaled(scale)?,
            ];
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
    fn batch_norm(&mut self, network: &str, channels: usize, size: usize) {
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

    fn pooling(&mut self, network: &str, channels: usize, size: usize, kernel: usize, stride: usize, padding: usize) {
        let shape = format!("{network}, {channels}, {size}x{size}, {kernel}x{kernel} stride {stride}");
        let inputs = move || -> Result<[Input; 1]> { Ok([Input::new("dx", &[BATCH, size, size, channels], 1)?]) };
        self.push("max_pool2d", shape.clone(), move |place| {
            place.compare(&inputs()?, None, |x| x[0].max_pool2d(kernel, stride, padding))
        });
        self.push("avg_pool2d", shape, move |place| {
            place.compare(&inputs()?, None, |x| x[0].avg_pool2d(kernel, stride, padding))
        });
    }

    fn global_average_pool(&mut self, network: &str, channels: usize, size: usize) {
        self.push("global_average_pool", format!("{network}, {channels}, {size}x{size}"), move |place| {
            let inputs = [Input::new("dx", &[BATCH, size, size, channels], 1)?];
            place.compare(&inputs, None, |x| x[0].global_average_pool())
        });
    }

    fn linear(&mut self, network: &str, rows: usize, inputs: usize, outputs: usize) {
        self.push("linear", format!("{network}, {rows} rows, {inputs} to {outputs}"), move |place| {
            let list = [
                Input::new("dx", &[rows, inputs], 1)?,
                Input::new("dweight", &[outputs, inputs], 2)?.scaled(1. / (inputs as f64).sqrt())?,
                Input::new("dbias", &[outputs], 3)?,
            ];
            place.compare(&list, None, |list| list[0].linear(&list[1], Some(&list[2])))
        });
    }

    fn rectified(&mut self, network: &str, channels: usize, size: usize) {
        self.push("relu", format!("{network}, {channels}, {size}x{size}"), move |place| {
            let inputs = [Input::new("dx", &[BATCH, size, size, channels], 1)?];
            place.compare(&inputs, Some(&|x| Ok(x[0].clone())), |x| x[0].relu())
        });
    }

    fn cross_entropy(&mut self, network: &str, classes: usize) {
        for label_smoothing in [0., 0.1] {
            let shape = format!("{network}, {classes} classes, smoothing {label_smoothing}");
            self.push("cross_entropy", shape, move |place| {
                let rows = 128;
                let labels: Vec<u32> = (0..rows).map(|row| (row * 7 % classes) as u32).collect();
                let inputs = [Input::new("dlogits", &[rows, classes], 1)?.scaled(5.)?];
                place.compare(&inputs, None, move |logits| {
                    let labels = Tensor::from_slice(&labels, rows, logits[0].tensor().device())?;
                    logits[0].cross_entropy(&labels, CrossEntropy { label_smoothing })
                })
            });
        }
    }

    /// Bits that are not those of the CPU have an error of 1.
    fn augment(&mut self, network: &str, size: usize) {
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
    fn arithmetic(&mut self, network: &str, dims: [usize; 4]) {
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

    /// Two steps of two parameters, and then running estimates made of them.
    fn sgd(&mut self, network: &str, dims: &[usize]) {
        let dims = dims.to_vec();
        self.push("sgd_step", format!("{network}, {dims:?}"), move |place| {
            let steps = |dtype: DType, device: &Device| -> Result<[Tensor; 4]> {
                let at = |start| -> Result<Tensor> { Ok(noise(&dims, start)?.to_dtype(dtype)?.to_device(device)?) };
                let (parameter, velocity) = (at(1)?.copy()?, at(2)?.copy()?);
                let other =
                    [at(5)?.flatten_all()?.narrow(0, 0, 1)?.copy()?, at(6)?.flatten_all()?.narrow(0, 0, 1)?.copy()?];
                for start in [3, 4] {
                    let options = Sgd { learning_rate: 0.1, momentum: 0.9, weight_decay: 5e-4 };
                    let one = other[1].copy()?;
                    sgd_steps(&[[&parameter, &velocity, &at(start)?], [&other[0], &other[1], &one]], options, None)?;
                }
                let estimates = [other[0].copy()?, parameter.copy()?];
                move_estimates(&[[&estimates[0], &other[1]], [&estimates[1], &velocity]], 0.1, None)?;
                let [small, large] = estimates;
                Ok([parameter, velocity, small, large])
            };
            let expected = steps(DType::F64, &Device::Cpu)?;
            let found = steps(place.dtype, &place.device)?;
            let pairs = ["parameter", "velocity", "small estimate", "large estimate"]
                .into_iter()
                .zip(found.iter().zip(&expected));
            pairs.map(|(what, (found, expected))| Finding::of(what, found, expected)).collect()
        });
    }

    /// Two steps of Adam and of AMSGrad, of which the second has the smaller gradient.
    fn adam(&mut self, network: &str, dims: &[usize]) {
        const NAMES: [&str; 4] = ["parameter", "first_moment", "second_moment", "largest"];
        for (operation, keeps_largest) in [("adam_step", false), ("amsgrad_step", true)] {
            let dims = dims.to_vec();
            self.push(operation, format!("{network}, {dims:?}"), move |place| {
                let steps = |dtype: DType, device: &Device| -> Result<Vec<Tensor>> {
                    let at =
                        |values: Tensor| -> Result<Tensor> { Ok(values.to_dtype(dtype)?.to_device(device)?.copy()?) };
                    let mut kept = vec![at(noise(&dims, 1)?)?];
                    for _ in &NAMES[1..] {
                        kept.push(kept[0].zeros_like()?);
                    }
                    for (step, size) in [(1, 1.), (2, 0.1)] {
                        let gradient = at((noise(&dims, 2 + step as usize)? * size)?)?;
                        let options = Adam { learning_rate: 0.1, betas: [0.5, 0.9], epsilon: 1e-3 };
                        let [parameter, first, second, largest] = &kept[..] else { unreachable!("four are kept") };
                        if keeps_largest {
                            amsgrad_step(parameter, first, second, largest, &gradient, step, options)?;
                        } else {
                            adam_step(parameter, first, second, &gradient, step, options)?;
                        }
                    }
                    kept.truncate(if keeps_largest { NAMES.len() } else { NAMES.len() - 1 });
                    Ok(kept)
                };
                let expected = steps(DType::F64, &Device::Cpu)?;
                let found = steps(place.dtype, &place.device)?;
                let pairs = NAMES.into_iter().zip(found.iter().zip(&expected));
                pairs.map(|(what, (found, expected))| Finding::of(what, found, expected)).collect()
            });
        }
    }
}

/// What a convolution's products are added to.
#[derive(Clone, Copy)]
enum Addend {
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

impl Input {
    fn new(gradient: &'static str, dims: &[usize], start: usize) -> Result<Self> {
        Ok(Self { gradient, values: noise(dims, start)?, always_single: false })
    }

    fn scaled(mut self, factor: f64) -> Result<Self> {
        self.values = (self.values * factor)?;
        Ok(self)
    }

    fn plus(mut self, addend: f64) -> Result<Self> {
        self.values = (self.values + addend)?;
        Ok(self)
    }

    fn single(mut self) -> Self {
        self.always_single = true;
        self
    }
}

type Forward = dyn Fn(&[Var]) -> Result<Var>;

impl Place {
    /// The output of `forward` here and the gradients of its inputs, against `f64` on the CPU. Where `before_relu` (in
    /// `f64`) is close to 0, no gradient begins.
    fn compare(
        &self,
        inputs: &[Input],
        before_relu: Option<&Forward>,
        forward: impl Fn(&[Var]) -> Result<Var>,
    ) -> Result<Vec<Finding>> {
        // What is stored here, exactly: a reference has to begin with the same numbers.
        let stored = |values: &Tensor, always_single: bool| -> Result<Tensor> {
            Ok(if always_single { values.to_dtype(DType::F32)? } else { values.to_dtype(self.dtype)? })
        };
        let mut here = vec![];
        let mut reference = vec![];
        for input in inputs {
            let values = stored(&input.values, input.always_single)?;
            reference.push(values.to_dtype(DType::F64)?);
            here.push(values.to_device(&self.device)?);
        }

        let tape = Tape::new();
        let leaves: Vec<Var> = reference.iter().map(|input| tape.leaf(input)).collect();
        let expected = forward(&leaves)?;
        let mut seed = noise(expected.dims(), 99)?;
        if let Some(before_relu) = before_relu {
            let constants: Vec<Var> = reference.iter().cloned().map(Var::constant).collect();
            let far = before_relu(&constants)?.tensor().abs()?.ge(MARGIN)?;
            seed = (seed * far.to_dtype(DType::F32)?)?;
        }
        let seed = stored(&seed, false)?;
        let gradients = tape.backward_from(&[(&expected, &seed.to_dtype(DType::F64)?)])?;

        let own_tape = Tape::new();
        let own_leaves: Vec<Var> = here.iter().map(|input| own_tape.leaf(input)).collect();
        let found = forward(&own_leaves)?;
        let own_gradients = own_tape.backward_from(&[(&found, &seed.to_device(&self.device)?)])?;

        let mut findings = vec![Finding::of("y", found.tensor(), expected.tensor())?];
        for (input, (leaf, own_leaf)) in inputs.iter().zip(leaves.iter().zip(&own_leaves)) {
            match (own_gradients.get(own_leaf), gradients.get(leaf)) {
                (Some(found), Some(expected)) => findings.push(Finding::of(input.gradient, found, expected)?),
                (None, None) => {}
                // One of the two has forgotten a gradient.
                _ => findings.push(Finding { what: input.gradient, error: f64::NAN }),
            }
        }
        Ok(findings)
    }
}

impl Finding {
    fn of(what: &'static str, found: &Tensor, expected: &Tensor) -> Result<Self> {
        // In this order: a GPU need not know `f64`.
        let on_cpu = |tensor: &Tensor| -> Result<Vec<f64>> {
            Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
        };
        if found.dims() != expected.dims() {
            return Ok(Self { what, error: f64::NAN });
        }
        let (found, expected) = (on_cpu(found)?, on_cpu(expected)?);
        let largest = expected.iter().fold(f64::MIN_POSITIVE, |largest, value| largest.max(value.abs()));
        // `max` would swallow what is not a number.
        let larger = |worst: f64, error: f64| if error > worst || error.is_nan() { error } else { worst };
        let differences = found.iter().zip(&expected).map(|(found, expected)| (found - expected).abs());
        Ok(Self { what, error: differences.fold(0., larger) / largest })
    }
}

/// Numbers spread evenly over -1..1 in no visible order, `f32` on the CPU; other ones for another `start`.
fn noise(dims: &[usize], start: usize) -> Result<Tensor> {
    let count: usize = dims.iter().product();
    let value = |index: usize| ((start * 104_729 + index) as f64 * 0.754_877_666_246_692_8).fract() * 2. - 1.;
    let values: Vec<f32> = (0..count).map(|index| value(index) as f32).collect();
    Ok(Tensor::from_vec(values, dims, &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_passes_every_check_of_an_odd_shape() {
        let mut operations = std::collections::BTreeSet::new();
        for check in checks(&Device::Cpu).into_iter().filter(|check| check.shape().starts_with("odd")) {
            operations.insert(check.operation());
            for Finding { what, error } in check.run(&Device::Cpu).unwrap() {
                assert!(error <= check.tolerance(&Device::Cpu), "{check:?}, {what}: {error:e}");
            }
        }
        assert_eq!(operations.len(), 44, "{operations:?}");
    }

    #[test]
    fn a_wrong_result_a_wrong_gradient_and_one_that_is_missing_are_found() {
        let place = Place { device: Device::Cpu, dtype: DType::F32 };
        let inputs = [Input::new("dx", &[3, 5], 1).unwrap()];
        // Wrong in `f32` alone, as on a device whose kernel is wrong.
        let is_here = |x: &Var| x.tensor().dtype() == DType::F32;
        let wrong_value =
            place.compare(&inputs, None, |x| if is_here(&x[0]) { x[0].scale(1.01) } else { x[0].scale(1.) });
        assert!(wrong_value.unwrap().iter().all(|finding| finding.error > 5e-3));
        let right = place.compare(&inputs, None, |x| x[0].mul(&x[0])).unwrap();
        assert!(right.iter().all(|finding| finding.error < 1e-6), "{right:?}");
        let half =
            place.compare(&inputs, None, |x| if is_here(&x[0]) { x[0].mul(&x[0].detach()) } else { x[0].mul(&x[0]) });
        let half = half.unwrap();
        assert!(half[0].error < 1e-6 && half[1].error > 0.4, "{half:?}");
        let none = place.compare(&[inputs[0].clone(), inputs[0].clone()], None, |x| {
            if is_here(&x[0]) { x[0].add(&x[1].detach()) } else { x[0].add(&x[1]) }
        });
        assert!(none.unwrap()[2].error.is_nan());
    }
}
