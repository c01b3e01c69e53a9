//! Kernels of tests, run through the driver itself.

use crate::device::options;
use kernels::cuda::compile::{Job, Source};
use kernels::cuda::driver::*;
use kernels::cuda::emulated::{Emulator, EmulatorOptions};
use kernels::cuda::error::Result;
use std::sync::atomic::{AtomicU64, Ordering};

pub struct Bench {
    pub driver: Emulator,
    pub stream: Stream,
    arena: DevicePtr,
    used: AtomicU64,
}

/// A region, and how many bytes it has.
#[derive(Clone, Copy)]
pub struct Region {
    pub start: DevicePtr,
    pub bytes: usize,
}

pub const MEMORY: u64 = 1 << 20;

impl Bench {
    pub fn new(seed: u64) -> Self {
        let driver =
            Emulator::new(EmulatorOptions { seed, memory: MEMORY, ..options() }).expect("a C++ compiler");
        let arena = driver.allocate(MEMORY).expect("memory");
        let stream = driver.new_stream().expect("a stream");
        Self { driver, stream, arena, used: AtomicU64::new(0) }
    }

    /// Not written yet.
    pub fn region(&self, bytes: usize, name: &str) -> Region {
        let start = self
            .arena
            .offset(self.used.fetch_add(bytes.next_multiple_of(256) as u64 + 256, Ordering::Relaxed));
        self.driver.name_region(start, bytes as u64, name);
        Region { start, bytes }
    }

    pub fn filled<T: bytemuck::NoUninit>(&self, values: &[T], name: &str) -> Region {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let region = self.region(bytes.len(), name);
        let pinned = self.driver.allocate_pinned(bytes.len()).expect("memory");
        // SAFETY: pinned memory of this size that nobody else has.
        unsafe {
            pinned.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            self.driver.upload(self.stream, region.start, pinned.as_ptr(), bytes.len()).expect("an upload");
        }
        region
    }

    pub fn read<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(&self, region: Region) -> Result<Vec<T>> {
        let pinned = self.driver.allocate_pinned(region.bytes)?;
        // SAFETY: pinned memory of this size; the copy is done after `synchronize`.
        unsafe {
            self.driver.download(self.stream, pinned.as_ptr(), region.start, region.bytes)?;
            self.driver.synchronize(self.stream)?;
            let bytes = std::slice::from_raw_parts(pinned.as_ptr(), region.bytes);
            Ok(bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect())
        }
    }

    pub fn function(&self, source: Source, expression: &str, defines: &[&str]) -> Result<Function> {
        let defines = defines.iter().map(|define| define.to_string()).collect();
        let job = Job { source, expressions: vec![expression.to_string()], defines };
        Ok(self.driver.load(&self.driver.compile(&job)?)?[0])
    }

    pub fn launch(&self, function: Function, blocks: u32, threads: u32, args: &Args) -> Result<()> {
        self.launch_grid(function, [blocks, 1, 1], threads, args)
    }

    pub fn launch_grid(&self, function: Function, blocks: [u32; 3], threads: u32, args: &Args) -> Result<()> {
        let grid = Grid { blocks, threads: [threads, 1, 1], shared: 0 };
        // SAFETY: the emulator checks arguments and every access.
        unsafe { self.driver.launch(self.stream, function, &grid, args) }
    }
}
