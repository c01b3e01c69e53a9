//! The CPU side of each op, one file per op, and what they share: the pool, the vectors, ways to cut work into tasks.

pub(crate) mod affinity;
pub(crate) mod ahead;
pub(crate) mod attention;
mod attention_block;
pub(crate) mod attention_expanded;
mod attention_load;
#[cfg(target_arch = "x86_64")]
mod attention_pairs;
#[cfg(target_arch = "x86_64")]
mod attention_pairs_thin;
mod attention_thin;
mod compact;
mod dot;
pub(crate) mod gemm;
mod grouped;
pub(crate) mod interpolate;
pub(crate) mod moe;
pub(crate) mod norm;
pub(crate) mod pack;
pub(crate) mod peaks;
pub(crate) mod pool;
pub(crate) mod rope;
pub(crate) mod rounded;
pub(crate) mod route;
pub(crate) mod rows;
pub(crate) mod screen;
pub(crate) mod simd;
pub(crate) mod tile;

use crate::device::Cpu;
use crate::memory::Element;
use std::marker::PhantomData;

/// Elements of simple work below which handing it out costs more than it saves. Workers wait awake while a step runs, and lines that
/// one thread reads or writes after another take it some 30 ns each: eight rows are worth sharing out.
const SERIAL_ELEMENTS: usize = 4 << 10;

impl Cpu {
    /// Cuts `data` into blocks of `block_len` and hands them out: `work(index, block)`.
    pub(crate) fn for_blocks<T: Element>(
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

/// A slice that several tasks write to, each its own part.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: access goes through `slice`, whose callers keep parts disjoint.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

/// What several tasks read, of a slice that others wrote, or will write to.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a, T> {
    start: *const T,
    len: usize,
    borrowed: PhantomData<&'a [T]>,
}

// SAFETY: it only reads, and `SharedMut::reader` has the caller's promise.
unsafe impl<T: Sync> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Shared<'_, T> {}

impl<'a, T> From<&'a [T]> for Shared<'a, T> {
    fn from(data: &'a [T]) -> Self {
        Self { start: data.as_ptr(), len: data.len(), borrowed: PhantomData }
    }
}

impl<'a, T> Shared<'a, T> {
    /// What there is from an element on.
    pub fn from(&self, start: usize) -> &'a [T] {
        assert!(start <= self.len, "element {start} of {}", self.len);
        // SAFETY: in bounds; what `From` borrowed, or the promise of `SharedMut::reader`.
        unsafe { std::slice::from_raw_parts(self.start.add(start), self.len - start) }
    }
}

impl SharedMut<u32> {
    /// The same words as floats.
    pub fn floats(&self) -> SharedMut<f32> {
        SharedMut { start: self.start.cast(), len: self.len }
    }
}

impl<T> SharedMut<T> {
    /// To read what tasks have written.
    ///
    /// # Safety
    /// As long as a slice that the reader gave is in use, the slice borrowed by `new` is borrowed, and nobody writes to it.
    pub unsafe fn reader<'a>(self) -> Shared<'a, T> {
        Shared { start: self.start, len: self.len, borrowed: PhantomData }
    }

    /// The first elements.
    pub fn first(&self, len: usize) -> Self {
        assert!(len <= self.len, "{len} elements of {}", self.len);
        Self { start: self.start, len }
    }

    pub fn new(data: &mut [T]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len() }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// What is left from an element on.
    pub fn from(&self, start: usize) -> Self {
        Self { start: self.at(start), len: self.len - start }
    }

    /// # Safety
    /// The slice borrowed by `new` is still borrowed, and no other live part overlaps this one.
    #[allow(
        clippy::mut_from_ref,
        reason = "parts of one slice go to several threads; the caller promises that they do not overlap"
    )]
    pub unsafe fn slice<'a>(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start, "a part of {} + {len} of {}", start, self.len);
        // SAFETY: in bounds; the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// The address of an element, for kernels that write rows with a stride.
    pub fn at(&self, index: usize) -> *mut T {
        assert!(index <= self.len, "element {index} of {}", self.len);
        self.start.wrapping_add(index)
    }
}
