//! Where tensors live and ops run. An enum, not a trait: the set is closed and ours. CUDA joins as a second variant, with one
//! more arm in the one `match` of each op.

use crate::Error;
use crate::cpu::pool::Pool;
use crate::cpu::simd::Isa;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Clone)]
pub enum Device {
    Cpu(Arc<Cpu>),
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cpu ({}, {} threads)", self.isa(), self.num_threads())
    }
}

/// The processor: a thread pool, the instruction set found at start, and a count of bytes.
pub struct Cpu {
    pub(crate) pool: Pool,
    pub(crate) isa: Isa,
    allocated: AtomicU64,
}

/// `None` means: what the machine has.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    pub threads: Option<usize>,
    pub isa: Option<Isa>,
}

impl Device {
    /// All processors of the machine and the best instruction set, unless told otherwise.
    pub fn cpu(threads: Option<usize>) -> Self {
        Self::cpu_with(CpuOptions { threads, isa: None })
            .expect("the best instruction set that was found is there")
    }

    pub fn cpu_with(options: CpuOptions) -> Result<Self, Error> {
        let CpuOptions { threads, isa } = options;
        let isa = isa.unwrap_or_else(Isa::best);
        if !isa.is_available() {
            return Err(Error::NoSuchIsa(isa));
        }
        let threads =
            threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1);
        Ok(Self::Cpu(Arc::new(Cpu { pool: Pool::new(threads), isa, allocated: AtomicU64::new(0) })))
    }

    /// Live bytes of the tensors, matrices and scratch buffers made on this device.
    pub fn allocated_bytes(&self) -> u64 {
        let Self::Cpu(cpu) = self;
        cpu.allocated.load(Ordering::Relaxed)
    }

    pub fn num_threads(&self) -> usize {
        let Self::Cpu(cpu) = self;
        cpu.pool.num_workers()
    }

    /// Calls `task(index, worker)` once for each index below `num_tasks` on the host threads of the device, and returns when all
    /// are done; `worker` is below [`Device::num_threads`]. For what is computed beside ops, such as sampling.
    pub fn for_each(&self, num_tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        let Self::Cpu(cpu) = self;
        cpu.pool.run(num_tasks, task);
    }

    pub fn isa(&self) -> Isa {
        let Self::Cpu(cpu) = self;
        cpu.isa
    }

    pub(crate) fn count_allocated(&self, bytes: usize) {
        let Self::Cpu(cpu) = self;
        cpu.allocated.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_freed(&self, bytes: usize) {
        let Self::Cpu(cpu) = self;
        cpu.allocated.fetch_sub(bytes as u64, Ordering::Relaxed);
    }
}
