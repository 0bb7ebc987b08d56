//! i-BAU: implicit backdoor adversarial unlearning, which makes the network robust against one perturbation of all images.
//!
//! Y. Zeng, S. Chen, W. Park, Z. M. Mao, M. Jin, R. Jia, "Adversarial Unlearning of Backdoors via Implicit Hypergradient",
//! ICLR 2022 (arXiv 2110.03735), in the form of BackdoorBench's `defense/i-bau.py`. The network stays in evaluation mode.
//! A round is:
//!
//! 1. *Perturbation*: one pattern `δ` for all images, begun at 0, descends the *inner* objective, minus the cross-entropy
//!    of the images plus `δ` and a penalty on its square norm: one step for each batch of a pass over the clean images.
//! 2. *Unlearning*: for each batch, a step of Adam along the gradient of the *outer* objective, the cross-entropy of images
//!    of which a few carry `δ`. `δ` depends on the weights through the inner objective, and so the gradient has a second,
//!    implicit part (`hypergradient`), with exact second derivatives ([`Model::hessian_vector_product`],
//!    [`Model::mixed_product`]).
//!
//! Cost of a step of 2: one gradient, `iterations - 1` products with a Hessian (about two gradients each) and one mixed
//! product (about three).

use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tsbd_attack::parameters::{join, read};
use tsbd_attack::{DatasetFacts, ParameterError};
use tsbd_data::CHANNELS;
use tsbd_nn::{Adam, AdamConfig, Architecture, Batch, BatchSource, Mode, Model, ParameterGradients, Pass, StateDict};
use tsbd_tensor::{CrossEntropy, DType, Device, Tape, Tensor, Var};

use crate::entry::{Defense, DefenseCommon, DefenseEntry, Repaired, TracePoint, as_everywhere, noted};
use crate::training::scalar;
use crate::{CleanSubset, Context, Error};

/// The registry's entry.
pub static IBAU: DefenseEntry = DefenseEntry {
    name: "i-bau",
    title: "i-BAU",
    paper: "Zeng et al., ICLR 2022, arXiv 2110.03735",
    summary: "unlearns a perturbation of all images along implicit hypergradients",
    revision: 1,
    schema: || schemars::schema_for!(Parameters),
    configure: |common, own| {
        let parameters: Parameters = read(&own)?;
        common.check_ranges()?;
        parameters.check()?;
        Ok(Box::new(Ibau { common: common.in_full_precision(), parameters }))
    },
    published: as_everywhere,
};

/// Where BackdoorBench's code departs from the paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// As BackdoorBench: the perturbation leads away from what the network says about the clean images, and the implicit
    /// part of every step is that of the first batch.
    #[default]
    Reference,
    /// As the paper's objective, estimated on a batch: the perturbation leads away from the true labels, and the implicit
    /// part of a step is that of its own batch.
    Paper,
}

/// i-BAU's own parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// `reference` or `paper`.
    pub variant: Variant,
    /// Rounds of perturbation and unlearning.
    pub rounds: usize,
    /// Learning rate of unlearning (Adam with AMSGrad, no weight decay).
    pub learning_rate: f64,
    /// Learning rate of the perturbation (SGD without momentum, one step for each batch), in normalised image space.
    pub perturbation_learning_rate: f64,
    /// Factor of the perturbation's square norm in the inner objective.
    pub penalty: f64,
    /// K: iterations of the fixed-point equation that the implicit part of a gradient solves.
    pub iterations: usize,
    /// Step of the gradient descent whose fixed point the perturbation is taken to be.
    pub inner_step: f64,
    /// Share of a batch that carries the perturbation in the outer objective, rounded down, but at least one image; greater
    /// than 0, at most 1.
    pub perturbed_share: f64,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters {
            variant: Variant::Reference,
            rounds: 5,
            learning_rate: 1e-4,
            perturbation_learning_rate: 10.0,
            penalty: 0.001,
            iterations: 5,
            inner_step: 0.1,
            perturbed_share: 0.01,
        }
    }
}

impl Parameters {
    fn check(&self) -> Result<(), ParameterError> {
        ParameterError::unless_nonzero("rounds", self.rounds)?;
        ParameterError::unless_nonzero("iterations", self.iterations)?;
        for (field, value) in [
            ("learning_rate", self.learning_rate),
            ("perturbation_learning_rate", self.perturbation_learning_rate),
            ("inner_step", self.inner_step),
        ] {
            ParameterError::unless_positive(field, value)?;
        }
        ParameterError::unless_within("penalty", self.penalty, 0.0, f64::MAX)?;
        ParameterError::unless_share("perturbed_share", self.perturbed_share)
    }
}

#[derive(Debug, Clone)]
struct Ibau {
    common: DefenseCommon,
    parameters: Parameters,
}

impl Defense for Ibau {
    fn parameters(&self) -> Value {
        join(&self.common, &self.parameters)
    }

    fn common(&self) -> &DefenseCommon {
        &self.common
    }

    /// Refuses a network with an operation that has no second derivatives, which a pass of one black image finds out.
    fn check(&self, architecture: &dyn Architecture, dataset: &DatasetFacts) -> Result<(), ParameterError> {
        self.common.check(dataset)?;
        let probe = || {
            let zeros =
                |slot: &tsbd_nn::Slot| Tensor::zeros(slot.dims.as_slice(), slot.dtype(DType::F32), &Device::Cpu);
            let state = StateDict::build(architecture.modules(), |_, slot| Ok(zeros(slot)?))?;
            let image = Tensor::zeros((1, dataset.size, dataset.size, CHANNELS), DType::F32, &Device::Cpu)?;
            let moving = Var::constant(image.clone()).with_tangent(&Var::constant(image))?;
            Pass::new(architecture, &state, Mode::Eval).through(&moving)
        };
        probe().map(|_| ()).map_err(|error: tsbd_nn::Error| {
            let reason = format!("{} cannot be differentiated twice: {error}", architecture.name());
            ParameterError::new("defense", "\"i-bau\"", reason, "use another defense")
        })
    }

    /// A step of unlearning takes three gradients, and each iteration a product with second derivatives, which costs two.
    fn image_passes(&self, dataset: &DatasetFacts) -> f64 {
        let Parameters { rounds, iterations, .. } = self.parameters;
        self.common.passes(dataset, (rounds * (3 + 2 * iterations)) as f64)
    }

    fn repair(&self, backdoored: &Model, clean: &CleanSubset, context: &mut Context) -> Result<Repaired, Error> {
        const STAGE: &str = "unlearning";
        let parameters = &self.parameters;
        let mut model = backdoored.clone();
        let config = AdamConfig { amsgrad: true, ..AdamConfig::new(parameters.learning_rate) };
        let mut adam = Adam::new(config, &model.state)?;
        let source = context.shuffled(clean.images(), "ibau", self.common.batch_size);
        // One pass stands for the clean images in every round.
        let batches: Vec<Batch> = source.epoch(0).collect::<Result<_, _>>()?;
        let total = 2 * batches.len() * parameters.rounds;
        context.observer.stage(STAGE, total);
        let run = backdoored.state.digest()?;
        let mut done = Rounds::default();
        if let Some((tensors, kept)) = context.kept(STAGE, &run) {
            model.state.restore(MODEL, &tensors)?;
            adam.restore(ADAM, &tensors)?;
            done = kept;
        }
        let mut trace = Vec::new();
        for point in &done.points {
            context.trace(&mut trace, point.clone());
        }
        for round in done.points.len()..parameters.rounds {
            let mut steps = 2 * batches.len() * round;
            let diverged = |step: usize, loss: f64, parameter, batch: &Batch| {
                let source = tsbd_nn::Error::NonFiniteLoss { epoch: round, step, loss, indices: batch.indices.clone() };
                Error::Diverged { stage: STAGE, parameter, source: Box::new(source) }
            };
            let start = Instant::now();
            let mut perturbation = first_perturbation(&batches[0])?;
            let mut losses = [0.0; 2];
            for (step, batch) in source.epoch(1 + round).enumerate() {
                let batch = batch?;
                let (loss, gradient) = perturbation_gradient(&model, &perturbation, &batch, parameters)?;
                if !loss.is_finite() {
                    return Err(diverged(step, loss, "perturbation_learning_rate", &batch));
                }
                perturbation = (perturbation - (gradient * parameters.perturbation_learning_rate)?)?;
                losses[0] += loss / batches.len() as f64;
                steps += 1;
                context.step(STAGE, steps, total)?;
            }
            done.perturbation_seconds += start.elapsed().as_secs_f64();

            let start = Instant::now();
            for (step, batch) in batches.iter().enumerate() {
                let inner = match parameters.variant {
                    Variant::Reference => &batches[0],
                    Variant::Paper => batch,
                };
                let number = round * batches.len() + step;
                let perturbed = perturbed(batch.len(), parameters.perturbed_share, number, context);
                let found = hypergradient(&model, &perturbation, inner, batch, &perturbed, parameters)?;
                if !found.loss.is_finite() {
                    return Err(diverged(step, found.loss, "learning_rate", batch));
                }
                adam.step(&mut model.state, &found.gradients)?;
                // The last step of a round has no loss after it that would tell.
                if model.state.non_finite()?.is_some() {
                    return Err(diverged(step, f64::NAN, "learning_rate", batch));
                }
                done.equations += 1;
                done.iterations += found.iterations;
                losses[1] += found.loss / batches.len() as f64;
                steps += 1;
                context.step(STAGE, steps, total)?;
            }
            done.unlearning_seconds += start.elapsed().as_secs_f64();

            let metrics =
                [("perturbation_norm", norm(&perturbation)?), ("inner_loss", losses[0]), ("outer_loss", losses[1])];
            let mut point = TracePoint::new(STAGE, round, metrics);
            point.add(&(context.evaluate)(&model)?);
            done.points.push(point.clone());
            context.trace(&mut trace, point);
            let tensors = model.state.tensors(MODEL).chain(adam.tensors(ADAM)?).collect();
            context.keep(STAGE, &run, tensors, &done)?;
        }
        let facts = [
            ("variant", json!(parameters.variant)),
            ("steps", json!(adam.steps())),
            ("mean_iterations", json!(done.iterations as f64 / done.equations as f64)),
            ("perturbation_norm", json!(trace.last().map(|point| point.metrics["perturbation_norm"]))),
            ("perturbation_seconds", json!(done.perturbation_seconds)),
            ("unlearning_seconds", json!(done.unlearning_seconds)),
        ];
        Ok(Repaired { model, changed: Vec::new(), trace, facts: noted(facts), scores: None })
    }
}

/// Before the names of the network's and of the optimiser's tensors that are kept.
const MODEL: &str = "model.";
const ADAM: &str = "adam.";

/// The rounds that are done: kept after each.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Rounds {
    /// A point of the trace for each.
    points: Vec<TracePoint>,
    /// How many fixed-point equations were solved, and the iterations that they took.
    equations: usize,
    iterations: usize,
    perturbation_seconds: f64,
    unlearning_seconds: f64,
}

/// No perturbation of images as those of `batch`: zeros `[1, height, width, channel]`.
fn first_perturbation(batch: &Batch) -> Result<Tensor, Error> {
    Ok(batch.images.narrow(0, 0, 1)?.zeros_like()?)
}

/// Which of `count` images carry the perturbation in step `number`, ascending.
fn perturbed(count: usize, share: f64, number: usize, context: &Context) -> Vec<u32> {
    let carriers = ((count as f64 * share) as usize).max(1);
    let mut drawn = context.streams.stream("ibau/perturbed", number as u64).permutation(count);
    drawn.truncate(carriers);
    drawn.sort_unstable();
    drawn
}

/// Images that are differentiated at once. Products with second derivatives hold twice the activations of a gradient; in
/// evaluation mode images do not act on each other, so that sums over pieces of a batch are exact.
const PIECE: usize = 128;

/// The pieces of a batch, each with its share of the batch.
fn pieces(batch: &Batch) -> Result<Vec<(Batch, f64)>, Error> {
    let count = batch.len();
    (0..count)
        .step_by(PIECE)
        .map(|start| {
            let length = PIECE.min(count - start);
            let images = batch.images.narrow(0, start, length)?;
            let labels = batch.labels.narrow(0, start, length)?;
            let indices = batch.indices[start..start + length].to_vec();
            Ok((Batch { images, labels, indices }, length as f64 / count as f64))
        })
        .collect()
}

/// A piece's part of what the perturbation descends: minus the cross-entropy of the images plus the perturbation, and the
/// penalty on its square norm, both times the piece's share of the batch.
fn inner_objective<'a>(
    (piece, share): &'a (Batch, f64),
    penalty: f64,
) -> impl Fn(&Pass, &Var) -> tsbd_nn::Result<Var> + 'a {
    move |pass, perturbation| {
        let moved = Var::constant(piece.images.clone()).add(&perturbation.broadcast_batch(piece.len())?)?;
        let loss = pass.through(&moved)?.cross_entropy(&piece.labels, CrossEntropy::default())?.scale(-share)?;
        Ok(loss.add(&perturbation.mul(perturbation)?.sum()?.scale(share * penalty)?)?)
    }
}

/// The inner objective on a batch and its gradient with respect to the perturbation.
fn perturbation_gradient(
    model: &Model,
    perturbation: &Tensor,
    batch: &Batch,
    parameters: &Parameters,
) -> Result<(f64, Tensor), Error> {
    let (mut value, mut sum) = (0.0, perturbation.zeros_like()?);
    for (mut piece, share) in pieces(batch)? {
        if parameters.variant == Variant::Reference {
            piece.labels = model.logits(&piece.images, Mode::Eval)?.argmax(1)?;
        }
        let tape = Tape::new();
        let leaf = tape.leaf(perturbation);
        let loss = inner_objective(&(piece, share), parameters.penalty)(&model.pass(Mode::Eval), &leaf)?;
        value += scalar(loss.tensor())?;
        sum = (sum + tape.backward(&loss)?.take(&leaf).ok_or(tsbd_nn::Error::InputUnused)?)?;
    }
    Ok((value, sum))
}

/// Two perturbations nearer than this solve the fixed-point equation.
const SOLVED: f64 = 1e-10;

/// The gradient of the outer objective with respect to the weights.
struct Hypergradient {
    gradients: ParameterGradients,
    /// The outer objective.
    loss: f64,
    /// Iterations of the fixed-point equation.
    iterations: usize,
}

/// The gradient of the outer objective on `outer`, where the images `perturbed` of it carry the perturbation, with respect
/// to the weights `w`, on which the perturbation `δ` depends: it is taken for the fixed point of a step of gradient descent
/// `Φ(δ, w) = δ - s ∇_δ inner`, with the inner objective on the batch `inner`, so that
///
/// `gradient = ∂outer/∂w + (∂Φ/∂w)ᵀ v`, with `v = (∂Φ/∂δ)ᵀ v + ∂outer/∂δ`,
///
/// where the equation for `v` is iterated from 0. `(∂Φ/∂δ)ᵀ v = v - s H v` and `(∂Φ/∂w)ᵀ v = -s ∇_w ⟨∇_δ inner, v⟩`.
fn hypergradient(
    model: &Model,
    perturbation: &Tensor,
    inner: &Batch,
    outer: &Batch,
    perturbed: &[u32],
    parameters: &Parameters,
) -> Result<Hypergradient, Error> {
    let (loss, direct, through) = outer_gradients(model, perturbation, outer, perturbed)?;
    let (inner, penalty) = (pieces(inner)?, parameters.penalty);
    let (mut v, mut iterations) = (through.clone(), 1);
    if norm(&v)? >= SOLVED {
        while iterations < parameters.iterations {
            let mut change = through.clone();
            for piece in &inner {
                let objective = inner_objective(piece, penalty);
                let product = model.hessian_vector_product(Mode::Eval, perturbation, &v, objective)?;
                change = (change - (product * parameters.inner_step)?)?;
            }
            v = (v + &change)?;
            iterations += 1;
            if norm(&change)? < SOLVED {
                break;
            }
        }
    }
    let mut gradients = direct;
    for piece in &inner {
        let mixed = model.mixed_product(Mode::Eval, perturbation, &v, inner_objective(piece, penalty))?;
        gradients = gradients.mix(1.0, &mixed, -parameters.inner_step)?;
    }
    Ok(Hypergradient { gradients, loss, iterations })
}

/// The outer objective with its gradients with respect to the weights and to the perturbation.
fn outer_gradients(
    model: &Model,
    perturbation: &Tensor,
    batch: &Batch,
    perturbed: &[u32],
) -> Result<(f64, ParameterGradients, Tensor), Error> {
    let (mut value, mut direct, mut through) = (0.0, None::<ParameterGradients>, perturbation.zeros_like()?);
    for (number, (piece, share)) in pieces(batch)?.into_iter().enumerate() {
        let mut carries = vec![0f32; piece.len()];
        for &image in perturbed {
            if let Some(carries) = (image as usize).checked_sub(number * PIECE).and_then(|place| carries.get_mut(place))
            {
                *carries = 1.0;
            }
        }
        let carries = Tensor::from_vec(carries, (piece.len(), 1, 1, 1), perturbation.device())?;
        let carries = carries.to_dtype(perturbation.dtype())?.broadcast_as(piece.images.dims())?.contiguous()?;
        let tape = Tape::new();
        let pass = model.pass(Mode::Eval).on_tape(&tape);
        let leaf = tape.leaf(perturbation);
        let patches = leaf.broadcast_batch(piece.len())?.mul(&Var::constant(carries))?;
        let logits = pass.through(&Var::constant(piece.images.clone()).add(&patches)?)?;
        let loss = logits.cross_entropy(&piece.labels, CrossEntropy::default())?.scale(share)?;
        value += scalar(loss.tensor())?;
        let mut gradients = tape.clone().backward(&loss)?;
        through = (through + gradients.take(&leaf).ok_or(tsbd_nn::Error::InputUnused)?)?;
        let of_piece = pass.gradients(&mut gradients)?;
        direct = Some(match direct {
            Some(direct) => direct.mix(1.0, &of_piece, 1.0)?,
            None => of_piece,
        });
    }
    Ok((value, direct.unwrap_or_default(), through))
}

fn norm(tensor: &Tensor) -> Result<f64, Error> {
    scalar(&tensor.to_dtype(DType::F64)?.sqr()?.sum_all()?.sqrt()?)
}

#[cfg(test)]
mod tests;
