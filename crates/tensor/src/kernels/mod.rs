//! The loops over numbers. Everything here works on slices whose lengths the caller has checked, knows
//! nothing of tensors or tapes, and returns freshly written vectors. The only unsafe code of the crate is
//! in this folder: outputs that are written without being zeroed first, matrix products through raw
//! pointers, functions compiled for instruction sets found at run time, and, with the feature `cuda`, what is launched on
//! GPUs.
//!
//! Work is cut into pieces whose size depends on the shapes alone, and partial sums are added in the order
//! of the pieces: the bits of a result do not depend on the number of threads.

use std::mem::MaybeUninit;
use std::ops::AddAssign;

use candle_core::{CpuStorage, CpuStorageRef};

pub(crate) mod allocator;
pub(crate) mod augmentation;
mod bf16;
mod bilinear;
pub(crate) mod convolution;
// The emulator of the tests is written for Linux.
#[cfg(any(all(test, target_os = "linux"), feature = "cuda"))]
pub(crate) mod cuda;
mod direct;
pub(crate) mod elementwise;
mod exponential;
pub(crate) mod gelu;
pub(crate) mod grid_sample;
mod lanes;
pub(crate) mod layer_norm;
pub(crate) mod loss;
pub(crate) mod matrix;
mod normal;
pub(crate) mod normalization;
pub(crate) mod peak;
pub(crate) mod places;
pub(crate) mod pooling;
mod product;
pub(crate) mod resize;
mod rows;
pub(crate) mod sigmoid;
pub(crate) mod simd;
pub(crate) mod softmax;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod winograd;

/// An element type the kernels are compiled for.
pub(crate) trait Element: candle_core::WithDType + Default + AddAssign {
    /// Lends a piece of memory of this thread, `length` elements of unspecified value. Not reentrant: the
    /// closure must not start parallel work, which could run another kernel on this thread.
    fn with_scratch<R>(length: usize, run: impl FnOnce(&mut [Self]) -> R) -> R;

    /// The elements of a storage, to be changed in place; `None` if it holds another type.
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;

    /// The elements as `f32`, if that is what they are: the way to kernels made for `f32` alone.
    fn single(values: &[Self]) -> Option<&[f32]> {
        match Self::cpu_storage_ref(values) {
            CpuStorageRef::F32(values) => Some(values),
            _ => None,
        }
    }

    /// The way back from [`Self::single`]; `None` if the elements of this type are not `f32`.
    fn from_single(values: Vec<f32>) -> Option<Vec<Self>> {
        Self::cpu_storage_data(CpuStorage::F32(values)).ok()
    }
}

macro_rules! element {
    ($T:ty, $variant:ident) => {
        impl Element for $T {
            fn with_scratch<R>(length: usize, run: impl FnOnce(&mut [Self]) -> R) -> R {
                thread_local! {
                    static SCRATCH: std::cell::RefCell<Vec<$T>> = const { std::cell::RefCell::new(Vec::new()) };
                }
                SCRATCH.with_borrow_mut(|scratch| {
                    if scratch.len() < length {
                        scratch.clear();
                        scratch.resize(length, 0.);
                    }
                    run(&mut scratch[..length])
                })
            }

            fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
                match storage {
                    CpuStorage::$variant(values) => Some(values),
                    _ => None,
                }
            }
        }
    };
}
element!(f32, F32);
element!(f64, F64);

/// A vector of `length` elements, all of them written by `fill`.
///
/// # Safety
/// `fill` must write every element.
unsafe fn written<T>(length: usize, fill: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut values = Vec::with_capacity(length);
    fill(&mut values.spare_capacity_mut()[..length]);
    // SAFETY: the capacity is at least `length`, and the caller vouches that `fill` wrote every element.
    unsafe { values.set_len(length) };
    values
}

/// A pointer that pieces of work on several threads write through, each to places of its own.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: the users write to places that no other piece of work touches.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn of(slice: &mut [MaybeUninit<f32>]) -> Self {
        Self(slice.as_mut_ptr().cast())
    }

    /// A method, so that closures take the whole struct.
    fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

/// A slice of which every element has been written.
///
/// # Safety
/// All elements must have been written.
unsafe fn assume_written<T>(slice: &mut [MaybeUninit<T>]) -> &mut [T] {
    // SAFETY: `MaybeUninit<T>` has the layout of `T`; the caller vouches for the values.
    unsafe { &mut *(std::ptr::from_mut(slice) as *mut [T]) }
}
