//! The switch between fast and exact convolution. Alone in its file: it is one switch for the whole process.

use tsbd_tensor::{Conv2d, ConvolutionAlgorithm, DType, Device, Tensor, Var};

#[test]
fn the_switch_changes_the_algorithm_of_f32_and_nothing_else() {
    // A linear congruential generator (Knuth's MMIX); 24 bits, so that `f32` holds the values exactly.
    let mut state = 1u64;
    let mut random = |dims: &[usize]| {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / 2f64.powi(23) - 1.
        };
        let values: Vec<f64> = (0..dims.iter().product()).map(|_: usize| next()).collect();
        Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
    };
    let (x, weight) = (random(&[2, 8, 8, 32]), random(&[3, 3, 32, 16]));
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
    assert_ne!(exact, fast, "the fast algorithm was not used");
    let size = reference.iter().fold(0., |largest: f64, value| largest.max(value.abs()));
    for (name, found, tolerance) in [("exact", exact, 2e-6), ("fast", fast, 5e-6)] {
        for (found, reference) in found.iter().zip(&reference) {
            assert!((found - reference).abs() < tolerance * size, "{name}: {found} for {reference}");
        }
    }
}
