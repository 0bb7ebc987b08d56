//! Losses of classes, of bits and of values.

use candle_core::{DType, Tensor, WithDType};

use crate::error::{Error, Result};
use crate::kernels::loss;
use crate::operand::{Operand, by_element, exact, on_gpu, tensor};
use crate::tape::{Backward, Var};

/// Options of [`Var::cross_entropy`] and [`Var::cross_entropy_per_sample`].
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct CrossEntropy {
    /// Share of the target spread evenly over all classes, in `[0, 1]`; 0 is the plain loss. As PyTorch's
    /// `label_smoothing`.
    pub label_smoothing: f64,
}

impl Var {
    /// The mean over the batch of the softmax cross-entropy of `self: [n, classes]` with
    /// `labels: [n]` (`u32`): a scalar (shape `[]`). On a GPU a label that is no class makes it not a number, where the CPU
    /// refuses it.
    pub fn cross_entropy(&self, labels: &Tensor, options: CrossEntropy) -> Result<Var> {
        const OPERATION: &str = "cross_entropy";
        let smoothing = options.label_smoothing;
        let [rows, classes] = check(OPERATION, self.tensor(), labels, smoothing)?;
        on_gpu!(self.tensor(), gpu => super::cuda::cross_entropy(&gpu, self, labels, smoothing, false));
        check_labels(OPERATION, labels, classes)?;
        let losses = losses(OPERATION, self.tensor(), labels, classes, smoothing)?;
        let mean = losses.iter().sum::<f64>() / rows as f64;
        let value = by_element!(OPERATION, "logits", self.tensor(), T => tensor(vec![mean as T], &[]))?;
        let backward = || -> Backward {
            let (node, logits, labels) = (self.node(), self.tensor().clone(), labels.clone());
            Box::new(move |gradient, flow| match node {
                Some(node) => flow.add(node, logits_gradient(&gradient, &logits, &labels, smoothing)?),
                None => Ok(()),
            })
        };
        Var::computed_with_tangent(OPERATION, value, &[self], backward, || {
            self.tangent().map(|tangent| cross_entropy_tangent(&self.primal(), tangent, labels, smoothing)).transpose()
        })
    }

    /// The softmax cross-entropy of every row of `self: [n, classes]` with `labels: [n]` (`u32`): `[n]`.
    pub fn cross_entropy_per_sample(&self, labels: &Tensor, options: CrossEntropy) -> Result<Var> {
        const OPERATION: &str = "cross_entropy_per_sample";
        let smoothing = options.label_smoothing;
        let [rows, classes] = check(OPERATION, self.tensor(), labels, smoothing)?;
        on_gpu!(self.tensor(), gpu => super::cuda::cross_entropy(&gpu, self, labels, smoothing, true));
        check_labels(OPERATION, labels, classes)?;
        let losses = losses(OPERATION, self.tensor(), labels, classes, smoothing)?;
        let value = by_element!(OPERATION, "logits", self.tensor(), T => {
            tensor(losses.into_iter().map(|loss| loss as T).collect(), &[rows])
        })?;
        Var::computed(OPERATION, value, &[self], || {
            let (node, logits, labels) = (self.node(), self.tensor().clone(), labels.clone());
            Box::new(move |gradient, flow| match node {
                Some(node) => flow.add(node, logits_gradient(&gradient, &logits, &labels, smoothing)?),
                None => Ok(()),
            })
        })
    }

    /// The mean over all elements of `(self - target)²`: a scalar (shape `[]`). Both may want gradients.
    pub fn mean_squared_error(&self, target: &Var) -> Result<Var> {
        let difference = self.sub(target)?;
        difference.mul(&difference)?.mean()
    }

    /// The mean over all elements of the binary cross-entropy of the logits `self` with `targets` of the same shape and
    /// element type, each in `[0, 1]`: a scalar (shape `[]`). PyTorch's `binary_cross_entropy_with_logits`. On a GPU a target
    /// that is no probability makes it not a number, where the CPU refuses it.
    pub fn binary_cross_entropy(&self, targets: &Tensor) -> Result<Var> {
        const OPERATION: &str = "binary_cross_entropy";
        let logits = self.tensor();
        exact(OPERATION, "targets", targets, logits.dims(), "the shape of the logits")?;
        if logits.elem_count() == 0 {
            return Err(Error::shape(OPERATION, "self", "at least one element", logits.dims()));
        }
        Var::computed(OPERATION, mean_of_bits(OPERATION, logits, targets)?, &[self], || {
            let (node, logits, targets) = (self.node(), logits.clone(), targets.clone());
            Box::new(move |gradient, flow| match node {
                Some(node) => flow.add(node, bits_gradient(OPERATION, &gradient, &logits, &targets)?),
                None => Ok(()),
            })
        })
    }
}

/// The mean cross-entropy of bits.
fn mean_of_bits(operation: &'static str, logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    on_gpu!(logits, gpu => super::cuda::binary_cross_entropy(&gpu, logits, targets));
    by_element!(operation, "logits", logits, T => {
        let wanted = Operand::<T>::read(operation, "targets", targets)?;
        if let Some(wrong) = wanted.iter().find(|target| !(0. ..=1.).contains(*target)) {
            return Err(Error::value(operation, "targets", wrong, "a target is a probability; use 0 to 1"));
        }
        let sum = loss::binary_cross_entropy(&Operand::<T>::read(operation, "logits", logits)?, &wanted);
        tensor(vec![(sum / wanted.len() as f64) as T], &[])
    })
}

fn bits_gradient(operation: &'static str, gradient: &Tensor, logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    on_gpu!(logits, gpu => super::cuda::binary_cross_entropy_backward(&gpu, gradient, logits, targets));
    by_element!(operation, "logits", logits, T => {
        let values = Operand::<T>::read(operation, "logits", logits)?;
        let wanted = Operand::<T>::read(operation, "targets", targets)?;
        let factor = Operand::<T>::read(operation, "gradient", gradient)?[0].to_f64() / values.len() as f64;
        tensor(loss::binary_cross_entropy_backward(&values, &wanted, factor), logits.dims())
    })
}

/// The gradient with respect to the logits, of the mean loss for a scalar `gradient`, of each loss for `gradient: [n]`.
fn logits_gradient(gradient: &Tensor, logits: &Tensor, labels: &Tensor, smoothing: f64) -> Result<Tensor> {
    const OPERATION: &str = "cross_entropy backward";
    let (rows, classes) = logits.dims2()?;
    let of_mean = gradient.rank() == 0;
    by_element!(OPERATION, "logits", logits, T => {
        let gradient = Operand::<T>::read(OPERATION, "gradient", gradient)?;
        let factor = |row: usize| if of_mean { gradient[0].to_f64() / rows as f64 } else { gradient[row].to_f64() };
        let values = Operand::<T>::read(OPERATION, "logits", logits)?;
        let labels = Operand::<u32>::read(OPERATION, "labels", labels)?;
        tensor(loss::cross_entropy_backward(&values, &labels, classes, smoothing, factor), &[rows, classes])
    })
}

/// How the mean cross-entropy moves when the logits move along `tangent`: the mean over the rows of
/// `⟨softmax - target, tangent⟩`, itself differentiable with respect to both.
fn cross_entropy_tangent(logits: &Var, tangent: &Var, labels: &Tensor, smoothing: f64) -> Result<Var> {
    const OPERATION: &str = "cross_entropy tangent";
    let (rows, classes) = logits.tensor().dims2()?;
    let value = by_element!(OPERATION, "logits", logits.tensor(), T => {
        let values = Operand::<T>::read(OPERATION, "logits", logits.tensor())?;
        let slopes = Operand::<T>::read(OPERATION, "tangent", tangent.tensor())?;
        let labels = Operand::<u32>::read(OPERATION, "labels", labels)?;
        let sum: f64 = loss::cross_entropy_tangent(&values, &slopes, &labels, classes, smoothing).into_iter().sum();
        tensor(vec![(sum / rows as f64) as T], &[])
    })?;
    Var::computed(OPERATION, value, &[logits, tangent], || {
        let (logits_node, tangent_node) = (logits.node(), tangent.node());
        let (logits, tangent, labels) = (logits.tensor().clone(), tangent.tensor().clone(), labels.clone());
        Box::new(move |gradient, flow| {
            if let Some(node) = tangent_node {
                flow.add(node, logits_gradient(&gradient, &logits, &labels, smoothing)?)?;
            }
            let Some(node) = logits_node else { return Ok(()) };
            let curvature = by_element!(OPERATION, "logits", logits, T => {
                let factor = Operand::<T>::read(OPERATION, "gradient", &gradient)?[0].to_f64() / rows as f64;
                let values = Operand::<T>::read(OPERATION, "logits", &logits)?;
                let slopes = Operand::<T>::read(OPERATION, "tangent", &tangent)?;
                tensor(loss::cross_entropy_curvature(&values, &slopes, classes, factor), &[rows, classes])
            })?;
            flow.add(node, curvature)
        })
    })
}

fn losses(
    operation: &'static str,
    logits: &Tensor,
    labels: &Tensor,
    classes: usize,
    smoothing: f64,
) -> Result<Vec<f64>> {
    let labels = Operand::<u32>::read(operation, "labels", labels)?;
    by_element!(operation, "logits", logits, T => {
        let logits = Operand::<T>::read(operation, "logits", logits)?;
        Ok(loss::cross_entropy(&logits, &labels, classes, smoothing))
    })
}

/// Checks shapes and smoothing; returns rows and classes.
fn check(operation: &'static str, logits: &Tensor, labels: &Tensor, smoothing: f64) -> Result<[usize; 2]> {
    if !(0. ..=1.).contains(&smoothing) {
        return Err(Error::value(operation, "label_smoothing", smoothing, "it is a share; use 0 to 1"));
    }
    let &[rows, classes] = logits.dims() else {
        return Err(Error::shape(operation, "logits", "[batch, classes]", logits.dims()));
    };
    if rows * classes == 0 {
        return Err(Error::shape(operation, "logits", "[batch, classes], none of them zero", logits.dims()));
    }
    if labels.dtype() != DType::U32 {
        let (argument, expected) = ("labels", "U32".to_owned());
        return Err(Error::DType { operation, argument, expected, found: labels.dtype() });
    }
    exact(operation, "labels", labels, &[rows], "one label per row of the logits")?;
    Ok([rows, classes])
}

/// Refuses labels that are no class.
fn check_labels(operation: &'static str, labels: &Tensor, classes: usize) -> Result<()> {
    let labels = Operand::<u32>::read(operation, "labels", labels)?;
    match labels.iter().position(|&label| label as usize >= classes) {
        Some(row) => Err(Error::Label { operation, row, label: labels[row], classes }),
        None => Ok(()),
    }
}
