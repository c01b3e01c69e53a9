//! The processor as a device: its threads, its instruction set, its memory, and ways to cut simple work into tasks.

use super::affinity;
use super::pool::Pool;
use super::rounds::Rounds;
use super::shared::SharedMut;
use super::simd::Isa;
use crate::activation_type::ActivationChoice;
use crate::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The processor: a thread pool, the instruction set found at start, and a count of bytes.
pub struct Cpu {
    pub(crate) pool: Pool,
    pub(crate) isa: Isa,
    pub(crate) rounds: Rounds,
    /// Rounded activations of the op that runs; empty where none are.
    scratch: Mutex<Vec<u32>>,
    allocated: AtomicU64,
}

/// Words of rounded activations at a time: some hundreds of rows.
const SCRATCH_WORDS: usize = 1 << 20;

/// Elements of simple work below which handing it out costs more than it saves. Workers wait awake while a step runs, and lines that
/// one thread reads or writes after another take it some 30 ns each: eight rows are worth sharing out.
const SERIAL_ELEMENTS: usize = 4 << 10;

/// `None` means: what the machine has.
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    pub threads: Option<usize>,
    /// The CPUs that the threads are pinned to, one each, by the system's numbers; the thread that makes the device is the first. Empty:
    /// the system places them.
    pub cpus: Vec<usize>,
    pub isa: Option<Isa>,
    /// Of products on this processor; a GPU's are its own affair.
    pub activations: ActivationChoice,
}

impl Cpu {
    pub fn new(options: CpuOptions) -> Result<Self, Error> {
        let CpuOptions { threads, cpus, isa, activations } = options;
        let isa = isa.unwrap_or_else(Isa::best);
        if !isa.is_available() {
            return Err(Error::NoSuchIsa(isa));
        }
        let threads = threads.unwrap_or_else(|| match cpus.len() {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            given => given,
        });
        let threads = threads.max(1);
        if !cpus.is_empty() && cpus.len() != threads {
            return Err(Error::PinCount { threads, cpus: cpus.len() });
        }
        if let Some(&cpu) = cpus.iter().find(|&&cpu| !affinity::is_allowed(cpu)) {
            return Err(Error::CannotPin(cpu));
        }
        let rounds = Rounds::new(activations, isa)?;
        let scratch = vec![0; if rounds.any() { SCRATCH_WORDS } else { 0 }];
        let allocated = AtomicU64::new(4 * scratch.len() as u64);
        Ok(Self { pool: Pool::new(threads, &cpus)?, isa, rounds, scratch: Mutex::new(scratch), allocated })
    }

    pub(crate) fn allocated_bytes(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed)
    }

    /// For rounded activations, one op at a time.
    pub(crate) fn scratch(&self) -> MutexGuard<'_, Vec<u32>> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count_allocated(&self, bytes: usize) {
        self.allocated.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_freed(&self, bytes: usize) {
        self.allocated.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    /// Cuts `data` into blocks of `block_len` and hands them out: `work(index, block)`.
    pub(crate) fn for_blocks<T: Send>(
        &self,
        data: &mut [T],
        block_len: usize,
        work: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let num_blocks = data.len().div_ceil(block_len.max(1));
        if num_blocks <= 1 || self.pool.num_workers() == 1 {
            return data.chunks_mut(block_len.max(1)).enumerate().for_each(|(i, block)| work(i, block));
        }
        let shared = SharedMut::new(data);
        self.pool.run(num_blocks, &|index, _| {
            let start = index * block_len;
            // SAFETY: blocks do not overlap, and each index is handed out once.
            work(index, unsafe { shared.slice(start, block_len.min(shared.len() - start)) });
        });
    }

    /// How many of `count` things make a task; `cost` is about the elements that one of them touches. What is little is one task, and of what is
    /// much there are no more tasks than even out the workers: each has to be taken and counted.
    pub(crate) fn per_block(&self, count: usize, cost: usize) -> usize {
        if count * cost <= SERIAL_ELEMENTS {
            return count.max(1);
        }
        (SERIAL_ELEMENTS / 2).div_ceil(cost).max(count.div_ceil(self.pool.num_workers() * 16))
    }

    /// Calls `work` for each index below `count`, some at a time; `cost` is about the elements that one call touches.
    pub(crate) fn for_each(&self, count: usize, cost: usize, work: impl Fn(usize) + Sync) {
        let block = self.per_block(count, cost);
        self.pool.run(count.div_ceil(block), &|index, _| {
            (index * block..count.min((index + 1) * block)).for_each(&work);
        });
    }

    /// Rows of `out`, some at a time: `work(first_row, rows)`. For work that costs about as much as touching its output.
    pub(crate) fn for_rows(&self, out: &mut [f32], row_len: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
        if out.is_empty() {
            return;
        }
        let num_rows = out.len() / row_len;
        let rows_per_block = if out.len() <= SERIAL_ELEMENTS {
            num_rows
        } else {
            (SERIAL_ELEMENTS / 2).div_ceil(row_len).max(num_rows.div_ceil(self.pool.num_workers() * 8))
        };
        self.for_blocks(out, rows_per_block * row_len, |index, block| work(index * rows_per_block, block));
    }
}
