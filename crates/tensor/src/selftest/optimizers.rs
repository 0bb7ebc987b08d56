//! Optimisers, and steps that are done again from a recording.

use candle_core::{DType, Device, Tensor};

use super::{BATCH, Finding, List, Place, noise};
use crate::{
    Adam, BatchNorm, Conv2d, CrossEntropy, Current, Readback, Recording, Result, Sgd, Statistics, Tape, Var, adam_step,
    amsgrad_step, count_correct, move_estimates, sgd_steps,
};

impl List<'_> {
    /// Two steps of two parameters, and then running estimates made of them.
    pub(super) fn sgd(&mut self, network: &str, dims: &[usize]) {
        let dims = dims.to_vec();
        self.push("sgd_step", format!("{network}, {dims:?}"), move |place| {
            let steps = |dtype: DType, device: &Device| -> Result<[Tensor; 4]> {
                let at = |start| -> Result<Tensor> { Ok(noise(&dims, start)?.to_dtype(dtype)?.to_device(device)?) };
                let (parameter, velocity) = (at(1)?.copy()?, at(2)?.copy()?);
                let other =
                    [at(5)?.flatten_all()?.narrow(0, 0, 1)?.copy()?, at(6)?.flatten_all()?.narrow(0, 0, 1)?.copy()?];
                for start in [3, 4] {
                    let options = Sgd { learning_rate: 0.1, momentum: 0.9, weight_decay: 5e-4 };
                    let one = other[1].copy()?;
                    sgd_steps(&[[&parameter, &velocity, &at(start)?], [&other[0], &other[1], &one]], options, None)?;
                }
                let estimates = [other[0].copy()?, parameter.copy()?];
                move_estimates(&[[&estimates[0], &other[1]], [&estimates[1], &velocity]], 0.1, None)?;
                let [small, large] = estimates;
                Ok([parameter, velocity, small, large])
            };
            let expected = steps(DType::F64, &Device::Cpu)?;
            let found = steps(place.dtype, &place.device)?;
            let pairs = ["parameter", "velocity", "small estimate", "large estimate"]
                .into_iter()
                .zip(found.iter().zip(&expected));
            pairs.map(|(what, (found, expected))| Finding::of(what, found, expected)).collect()
        });
    }

    /// Two steps of Adam and of AMSGrad, of which the second has the smaller gradient.
    pub(super) fn adam(&mut self, network: &str, dims: &[usize]) {
        const NAMES: [&str; 4] = ["parameter", "first_moment", "second_moment", "largest"];
        for (operation, keeps_largest) in [("adam_step", false), ("amsgrad_step", true)] {
            let dims = dims.to_vec();
            self.push(operation, format!("{network}, {dims:?}"), move |place| {
                let steps = |dtype: DType, device: &Device| -> Result<Vec<Tensor>> {
                    let at =
                        |values: Tensor| -> Result<Tensor> { Ok(values.to_dtype(dtype)?.to_device(device)?.copy()?) };
                    let mut kept = vec![at(noise(&dims, 1)?)?];
                    for _ in &NAMES[1..] {
                        kept.push(kept[0].zeros_like()?);
                    }
                    for (step, size) in [(1, 1.), (2, 0.1)] {
                        let gradient = at((noise(&dims, 2 + step as usize)? * size)?)?;
                        let options = Adam { learning_rate: 0.1, betas: [0.5, 0.9], epsilon: 1e-3 };
                        let [parameter, first, second, largest] = &kept[..] else { unreachable!("four are kept") };
                        if keeps_largest {
                            amsgrad_step(parameter, first, second, largest, &gradient, step, options)?;
                        } else {
                            adam_step(parameter, first, second, &gradient, step, options)?;
                        }
                    }
                    kept.truncate(if keeps_largest { NAMES.len() } else { NAMES.len() - 1 });
                    Ok(kept)
                };
                let expected = steps(DType::F64, &Device::Cpu)?;
                let found = steps(place.dtype, &place.device)?;
                let pairs = NAMES.into_iter().zip(found.iter().zip(&expected));
                pairs.map(|(what, (found, expected))| Finding::of(what, found, expected)).collect()
            });
        }
    }

    /// Steps of a small network with all that a training step has, done again from a recording with other images and rates, and
    /// the same ones launched: they have the same bits, and so have their outcomes, each read when the next step was asked for.
    /// Then one whose loss is not finite, which moves nothing.
    pub(super) fn recorded_step(&mut self, network: &str, size: usize, channels: usize, classes: usize) {
        self.push("recorded_step", format!("{network}, {size}x{size}, {channels} channels"), move |place| {
            let launched = SmallTraining::new(place, size, channels, classes)?;
            let recorded = SmallTraining::new(place, size, channels, classes)?;
            // Warm, as a recording has to be.
            recorded.begin_step(0)?;
            recorded.step(Some(SmallTraining::RATES[0]))?;
            let recording =
                Recording::of(&place.device, recorded.tensors().cloned().collect(), || recorded.step(None))?;
            let (mut expected, mut outcomes) = (vec![], vec![]);
            let mut arriving = Readback::new(&place.device, 2, 2)?;
            for index in 0..SmallTraining::RATES.len() {
                launched.begin_step(index)?;
                launched.step(Some(SmallTraining::RATES[index]))?;
                if index == 0 {
                    continue;
                }
                expected.push(launched.outcome.to_vec1::<f32>()?);
                recorded.begin_step(index)?;
                recording.replay()?;
                arriving.put(&recorded.outcome)?;
                if index > 1 {
                    outcomes.push(arriving.take()?);
                }
            }
            outcomes.push(arriving.take()?);
            recorded.images.slice_set(&(&recorded.images * f64::NAN)?, 0, 0)?;
            recording.replay()?;
            let is_told = recorded.outcome.to_vec1::<f32>()?[0].is_nan();
            let bits = |tensor: &Tensor| -> Result<Vec<u32>> {
                Ok(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
            };
            let finding = |what, is_right| Finding { what, error: if is_right { 0. } else { f64::INFINITY } };
            let mut findings = vec![
                finding("losses, right answers", outcomes == expected),
                finding("loss that is not a number", is_told),
            ];
            for (name, (found, expected)) in
                SmallTraining::NAMES.into_iter().zip(recorded.kept.iter().zip(&launched.kept))
            {
                findings.push(finding(name, bits(found)? == bits(expected)?));
            }
            Ok(findings)
        });
    }
}

/// A network of a convolution, a batch norm and a linear layer, and what its training keeps.
struct SmallTraining {
    dtype: DType,
    /// Parameters, their velocities, running estimates.
    kept: Vec<Tensor>,
    images: Tensor,
    labels: Tensor,
    learning_rate: Tensor,
    /// Loss, and images classified as labelled.
    outcome: Tensor,
}

impl SmallTraining {
    const PARAMETERS: usize = 4;
    const NAMES: [&str; 10] = [
        "filter",
        "scale",
        "shift",
        "weight",
        "velocity of the filter",
        "velocity of the scale",
        "velocity of the shift",
        "velocity of the weight",
        "running mean",
        "running variance",
    ];
    const RATES: [f64; 4] = [0.5, 0.5, 0.2, 0.1];

    fn new(place: &Place, size: usize, channels: usize, classes: usize) -> Result<Self> {
        let device = &place.device;
        let on_device = |values: Tensor| -> Result<Tensor> { Ok(values.to_device(device)?.copy()?) };
        let shapes: [&[usize]; Self::PARAMETERS] =
            [&[3, 3, 3, channels], &[channels], &[channels], &[classes, channels]];
        let parameters = shapes.iter().enumerate().map(|(index, dims)| on_device(noise(dims, index + 1)?));
        let parameters = parameters.collect::<Result<Vec<_>>>()?;
        let velocities = parameters.iter().map(Tensor::zeros_like).collect::<candle_core::Result<Vec<_>>>()?;
        let estimates = [on_device(noise(&[channels], 7)?)?, on_device((noise(&[channels], 8)? + 2.)?)?];
        let labels: Vec<u32> = (0..BATCH).map(|image| (image * 5 % classes) as u32).collect();
        Ok(Self {
            dtype: place.dtype,
            kept: parameters.into_iter().chain(velocities).chain(estimates).collect(),
            images: on_device(noise(&[BATCH, size, size, 3], 0)?)?,
            labels: Tensor::new(labels, device)?,
            learning_rate: Tensor::new(&[0f32], device)?,
            outcome: Tensor::new(&[0f32; 2], device)?,
        })
    }

    /// All that outlives a step.
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.kept.iter().chain([&self.images, &self.labels, &self.learning_rate, &self.outcome])
    }

    fn begin_step(&self, index: usize) -> Result<()> {
        let device = self.images.device();
        self.images.slice_set(&noise(self.images.dims(), 20 + index)?.to_device(device)?, 0, 0)?;
        self.learning_rate.slice_set(&Tensor::new(&[Self::RATES[index] as f32], device)?, 0, 0)?;
        Ok(())
    }

    /// One step at `rate`, or at the rate that is in memory.
    fn step(&self, rate: Option<f64>) -> Result<()> {
        let tape = Tape::new();
        let (parameters, others) = self.kept.split_at(Self::PARAMETERS);
        let (velocities, estimates) = others.split_at(Self::PARAMETERS);
        let leaves: Vec<Var> = parameters.iter().map(|parameter| tape.leaf(parameter)).collect();
        let options = BatchNorm { statistics: Statistics::Batch, epsilon: 1e-5, relu: true };
        let images = Var::constant(self.images.to_dtype(self.dtype)?);
        let convolution = Conv2d { padding: 1, ..Conv2d::default() };
        let maps = images.conv2d(&leaves[0].to_dtype(self.dtype)?, None, convolution)?;
        let (maps, met) = maps.batch_norm(&leaves[1], &leaves[2], options)?;
        let logits =
            maps.global_average_pool()?.linear(&leaves[3].to_dtype(self.dtype)?, None)?.to_dtype(DType::F32)?;
        let loss = logits.cross_entropy(&self.labels, CrossEntropy::default())?;
        let correct = count_correct(logits.tensor(), &self.labels)?;
        let gradients = tape.backward(&loss)?;
        self.outcome.slice_set(&loss.tensor().reshape(1)?, 0, 0)?;
        self.outcome.slice_set(&correct.reshape(1)?, 0, 1)?;
        let met = met.expect("the batch's statistics");
        let pairs = [[&estimates[0], &met.mean], [&estimates[1], &met.variance]];
        move_estimates(&pairs, 0.1, Some(loss.tensor()))?;
        let of = |leaf: &Var| gradients.get(leaf).expect("the loss depends on every parameter");
        let steps: Vec<_> =
            (0..Self::PARAMETERS).map(|index| [&parameters[index], &velocities[index], of(&leaves[index])]).collect();
        let options = Sgd { learning_rate: rate.unwrap_or(f64::NAN), momentum: 0.9, weight_decay: 5e-4 };
        let current = Current { learning_rate: &self.learning_rate, loss: loss.tensor() };
        sgd_steps(&steps, options, rate.is_none().then_some(current))
    }
}
