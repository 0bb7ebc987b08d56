//! Convolutions through cuDNN: NHWC, sums in `f32`.
//!
//! What cuDNN has to be told, and the algorithms that its heuristics list, are kept for each geometry; all convolutions of
//! a device and thread share one workspace, the largest that was asked for so far. Weights are `[kh, kw, in, out]` in
//! this project; cuDNN multiplies by *filters*, `[out, kh, kw, in]` of the element type of the activations.
//!
//! `f32` means `f32`: products are not rounded to TF32, or (`TSBD_CONV=split`) made of three that are. `bf16` factors give a
//! `bf16` result.

use std::cell::{Cell, OnceCell};
use std::collections::HashMap;
use std::ffi::{CStr, c_int, c_void};
use std::fmt::Debug;
use std::mem::MaybeUninit;
use std::rc::Rc;

use candle_core::cuda_backend::cudarc::cudnn::{CudnnError, result, sys};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr};

use super::devices;
use super::elementwise::Factor;
use super::gpu::{Allocation, Gpu};
use super::{Memory, Queue, Stored, View, elementwise, integer};
use crate::error::{Error, Result};
use crate::kernels::convolution::Geometry;
use crate::ops::{ConvolutionAlgorithm, Manner, Precision};

const OPERATION: &str = "conv2d";

/// No algorithm may ask for more memory than this, in bytes.
const LARGEST_WORKSPACE: usize = 1 << 30;

/// What is multiplied; sums are `f32` always.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Numbers {
    F32,
    /// `f32` in memory, rounded on the way to the tensor cores.
    Tf32,
    /// `f32` in memory, as sums of two that TF32 holds.
    Split,
    Bf16,
}

impl Numbers {
    /// How cuDNN is to compute with tensors of this element type.
    fn of(element: Stored, manner: Manner) -> Result<Self> {
        match (element, manner.algorithm, manner.precision) {
            (Stored::Bf16, ..) => Ok(Self::Bf16),
            (_, ConvolutionAlgorithm::Bf16, _) => {
                let reason = "on a GPU tensors are bf16 themselves; unset TSBD_CONV, or convert both factors";
                Err(Error::value("convolution", "factors", "f32 to be rounded to bf16", reason))
            }
            (_, _, Precision::Tf32) => Ok(Self::Tf32),
            (_, ConvolutionAlgorithm::Split, _) => Ok(Self::Split),
            _ => Ok(Self::F32),
        }
    }

    fn element(self) -> Stored {
        match self {
            Self::F32 | Self::Tf32 | Self::Split => Stored::F32,
            Self::Bf16 => Stored::Bf16,
        }
    }
}

/// The filter of a weight.
pub(crate) fn filter(gpu: &Gpu, g: &Geometry, weight: View, element: Stored) -> Result<Allocation> {
    elementwise::transpose(gpu, weight, g.patch(), g.out_channels, element)
}

/// What `whole` gives, in `f32`; with [`Numbers::Split`] what `longer` gives, if cuDNN has an algorithm for that.
fn split_or_whole(
    numbers: Numbers,
    longer: impl FnOnce() -> Result<Allocation>,
    whole: impl FnOnce(Numbers) -> Result<Allocation>,
) -> Result<Allocation> {
    if numbers != Numbers::Split {
        return whole(numbers);
    }
    match longer() {
        Err(Error::NoAlgorithm { .. }) => whole(Numbers::F32),
        done => done,
    }
}

/// The products of `x` and `filter`.
pub(crate) fn forward(gpu: &Gpu, (g, manner): (&Geometry, Manner), x: View, filter: View) -> Result<Allocation> {
    let longer = || {
        let image = elementwise::split(gpu, x, g.in_channels, Factor::One)?;
        let filter = elementwise::split(gpu, filter, g.in_channels, Factor::Other)?;
        let g = Geometry { in_channels: 3 * g.in_channels, ..*g };
        forward_in(gpu, &g, Numbers::Tf32, image.view(), filter.view())
    };
    let whole = |numbers| forward_in(gpu, g, numbers, x, filter);
    split_or_whole(Numbers::of(x.element(), manner)?, longer, whole)
}

fn forward_in(gpu: &Gpu, g: &Geometry, numbers: Numbers, x: View, filter: View) -> Result<Allocation> {
    let y = gpu.allocate(numbers.element(), g.pixels() * g.out_channels)?;
    with(gpu, g, numbers, |cudnn, plan| {
        let listed = plan.forward(cudnn, g)?;
        let (one, beta) = (1f32, 0f32);
        plan.attempt((gpu, cudnn), g, "forward", listed, |handle, algorithm, workspace, bytes| {
            // SAFETY: the descriptors belong to the geometry that the arrays have; the workspace is as large as asked for.
            unsafe {
                result::convolution_forward(
                    handle,
                    constant(&one),
                    plan.x,
                    read(x),
                    plan.filter,
                    read(filter),
                    plan.convolution,
                    algorithm,
                    workspace,
                    bytes,
                    constant(&beta),
                    plan.y,
                    written(y.view().address()),
                )
            }
        })
    })?;
    Ok(y)
}

/// The gradient of the input.
pub(crate) fn backward_input(
    gpu: &Gpu,
    (g, manner): (&Geometry, Manner),
    dy: View,
    filter: View,
) -> Result<Allocation> {
    let longer = || {
        let gradient = elementwise::split(gpu, dy, g.out_channels, Factor::One)?;
        let filter = elementwise::split(gpu, filter, filter.count(), Factor::Other)?;
        let g = Geometry { out_channels: 3 * g.out_channels, ..*g };
        backward_input_in(gpu, &g, Numbers::Tf32, gradient.view(), filter.view())
    };
    let whole = |numbers| backward_input_in(gpu, g, numbers, dy, filter);
    split_or_whole(Numbers::of(dy.element(), manner)?, longer, whole)
}

fn backward_input_in(gpu: &Gpu, g: &Geometry, numbers: Numbers, dy: View, filter: View) -> Result<Allocation> {
    let dx = gpu.allocate(numbers.element(), g.images * g.image())?;
    with(gpu, g, numbers, |cudnn, plan| {
        let listed = plan.backward_input(cudnn, g)?;
        let (one, beta) = (1f32, 0f32);
        plan.attempt((gpu, cudnn), g, "backward to the input", listed, |handle, algorithm, workspace, bytes| {
            // SAFETY: the descriptors belong to the geometry that the arrays have; the workspace is as large as asked for.
            unsafe {
                result::convolution_backward_data(
                    handle,
                    constant(&one),
                    plan.filter,
                    read(filter),
                    plan.y,
                    read(dy),
                    plan.convolution,
                    algorithm,
                    workspace,
                    bytes,
                    constant(&beta),
                    plan.x,
                    written(dx.view().address()),
                )
            }
        })
    })?;
    Ok(dx)
}

/// The gradient of the weight, which has an element type of its own.
pub(crate) fn backward_weight(
    gpu: &Gpu,
    (g, manner): (&Geometry, Manner),
    x: View,
    dy: View,
    weight: Stored,
) -> Result<Allocation> {
    let longer = || {
        let image = elementwise::split(gpu, x, x.count(), Factor::One)?;
        let gradient = elementwise::split(gpu, dy, dy.count(), Factor::Other)?;
        let g = Geometry { images: 3 * g.images, ..*g };
        backward_filter_in(gpu, &g, Numbers::Tf32, image.view(), gradient.view())
    };
    let whole = |numbers| backward_filter_in(gpu, g, numbers, x, dy);
    let filter = split_or_whole(Numbers::of(dy.element(), manner)?, longer, whole)?;
    elementwise::transpose(gpu, filter.view(), g.out_channels, g.patch(), weight)
}

fn backward_filter_in(gpu: &Gpu, g: &Geometry, numbers: Numbers, x: View, dy: View) -> Result<Allocation> {
    let filter = gpu.allocate(numbers.element(), g.patch() * g.out_channels)?;
    with(gpu, g, numbers, |cudnn, plan| {
        let listed = plan.backward_weight(cudnn, g)?;
        let (one, beta) = (1f32, 0f32);
        plan.attempt((gpu, cudnn), g, "backward to the weight", listed, |handle, algorithm, workspace, bytes| {
            // SAFETY: the descriptors belong to the geometry that the arrays have; the workspace is as large as asked for.
            unsafe {
                result::convolution_backward_filter(
                    handle,
                    constant(&one),
                    plan.x,
                    read(x),
                    plan.y,
                    read(dy),
                    plan.convolution,
                    algorithm,
                    workspace,
                    bytes,
                    constant(&beta),
                    plan.filter,
                    written(filter.view().address()),
                )
            }
        })
    })?;
    Ok(filter)
}

fn read(view: View) -> *const c_void {
    view.address() as *const c_void
}

fn constant(value: &f32) -> *const c_void {
    std::ptr::from_ref(value).cast()
}

fn written(address: u64) -> *mut c_void {
    address as *mut c_void
}

/// cuDNN's handle, plans and workspaces of a device, for as long as the process lasts.
pub(super) struct Cudnn {
    handle: sys::cudnnHandle_t,
    plans: HashMap<(Geometry, Numbers), Rc<Plan>>,
    /// Each larger than the one before; the last is used. What was recorded goes on using the one of its time.
    workspaces: Vec<CudaSlice<u8>>,
}

/// Runs `use_plan` with the plan of a geometry, made when it is first met.
fn with(
    gpu: &Gpu,
    g: &Geometry,
    numbers: Numbers,
    use_plan: impl FnOnce(&mut Cudnn, &Plan) -> Result<()>,
) -> Result<()> {
    let belongings = devices::belongings(&gpu.device)?;
    let mut cudnn = belongings.cudnn.borrow_mut();
    let cudnn = match &mut *cudnn {
        Some(cudnn) => cudnn,
        none => none.insert(Cudnn::new(gpu)?),
    };
    let plan = match cudnn.plans.get(&(*g, numbers)) {
        Some(plan) => plan.clone(),
        None => {
            let plan = Rc::new(Plan::new(g, numbers)?);
            cudnn.plans.insert((*g, numbers), plan.clone());
            plan
        }
    };
    use_plan(cudnn, &plan)
}

impl Cudnn {
    fn new(gpu: &Gpu) -> Result<Self> {
        // In a recording there is quiet, and whoever records has computed the same before.
        let _quiet = (!gpu.is_captured()).then(devices::quiet);
        let handle = result::create_handle().map_err(|error| {
            let reason =
                "is libcudnn.so.9 there? With CUDA_LAZY_DEBUG=1 in the environment the program says where it looks";
            let error = candle_core::Error::Msg(format!("cuDNN does not start: {error}; {reason}"));
            Error::Candle(devices::told(error, gpu.stream.context()))
        })?;
        // SAFETY: a fresh handle, and the stream of a device that outlives the thread's tensors on it.
        unsafe { result::set_stream(handle, gpu.stream.cu_stream().cast()) }.map_err(refused)?;
        Ok(Self { handle, plans: HashMap::new(), workspaces: vec![] })
    }

    pub(super) fn workspaces(&self) -> usize {
        self.workspaces.len()
    }

    /// Frees the workspaces, which nothing recorded uses any more.
    pub(super) fn forget_workspaces(&mut self) {
        self.workspaces.clear();
    }

    /// A workspace of at least so many bytes.
    fn workspace(&mut self, gpu: &Gpu, bytes: usize) -> Result<*mut c_void> {
        if bytes == 0 {
            return Ok(std::ptr::null_mut());
        }
        if self.workspaces.last().is_none_or(|workspace| workspace.len() < bytes) {
            // SAFETY: cuDNN reads nothing that it has not written.
            self.workspaces.push(unsafe { gpu.device.alloc::<u8>(bytes)? });
        }
        let workspace = self.workspaces.last().expect("there is one");
        Ok(written(workspace.device_ptr(&gpu.stream).0))
    }
}

/// An algorithm and the bytes of workspace that it needs.
#[derive(Clone, Copy, Debug)]
struct Choice<A> {
    algorithm: A,
    bytes: usize,
    math: sys::cudnnMathType_t,
}

/// The algorithms that can be used, in the order of preference: those that give the same bits every time before others, of
/// either those on tensor cores where factors may be rounded, then as cuDNN lists them, the fastest first. It lists some slow
/// ones first (a 1x1 convolution of stride 2 from 64 to 128 channels in `bf16`, without tensor cores: 40 times slower).
struct Algorithms<A> {
    listed: OnceCell<Vec<Choice<A>>>,
    /// So many of the first were refused when it came to computing.
    refused: Cell<usize>,
}

impl<A> Default for Algorithms<A> {
    fn default() -> Self {
        Self { listed: OnceCell::new(), refused: Cell::new(0) }
    }
}

/// One geometry as cuDNN knows it. Algorithms are listed when a pass is first needed.
struct Plan {
    x: sys::cudnnTensorDescriptor_t,
    filter: sys::cudnnFilterDescriptor_t,
    y: sys::cudnnTensorDescriptor_t,
    convolution: sys::cudnnConvolutionDescriptor_t,
    math: sys::cudnnMathType_t,
    forward: Algorithms<sys::cudnnConvolutionFwdAlgo_t>,
    backward_input: Algorithms<sys::cudnnConvolutionBwdDataAlgo_t>,
    backward_weight: Algorithms<sys::cudnnConvolutionBwdFilterAlgo_t>,
}

/// The algorithms of a pass, from cuDNN's list.
macro_rules! list {
    ($plan:expr, $algorithms:expr, $g:expr, $pass:literal, $list:ident($($argument:expr),*) -> $Listed:ty) => {{
        const LISTED: usize = 16;
        if $algorithms.listed.get().is_none() {
            let mut listed = [const { MaybeUninit::<$Listed>::uninit() }; LISTED];
            let mut count: c_int = 0;
            // What another pass has chosen is none of this one's.
            // SAFETY: the descriptor lives as long as the plan.
            unsafe { result::set_convolution_math_type($plan.convolution, $plan.math) }.map_err(refused)?;
            // SAFETY: descriptors and handle are alive, and there is room for as many entries as are asked for.
            let done = unsafe { result::$list($($argument,)* LISTED as c_int, &mut count, listed.as_mut_ptr().cast()) };
            match done {
                Ok(()) => {}
                Err(error) if is_refusal(error) => count = 0,
                Err(error) => return Err(failure($g, $pass, error)),
            }
            let count = usize::try_from(count).unwrap_or(0).min(LISTED);
            // SAFETY: cuDNN has written so many entries.
            let listed = listed[..count].iter().map(|entry| unsafe { entry.assume_init_ref() });
            let usable = |entry: &&$Listed| {
                entry.status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS
                    && entry.memory <= LARGEST_WORKSPACE
                    && $plan.allows(entry.mathType)
            };
            let mut usable: Vec<&$Listed> = listed.filter(usable).collect();
            usable.sort_by_key(|entry| {
                let repeats = entry.determinism == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC;
                (!repeats, !is_on_tensor_cores(entry.mathType))
            });
            let choice = |entry: &$Listed| {
                Choice { algorithm: entry.algo, bytes: entry.memory, math: $plan.math_of(entry.mathType) }
            };
            let usable = usable.into_iter().map(choice).collect();
            debug(|| format!("{} of {:?}: {usable:?}", $pass, $g));
            let _ = $algorithms.listed.set(usable);
        }
        Ok(&$algorithms)
    }};
}

/// Whether an algorithm that computes in this way uses tensor cores.
fn is_on_tensor_cores(math: sys::cudnnMathType_t) -> bool {
    math == sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH
}

/// Whether cuDNN says that it does not, or cannot, do what it is asked for, and has done nothing.
fn is_refusal(CudnnError(status): CudnnError) -> bool {
    // CUDNN_STATUS_BAD_PARAM, NOT_SUPPORTED, INTERNAL_ERROR, and their kinds; not EXECUTION_FAILED, nor INTERNAL_ERROR for want of
    // memory: another algorithm would have other bits.
    const ALLOCATION_FAILED: [u32; 2] = [4003, 4004];
    (2000..5000).contains(&(status as u32)) && !ALLOCATION_FAILED.contains(&(status as u32))
}

/// Says something about convolutions on standard error, if the environment variable `TSBD_CUDA_DEBUG` is set.
fn debug(text: impl FnOnce() -> String) {
    if std::env::var_os("TSBD_CUDA_DEBUG").is_some() {
        eprintln!("cuDNN: {}", text());
    }
}

impl Plan {
    fn new(g: &Geometry, numbers: Numbers) -> Result<Self> {
        use sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        use sys::cudnnDataType_t::{CUDNN_DATA_BFLOAT16, CUDNN_DATA_FLOAT};
        use sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        let size = |size: usize| integer(OPERATION, size);
        let sizes = |sizes: [usize; 4]| -> Result<[c_int; 4]> {
            let [a, b, c, d] = sizes;
            Ok([size(a)?, size(b)?, size(c)?, size(d)?])
        };
        // cuDNN wants sizes in this order whatever the layout.
        let x_sizes = sizes([g.images, g.in_channels, g.height, g.width])?;
        let y_sizes = sizes([g.images, g.out_channels, g.out_height, g.out_width])?;
        let filter_sizes = sizes([g.out_channels, g.in_channels, g.kernel_height, g.kernel_width])?;
        let (padding, stride) = (size(g.padding)?, size(g.stride)?);
        let (data, math) = match numbers {
            Numbers::Bf16 => (CUDNN_DATA_BFLOAT16, sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH),
            Numbers::Tf32 | Numbers::Split => (CUDNN_DATA_FLOAT, sys::cudnnMathType_t::CUDNN_DEFAULT_MATH),
            Numbers::F32 => (CUDNN_DATA_FLOAT, sys::cudnnMathType_t::CUDNN_FMA_MATH),
        };
        let plan = Self {
            x: result::create_tensor_descriptor().map_err(refused)?,
            filter: result::create_filter_descriptor().map_err(refused)?,
            y: result::create_tensor_descriptor().map_err(refused)?,
            convolution: result::create_convolution_descriptor().map_err(refused)?,
            math,
            forward: Algorithms::default(),
            backward_input: Algorithms::default(),
            backward_weight: Algorithms::default(),
        };
        // SAFETY: the descriptors have just been made.
        unsafe {
            result::set_tensor4d_descriptor(plan.x, CUDNN_TENSOR_NHWC, data, x_sizes).map_err(refused)?;
            result::set_tensor4d_descriptor(plan.y, CUDNN_TENSOR_NHWC, data, y_sizes).map_err(refused)?;
            result::set_filter4d_descriptor(plan.filter, data, CUDNN_TENSOR_NHWC, filter_sizes).map_err(refused)?;
            result::set_convolution2d_descriptor(
                plan.convolution,
                padding,
                padding,
                stride,
                stride,
                1,
                1,
                CUDNN_CROSS_CORRELATION,
                CUDNN_DATA_FLOAT,
            )
            .map_err(refused)?;
            result::set_convolution_math_type(plan.convolution, math).map_err(refused)?;
        }
        Ok(plan)
    }

    /// Whether an algorithm that computes in this way may be used: not on tensor cores where factors would be rounded, and
    /// nowhere one that may round them to 16 bits of another kind.
    fn allows(&self, math: sys::cudnnMathType_t) -> bool {
        use sys::cudnnMathType_t::{CUDNN_DEFAULT_MATH, CUDNN_FMA_MATH, CUDNN_TENSOR_OP_MATH_ALLOW_CONVERSION};
        match self.math {
            CUDNN_FMA_MATH => matches!(math, CUDNN_FMA_MATH | CUDNN_DEFAULT_MATH),
            _ => math != CUDNN_TENSOR_OP_MATH_ALLOW_CONVERSION,
        }
    }

    /// How an algorithm of cuDNN's list is run that computes in this way: as it is listed, its workspace depends on it; but
    /// where factors are not to be rounded, what may round is not left to cuDNN.
    fn math_of(&self, listed: sys::cudnnMathType_t) -> sys::cudnnMathType_t {
        let exact = sys::cudnnMathType_t::CUDNN_FMA_MATH;
        if self.math == exact { exact } else { listed }
    }

    fn forward(&self, cudnn: &Cudnn, g: &Geometry) -> Result<&Algorithms<sys::cudnnConvolutionFwdAlgo_t>> {
        list!(self, self.forward, g, "forward", get_convolution_forward_algorithm(
            cudnn.handle, self.x, self.filter, self.convolution, self.y
        ) -> sys::cudnnConvolutionFwdAlgoPerf_t)
    }

    fn backward_input(&self, cudnn: &Cudnn, g: &Geometry) -> Result<&Algorithms<sys::cudnnConvolutionBwdDataAlgo_t>> {
        list!(self, self.backward_input, g, "backward to the input", get_convolution_backward_data_algorithm(
            cudnn.handle, self.filter, self.y, self.convolution, self.x
        ) -> sys::cudnnConvolutionBwdDataAlgoPerf_t)
    }

    fn backward_weight(
        &self,
        cudnn: &Cudnn,
        g: &Geometry,
    ) -> Result<&Algorithms<sys::cudnnConvolutionBwdFilterAlgo_t>> {
        list!(self, self.backward_weight, g, "backward to the weight", get_convolution_backward_filter_algorithm(
            cudnn.handle, self.x, self.y, self.convolution, self.filter
        ) -> sys::cudnnConvolutionBwdFilterAlgoPerf_t)
    }

    /// Computes by the first of the algorithms that cuDNN does not refuse when it comes to it. What was refused once is not
    /// tried again.
    fn attempt<A: Copy + Debug>(
        &self,
        (gpu, cudnn): (&Gpu, &mut Cudnn),
        g: &Geometry,
        pass: &'static str,
        algorithms: &Algorithms<A>,
        compute: impl Fn(sys::cudnnHandle_t, A, *mut c_void, usize) -> std::result::Result<(), CudnnError>,
    ) -> Result<()> {
        let listed = algorithms.listed.get().map_or(&[][..], Vec::as_slice);
        while let Some(choice) = listed.get(algorithms.refused.get()) {
            // SAFETY: the descriptor lives as long as the plan.
            unsafe { result::set_convolution_math_type(self.convolution, choice.math) }.map_err(refused)?;
            let workspace = cudnn.workspace(gpu, choice.bytes)?;
            match compute(cudnn.handle, choice.algorithm, workspace, choice.bytes) {
                // In a capture that has failed nothing is done any more, whatever the algorithm.
                Err(error) if is_refusal(error) && !gpu.is_captured() => {
                    debug(|| format!("{pass} of {g:?}: {choice:?} is refused: {}", failure(g, pass, error)));
                    algorithms.refused.set(algorithms.refused.get() + 1);
                }
                done => return done.map_err(|error| failure(g, pass, error)),
            }
        }
        debug(|| format!("{pass} of {g:?}: no algorithm"));
        Err(Error::NoAlgorithm { pass, geometry: format!("{g:?}") })
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `new`, used by nobody any more.
        unsafe {
            let _ = result::destroy_tensor_descriptor(self.x);
            let _ = result::destroy_tensor_descriptor(self.y);
            let _ = result::destroy_filter_descriptor(self.filter);
            let _ = result::destroy_convolution_descriptor(self.convolution);
        }
    }
}

fn refused(error: CudnnError) -> Error {
    Error::Candle(candle_core::Error::Msg(format!("cuDNN: {error}")))
}

fn failure(g: &Geometry, pass: &str, error: CudnnError) -> Error {
    let mut text = [0u8; 512];
    // SAFETY: there is room for so many bytes, of which the last stays 0.
    unsafe { sys::cudnnGetLastErrorString(text.as_mut_ptr().cast(), text.len() - 1) };
    let text = CStr::from_bytes_until_nul(&text).map(CStr::to_string_lossy).unwrap_or_default();
    Error::Candle(candle_core::Error::Msg(format!("cuDNN, {pass} of {g:?}: {error}: {text}")))
}
