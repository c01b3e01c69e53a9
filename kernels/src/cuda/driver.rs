//! The seam between this crate and a GPU: the few calls that everything else is made of. Two implementations: `nvidia`, over the
//! driver library of the machine, and `emulated`, which runs the same kernels on the CPU.
//!
//! Work on a stream happens in order, some time between its call and the next `synchronize` of that stream; the emulator does it
//! as late as that allows, so that a wait that is missing shows.

use super::compile::{Image, Job};
use super::error::Result;
use std::ptr::NonNull;

/// An address in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    pub const NULL: Self = Self(0);

    pub fn offset(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

/// A queue of work, by the driver's own number or handle. So are the next three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(pub(crate) u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event(pub(crate) u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function(pub(crate) u64);

/// A captured stretch of a stream, ready to be launched again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Graph(pub(crate) u64);

/// What kernels and planning need to know of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    pub num_sms: u32,
    /// Largest dynamic shared memory of one block, in bytes.
    pub shared_per_block: u32,
    pub total_memory: u64,
    pub free_memory: u64,
}

impl DeviceInfo {
    /// `sm_90a` and the like: what a compiler is told. The `a` allows instructions of that very generation.
    pub fn arch(&self) -> String {
        let (major, minor) = self.capability;
        let suffix = if major >= 9 { "a" } else { "" };
        format!("sm_{major}{minor}{suffix}")
    }
}

/// Rows of bytes that lie at equal distances in device memory, and one behind the other in the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyRows {
    /// From a row to the next, on the device. At least `width`, where there are several.
    pub pitch: u64,
    pub width: usize,
    pub height: usize,
}

impl CopyRows {
    /// Where each row is on the device and on the host, counted from the first.
    pub fn each(self, mut copy: impl FnMut(u64, usize) -> Result<()>) -> Result<()> {
        (0..self.height).try_for_each(|row| copy(row as u64 * self.pitch, row * self.width))
    }
}

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    pub blocks: [u32; 3],
    pub threads: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub shared: u32,
}

/// A launch whose blocks come in clusters: those of one run at the same time and reach each other's shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clusters {
    pub grid: Grid,
    /// Blocks of a cluster in each dimension, which divide those of the grid; at most eight, on compute capability 9.0 and later. One
    /// is none.
    pub blocks: [u32; 3],
}

impl From<Grid> for Clusters {
    fn from(grid: Grid) -> Self {
        Self { grid, blocks: [1; 3] }
    }
}

/// Values of a kernel's parameters in order, as they lie in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    bytes: Vec<u8>,
    /// Where each begins, and its size.
    places: Vec<(usize, usize)>,
}

/// A type that a kernel takes by value: `repr(C)`, without padding or pointers.
///
/// # Safety
/// Every byte of the type is initialised, and the kernel's parameter has the same layout.
pub unsafe trait Param: Copy + 'static {}
// SAFETY: plain numbers.
unsafe impl Param for u32 {}
// SAFETY: as above.
unsafe impl Param for i32 {}
// SAFETY: as above.
unsafe impl Param for f32 {}
// SAFETY: as above.
unsafe impl Param for u64 {}

impl Args {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn value<T: Param>(mut self, value: T) -> Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let start = self.bytes.len();
        let size = size_of::<T>();
        // SAFETY: a Param has no uninitialised bytes.
        let bytes = unsafe { std::slice::from_raw_parts((&raw const value).cast::<u8>(), size) };
        self.bytes.extend_from_slice(bytes);
        self.places.push((start, size));
        self
    }

    pub fn pointer(self, pointer: DevicePtr) -> Self {
        self.value(pointer.0)
    }

    /// The bytes of each parameter.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.places.iter().map(|&(start, size)| &self.bytes[start..start + size])
    }
}

/// Calls that take pointers are `unsafe`: sizes and lifetimes are the caller's promise.
pub trait Driver: Send + Sync {
    fn info(&self) -> &DeviceInfo;

    /// Compiles the wanted instances of one source, or finds them in the cache.
    fn compile(&self, job: &Job) -> Result<Image>;

    /// Whether compiling all instances of a source at once costs about as much as one of them.
    fn compiles_whole_sources(&self) -> bool;

    /// One function for each instance of the job, in its order.
    fn load(&self, image: &Image) -> Result<Vec<Function>>;

    /// Device memory, never given back before the driver goes. Called once, for the arena.
    fn allocate(&self, bytes: u64) -> Result<DevicePtr>;

    /// Host memory that copies may use, never given back before the driver goes.
    fn allocate_pinned(&self, bytes: usize) -> Result<NonNull<u8>>;

    /// Says that a part of the arena has a name now. Its contents are undefined.
    fn name_region(&self, start: DevicePtr, bytes: u64, name: &str);

    fn forget_region(&self, start: DevicePtr);

    fn new_stream(&self) -> Result<Stream>;

    fn new_event(&self) -> Result<Event>;

    fn record(&self, event: Event, stream: Stream) -> Result<()>;

    /// Later work on the stream waits for what the event recorded last.
    fn wait(&self, stream: Stream, event: Event) -> Result<()>;

    /// Returns when all work of the stream is done; reports what failed in it.
    fn synchronize(&self, stream: Stream) -> Result<()>;

    /// Returns when what the event recorded last is done.
    fn finish(&self, event: Event) -> Result<()>;

    /// Whether what the event recorded last is done.
    fn is_done(&self, event: Event) -> Result<bool>;

    /// Milliseconds between two events that are done.
    fn elapsed_ms(&self, start: Event, end: Event) -> Result<f32>;

    /// # Safety
    /// `src` is pinned and stays as it is until the copy is done; `dst` has `bytes` bytes.
    unsafe fn upload(&self, stream: Stream, dst: DevicePtr, src: *const u8, bytes: usize) -> Result<()>;

    /// # Safety
    /// `dst` is pinned and nobody touches it until the copy is done; `src` has `bytes` bytes.
    unsafe fn download(&self, stream: Stream, dst: *mut u8, src: DevicePtr, bytes: usize) -> Result<()>;

    /// # Safety
    /// As `upload`, for each row.
    unsafe fn upload_rows(
        &self,
        stream: Stream,
        dst: DevicePtr,
        src: *const u8,
        rows: CopyRows,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        rows.each(|at, from| unsafe { self.upload(stream, dst.offset(at), src.add(from), rows.width) })
    }

    /// # Safety
    /// As `download`, for each row.
    unsafe fn download_rows(
        &self,
        stream: Stream,
        dst: *mut u8,
        src: DevicePtr,
        rows: CopyRows,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        rows.each(|at, to| unsafe { self.download(stream, dst.add(to), src.offset(at), rows.width) })
    }

    /// # Safety
    /// Both have `bytes` bytes, and do not overlap.
    unsafe fn copy(&self, stream: Stream, dst: DevicePtr, src: DevicePtr, bytes: u64) -> Result<()>;

    /// # Safety
    /// `dst` has `bytes` bytes.
    unsafe fn fill(&self, stream: Stream, dst: DevicePtr, value: u8, bytes: u64) -> Result<()>;

    /// # Safety
    /// The arguments are the kernel's parameters, and what their pointers reach is long enough for this grid.
    unsafe fn launch(&self, stream: Stream, function: Function, grid: &Grid, args: &Args) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_clusters(stream, function, &Clusters::from(*grid), args) }
    }

    /// # Safety
    /// As `launch`.
    unsafe fn launch_clusters(
        &self,
        stream: Stream,
        function: Function,
        clusters: &Clusters,
        args: &Args,
    ) -> Result<()>;

    /// From here on, work on the stream is written down instead of done.
    fn begin_capture(&self, stream: Stream) -> Result<()>;

    fn end_capture(&self, stream: Stream) -> Result<Graph>;

    fn launch_graph(&self, stream: Stream, graph: Graph) -> Result<()>;
}
