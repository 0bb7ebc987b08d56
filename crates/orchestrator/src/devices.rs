//! What the cells of a run compute on, and how many of them at a time.
//!
//! On a CPU so many cells run as the user says. On GPUs each cell has one of them to itself or shares it with others, as
//! [`GpuSharing`] says. A small network leaves most of a GPU idle, so with [`CellsPerGpu::Auto`] another cell is started while
//! the GPU is not busy and has memory for it.

pub(crate) mod mps;
#[cfg(feature = "cuda")]
mod nvml;
pub(crate) mod places;

use tsbd_tensor::GpuFacts;

/// What the cells of a run compute on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Devices {
    /// The CPU, whose threads are divided among so many cells at a time. A cell uses all cores, so 1 is right there.
    Cpu {
        /// Cells at a time; at least 1.
        workers: usize,
    },
    /// These GPUs of this machine.
    Gpus {
        /// At least one.
        gpus: Vec<GpuFacts>,
        /// How many cells share one.
        cells: CellsPerGpu,
        /// How they do so.
        sharing: GpuSharing,
    },
}

/// How the cells that share a GPU do so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuSharing {
    /// In one process, each with a thread and a stream of its own, at the same time. After a fault of the device each of them
    /// is computed again, from its last checkpoint, in a process of its own.
    OneProcess,
    /// In a process each, at the same time, by NVIDIA's Multi-Process Service if the machine has it. A fault of the device
    /// ends all of them.
    Mps,
    /// In a process each: they take turns. A fault of the device ends one of them.
    Turns,
}

/// How many cells share a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CellsPerGpu {
    /// So many, at least 1; fewer where the GPU has too little memory for them.
    Exactly(usize),
    /// As many as it has memory for and as keep it busy, up to 8: a further one is started when those that are there have
    /// computed for a while and the GPU still has nothing to do for a tenth of the time, or fewer than 4 compute at the same
    /// time. Once so many have run together, another one takes the place of each that ends at once. Fewer where memory was too
    /// little after all; one, where nothing can be measured.
    Auto,
}

impl Devices {
    /// The devices to try the Multi-Process Service on, if cells are to use it.
    pub(crate) fn to_share(&self) -> Vec<String> {
        match self {
            Self::Gpus { gpus, sharing: GpuSharing::Mps, .. } => {
                gpus.iter().map(|gpu| format!("cuda:{}", gpu.ordinal)).collect()
            }
            _ => vec![],
        }
    }

    /// Threads for each child, of `threads` that there are.
    pub(crate) fn threads_per_child(&self, threads: usize) -> usize {
        // How many cells will share a GPU is not known beforehand; the CPU's part of their work is small.
        const EXPECTED: usize = 4;
        let children = match self {
            Self::Cpu { workers } => *workers,
            Self::Gpus { gpus, sharing: GpuSharing::OneProcess, .. } => gpus.len(),
            Self::Gpus { gpus, cells: CellsPerGpu::Exactly(cells), .. } => gpus.len() * cells,
            Self::Gpus { gpus, cells: CellsPerGpu::Auto, .. } => gpus.len() * EXPECTED,
        };
        (threads / children.max(1)).max(1)
    }
}

/// What a GPU does at a moment, whoever uses it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Load {
    /// Memory that nobody has.
    pub free_bytes: u64,
    /// Share of the last moments in which it computed, 0 to 1.
    pub busy: f64,
}

/// Where loads are read.
pub(crate) trait Meter: Send {
    /// The load of a GPU; `None` if it cannot be read.
    fn read(&mut self, gpu: &GpuFacts) -> Option<Load>;
}

/// A meter that reads nothing.
struct Blind;

impl Meter for Blind {
    fn read(&mut self, _gpu: &GpuFacts) -> Option<Load> {
        None
    }
}

#[cfg(feature = "cuda")]
fn meter() -> Box<dyn Meter> {
    match nvml::Nvml::new() {
        Some(nvml) => Box::new(nvml),
        None => Box::new(Blind),
    }
}

#[cfg(not(feature = "cuda"))]
fn meter() -> Box<dyn Meter> {
    Box::new(Blind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_divide_the_threads_and_the_one_process_of_a_gpu_has_all_of_its_share() {
        assert_eq!(Devices::Cpu { workers: 3 }.threads_per_child(8), 2);
        assert_eq!(Devices::Cpu { workers: 3 }.threads_per_child(1), 1);
        let gpu = |ordinal| GpuFacts { ordinal, name: "Test".into(), uuid: String::new(), memory_bytes: 1 << 30 };
        let gpus: Vec<_> = (0..2).map(gpu).collect();
        let of = |sharing| Devices::Gpus { gpus: gpus.clone(), cells: CellsPerGpu::Exactly(4), sharing };
        assert_eq!(of(GpuSharing::OneProcess).threads_per_child(16), 8);
        assert_eq!(of(GpuSharing::Turns).threads_per_child(16), 2);
    }
}
