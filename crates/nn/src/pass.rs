//! One way through a network: which weights, which mode, what is recorded.

use crate::module::BATCH_NORM_EPSILON;
use crate::{Architecture, Error, Layer, Network, ParameterGradients, Precision, Result, StateDict};
use indexmap::IndexMap;
use std::cell::RefCell;
use std::collections::HashMap;
use tsbd_tensor::{BatchNorm, BatchStatistics, Conv2d, DType, Gradients, Tape, Tensor, Var};

/// What batch normalisation does in a forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The batch's own statistics normalise and move the running estimates.
    Train,
    /// The batch's own statistics normalise; the running estimates stay.
    TrainKeepingStatistics,
    /// The running estimates normalise.
    Eval,
}

/// The batch statistics a pass in [`Mode::Train`] met, by batch norm: [`StateDict::absorb`] takes them.
#[derive(Debug, Clone, Default)]
pub struct Statistics(pub(crate) Vec<(String, BatchStatistics)>);

impl Statistics {
    /// Each batch norm's name and what it met, in the order of the forward pass.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &BatchStatistics)> {
        self.0.iter().map(|(name, statistics)| (name.as_str(), statistics))
    }

    /// These and then those of another forward pass.
    #[must_use]
    pub fn then(mut self, others: Statistics) -> Statistics {
        self.0.extend(others.0);
        self
    }
}

/// One forward pass: weights, mode, the tape when gradients are wanted, and the outputs to remember.
///
/// An [`Architecture`], or another [`Network`], calls its layers on it by name; stride, padding and the like come from its
/// list of modules.
pub struct Pass<'a, N: ?Sized = dyn Architecture + 'a> {
    network: &'a N,
    state: &'a StateDict,
    mode: Mode,
    precision: Precision,
    tape: Option<&'a Tape>,
    direction: Option<&'a ParameterGradients>,
    parameters: RefCell<IndexMap<String, Var>>,
    /// Tapped outputs, and how many batch norms the pass had met before each.
    taps: RefCell<HashMap<String, Option<(Var, usize)>>>,
    statistics: RefCell<Vec<(String, BatchStatistics)>>,
}

impl<'a, N: Network + ?Sized> Pass<'a, N> {
    /// A pass without gradients.
    pub fn new(network: &'a N, state: &'a StateDict, mode: Mode) -> Pass<'a, N> {
        Pass {
            network,
            state,
            mode,
            precision: Precision::F32,
            tape: None,
            direction: None,
            parameters: RefCell::default(),
            taps: RefCell::default(),
            statistics: RefCell::default(),
        }
    }

    /// Records the pass on `tape`: every parameter becomes a leaf.
    pub fn on_tape(mut self, tape: &'a Tape) -> Pass<'a, N> {
        self.tape = Some(tape);
        self
    }

    /// Lets the pass round.
    pub fn rounding_to(mut self, precision: Precision) -> Pass<'a, N> {
        self.precision = precision;
        self
    }

    /// Lets every parameter move along its entry in `direction`: the outputs have tangents ([`Var::tangent`]). What stands in
    /// for a parameter ([`Self::replacing`]) moves as its own tangent says.
    pub fn along(mut self, direction: &'a ParameterGradients) -> Pass<'a, N> {
        self.direction = Some(direction);
        self
    }

    /// Remembers the outputs with these names: a module's (`layer4.1.conv2`), a block's (`layer3`) or [`Architecture::features`].
    pub fn tapping<S: AsRef<str>>(self, names: impl IntoIterator<Item = S>) -> Pass<'a, N> {
        self.taps.borrow_mut().extend(names.into_iter().map(|name| (name.as_ref().to_owned(), None)));
        self
    }

    /// Uses `value` in place of the parameter `name`: a parameter that is itself computed, as with a mask on it.
    pub fn replacing(self, name: &str, value: Var) -> Pass<'a, N> {
        self.parameters.borrow_mut().insert(name.to_owned(), value);
        self
    }

    /// The mode of the pass.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The tapped output `name`, once the pass has been there.
    pub fn tap(&self, name: &str) -> Option<Var> {
        self.taps.borrow().get(name).cloned().flatten().map(|(value, _)| value)
    }

    /// The batch statistics that [`Mode::Train`] met on the way to the tapped output `name`: those of a pass that goes
    /// no further. To be asked for before [`Self::take_statistics`].
    pub fn statistics_before(&self, name: &str) -> Option<Statistics> {
        let (_, met) = self.taps.borrow().get(name).cloned().flatten()?;
        Some(Statistics(self.statistics.borrow().get(..met)?.to_vec()))
    }

    /// The parameter `name` as it is used in this pass.
    pub fn parameter(&self, name: &str) -> Result<Var> {
        if let Some(var) = self.parameters.borrow().get(name) {
            return Ok(var.clone());
        }
        let tensor = self.state.get(name)?;
        let var = match self.tape {
            Some(tape) => tape.leaf(tensor),
            None => Var::constant(tensor.clone()),
        };
        let var = match self.direction {
            Some(direction) => var.with_tangent(&Var::constant(direction.get(name)?.clone()))?,
            None => var,
        };
        self.parameters.borrow_mut().insert(name.to_owned(), var.clone());
        Ok(var)
    }

    /// Offers an output under `name`: it is remembered when the name was asked for. For outputs of blocks. In a pass that
    /// rounds to `bf16` on a GPU, outputs are `bf16`.
    pub fn output(&self, name: &str, value: &Var) {
        if let Some(tap) = self.taps.borrow_mut().get_mut(name) {
            *tap = Some((value.clone(), self.statistics.borrow().len()));
        }
    }

    fn is_tapped(&self, name: &str) -> bool {
        self.taps.borrow().contains_key(name)
    }

    fn layer(&self, name: &str, kind: &'static str, matches: impl Fn(&Layer) -> bool) -> Result<&'a Layer> {
        let found = self.network.modules().iter().find(|module| module.name == name);
        found.map(|module| &module.layer).filter(|layer| matches(layer)).ok_or_else(|| Error::UnknownLayer {
            architecture: self.network.name().to_owned(),
            kind,
            name: name.to_owned(),
        })
    }

    /// The parameter `name`, which `x` is multiplied by or added to: rounded if `x` is.
    fn operand(&self, name: &str, x: &Var) -> Result<Var> {
        let parameter = self.parameter(name)?;
        let is_rounded = x.tensor().dtype() == DType::BF16;
        if is_rounded { Ok(parameter.to_dtype(DType::BF16)?) } else { Ok(parameter) }
    }

    /// How the convolution `name` moves, and whether it has a bias.
    fn convolution(&self, name: &str) -> Result<(Conv2d, bool)> {
        let layer = self.layer(name, "convolution", |layer| matches!(layer, Layer::Conv2d { .. }))?;
        let &Layer::Conv2d { stride, padding, bias, .. } = layer else { unreachable!("checked above") };
        Ok((Conv2d { stride, padding, precision: self.precision }, bias))
    }

    /// The convolution `name` of `x` `[batch, height, width, in]`.
    pub fn conv(&self, name: &str, x: &Var) -> Result<Var> {
        let (options, is_biased) = self.convolution(name)?;
        let weight = self.parameter(&format!("{name}.weight"))?;
        let bias = if is_biased { Some(self.operand(&format!("{name}.bias"), x)?) } else { None };
        let y = x.conv2d(&weight, bias.as_ref(), options)?;
        self.output(name, &y);
        Ok(y)
    }

    /// The convolution `name` of `x`, plus `residual`: one pass over memory unless the convolution's own output is tapped.
    pub fn conv_add(&self, name: &str, x: &Var, residual: &Var) -> Result<Var> {
        let (options, is_biased) = self.convolution(name)?;
        if is_biased || self.is_tapped(name) {
            return Ok(self.conv(name, x)?.add(residual)?);
        }
        Ok(x.conv2d_add(&self.parameter(&format!("{name}.weight"))?, options, residual)?)
    }

    /// The batch normalisation `name` of `x` `[batch, height, width, channels]`.
    pub fn batch_norm(&self, name: &str, x: &Var) -> Result<Var> {
        let y = self.normalize(name, x, false)?;
        self.output(name, &y);
        Ok(y)
    }

    /// ReLU of the batch normalisation `name`: one pass over memory unless the normalisation's own output is tapped.
    pub fn batch_norm_relu(&self, name: &str, x: &Var) -> Result<Var> {
        if self.is_tapped(name) {
            return Ok(self.batch_norm(name, x)?.relu()?);
        }
        self.normalize(name, x, true)
    }

    fn normalize(&self, name: &str, x: &Var, relu: bool) -> Result<Var> {
        self.layer(name, "batch norm", |layer| matches!(layer, Layer::BatchNorm2d { .. }))?;
        let weight = self.parameter(&format!("{name}.weight"))?;
        let bias = self.parameter(&format!("{name}.bias"))?;
        let statistics = match self.mode {
            Mode::Train | Mode::TrainKeepingStatistics => tsbd_tensor::Statistics::Batch,
            Mode::Eval => tsbd_tensor::Statistics::Running {
                mean: self.state.get(&format!("{name}.running_mean"))?,
                variance: self.state.get(&format!("{name}.running_var"))?,
            },
        };
        let options = BatchNorm { statistics, epsilon: BATCH_NORM_EPSILON, relu };
        let (y, met) = x.batch_norm(&weight, &bias, options)?;
        if let (Mode::Train, Some(met)) = (self.mode, met) {
            self.statistics.borrow_mut().push((name.to_owned(), met));
        }
        Ok(y)
    }

    /// The linear layer `name` of `x` `[batch, in_features]`.
    pub fn linear(&self, name: &str, x: &Var) -> Result<Var> {
        self.layer(name, "linear layer", |layer| matches!(layer, Layer::Linear { .. }))?;
        let weight = self.operand(&format!("{name}.weight"), x)?;
        let bias = self.operand(&format!("{name}.bias"), x)?;
        let y = x.linear(&weight, Some(&bias))?;
        self.output(name, &y);
        Ok(y)
    }

    /// The parameters met so far and their places on the tape.
    pub(crate) fn leaves(&self) -> IndexMap<String, Var> {
        self.parameters.borrow().clone()
    }

    /// Takes the gradients of every parameter of the network out of what the backward pass of this pass's tape gave.
    ///
    /// # Errors
    /// [`Error::NoGradient`] for a parameter that the pass did not meet, or that the loss did not depend on.
    pub fn gradients(&self, gradients: &mut Gradients) -> Result<ParameterGradients> {
        gradients_of(self.state, &self.leaves(), gradients)
    }

    /// The batch statistics met in [`Mode::Train`].
    pub fn take_statistics(&self) -> Statistics {
        Statistics(self.statistics.take())
    }
}

impl Pass<'_> {
    /// The tapped output `name`, or an error that names what can be tapped.
    pub fn require_tap(&self, name: &str) -> Result<Var> {
        self.tap(name).ok_or_else(|| Error::UnknownTap {
            architecture: self.network.name().to_owned(),
            name: name.to_owned(),
            example: self.network.features().to_owned(),
        })
    }

    /// Takes the images through the network.
    pub fn forward(&self, images: &Tensor) -> Result<Var> {
        self.through(&Var::constant(images.clone()))
    }

    /// Takes images through the network that are computed themselves, or carry a tangent.
    pub fn through(&self, images: &Var) -> Result<Var> {
        let dtype = images.tensor().dtype();
        if self.precision == Precision::Bf16 && dtype == DType::F32 && images.tensor().device().is_cuda() {
            return Ok(self.network.forward(self, &images.to_dtype(DType::BF16)?)?.to_dtype(dtype)?);
        }
        self.network.forward(self, images)
    }
}

/// The gradient of every parameter of `state`, whose places on the tape are `leaves`.
pub(crate) fn gradients_of(
    state: &StateDict,
    leaves: &IndexMap<String, Var>,
    gradients: &mut Gradients,
) -> Result<ParameterGradients> {
    let by_name = state.parameters().map(|(name, _)| {
        let gradient = leaves.get(name).and_then(|leaf| gradients.take(leaf));
        Ok((name.to_owned(), gradient.ok_or_else(|| Error::NoGradient { parameter: name.to_owned() })?))
    });
    by_name.collect()
}
