//! The switch between fast and exact convolution. Alone in its file: it is one switch for the whole process.

use tsbd_tensor::{Conv2d, ConvolutionAlgorithm, DType, Device, Tensor, Var};

#[test]
fn the_switch_changes_the_algorithm_of_f32_and_nothing_else() {
    let wave = |dims: &[usize], speed: f64| {
        let values: Vec<f64> = (0..dims.iter().product()).map(|i: usize| (i as f64 * speed).sin()).collect();
        Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
    };
    let (x, weight) = (wave(&[2, 8, 8, 32], 0.37), wave(&[3, 3, 32, 16], 0.91));
    let run = |algorithm: ConvolutionAlgorithm, dtype: DType| -> Vec<f64> {
        algorithm.set();
        assert_eq!(ConvolutionAlgorithm::current().unwrap(), algorithm);
        let [x, weight] = [&x, &weight].map(|tensor| Var::constant(tensor.to_dtype(dtype).unwrap()));
        let y = x.conv2d(&weight, None, Conv2d { stride: 1, padding: 1 }).unwrap();
        y.tensor().to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let reference = run(ConvolutionAlgorithm::Exact, DType::F64);
    assert_eq!(run(ConvolutionAlgorithm::Fast, DType::F64), reference);
    let exact = run(ConvolutionAlgorithm::Exact, DType::F32);
    let fast = run(ConvolutionAlgorithm::Fast, DType::F32);
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
        assert_ne!(exact, fast, "the fast algorithm was not used");
    }
    let size = reference.iter().fold(0., |largest: f64, value| largest.max(value.abs()));
    for (name, found, tolerance) in [("exact", exact, 2e-6), ("fast", fast, 2e-5)] {
        for (found, reference) in found.iter().zip(&reference) {
            assert!((found - reference).abs() < tolerance * size, "{name}: {found} for {reference}");
        }
    }
}
