//! Checking gradients against finite differences.

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::operand::Operand;
use crate::tape::{Tape, Var};

/// Half the step of the central differences. Their error is of the order of its square; the rounding error
/// of `f64` divided by it is smaller still.
const HALF_STEP: f64 = 1e-5;

/// Compares the gradients of `function` with central differences, for every element of every input.
///
/// The function is made a scalar by fixed weights of different sizes, so that an error in one output
/// cannot cancel one in another. Inputs are `f64`. The error of an element is taken relative to the
/// larger of the two gradients and 1. An input that gets no gradient counts as having a gradient of zeros.
///
/// # Errors
/// [`Error::GradientMismatch`] for the first element whose error is above `tolerance` (or not a number), or
/// whatever the function itself returns.
pub fn finite_differences(function: impl Fn(&[Var]) -> Result<Var>, inputs: &[Tensor], tolerance: f64) -> Result<()> {
    const OPERATION: &str = "finite_differences";
    let mut values = Vec::new();
    for input in inputs {
        values.push(Operand::<f64>::read(OPERATION, "inputs", input)?.to_vec());
    }

    let tape = Tape::new();
    let leaves: Vec<Var> = inputs.iter().map(|input| tape.leaf(input)).collect();
    let output = function(&leaves)?;
    if output.tensor().dtype() != DType::F64 {
        let (argument, expected, found) = ("output", "F64".to_owned(), output.tensor().dtype());
        return Err(Error::DType { operation: OPERATION, argument, expected, found });
    }
    let weights = weights(output.tensor().elem_count());
    let seed = Tensor::from_slice(&weights, output.dims(), &Device::Cpu)?;
    let gradients = tape.backward_from(&[(&output, &seed)])?;

    let scalar = |changed: usize, changed_values: &[f64]| -> Result<f64> {
        let mut arguments = Vec::new();
        for (index, input) in inputs.iter().enumerate() {
            arguments.push(Var::constant(if index == changed {
                Tensor::from_slice(changed_values, input.dims(), &Device::Cpu)?
            } else {
                input.clone()
            }));
        }
        let output = function(&arguments)?;
        let output = Operand::<f64>::read(OPERATION, "output", output.tensor())?;
        Ok(output.iter().zip(&weights).map(|(value, weight)| value * weight).sum())
    };
    for (index, leaf) in leaves.iter().enumerate() {
        let analytic = match gradients.get(leaf) {
            Some(gradient) => Operand::<f64>::read(OPERATION, "gradient", gradient)?.to_vec(),
            None => vec![0.; values[index].len()],
        };
        for (element, &analytic) in analytic.iter().enumerate() {
            let mut changed = values[index].clone();
            changed[element] += HALF_STEP;
            let above = scalar(index, &changed)?;
            changed[element] = values[index][element] - HALF_STEP;
            let below = scalar(index, &changed)?;
            let numeric = (above - below) / (2. * HALF_STEP);
            let error = (analytic - numeric).abs() / analytic.abs().max(numeric.abs()).max(1.);
            if error > tolerance || error.is_nan() {
                return Err(Error::GradientMismatch { input: index, element, analytic, numeric, error, tolerance });
            }
        }
    }
    Ok(())
}

/// Fixed weights between 0.5 and 1.5 in no simple pattern (multiples of the golden ratio, modulo 1).
fn weights(count: usize) -> Vec<f64> {
    (1..=count).map(|index| 0.5 + (index as f64 * 0.618_033_988_749_894_8).fract()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_gradient_passes_and_a_detached_one_fails() {
        let x = Tensor::new(&[0.5, -1.5, 2.], &Device::Cpu).unwrap();
        finite_differences(|x| x[0].mul(&x[0]), std::slice::from_ref(&x), 1e-8).unwrap();
        let wrong = finite_differences(|x| x[0].mul(&x[0].detach()), &[x], 1e-8);
        assert!(matches!(wrong, Err(Error::GradientMismatch { input: 0, element: 0, .. })), "{wrong:?}");
    }
}
