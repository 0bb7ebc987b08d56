//! How long one training step takes: PreAct-ResNet18 on 32x32 images (forward, backward, SGD), and each of
//! its convolutions alone.
//!
//! `cargo run --release -p tsbd-tensor --example training_step -- [width] [batch] [steps]`; the number of
//! threads is `RAYON_NUM_THREADS`. The reference on the same machine: `tools/reference/ops.py benchmark`.
//! Reported are the best and the median of all steps, in milliseconds, by the clock and in processor time (all
//! threads together, the number to look at on a busy machine; Linux only); for convolutions, GFLOP per second
//! of processor time.

use std::time::Instant;

use tsbd_tensor::{
    BatchNorm, Conv2d, CrossEntropy, Device, Result, Sgd, Statistics, Tape, Tensor, Var, memory, sgd_step,
};

/// A parameter and its velocity.
struct Parameter {
    value: Tensor,
    velocity: Tensor,
}

/// Parameters in the order in which the forward pass asks for them.
struct Network {
    width: usize,
    parameters: Vec<Parameter>,
}

fn noise(dims: &[usize], scale: f64, seed: usize) -> Result<Tensor> {
    let value = |index: usize| (((index + seed) as f64 * 0.754_877_666_246_692_8).fract() * 2. - 1.) * scale;
    let values: Vec<f32> = (0..dims.iter().product()).map(|index| value(index) as f32).collect();
    Ok(Tensor::from_vec(values, dims, &Device::Cpu)?)
}

/// The parameters of one forward pass, as leaves.
struct Pass<'a> {
    leaves: &'a [Var],
    next: usize,
}

impl Pass<'_> {
    fn parameter(&mut self) -> &Var {
        self.next += 1;
        &self.leaves[self.next - 1]
    }

    fn convolve(&mut self, x: &Var, stride: usize, residual: Option<&Var>) -> Result<Var> {
        let weight = self.parameter();
        let padding = weight.dims()[0] / 2;
        match residual {
            Some(residual) => x.conv2d_add(weight, Conv2d { stride, padding }, residual),
            None => x.conv2d(weight, None, Conv2d { stride, padding }),
        }
    }

    fn normalize(&mut self, x: &Var) -> Result<Var> {
        let (weight, bias) = (self.parameter().clone(), self.parameter().clone());
        let options = BatchNorm { statistics: Statistics::Batch, epsilon: 1e-5, relu: true };
        Ok(x.batch_norm(&weight, &bias, options)?.0)
    }
}

impl Network {
    fn new(width: usize) -> Result<Self> {
        let mut dims: Vec<Vec<usize>> = vec![vec![3, 3, 3, width]];
        let mut inputs = width;
        for (stage, &stride) in [1, 2, 2, 2].iter().enumerate() {
            let outputs = width << stage;
            for stride in [stride, 1] {
                dims.extend([vec![inputs], vec![inputs]]);
                if stride != 1 || inputs != outputs {
                    dims.push(vec![1, 1, inputs, outputs]);
                }
                dims.extend([vec![3, 3, inputs, outputs], vec![outputs], vec![outputs], vec![3, 3, outputs, outputs]]);
                inputs = outputs;
            }
        }
        dims.extend([vec![10, inputs], vec![10]]);
        let mut parameters = Vec::new();
        for (index, dims) in dims.iter().enumerate() {
            let fan_in: usize = dims[..dims.len() - 1].iter().product();
            let value = match dims.len() {
                1 => Tensor::ones(dims.as_slice(), candle_core::DType::F32, &Device::Cpu)?,
                _ => noise(dims, (1. / fan_in as f64).sqrt(), index)?,
            };
            parameters.push(Parameter { velocity: value.zeros_like()?, value });
        }
        Ok(Self { width, parameters })
    }

    fn forward(&self, leaves: &[Var], images: &Var) -> Result<Var> {
        let mut pass = Pass { leaves, next: 0 };
        let mut x = pass.convolve(images, 1, None)?;
        let mut inputs = self.width;
        for (stage, &stride) in [1, 2, 2, 2].iter().enumerate() {
            let outputs = self.width << stage;
            for stride in [stride, 1] {
                let activated = pass.normalize(&x)?;
                let shortcut =
                    if stride != 1 || inputs != outputs { pass.convolve(&activated, stride, None)? } else { x };
                let inner = pass.convolve(&activated, stride, None)?;
                let inner = pass.normalize(&inner)?;
                x = pass.convolve(&inner, 1, Some(&shortcut))?;
                inputs = outputs;
            }
        }
        let features = x.global_average_pool()?;
        let (weight, bias) = (pass.parameter().clone(), pass.parameter().clone());
        features.linear(&weight, Some(&bias))
    }

    /// One step; returns the loss and the seconds of forward, backward and update.
    fn step(&self, images: &Tensor, labels: &Tensor) -> Result<(f32, [f64; 3])> {
        let start = Instant::now();
        let tape = Tape::new();
        let leaves: Vec<Var> = self.parameters.iter().map(|parameter| tape.leaf(&parameter.value)).collect();
        let logits = self.forward(&leaves, &Var::constant(images.clone()))?;
        let loss = logits.cross_entropy(labels, CrossEntropy::default())?;
        drop(logits);
        let forward = start.elapsed().as_secs_f64();
        let gradients = tape.backward(&loss)?;
        let backward = start.elapsed().as_secs_f64() - forward;
        let options = Sgd { learning_rate: 0.01, momentum: 0.9, weight_decay: 5e-4 };
        for (parameter, leaf) in self.parameters.iter().zip(&leaves) {
            let gradient = gradients.get(leaf).expect("every parameter takes part");
            sgd_step(&parameter.value, &parameter.velocity, gradient, options)?;
        }
        let update = start.elapsed().as_secs_f64() - forward - backward;
        Ok((loss.tensor().to_scalar::<f32>()?, [forward, backward, update]))
    }
}

/// Seconds all threads of this process have spent on a processor.
fn processor_time() -> f64 {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let nanoseconds = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() / 1e9
}

/// Processor seconds of one repetition: the best of some groups, each long against the clock's resolution.
fn best(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    run()?;
    let start = processor_time();
    run()?;
    let repetitions = (0.03 / (processor_time() - start).max(1e-4)).ceil() as usize;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = processor_time();
        for _ in 0..repetitions {
            run()?;
        }
        best = best.min((processor_time() - start) / repetitions as f64);
    }
    Ok(best)
}

fn convolutions(width: usize, batch: usize) -> Result<()> {
    println!("convolution                     forward  to input  to weight   GFLOP/s");
    let mut shapes = vec![(3, width, 32, 3, 1)];
    for stage in 0..4 {
        let (channels, size) = (width << stage, 32 >> stage);
        shapes.push((channels, channels, size, 3, 1));
        if stage < 3 {
            shapes.extend([(channels, 2 * channels, size, 3, 2), (channels, 2 * channels, size, 1, 2)]);
        }
    }
    for (inputs, outputs, size, kernel, stride) in shapes {
        let x = noise(&[batch, size, size, inputs], 1., 1)?;
        let weight = noise(&[kernel, kernel, inputs, outputs], 0.1, 2)?;
        let options = Conv2d { stride, padding: kernel / 2 };
        let (x_constant, weight_constant) = (Var::constant(x.clone()), Var::constant(weight.clone()));
        let y = x_constant.conv2d(&weight_constant, None, options)?;
        let flops = 2. * y.tensor().elem_count() as f64 * (kernel * kernel * inputs) as f64;
        let forward = best(|| x_constant.conv2d(&weight_constant, None, options).map(drop))?;
        let dy = noise(y.dims(), 1., 3)?;
        let to_input = best(|| {
            let tape = Tape::new();
            let y = tape.leaf(&x).conv2d(&weight_constant, None, options)?;
            tape.backward_from(&[(&y, &dy)]).map(drop)
        })? - forward;
        let to_weight = best(|| {
            let tape = Tape::new();
            let y = x_constant.conv2d(&tape.leaf(&weight), None, options)?;
            tape.backward_from(&[(&y, &dy)]).map(drop)
        })? - forward;
        println!(
            "{kernel}x{kernel}/{stride} {inputs:3} -> {outputs:3} at {size:2}x{size:2}       {:8.1} {:8.1} {:8.1}",
            flops / forward / 1e9,
            flops / to_input / 1e9,
            flops / to_weight / 1e9
        );
    }
    Ok(())
}

fn main() -> Result<()> {
    let argument = |index: usize, default: usize| {
        std::env::args().nth(index).map_or(default, |text| text.parse().expect("arguments are whole numbers"))
    };
    let (width, batch, steps) = (argument(1, 16), argument(2, 128), argument(3, 20));
    memory::keep_freed_pages();
    let network = Network::new(width)?;
    let images = noise(&[batch, 32, 32, 3], 1., 7)?;
    let labels = Tensor::from_vec((0..batch as u32).map(|index| index % 10).collect(), batch, &Device::Cpu)?;
    let (mut times, mut processor): (Vec<(f64, [f64; 3])>, Vec<f64>) = Default::default();
    for step in 0..steps {
        let start = processor_time();
        let (loss, parts) = network.step(&images, &labels)?;
        processor.push((processor_time() - start) * 1e3);
        times.push((parts.iter().sum::<f64>() * 1e3, parts));
        if step == 0 || step + 1 == steps {
            println!("step {step}: loss {loss:.6}");
        }
    }
    processor.sort_by(f64::total_cmp);
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    let [forward, backward, update] = times[0].1.map(|seconds| seconds * 1e3);
    println!(
        "width {width}, batch {batch}: best {:.1} ms (forward {forward:.1}, backward {backward:.1}, update {update:.1}), \
         median {:.1} ms; processor: best {:.1} ms, median {:.1} ms",
        times[0].0,
        times[steps / 2].0,
        processor[0],
        processor[steps / 2],
    );
    convolutions(width, batch)
}
