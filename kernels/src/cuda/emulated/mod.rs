//! A driver without a device: kernels run on the CPU, with every access checked (kernels/emulator). Work waits in its stream
//! until somebody synchronises, which is as late as a device may do it.

mod build;
mod library;
mod memory;
mod meter;

pub use meter::{LaunchTraffic, Meter, TensorTraffic};

use super::compile::{Cache, Image, Job};
use super::driver::*;
use super::error::{CudaError, Result};
use build::Builder;
use library::{Kernel, Library};
use memory::{Memory, Region};
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard};

/// What the emulated device looks like.
#[derive(Clone, Debug)]
pub struct EmulatorOptions {
    /// The C++ compiler: `c++`, `g++`, `clang++`.
    pub compiler: String,
    /// Where compiled kernels are kept.
    pub cache: Cache,
    pub capability: (u32, u32),
    pub num_sms: u32,
    /// Bytes of device memory.
    pub memory: u64,
    /// Chooses the order in which threads run. No result may depend on it.
    pub seed: u64,
    /// Texts in kernels or headers that are replaced by others, so that a test can plant a bug. Each must be found.
    pub edits: Vec<[&'static str; 2]>,
    /// Where launches are counted, if they are.
    pub meter: Option<Arc<Meter>>,
}

impl EmulatorOptions {
    /// A small device of compute capability 9.0.
    pub fn new(compiler: &str, cache: Cache) -> Self {
        Self {
            compiler: compiler.to_string(),
            cache,
            capability: (9, 0),
            num_sms: 4,
            memory: 1 << 30,
            seed: 1,
            edits: Vec::new(),
            meter: None,
        }
    }
}

pub struct Emulator {
    info: DeviceInfo,
    builder: Builder,
    seed: u64,
    meter: Option<Arc<Meter>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    memory: Memory,
    streams: Vec<VecDeque<Work>>,
    events: Vec<Timeline>,
    graphs: Vec<Vec<Work>>,
    kernels: Vec<Arc<Kernel>>,
    libraries: Vec<Library>,
    capture: Option<Capture>,
    launches: u64,
    lost: Option<CudaError>,
}

struct Capture {
    stream: Stream,
    work: Vec<Work>,
}

/// How often an event was recorded, where, and how many of these are done.
#[derive(Clone, Copy, Default)]
struct Timeline {
    recorded: u64,
    done: u64,
    stream: usize,
    asked: bool,
}

#[derive(Clone)]
enum Work {
    Upload { dst: DevicePtr, src: usize, bytes: usize },
    Download { dst: usize, src: DevicePtr, bytes: usize },
    Copy { dst: DevicePtr, src: DevicePtr, bytes: u64 },
    Fill { dst: DevicePtr, value: u8, bytes: u64 },
    Launch(Arc<Launch>),
    Record { event: usize, ticket: u64 },
    Wait { event: usize, ticket: u64 },
}

struct Launch {
    kernel: Arc<Kernel>,
    clusters: Clusters,
    args: Args,
    /// What each pointer points into.
    regions: Vec<Option<Arc<Region>>>,
}

impl Emulator {
    pub fn new(options: EmulatorOptions) -> Result<Self> {
        let EmulatorOptions { compiler, cache, capability, num_sms, memory, seed, edits, meter } = options;
        let info = DeviceInfo {
            name: "emulated".to_string(),
            capability,
            num_sms,
            shared_per_block: if capability >= (9, 0) { 227 << 10 } else { 163 << 10 },
            total_memory: memory,
            free_memory: memory,
        };
        let builder = Builder::new(&compiler, cache, edits)?;
        Ok(Self { info, builder, seed, meter, state: Mutex::default() })
    }

    /// The state, if the context is not lost.
    fn state(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state.lock().expect("no call panics");
        match &state.lost {
            Some(error) => Err(error.clone()),
            None => Ok(state),
        }
    }

    fn push(&self, stream: Stream, work: Work) -> Result<()> {
        let mut state = self.state()?;
        if let Some(capture) = state.capture.as_mut().filter(|capture| capture.stream == stream) {
            capture.work.push(work);
        } else {
            state.streams[stream.0 as usize].push_back(work);
        }
        Ok(())
    }

    /// Does the work of a stream, up to a ticket of an event if one is given.
    fn run(&self, state: &mut State, stream: usize, until: Option<(usize, u64)>) -> Result<()> {
        let due = |state: &State| until.is_none_or(|(event, ticket)| state.events[event].done < ticket);
        while due(state) {
            let Some(work) = state.streams[stream].pop_front() else { break };
            if let Err(error) = self.perform(state, work) {
                if error.is_sticky() {
                    state.lost = Some(error.clone());
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn perform(&self, state: &mut State, work: Work) -> Result<()> {
        match work {
            Work::Upload { dst, src, bytes } => state.memory.upload(dst, src, bytes),
            Work::Download { dst, src, bytes } => state.memory.download(dst, src, bytes),
            Work::Copy { dst, src, bytes } => state.memory.copy(dst, src, bytes),
            Work::Fill { dst, value, bytes } => state.memory.fill(dst, value, bytes),
            Work::Launch(launch) => {
                state.launches += 1;
                let seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(state.launches);
                let Launch { kernel, clusters, args, regions } = &*launch;
                kernel.run(clusters, self.info.shared_per_block, args, regions, seed)?;
                if let Some(meter) = &self.meter {
                    let blocks = clusters.grid.blocks.iter().map(|&n| u64::from(n)).product();
                    // A tensor that is two arguments is counted with the first.
                    let tensors = regions.iter().flatten().map(|region| region.take_traffic()).collect();
                    meter.add(LaunchTraffic { kernel: kernel.name(), blocks, tensors });
                }
                Ok(())
            }
            Work::Record { event, ticket } => {
                state.events[event].done = ticket;
                Ok(())
            }
            Work::Wait { event, ticket } => {
                let stream = state.events[event].stream;
                self.run(state, stream, Some((event, ticket)))
            }
        }
    }

    /// Names of regions change only when no work is under way that uses them.
    fn settle(&self, state: &mut State) {
        for stream in 0..state.streams.len() {
            // What fails here is lost for good, and the next call reports it.
            let _ = self.run(state, stream, None);
        }
    }
}

impl Driver for Emulator {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn compile(&self, job: &Job) -> Result<Image> {
        self.builder.kernels(job)
    }

    fn compiles_whole_sources(&self) -> bool {
        self.builder.edits.is_empty()
    }

    fn load(&self, image: &Image) -> Result<Vec<Function>> {
        let Image::Library { path, expressions } = image else {
            return Err(CudaError::Call { call: "load", reason: "a cubin for the emulator".to_string() });
        };
        let (library, kernels) = Library::open(path, expressions)?;
        let mut state = self.state()?;
        state.libraries.push(library);
        let first = state.kernels.len() as u64;
        let count = kernels.len() as u64;
        state.kernels.extend(kernels.into_iter().map(Arc::new));
        Ok((first..first + count).map(Function).collect())
    }

    fn allocate(&self, bytes: u64) -> Result<DevicePtr> {
        let free = self.info.free_memory;
        if bytes > free {
            return Err(CudaError::OutOfMemory { call: "allocate", wanted: bytes, free });
        }
        self.state()?.memory.allocate(bytes)
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<NonNull<u8>> {
        Ok(self.state()?.memory.allocate_pinned(bytes))
    }

    fn name_region(&self, start: DevicePtr, bytes: u64, name: &str) {
        let mut state = self.state.lock().expect("no call panics");
        self.settle(&mut state);
        state.memory.name_region(start, bytes, name);
    }

    fn forget_region(&self, start: DevicePtr) {
        let mut state = self.state.lock().expect("no call panics");
        self.settle(&mut state);
        state.memory.forget_region(start);
    }

    fn new_stream(&self) -> Result<Stream> {
        let mut state = self.state()?;
        state.streams.push(VecDeque::new());
        Ok(Stream(state.streams.len() as u64 - 1))
    }

    fn new_event(&self) -> Result<Event> {
        let mut state = self.state()?;
        state.events.push(Timeline::default());
        Ok(Event(state.events.len() as u64 - 1))
    }

    fn record(&self, event: Event, stream: Stream) -> Result<()> {
        let index = event.0 as usize;
        let ticket = {
            let mut state = self.state()?;
            let timeline = &mut state.events[index];
            timeline.recorded += 1;
            timeline.stream = stream.0 as usize;
            timeline.asked = false;
            timeline.recorded
        };
        self.push(stream, Work::Record { event: index, ticket })
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<()> {
        let event = event.0 as usize;
        let ticket = self.state()?.events[event].recorded;
        self.push(stream, Work::Wait { event, ticket })
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        let mut state = self.state()?;
        self.run(&mut state, stream.0 as usize, None)
    }

    fn finish(&self, event: Event) -> Result<()> {
        let mut state = self.state()?;
        let index = event.0 as usize;
        let Timeline { recorded, stream, .. } = state.events[index];
        self.run(&mut state, stream, Some((index, recorded)))
    }

    /// The first question is answered with no: a device may take its time.
    fn is_done(&self, event: Event) -> Result<bool> {
        let mut state = self.state()?;
        let index = event.0 as usize;
        let Timeline { recorded, done, stream, asked } = state.events[index];
        if done < recorded && asked {
            self.run(&mut state, stream, Some((index, recorded)))?;
        }
        state.events[index].asked = true;
        Ok(state.events[index].done == recorded)
    }

    /// The emulator's speed says nothing about a device's: always 0.
    fn elapsed_ms(&self, _start: Event, _end: Event) -> Result<f32> {
        Ok(0.0)
    }

    unsafe fn upload(&self, stream: Stream, dst: DevicePtr, src: *const u8, bytes: usize) -> Result<()> {
        self.push(stream, Work::Upload { dst, src: src as usize, bytes })
    }

    unsafe fn download(&self, stream: Stream, dst: *mut u8, src: DevicePtr, bytes: usize) -> Result<()> {
        self.push(stream, Work::Download { dst: dst as usize, src, bytes })
    }

    unsafe fn copy(&self, stream: Stream, dst: DevicePtr, src: DevicePtr, bytes: u64) -> Result<()> {
        self.push(stream, Work::Copy { dst, src, bytes })
    }

    unsafe fn fill(&self, stream: Stream, dst: DevicePtr, value: u8, bytes: u64) -> Result<()> {
        self.push(stream, Work::Fill { dst, value, bytes })
    }

    unsafe fn launch_clusters(
        &self,
        stream: Stream,
        function: Function,
        clusters: &Clusters,
        args: &Args,
    ) -> Result<()> {
        let launch = {
            let state = self.state()?;
            let kernel = state.kernels[function.0 as usize].clone();
            kernel.check(&clusters.grid, self.info.shared_per_block, args)?;
            kernel.check_clusters(clusters, self.info.capability)?;
            let regions = kernel.regions(args, &state.memory)?;
            Launch { kernel, clusters: *clusters, args: args.clone(), regions }
        };
        self.push(stream, Work::Launch(Arc::new(launch)))
    }

    fn begin_capture(&self, stream: Stream) -> Result<()> {
        let mut state = self.state()?;
        if state.capture.is_some() {
            let reason = "a capture is under way".to_string();
            return Err(CudaError::Call { call: "begin_capture", reason });
        }
        state.capture = Some(Capture { stream, work: Vec::new() });
        Ok(())
    }

    fn end_capture(&self, stream: Stream) -> Result<Graph> {
        let mut state = self.state()?;
        match state.capture.take() {
            Some(capture) if capture.stream == stream => {
                state.graphs.push(capture.work);
                Ok(Graph(state.graphs.len() as u64 - 1))
            }
            other => {
                state.capture = other;
                let reason = "no capture of this stream is under way".to_string();
                Err(CudaError::Call { call: "end_capture", reason })
            }
        }
    }

    fn launch_graph(&self, stream: Stream, graph: Graph) -> Result<()> {
        let work = self.state()?.graphs[graph.0 as usize].clone();
        work.into_iter().try_for_each(|work| self.push(stream, work))
    }
}
