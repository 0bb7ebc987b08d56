//! Loads as NVIDIA's management library tells them, which comes with every driver.

use nvml_wrapper::Nvml as Library;
use tsbd_tensor::GpuFacts;

use super::{Load, Meter};

/// The library, opened.
pub(super) struct Nvml(Library);

impl Nvml {
    /// Where containers are given the driver, if the system does not look there.
    const IN_CONTAINERS: &str = "/usr/local/nvidia/lib64/libnvidia-ml.so.1";

    /// `None` where there is no driver, or one without the library.
    pub fn new() -> Option<Self> {
        let elsewhere = || Library::builder().lib_path(Self::IN_CONTAINERS.as_ref()).init();
        Library::init().or_else(|_| elsewhere()).ok().map(Self)
    }
}

impl Meter for Nvml {
    fn read(&mut self, gpu: &GpuFacts) -> Option<Load> {
        // By its UUID: the library counts GPUs that CUDA_VISIBLE_DEVICES hides too.
        let device = self.0.device_by_uuid(gpu.uuid.as_str()).ok()?;
        let free_bytes = device.memory_info().ok()?.free;
        let busy = f64::from(device.utilization_rates().ok()?.gpu) / 100.;
        Some(Load { free_bytes, busy })
    }
}
