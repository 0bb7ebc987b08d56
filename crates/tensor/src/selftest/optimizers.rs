//! Optimisers, and steps that are done again from a recording.

use candle_core::{DType, Device, Tensor};

use super::{Finding, List, noise};
use crate::{
    Adam, CrossEntropy, Current, Recording, Result, Sgd, Tape, Var, adam_step, amsgrad_step, move_estimates, sgd_steps,
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

    /// Steps of a linear layer: the first launched, the others done again from a recording with other inputs and rates, where
    /// that is possible; then one whose loss is not finite, which moves nothing.
    pub(super) fn recorded_step(&mut self, network: &str, [rows, inputs, outputs]: [usize; 3]) {
        const RATES: [f64; 4] = [0.5, 0.5, 0.2, 0.1];
        const OPTIONS: Sgd = Sgd { learning_rate: RATES[0], momentum: 0.9, weight_decay: 5e-4 };
        self.push("recorded_step", format!("{network}, {rows}x{inputs} to {outputs}"), move |place| {
            let labels: Vec<u32> = (0..rows).map(|row| (row * 5 % outputs) as u32).collect();
            let steps = |dtype: DType, device: &Device, is_recorded: bool| -> Result<[Tensor; 2]> {
                let at = |values: Tensor| -> Result<Tensor> { Ok(values.to_dtype(dtype)?.to_device(device)?.copy()?) };
                let batches = (2..).zip(RATES).map(|(start, rate)| Ok((at(noise(&[rows, inputs], start)?)?, rate)));
                let batches = batches.collect::<Result<Vec<_>>>()?;
                let weight = at(noise(&[outputs, inputs], 1)?)?;
                let (velocity, x) = (weight.zeros_like()?, batches[0].0.zeros_like()?);
                let labels = Tensor::new(labels.as_slice(), device)?;
                let learning_rate = Tensor::new(&[0f32], device)?;
                let step = |options: Sgd, is_current: bool| -> Result<()> {
                    let tape = Tape::new();
                    let leaf = tape.leaf(&weight);
                    let logits = Var::constant(x.clone()).linear(&leaf, None)?;
                    let loss = logits.cross_entropy(&labels, CrossEntropy::default())?;
                    let gradients = tape.backward(&loss)?;
                    let gradient = gradients.get(&leaf).expect("the loss depends on the weight");
                    let current = Current { learning_rate: &learning_rate, loss: loss.tensor() };
                    sgd_steps(&[[&weight, &velocity, gradient]], options, is_current.then_some(current))
                };
                let mut recording = None;
                for (index, (batch, rate)) in batches.iter().enumerate() {
                    x.slice_set(batch, 0, 0)?;
                    if !is_recorded || index == 0 {
                        step(Sgd { learning_rate: *rate, ..OPTIONS }, false)?;
                        continue;
                    }
                    learning_rate.slice_set(&Tensor::new(&[*rate as f32], device)?, 0, 0)?;
                    if recording.is_none() {
                        let lasting = [&weight, &velocity, &x, &labels, &learning_rate].map(Tensor::clone).to_vec();
                        let unknown = Sgd { learning_rate: f64::NAN, ..OPTIONS };
                        recording = Some(Recording::of(device, lasting, || step(unknown, true))?);
                    }
                    recording.iter().try_for_each(Recording::replay)?;
                }
                if let Some(recording) = recording {
                    x.slice_set(&(&batches[0].0 * f64::NAN)?, 0, 0)?;
                    recording.replay()?;
                }
                Ok([weight, velocity])
            };
            let expected = steps(DType::F64, &Device::Cpu, false)?;
            let found = steps(place.dtype, &place.device, Recording::is_possible(&place.device)?)?;
            let pairs = ["weight", "velocity"].into_iter().zip(found.iter().zip(&expected));
            pairs.map(|(what, (found, expected))| Finding::of(what, found, expected)).collect()
        });
    }
}
