//! A compiled library of kernels: opening it, checking arguments, running a launch. The structs mirror emulator/api.h.

use super::super::driver::{Args, Clusters, DevicePtr, Grid};
use super::super::error::{CudaError, Result};
use super::memory::{Memory, RawRegion, Region, lost};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::sync::Arc;

const MESSAGE: usize = 1024;
const MAX_PARAMS: usize = 32;

/// Keeps the code of its kernels in memory.
pub(super) struct Library {
    _library: libloading::Library,
}

pub(super) struct Kernel {
    name: CString,
    launch: unsafe extern "C" fn(*const RawLaunch) -> c_int,
    params: Vec<ParamInfo>,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ParamInfo {
    size: u32,
    is_pointer: u32,
}

#[repr(C)]
struct RawLaunch {
    grid: [u32; 3],
    block: [u32; 3],
    cluster: [u32; 3],
    shared_bytes: u32,
    shared_limit: u32,
    seed: u64,
    args: *const *const c_void,
    regions: *const *const RawRegion,
    kernel: *const c_char,
    message: *mut c_char,
    message_len: u64,
}

impl Library {
    pub fn open(path: &Path, expressions: &[String]) -> Result<(Self, Vec<Kernel>)> {
        let failed = |e: libloading::Error| CudaError::Call { call: "load", reason: e.to_string() };
        // SAFETY: our own library, whose initialisers only set up its own variables.
        let library = unsafe { libloading::Library::new(path) }.map_err(failed)?;
        let mut kernels = Vec::new();
        for (i, expression) in expressions.iter().enumerate() {
            let symbol = |what: &str| format!("emu_{what}_{i}");
            // SAFETY: launch.h defines the symbol with this type.
            let launch = unsafe { library.get(symbol("launch").as_bytes()) }.map_err(failed)?;
            // SAFETY: as above.
            let params: libloading::Symbol<unsafe extern "C" fn(*mut ParamInfo, c_int) -> c_int> =
                unsafe { library.get(symbol("params").as_bytes()) }.map_err(failed)?;
            let mut infos = [ParamInfo::default(); MAX_PARAMS];
            // SAFETY: writes at most so many.
            let count = unsafe { params(infos.as_mut_ptr(), MAX_PARAMS as c_int) } as usize;
            let name = CString::new(expression.as_str()).unwrap_or_default();
            kernels.push(Kernel { name, launch: *launch, params: infos[..count.min(MAX_PARAMS)].to_vec() });
        }
        Ok((Self { _library: library }, kernels))
    }
}

impl Kernel {
    pub fn name(&self) -> String {
        self.name.to_string_lossy().into_owned()
    }

    fn refuse<T>(&self, reason: String) -> Result<T> {
        Err(CudaError::Call { call: "launch", reason: format!("{}: {reason}", self.name()) })
    }

    /// What a driver refuses at once.
    pub fn check(&self, grid: &Grid, shared_limit: u32, args: &Args) -> Result<()> {
        let threads: u64 = grid.threads.iter().map(|&n| u64::from(n)).product();
        if !(1..=1024).contains(&threads) {
            return self.refuse(format!("{threads} threads in a block"));
        }
        let [x, y, z] = grid.blocks;
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65_535 || z > 65_535 {
            return self.refuse(format!("a grid of {:?} blocks", grid.blocks));
        }
        if grid.shared > shared_limit {
            return self
                .refuse(format!("{} bytes of shared memory; the limit is {shared_limit}", grid.shared));
        }
        let expected: Vec<usize> = self.params.iter().map(|param| param.size as usize).collect();
        let found: Vec<usize> = args.iter().map(<[u8]>::len).collect();
        if expected != found {
            return self.refuse(format!("arguments of {found:?} bytes for parameters of {expected:?}"));
        }
        Ok(())
    }

    /// As `check`, of the clusters.
    pub fn check_clusters(&self, clusters: &Clusters, capability: (u32, u32)) -> Result<()> {
        let Clusters { grid, blocks } = clusters;
        let size: u64 = blocks.iter().map(|&n| u64::from(n)).product();
        if size != 1 && capability < (9, 0) {
            return self.refuse(format!("clusters on compute capability {}.{}", capability.0, capability.1));
        }
        if !(1..=8).contains(&size) {
            return self.refuse(format!("clusters of {size} blocks"));
        }
        if grid.blocks.iter().zip(blocks).any(|(all, each)| !all.is_multiple_of(*each)) {
            return self.refuse(format!("a grid of {:?} blocks in clusters of {blocks:?}", grid.blocks));
        }
        Ok(())
    }

    /// The region of each pointer.
    pub fn regions(&self, args: &Args, memory: &Memory) -> Result<Vec<Option<Arc<Region>>>> {
        let region = |(i, (param, value)): (usize, (&ParamInfo, &[u8]))| {
            if param.is_pointer == 0 {
                return Ok(None);
            }
            let at = DevicePtr(u64::from_ne_bytes(value.try_into().expect("the size was checked")));
            match memory.region_of(at) {
                Some(region) => Ok(Some(region.clone())),
                None if at == DevicePtr::NULL => Ok(None),
                None => self.refuse(format!("argument {i} points to no region of the arena")),
            }
        };
        self.params.iter().zip(args.iter()).enumerate().map(region).collect()
    }

    /// Runs all blocks on this thread. The caller has checked the arguments and holds the memory's lock.
    pub fn run(
        &self,
        clusters: &Clusters,
        shared_limit: u32,
        args: &Args,
        regions: &[Option<Arc<Region>>],
        seed: u64,
    ) -> Result<()> {
        let values: Vec<*const c_void> = args.iter().map(|value| value.as_ptr().cast()).collect();
        let regions: Vec<*const RawRegion> = regions
            .iter()
            .map(|region| region.as_ref().map_or(std::ptr::null(), |region| &raw const region.raw))
            .collect();
        let mut message = [0 as c_char; MESSAGE];
        let grid = &clusters.grid;
        let launch = RawLaunch {
            grid: grid.blocks,
            block: grid.threads,
            cluster: clusters.blocks,
            shared_bytes: grid.shared,
            shared_limit,
            seed,
            args: values.as_ptr(),
            regions: regions.as_ptr(),
            kernel: self.name.as_ptr(),
            message: message.as_mut_ptr(),
            message_len: MESSAGE as u64,
        };
        // SAFETY: arguments match the parameters (checked when launched), and every pointer among them comes with the region
        // that bounds it, which the Arcs keep alive.
        let failed = unsafe { (self.launch)(&raw const launch) } != 0;
        if failed {
            // SAFETY: the runtime writes a terminated text of at most this length.
            let text = unsafe { CStr::from_ptr(message.as_ptr()) };
            return Err(lost(&self.name(), text.to_string_lossy().into_owned()));
        }
        Ok(())
    }
}
