//! Tensors that an optimiser changes where they are.

use candle_core::{CpuStorage, Layout, Tensor};

use crate::error::{Error, Result};
use crate::kernels::Element;
use crate::operand::{Operand, exact};

/// Refuses tensors of different shapes, of another element type, device or layout, and tensors that share their memory:
/// locking one twice would not come back. The first is the parameter.
pub(crate) fn check<T: Element>(operation: &'static str, tensors: &[(&'static str, &Tensor)]) -> Result<()> {
    let mut read = Vec::with_capacity(tensors.len());
    for &(name, tensor) in tensors {
        exact(operation, name, tensor, tensors[0].1.dims(), "the shape of the parameter")?;
        read.push((name, Operand::<T>::read(operation, name, tensor)?));
    }
    for (index, (second, b)) in read.iter().enumerate() {
        if let Some((first, _)) = read[..index].iter().find(|(_, a)| a.shares_storage(b)) {
            return Err(Error::SharedStorage { operation, first, second });
        }
    }
    Ok(())
}

/// The elements of a tensor whose storage is locked for writing.
pub(crate) fn slice_mut<'a, T: Element>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> candle_core::Result<&'a mut [T]> {
    let range = contiguous(layout)?;
    match T::slice_mut(storage) {
        Some(slice) => Ok(&mut slice[range]),
        None => candle_core::bail!("a storage that is changed in place does not hold {:?}", T::DTYPE),
    }
}

/// The elements of a tensor whose storage is locked for reading.
pub(crate) fn slice<'a, T: Element>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [T]> {
    Ok(&T::cpu_storage_as_slice(storage)?[contiguous(layout)?])
}

fn contiguous(layout: &Layout) -> candle_core::Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => candle_core::bail!("a strided view cannot be changed in place"),
    }
}
