//! A real GPU: its queue, and Candle's tensors on it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaFunction, CudaGraph, CudaStream, DevicePtr, LaunchConfig, PinnedHostSlice, PushKernelArg, result,
    sys,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaDevice, CudaStorageSlice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Device, Storage, StorageRef, Tensor};

use super::devices;
use super::{Argument, Memory, Queue, Stored, THREADS, View};
use crate::device::GpuFacts;
use crate::error::{Error, Result};

/// What `build.rs` has compiled.
static MODULE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// The GPUs that the driver shows to this process. Opens none of them.
pub(crate) fn seen() -> candle_core::Result<Vec<GpuFacts>> {
    result::init().w()?;
    let count = result::device::get_count().w()?;
    (0..count).map(|ordinal| facts(ordinal).w()).collect()
}

fn facts(ordinal: i32) -> std::result::Result<GpuFacts, result::DriverError> {
    let device = result::device::get(ordinal)?;
    let bytes = result::device::get_uuid(device)?.bytes.map(|byte| byte as u8);
    let hexadecimal: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &hexadecimal[part]);
    Ok(GpuFacts {
        ordinal: ordinal.cast_unsigned() as usize,
        name: result::device::get_name(device)?,
        uuid: format!("GPU-{}", parts.join("-")),
        // SAFETY: a device that the driver has just given.
        memory_bytes: unsafe { result::device::total_mem(device)? } as u64,
    })
}

/// Most bytes that this process has had of the pool of the GPU number `ordinal`, and those that its graphs have had.
pub(crate) fn peak_memory(ordinal: usize) -> candle_core::Result<u64> {
    let (device, pool) = pool_of(ordinal)?;
    let (mut most, mut in_graphs) = (0u64, 0u64);
    // SAFETY: the pool belongs to a device that the driver gives; the attributes are `u64`s.
    unsafe {
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
        result::mem_pool::get_attribute(pool, attribute, std::ptr::from_mut(&mut most).cast()).w()?;
        let attribute = sys::CUgraphMem_attribute::CU_GRAPH_MEM_ATTR_USED_MEM_HIGH;
        sys::cuDeviceGetGraphMemAttribute(device, attribute, std::ptr::from_mut(&mut in_graphs).cast()).result().w()?;
    }
    Ok(most + in_graphs)
}

/// Lets [`peak_memory`] count from what is taken now.
pub(crate) fn forget_peak_memory(ordinal: usize) -> candle_core::Result<()> {
    let mut none = 0u64;
    let none: *mut std::ffi::c_void = std::ptr::from_mut(&mut none).cast();
    // SAFETY: the pool belongs to a device that the driver gives; the attributes are `u64`s, which may be set to 0.
    unsafe {
        let (device, pool) = pool_of(ordinal)?;
        result::mem_pool::set_attribute(pool, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, none).w()?;
        let attribute = sys::CUgraphMem_attribute::CU_GRAPH_MEM_ATTR_USED_MEM_HIGH;
        sys::cuDeviceSetGraphMemAttribute(device, attribute, none).result().w()
    }
}

/// Gives the driver what the pool and graphs keep for later.
pub(crate) fn give_back_memory(ordinal: usize) -> candle_core::Result<()> {
    let (device, pool) = pool_of(ordinal)?;
    // SAFETY: the pool belongs to a device that the driver gives.
    unsafe {
        result::mem_pool::trim_to(pool, 0).w()?;
        sys::cuDeviceGraphMemTrim(device).result().w()
    }
}

fn pool_of(ordinal: usize) -> candle_core::Result<(sys::CUdevice, sys::CUmemoryPool)> {
    result::init().w()?;
    let device = result::device::get(i32::try_from(ordinal).unwrap_or(i32::MAX)).w()?;
    // SAFETY: a device that the driver gives.
    let pool = unsafe { result::device::get_default_mem_pool(device).w()? };
    Ok((device, pool))
}

/// What a stream was asked for, as a graph that the driver can launch.
pub(crate) struct Graph {
    /// Until it is dropped.
    graph: Option<CudaGraph>,
    stream: Arc<CudaStream>,
}

impl Graph {
    /// Records what `work` asks of the stream of `device`, and gives the graph the memory that it needs; see
    /// [`crate::Recording::of`].
    pub fn record<E: From<Error>>(
        device: &CudaDevice,
        work: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<Self, E> {
        let stream = device.cuda_stream();
        let failed = |error: result::DriverError| Error::Candle(candle_core::Error::wrap(error));
        // What other threads ask of the driver meanwhile is theirs, unless it is to wait for the whole GPU.
        let _quiet = devices::quiet();
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(failed)?;
        // A panic, too, leaves no stream that records.
        let done = catch_unwind(AssertUnwindSafe(|| {
            // Candle refuses to copy between the host and the GPU.
            let _copies = device.enable_cuda_graph_htod_cache();
            work()
        }));
        // What could not be freed in a capture that failed is told to the next call, which must be the one that ends it.
        let complaint = stream.context().check_err();
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
        let _ = stream.context().check_err();
        done.unwrap_or_else(|panic| resume_unwind(panic))?;
        complaint.map_err(failed)?;
        let nothing = || Error::Candle(candle_core::Error::msg("the driver has recorded nothing"));
        let graph = Self { graph: Some(graph.map_err(failed)?.ok_or_else(nothing)?), stream };
        graph.take_memory().map_err(failed)?;
        Ok(graph)
    }

    /// Takes the memory now, not with the first launch: what the pool of the launched steps keeps is given back before.
    fn take_memory(&self) -> std::result::Result<(), result::DriverError> {
        // SAFETY: the pool of a device that is open.
        unsafe {
            result::mem_pool::trim_to(result::device::get_default_mem_pool(self.stream.context().cu_device())?, 0)?
        };
        self.graph.as_ref().map_or(Ok(()), CudaGraph::upload)
    }

    pub fn launch(&self) -> Result<()> {
        Ok(self.graph.as_ref().map_or(Ok(()), CudaGraph::launch).w()?)
    }
}

impl Drop for Graph {
    /// Gives its memory back, for the steps that are launched and for others, when nothing of it is under way any more.
    fn drop(&mut self) {
        let _ = self.stream.synchronize();
        self.graph = None;
        // SAFETY: a device that is open. Memory that is not given back is only not given back.
        let _ = unsafe { sys::cuDeviceGraphMemTrim(self.stream.context().cu_device()) };
    }
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("Graph")
    }
}

/// Memory of the host to which a GPU brings numbers while it goes on: see [`crate::Readback`].
#[derive(Debug)]
pub(crate) struct Mailbox {
    stream: Arc<CudaStream>,
    device: CudaDevice,
    slots: Vec<Slot>,
    /// How many were put in so far, and taken out.
    put: usize,
    taken: usize,
}

/// Some numbers, and an event that comes when they are there: that of the memory itself is recorded with event tracking only.
#[derive(Debug)]
struct Slot {
    numbers: PinnedHostSlice<f32>,
    arrival: CudaEvent,
}

impl Mailbox {
    pub fn new(device: &CudaDevice, slots: usize, count: usize) -> Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context();
        let slot = |_| {
            // SAFETY: read only after a copy has filled it.
            let numbers = unsafe { context.alloc_pinned(count)? };
            // The thread sleeps until then: there may be more threads than cores.
            let arrival = context.new_event(Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC))?;
            Ok(Slot { numbers, arrival })
        };
        let slots = (0..slots).map(slot).collect::<std::result::Result<_, result::DriverError>>().w()?;
        Ok(Self { stream, device: device.clone(), slots, put: 0, taken: 0 })
    }

    pub fn put(&mut self, numbers: &Tensor) -> Result<()> {
        const OPERATION: &str = "readback";
        let room = self.slots.len();
        if self.put - self.taken == room {
            let reason = format!("there is room for {room}: take one out first");
            return Err(Error::value(OPERATION, "numbers", "one more", reason));
        }
        let gpu = Gpu { device: self.device.clone(), stream: self.stream.clone() };
        let count = gpu.numbers(OPERATION, "numbers", numbers)?.count;
        let slot = &mut self.slots[self.put % room];
        if count != slot.numbers.len() {
            return Err(Error::shape(OPERATION, "numbers", format!("{} numbers", slot.numbers.len()), numbers.dims()));
        }
        let (storage, layout) = numbers.storage_and_layout();
        let Storage::Cuda(CudaStorage { slice: CudaStorageSlice::F32(slice), .. }) = &*storage else {
            unreachable!("checked by `numbers`")
        };
        let start = layout.start_offset();
        self.stream.memcpy_dtoh(&slice.slice(start..start + count), &mut slot.numbers).w()?;
        slot.arrival.record(&self.stream).w()?;
        self.put += 1;
        Ok(())
    }

    pub fn take(&mut self) -> Result<Vec<f32>> {
        if self.taken == self.put {
            return Err(Error::value("readback", "numbers", "none", "put some in first"));
        }
        let Slot { numbers, arrival } = &self.slots[self.taken % self.slots.len()];
        arrival.synchronize().w()?;
        let numbers = numbers.as_slice().w()?.to_vec();
        self.taken += 1;
        Ok(numbers)
    }
}

impl Drop for Mailbox {
    /// What is on its way still comes.
    fn drop(&mut self) {
        let _ = self.stream.synchronize();
    }
}

/// The queue of one candle device.
pub(crate) struct Gpu {
    pub(super) device: CudaDevice,
    pub(super) stream: Arc<CudaStream>,
}

/// Memory that Candle's pool frees when it is dropped, in the order of the stream.
pub(crate) struct Allocation {
    storage: CudaStorage,
    address: u64,
    element: Stored,
    count: usize,
}

/// A contiguous tensor on a GPU, whose storage stays for as long as this guard lives.
pub(crate) struct GpuOperand<'a> {
    _storage: StorageRef<'a>,
    address: u64,
    element: Stored,
    count: usize,
}

impl Gpu {
    /// The GPU that a tensor is on, if it is on one.
    pub fn of(tensor: &Tensor) -> Option<Self> {
        match tensor.device() {
            Device::Cuda(device) => Some(Self { device: device.clone(), stream: device.cuda_stream() }),
            _ => None,
        }
    }

    /// A tensor on this GPU, contiguous, of one of these element types.
    pub fn read<'a>(
        &self,
        operation: &'static str,
        argument: &'static str,
        tensor: &'a Tensor,
        allowed: &[Stored],
    ) -> Result<GpuOperand<'a>> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(cuda) = &*storage else {
            let device = format!("{:?}", tensor.device().location());
            return Err(Error::OtherDevice { operation, argument, device, expected: self.name() });
        };
        if cuda.device.id() != self.device.id() {
            let device = format!("another device of {:?}", tensor.device().location());
            return Err(Error::OtherDevice { operation, argument, device, expected: self.name() });
        }
        let Some((address, element)) = self.address(cuda).filter(|(_, element)| allowed.contains(element)) else {
            let names: Vec<String> = allowed.iter().map(|element| format!("{:?}", element.dtype())).collect();
            let expected = format!("{} on a GPU", names.join(" or "));
            return Err(Error::DType { operation, argument, expected, found: tensor.dtype() });
        };
        let Some((start, end)) = layout.contiguous_offsets() else {
            let (dims, strides) = (layout.dims().to_vec(), layout.stride().to_vec());
            return Err(Error::NotContiguous { operation, argument, dims, strides });
        };
        let address = address + (start * element.size()) as u64;
        Ok(GpuOperand { _storage: storage, address, element, count: end - start })
    }

    /// A tensor of activations, `f32` or `bf16`.
    pub fn activations<'a>(
        &self,
        operation: &'static str,
        argument: &'static str,
        tensor: &'a Tensor,
    ) -> Result<GpuOperand<'a>> {
        self.read(operation, argument, tensor, &[Stored::F32, Stored::Bf16])
    }

    /// A tensor of the element type that another one has.
    pub fn like<'a>(
        &self,
        operation: &'static str,
        argument: &'static str,
        tensor: &'a Tensor,
        other: &GpuOperand,
    ) -> Result<GpuOperand<'a>> {
        self.read(operation, argument, tensor, &[other.element])
    }

    /// A tensor of a few numbers, `f32`.
    pub fn numbers<'a>(
        &self,
        operation: &'static str,
        argument: &'static str,
        tensor: &'a Tensor,
    ) -> Result<GpuOperand<'a>> {
        self.read(operation, argument, tensor, &[Stored::F32])
    }

    /// A tensor made of a kernel's output.
    pub fn tensor(&self, memory: Allocation, dims: &[usize]) -> Tensor {
        Tensor::from_storage(Storage::Cuda(memory.storage), dims, BackpropOp::none(), false)
    }

    fn address(&self, storage: &CudaStorage) -> Option<(u64, Stored)> {
        // What `device_ptr` would record when its guard is dropped, no event tracking leaves out.
        Some(match &storage.slice {
            CudaStorageSlice::F32(slice) => (slice.device_ptr(&self.stream).0, Stored::F32),
            CudaStorageSlice::BF16(slice) => (slice.device_ptr(&self.stream).0, Stored::Bf16),
            CudaStorageSlice::U8(slice) => (slice.device_ptr(&self.stream).0, Stored::U8),
            CudaStorageSlice::U32(slice) => (slice.device_ptr(&self.stream).0, Stored::U32),
            CudaStorageSlice::I32(slice) => (slice.device_ptr(&self.stream).0, Stored::I32),
            _ => return None,
        })
    }

    fn allocation(&self, slice: CudaStorageSlice, count: usize) -> Allocation {
        let storage = CudaStorage { slice, device: self.device.clone() };
        let (address, element) = self.address(&storage).expect("made of a known element type");
        Allocation { storage, address, element, count }
    }

    /// Whether what is asked for is recorded and not done.
    pub fn is_captured(&self) -> bool {
        devices::is_captured(&self.stream)
    }

    fn name(&self) -> String {
        format!("Cuda {{ gpu_id: {} }}", self.stream.context().ordinal())
    }

    fn function(&self, name: &str) -> Result<CudaFunction> {
        let belongings = devices::belongings(&self.device)?;
        let (mut module, mut functions) = (belongings.module.borrow_mut(), belongings.functions.borrow_mut());
        if let Some(function) = functions.get(name) {
            return Ok(function.clone());
        }
        let module = match &mut *module {
            Some(module) => module,
            none => none.insert(self.stream.context().load_module(Ptx::from_binary(MODULE.to_vec())).w()?),
        };
        let function = module.load_function(name).w()?;
        functions.insert(name.to_owned(), function.clone());
        Ok(function)
    }
}

impl Queue for Gpu {
    type Memory = Allocation;

    fn allocate(&self, element: Stored, count: usize) -> Result<Allocation> {
        // SAFETY: kernels write every element before anybody reads one.
        let slice = unsafe {
            match element {
                Stored::F32 => CudaStorageSlice::F32(self.device.alloc(count)?),
                Stored::Bf16 => CudaStorageSlice::BF16(self.device.alloc(count)?),
                Stored::U8 => CudaStorageSlice::U8(self.device.alloc(count)?),
                Stored::U32 => CudaStorageSlice::U32(self.device.alloc(count)?),
                Stored::I32 => CudaStorageSlice::I32(self.device.alloc(count)?),
            }
        };
        Ok(self.allocation(slice, count))
    }

    unsafe fn launch(&self, kernel: &str, [x, y]: [u32; 2], arguments: &[Argument]) -> Result<()> {
        static NULL: u64 = 0;
        let function = self.function(kernel)?;
        let mut launch = self.stream.launch_builder(&function);
        for argument in arguments {
            match argument {
                Argument::Read(view) | Argument::Write(view) | Argument::Maybe(Some(view)) => launch.arg(&view.address),
                Argument::Maybe(None) => launch.arg(&NULL),
                Argument::Integer(value) => launch.arg(value),
                Argument::Natural(value) => launch.arg(value),
                Argument::Single(value) => launch.arg(value),
                Argument::Double(value) => launch.arg(value),
                // The driver is told where a parameter begins, and knows from the kernel how long it is.
                Argument::Table(numbers) => launch.arg(&numbers[0]),
            };
        }
        let config = LaunchConfig { grid_dim: (x, y, 1), block_dim: (THREADS as u32, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: as the caller vouches.
        unsafe { launch.launch(config).w()? };
        Ok(())
    }
}

impl Memory for Allocation {
    fn view(&self) -> View<'_> {
        // SAFETY: allocated with so many elements, and freed with `self`.
        unsafe { View::new(self.address, self.element, self.count) }
    }
}

impl GpuOperand<'_> {
    pub fn view(&self) -> View<'_> {
        // SAFETY: within the tensor's storage, which the guard holds.
        unsafe { View::new(self.address, self.element, self.count) }
    }
}

impl Stored {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::U8 => DType::U8,
            Self::U32 => DType::U32,
            Self::I32 => DType::I32,
        }
    }
}
