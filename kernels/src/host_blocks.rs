//! A second place for blocks of a device's tensors, in the host's memory: what a block holds is copied there, and back into another block, beside
//! the device's own queue.
//!
//! ```text
//! place h of the host:  block b of the first tensor │ of the second │ …      a block is so many rows of each
//! device   ─────── store: waits for the copies ── work …   ── join: waits for all loads ── work
//! stores      b → h ─┘
//! loads    mark ─▶ (after the stores) h → b'            told as done, one after the other
//! ```
//! Where tensors of one size lie at equal distances, as those of a cache's layers do, a block is one copy of rows that lie so far apart. Copies do
//! not look at what they move: it comes back with the same bits. Moves 2 · block bytes: once over the device's memory, once over its bus.

use crate::cuda::Cuda;
use crate::cuda::driver::{CopyRows, DevicePtr, Event, Stream};
use crate::cuda::error::{CudaError, Result};
use crate::{DType, Device, Error, Tensor};
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Instant;

/// A block of the device, and a place of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockMove {
    pub block: usize,
    pub place: usize,
}

/// Microseconds that copies took on the device, or on the processor that is one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyTimes {
    pub store_us: u64,
    pub load_us: u64,
}

pub struct HostBlocks {
    num_places: usize,
    /// Of each tensor that is in a block.
    rows_per_block: usize,
    /// Of all tensors.
    block_bytes: usize,
    memory: Memory,
    times: CopyTimes,
}

enum Memory {
    /// `[places, bytes]`; copies are done when they were asked for.
    Processor {
        places: Tensor,
        num_loaded: usize,
    },
    Pinned(Queues),
}

/// Pinned memory, and a queue for each direction.
struct Queues {
    cuda: Arc<Cuda>,
    start: NonNull<u8>,
    stores: Stream,
    loads: Stream,
    /// Of the device's own queue: what comes before the loads.
    mark: Event,
    /// The last store, and the last load.
    stored: Event,
    loaded: Event,
    /// Copies that are not known to be done, in their order.
    storing: VecDeque<Span>,
    loading: VecDeque<Span>,
    /// Asked for before: they can be recorded again.
    free: Vec<Event>,
}

/// From the first of some copies to behind the last.
#[derive(Clone, Copy)]
struct Span {
    start: Event,
    end: Event,
}

// SAFETY: the memory belongs to the queues alone, and copies are asked for through `&mut` only.
unsafe impl Send for Queues {}

/// What a block is of one tensor or of several that lie at equal distances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    start: DevicePtr,
    pitch: u64,
    width: usize,
    height: usize,
}

impl HostBlocks {
    /// Room for `num_places` blocks of `rows_per_block` rows of each of `tensors`, which are on `device`. All of it is taken now.
    pub fn new<'a>(
        device: &Device,
        tensors: impl Iterator<Item = &'a mut Tensor>,
        rows_per_block: usize,
        num_places: usize,
    ) -> std::result::Result<Self, Error> {
        let block_bytes = tensors.map(|tensor| rows_per_block * row_bytes(tensor)).sum::<usize>();
        let memory = match device {
            Device::Cpu(_) => {
                let places = Tensor::zeros(device, DType::U8, &[num_places, block_bytes]);
                Memory::Processor { places, num_loaded: 0 }
            }
            Device::Cuda(cuda) => {
                let bytes = num_places.checked_mul(block_bytes).expect("sizes were planned");
                Memory::Pinned(Queues::new(cuda, bytes)?)
            }
        };
        Ok(Self { num_places, rows_per_block, block_bytes, memory, times: CopyTimes::default() })
    }

    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Loads from here on come after all that the device's own queue has by now.
    pub fn mark(&mut self) {
        if let Memory::Pinned(Queues { cuda, mark, .. }) = &self.memory {
            cuda.note(cuda.driver.record(*mark, cuda.stream()));
        }
    }

    /// Copies blocks to the host. What they hold is known to be there, and the device's queue goes on when they are copied. No place may be one that is
    /// being loaded from.
    pub fn store<'a>(&mut self, tensors: impl Iterator<Item = &'a mut Tensor>, moves: &[BlockMove]) {
        if moves.is_empty() {
            return;
        }
        self.check(moves);
        let (rows, bytes) = (self.rows_per_block, self.block_bytes);
        match &mut self.memory {
            Memory::Processor { places, .. } => {
                let start = Instant::now();
                copy_on_host(places, tensors, rows, moves, |place, block| place.copy_from_slice(block));
                self.times.store_us += micros_since(start);
            }
            Memory::Pinned(queues) => {
                let parts = parts(tensors, rows);
                queues.attempt(|queues| queues.store(&parts, bytes, moves));
            }
        }
    }

    /// Copies blocks back from the host, behind the last mark and all stores. Nobody may touch them before this is counted by
    /// [`HostBlocks::landed`].
    pub fn load<'a>(&mut self, tensors: impl Iterator<Item = &'a mut Tensor>, moves: &[BlockMove]) {
        self.check(moves);
        let (rows, bytes) = (self.rows_per_block, self.block_bytes);
        match &mut self.memory {
            Memory::Processor { places, num_loaded } => {
                let start = Instant::now();
                copy_on_host(places, tensors, rows, moves, |place, block| block.copy_from_slice(place));
                *num_loaded += 1;
                self.times.load_us += micros_since(start);
            }
            Memory::Pinned(queues) => {
                let parts = parts(tensors, rows);
                queues.attempt(|queues| queues.load(&parts, bytes, moves));
            }
        }
    }

    /// The device's queue goes on when all loads so far are done.
    pub fn join(&mut self) {
        if let Memory::Pinned(Queues { cuda, loaded, .. }) = &self.memory {
            cuda.note(cuda.driver.wait(cuda.stream(), *loaded));
        }
    }

    /// Whether loads were asked for that are not counted yet.
    pub fn is_loading(&self) -> bool {
        match &self.memory {
            Memory::Processor { num_loaded, .. } => *num_loaded > 0,
            Memory::Pinned(queues) => !queues.loading.is_empty(),
        }
    }

    /// How many loads are done since this was asked, in their order; waits for one if it is told to. What failed is the device's failure, and counts
    /// as done.
    pub fn landed(&mut self, wait_for_one: bool) -> usize {
        match &mut self.memory {
            Memory::Processor { num_loaded, .. } => std::mem::take(num_loaded),
            Memory::Pinned(queues) => {
                let mut num_loaded = 0;
                while let Some(&span) = queues.loading.front() {
                    let waits = wait_for_one && num_loaded == 0;
                    let Some(micros) = queues.end(span, waits) else { break };
                    queues.loading.pop_front();
                    self.times.load_us += micros;
                    num_loaded += 1;
                }
                num_loaded
            }
        }
    }

    /// Of copies that are known to be done since this was asked.
    pub fn take_times(&mut self) -> CopyTimes {
        if let Memory::Pinned(queues) = &mut self.memory {
            while let Some(&span) = queues.storing.front()
                && let Some(micros) = queues.end(span, false)
            {
                queues.storing.pop_front();
                self.times.store_us += micros;
            }
        }
        std::mem::take(&mut self.times)
    }

    fn check(&self, moves: &[BlockMove]) {
        for copy in moves {
            assert!(copy.place < self.num_places, "place {} of {}", copy.place, self.num_places);
        }
    }
}

impl Queues {
    fn new(cuda: &Arc<Cuda>, bytes: usize) -> Result<Self> {
        let driver = &cuda.driver;
        Ok(Self {
            start: driver.allocate_pinned(bytes)?,
            stores: driver.new_stream()?,
            loads: driver.new_stream()?,
            mark: driver.new_event()?,
            stored: driver.new_event()?,
            loaded: driver.new_event()?,
            storing: VecDeque::new(),
            loading: VecDeque::new(),
            free: Vec::new(),
            cuda: cuda.clone(),
        })
    }

    /// The first failure is the device's.
    fn attempt(&mut self, work: impl FnOnce(&mut Self) -> Result<()>) {
        if !self.cuda.has_failed() {
            let outcome = work(self);
            self.cuda.note(outcome);
        }
    }

    fn store(&mut self, parts: &[Part], block_bytes: usize, moves: &[BlockMove]) -> Result<()> {
        let start = self.event()?;
        let (driver, queue) = (&self.cuda.driver, self.stores);
        driver.record(start, queue)?;
        for &BlockMove { block, place } in moves {
            for (part, offset) in with_offsets(parts) {
                let (device, rows) = part.of_block(block);
                // SAFETY: a place has `block_bytes` bytes, of which the parts are neighbours; a part is inside its tensors. The place is left alone: nothing
                // is loaded from it, and loads come after the stores.
                unsafe {
                    let host = self.start.as_ptr().add(place * block_bytes + offset);
                    driver.download_rows(queue, host, device, rows)?;
                }
            }
        }
        driver.record(self.stored, queue)?;
        driver.wait(self.cuda.stream(), self.stored)?;
        let end = self.event()?;
        self.cuda.driver.record(end, queue)?;
        self.storing.push_back(Span { start, end });
        Ok(())
    }

    fn load(&mut self, parts: &[Part], block_bytes: usize, moves: &[BlockMove]) -> Result<()> {
        let (start, end) = (self.event()?, self.event()?);
        let (driver, queue) = (&self.cuda.driver, self.loads);
        driver.wait(queue, self.mark)?;
        driver.wait(queue, self.stored)?;
        driver.record(start, queue)?;
        for &BlockMove { block, place } in moves {
            for (part, offset) in with_offsets(parts) {
                let (device, rows) = part.of_block(block);
                // SAFETY: as in `store`; the place is not written before the load is known to be done.
                unsafe {
                    let host = self.start.as_ptr().add(place * block_bytes + offset);
                    driver.upload_rows(queue, device, host, rows)?;
                }
            }
        }
        driver.record(end, queue)?;
        driver.record(self.loaded, queue)?;
        self.loading.push_back(Span { start, end });
        Ok(())
    }

    fn event(&mut self) -> Result<Event> {
        self.free.pop().map_or_else(|| self.cuda.driver.new_event(), Ok)
    }

    /// What some copies took, when they are done; `None`: they are not.
    fn end(&mut self, span: Span, waits: bool) -> Option<u64> {
        let driver = &self.cuda.driver;
        let is_done = if waits { driver.finish(span.end).map(|()| true) } else { driver.is_done(span.end) };
        let micros = match is_done {
            Ok(false) => return None,
            Ok(true) => driver.elapsed_ms(span.start, span.end).map(|ms| (ms * 1e3) as u64),
            Err(error) => Err(error),
        };
        self.free.extend([span.start, span.end]);
        Some(micros.unwrap_or_else(|error: CudaError| {
            self.cuda.fail(error);
            0
        }))
    }
}

impl Part {
    fn of_block(&self, block: usize) -> (DevicePtr, CopyRows) {
        let Self { start, pitch, width, height } = *self;
        (start.offset((block * width) as u64), CopyRows { pitch, width, height })
    }

    fn bytes(&self) -> usize {
        self.width * self.height
    }
}

/// Each with where it begins in a place.
fn with_offsets(parts: &[Part]) -> impl Iterator<Item = (&Part, usize)> {
    parts.iter().scan(0, |offset, part| {
        let start = *offset;
        *offset += part.bytes();
        Some((part, start))
    })
}

fn row_bytes(tensor: &Tensor) -> usize {
    tensor.row_len() * tensor.dtype().size()
}

/// As few as there are, where neighbours of one size lie at equal distances.
fn parts<'a>(tensors: impl Iterator<Item = &'a mut Tensor>, rows_per_block: usize) -> Vec<Part> {
    let mut parts = Vec::new();
    for tensor in tensors {
        add(&mut parts, tensor.pointer(), rows_per_block * row_bytes(tensor));
    }
    parts
}

fn add(parts: &mut Vec<Part>, start: DevicePtr, width: usize) {
    match parts.last_mut() {
        Some(part) if part.goes_on_at(start, width) => {
            part.pitch = (start.0 - part.start.0) / part.height as u64;
            part.height += 1;
        }
        _ => parts.push(Part { start, pitch: 0, width, height: 1 }),
    }
}

impl Part {
    fn goes_on_at(&self, start: DevicePtr, width: usize) -> bool {
        let is_behind = start > self.start && width == self.width;
        is_behind && (self.height == 1 || start.0 - self.start.0 == self.pitch * self.height as u64)
    }
}

/// Calls `copy` for each part of each block and its part of the place.
fn copy_on_host<'a>(
    places: &mut Tensor,
    tensors: impl Iterator<Item = &'a mut Tensor>,
    rows_per_block: usize,
    moves: &[BlockMove],
    copy: impl Fn(&mut [u8], &mut [u8]),
) {
    let block_bytes = places.row_len();
    let places = places.bytes_mut();
    let mut offset = 0;
    for tensor in tensors {
        let width = rows_per_block * row_bytes(tensor);
        let bytes = tensor.bytes_mut();
        for &BlockMove { block, place } in moves {
            copy(&mut places[place * block_bytes + offset..][..width], &mut bytes[block * width..][..width]);
        }
        offset += width;
    }
}

fn micros_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_at_equal_distances_are_one_part() {
        let join = |starts: &[(u64, usize)]| {
            let mut parts: Vec<Part> = Vec::new();
            starts.iter().for_each(|&(start, width)| add(&mut parts, DevicePtr(start), width));
            parts.iter().map(|part| (part.start.0, part.pitch, part.width, part.height)).collect::<Vec<_>>()
        };
        assert_eq!(join(&[(100, 8)]), [(100, 0, 8, 1)]);
        assert_eq!(join(&[(100, 8), (200, 8), (300, 8)]), [(100, 100, 8, 3)]);
        assert_eq!(join(&[(100, 8), (200, 8), (301, 8)]), [(100, 100, 8, 2), (301, 0, 8, 1)]);
        assert_eq!(join(&[(100, 8), (200, 4), (300, 4)]), [(100, 0, 8, 1), (200, 100, 4, 2)]);
        assert_eq!(join(&[(300, 8), (200, 8), (100, 8)]), [(300, 0, 8, 1), (200, 0, 8, 1), (100, 0, 8, 1)]);
        assert_eq!(with_offsets(&[]).count(), 0);
        let parts = [(0, 0, 8, 3), (0, 0, 4, 1), (0, 0, 2, 2)].map(|(start, pitch, width, height)| Part {
            start: DevicePtr(start),
            pitch,
            width,
            height,
        });
        let offsets: Vec<usize> = with_offsets(&parts).map(|(_, offset)| offset).collect();
        assert_eq!(offsets, [0, 24, 28]);
    }
}
