//! Which operations are checked at which shapes.

use candle_core::{DType, Tensor};

use super::operations::Addend;
use super::{BATCH, Input, List};
use crate::{BatchNorm, Conv2d, ConvTranspose2d, CrossEntropy, GridPadding, GridSample, Precision, Result, Statistics};

impl List<'_> {
    pub(super) fn odd_shapes(&mut self) {
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
            self.batch_statistics("odd", channels, size);
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
        if self.records {
            self.recorded_step("odd", 7, 13, 3);
        }
        if self.dtype == DType::F32 {
            self.cross_entropy("odd", 3);
            self.augment("odd", 7);
            self.sgd("odd", &[3, 3, 5, 7]);
            self.adam("odd", &[3, 3, 5, 7]);
        }
    }

    pub(super) fn residual_network(&mut self) {
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
            self.batch_statistics(NETWORK, channels, size);
        }
        self.global_average_pool(NETWORK, channels, size);
        self.linear(NETWORK, 128, channels, 10);
        self.arithmetic(NETWORK, [BATCH, 32, 32, 64]);
        if self.records {
            self.recorded_step(NETWORK, 32, 64, 10);
        }
        if self.dtype == DType::F32 {
            self.cross_entropy(NETWORK, 10);
            self.augment(NETWORK, 32);
            self.sgd(NETWORK, &[3, 3, 256, 256]);
            self.adam(NETWORK, &[3, 3, 256, 256]);
        }
    }

    pub(super) fn vgg(&mut self) {
        const NETWORK: &str = "vgg19-bn";
        let same = Conv2d { stride: 1, padding: 1, ..Conv2d::default() };
        let mut inputs = 3;
        for (outputs, size) in [(64, 32), (128, 16), (256, 8), (512, 4), (512, 2)] {
            self.convolution(NETWORK, inputs, outputs, size, same, 3, Addend::Bias);
            if inputs != outputs {
                self.convolution(NETWORK, outputs, outputs, size, same, 3, Addend::Bias);
            }
            self.batch_norm(NETWORK, outputs, size);
            self.pooling(NETWORK, outputs, size, 2, 2, 0);
            inputs = outputs;
        }
        // 25088 to 4096 is the first; a part of its outputs, as the reference is slow.
        for (inputs, outputs) in [(25_088, 64), (4096, 4096), (4096, 10)] {
            self.linear(NETWORK, BATCH, inputs, outputs);
        }
        self.rectified(NETWORK, 64, 8);
    }

    pub(super) fn vision_transformer(&mut self) {
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
        for (inputs, outputs) in [(768, 2304), (768, 768), (768, 3072), (3072, 768)] {
            self.linear(NETWORK, 197, inputs, outputs);
        }
        self.linear(NETWORK, BATCH, 768, 10);
    }

    /// What attacks, defenses and other networks need beyond the training step of a convolutional one.
    pub(super) fn beyond_training(&mut self) {
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
}
