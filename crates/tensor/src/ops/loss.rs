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

/// What becomes of the losses of a batch, as PyTorch's `reduction`.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Reduction {
    Mean,
    Nothing,
}

impl Var {
    /// The mean over the batch of the softmax cross-entropy of `self: [n, classes]` with
    /// `labels: [n]` (`u32`): a scalar (shape `[]`). On a GPU a label that is no class makes it not a number, where the CPU
    /// refuses it.
    pub fn cross_entropy(&self, labels: &Tensor, options: CrossEntropy) -> Result<Var> {
        cross_entropy("cross_entropy", self, labels, options, Reduction::Mean)
    }

    /// The softmax cross-entropy of every row of `self: [n, classes]` with `labels: [n]` (`u32`): `[n]`.
    pub fn cross_entropy_per_sample(&self, labels: &Tensor, options: CrossEntropy) -> Result<Var> {
        cross_entropy("cross_entropy_per_sample", self, labels, options, Reduction::Nothing)
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

/// The class with the largest logit for every row of `logits: [n, classes]`: the first of equals, as PyTorch's argmax; what is
/// not a number is larger than all that is.
pub fn predicted_classes(logits: &Tensor) -> Result<Vec<u32>> {
    let (rows, classes) = logits.dims2()?;
    let values = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok((0..rows).map(|row| loss::largest(&values[row * classes..][..classes]) as u32).collect())
}

/// Of how many rows of `logits: [n, classes]` the [predicted class](predicted_classes) is that of `labels: [n]` (`u32`): one
/// `f32`, shape `[]`, where the logits are. To count more than 2^24 rows, count twice.
pub fn count_correct(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    const OPERATION: &str = "count_correct";
    check(OPERATION, logits, labels, 0.)?;
    on_gpu!(logits, gpu => super::cuda::count_correct(&gpu, logits, labels));
    let labels = Operand::<u32>::read(OPERATION, "labels", labels)?;
    let predicted = predicted_classes(logits)?;
    let correct = predicted.iter().zip(labels.iter()).filter(|(predicted, label)| predicted == label).count();
    tensor(vec![correct as f32], &[])
}

fn cross_entropy(
    operation: &'static str,
    logits: &Var,
    labels: &Tensor,
    options: CrossEntropy,
    reduction: Reduction,
) -> Result<Var> {
    let smoothing = options.label_smoothing;
    let [rows, classes] = check(operation, logits.tensor(), labels, smoothing)?;
    let value = losses(operation, logits.tensor(), labels, [rows, classes], smoothing, reduction)?;
    let backward = || -> Backward {
        let (node, logits, labels) = (logits.node(), logits.tensor().clone(), labels.clone());
        Box::new(move |gradient, flow| match node {
            Some(node) => flow.add(node, logits_gradient(&gradient, &logits, &labels, smoothing)?),
            None => Ok(()),
        })
    };
    Var::computed_with_tangent(operation, value, &[logits], backward, || match (logits.tangent(), reduction) {
        (Some(tangent), Reduction::Mean) => {
            cross_entropy_tangent(&logits.primal(), tangent, labels, smoothing).map(Some)
        }
        _ => Ok(None),
    })
}

/// The losses, `[rows]`, or their mean, `[]`.
fn losses(
    operation: &'static str,
    logits: &Tensor,
    labels: &Tensor,
    [rows, classes]: [usize; 2],
    smoothing: f64,
    reduction: Reduction,
) -> Result<Tensor> {
    on_gpu!(logits, gpu => super::cuda::cross_entropy(&gpu, operation, logits, labels, smoothing, reduction));
    check_labels(operation, labels, classes)?;
    let labels = Operand::<u32>::read(operation, "labels", labels)?;
    by_element!(operation, "logits", logits, T => {
        let losses = loss::cross_entropy(&Operand::<T>::read(operation, "logits", logits)?, &labels, classes, smoothing);
        match reduction {
            Reduction::Mean => tensor(vec![(losses.iter().sum::<f64>() / rows as f64) as T], &[]),
            Reduction::Nothing => tensor(losses.into_iter().map(|loss| loss as T).collect(), &[rows]),
        }
    })
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
    on_gpu!(logits, gpu => super::cuda::cross_entropy_backward(&gpu, OPERATION, gradient, logits, labels, smoothing));
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

const TANGENT: &str = "cross_entropy tangent";

/// How the mean cross-entropy moves when the logits move along `tangent`: the mean over the rows of
/// `⟨softmax - target, tangent⟩`, itself differentiable with respect to both.
fn cross_entropy_tangent(logits: &Var, tangent: &Var, labels: &Tensor, smoothing: f64) -> Result<Var> {
    let value = slope(logits.tensor(), tangent.tensor(), labels, smoothing)?;
    Var::computed(TANGENT, value, &[logits, tangent], || {
        let (logits_node, tangent_node) = (logits.node(), tangent.node());
        let (logits, tangent, labels) = (logits.tensor().clone(), tangent.tensor().clone(), labels.clone());
        Box::new(move |gradient, flow| {
            if let Some(node) = tangent_node {
                flow.add(node, logits_gradient(&gradient, &logits, &labels, smoothing)?)?;
            }
            match logits_node {
                Some(node) => flow.add(node, curvature(&gradient, &logits, &tangent)?),
                None => Ok(()),
            }
        })
    })
}

fn slope(logits: &Tensor, tangent: &Tensor, labels: &Tensor, smoothing: f64) -> Result<Tensor> {
    on_gpu!(logits, gpu => super::cuda::curvature::slope(&gpu, TANGENT, [logits, tangent], labels, smoothing));
    let (rows, classes) = logits.dims2()?;
    by_element!(TANGENT, "logits", logits, T => {
        let values = Operand::<T>::read(TANGENT, "logits", logits)?;
        let slopes = Operand::<T>::read(TANGENT, "tangent", tangent)?;
        let labels = Operand::<u32>::read(TANGENT, "labels", labels)?;
        let sum: f64 = loss::cross_entropy_tangent(&values, &slopes, &labels, classes, smoothing).into_iter().sum();
        tensor(vec![(sum / rows as f64) as T], &[])
    })
}

/// `gradient` times the Hessian of the mean cross-entropy times `tangent`.
fn curvature(gradient: &Tensor, logits: &Tensor, tangent: &Tensor) -> Result<Tensor> {
    on_gpu!(logits, gpu => super::cuda::curvature::curvature(&gpu, TANGENT, gradient, [logits, tangent]));
    let (rows, classes) = logits.dims2()?;
    by_element!(TANGENT, "logits", logits, T => {
        let factor = Operand::<T>::read(TANGENT, "gradient", gradient)?[0].to_f64() / rows as f64;
        let values = Operand::<T>::read(TANGENT, "logits", logits)?;
        let slopes = Operand::<T>::read(TANGENT, "tangent", tangent)?;
        tensor(loss::cross_entropy_curvature(&values, &slopes, classes, factor), &[rows, classes])
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
