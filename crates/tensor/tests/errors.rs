//! Wrong arguments are refused with a message that names the operation, the argument and the way out.

use tsbd_tensor::{
    Adam, BatchNorm, Conv2d, ConvTranspose2d, CrossEntropy, DType, Device, GridPadding, GridSample, Result, Statistics,
    Tensor, Var, adam_step, amsgrad_step,
};

fn zeros(dims: &[usize]) -> Var {
    Var::constant(Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap())
}

#[track_caller]
fn refused<T>(result: Result<T>, expected: &str) {
    let message = result.err().expect("the call should have been refused").to_string();
    assert_eq!(message, expected);
}

#[test]
fn convolutions_refuse_shapes_that_do_not_fit() {
    let (x, weight) = (zeros(&[2, 5, 5, 3]), zeros(&[3, 3, 3, 4]));
    let options = Conv2d { stride: 1, padding: 1, ..Conv2d::default() };
    refused(
        zeros(&[5, 5, 3]).conv2d(&weight, None, options),
        "conv2d: `x` has shape [5, 5, 3], expected [batch, height, width, channels], none of them zero",
    );
    refused(
        x.conv2d(&zeros(&[3, 3, 2, 4]), None, options),
        "conv2d: `weight` has shape [3, 3, 2, 4], expected [_, _, 3, _], as the input has 3 channels",
    );
    refused(x.conv2d(&weight, Some(&zeros(&[3])), options), "conv2d: `bias` has shape [3], expected [4] ([out])");
    refused(
        x.conv2d_add(&weight, options, &zeros(&[2, 5, 5, 3])),
        "conv2d_add: `residual` has shape [2, 5, 5, 3], expected [2, 5, 5, 4] (the shape of the result)",
    );
    refused(
        x.conv2d(&weight, None, Conv2d { stride: 0, padding: 1, ..Conv2d::default() }),
        "conv2d: stride = 0 is not possible: the window must move; use at least 1",
    );
    refused(
        x.conv2d(&weight, None, Conv2d { stride: 1, padding: 3, ..Conv2d::default() }),
        "conv2d: padding = 3 is not possible: windows of 3x3 would lie in the padding; use less",
    );
    refused(
        zeros(&[1, 2, 5, 3]).conv2d(&weight, None, Conv2d::default()),
        "conv2d: `x` has shape [1, 2, 5, 3], expected images of at least 3x3 with their padding of 0",
    );
}

#[test]
fn element_types_are_not_mixed_and_integers_are_refused() {
    let single = zeros(&[2, 3]);
    let double = Var::constant(Tensor::zeros((2, 3), DType::F64, &Device::Cpu).unwrap());
    let integer = Var::constant(Tensor::zeros((2, 3), DType::U32, &Device::Cpu).unwrap());
    refused(single.add(&double), "add: `other` has element type F64, expected F32; convert it with `to_dtype`");
    refused(integer.relu(), "relu: `x` has element type U32, expected F32 or F64; convert it with `to_dtype`");
}

#[test]
fn strided_views_are_refused() {
    let view = Var::constant(zeros(&[2, 3]).tensor().t().unwrap());
    refused(view.relu(), "relu: `x` (shape [3, 2], strides [1, 3]) is not contiguous; call `contiguous()` on it");
    assert!(view.reshape(&[6]).is_err());
}

#[test]
fn a_contiguous_part_of_a_tensor_is_read_at_its_place() {
    let whole = Tensor::new(&[[1f32, -2.], [-3., 4.]], &Device::Cpu).unwrap();
    let row = Var::constant(whole.narrow(0, 1, 1).unwrap());
    assert_eq!(row.relu().unwrap().tensor().to_vec2::<f32>().unwrap(), [[0., 4.]]);
}

#[test]
fn labels_are_checked() {
    let logits = zeros(&[2, 3]);
    let labels = |values: &[u32]| Tensor::new(values, &Device::Cpu).unwrap();
    let options = CrossEntropy::default();
    refused(
        logits.cross_entropy(&labels(&[0, 3]), options),
        "cross_entropy: label 3 of row 1 is not a class; the logits have 3 classes (0..3)",
    );
    refused(
        logits.cross_entropy_per_sample(&labels(&[0]), options),
        "cross_entropy_per_sample: `labels` has shape [1], expected [2] (one label per row of the logits)",
    );
    refused(
        logits.cross_entropy(zeros(&[2]).tensor(), options),
        "cross_entropy: `labels` has element type F32, expected U32; convert it with `to_dtype`",
    );
    refused(
        logits.cross_entropy(&labels(&[0, 0]), CrossEntropy { label_smoothing: 1.5 }),
        "cross_entropy: label_smoothing = 1.5 is not possible: it is a share; use 0 to 1",
    );
    refused(
        logits.cross_entropy_per_sample(&labels(&[0, 0]), CrossEntropy { label_smoothing: f64::NAN }),
        "cross_entropy_per_sample: label_smoothing = NaN is not possible: it is a share; use 0 to 1",
    );
}

#[test]
fn batch_norm_refuses_a_batch_of_one_value_per_channel() {
    let (one, parameter) = (zeros(&[1, 1, 1, 3]), zeros(&[3]));
    let options = BatchNorm { statistics: Statistics::Batch, epsilon: 1e-5, relu: false };
    refused(
        one.batch_norm(&parameter, &parameter, options),
        "batch_norm: `x` has shape [1, 1, 1, 3], expected more than one value per channel for the statistics of a batch",
    );
    refused(
        zeros(&[2, 2, 2, 3]).batch_norm(&zeros(&[2]), &parameter, options),
        "batch_norm: `weight` has shape [2], expected [3] (one value per channel)",
    );
}

#[test]
fn pooling_and_linear_refuse_sizes_that_do_not_fit() {
    refused(
        zeros(&[1, 4, 3, 2]).max_pool2d(4, 1, 0),
        "max_pool2d: kernel = 4 is not possible: use 1 to 3, as the images are 4x3",
    );
    refused(
        zeros(&[1, 4, 3, 2]).avg_pool2d(6, 1, 1),
        "avg_pool2d: kernel = 6 is not possible: use 1 to 5, as the images are 4x3 with a padding of 1",
    );
    refused(
        zeros(&[1, 4, 3, 2]).max_pool2d(3, 1, 2),
        "max_pool2d: padding = 2 is not possible: use at most half the kernel, 1",
    );
    refused(
        zeros(&[1, 4, 4, 2]).avg_pool2d(2, 0, 0),
        "avg_pool2d: stride = 0 is not possible: the window must move; use at least 1",
    );
    refused(
        zeros(&[2, 3]).linear(&zeros(&[4, 5]), None),
        "linear: `weight` has shape [4, 5], expected [_, 3], as the input has 3 columns",
    );
    refused(zeros(&[2, 3]).reshape(&[5]), "reshape: `self` has shape [2, 3], expected as many elements as [5]");
    refused(
        zeros(&[2, 3]).sub(&zeros(&[3, 2])),
        "sub: `other` has shape [3, 2], expected [2, 3] (the shape of the first operand)",
    );
}

#[test]
fn operations_on_rows_refuse_what_has_no_rows_and_parameters_that_do_not_fit() {
    let empty = "has shape [3, 0], expected [..., classes], none of them zero";
    refused(zeros(&[3, 0]).softmax(), &format!("softmax: `x` {empty}"));
    refused(zeros(&[3, 0]).log_softmax(), &format!("log_softmax: `x` {empty}"));
    refused(zeros(&[]).softmax(), "softmax: `x` has shape [], expected [..., classes], none of them zero");
    let (x, parameter) = (zeros(&[2, 3]), zeros(&[3]));
    refused(
        zeros(&[]).layer_norm(&parameter, &parameter, 1e-5),
        "layer_norm: `x` has shape [], expected [..., channels], none of them zero",
    );
    refused(
        x.layer_norm(&zeros(&[2]), &parameter, 1e-5),
        "layer_norm: `weight` has shape [2], expected [3] (one value per channel)",
    );
    refused(
        x.layer_norm(&parameter, &zeros(&[1]), 1e-5),
        "layer_norm: `bias` has shape [1], expected [3] (one value per channel)",
    );
    refused(
        x.layer_norm(&parameter, &parameter, -1.),
        "layer_norm: epsilon = -1 is not possible: use a small number, 0 or more",
    );
    let integer = Var::constant(Tensor::zeros((2, 3), DType::U32, &Device::Cpu).unwrap());
    refused(integer.gelu(), "gelu: `x` has element type U32, expected F32 or F64; convert it with `to_dtype`");
    refused(integer.softmax(), "softmax: `x` has element type U32, expected F32 or F64; convert it with `to_dtype`");
}

#[test]
fn sampling_and_resizing_refuse_grids_and_sizes_that_do_not_fit() {
    let options = GridSample { padding: GridPadding::Zeros, align_corners: false };
    let x = zeros(&[2, 4, 4, 3]);
    for wrong in [[1, 5, 5, 2], [2, 5, 5, 3]] {
        let expected = format!(
            "grid_sample: `grid` has shape {wrong:?}, expected [2, _, _, 2], an x and a y per pixel for each of 2 images"
        );
        refused(x.grid_sample(&zeros(&wrong), options), &expected);
    }
    let double = Var::constant(Tensor::zeros((2, 5, 5, 2), DType::F64, &Device::Cpu).unwrap());
    refused(
        x.grid_sample(&double, options),
        "grid_sample: `grid` has element type F64, expected F32; convert it with `to_dtype`",
    );
    refused(
        x.resize_bilinear(0, 3, false),
        "resize_bilinear: height = 0 is not possible: no pixel would be left; use at least 1",
    );
    refused(
        zeros(&[4, 4, 3]).resize_bilinear(2, 3, false),
        "resize_bilinear: `x` has shape [4, 4, 3], expected [batch, height, width, channels], none of them zero",
    );
}

#[test]
fn transposed_convolutions_refuse_shapes_that_do_not_fit() {
    let (x, weight) = (zeros(&[2, 5, 5, 3]), zeros(&[3, 3, 4, 3]));
    let options = |stride, padding, output_padding| ConvTranspose2d { stride, padding, output_padding };
    refused(
        x.conv_transpose2d(&zeros(&[3, 3, 3, 4]), None, options(1, 0, 0)),
        "conv_transpose2d: `weight` has shape [3, 3, 3, 4], expected [_, _, _, 3], as the input has 3 channels",
    );
    refused(
        x.conv_transpose2d(&weight, Some(&zeros(&[3])), options(1, 0, 0)),
        "conv_transpose2d: `bias` has shape [3], expected [4] ([out])",
    );
    refused(
        x.conv_transpose2d(&weight, None, options(0, 0, 0)),
        "conv_transpose2d: stride = 0 is not possible: the window must move; use at least 1",
    );
    refused(
        x.conv_transpose2d(&weight, None, options(1, 3, 0)),
        "conv_transpose2d: padding = 3 is not possible: it would cut away whole windows of 3x3; use less",
    );
    refused(
        x.conv_transpose2d(&weight, None, options(2, 1, 2)),
        "conv_transpose2d: output_padding = 2 is not possible: no window would reach what is added; use less than the \
         stride, 2",
    );
    refused(
        zeros(&[1, 1, 5, 3]).conv_transpose2d(&weight, None, options(1, 2, 0)),
        "conv_transpose2d: `x` has shape [1, 1, 5, 3], expected images of which something is left when a border of 2 is \
         cut off the result",
    );
}

#[test]
fn parts_that_do_not_lie_side_by_side_are_refused() {
    let part = zeros(&[2, 4, 4, 3]);
    refused(
        Var::concat_channels(&[]),
        "concat_channels: parts = [] is not possible: there is nothing to put together; give at least one",
    );
    for wrong in [&[2, 4, 5, 3][..], &[2, 4, 3], &[2, 4, 4, 4, 3], &[2, 4, 4, 0]] {
        let expected = "expected [2, 4, 4] and then channels, none of them zero";
        refused(
            Var::concat_channels(&[&part, &zeros(wrong)]),
            &format!("concat_channels: `parts` has shape {wrong:?}, {expected}"),
        );
    }
    refused(
        part.upsample_nearest(0),
        "upsample_nearest: factor = 0 is not possible: no pixel would be left; use at least 1",
    );
    refused(
        zeros(&[4, 3]).pad_zeros([1; 4]),
        "pad_zeros: `x` has shape [4, 3], expected [batch, height, width, channels], none of them zero",
    );
}

#[test]
fn targets_that_are_no_probabilities_are_refused() {
    let targets = |values: [f32; 2]| Tensor::new(&values, &Device::Cpu).unwrap();
    let logits = zeros(&[2]);
    refused(
        logits.binary_cross_entropy(&targets([0.5, 1.5])),
        "binary_cross_entropy: targets = 1.5 is not possible: a target is a probability; use 0 to 1",
    );
    assert!(logits.binary_cross_entropy(&targets([f32::NAN, 0.])).is_err());
    refused(
        zeros(&[1, 2]).binary_cross_entropy(&targets([0., 1.])),
        "binary_cross_entropy: `targets` has shape [2], expected [1, 2] (the shape of the logits)",
    );
    refused(
        zeros(&[0, 2]).mean_per_sample(),
        "mean_per_sample: `self` has shape [0, 2], expected [batch, ...], none of them zero",
    );
    refused(
        zeros(&[2, 0]).divide_by_norm(1e-6),
        "divide_by_norm: `self` has shape [2, 0], expected [batch, ...], none of them zero",
    );
    refused(
        zeros(&[2, 2]).divide_by_norm(0.),
        "divide_by_norm: epsilon = 0 is not possible: zeros would be divided by 0; use more than 0",
    );
}

#[test]
fn adam_refuses_a_step_before_the_first_betas_out_of_range_and_shared_memory() {
    let tensors: Vec<Tensor> = (0..4).map(|_| Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap()).collect();
    let options = Adam { learning_rate: 0.1, betas: [0.9, 0.999], epsilon: 1e-8 };
    let step = |[p, m, v, g]: [usize; 4], step, options| {
        adam_step(&tensors[p], &tensors[m], &tensors[v], &tensors[g], step, options)
    };
    step([0, 1, 2, 3], 1, options).unwrap();
    refused(step([0, 1, 2, 3], 0, options), "adam_step: step = 0 is not possible: the first step is 1");
    refused(
        step([0, 1, 2, 3], 1, Adam { betas: [0.9, 1.0], ..options }),
        "adam_step: betas = [0.9, 1.0] is not possible: use numbers of at least 0 and below 1",
    );
    refused(
        step([0, 1, 1, 3], 1, options),
        "adam_step: `first_moment` and `second_moment` share their memory; copy one of them first",
    );
    refused(
        step([0, 1, 2, 0], 1, options),
        "adam_step: `parameter` and `gradient` share their memory; copy one of them first",
    );
    let [p, m, v, g] = [0, 1, 2, 3].map(|index| &tensors[index]);
    refused(
        amsgrad_step(p, m, v, v, g, 1, options),
        "amsgrad_step: `second_moment` and `largest` share their memory; copy one of them first",
    );
}
