//! The fast `f32` kernels against the same operation in `f64`, over random shapes; the same bits with any
//! number of threads; and what is not a number stays visible.

use std::io::Write as _;

use proptest::prelude::*;
use tsbd_tensor::{
    BatchNorm, Conv2d, ConvTranspose2d, CrossEntropy, DType, Device, GridPadding, GridSample, InstructionSet, Result,
    Statistics, Tape, Tensor, Var,
};

/// Random values in (-1, 1): SplitMix64 (Steele, Lea and Flood 2014) of the element's number.
fn values(dims: &[usize], start: u64) -> Tensor {
    let count: usize = dims.iter().product();
    let value = |index: u64| {
        let mut bits = (start << 32 | index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ bits >> 31) as f64 / 2f64.powi(63) - 1.
    };
    Tensor::from_vec((0..count as u64).map(value).collect::<Vec<_>>(), dims, &Device::Cpu).unwrap()
}

fn read(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The output and the gradients of all inputs, for a gradient of the output without a pattern.
fn run(inputs: &[Tensor], function: &dyn Fn(&[Var]) -> Result<Var>) -> Vec<Tensor> {
    let tape = Tape::new();
    let leaves: Vec<Var> = inputs.iter().map(|input| tape.leaf(input)).collect();
    let output = function(&leaves).unwrap();
    let seed = values(output.dims(), 99).to_dtype(output.tensor().dtype()).unwrap();
    let mut gradients = tape.backward_from(&[(&output, &seed)]).unwrap();
    let mut results = vec![output.tensor().clone()];
    results.extend(leaves.iter().map(|leaf| gradients.take(leaf).unwrap()));
    results
}

/// Compares `f32` with `f64`. The tolerance is relative to the largest value of each tensor. The inputs are
/// rounded to `f32` first, so that both compute from the same numbers.
fn compare(inputs: &[Tensor], tolerance: f64, function: &dyn Fn(&[Var]) -> Result<Var>) {
    let single: Vec<Tensor> = inputs.iter().map(|input| input.to_dtype(DType::F32).unwrap()).collect();
    let double: Vec<Tensor> = single.iter().map(|input| input.to_dtype(DType::F64).unwrap()).collect();
    for (index, (found, expected)) in run(&single, function).iter().zip(&run(&double, function)).enumerate() {
        let (found, expected) = (read(found), read(expected));
        let size = expected.iter().fold(1e-2, |largest: f64, value| largest.max(value.abs()));
        for (element, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let error = (found - expected).abs() / size;
            assert!(error < tolerance, "result {index} element {element}: {found} for {expected} ({error:e})");
        }
    }
}

/// The tolerance for convolutions: on tile registers factors are rounded to 16 bits, and the fast algorithm enlarges that as
/// it does every rounding.
fn rounding() -> f64 {
    if in_use() == InstructionSet::Amx { 5e-4 } else { 2e-5 }
}

/// Multiples of 8 channels: some for registers of 8 and of 16, some for tiles as well.
fn eights() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..6, (1usize..4).prop_map(|count| 4 * count)].prop_map(|count| 8 * count)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn convolution_in_f32_is_convolution_in_f64(
        images in 1usize..4, height in 3usize..14, width in 3usize..14, inputs in 1usize..20, outputs in 1usize..20,
        kernel in 1usize..4, stride in 1usize..4, padding in 0usize..2,
    ) {
        let options = Conv2d { stride, padding: padding.min(kernel - 1), ..Conv2d::default() };
        let inputs = [values(&[images, height, width, inputs], 1), values(&[kernel, kernel, inputs, outputs], 2)];
        compare(&inputs, rounding(), &|v| v[0].conv2d(&v[1], None, options));
    }

    #[test]
    fn convolution_over_tiles_in_f32_is_convolution_in_f64(
        images in 1usize..5, height in 3usize..14, width in 3usize..14, inputs in eights(), outputs in eights(),
        residual: bool,
    ) {
        // 3x3, stride 1, channels in multiples of 8: the shapes of most layers of a network, with whole and with partial
        // squares.
        let dims = [images, height, width, inputs];
        let mut arguments = vec![values(&dims, 1), values(&[3, 3, dims[3], outputs], 2)];
        let options = Conv2d { stride: 1, padding: 1, ..Conv2d::default() };
        if residual {
            arguments.push(values(&[dims[0], dims[1], dims[2], outputs], 3));
            compare(&arguments, rounding(), &|v| v[0].conv2d_add(&v[1], options, &v[2]));
        } else {
            compare(&arguments, rounding(), &|v| v[0].conv2d(&v[1], None, options));
        }
    }

    #[test]
    fn batch_norm_in_f32_is_batch_norm_in_f64(
        rows in 2usize..700, channels in 1usize..70, offset in -3f64..3., relu: bool, existing: bool,
    ) {
        let x = (values(&[rows, channels], 1) + offset).unwrap();
        let inputs = [x, values(&[channels], 2), values(&[channels], 3)];
        // Close to its kink the ReLU of f32 and f64 can differ; so the comparison with ReLU is made on
        // values that are kept away from it by the bias's size.
        let shift = if relu { 40. } else { 0. };
        compare(&inputs, 2e-4, &|v| {
            let options = BatchNorm { statistics: Statistics::Batch, epsilon: 1e-2, relu };
            let ones = Tensor::ones(channels, v[2].tensor().dtype(), &Device::Cpu)?;
            let bias = v[2].add(&Var::constant(ones).scale(shift)?)?;
            let y = v[0].batch_norm(&v[1], &bias, options)?.0;
            if existing { y.add(&v[0]) } else { Ok(y) }
        });
    }

    #[test]
    fn pooling_in_f32_is_pooling_in_f64(
        height in 3usize..10, width in 3usize..10, channels in 1usize..20, kernel in 1usize..4, stride in 1usize..4,
    ) {
        let x = [values(&[2, height, width, channels], 1)];
        for padding in 0..=kernel / 2 {
            compare(&x, 1e-6, &|v| v[0].max_pool2d(kernel, stride, padding));
            compare(&x, 1e-6, &|v| v[0].avg_pool2d(kernel, stride, padding));
        }
        compare(&x, 1e-6, &|v| v[0].global_average_pool());
    }

    #[test]
    fn linear_and_sums_in_f32_are_those_in_f64(rows in 1usize..150, inputs in 1usize..40, outputs in 1usize..90) {
        let arguments = [values(&[rows, inputs], 1), values(&[outputs, inputs], 2), values(&[outputs], 3)];
        compare(&arguments, 1e-5, &|v| v[0].linear(&v[1], Some(&v[2])));
        compare(&arguments, 1e-4, &|v| v[0].linear(&v[1], Some(&v[2]))?.relu()?.mean());
    }

    #[test]
    fn softmax_and_per_sample_losses_in_f32_are_those_in_f64(
        images in 1usize..4, rows in 1usize..40, classes in 1usize..90, scale in 0.1f64..30., smoothing in 0f64..1.,
    ) {
        let x = [(values(&[images, rows, classes], 1) * scale).unwrap()];
        // Close to a certain class the gradients are small differences of numbers of size 1.
        compare(&x, 1e-5, &|v| v[0].softmax());
        compare(&x, 1e-5, &|v| v[0].log_softmax());
        let labels: Vec<u32> = (0..images * rows).map(|row| (row * 7 % classes) as u32).collect();
        let labels = Tensor::from_vec(labels, images * rows, &Device::Cpu).unwrap();
        let options = CrossEntropy { label_smoothing: smoothing };
        compare(&x, 1e-5, &|v| v[0].reshape(&[images * rows, classes])?.cross_entropy_per_sample(&labels, options));
    }

    #[test]
    fn layer_norm_in_f32_is_layer_norm_in_f64(
        images in 1usize..4, rows in 1usize..300, channels in 1usize..150, offset in -30f64..30.,
    ) {
        let x = (values(&[images, rows, channels], 1) + offset).unwrap();
        compare(&[x, values(&[channels], 2), values(&[channels], 3)], 2e-6, &|v| v[0].layer_norm(&v[1], &v[2], 1e-2));
    }

    #[test]
    fn gelu_in_f32_is_gelu_in_f64(rows in 1usize..90, columns in 1usize..90, scale in 0.01f64..20.) {
        compare(&[(values(&[rows, columns], 1) * scale).unwrap()], 2e-7, &|v| v[0].gelu());
    }

    #[test]
    fn sampling_and_resizing_in_f32_are_those_in_f64(
        images in 1usize..4, height in 1usize..9, width in 1usize..9, channels in 1usize..20, out_height in 1usize..20,
        out_width in 1usize..20, reach in 0.3f64..2., border: bool, align_corners: bool,
    ) {
        let x = values(&[images, height, width, channels], 1);
        // The gradient of a pixel is a sum over all points that see it.
        compare(std::slice::from_ref(&x), 1e-5, &|v| v[0].resize_bilinear(out_height, out_width, align_corners));
        let grid = (values(&[images, out_height, out_width, 2], 2) * reach).unwrap();
        let padding = if border { GridPadding::Border } else { GridPadding::Zeros };
        compare(&[x, grid], 1e-5, &|v| v[0].grid_sample(&v[1], GridSample { padding, align_corners }));
    }

    #[test]
    fn transposed_convolution_in_f32_is_that_in_f64(
        images in 1usize..4, height in 2usize..9, width in 2usize..9, inputs in 1usize..20, outputs in 1usize..20,
        kernel in 1usize..5, stride in 1usize..4, padding in 0usize..2, output_padding in 0usize..3,
    ) {
        let padding = padding.min(kernel - 1);
        let options = ConvTranspose2d { stride, padding, output_padding: output_padding.min(stride - 1) };
        let x = values(&[images, height, width, inputs], 1);
        let arguments = [x, values(&[kernel, kernel, outputs, inputs], 2), values(&[outputs], 3)];
        compare(&arguments, rounding(), &|v| v[0].conv_transpose2d(&v[1], Some(&v[2]), options));
    }

    #[test]
    fn transposed_convolution_over_whole_tiles_in_f32_is_that_in_f64(
        images in 1usize..4, height in 1usize..4, width in 1usize..4, inputs in 1usize..4, outputs in 1usize..4,
        existing: bool,
    ) {
        // The shapes that go to the fast algorithm.
        let x = values(&[images, 4 * height, 4 * width, 16 * inputs], 1);
        let outputs = if existing { inputs } else { outputs };
        let arguments = [x, values(&[3, 3, 16 * outputs, 16 * inputs], 2), values(&[16 * outputs], 3)];
        compare(&arguments, rounding(), &|v| {
            let options = ConvTranspose2d { stride: 1, padding: 1, output_padding: 0 };
            let y = v[0].conv_transpose2d(&v[1], Some(&v[2]), options)?;
            if existing { y.add(&v[0]) } else { Ok(y) }
        });
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    // Big enough that most kernels have several pieces of work; wide layers have a test of their own.
    let shapes: [&[usize]; 5] = [&[9, 16, 16, 16], &[3, 3, 16, 16], &[16], &[16], &[3, 3, 16, 20]];
    let inputs: Vec<Tensor> =
        shapes.iter().zip(1..).map(|(dims, start)| values(dims, start).to_dtype(DType::F32).unwrap()).collect();
    let labels = Tensor::from_vec((0..9).collect::<Vec<u32>>(), 9, &Device::Cpu).unwrap();
    let network = |v: &[Var]| {
        let options = BatchNorm { statistics: Statistics::Batch, epsilon: 1e-5, relu: true };
        let activated = v[0].batch_norm(&v[2], &v[3], options)?.0;
        let x = activated.conv2d_add(&v[1], Conv2d { stride: 1, padding: 1, ..Conv2d::default() }, &v[0])?;
        let x = x.conv2d(&v[4], None, Conv2d { stride: 2, padding: 1, ..Conv2d::default() })?;
        let x = x.max_pool2d(2, 2, 0)?.avg_pool2d(2, 1, 0)?;
        x.global_average_pool()?.cross_entropy(&labels, CrossEntropy { label_smoothing: 0.1 })
    };
    assert_independent_of_threads(&inputs, &network);
}

/// Runs with 1, 2 and 5 threads and compares the bits of output and gradients.
#[track_caller]
fn assert_independent_of_threads(inputs: &[Tensor], function: &(dyn Fn(&[Var]) -> Result<Var> + Sync)) {
    let bits = |threads: usize| -> Vec<Vec<u32>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let results = run(inputs, function);
            results
                .iter()
                .map(|result| {
                    let values: Vec<f32> = result.flatten_all().unwrap().to_vec1().unwrap();
                    values.into_iter().map(f32::to_bits).collect()
                })
                .collect()
        })
    };
    let one = bits(1);
    assert_eq!(one, bits(2));
    assert_eq!(one, bits(5));
}

#[test]
fn wide_layers_in_f32_are_those_in_f64_with_any_number_of_threads() {
    // Winograd: 300 tiles with partial ones, in 2 groups of several pieces; 2x3 blocks of channels, the last ones of 8 and 16
    // channels (for registers of 8), of 16 (for both), and of 32 (for tiles as well).
    for (inputs, outputs) in [(72, 136), (80, 144), (96, 160)] {
        let options = Conv2d { stride: 1, padding: 1, ..Conv2d::default() };
        let arguments = [values(&[12, 19, 18, inputs], 1), values(&[3, 3, inputs, outputs], 2), values(&[outputs], 3)];
        compare_on_any_threads(&arguments[..2], rounding(), &|v| v[0].conv2d(&v[1], None, options));
        compare_on_any_threads(&arguments, rounding(), &|v| v[0].conv2d(&v[1], Some(&v[2]), options));
    }
    // Direct: 810 pixels in 2 groups, odd panels for registers of 8 and of 16, more steps than are taken at once; the larger
    // one with its kernel in rows.
    for channels in [40, 48, 128] {
        let options = Conv2d { stride: 2, padding: 1, ..Conv2d::default() };
        let (x, weight) = (values(&[10, 17, 17, channels], 1), values(&[3, 3, channels, channels], 2));
        let biased = [x.clone(), weight.clone(), values(&[channels], 3)];
        compare_on_any_threads(&biased, rounding(), &|v| v[0].conv2d(&v[1], Some(&v[2]), options));
        let added = [x, weight, values(&[10, 9, 9, channels], 3)];
        compare_on_any_threads(&added, rounding(), &|v| v[0].conv2d_add(&v[1], options, &v[2]));
    }
    // Pointwise: the patches are the input itself, with and without a gradient to be added to.
    for channels in [48, 64] {
        let arguments = [values(&[6, 11, 11, channels], 1), values(&[1, 1, channels, channels], 2)];
        compare_on_any_threads(&arguments, rounding(), &|v| v[0].conv2d(&v[1], None, Conv2d::default()));
        compare_on_any_threads(&arguments, rounding(), &|v| v[0].conv2d(&v[1], None, Conv2d::default())?.add(&v[0]));
    }
}

fn compare_on_any_threads(arguments: &[Tensor], tolerance: f64, function: &(dyn Fn(&[Var]) -> Result<Var> + Sync)) {
    compare(arguments, tolerance, function);
    let single: Vec<Tensor> = arguments.iter().map(|argument| argument.to_dtype(DType::F32).unwrap()).collect();
    assert_independent_of_threads(&single, function);
}

#[test]
fn the_instruction_set_that_is_asked_for_is_used_and_a_wrong_one_refused() {
    // Without a fused multiply-add products are rounded before they are added, which shows in some bits.
    let bits = |set: &str| {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "print_bits_of_a_convolution", "--ignored", "--nocapture"]);
        let output = command.env("TSBD_SIMD", set).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().find_map(|line| line.split_once("bits: ").map(|(_, bits)| bits.to_owned()))
    };
    let portable = bits("portable").expect("a convolution");
    if in_use() >= InstructionSet::Avx2 {
        assert_ne!(bits("avx2").expect("a convolution"), portable);
    }
    if in_use() >= InstructionSet::Amx {
        assert_ne!(bits("amx").expect("a convolution"), bits("avx512").expect("a convolution"));
    }
    assert_eq!(bits("sse").as_deref(), Some("refused"));
}

#[test]
#[ignore = "a program for the test above, which runs it with different settings"]
fn print_bits_of_a_convolution() {
    let [x, weight] = [values(&[1, 8, 8, 32], 1), values(&[3, 3, 32, 32], 2)]
        .map(|tensor| Var::constant(tensor.to_dtype(DType::F32).unwrap()));
    let y = x.conv2d(&weight, None, Conv2d { stride: 1, padding: 1, ..Conv2d::default() }).unwrap();
    match InstructionSet::current() {
        Ok(_) => {
            let bits = read(y.tensor()).into_iter().fold(0u64, |sum, value| sum.rotate_left(5) ^ value.to_bits());
            println!("bits: {bits:x}");
        }
        Err(error) => {
            assert!(error.to_string().contains("TSBD_SIMD = sse"), "{error}");
            println!("bits: refused");
        }
    }
}

#[test]
fn narrower_instruction_sets_pass_the_same_tests() {
    // The set is chosen once per process, so this binary runs its other tests again in processes of their own.
    const SELF: &str = "narrower_instruction_sets_pass_the_same_tests";
    for set in [InstructionSet::Avx512, InstructionSet::Avx2, InstructionSet::Portable] {
        if set >= in_use() {
            writeln!(std::io::stderr(), "skipped: {} (not narrower than what is in use)", set.name()).unwrap();
            continue;
        }
        let set = set.name();
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let output =
            command.args(["--skip", SELF, "--skip", "instruction_set"]).env("TSBD_SIMD", set).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("test result: ok"), "with {set}:\n{text}");
    }
}

fn in_use() -> InstructionSet {
    InstructionSet::current().unwrap()
}

#[test]
fn the_number_of_threads_does_not_change_a_bit_of_rows_and_images() {
    let single = |dims: &[usize], start| values(dims, start).to_dtype(DType::F32).unwrap();
    // Several pieces of work each: 16 Ki elements in rows, 4 Ki elements of gelu, single images.
    let inputs = [single(&[700, 70], 1), single(&[70], 2), single(&[70], 3)];
    assert_independent_of_threads(&inputs, &|v| v[0].layer_norm(&v[1], &v[2], 1e-5)?.gelu()?.softmax()?.log_softmax());
    let labels = Tensor::from_vec((0..700).map(|row| row % 70).collect::<Vec<u32>>(), 700, &Device::Cpu).unwrap();
    let options = CrossEntropy { label_smoothing: 0.1 };
    assert_independent_of_threads(&inputs[..1], &|v| v[0].cross_entropy_per_sample(&labels, options));
    let inputs = [single(&[9, 8, 8, 16], 1), single(&[9, 20, 20, 2], 2), single(&[3, 3, 5, 16], 3), single(&[5], 4)];
    assert_independent_of_threads(&inputs, &|v| {
        let options = ConvTranspose2d { stride: 2, padding: 1, output_padding: 1 };
        let x = v[0].conv_transpose2d(&v[2], Some(&v[3]), options)?.resize_bilinear(19, 11, false)?;
        x.grid_sample(&v[1], GridSample { padding: GridPadding::Zeros, align_corners: false })?.max_pool2d(3, 2, 1)
    });
}

#[test]
fn what_is_not_a_number_stays_visible() {
    for poison in [f32::NAN, f32::INFINITY] {
        let mut image = vec![0.5f32; 2 * 4 * 4 * 32];
        image[40] = poison;
        let x = Var::constant(Tensor::from_vec(image, (2, 4, 4, 32), &Device::Cpu).unwrap());
        let spoiled = |y: Result<Var>| {
            let y = y.unwrap();
            assert!(read(y.tensor()).iter().any(|value| !value.is_finite()), "{poison} vanished");
        };
        let weight = Var::constant(values(&[3, 3, 32, 32], 1).to_dtype(DType::F32).unwrap());
        let ones = Var::constant(Tensor::ones(32, DType::F32, &Device::Cpu).unwrap());
        spoiled(x.conv2d(&weight, None, Conv2d { stride: 1, padding: 1, ..Conv2d::default() }));
        spoiled(x.conv2d(&weight, None, Conv2d { stride: 2, padding: 0, ..Conv2d::default() }));
        for relu in [false, true] {
            let options = BatchNorm { statistics: Statistics::Batch, epsilon: 1e-5, relu };
            spoiled(x.batch_norm(&ones, &ones, options).map(|(y, _)| y));
        }
        spoiled(x.relu());
        spoiled(x.max_pool2d(2, 2, 0));
        spoiled(x.max_pool2d(3, 1, 1));
        spoiled(x.avg_pool2d(3, 1, 1));
        spoiled(x.conv_transpose2d(&weight, None, ConvTranspose2d { stride: 2, padding: 1, output_padding: 1 }));
        spoiled(x.gelu());
        spoiled(x.softmax());
        spoiled(x.log_softmax());
        spoiled(x.layer_norm(&ones, &ones, 1e-5));
        spoiled(x.resize_bilinear(7, 9, false));
        spoiled(x.global_average_pool());
        spoiled(x.sum());
        let logits = x.reshape(&[4, 256]).unwrap();
        let labels = Tensor::zeros(4, DType::U32, &Device::Cpu).unwrap();
        spoiled(logits.cross_entropy(&labels, CrossEntropy { label_smoothing: 0.1 }));
        spoiled(logits.linear(&Var::constant(Tensor::ones((3, 256), DType::F32, &Device::Cpu).unwrap()), None));
    }
    let bad = Var::constant(Tensor::new(&[[f32::NAN, 1.]], &Device::Cpu).unwrap());
    let labels = Tensor::new(&[1u32], &Device::Cpu).unwrap();
    assert!(read(bad.cross_entropy_per_sample(&labels, CrossEntropy::default()).unwrap().tensor())[0].is_nan());
}

#[test]
fn what_is_not_a_number_stays_visible_in_images_and_grids() {
    let x = |value: f32| {
        let mut image = vec![0.5f32; 16];
        image[5] = value;
        Var::constant(Tensor::from_vec(image, (1, 4, 4, 1), &Device::Cpu).unwrap())
    };
    let grid = |point: [f32; 2]| Var::constant(Tensor::new(&[[[point]]], &Device::Cpu).unwrap());
    for padding in [GridPadding::Zeros, GridPadding::Border] {
        for align_corners in [false, true] {
            let options = GridSample { padding, align_corners };
            let sample = |x: Var, point| read(x.grid_sample(&grid(point), options).unwrap().tensor())[0];
            assert!(sample(x(f32::NAN), [-0.2, -0.2]).is_nan());
            assert!(!sample(x(f32::INFINITY), [-0.2, -0.2]).is_finite());
            for point in [[f32::NAN, 0.], [0., f32::NAN]] {
                assert!(sample(x(0.5), point).is_nan(), "{options:?} {point:?}");
            }
            // As PyTorch: infinity is no place among zeros, but the border is next to it. Far outside is outside.
            let beyond = sample(x(0.5), [f32::INFINITY, 0.]);
            let far = sample(x(0.5), [1e30, 0.]);
            match padding {
                GridPadding::Zeros => assert!(beyond.is_nan() && far == 0.),
                GridPadding::Border => assert_eq!([beyond, far], [0.5, 0.5]),
            }
        }
    }
}

#[test]
fn infinities_and_denormals_go_through_rows_as_in_pytorch() {
    let (infinity, tiny) = (f64::INFINITY, f64::from_bits(3));
    let rows = |values: &[[f64; 2]]| {
        Var::constant(Tensor::from_slice(values.as_flattened(), (values.len(), 2), &Device::Cpu).unwrap())
    };
    // A masked element has probability 0 and logarithm -infinity; a row without any other is no distribution.
    let masked = rows(&[[1., -infinity], [-infinity, -infinity], [0., infinity]]);
    let (y, logarithm) = (read(masked.softmax().unwrap().tensor()), read(masked.log_softmax().unwrap().tensor()));
    assert_eq!(y[..2], [1., 0.]);
    assert_eq!(logarithm[..2], [0., -infinity]);
    assert!(y[2..].iter().all(|value| value.is_nan()), "{y:?}");
    assert!(logarithm[2..4].iter().all(|value| value.is_nan()) && logarithm[5].is_nan(), "{logarithm:?}");
    // The difference of logits is so large that one probability is denormal.
    let y = read(rows(&[[0., -744.]]).softmax().unwrap().tensor());
    assert!(y[0] == 1. && y[1] > 0. && y[1] < 2e-323, "{y:?}");
    let y = read(rows(&[[infinity, -infinity], [tiny, -38.]]).gelu().unwrap().tensor());
    assert!(y[0] == infinity && y[1].is_nan(), "{y:?}");
    assert_eq!(y[2], tiny * 0.5);
    assert!(y[3] < 0. && y[3] > -1e-300, "{y:?}");
}

#[test]
fn layer_norm_survives_a_mean_much_larger_than_the_deviation() {
    let x = (values(&[3, 400], 1) + 3000.).unwrap().to_dtype(DType::F32).unwrap();
    let parameter = |value: f64| Var::constant((Tensor::ones(400, DType::F32, &Device::Cpu).unwrap() * value).unwrap());
    let y = read(Var::constant(x.clone()).layer_norm(&parameter(1.), &parameter(0.), 0.).unwrap().tensor());
    for (x, y) in read(&x).chunks(400).zip(y.chunks(400)) {
        let mean = x.iter().sum::<f64>() / 400.;
        let deviation = (x.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 400.).sqrt();
        for (x, y) in x.iter().zip(y) {
            assert!((y - (x - mean) / deviation).abs() < 1e-6, "{y} for {}", (x - mean) / deviation);
        }
    }
}

#[test]
fn batch_norm_survives_a_mean_much_larger_than_the_deviation() {
    // Sums of squares in f32 would lose all digits of the variance here.
    let x = (values(&[4096, 3], 1) + 3000.).unwrap().to_dtype(DType::F32).unwrap();
    let parameter = Var::constant(Tensor::ones(3, DType::F32, &Device::Cpu).unwrap());
    let options = BatchNorm { statistics: Statistics::Batch, epsilon: 0., relu: false };
    let (_, statistics) = Var::constant(x.clone()).batch_norm(&parameter, &parameter, options).unwrap();
    let found = read(&statistics.unwrap().variance);
    let x = read(&x);
    for (channel, found) in found.iter().enumerate() {
        let column: Vec<f64> = x.iter().skip(channel).step_by(3).copied().collect();
        let mean = column.iter().sum::<f64>() / 4096.;
        let expected = column.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 4095.;
        assert!((found / expected - 1.).abs() < 1e-5, "channel {channel}: {found} for {expected}");
    }
}
