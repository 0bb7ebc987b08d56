//! Work of a GPU that is recorded once and done again with one call: a CUDA graph.
//!
//! A training step is hundreds of launches, each a call of the driver; done again from a recording they are one call.

use std::sync::OnceLock;

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};

/// Environment variable that turns recording off (`0`) and on (`1`, the default).
const VARIABLE: &str = "TSBD_CUDA_GRAPHS";

/// What a GPU was asked for, to be done again with the same memory.
#[derive(Debug)]
pub struct Recording {
    #[cfg(feature = "cuda")]
    graph: crate::kernels::cuda::gpu::Graph,
    #[cfg(not(feature = "cuda"))]
    never: std::convert::Infallible,
    /// The memory that the graph uses beside what it allocates itself.
    _lasting: Vec<Tensor>,
}

impl Recording {
    /// Whether work on `device` can be recorded: on a GPU, unless the environment variable `TSBD_CUDA_GRAPHS` is `0`.
    ///
    /// # Errors
    /// If the variable is something else than `0` and `1`.
    pub fn is_possible(device: &Device) -> Result<bool> {
        static FROM_ENVIRONMENT: OnceLock<std::result::Result<bool, String>> = OnceLock::new();
        let read = || parse(std::env::var_os(VARIABLE).map(|text| text.to_string_lossy().into_owned()));
        match FROM_ENVIRONMENT.get_or_init(read) {
            Ok(is_wanted) => Ok(*is_wanted && device.is_cuda()),
            Err(text) => Err(Error::value("recording", VARIABLE, text, "set it to `0` or `1`, or unset it")),
        }
    }

    /// Records what `work` asks of `device`, which does nothing of it yet.
    ///
    /// `lasting` are all tensors that were there before and that `work` reads or changes: their memory is kept for as long as
    /// the recording, and each [replay](Self::replay) uses what it holds then. Tensors that `work` makes are gone when it
    /// returns. It must have been done once before on this thread, so that everything it needs is loaded and chosen, and
    /// must neither read a number nor bring one to the GPU.
    ///
    /// # Errors
    /// What `work` returns, or why the driver cannot record it; the device is as before.
    pub fn of<E: From<Error>>(
        device: &Device,
        lasting: Vec<Tensor>,
        work: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<Recording, E> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(cuda) = device {
            let graph = crate::kernels::cuda::gpu::Graph::record(cuda, work)?;
            return Ok(Recording { graph, _lasting: lasting });
        }
        let _ = (lasting, work);
        let location = format!("{:?}", device.location());
        Err(Error::value("recording", "device", location, "only what a GPU does is recorded").into())
    }

    /// Does it again, after what the device has been asked for so far.
    pub fn replay(&self) -> Result<()> {
        #[cfg(feature = "cuda")]
        return self.graph.launch();
        #[cfg(not(feature = "cuda"))]
        match self.never {}
    }
}

fn parse(text: Option<String>) -> std::result::Result<bool, String> {
    match text.as_deref() {
        None | Some("1") => Ok(true),
        Some("0") => Ok(false),
        Some(other) => Err(other.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_variable_is_0_or_1() {
        assert_eq!(parse(None), Ok(true));
        assert_eq!(parse(Some("1".into())), Ok(true));
        assert_eq!(parse(Some("0".into())), Ok(false));
        assert_eq!(parse(Some("no".into())), Err("no".to_owned()));
    }

    #[test]
    fn what_the_cpu_does_is_not_recorded_and_not_done() {
        assert!(!Recording::is_possible(&Device::Cpu).unwrap());
        let refused = Recording::of(&Device::Cpu, vec![], || -> Result<()> { panic!("done") });
        assert!(refused.unwrap_err().to_string().contains("only what a GPU does is recorded"));
    }
}
