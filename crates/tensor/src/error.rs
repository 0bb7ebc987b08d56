//! What can go wrong in an operation, said with the operation, the argument and what was expected.

use candle_core::DType;

/// The result of an operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An operation was asked for something it cannot do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A GPU's library of convolutions has no algorithm for one.
    #[error("cuDNN has no algorithm, {pass}, for {geometry}")]
    NoAlgorithm {
        /// Which pass.
        pass: &'static str,
        /// The convolution's sizes.
        geometry: String,
    },
    /// An argument has the wrong shape.
    #[error("{operation}: `{argument}` has shape {found:?}, expected {expected}")]
    Shape {
        /// The operation, as the method is called.
        operation: &'static str,
        /// The argument, as the parameter is called.
        argument: &'static str,
        /// What would have been right.
        expected: String,
        /// The shape that was given.
        found: Vec<usize>,
    },
    /// An argument has the wrong element type.
    #[error("{operation}: `{argument}` has element type {found:?}, expected {expected}; convert it with `to_dtype`")]
    DType {
        /// The operation, as the method is called.
        operation: &'static str,
        /// The argument, as the parameter is called.
        argument: &'static str,
        /// What would have been right.
        expected: String,
        /// The element type that was given.
        found: DType,
    },
    /// An argument is a strided view; kernels read contiguous memory only.
    #[error(
        "{operation}: `{argument}` (shape {dims:?}, strides {strides:?}) is not contiguous; call `contiguous()` on it"
    )]
    NotContiguous {
        /// The operation, as the method is called.
        operation: &'static str,
        /// The argument, as the parameter is called.
        argument: &'static str,
        /// Its shape.
        dims: Vec<usize>,
        /// Its strides, in elements.
        strides: Vec<usize>,
    },
    /// An argument lives on a device this operation has no kernel for.
    #[error("{operation}: `{argument}` is on {device}, but this operation runs on the CPU; move it with `to_device`")]
    Device {
        /// The operation, as the method is called.
        operation: &'static str,
        /// The argument, as the parameter is called.
        argument: &'static str,
        /// Where it is.
        device: String,
    },
    /// An argument is not where the first one is.
    #[cfg(feature = "cuda")]
    #[error(
        "{operation}: `{argument}` is on {device}, but the first argument is on {expected}; move it with `to_device`"
    )]
    OtherDevice {
        /// The operation, as the method is called.
        operation: &'static str,
        /// The argument, as the parameter is called.
        argument: &'static str,
        /// Where it is.
        device: String,
        /// Where it should be.
        expected: String,
    },
    /// A device that cannot be had.
    #[error("device `{device}`: {reason}; {way_out}")]
    NoDevice {
        /// As it was asked for.
        device: String,
        /// Why not.
        reason: String,
        /// What to do.
        way_out: &'static str,
    },
    /// A number given to the operation is outside its range.
    #[error("{operation}: {name} = {value} is not possible: {reason}")]
    Value {
        /// The operation, as the method is called.
        operation: &'static str,
        /// The parameter.
        name: &'static str,
        /// Its value.
        value: String,
        /// Why not, and what would be possible.
        reason: String,
    },
    /// A label names no class.
    #[error("{operation}: label {label} of row {row} is not a class; the logits have {classes} classes (0..{classes})")]
    Label {
        /// The operation, as the method is called.
        operation: &'static str,
        /// The row of the batch.
        row: usize,
        /// The label found there.
        label: u32,
        /// The number of classes (columns of the logits).
        classes: usize,
    },
    /// Two tracked arguments belong to different tapes.
    #[error("{operation}: the arguments are tracked by two different tapes; detach one of them")]
    DifferentTapes {
        /// The operation, as the method is called.
        operation: &'static str,
    },
    /// The tape of an argument has already run its backward pass.
    #[error("{operation}: the tape of this value has already been consumed by `backward`; build a new tape")]
    SpentTape {
        /// The operation, as the method is called.
        operation: &'static str,
    },
    /// A gradient was asked of, or injected at, a value that is on no tape.
    #[error("{operation}: the value is a constant: it depends on no leaf of this tape")]
    NotTracked {
        /// The operation, as the method is called.
        operation: &'static str,
    },
    /// An argument carries a tangent, and the operation does not know how to carry it on.
    #[error("{operation}: an argument carries a tangent, but this operation has no rule for tangents; detach it")]
    NoTangentRule {
        /// The operation, as the method is called.
        operation: &'static str,
    },
    /// A tangent was given that carries a tangent itself.
    #[error("{operation}: the tangent carries a tangent itself; only one direction can be followed, detach it")]
    NestedTangent {
        /// The operation, as the method is called.
        operation: &'static str,
    },
    /// Two arguments that must be separate share their memory.
    #[error("{operation}: `{first}` and `{second}` share their memory; copy one of them first")]
    SharedStorage {
        /// The operation, as the method is called.
        operation: &'static str,
        /// One argument.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// A gradient check failed.
    #[error(
        "gradient of input {input} at element {element}: backward gives {analytic:e}, finite differences {numeric:e} \
         (relative error {error:e} > {tolerance:e})"
    )]
    GradientMismatch {
        /// Which input, counted from 0.
        input: usize,
        /// Which element of it, in memory order.
        element: usize,
        /// What the backward pass computed.
        analytic: f64,
        /// What central differences give.
        numeric: f64,
        /// Their distance relative to the larger of the two and one.
        error: f64,
        /// What was allowed.
        tolerance: f64,
    },
    /// A check of a tangent failed.
    #[error(
        "tangent at element {element} of the output: the operations give {analytic:e}, finite differences {numeric:e} \
         (relative error {error:e} > {tolerance:e})"
    )]
    TangentMismatch {
        /// Which element of the output, in memory order.
        element: usize,
        /// What the operations computed.
        analytic: f64,
        /// What central differences give.
        numeric: f64,
        /// Their distance relative to the larger of the two and one.
        error: f64,
        /// What was allowed.
        tolerance: f64,
    },
    /// Candle refused.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    pub(crate) fn shape(
        operation: &'static str,
        argument: &'static str,
        expected: impl Into<String>,
        found: &[usize],
    ) -> Self {
        Self::Shape { operation, argument, expected: expected.into(), found: found.to_vec() }
    }

    pub(crate) fn value(
        operation: &'static str,
        name: &'static str,
        value: impl ToString,
        reason: impl Into<String>,
    ) -> Self {
        Self::Value { operation, name, value: value.to_string(), reason: reason.into() }
    }
}
