//! Checking gradients and tangents against finite differences.

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
            let error = relative_error(analytic, numeric);
            if error > tolerance || error.is_nan() {
                return Err(Error::GradientMismatch { input: index, element, analytic, numeric, error, tolerance });
            }
        }
    }
    Ok(())
}

/// Checks the rules for tangents of `function`, with a direction given to every non-empty choice of its inputs: the
/// tangent of the output against central differences along the directions, and the gradients of the tangent, with
/// respect to the inputs and to the directions, by [`finite_differences`]. These are all second derivatives of the
/// function, so none is left unchecked.
///
/// # Errors
/// [`Error::TangentMismatch`] or [`Error::GradientMismatch`] (whose inputs are counted on from the function's to the
/// directions) for the first element whose error is above `tolerance`, or whatever the function itself returns.
pub fn second_order(function: impl Fn(&[Var]) -> Result<Var>, inputs: &[Tensor], tolerance: f64) -> Result<()> {
    for choice in 1usize..1 << inputs.len() {
        let chosen: Vec<usize> = (0..inputs.len()).filter(|input| choice >> input & 1 == 1).collect();
        let mut arguments = inputs.to_vec();
        for &input in &chosen {
            let direction = weights(inputs[input].elem_count()).into_iter().map(|weight| 4. * (weight - 1.) - 0.3);
            let direction: Vec<f64> = direction.collect();
            arguments.push(Tensor::from_vec(direction, inputs[input].dims(), &Device::Cpu)?);
        }
        let tangent = |arguments: &[Var]| -> Result<Var> {
            let (values, directions) = arguments.split_at(inputs.len());
            let mut moving = values.to_vec();
            for (&input, direction) in chosen.iter().zip(directions) {
                moving[input] = values[input].with_tangent(direction)?;
            }
            let output = function(&moving)?;
            Ok(output.tangent().cloned().unwrap_or(Var::constant(output.tensor().zeros_like()?)))
        };
        compare_tangents(&function, &tangent, &arguments, &chosen, tolerance)?;
        finite_differences(tangent, &arguments, tolerance)?;
    }
    Ok(())
}

/// Compares `tangent` of all `arguments` (inputs, then the directions of the `chosen` ones) with central differences of
/// `function` along the directions.
fn compare_tangents(
    function: &impl Fn(&[Var]) -> Result<Var>,
    tangent: &impl Fn(&[Var]) -> Result<Var>,
    arguments: &[Tensor],
    chosen: &[usize],
    tolerance: f64,
) -> Result<()> {
    const OPERATION: &str = "second_order";
    let constants: Vec<Var> = arguments.iter().cloned().map(Var::constant).collect();
    let (inputs, directions) = constants.split_at(constants.len() - chosen.len());
    let moved = |distance: f64| -> Result<Var> {
        let mut moved = inputs.to_vec();
        for (&input, direction) in chosen.iter().zip(directions) {
            moved[input] = inputs[input].add(&direction.scale(distance)?)?;
        }
        function(&moved)
    };
    let (analytic, above, below) = (tangent(&constants)?, moved(HALF_STEP)?, moved(-HALF_STEP)?);
    let analytic = Operand::<f64>::read(OPERATION, "tangent", analytic.tensor())?;
    let above = Operand::<f64>::read(OPERATION, "output", above.tensor())?;
    let below = Operand::<f64>::read(OPERATION, "output", below.tensor())?;
    for (element, (&analytic, (above, below))) in analytic.iter().zip(above.iter().zip(&*below)).enumerate() {
        let numeric = (above - below) / (2. * HALF_STEP);
        let error = relative_error(analytic, numeric);
        if error > tolerance || error.is_nan() {
            return Err(Error::TangentMismatch { element, analytic, numeric, error, tolerance });
        }
    }
    Ok(())
}

/// The distance relative to the larger of the two and one.
fn relative_error(analytic: f64, numeric: f64) -> f64 {
    (analytic - numeric).abs() / analytic.abs().max(numeric.abs()).max(1.)
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

    #[test]
    fn a_right_tangent_passes_and_one_that_is_wrong_or_stands_still_fails() {
        let x = Tensor::new(&[0.5, -1.5, 2.], &Device::Cpu).unwrap();
        let cube = |x: &Var| x.mul(x)?.mul(x);
        second_order(|x| cube(&x[0]), std::slice::from_ref(&x), 1e-7).unwrap();
        // x³ whose tangent is that of x²·(the value of x): wrong at first order.
        let wrong = second_order(|x| x[0].mul(&x[0])?.mul(&x[0].detach()), std::slice::from_ref(&x), 1e-7);
        assert!(matches!(wrong, Err(Error::TangentMismatch { element: 0, .. })), "{wrong:?}");
        // A right tangent that is recorded without one of its dependencies: wrong at second order.
        let wrong = |x: &[Var]| {
            let tangent = x[0].tangent().map(|tangent| tangent.mul(&x[0].detach())?.scale(2.)).transpose()?;
            let square = x[0].primal().mul(&x[0].primal())?;
            tangent.map_or(Ok(square.clone()), |tangent| square.with_tangent(&tangent))
        };
        let wrong = second_order(wrong, &[x], 1e-7);
        assert!(matches!(wrong, Err(Error::GradientMismatch { input: 0, element: 0, .. })), "{wrong:?}");
    }
}
