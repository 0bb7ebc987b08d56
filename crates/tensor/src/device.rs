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

#[cfg(not(feature = "cuda"))]
fn gpu(name: &str, _ordinal: usize) -> Result<Device> {
    Err(none(name, "this program was built without CUDA".to_owned(), "build it with `make build-cuda`, or use `cpu`"))
}

#[cfg(feature = "cuda")]
fn gpu(name: &str, ordinal: usize) -> Result<Device> {
    crate::kernels::cuda::gpu::open(ordinal).map_err(|error| {
        let text = error.to_string();
        let reason = text.lines().next().unwrap_or_default().to_owned();
        let way_out = way_out(&reason);
        none(name, reason, way_out)
    })
}

/// What helps, by the name of the error.
#[cfg(feature = "cuda")]
fn way_out(reason: &str) -> &'static str {
    if reason.contains("CUDA_ERROR_STUB_LIBRARY") {
        "there is no NVIDIA driver here: use `cpu`, or a machine with one (nvidia-smi shows it)"
    } else if reason.contains("CUDA_ERROR_NO_DEVICE") {
        "the driver sees no GPU (CUDA_VISIBLE_DEVICES hides some): use `cpu`"
    } else if reason.contains("CUDA_ERROR_INVALID_DEVICE") {
        "there are fewer GPUs, counted from 0: nvidia-smi lists them"
    } else if reason.contains("CUDA_ERROR_OUT_OF_MEMORY") {
        "the GPU's memory is taken: nvidia-smi says by whom"
    } else if reason.contains("INSUFFICIENT_DRIVER") || reason.contains("SYSTEM_DRIVER_MISMATCH") {
        "the driver is older than CUDA 13.0 needs (580)"
    } else {
        "cuBLAS, cuRAND and cuDNN for CUDA 13 have to be there: pip install 'torch>=2.11', or a toolkit; name its folder in \
         CUDA_LAZY_PATH; with CUDA_LAZY_DEBUG=1 the program says where it looks"
    }
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
