//! Every operation on a device against the same operation in `f64` on the CPU, forward and backward, at the shapes of the
//! networks of this project and at odd ones. `tsbd selftest` prints what is found.
//!
//! The values are repeatable and without pattern. Gradients begin at the output with numbers of the same kind, except that
//! none begins where a rectified value is so close to 0 that rounding decides whether it passes.

mod operations;
mod optimizers;
mod shapes;

use std::fmt;

use candle_core::{DType, Device, Tensor};

use crate::{Recording, Result, Tape, Var};

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
    // Where the variable is nonsense, a program has refused it before.
    let records = Recording::is_possible(device).unwrap_or(false);
    for &dtype in dtypes {
        let mut list = List { dtype, records, checks: &mut checks };
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
    /// Whether steps can be recorded.
    records: bool,
    checks: &'a mut Vec<Check>,
}

/// Images per check: enough for several blocks, few enough for a reference in `f64`.
const BATCH: usize = 4;

impl List<'_> {
    fn push(&mut self, operation: &'static str, shape: String, run: impl Fn(&Place) -> Result<Vec<Finding>> + 'static) {
        self.checks.push(Check { operation, shape, dtype: self.dtype, run: Box::new(run) });
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
        assert_eq!(operations.len(), 47, "{operations:?}");
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
