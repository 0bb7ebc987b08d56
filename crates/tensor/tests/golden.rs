//! Outputs and gradients against PyTorch's, in `f64` and in `f32`. The files are made by
//! `tools/reference/ops.py golden`.

use std::collections::HashMap;

use safetensors::SafeTensors;
use tsbd_tensor::{
    Adam, BatchNorm, Conv2d, ConvTranspose2d, CrossEntropy, DType, Device, Gradients, GridPadding, GridSample, Result,
    Sgd, Statistics, Tape, Tensor, Var, adam_step, amsgrad_step, sgd_step,
};

struct Golden(HashMap<String, Tensor>);

impl Golden {
    fn read(name: &str) -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/reference/golden/ops");
        let bytes = std::fs::read(format!("{folder}/{name}.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.tensors().into_iter().map(|(name, view)| {
            let data = view.data();
            let tensor = match view.dtype() {
                safetensors::Dtype::F64 => {
                    let values: Vec<f64> = data.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
                    Tensor::from_vec(values, view.shape(), &Device::Cpu)
                }
                safetensors::Dtype::U32 => {
                    let values: Vec<u32> = data.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
                    Tensor::from_vec(values, view.shape(), &Device::Cpu)
                }
                other => panic!("{name}: unexpected element type {other:?}"),
            };
            (name, tensor.unwrap())
        });
        Self(tensors.collect())
    }

    fn get(&self, name: &str, dtype: DType) -> Tensor {
        let tensor = self.0.get(name).unwrap_or_else(|| panic!("no tensor {name}"));
        if tensor.dtype() == DType::U32 { tensor.clone() } else { tensor.to_dtype(dtype).unwrap() }
    }
}

/// The largest difference, relative to the largest absolute value expected.
fn distance(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    let values = |tensor: &Tensor| -> Vec<f64> {
        tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let (found, expected) = (values(found), values(expected));
    let size = expected.iter().fold(1e-3, |largest: f64, value| largest.max(value.abs()));
    found.iter().zip(&expected).map(|(a, b)| (a - b).abs() / size).max_by(f64::total_cmp).unwrap()
}

/// Runs `function` on the inputs of the golden file `name` and compares its output and the gradients of all
/// its inputs.
#[track_caller]
fn compare(name: &str, inputs: &[&str], function: impl Fn(&[Var], &Golden, DType) -> Result<Var>) {
    let golden = Golden::read(name);
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 5e-6)] {
        let tape = Tape::new();
        let leaves: Vec<Var> = inputs.iter().map(|input| tape.leaf(&golden.get(input, dtype))).collect();
        let output = function(&leaves, &golden, dtype).unwrap();
        let error = distance(output.tensor(), &golden.get("output", dtype));
        assert!(error < tolerance, "{name} {dtype:?}: output differs by {error:e}");
        let gradients: Gradients = tape.backward_from(&[(&output, &golden.get("seed", dtype))]).unwrap();
        for (input, leaf) in inputs.iter().zip(&leaves) {
            let error = distance(gradients.get(leaf).unwrap(), &golden.get(&format!("{input}.gradient"), dtype));
            assert!(error < tolerance, "{name} {dtype:?}: gradient of {input} differs by {error:e}");
        }
    }
}

#[test]
fn convolutions_agree() {
    for (name, stride, padding) in [("conv_3x3_stride2", 2, 1), ("conv_1x1_stride2", 2, 0), ("conv_3x3_tiles", 1, 1)] {
        compare(name, &["x", "weight"], |v, _, _| {
            v[0].conv2d(&v[1], None, Conv2d { stride, padding, ..Conv2d::default() })
        });
    }
    let options = Conv2d { stride: 1, padding: 1, ..Conv2d::default() };
    compare("conv_3x3", &["x", "weight", "bias"], |v, _, _| v[0].conv2d(&v[1], Some(&v[2]), options));
}

#[test]
fn batch_norm_agrees_in_both_modes_and_moves_the_running_estimates_alike() {
    for (name, batch, relu) in
        [("bn_batch", true, false), ("bn_batch_relu", true, true), ("bn_running_relu", false, true)]
    {
        compare(name, &["x", "weight", "bias"], |v, golden, dtype| {
            let (mean, variance) = (golden.get("mean_before", dtype), golden.get("variance_before", dtype));
            let statistics =
                if batch { Statistics::Batch } else { Statistics::Running { mean: &mean, variance: &variance } };
            let (y, found) = v[0].batch_norm(&v[1], &v[2], BatchNorm { statistics, epsilon: 1e-5, relu })?;
            assert_eq!(found.is_some(), batch);
            if let Some(found) = found {
                // PyTorch's running estimate: 0.9 of the old, 0.1 of the new.
                for (old, new, after) in
                    [(mean, found.mean, "mean_after"), (variance, found.variance, "variance_after")]
                {
                    let moved = ((old * 0.9)? + (new * 0.1)?)?;
                    assert!(distance(&moved, &golden.get(after, dtype)) < 1e-6, "{name} {dtype:?} {after}");
                }
            }
            Ok(y)
        });
    }
}

#[test]
fn pooling_agrees_also_where_windows_have_ties() {
    for (name, kernel, stride) in [("2_2", 2, 2), ("3_2", 3, 2), ("2_3", 2, 3)] {
        compare(&format!("max_pool_{name}"), &["x"], |v, _, _| v[0].max_pool2d(kernel, stride, 0));
        compare(&format!("avg_pool_{name}"), &["x"], |v, _, _| v[0].avg_pool2d(kernel, stride, 0));
    }
}

#[test]
fn pooling_with_padding_agrees() {
    for (name, kernel, stride, padding) in [("2_1_1", 2, 1, 1), ("3_2_1", 3, 2, 1), ("5_3_2", 5, 3, 2)] {
        compare(&format!("max_pool_{name}"), &["x"], |v, _, _| v[0].max_pool2d(kernel, stride, padding));
        compare(&format!("avg_pool_{name}"), &["x"], |v, _, _| v[0].avg_pool2d(kernel, stride, padding));
    }
}

#[test]
fn relu_agrees_also_at_zero() {
    compare("relu", &["x"], |v, _, _| v[0].relu());
}

#[test]
fn sigmoid_and_tanh_agree_on_both_sides_and_at_zero() {
    compare("sigmoid", &["x"], |v, _, _| v[0].sigmoid());
    compare("tanh", &["x"], |v, _, _| v[0].tanh());
}

#[test]
fn arithmetic_agrees_also_at_zero() {
    compare("div", &["x", "y"], |v, _, _| v[0].div(&v[1]));
    compare("abs", &["x"], |v, _, _| v[0].abs());
    compare("sqrt", &["x"], |v, _, _| v[0].sqrt());
}

#[test]
fn elements_at_other_places_agree() {
    compare("concat_channels", &["x", "y"], |v, _, _| Var::concat_channels(&[&v[0], &v[1]]));
    compare("upsample_nearest", &["x"], |v, _, _| v[0].upsample_nearest(2));
    compare("pad_zeros", &["x"], |v, _, _| v[0].pad_zeros([0, 1, 2, 3]));
}

#[test]
fn losses_of_values_and_bits_agree() {
    compare("mean_squared_error", &["x", "y"], |v, _, _| v[0].mean_squared_error(&v[1]));
    compare("binary_cross_entropy", &["x"], |v, golden, dtype| {
        v[0].binary_cross_entropy(&golden.get("targets", dtype))
    });
}

#[test]
fn linear_agrees() {
    compare("linear", &["x", "weight", "bias"], |v, _, _| v[0].linear(&v[1], Some(&v[2])));
}

#[test]
fn cross_entropy_agrees() {
    for (name, label_smoothing) in [("cross_entropy", 0.), ("cross_entropy_smoothed", 0.1)] {
        compare(name, &["x"], |v, golden, dtype| {
            let labels = golden.get("labels", dtype);
            let per_sample = v[0].cross_entropy_per_sample(&labels, CrossEntropy::default())?;
            assert!(distance(per_sample.tensor(), &golden.get("per_sample", dtype)) < 1e-6);
            v[0].cross_entropy(&labels, CrossEntropy { label_smoothing })
        });
    }
}

#[test]
fn cross_entropy_per_sample_agrees() {
    for (name, label_smoothing) in [("cross_entropy_per_sample", 0.), ("cross_entropy_per_sample_smoothed", 0.1)] {
        compare(name, &["x"], |v, golden, dtype| {
            v[0].cross_entropy_per_sample(&golden.get("labels", dtype), CrossEntropy { label_smoothing })
        });
    }
}

#[test]
fn softmax_and_its_logarithm_agree() {
    compare("softmax", &["x"], |v, _, _| v[0].softmax());
    compare("log_softmax", &["x"], |v, _, _| v[0].log_softmax());
}

#[test]
fn layer_norm_agrees() {
    compare("layer_norm", &["x", "weight", "bias"], |v, _, _| v[0].layer_norm(&v[1], &v[2], 1e-5));
}

#[test]
fn gelu_agrees_on_both_sides_and_at_zero() {
    compare("gelu", &["x"], |v, _, _| v[0].gelu());
}

#[test]
fn grid_sample_agrees_inside_outside_and_on_the_corners() {
    for (name, padding) in [("zeros", GridPadding::Zeros), ("border", GridPadding::Border)] {
        for (corners, align_corners) in [("edges", false), ("corners", true)] {
            compare(&format!("grid_sample_{name}_{corners}"), &["x", "grid"], |v, _, _| {
                v[0].grid_sample(&v[1], GridSample { padding, align_corners })
            });
        }
    }
}

#[test]
fn resize_bilinear_agrees_up_down_and_to_one_row() {
    for (name, height, width) in [("up", 7, 9), ("down", 2, 3), ("one", 1, 8)] {
        for (corners, align_corners) in [("edges", false), ("corners", true)] {
            compare(&format!("resize_{name}_{corners}"), &["x"], |v, _, _| {
                v[0].resize_bilinear(height, width, align_corners)
            });
        }
    }
}

#[test]
fn transposed_convolutions_agree_with_weights_permuted_as_documented() {
    let options = |stride, padding, output_padding| ConvTranspose2d { stride, padding, output_padding };
    for (name, options) in [("3x3", options(1, 1, 0)), ("3x3_stride2", options(2, 1, 1))] {
        compare(&format!("conv_transpose_{name}"), &["x", "weight", "bias"], |v, _, _| {
            v[0].conv_transpose2d(&v[1], Some(&v[2]), options)
        });
    }
    compare("conv_transpose_4x4_stride3", &["x", "weight"], |v, _, _| {
        v[0].conv_transpose2d(&v[1], None, options(3, 0, 2))
    });
}

#[test]
fn three_steps_of_sgd_agree() {
    let golden = Golden::read("sgd");
    for (dtype, tolerance) in [(DType::F64, 1e-14), (DType::F32, 1e-6)] {
        let parameter = golden.get("before", dtype).copy().unwrap();
        let velocity = parameter.zeros_like().unwrap();
        let options = Sgd { learning_rate: 0.1, momentum: 0.9, weight_decay: 0.01 };
        for step in 0..3 {
            sgd_step(&parameter, &velocity, &golden.get(&format!("gradient{step}"), dtype), options).unwrap();
            let error = distance(&parameter, &golden.get(&format!("after{step}"), dtype));
            assert!(error < tolerance, "{dtype:?} step {step}: {error:e}");
        }
    }
}

#[test]
fn five_steps_of_adam_agree() {
    for (name, betas, epsilon) in [("adam", [0.9, 0.999], 1e-8), ("adam_other", [0.5, 0.9], 1e-3)] {
        let golden = Golden::read(name);
        for (dtype, tolerance) in [(DType::F64, 1e-14), (DType::F32, 4e-6)] {
            let parameter = golden.get("before", dtype).copy().unwrap();
            let [first, second] = [parameter.zeros_like().unwrap(), parameter.zeros_like().unwrap()];
            let options = Adam { learning_rate: 0.1, betas, epsilon };
            for step in 0..5 {
                let gradient = golden.get(&format!("gradient{step}"), dtype);
                adam_step(&parameter, &first, &second, &gradient, step + 1, options).unwrap();
                let error = distance(&parameter, &golden.get(&format!("after{step}"), dtype));
                assert!(error < tolerance, "{name} {dtype:?} step {step}: {error:e}");
            }
        }
    }
}

#[test]
fn seven_steps_of_adam_with_amsgrad_agree() {
    let golden = Golden::read("amsgrad");
    for (dtype, tolerance) in [(DType::F64, 1e-14), (DType::F32, 4e-6)] {
        let parameter = golden.get("before", dtype).copy().unwrap();
        let [first, second, largest] = [0; 3].map(|_| parameter.zeros_like().unwrap());
        let options = Adam { learning_rate: 0.1, betas: [0.9, 0.6], epsilon: 1e-8 };
        for step in 0..7 {
            let gradient = golden.get(&format!("gradient{step}"), dtype);
            amsgrad_step(&parameter, &first, &second, &largest, &gradient, step + 1, options).unwrap();
            let error = distance(&parameter, &golden.get(&format!("after{step}"), dtype));
            assert!(error < tolerance, "{dtype:?} step {step}: {error:e}");
        }
        assert!(
            distance(&largest, &second) > 0.1,
            "the gradients shrink, so that the largest moment is an earlier one"
        );
    }
}
