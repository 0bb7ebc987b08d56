//! The switch between the algorithms of convolution. Alone in its file: it is one switch for the whole process.

use tsbd_tensor::{Conv2d, ConvolutionAlgorithm, DType, Device, InstructionSet, Precision, Tape, Tensor};

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
    // With tile registers factors are rounded to 16 bits.
    let fast_tolerance = if InstructionSet::current().unwrap() == InstructionSet::Amx { 2e-4 } else { 5e-6 };
    // The first is Winograd's everywhere; the others differ from the direct sum in `f32` only on tile registers.
    for (size, [inputs, outputs], stride) in [(8, [32, 16], 1), (8, [32, 32], 1), (8, [32, 32], 2)] {
        let (x, weight) = (random(&[2, size, size, inputs]), random(&[3, 3, inputs, outputs]));
        let computed = |precision: Precision, dtype: DType| -> Vec<Vec<f64>> {
            let tape = Tape::new();
            let [x, weight] = [&x, &weight].map(|tensor| tape.leaf(&tensor.to_dtype(dtype).unwrap()));
            let y = x.conv2d(&weight, None, Conv2d { stride, padding: 1, precision }).unwrap();
            let mut gradients = tape.backward_from(&[(&y, y.tensor())]).unwrap();
            let [dx, dw] = [&x, &weight].map(|leaf| gradients.take(leaf).unwrap());
            let numbers =
                |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            [y.tensor(), &dx, &dw].map(numbers).to_vec()
        };
        let run = |algorithm: ConvolutionAlgorithm, dtype: DType| -> Vec<Vec<f64>> {
            algorithm.set();
            assert_eq!(ConvolutionAlgorithm::current().unwrap(), algorithm);
            computed(Precision::F32, dtype)
        };
        let reference = run(ConvolutionAlgorithm::Exact, DType::F64);
        for algorithm in [ConvolutionAlgorithm::Fast, ConvolutionAlgorithm::Bf16] {
            assert_eq!(run(algorithm, DType::F64), reference);
        }
        let exact = run(ConvolutionAlgorithm::Exact, DType::F32);
        let fast = run(ConvolutionAlgorithm::Fast, DType::F32);
        let bf16 = run(ConvolutionAlgorithm::Bf16, DType::F32);
        // A convolution may ask for it itself, in its gradients too.
        ConvolutionAlgorithm::Exact.set();
        assert_eq!(computed(Precision::Bf16, DType::F32), bf16);
        assert_eq!(computed(Precision::Tf32, DType::F32), exact, "a CPU has no TF32");
        let differs = stride == 1 || InstructionSet::current().unwrap() == InstructionSet::Amx;
        for (exact, fast) in exact.iter().zip(&fast) {
            assert_eq!(exact != fast, differs, "{inputs} to {outputs} channels, stride {stride}");
        }
        for (exact, bf16) in exact.iter().zip(&bf16) {
            // Rounded to eight bits, hardly a sum is the same.
            assert!(exact.iter().zip(bf16).filter(|(exact, bf16)| exact == bf16).count() * 100 < exact.len());
        }
        for (name, found, tolerance) in [("exact", exact, 2e-6), ("fast", fast, fast_tolerance), ("bf16", bf16, 4e-3)] {
            for (found, reference) in found.iter().zip(&reference) {
                let size = reference.iter().fold(0., |largest: f64, value| largest.max(value.abs()));
                for (found, reference) in found.iter().zip(reference) {
                    assert!((found - reference).abs() < tolerance * size, "{name}: {found} for {reference}");
                }
            }
        }
    }
}
