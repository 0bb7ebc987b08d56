//! What the generators are trained on, as functions of values on a tape.

use tsbd_nn::Result;
use tsbd_tensor::Var;

/// Added to the distance that another one is divided by, as in the reference.
const EPSILON: f64 = 1e-7;
/// Stands for a mean square of 0, whose root has no finite gradient: that of two equal samples, or of two masks that are
/// equal though their images are not (at the ends of their range). Nothing flows through here in either case.
const NO_DISTANCE: f32 = 1e-14;

/// The root mean square difference of each sample of `a` and `b`, both `[batch, height, width, channels]`: `[batch]`.
pub fn distances(a: &Var, b: &Var) -> Result<Var> {
    let difference = a.sub(b)?;
    let means = difference.mul(&difference)?.mean_per_sample()?;
    let equal = (means.tensor().eq(0.0)?.to_dtype(means.tensor().dtype())? * f64::from(NO_DISTANCE))?;
    Ok(means.add(&Var::constant(equal))?.sqrt()?)
}

/// The mean over the samples of the distance of two inputs over that of what was made of them: small where different
/// inputs give different outputs.
pub fn diversity(inputs: [&Var; 2], outputs: [&Var; 2]) -> Result<Var> {
    let apart = distances(outputs[0], outputs[1])?.offset(EPSILON)?;
    Ok(distances(inputs[0], inputs[1])?.div(&apart)?.mean()?)
}

/// The mean excess of a mask over `density`.
pub fn excess(mask: &Var, density: f64) -> Result<Var> {
    Ok(mask.offset(-density)?.relu()?.mean()?)
}
