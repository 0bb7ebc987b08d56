//! The border between tensors and kernels: arguments are checked once and read as slices.

use std::marker::PhantomData;
use std::ops::{Deref, Range};

use candle_core::{DType, Device, Storage, StorageRef, Tensor, WithDType};

use crate::error::{Error, Result};

/// A contiguous CPU tensor, readable as a slice for as long as this guard lives.
pub(crate) struct Operand<'a, T> {
    storage: StorageRef<'a>,
    range: Range<usize>,
    element: PhantomData<T>,
}

impl<'a, T: WithDType> Operand<'a, T> {
    pub(crate) fn read(operation: &'static str, argument: &'static str, tensor: &'a Tensor) -> Result<Self> {
        if tensor.dtype() != T::DTYPE {
            return Err(Error::DType {
                operation,
                argument,
                expected: format!("{:?}", T::DTYPE),
                found: tensor.dtype(),
            });
        }
        let (storage, layout) = tensor.storage_and_layout();
        if !matches!(*storage, Storage::Cpu(_)) {
            return Err(Error::Device { operation, argument, device: format!("{:?}", tensor.device().location()) });
        }
        let Some((start, end)) = layout.contiguous_offsets() else {
            return Err(Error::NotContiguous {
                operation,
                argument,
                dims: layout.dims().to_vec(),
                strides: layout.stride().to_vec(),
            });
        };
        Ok(Self { storage, range: start..end, element: PhantomData })
    }

    /// Whether the two tensors are views of one piece of memory.
    pub(crate) fn shares_storage(&self, other: &Self) -> bool {
        std::ptr::eq(&*self.storage, &*other.storage)
    }
}

impl<T: WithDType> Deref for Operand<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &*self.storage {
            // The element type was checked by `read`, the only constructor.
            Storage::Cpu(storage) => match T::cpu_storage_as_slice(storage) {
                Ok(slice) => &slice[self.range.clone()],
                Err(_) => unreachable!("the element type was checked when the operand was read"),
            },
            _ => unreachable!("the device was checked when the operand was read"),
        }
    }
}

/// A CPU tensor made of a kernel's output.
pub(crate) fn tensor<T: WithDType>(values: Vec<T>, dims: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, dims, &Device::Cpu)?)
}

/// A tensor of four dimensions, none of them zero.
pub(crate) fn dims4(
    operation: &'static str,
    argument: &'static str,
    tensor: &Tensor,
    meaning: &str,
) -> Result<[usize; 4]> {
    match *tensor.dims() {
        [a, b, c, d] if a * b * c * d > 0 => Ok([a, b, c, d]),
        ref found => Err(Error::shape(operation, argument, format!("{meaning}, none of them zero"), found)),
    }
}

/// A tensor of exactly this shape.
pub(crate) fn exact(
    operation: &'static str,
    argument: &'static str,
    tensor: &Tensor,
    dims: &[usize],
    meaning: &str,
) -> Result<()> {
    if tensor.dims() == dims {
        return Ok(());
    }
    Err(Error::shape(operation, argument, format!("{dims:?} ({meaning})"), tensor.dims()))
}

pub(crate) fn unsupported(operation: &'static str, argument: &'static str, found: DType) -> Error {
    Error::DType { operation, argument, expected: "F32 or F64".to_owned(), found }
}

/// Runs a block with `$T` standing for the element type of a tensor, `f32` or `f64`.
macro_rules! by_element {
    ($operation:expr, $argument:literal, $tensor:expr, $T:ident => $body:expr) => {
        match $tensor.dtype() {
            candle_core::DType::F32 => {
                type $T = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $T = f64;
                $body
            }
            other => Err($crate::operand::unsupported($operation, $argument, other)),
        }
    };
}
pub(crate) use by_element;

/// Returns from the function what `$result` is, if `$tensor` is on a GPU, whose queue `$gpu` is then. Without the feature
/// `cuda`: nothing at all.
macro_rules! on_gpu {
    ($tensor:expr, $gpu:ident => $result:expr) => {
        #[cfg(feature = "cuda")]
        if let Some($gpu) = $crate::kernels::cuda::gpu::Gpu::of($tensor) {
            return $result;
        }
    };
}
pub(crate) use on_gpu;
