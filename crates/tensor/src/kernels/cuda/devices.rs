//! Devices of Candle's: opened by a thread, and kept for the next one when it ends.
//!
//! Each is a stream of a GPU with handles of cuBLAS, cuRAND and cuDNN, compiled kernels and plans of convolutions: most of what it
//! takes to begin. And none may be closed while another thread records a graph: the libraries wait for the whole GPU when they
//! destroy a handle, and what waits for a context ends the recordings of all its streams, in whatever thread.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, result, sys};
use candle_core::cuda_backend::{CudaDevice, DeviceId, WrapErr};
use candle_core::{Device, Error, Result};

use super::convolution::Cudnn;
use crate::device::{OLD_DRIVER, OLD_GPU};

/// Held by whoever records a graph, and by whoever makes a driver or a library wait for a whole GPU.
static QUIET: Mutex<()> = Mutex::new(());

/// See [`QUIET`].
pub(super) fn quiet() -> MutexGuard<'static, ()> {
    QUIET.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What belongs to a device, each made when it is first needed.
#[derive(Default)]
pub(super) struct Belongings {
    pub module: RefCell<Option<Arc<CudaModule>>>,
    pub functions: RefCell<HashMap<String, CudaFunction>>,
    pub cudnn: RefCell<Option<Cudnn>>,
}

/// A device, opened.
struct Opened {
    ordinal: usize,
    device: CudaDevice,
    /// How many share its stream while nothing is in its memory and nobody else has the device.
    alone: usize,
    belongings: Rc<Belongings>,
}

/// Devices without a thread.
static IDLE: Mutex<Vec<Parked>> = Mutex::new(vec![]);

struct Parked(Opened);

// SAFETY: what is not `Send` in it are `Rc`s, cells and pointers to what libraries have made. Nothing outside of it knows them, so
// that they move together, and the libraries allow that one thread goes on where another has ended.
unsafe impl Send for Parked {}

/// The devices that a thread has opened, which become idle when it ends.
#[derive(Default)]
struct Mine(HashMap<DeviceId, Opened>);

thread_local! {
    static MINE: RefCell<Mine> = RefCell::default();
}

impl Drop for Mine {
    fn drop(&mut self) {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        for opened in std::mem::take(&mut self.0).into_values() {
            if let Some(cudnn) = &mut *opened.belongings.cudnn.borrow_mut() {
                cudnn.forget_workspaces();
            }
            idle.push(Parked(opened));
        }
    }
}

/// The GPU number `ordinal`, with a stream of its own: one that this thread or another has left, or a new one.
///
/// It is this thread's until the thread ends.
pub(crate) fn open(ordinal: usize) -> Result<Device> {
    let own =
        MINE.with_borrow(|mine| mine.0.values().find(|opened| opened.is_left(ordinal)).map(|own| own.device.clone()));
    if let Some(device) = own {
        return Ok(Device::Cuda(device));
    }
    let opened = left(ordinal).map_or_else(|| Opened::new(ordinal), Ok)?;
    let device = opened.device.clone();
    MINE.with_borrow_mut(|mine| mine.0.insert(device.id(), opened));
    Ok(Device::Cuda(device))
}

/// What belongs to a device that this thread has opened.
pub(super) fn belongings(device: &CudaDevice) -> Result<Rc<Belongings>> {
    let found = MINE.with_borrow(|mine| mine.0.get(&device.id()).map(|opened| Rc::clone(&opened.belongings)));
    found.ok_or_else(|| Error::msg("a device of another thread: each thread opens its own"))
}

/// An idle device of this GPU. Those that have met an error are neither used again nor closed.
fn left(ordinal: usize) -> Option<Opened> {
    let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let place = idle.iter().position(|Parked(opened)| opened.is_left(ordinal))?;
        let Parked(opened) = idle.swap_remove(place);
        if opened.device.cuda_stream().context().check_err().is_ok() {
            return Some(opened);
        }
        std::mem::forget(opened);
    }
}

impl Opened {
    /// The driver's pool keeps what is freed: by default it would give all of it back whenever the host waits. No events are
    /// recorded for tensors; so each stays on the stream, and therefore on the candle device, that made it.
    fn new(ordinal: usize) -> Result<Self> {
        require_driver()?;
        let _quiet = quiet();
        let context = CudaContext::new(ordinal).w()?;
        let (major, minor) = context.compute_capability().w()?;
        if (major, minor) < OLDEST_GPU {
            return Err(Error::msg(format!("{OLD_GPU} of compute capability {major}.{minor}")));
        }
        let device = CudaDevice::new_with_stream(ordinal).map_err(|error| told(error, &context))?;
        // SAFETY: the device is new, so no tensor has an event; what this asks of users is said above.
        unsafe { device.disable_event_tracking() };
        let (mut everything, mut no) = (u64::MAX, 0i32);
        // SAFETY: the pool belongs to a device that is open; the attributes are a `u64` and an `int`.
        unsafe {
            use sys::CUmemPool_attribute::{
                CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES,
            };
            let pool = result::device::get_default_mem_pool(context.cu_device()).w()?;
            let threshold = std::ptr::from_mut(&mut everything).cast();
            result::mem_pool::set_attribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, threshold).w()?;
            // No stream waits unseen for another one's memory.
            let reuse = std::ptr::from_mut(&mut no).cast();
            result::mem_pool::set_attribute(pool, CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES, reuse).w()?;
        }
        let alone = Arc::strong_count(&device.cuda_stream());
        Ok(Self { ordinal, device, alone, belongings: Rc::default() })
    }

    /// Whether it is of this GPU, and whoever had it has gone, with all tensors and not in the middle of a recording.
    fn is_left(&self, ordinal: usize) -> bool {
        let stream = self.device.cuda_stream();
        let workspaces = self.belongings.cudnn.borrow().as_ref().map_or(0, Cudnn::workspaces);
        self.ordinal == ordinal && Arc::strong_count(&stream) == self.alone + workspaces && !is_captured(&stream)
    }
}

/// Whether what a stream is asked for is recorded and not done.
pub(super) fn is_captured(stream: &CudaStream) -> bool {
    !matches!(stream.capture_status(), Ok(sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE))
}

/// Version of CUDA that the program is made for, as the driver counts: a thousand times the major number, ten times the minor one.
const OLDEST_DRIVER: i32 = 13_000;
/// The least compute capability that the kernels are made for.
const OLDEST_GPU: (i32, i32) = (8, 0);

/// Refuses a driver that lacks functions: it would be taken for none.
fn require_driver() -> Result<()> {
    result::init().w()?;
    let mut version = 0;
    // SAFETY: a number that outlives the call.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().w()?;
    if version < OLDEST_DRIVER {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return Err(Error::msg(format!("{OLD_DRIVER}, for CUDA {major}.{minor}")));
    }
    Ok(())
}

/// Free bytes of a GPU below which a library that does not start is taken to have no memory to start in.
const ROOM: usize = 1 << 30;

/// The error of a library that did not start. Some say no more than that, also when it is memory that they lack.
pub(super) fn told(error: Error, context: &Arc<CudaContext>) -> Error {
    let text = error.to_string();
    match context.mem_get_info() {
        Ok((free, _)) if text.contains("STATUS_NOT_INITIALIZED") && free < ROOM => {
            Error::msg(format!("CUDA_ERROR_OUT_OF_MEMORY, probably, with {} MB free: {text}", free / 1_000_000))
        }
        _ => error,
    }
}
