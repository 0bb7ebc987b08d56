//! Numbers that a GPU has computed, on their way to the host.

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};

/// A queue of small tensors of a GPU that the host reads later, each as it was when it was put in, and without waiting for
/// what the GPU has been asked for since.
#[derive(Debug)]
pub struct Readback {
    #[cfg(feature = "cuda")]
    mailbox: crate::kernels::cuda::gpu::Mailbox,
    #[cfg(not(feature = "cuda"))]
    never: std::convert::Infallible,
}

impl Readback {
    /// Room for `slots` tensors of `count` numbers (`f32`) of `device`, a GPU.
    pub fn new(device: &Device, slots: usize, count: usize) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(cuda) = device {
            return Ok(Self { mailbox: crate::kernels::cuda::gpu::Mailbox::new(cuda, slots, count)? });
        }
        let _ = (slots, count);
        let location = format!("{:?}", device.location());
        Err(Error::value("readback", "device", location, "what a CPU computes is read where it is"))
    }

    /// Puts in what `numbers` will hold when the GPU has done what it has been asked for so far.
    ///
    /// # Errors
    /// If there is no room, or `numbers` are of another type, count or device.
    pub fn put(&mut self, numbers: &Tensor) -> Result<()> {
        #[cfg(feature = "cuda")]
        return self.mailbox.put(numbers);
        #[cfg(not(feature = "cuda"))]
        match (self.never, numbers) {}
    }

    /// Waits for the first of those that are in it, and takes it out.
    ///
    /// # Errors
    /// If there is none, or the GPU has failed.
    pub fn take(&mut self) -> Result<Vec<f32>> {
        #[cfg(feature = "cuda")]
        return self.mailbox.take();
        #[cfg(not(feature = "cuda"))]
        match self.never {}
    }
}
