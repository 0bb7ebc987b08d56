//! Devices by their names.

use candle_core::Device;

use crate::error::{Error, Result};

/// The device named `cpu`, `cuda` (the first GPU) or `cuda:1`. Every call for a GPU makes a device of its own, with its
/// own stream: tensors of two of them do not meet in an operation, and each is used by one thread.
///
/// # Errors
/// [`Error::NoDevice`], with the reason and what to do: a name that is none, a program without CUDA, a machine without a
/// driver, a library or that GPU.
pub fn device(name: &str) -> Result<Device> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "cuda" => gpu(name, 0),
        other => match other.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(ordinal)) => gpu(name, ordinal),
            _ => Err(none(name, "there is no such device".to_owned(), "use `cpu`, `cuda` or `cuda:1`")),
        },
    }
}

/// A GPU, as the driver describes it; nothing is opened on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuFacts {
    /// Its number: it is the device `cuda:ordinal`. `CUDA_VISIBLE_DEVICES` decides which GPU has which.
    pub ordinal: usize,
    /// What it is called, `NVIDIA H200`.
    pub name: String,
    /// What it is called by everybody on this machine, `GPU-8932f937-d72c-4106-c12f-20bd9faed9f6`.
    pub uuid: String,
    /// All of its memory.
    pub memory_bytes: u64,
}

/// The GPUs of this machine that `names` say: `cuda` is all of them, `cuda:1` one, `cuda:0,cuda:2` several.
///
/// # Errors
/// [`Error::NoDevice`], with the reason and what to do, as [`device`].
pub fn gpus(names: &str) -> Result<Vec<GpuFacts>> {
    chosen(names, seen(names)?)
}

fn chosen(names: &str, all: Vec<GpuFacts>) -> Result<Vec<GpuFacts>> {
    if all.is_empty() {
        let reason = "CUDA_ERROR_NO_DEVICE";
        return Err(none(names, reason.to_owned(), gpu_way_out(reason).unwrap_or_default()));
    }
    if names == "cuda" {
        return Ok(all);
    }
    let mut chosen: Vec<GpuFacts> = Vec::new();
    for name in names.split(',') {
        let ordinal = name.strip_prefix("cuda:").map(str::parse::<usize>);
        let Some(Ok(ordinal)) = ordinal else {
            return Err(none(name, "there is no such GPU".to_owned(), "use `cuda`, `cuda:1` or `cuda:0,cuda:1`"));
        };
        let Some(gpu) = all.iter().find(|gpu| gpu.ordinal == ordinal) else {
            let reason = format!("the driver sees {} of them, counted from 0", all.len());
            return Err(none(name, reason, "nvidia-smi lists them"));
        };
        if chosen.contains(gpu) {
            return Err(none(name, "it is named twice".to_owned(), "name each GPU once"));
        }
        chosen.push(gpu.clone());
    }
    Ok(chosen)
}

/// Most memory that tensors of this process have taken on the GPU `name` (`cuda`, `cuda:1`) so far, in bytes; `None` for the
/// CPU and where the driver does not tell.
pub fn peak_gpu_memory(name: &str) -> Option<u64> {
    peak(ordinal(name)?)
}

/// Lets [`peak_gpu_memory`] count from now on. Nothing, of the CPU.
pub fn forget_peak_gpu_memory(name: &str) {
    ordinal(name).into_iter().for_each(forget_peak);
}

/// Gives memory back that this process has of the GPU `name` and that no tensor is in: it is kept for the next tensors otherwise.
/// Nothing, of the CPU.
pub fn give_back_gpu_memory(name: &str) {
    ordinal(name).into_iter().for_each(give_back);
}

fn ordinal(name: &str) -> Option<usize> {
    if name == "cuda" { Some(0) } else { name.strip_prefix("cuda:")?.parse().ok() }
}

/// Whether an error of CUDA, whose text is `reason`, says that the GPU has no memory left.
pub fn lacks_gpu_memory(reason: &str) -> bool {
    const CODES: [&str; 4] = [
        "CUDA_ERROR_OUT_OF_MEMORY",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CURAND_STATUS_ALLOCATION_FAILED",
        "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    ];
    CODES.iter().any(|code| reason.contains(code))
}

/// What to do about an error of CUDA, whose text is `reason`; `None` if it is none that can be helped by the user.
pub fn gpu_way_out(reason: &str) -> Option<&'static str> {
    Some(if reason.contains("CUDA_ERROR_STUB_LIBRARY") {
        "there is no NVIDIA driver here: use `cpu`, or a machine with one (nvidia-smi shows it)"
    } else if reason.contains("CUDA_ERROR_NO_DEVICE") {
        "the driver sees no GPU (CUDA_VISIBLE_DEVICES hides some): use `cpu`"
    } else if reason.contains("CUDA_ERROR_INVALID_DEVICE") {
        "there are fewer GPUs, counted from 0: nvidia-smi lists them"
    } else if lacks_gpu_memory(reason) {
        "the GPU's memory is full: run fewer cells on it (--cells-per-gpu), use a smaller batch, or a GPU with more; nvidia-smi \
         says who else uses it"
    } else if reason.contains("CUDA_ERROR_MPS_") {
        "NVIDIA's Multi-Process Service does not answer, or waits for others after a fault: run the same command again, or \
         without --sharing mps"
    } else if reason.starts_with(OLD_DRIVER) || reason.contains("SYSTEM_DRIVER_MISMATCH") {
        "CUDA 13.0 needs a driver of version 580 or newer: nvidia-smi says which this is; or use `cpu`"
    } else if reason.starts_with(OLD_GPU) {
        "GPUs from compute capability 8.0 on are supported (A100, RTX 30 and newer): use another, or `cpu`"
    } else {
        return None;
    })
}

/// How errors about what is too old begin.
pub(crate) const OLD_DRIVER: &str = "an old driver";
pub(crate) const OLD_GPU: &str = "an old GPU";

#[cfg(not(feature = "cuda"))]
fn without_cuda(name: &str) -> Error {
    none(name, "this program was built without CUDA".to_owned(), "build it with `make build-cuda`, or use `cpu`")
}

#[cfg(not(feature = "cuda"))]
fn gpu(name: &str, _ordinal: usize) -> Result<Device> {
    Err(without_cuda(name))
}

#[cfg(not(feature = "cuda"))]
fn seen(names: &str) -> Result<Vec<GpuFacts>> {
    Err(without_cuda(names))
}

#[cfg(not(feature = "cuda"))]
fn peak(_ordinal: usize) -> Option<u64> {
    None
}

#[cfg(not(feature = "cuda"))]
fn forget_peak(_ordinal: usize) {}

#[cfg(not(feature = "cuda"))]
fn give_back(_ordinal: usize) {}

#[cfg(feature = "cuda")]
fn gpu(name: &str, ordinal: usize) -> Result<Device> {
    crate::kernels::cuda::devices::open(ordinal).map_err(|error| unavailable(name, error))
}

#[cfg(feature = "cuda")]
fn seen(names: &str) -> Result<Vec<GpuFacts>> {
    crate::kernels::cuda::gpu::seen().map_err(|error| unavailable(names, error))
}

#[cfg(feature = "cuda")]
fn peak(ordinal: usize) -> Option<u64> {
    crate::kernels::cuda::gpu::peak_memory(ordinal).ok()
}

/// Where the driver cannot, more is told than was taken.
#[cfg(feature = "cuda")]
fn forget_peak(ordinal: usize) {
    let _ = crate::kernels::cuda::gpu::forget_peak_memory(ordinal);
}

/// Where the driver cannot, more is kept than is needed.
#[cfg(feature = "cuda")]
fn give_back(ordinal: usize) {
    let _ = crate::kernels::cuda::gpu::give_back_memory(ordinal);
}

#[cfg(feature = "cuda")]
fn unavailable(name: &str, error: candle_core::Error) -> Error {
    const LIBRARIES: &str = "cuBLAS and cuDNN for CUDA 13 have to be there: pip install 'torch>=2.11', or a toolkit; \
                             name its folder in CUDA_LAZY_PATH; with CUDA_LAZY_DEBUG=1 the program says where it looks";
    let text = error.to_string();
    let reason = text.lines().next().unwrap_or_default().to_owned();
    let way_out = gpu_way_out(&reason).unwrap_or(LIBRARIES);
    none(name, reason, way_out)
}

fn none(name: &str, reason: String, way_out: &'static str) -> Error {
    Error::NoDevice { device: name.to_owned(), reason, way_out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_always_there_and_other_names_are_refused_with_a_way_out() {
        assert!(device("cpu").unwrap().is_cpu());
        for name in ["gpu", "cuda:", "cuda:x", "cuda0", ""] {
            let error = device(name).unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")) && error.contains("use `cpu`"), "{error}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_program_without_cuda_says_how_to_get_one_with_it() {
        let error = device("cuda:1").unwrap_err().to_string();
        assert!(
            error.contains("`cuda:1`: this program was built without CUDA; build it with `make build-cuda`"),
            "{error}"
        );
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_program_without_cuda_has_no_gpus() {
        for names in ["cuda", "cuda:0", "cuda:0,cuda:1"] {
            assert!(gpus(names).unwrap_err().to_string().contains("built without CUDA"), "{names}");
        }
        assert_eq!(peak_gpu_memory("cuda"), None);
    }

    #[test]
    fn gpus_are_chosen_of_those_that_the_driver_lists_and_there_has_to_be_one() {
        let gpu = |ordinal| GpuFacts { ordinal, name: "GPU".into(), uuid: ordinal.to_string(), memory_bytes: 1 << 30 };
        for names in ["cuda", "cuda:0"] {
            let error = chosen(names, vec![]).unwrap_err().to_string();
            assert!(error.contains("CUDA_ERROR_NO_DEVICE") && error.contains("use `cpu`"), "{error}");
        }
        let both = vec![gpu(0), gpu(1)];
        assert_eq!(chosen("cuda", both.clone()).unwrap(), both);
        assert_eq!(chosen("cuda:1", both.clone()).unwrap(), [gpu(1)]);
        assert!(chosen("cuda:2", both).unwrap_err().to_string().contains("the driver sees 2 of them"));
    }

    #[test]
    fn errors_that_a_user_can_help_have_a_way_out() {
        let full = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        assert!(gpu_way_out(full).unwrap().contains("--cells-per-gpu"));
        assert_eq!(gpu_way_out("the loss is not finite"), None);
        assert!(lacks_gpu_memory(full) && lacks_gpu_memory("CublasError(CUBLAS_STATUS_ALLOC_FAILED)"));
        assert!(!lacks_gpu_memory("CUDA_ERROR_ILLEGAL_ADDRESS"));
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn a_machine_without_a_driver_is_told_so_and_one_with_a_gpu_opens_it() {
        match device("cuda") {
            Ok(device) => assert!(device.is_cuda()),
            Err(Error::NoDevice { reason, way_out, .. }) => {
                let known = ["CUDA_ERROR_STUB_LIBRARY", "CUDA_ERROR_NO_DEVICE"];
                assert!(known.iter().any(|error| reason.contains(error)), "{reason}; {way_out}");
                assert!(way_out.contains("use `cpu`"), "{way_out}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}
