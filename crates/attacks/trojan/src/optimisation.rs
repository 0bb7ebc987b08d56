//! The trigger's levels: projected gradient descent on the mask's, towards a high value of the chosen neurons.
//!
//! Steps of `pgd_with_mask_to_selected_neuron`: the clean model, in evaluation mode, is shown the mask picture alone
//! (levels from 0 to 1, not normalised); every level moves by `step_size` against the sign of the gradient of
//! `Σ (neuron - target_value)²`, stays within `bound` of the mask's level and within 0..=1. Levels that are 0 in the mask
//! stay 0. It ends when the sum is below 0.001, or after `steps`.
//!
//! Cost: a forward and a backward pass of one image per step.

use serde_json::Value;
use tsbd_attack::picture::to_levels;
use tsbd_attack::{Error, Groundwork, GroundworkContext, Material, ParameterError};
use tsbd_data::{CHANNELS, ImageSource, Picture};
use tsbd_nn::{Architecture, Layer, Model, RandomStream};
use tsbd_tensor::Tensor;

use crate::{BUILT_IN, Connections, Parameters};

/// The cost that is small enough.
const ENOUGH: f64 = 1e-3;
/// Classes of the untrained head that chooses the neurons.
const RANDOM_CLASSES: usize = 1000;
/// The material's only tensor, a picture.
pub const TRIGGER: &str = "trigger";
const STAGE: &str = "optimise trigger";

/// The optimisation, configured.
#[derive(Debug, Clone)]
pub struct Optimisation {
    parameters: Parameters,
    mask: Picture,
}

/// What an optimisation has come to.
#[derive(Debug, Clone, PartialEq)]
pub struct Optimised {
    /// `[height, width, 3]`, from 0 to 1.
    pub levels: Vec<f32>,
    /// The value of each chosen neuron before the first step, and before the last.
    pub values: [Vec<f32>; 2],
    /// `Σ (neuron - target_value)²` at the same times.
    pub costs: [f64; 2],
    /// Steps that were made.
    pub steps: usize,
}

impl Optimisation {
    /// An optimisation that starts from `mask`, of any size.
    pub fn new(parameters: &Parameters, mask: Picture) -> Optimisation {
        Optimisation { parameters: parameters.clone(), mask }
    }

    /// Refuses a mask of which nothing is left at the images' size.
    pub fn check_mask(&self, size: usize) -> Result<(), ParameterError> {
        if self.mask.resized(size, size).pixels.iter().any(|level| *level > 0) {
            return Ok(());
        }
        let reason = format!("at {size}x{size} pixels all of it is black, so the trigger would change nothing");
        let way_out = format!("give a picture with larger bright parts, or `{BUILT_IN}`");
        Err(ParameterError::new("mask", &self.parameters.mask, reason, way_out))
    }

    /// Moves the levels of `mask`, `[height, width, 3]` from 0 to 1, so that the clean model's `neurons` grow.
    pub fn run(
        &self,
        context: &mut GroundworkContext<'_>,
        mask: &[f32],
        neurons: &[usize],
    ) -> Result<Optimised, Error> {
        let (model, device) = (context.clean_model()?, context.device.clone());
        let shape = (1, context.clean.train.height(), context.clean.train.width(), CHANNELS);
        let Parameters { target_value, steps: most, step_size, bound, .. } = self.parameters;
        let (target, step_size, bound) = (target_value as f32, step_size as f32, bound as f32);
        let mut levels = mask.to_vec();
        let (mut first, mut steps) = (None, 0);
        loop {
            let image = Tensor::from_slice(&levels, shape, &device).map_err(tsbd_nn::Error::from)?;
            let observed = model.observe(&image, Some(model.architecture.features()))?;
            let features = observed.output().flatten_all().and_then(|features| features.to_vec1::<f32>());
            let features = features.map_err(tsbd_nn::Error::from)?;
            let values: Vec<f32> = neurons.iter().map(|&neuron| features[neuron]).collect();
            let cost = values.iter().map(|value| f64::from((value - target).powi(2))).sum::<f64>();
            let mut seed = vec![0f32; features.len()];
            for (&neuron, value) in neurons.iter().zip(&values) {
                seed[neuron] = 2.0 * (value - target);
            }
            let seed = Tensor::from_vec(seed, observed.output().dims(), &device).map_err(tsbd_nn::Error::from)?;
            let gradient = observed.gradient(&seed)?.flatten_all().and_then(|gradient| gradient.to_vec1::<f32>());
            let gradient = gradient.map_err(tsbd_nn::Error::from)?;
            for ((level, start), slope) in levels.iter_mut().zip(mask).zip(&gradient) {
                // Outside of the mask the picture is kept black, so no gradient arrives there.
                if *start > 0.0 && *slope != 0.0 {
                    let moved = *level - step_size * slope.signum();
                    *level = (start + (moved - start).clamp(-bound, bound)).clamp(0.0, 1.0);
                }
            }
            steps += 1;
            context.step(STAGE, steps, most, Some(cost))?;
            let before = first.get_or_insert_with(|| (values.clone(), cost)).clone();
            if cost < ENOUGH || steps >= most {
                return Ok(Optimised { levels, values: [before.0, values], costs: [before.1, cost], steps });
            }
        }
    }

    /// The chosen neurons, the most strongly connected first.
    fn neurons(&self, model: &Model, stream: &mut RandomStream) -> Result<Vec<usize>, Error> {
        let head = model.architecture.head();
        let rows = match self.parameters.connections {
            Connections::TrainedHead => model.state.filter_rows(&format!("{head}.weight"))?,
            Connections::RandomHead => {
                // As PyTorch initialises a linear layer.
                let features = features_of(model.architecture.as_ref());
                let limit = (features as f64).sqrt().recip();
                let mut row = || (0..features).map(|_| stream.uniform_in(-limit, limit) as f32).collect();
                (0..RANDOM_CLASSES).map(|_| row()).collect()
            }
        };
        Ok(most_connected(&rows, self.parameters.neurons))
    }
}

impl Groundwork for Optimisation {
    fn parameters(&self) -> Value {
        let mut fields = serde_json::to_value(&self.parameters).expect("parameters have string keys only");
        if let Value::Object(fields) = &mut fields {
            fields.remove("overflow");
        }
        fields
    }

    fn needs_clean_model(&self) -> bool {
        true
    }

    fn check(&self, architecture: &dyn Architecture) -> Result<(), ParameterError> {
        let (wanted, found) = (self.parameters.neurons, features_of(architecture));
        if wanted <= found {
            return Ok(());
        }
        let reason = format!("the last layer of this {} has {found} inputs", architecture.name());
        Err(ParameterError::new("neurons", wanted, reason, format!("give at most {found}")))
    }

    fn make(&self, context: &mut GroundworkContext<'_>) -> Result<Material, Error> {
        let model = context.clean_model()?;
        let (height, width) = (context.clean.train.height(), context.clean.train.width());
        let neurons = self.neurons(model, &mut context.streams.stream("trojan/head", 0))?;
        let mask = self.mask.resized(height, width).pixels;
        let mask: Vec<f32> = mask.iter().map(|level| f32::from(*level) / 255.0).collect();
        let optimised = self.run(context, &mask, &neurons)?;
        let trigger = Picture { pixels: to_levels(&optimised.levels), height, width };
        if trigger.pixels.iter().all(|level| *level == 0) {
            let reason = "every level of the mask was moved to 0, so the trigger would change nothing";
            let way_out = "give a smaller bound, fewer steps, or a brighter mask";
            return Err(ParameterError::new("bound", self.parameters.bound, reason, way_out).into());
        }
        Ok(Material::new()
            .with_picture(TRIGGER, trigger)?
            .with_metric("cost_before", optimised.costs[0])
            .with_metric("cost", optimised.costs[1])
            .with_fact("neurons", neurons)
            .with_fact("values_before", optimised.values[0].clone())
            .with_fact("values", optimised.values[1].clone())
            .with_fact("steps", optimised.steps))
    }
}

/// The columns of a weight `[out, in]` with the largest sums of absolute values, the largest first; of equals the first.
pub fn most_connected(rows: &[Vec<f32>], count: usize) -> Vec<usize> {
    let columns = rows.first().map_or(0, Vec::len);
    let sums: Vec<f64> = (0..columns).map(|column| rows.iter().map(|row| f64::from(row[column].abs())).sum()).collect();
    let mut order: Vec<usize> = (0..columns).collect();
    order.sort_by(|a, b| sums[*b].total_cmp(&sums[*a]));
    order.truncate(count);
    order
}

/// How many inputs the last linear layer has.
fn features_of(architecture: &dyn Architecture) -> usize {
    let head = architecture.modules().iter().find(|module| module.name == architecture.head());
    match head.map(|module| &module.layer) {
        Some(Layer::Linear { in_features, .. }) => *in_features,
        _ => 0,
    }
}
