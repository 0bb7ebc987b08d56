//! What training a network asks of the operations: every distinct operation of PreAct-ResNet18 with the shapes it has
//! there, ready to be timed one at a time.
//!
//! `tsbd bench ops` and the benchmark `operations` of this crate measure this list. It calls nothing but what networks
//! call too. A whole training step is not here: `tsbd bench train` measures it.
//!
//! ```
//! use tsbd_tensor::workload::NetworkShape;
//!
//! # fn main() -> tsbd_tensor::Result<()> {
//! let shape = NetworkShape { width: 4, batch: 2, image_size: 8, classes: 10 };
//! for workload in shape.workloads() {
//!     let timer = workload.prepare()?;
//!     println!("{} {}: {:?}", workload.operation(), workload.pass(), timer.time()?);
//! }
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};

use crate::{BatchNorm, Conv2d, CrossEntropy, Result, Sgd, Statistics, Tape, Var, sgd_step};

/// The sizes that decide every shape in a PreAct-ResNet18.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkShape {
    /// Channels after the first convolution; they double from stage to stage.
    pub width: usize,
    /// Images per step.
    pub batch: usize,
    /// Height and width of the images in pixels.
    pub image_size: usize,
    /// Columns of the logits.
    pub classes: usize,
}

/// One operation in one direction at one shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    operation: Operation,
    pass: Pass,
    batch: usize,
    calls: usize,
}

/// Which part of a training step a workload belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Inputs to output, nothing recorded.
    Forward,
    /// The gradient of the output to that of the input alone.
    InputGradient,
    /// The gradient of the output to that of the weight alone.
    WeightGradient,
    /// The gradient of the output to those of all inputs.
    Backward,
    /// Parameters changed by their gradients.
    Update,
}

/// What an operation costs by the nominal count, whatever algorithm is used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cost {
    /// Floating-point operations of the direct sum of products, two for each product: what limits convolutions and
    /// the linear layer.
    Flops(f64),
    /// Bytes read and written when each large tensor is passed over as often as the operation alone has to: what
    /// limits everything else.
    Bytes(f64),
}

/// A workload whose inputs are made.
pub struct Timer(Box<dyn Fn() -> Result<Duration>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    /// Padded by half its kernel, without bias, on square images of `size` pixels.
    Convolution {
        kernel: usize,
        stride: usize,
        inputs: usize,
        outputs: usize,
        size: usize,
    },
    /// With the batch's statistics and the ReLU that follows.
    BatchNormRelu {
        channels: usize,
        size: usize,
    },
    /// The same with given statistics.
    BatchNormReluEvaluation {
        channels: usize,
        size: usize,
    },
    GlobalAveragePool {
        channels: usize,
        size: usize,
    },
    Linear {
        inputs: usize,
        outputs: usize,
    },
    CrossEntropy {
        classes: usize,
    },
    /// Of one 3x3 convolution's weight.
    Sgd {
        inputs: usize,
        outputs: usize,
    },
}

impl NetworkShape {
    /// Every distinct operation of the network, in the order of the forward pass.
    pub fn workloads(self) -> Vec<Workload> {
        let NetworkShape { width, batch, image_size, classes } = self;
        let mut workloads = vec![];
        let mut add = |operation, passes: &[(Pass, usize)]| {
            workloads.extend(passes.iter().map(|&(pass, calls)| Workload { operation, pass, batch, calls }));
        };
        let all = |calls| [(Pass::Forward, calls), (Pass::InputGradient, calls), (Pass::WeightGradient, calls)];
        let convolution =
            |kernel, stride, inputs, outputs, size| Operation::Convolution { kernel, stride, inputs, outputs, size };
        // The images themselves need a gradient only where a method optimises them.
        let stem = [(Pass::Forward, 1), (Pass::InputGradient, 0), (Pass::WeightGradient, 1)];
        add(convolution(3, 1, 3, width, image_size), &stem);
        let (mut channels, mut size) = (width, image_size);
        for stage in 0..4 {
            if stage > 0 {
                add(convolution(3, 2, channels, 2 * channels, size), &all(1));
                add(convolution(1, 2, channels, 2 * channels, size), &all(1));
                (channels, size) = (2 * channels, size.div_ceil(2));
            }
            // Two blocks of two convolutions; from the second stage on, the first of them has stride 2 and stands above.
            add(convolution(3, 1, channels, channels, size), &all(if stage == 0 { 4 } else { 3 }));
            // One for each convolution's input: the first stage's output is normalised by the second stage, and so on.
            let calls = [5, 4, 4, 3][stage];
            add(Operation::BatchNormRelu { channels, size }, &[(Pass::Forward, calls), (Pass::Backward, calls)]);
            add(Operation::BatchNormReluEvaluation { channels, size }, &[(Pass::Forward, 0)]);
        }
        add(Operation::GlobalAveragePool { channels, size }, &[(Pass::Forward, 1), (Pass::Backward, 1)]);
        add(Operation::Linear { inputs: channels, outputs: classes }, &all(1));
        add(Operation::CrossEntropy { classes }, &[(Pass::Forward, 1), (Pass::Backward, 1)]);
        add(Operation::Sgd { inputs: channels, outputs: channels }, &[(Pass::Update, 3)]);
        workloads
    }
}

impl Workload {
    /// The operation in words, without sizes: `conv 3x3 stride 2`.
    pub fn operation(&self) -> String {
        match self.operation {
            Operation::Convolution { kernel, stride, .. } => format!("conv {kernel}x{kernel} stride {stride}"),
            Operation::BatchNormRelu { .. } => "batch norm + relu".to_owned(),
            Operation::BatchNormReluEvaluation { .. } => "batch norm + relu, evaluation".to_owned(),
            Operation::GlobalAveragePool { .. } => "global average pool".to_owned(),
            Operation::Linear { .. } => "linear".to_owned(),
            Operation::CrossEntropy { .. } => "cross-entropy".to_owned(),
            Operation::Sgd { .. } => "sgd step".to_owned(),
        }
    }

    /// The sizes without the batch: channels, then the input's height and width.
    pub fn shape(&self) -> String {
        match self.operation {
            Operation::Convolution { inputs, outputs, size, .. } => format!("{inputs} to {outputs}, {size}x{size}"),
            Operation::BatchNormRelu { channels, size }
            | Operation::BatchNormReluEvaluation { channels, size }
            | Operation::GlobalAveragePool { channels, size } => format!("{channels}, {size}x{size}"),
            Operation::Linear { inputs, outputs } => format!("{inputs} to {outputs}"),
            Operation::CrossEntropy { classes } => format!("{classes}"),
            Operation::Sgd { inputs, outputs } => format!("3x3x{inputs}x{outputs}"),
        }
    }

    /// In which direction.
    pub fn pass(&self) -> Pass {
        self.pass
    }

    /// How often a training step does this, of networks with plain cross-entropy; 0 for what it does not need. Of the
    /// optimiser's step only the largest parameters are in the list.
    pub fn calls_per_step(&self) -> usize {
        self.calls
    }

    /// The nominal cost.
    pub fn cost(&self) -> Cost {
        let batch = self.batch as f64;
        let floats = |count: f64| Cost::Bytes(count * size_of::<f32>() as f64);
        let pixels = |size: usize| (size * size) as f64;
        match self.operation {
            Operation::Convolution { kernel, stride, inputs, outputs, size } => {
                let products = batch * pixels(size.div_ceil(stride)) * (kernel * kernel * inputs * outputs) as f64;
                Cost::Flops(2. * products)
            }
            Operation::Linear { inputs, outputs } => Cost::Flops(2. * batch * (inputs * outputs) as f64),
            // Forward: x for its moments, x and y to apply them. Backward: x and dy for the sums, x, dy and dx.
            Operation::BatchNormRelu { channels, size } => {
                let passes = if self.pass == Pass::Forward { 3. } else { 5. };
                floats(passes * batch * channels as f64 * pixels(size))
            }
            Operation::BatchNormReluEvaluation { channels, size } => {
                floats(2. * batch * channels as f64 * pixels(size))
            }
            Operation::GlobalAveragePool { channels, size } => floats(batch * channels as f64 * (pixels(size) + 1.)),
            Operation::CrossEntropy { classes } => {
                let passes = if self.pass == Pass::Forward { 1. } else { 2. };
                floats(batch * (passes * classes as f64 + 1.))
            }
            // Parameter, velocity and gradient are read, the first two written.
            Operation::Sgd { inputs, outputs } => floats(5. * (9 * inputs * outputs) as f64),
        }
    }

    /// Makes the inputs: repeatable numbers, the same on every machine.
    ///
    /// # Errors
    /// If a size of the network is zero.
    pub fn prepare(&self) -> Result<Timer> {
        let Workload { operation, pass, batch, .. } = *self;
        match operation {
            Operation::Convolution { kernel, stride, inputs, outputs, size } => {
                let options = Conv2d { stride, padding: kernel / 2, ..Conv2d::default() };
                let x = noise(&[batch, size, size, inputs], 1.)?;
                let weight = noise(&[kernel, kernel, inputs, outputs], 0.1)?;
                timer(pass, [x, weight], move |[x, weight]| x.conv2d(weight, None, options))
            }
            Operation::Linear { inputs, outputs } => {
                let (x, weight) = (noise(&[batch, inputs], 1.)?, noise(&[outputs, inputs], 0.1)?);
                timer(pass, [x, weight], |[x, weight]| x.linear(weight, None))
            }
            Operation::BatchNormRelu { channels, size } => {
                let [weight, bias] = [1., 0.].map(|value| constant(channels, value));
                let options = BatchNorm { statistics: Statistics::Batch, epsilon: 1e-5, relu: true };
                let x = noise(&[batch, size, size, channels], 1.)?;
                timer(pass, [x, weight?, bias?], move |[x, weight, bias]| Ok(x.batch_norm(weight, bias, options)?.0))
            }
            Operation::BatchNormReluEvaluation { channels, size } => {
                let [weight, bias, mean, variance] = [1., 0., 0., 1.].map(|value| constant(channels, value));
                let (mean, variance) = (mean?, variance?);
                let x = noise(&[batch, size, size, channels], 1.)?;
                timer(pass, [x, weight?, bias?], move |[x, weight, bias]| {
                    let statistics = Statistics::Running { mean: &mean, variance: &variance };
                    Ok(x.batch_norm(weight, bias, BatchNorm { statistics, epsilon: 1e-5, relu: true })?.0)
                })
            }
            Operation::GlobalAveragePool { channels, size } => {
                let x = noise(&[batch, size, size, channels], 1.)?;
                timer(pass, [x], |[x]| x.global_average_pool())
            }
            Operation::CrossEntropy { classes } => {
                let labels = (0..batch).map(|row| (row % classes.max(1)) as u32).collect();
                let labels = Tensor::from_vec(labels, batch, &Device::Cpu)?;
                let logits = noise(&[batch, classes], 1.)?;
                timer(pass, [logits], move |[x]| x.cross_entropy(&labels, CrossEntropy::default()))
            }
            Operation::Sgd { inputs, outputs } => {
                let dims = [3, 3, inputs, outputs];
                let (parameter, gradient) = (noise(&dims, 0.1)?, noise(&dims, 1e-3)?);
                let velocity = gradient.zeros_like()?;
                // So slow that the parameter stays what it is, however often it is timed.
                let options = Sgd { learning_rate: 1e-9, momentum: 0.9, weight_decay: 5e-4 };
                Ok(Timer(Box::new(move || timed(|| sgd_step(&parameter, &velocity, &gradient, options)))))
            }
        }
    }
}

impl Timer {
    /// Does it once. Only the operation itself is timed, not the forward pass that a gradient needs first, nor that
    /// its result is freed.
    pub fn time(&self) -> Result<Duration> {
        (self.0)()
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Timer").finish_non_exhaustive()
    }
}

impl fmt::Display for Pass {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Pass::Forward => "forward",
            Pass::InputGradient => "input gradient",
            Pass::WeightGradient => "weight gradient",
            Pass::Backward => "backward",
            Pass::Update => "update",
        })
    }
}

/// Times `forward` of constants, or its backward pass where only the inputs that `pass` wants are on the tape.
fn timer<const N: usize>(
    pass: Pass,
    inputs: [Tensor; N],
    forward: impl Fn(&[Var; N]) -> Result<Var> + 'static,
) -> Result<Timer> {
    if pass == Pass::Forward {
        let inputs = inputs.map(Var::constant);
        return Ok(Timer(Box::new(move || timed(|| forward(&inputs)))));
    }
    let output = forward(&inputs.clone().map(Var::constant))?;
    let seed = noise(output.dims(), 1.)?;
    let wanted = move |position: usize| match pass {
        Pass::InputGradient => position == 0,
        Pass::WeightGradient => position == 1,
        _ => true,
    };
    Ok(Timer(Box::new(move || {
        let tape = Tape::new();
        let leaves: [Var; N] = std::array::from_fn(|position| match wanted(position) {
            true => tape.leaf(&inputs[position]),
            false => Var::constant(inputs[position].clone()),
        });
        let output = forward(&leaves)?;
        timed(|| tape.backward_from(&[(&output, &seed)]))
    })))
}

fn timed<T>(run: impl FnOnce() -> Result<T>) -> Result<Duration> {
    let begin = Instant::now();
    let result = run()?;
    let duration = begin.elapsed();
    drop(result);
    Ok(duration)
}

/// Numbers spread evenly over `-scale..scale` in no visible order (multiples of a quadratic irrational).
fn noise(dims: &[usize], scale: f64) -> Result<Tensor> {
    let value = |index: usize| ((index as f64 * 0.754_877_666_246_692_8).fract() * 2. - 1.) * scale;
    let values: Vec<f32> = (0..dims.iter().product()).map(|index| value(index) as f32).collect();
    Ok(Tensor::from_vec(values, dims, &Device::Cpu)?)
}

fn constant(channels: usize, value: f64) -> Result<Tensor> {
    Ok(Tensor::full(value as f32, channels, &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_is_listed_once_and_can_be_timed() {
        let workloads = NetworkShape { width: 4, batch: 3, image_size: 13, classes: 5 }.workloads();
        for (position, workload) in workloads.iter().enumerate() {
            assert!(!workloads[..position].contains(workload), "{workload:?} is there twice");
            let timer = workload.prepare().unwrap_or_else(|error| panic!("{workload:?}: {error}"));
            for _ in 0..2 {
                timer.time().unwrap_or_else(|error| panic!("{workload:?}: {error}"));
            }
        }
    }

    #[test]
    fn the_convolutions_of_a_step_add_up_to_those_of_the_network() {
        let workloads = NetworkShape { width: 64, batch: 1, image_size: 32, classes: 10 }.workloads();
        let flops = |pass| -> f64 {
            let of_pass = workloads.iter().filter(|workload| workload.pass() == pass);
            let total = of_pass.map(|workload| match (workload.operation, workload.cost()) {
                (Operation::Convolution { .. }, Cost::Flops(flops)) => flops * workload.calls_per_step() as f64,
                _ => 0.,
            });
            total.sum()
        };
        // By hand, in units of 2·32²·64·64·9 / 1024 multiply-adds per 3x3 convolution of any stage with stride 1
        // (channels double as pixels quarter): 4 + 3·3, half of it for each of three with stride 2, a ninth of that
        // half for their shortcuts, and 3/64 for the first.
        let unit = 2. * 1024. * 64. * 64. * 9.;
        let expected = unit * (4. + 9. + 3. * 0.5 + 3. * 0.5 / 9. + 3. / 64.);
        assert!((flops(Pass::Forward) / expected - 1.).abs() < 1e-12);
        assert!((flops(Pass::WeightGradient) / expected - 1.).abs() < 1e-12);
        assert!((flops(Pass::InputGradient) / (expected - unit * 3. / 64.) - 1.).abs() < 1e-12);
    }

    #[test]
    fn a_gradient_is_timed_with_its_own_leaf_alone() {
        // What the tape asks for decides what a backward pass computes: an input without a leaf costs nothing.
        let seen = std::rc::Rc::new(std::cell::Cell::new([false; 2]));
        for (pass, expected) in [
            (Pass::Forward, [false, false]),
            (Pass::InputGradient, [true, false]),
            (Pass::WeightGradient, [false, true]),
            (Pass::Backward, [true, true]),
        ] {
            let noted = std::rc::Rc::clone(&seen);
            let inputs = [noise(&[2, 3], 1.).unwrap(), noise(&[2, 3], 1.).unwrap()];
            let timer = timer(pass, inputs, move |[a, b]| {
                noted.set([a.is_tracked(), b.is_tracked()]);
                a.mul(b)
            });
            timer.unwrap().time().unwrap();
            assert_eq!(seen.get(), expected, "{pass}");
        }
    }
}
