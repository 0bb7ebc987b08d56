//! The same loops on NVIDIA GPUs.
//!
//! # Where what happens
//!
//! Tensors stay Candle's: one on a GPU is made and freed by Candle, and what Candle can do with it (moving, copying,
//! matrix products through cuBLAS) is left to it. Everything that an operation of this crate computes is computed by a
//! kernel of this project or by cuDNN. An operation decides at the place where it would call its loop on the CPU:
//! `on_gpu!` looks where the first argument is. Without the feature `cuda` that macro is nothing at all, and neither
//! Candle's CUDA code nor the modules below are compiled, but in tests.
//!
//! - `sources/*.cu`: the kernels, one module of machine code, compiled when this crate is built;
//! - the families [`normalization`], [`pooling`], [`loss`], [`curvature`], [`elementwise`], [`rows`],
//!   [`row_normalization`], [`places`], [`resampling`], [`optimizer`], [`augmentation`]: which kernels an operation
//!   launches, over how many blocks, with which arguments. They see memory and a [`Queue`] and know nothing of CUDA;
//! - `gpu` and `convolution` (feature `cuda`): the queue of a real GPU; Candle's tensors as [`View`]s; cuDNN;
//! - `emulation` (tests): a queue that runs the very kernels on the CPU. Each family is tested through it, launch by
//!   launch as on a GPU, against the loops of the CPU.
//!
//! # Rules
//!
//! - Activations are NHWC in `f32` or `bf16`; every number is computed in `f32`, sums over many in `f64` at their end.
//! - Every sum has an order that depends on the shape alone. Nothing is added atomically: the same inputs give the same
//!   bits, on the same model of GPU.
//! - One candle device is one stream, used by one thread. What is launched is done in order; memory that is freed is not
//!   reused before what was launched earlier is done with it.
//! - The host waits for the GPU only when it reads a number.

use std::marker::PhantomData;

use crate::error::{Error, Result};

pub(crate) mod augmentation;
#[cfg(feature = "cuda")]
pub(crate) mod convolution;
pub(crate) mod curvature;
#[cfg(feature = "cuda")]
pub(crate) mod devices;
pub(crate) mod elementwise;
#[cfg(all(test, target_os = "linux"))]
mod emulation;
#[cfg(feature = "cuda")]
pub(crate) mod gpu;
pub(crate) mod loss;
pub(crate) mod normalization;
pub(crate) mod optimizer;
pub(crate) mod places;
pub(crate) mod pooling;
pub(crate) mod resampling;
pub(crate) mod row_normalization;
pub(crate) mod rows;

/// Threads of every block, as in `common.cuh`.
const THREADS: usize = 256;

/// Bytes that one instruction reads or writes at most.
const WIDEST_ACCESS: usize = 16;

/// Element types in the memory of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stored {
    F32,
    Bf16,
    U8,
    U32,
    I32,
}

impl Stored {
    pub fn size(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::Bf16 => 2,
            Self::F32 | Self::U32 | Self::I32 => 4,
        }
    }

    /// As in the names of kernels.
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::U8 => "u8",
            Self::U32 => "u32",
            Self::I32 => "i32",
        }
    }
}

/// Elements that lie one after the other in the memory of a GPU, borrowed from what keeps that memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    address: u64,
    element: Stored,
    count: usize,
    memory: PhantomData<&'a ()>,
}

impl<'a> View<'a> {
    /// # Safety
    /// `count` elements must lie at `address` and live as long as `'a`.
    pub unsafe fn new(address: u64, element: Stored, count: usize) -> Self {
        Self { address, element, count, memory: PhantomData }
    }

    pub fn count(&self) -> usize {
        self.count
    }

    pub fn element(&self) -> Stored {
        self.element
    }

    pub fn address(&self) -> u64 {
        self.address
    }

    /// Whether some memory belongs to both.
    pub fn overlaps(&self, other: &View) -> bool {
        let end = |view: &View| view.address + (view.count * view.element.size()) as u64;
        self.address < end(other) && other.address < end(self)
    }
}

/// Memory of a GPU that is freed when this is dropped.
pub(crate) trait Memory {
    fn view(&self) -> View<'_>;
}

/// Where kernels are launched, one after the other.
pub(crate) trait Queue {
    type Memory: Memory;

    /// Memory for so many elements, of unspecified value.
    fn allocate(&self, element: Stored, count: usize) -> Result<Self::Memory>;

    /// Queues a kernel over `grid` blocks along x and y.
    ///
    /// # Safety
    /// The arguments must be what the kernel's parameters are, in order, and the kernel must stay within the views; what it
    /// writes must be nobody else's.
    unsafe fn launch(&self, kernel: &str, grid: [u32; 2], arguments: &[Argument]) -> Result<()>;
}

/// One argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Argument<'a> {
    /// `const T *`.
    Read(View<'a>),
    /// `const T *` that may be null.
    Maybe(Option<View<'a>>),
    /// `T *`.
    Write(View<'a>),
    /// `int`.
    Integer(i32),
    /// `unsigned`.
    Natural(u32),
    /// `float`.
    Single(f32),
    /// `double`.
    Double(f64),
    /// A struct of numbers of 64 bits, by value: all that it holds.
    Table(&'a [i64]),
}

/// How many elements of a row of `channels` one thread takes at once: as many as one access to the first of `views`
/// allows, if as many of each lie at a multiple of their size, else one.
fn width(channels: usize, views: &[View]) -> usize {
    let lanes = WIDEST_ACCESS / views[0].element.size();
    let is_aligned = views.iter().all(|view| view.address.is_multiple_of((lanes * view.element.size()) as u64));
    if channels.is_multiple_of(lanes) && is_aligned { lanes } else { 1 }
}

/// The name of a kernel that exists for several element types and widths.
fn named(kernel: &str, element: Stored, width: usize) -> String {
    format!("{kernel}_{}x{width}", element.name())
}

/// A grid with a row of blocks for each of `rows` arrays, of which the longest has `longest` elements: a thread takes several
/// of a long one.
fn one_row_each(rows: usize, longest: usize) -> [u32; 2] {
    const BLOCKS: usize = 256;
    [longest.div_ceil(THREADS).clamp(1, BLOCKS) as u32, u32::try_from(rows).expect("a network has fewer tensors")]
}

/// A grid with a thread for each of `count` things.
fn one_each(count: usize) -> [u32; 2] {
    [u32::try_from(count.div_ceil(THREADS)).expect("checked by `natural`"), 1]
}

/// A number of elements as kernels count them.
fn natural(operation: &'static str, count: usize) -> Result<u32> {
    u32::try_from(count)
        .map_err(|_| Error::value(operation, "elements", count, "kernels count to 2^32; use smaller batches"))
}

/// A size as kernels know them.
fn integer(operation: &'static str, size: usize) -> Result<i32> {
    i32::try_from(size).map_err(|_| Error::value(operation, "size", size, "kernels count to 2^31; use smaller batches"))
}
