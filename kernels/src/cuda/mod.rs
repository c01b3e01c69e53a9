//! The CUDA side: one device with its arena, its stream and its compiled kernels; one .cu and one .rs for each group of ops.
//!
//! Ops only enqueue. What goes wrong on a device shows later, so the first failure is kept, what follows it is not launched, and
//! `synchronize` or a read of results reports it.

pub mod ahead;
mod arena;
pub(crate) mod attention;
pub(crate) mod attention_expanded;
pub(crate) mod attention_expanded_plan;
pub(crate) mod attention_plan;
pub(crate) mod attention_rows;
pub(crate) mod attention_segments;
pub(crate) mod attention_tiles;
pub mod catalogue;
pub mod compile;
pub mod cubin;
pub mod driver;
pub(crate) mod elementwise;
pub mod emulated;
pub mod error;
pub(crate) mod interpolate;
pub(crate) mod latents;
pub mod launch;
pub(crate) mod linear;
pub(crate) mod moe;
mod moe_kernel;
mod moe_layer;
mod moe_packed;
pub(crate) mod norm;
pub mod nvidia;
pub mod nvrtc;
pub(crate) mod pack;
pub mod paper;
pub mod peak;
pub(crate) mod readback;
pub(crate) mod rope;
pub(crate) mod route;
pub(crate) mod rows;
pub(crate) mod sample;
mod staging;
pub(crate) mod tokens;

use crate::cpu::processor::Cpu;
use arena::Arena;
use driver::{DeviceInfo, DevicePtr, Driver, Event, Function, Graph, Stream};
use error::CudaError;
use staging::Staging;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

/// Which instructions multiply many tokens by weights of 16 bits. All make sums in one order; whether a GPU rounds them alike has not been
/// seen (docs/gpu.md), and a row's bits must not depend on how many rows there are, so that one of them serves a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Matmul {
    /// `Mma`, until a measurement says otherwise.
    #[default]
    Auto,
    /// mma.sync, as for few tokens.
    Mma,
    /// wgmma, on compute capability 9.0 alone.
    Wgmma,
}

/// One device, or the emulated one.
pub struct Cuda {
    pub(crate) driver: Box<dyn Driver>,
    /// The processor beside it: packs weights, runs what is not an op.
    pub(crate) host: Arc<Cpu>,
    stream: Stream,
    /// Where ops go in place of `stream`, and whether they do.
    other_stream: Mutex<Option<Stream>>,
    /// Empty until it is known how much is wanted.
    memory: OnceLock<Memory>,
    functions: Mutex<Functions>,
    failure: Mutex<Option<CudaError>>,
    allocated: AtomicU64,
    launched: AtomicU64,
    capturing: AtomicBool,
    wgmma: AtomicBool,
}

/// Functions that were compiled and loaded, by source, then by expression.
type Functions = HashMap<&'static str, HashMap<String, Function>>;

/// All that is ever taken of a device, and the host's memory for copies.
struct Memory {
    base: DevicePtr,
    bytes: u64,
    arena: Mutex<Arena>,
    staging: Mutex<Staging>,
}

impl Cuda {
    /// Without memory: see [`Cuda::reserve`].
    pub(crate) fn new(driver: Box<dyn Driver>, host: Arc<Cpu>) -> Result<Self, CudaError> {
        let stream = driver.new_stream()?;
        Ok(Self {
            host,
            stream,
            other_stream: Mutex::new(None),
            memory: OnceLock::new(),
            functions: Mutex::default(),
            failure: Mutex::default(),
            allocated: AtomicU64::new(0),
            launched: AtomicU64::new(0),
            capturing: AtomicBool::new(false),
            wgmma: AtomicBool::new(false),
            driver,
        })
    }

    /// For what is launched from here on. False, and nothing changes: the device has no such instructions.
    pub fn choose_matmul(&self, matmul: Matmul) -> bool {
        let wgmma = matmul == Matmul::Wgmma;
        if wgmma && self.arch_number() != 90 {
            return false;
        }
        self.wgmma.store(wgmma, Ordering::Relaxed);
        true
    }

    pub(crate) fn uses_wgmma(&self) -> bool {
        self.wgmma.load(Ordering::Relaxed)
    }

    /// The queue that ops go to.
    pub(crate) fn stream(&self) -> Stream {
        self.other_stream.lock().expect("no holder panics").unwrap_or(self.stream)
    }

    /// Has the ops that `work` calls enqueued in another queue. What `work` reads of results must come from there as well.
    pub(crate) fn on(&self, stream: Stream, work: impl FnOnce()) {
        self.assert_not_capturing("another queue");
        let set = |stream| *self.other_stream.lock().expect("no holder panics") = stream;
        set(Some(stream));
        work();
        set(None);
    }

    pub fn info(&self) -> &DeviceInfo {
        self.driver.info()
    }

    /// Takes the one block of device memory that everything lies in. Once, before the first tensor.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<(), CudaError> {
        let memory = Memory {
            base: self.driver.allocate(bytes)?,
            bytes,
            arena: Mutex::new(Arena::new(bytes)),
            staging: Mutex::new(Staging::new(&*self.driver)?),
        };
        assert!(self.memory.set(memory).is_ok(), "device memory is reserved once");
        Ok(())
    }

    fn memory(&self) -> &Memory {
        self.memory.get().expect("device memory is reserved before it is used")
    }

    fn arena(&self) -> MutexGuard<'_, Arena> {
        self.memory().arena.lock().expect("no holder panics")
    }

    fn staging(&self) -> MutexGuard<'_, Staging> {
        self.memory().staging.lock().expect("no holder panics")
    }

    /// What [`Cuda::reserve`] took.
    pub fn reserved_bytes(&self) -> u64 {
        self.memory.get().map_or(0, |memory| memory.bytes)
    }

    /// Waits for everything that was enqueued; the first failure since the last report, if there was one. A lost context is
    /// reported again and again.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        let done = self.driver.synchronize(self.stream());
        self.note(done);
        self.report()
    }

    /// Waits for what an event recorded last, and reports as [`Cuda::synchronize`] does.
    pub(crate) fn finish(&self, event: Event) -> Result<(), CudaError> {
        let done = self.driver.finish(event);
        self.note(done);
        self.report()
    }

    fn report(&self) -> Result<(), CudaError> {
        let mut failure = self.failure.lock().expect("no holder panics");
        match failure.clone() {
            None => Ok(()),
            Some(error) => {
                if !error.is_sticky() {
                    *failure = None;
                }
                Err(error)
            }
        }
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failure().is_some()
    }

    fn failure(&self) -> Option<CudaError> {
        self.failure.lock().expect("no holder panics").clone()
    }

    /// Keeps a failure that a caller was told of, for whoever waits next.
    pub fn fail(&self, error: CudaError) {
        self.note(Err(error));
    }

    /// Keeps the first failure.
    pub(crate) fn note(&self, result: Result<(), CudaError>) {
        if let Err(error) = result {
            self.failure.lock().expect("no holder panics").get_or_insert(error);
        }
    }

    pub(crate) fn allocated_bytes(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed)
    }

    /// Launches of kernels that were made or written down into a graph so far; a replay is none.
    pub fn num_launches(&self) -> u64 {
        self.launched.load(Ordering::Relaxed)
    }

    /// Bytes of the arena that are in no region.
    pub fn free_bytes(&self) -> u64 {
        self.arena().free_bytes()
    }

    /// What a tensor or matrix of so many bytes takes of the arena.
    pub fn footprint(bytes: u64) -> u64 {
        Arena::footprint(bytes)
    }

    /// Writes down the launches that `work` makes, instead of making them. Everything that they use stays where it is: what changes
    /// from one replay to the next lies in device memory (`Indices`, tensors). Kernels should have been launched once before.
    pub fn capture(&self, work: impl FnOnce()) -> Result<Graph, CudaError> {
        self.driver.begin_capture(self.stream())?;
        self.capturing.store(true, Ordering::Relaxed);
        work();
        self.capturing.store(false, Ordering::Relaxed);
        let graph = self.driver.end_capture(self.stream());
        // What could not be written down would be missing in every replay.
        self.failure().map_or(graph, Err)
    }

    /// Enqueues what was captured.
    pub fn replay(&self, graph: Graph) {
        if !self.has_failed() {
            self.note(self.driver.launch_graph(self.stream(), graph));
        }
    }

    /// Whether launches are written down instead of made.
    pub(crate) fn is_capturing(&self) -> bool {
        self.capturing.load(Ordering::Relaxed)
    }

    fn assert_not_capturing(&self, what: &str) {
        assert!(!self.is_capturing(), "{what} cannot be part of a captured graph");
    }

    /// A region of the arena, not written yet. The plan made the arena large enough: running out is our own mistake.
    pub(crate) fn allocate(&self, bytes: u64, name: &str) -> DevicePtr {
        self.assert_not_capturing("an allocation");
        let offset = self.arena().allocate(bytes);
        let offset = offset.unwrap_or_else(|| {
            panic!("the arena has no room for {name}: {bytes} bytes wanted, {} free", self.free_bytes())
        });
        self.allocated.fetch_add(bytes, Ordering::Relaxed);
        let start = self.memory().base.offset(offset);
        self.driver.name_region(start, bytes, name);
        start
    }

    pub(crate) fn free(&self, start: DevicePtr, bytes: u64) {
        self.driver.forget_region(start);
        self.allocated.fetch_sub(bytes, Ordering::Relaxed);
        self.arena().free(start.0 - self.memory().base.0);
    }

    /// Sets bytes to zero, in the order of the stream.
    pub(crate) fn clear(&self, start: DevicePtr, bytes: u64) {
        if bytes > 0 && !self.has_failed() {
            // SAFETY: a region of the arena has so many bytes.
            self.note(unsafe { self.driver.fill(self.stream(), start, 0, bytes) });
        }
    }

    /// Copies host bytes to the device, in the order of the stream. They may be reused at once.
    pub(crate) fn upload(&self, dst: DevicePtr, bytes: &[u8]) {
        self.assert_not_capturing("a copy from the host");
        if !self.has_failed() {
            let mut staging = self.staging();
            self.note(staging.upload(&*self.driver, self.stream(), dst, bytes));
        }
    }

    /// Copies device bytes to the host and waits for them.
    pub(crate) fn download(&self, src: DevicePtr, out: &mut [u8]) -> Result<(), CudaError> {
        self.synchronize()?;
        let mut staging = self.staging();
        let read = staging.download(&*self.driver, self.stream(), src, out);
        if let Err(error) = &read
            && error.is_sticky()
        {
            self.note(Err(error.clone()));
        }
        read
    }
}
