//! Where tensors live and ops run. An enum, not a trait: the set is closed and ours. Each op has one `match` over it.

use crate::cpu::processor::{Cpu, CpuOptions};
use crate::cpu::simd::Isa;
use crate::cuda::Cuda;
use crate::cuda::driver::Driver;
use crate::{ActivationChoice, ActivationType, Error, WeightType};
use std::fmt;
use std::sync::Arc;

#[derive(Clone)]
pub enum Device {
    Cpu(Arc<Cpu>),
    Cuda(Arc<Cuda>),
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(_) => write!(f, "cpu ({}, {} threads)", self.isa(), self.num_threads()),
            Self::Cuda(cuda) => write!(f, "cuda ({}, {})", cuda.info().name, cuda.info().arch()),
        }
    }
}

impl Device {
    /// All processors of the machine and the best instruction set, unless told otherwise.
    pub fn cpu(threads: Option<usize>) -> Self {
        Self::cpu_with(CpuOptions { threads, ..CpuOptions::default() })
            .expect("the best instruction set that was found is there")
    }

    pub fn cpu_with(options: CpuOptions) -> Result<Self, Error> {
        Ok(Self::Cpu(Arc::new(Cpu::new(options)?)))
    }

    /// What activations are rounded to before a product with weights of this type; queries of attention over a cache in bf16 are
    /// rounded as beside weights in bf16. On a GPU: not by us, its instructions take them
    /// in the type of the weights, beside quantised ones in bf16.
    pub fn activation_type(&self, weights: WeightType) -> ActivationType {
        match self {
            Self::Cpu(cpu) => cpu.rounds.beside(weights),
            Self::Cuda(_) => ActivationType::F32,
        }
    }

    /// Whether products with compact bf16 are as fast as with plain bf16, or faster: with AVX512-BF16 where rows are rounded to bf16, and with
    /// AVX2 (docs/performance/compact.md).
    pub fn prefers_compact(&self) -> bool {
        match self {
            Self::Cpu(cpu) => {
                cpu.isa == Isa::Avx2 || cpu.rounds.beside(WeightType::CompactBf16) == ActivationType::BF16
            }
            Self::Cuda(_) => false,
        }
    }

    /// What the device holds for its own ops, as `allocated_bytes` counts it.
    pub fn scratch_bytes(&self) -> u64 {
        match self {
            Self::Cpu(cpu) => 4 * cpu.scratch().len() as u64,
            Self::Cuda(_) => 0,
        }
    }

    /// A GPU behind this driver, with an arena of `arena_bytes`; `host` is the processor beside it.
    pub fn cuda(driver: Box<dyn Driver>, arena_bytes: u64, host: CpuOptions) -> Result<Self, Error> {
        let device = Self::cuda_without_memory(driver, host)?;
        device.reserve(arena_bytes)?;
        Ok(device)
    }

    /// A GPU whose memory is taken later, when it is known how much is needed: sizes may depend on the device.
    pub fn cuda_without_memory(driver: Box<dyn Driver>, host: CpuOptions) -> Result<Self, Error> {
        let host = CpuOptions { activations: ActivationChoice::F32, ..host };
        Ok(Self::Cuda(Arc::new(Cuda::new(driver, Arc::new(Cpu::new(host)?))?)))
    }

    /// Takes all the device memory there will be, once and before the first tensor. Nothing to do on the CPU.
    pub fn reserve(&self, bytes: u64) -> Result<(), Error> {
        match self {
            Self::Cpu(_) => Ok(()),
            Self::Cuda(cuda) => Ok(cuda.reserve(bytes)?),
        }
    }

    /// Bytes of memory, and how many of them nobody has taken; `None` for the host, which knows better how to ask.
    pub fn memory(&self) -> Option<[u64; 2]> {
        match self {
            Self::Cpu(_) => None,
            Self::Cuda(cuda) => Some([cuda.info().total_memory, cuda.info().free_memory]),
        }
    }

    /// What a number of tensors need in the arena beside their bytes, at most: they begin at round addresses, and apart.
    pub fn padding_bytes(&self, num_tensors: u64) -> u64 {
        match self {
            Self::Cpu(_) => 0,
            Self::Cuda(_) => num_tensors * Cuda::footprint(1),
        }
    }

    /// Live bytes of the tensors, matrices and scratch buffers made on this device.
    pub fn allocated_bytes(&self) -> u64 {
        match self {
            Self::Cpu(cpu) => cpu.allocated_bytes(),
            Self::Cuda(cuda) => cuda.allocated_bytes(),
        }
    }

    /// What is taken of the device's memory: with a GPU all of it at once, whatever lies in it.
    pub fn held_bytes(&self) -> u64 {
        match self {
            Self::Cpu(_) => self.allocated_bytes(),
            Self::Cuda(cuda) => cuda.reserved_bytes(),
        }
    }

    /// Of the host.
    pub fn num_threads(&self) -> usize {
        self.host().pool.num_workers()
    }

    /// Calls `task(index, worker)` once for each index below `num_tasks` on the host threads of the device, and returns when all
    /// are done; `worker` is below [`Device::num_threads`]. For what is computed beside ops, such as sampling.
    pub fn for_each(&self, num_tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        self.host().pool.run(num_tasks, task);
    }

    /// Of the host.
    pub fn isa(&self) -> Isa {
        self.host().isa
    }

    /// Compiles what a model with weights, tables and caches of these types launches, unless it is in the cache. Nothing to do on
    /// the CPU.
    pub fn prepare_kernels(&self, stored_as: &[WeightType]) -> Result<(), Error> {
        match self {
            Self::Cpu(_) => Ok(()),
            Self::Cuda(cuda) => Ok(cuda.prepare_for(stored_as)?),
        }
    }

    /// Waits for the work that ops have enqueued and reports what failed in it. Nothing to do on the CPU.
    pub fn synchronize(&self) -> Result<(), Error> {
        match self {
            Self::Cpu(_) => Ok(()),
            Self::Cuda(cuda) => Ok(cuda.synchronize()?),
        }
    }

    pub(crate) fn host(&self) -> &Arc<Cpu> {
        match self {
            Self::Cpu(cpu) => cpu,
            Self::Cuda(cuda) => &cuda.host,
        }
    }
}
