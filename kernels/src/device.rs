//! Where tensors live. An enum, not a trait: the set is closed and ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A device. Cloning is cheap.
#[derive(Debug, Clone)]
pub enum Device {
    Cpu(Arc<Cpu>),
}

#[derive(Debug)]
pub struct Cpu {
    threads: usize,
    allocated: AtomicU64,
}

impl Device {
    /// `threads`: `None` is one for each core.
    pub fn cpu(threads: Option<usize>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Device::Cpu(Arc::new(Cpu { threads: threads.unwrap_or(cores).max(1), allocated: AtomicU64::new(0) }))
    }

    pub fn num_threads(&self) -> usize {
        let Device::Cpu(cpu) = self;
        cpu.threads
    }

    /// Bytes of all live tensors, matrices and workspaces on this device.
    pub fn allocated_bytes(&self) -> u64 {
        let Device::Cpu(cpu) = self;
        cpu.allocated.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self, bytes: u64) {
        let Device::Cpu(cpu) = self;
        cpu.allocated.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn discount(&self, bytes: u64) {
        let Device::Cpu(cpu) = self;
        cpu.allocated.fetch_sub(bytes, Ordering::Relaxed);
    }
}
