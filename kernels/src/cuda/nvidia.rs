//! The driver of a real GPU: NVIDIA's driver library through cudarc, found at run time, and NVRTC for the kernels.
//!
//! Without the library, cudarc panics on its first call, so nothing here is called before it was seen to be there.

use super::compile::{Cache, Image, Job};
use super::driver::*;
use super::error::{CudaError, Result};
use super::nvrtc::Nvrtc;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::ffi::{CString, c_void};
use std::path::PathBuf;
use std::ptr::NonNull;

#[derive(Clone, Debug)]
pub struct NvidiaOptions {
    /// Which of the GPUs that the driver sees.
    pub ordinal: usize,
    /// Where compiled kernels are kept.
    pub cache: Cache,
    /// Where libnvrtc is, if the system's loader does not find it.
    pub nvrtc: Option<PathBuf>,
}

pub struct Nvidia {
    info: DeviceInfo,
    arch: String,
    /// The largest distance between rows of one copy.
    max_pitch: u64,
    nvrtc: Nvrtc,
    device: sys::CUdevice,
    context: sys::CUcontext,
}

// SAFETY: handles of the driver may be used from any thread on which the context is current; each call makes it so.
unsafe impl Send for Nvidia {}
// SAFETY: as above; the driver locks for itself.
unsafe impl Sync for Nvidia {}

/// Whether the driver's library is on this machine.
pub fn is_present() -> bool {
    // SAFETY: loads the library and lets it go.
    unsafe { sys::is_culib_present() }
}

impl Nvidia {
    pub fn new(options: NvidiaOptions) -> Result<Self> {
        let NvidiaOptions { ordinal, cache, nvrtc } = options;
        if !is_present() {
            return Err(CudaError::NoDriver);
        }
        checked("cuInit", result::init())?;
        let count = checked("cuDeviceGetCount", result::device::get_count())?;
        let index = i32::try_from(ordinal).ok().filter(|index| (0..count).contains(index));
        let index = index.ok_or(CudaError::NoDevice(ordinal))?;
        let device = checked("cuDeviceGet", result::device::get(index))?;
        // SAFETY: a device that the driver named.
        let context = checked("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(device) })?;
        // SAFETY: a context that was just retained.
        checked("cuCtxSetCurrent", unsafe { result::ctx::set_current(context) })?;
        let info = describe(device)?;
        let which = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_PITCH;
        // SAFETY: a device that the driver named.
        let max_pitch =
            checked("cuDeviceGetAttribute", unsafe { result::device::get_attribute(device, which) })?;
        let max_pitch = u64::try_from(max_pitch).unwrap_or(0);
        let nvrtc = Nvrtc::load(nvrtc.as_deref(), cache)?;
        Ok(Self { arch: info.arch(), info, max_pitch, nvrtc, device, context })
    }

    /// The context becomes current on this thread: every call may come from another one.
    fn enter(&self) -> Result<()> {
        // SAFETY: retained until drop.
        checked("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.context) })
    }
}

fn describe(device: sys::CUdevice) -> Result<DeviceInfo> {
    use sys::CUdevice_attribute::*;
    let attribute = |which| {
        // SAFETY: a device that the driver named.
        let value = checked("cuDeviceGetAttribute", unsafe { result::device::get_attribute(device, which) })?;
        Ok::<u32, CudaError>(u32::try_from(value).unwrap_or(0))
    };
    let (free, total) = checked("cuMemGetInfo", result::mem_get_info())?;
    Ok(DeviceInfo {
        name: checked("cuDeviceGetName", result::device::get_name(device))?,
        capability: (
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        num_sms: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_per_block: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        total_memory: total as u64,
        free_memory: free as u64,
    })
}

impl Drop for Nvidia {
    fn drop(&mut self) {
        // SAFETY: retained in `new`, released once. What it says does not matter any more.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Errors after which the context is of no use: the driver's manual says so for each.
fn is_lost(code: sys::CUresult) -> bool {
    use sys::CUresult::*;
    matches!(
        code,
        CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_EXTERNAL_DEVICE
            | CUDA_ERROR_MPS_CLIENT_TERMINATED
            | CUDA_ERROR_DEINITIALIZED
            | CUDA_ERROR_UNKNOWN
    )
}

fn checked<T>(call: &'static str, outcome: std::result::Result<T, DriverError>) -> Result<T> {
    outcome.map_err(|error| {
        let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
        let reason = format!("{} ({})", text.unwrap_or_else(|_| "unknown error".to_string()), error.0 as u32);
        if is_lost(error.0) {
            CudaError::Lost { call: call.to_string(), reason }
        } else {
            CudaError::Call { call, reason }
        }
    })
}

fn stream_handle(stream: Stream) -> sys::CUstream {
    stream.0 as sys::CUstream
}

fn event_handle(event: Event) -> sys::CUevent {
    event.0 as sys::CUevent
}

impl Driver for Nvidia {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn compile(&self, job: &Job) -> Result<Image> {
        self.nvrtc.compile(job, &self.arch)
    }

    fn compiles_whole_sources(&self) -> bool {
        false
    }

    fn load(&self, image: &Image) -> Result<Vec<Function>> {
        let Image::Cubin(cubin) = image else {
            return Err(CudaError::Call {
                call: "load",
                reason: "a library of the emulator for a GPU".to_string(),
            });
        };
        self.enter()?;
        // SAFETY: a whole cubin; the driver checks its header and copies it. Modules stay until the context goes.
        let module =
            checked("cuModuleLoadData", unsafe { result::module::load_data(cubin.bytes.as_ptr().cast()) })?;
        cubin.symbols.iter().map(|symbol| self.function(module, symbol)).collect()
    }

    fn allocate(&self, bytes: u64) -> Result<DevicePtr> {
        self.enter()?;
        let (free, _) = checked("cuMemGetInfo", result::mem_get_info())?;
        let out_of_memory =
            || CudaError::OutOfMemory { call: "cuMemAlloc", wanted: bytes, free: free as u64 };
        let len = usize::try_from(bytes).map_err(|_| out_of_memory())?;
        // SAFETY: what is there is undefined until it is written.
        match unsafe { result::malloc_sync(len.max(1)) } {
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Err(out_of_memory()),
            outcome => checked("cuMemAlloc", outcome).map(DevicePtr),
        }
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<NonNull<u8>> {
        self.enter()?;
        // Not write-combined: results are read from it.
        // SAFETY: what is there is undefined until it is written.
        let start = checked("cuMemHostAlloc", unsafe { result::malloc_host(bytes.max(1), 0) })?;
        NonNull::new(start.cast())
            .ok_or(CudaError::Call { call: "cuMemHostAlloc", reason: "a null pointer".to_string() })
    }

    fn name_region(&self, _start: DevicePtr, _bytes: u64, _name: &str) {}

    fn forget_region(&self, _start: DevicePtr) {}

    fn new_stream(&self) -> Result<Stream> {
        self.enter()?;
        let stream =
            checked("cuStreamCreate", result::stream::create(result::stream::StreamKind::NonBlocking))?;
        Ok(Stream(stream as u64))
    }

    fn new_event(&self) -> Result<Event> {
        self.enter()?;
        let event = checked("cuEventCreate", result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT))?;
        Ok(Event(event as u64))
    }

    fn record(&self, event: Event, stream: Stream) -> Result<()> {
        self.enter()?;
        // SAFETY: handles of this driver, never destroyed.
        checked("cuEventRecord", unsafe { result::event::record(event_handle(event), stream_handle(stream)) })
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<()> {
        self.enter()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: as in `record`.
        let outcome =
            unsafe { result::stream::wait_event(stream_handle(stream), event_handle(event), flags) };
        checked("cuStreamWaitEvent", outcome)
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        self.enter()?;
        // SAFETY: as in `record`.
        checked("cuStreamSynchronize", unsafe { result::stream::synchronize(stream_handle(stream)) })
    }

    fn finish(&self, event: Event) -> Result<()> {
        self.enter()?;
        // SAFETY: as in `record`.
        checked("cuEventSynchronize", unsafe { result::event::synchronize(event_handle(event)) })
    }

    fn is_done(&self, event: Event) -> Result<bool> {
        self.enter()?;
        // SAFETY: as in `record`.
        match unsafe { result::event::query(event_handle(event)) } {
            Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            outcome => checked("cuEventQuery", outcome).map(|()| true),
        }
    }

    fn elapsed_ms(&self, start: Event, end: Event) -> Result<f32> {
        self.enter()?;
        // SAFETY: as in `record`.
        checked("cuEventElapsedTime", unsafe {
            result::event::elapsed(event_handle(start), event_handle(end))
        })
    }

    unsafe fn upload(&self, stream: Stream, dst: DevicePtr, src: *const u8, bytes: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller's promise.
        let outcome = unsafe {
            let src = std::slice::from_raw_parts(src, bytes);
            result::memcpy_htod_async(dst.0, src, stream_handle(stream))
        };
        checked("cuMemcpyHtoDAsync", outcome)
    }

    unsafe fn download(&self, stream: Stream, dst: *mut u8, src: DevicePtr, bytes: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller's promise.
        let outcome = unsafe {
            let dst = std::slice::from_raw_parts_mut(dst, bytes);
            result::memcpy_dtoh_async(dst, src.0, stream_handle(stream))
        };
        checked("cuMemcpyDtoHAsync", outcome)
    }

    unsafe fn upload_rows(
        &self,
        stream: Stream,
        dst: DevicePtr,
        src: *const u8,
        rows: CopyRows,
    ) -> Result<()> {
        let Some(copy) = self.at_once(rows) else {
            // SAFETY: the caller's promise.
            return rows
                .each(|at, from| unsafe { self.upload(stream, dst.offset(at), src.add(from), rows.width) });
        };
        self.copy_2d(
            stream,
            &sys::CUDA_MEMCPY2D {
                srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
                srcHost: src.cast(),
                srcPitch: rows.width,
                dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
                dstDevice: dst.0,
                dstPitch: rows.pitch as usize,
                ..copy
            },
        )
    }

    unsafe fn download_rows(
        &self,
        stream: Stream,
        dst: *mut u8,
        src: DevicePtr,
        rows: CopyRows,
    ) -> Result<()> {
        let Some(copy) = self.at_once(rows) else {
            // SAFETY: the caller's promise.
            return rows
                .each(|at, to| unsafe { self.download(stream, dst.add(to), src.offset(at), rows.width) });
        };
        self.copy_2d(
            stream,
            &sys::CUDA_MEMCPY2D {
                srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
                srcDevice: src.0,
                srcPitch: rows.pitch as usize,
                dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
                dstHost: dst.cast(),
                dstPitch: rows.width,
                ..copy
            },
        )
    }

    unsafe fn copy(&self, stream: Stream, dst: DevicePtr, src: DevicePtr, bytes: u64) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller's promise.
        let outcome =
            unsafe { result::memcpy_dtod_async(dst.0, src.0, bytes as usize, stream_handle(stream)) };
        checked("cuMemcpyDtoDAsync", outcome)
    }

    unsafe fn fill(&self, stream: Stream, dst: DevicePtr, value: u8, bytes: u64) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller's promise.
        let outcome = unsafe { result::memset_d8_async(dst.0, value, bytes as usize, stream_handle(stream)) };
        checked("cuMemsetD8Async", outcome)
    }

    unsafe fn launch_clusters(
        &self,
        stream: Stream,
        function: Function,
        clusters: &Clusters,
        args: &Args,
    ) -> Result<()> {
        self.enter()?;
        let Clusters { grid: Grid { blocks, threads, shared }, blocks: [x, y, z] } = *clusters;
        let mut size = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z },
            },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: blocks[0],
            gridDimY: blocks[1],
            gridDimZ: blocks[2],
            blockDimX: threads[0],
            blockDimY: threads[1],
            blockDimZ: threads[2],
            sharedMemBytes: shared,
            hStream: stream_handle(stream),
            attrs: &raw mut size,
            // Architectures without clusters refuse the attribute, whatever it says.
            numAttrs: u32::from([x, y, z] != [1; 3]),
        };
        let mut values: Vec<*mut c_void> =
            args.iter().map(|value| value.as_ptr().cast_mut().cast()).collect();
        let function = function.0 as sys::CUfunction;
        // SAFETY: the caller's promise; the driver reads configuration and values before it returns.
        let outcome = unsafe {
            sys::cuLaunchKernelEx(&raw const config, function, values.as_mut_ptr(), std::ptr::null_mut())
        };
        checked("cuLaunchKernelEx", outcome.result())
    }

    fn begin_capture(&self, stream: Stream) -> Result<()> {
        self.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: as in `record`.
        checked("cuStreamBeginCapture", unsafe { result::stream::begin_capture(stream_handle(stream), mode) })
    }

    fn end_capture(&self, stream: Stream) -> Result<Graph> {
        self.enter()?;
        // SAFETY: as in `record`.
        let graph =
            checked("cuStreamEndCapture", unsafe { result::stream::end_capture(stream_handle(stream)) })?;
        // SAFETY: a graph that was just captured; what it was instantiated to outlives it.
        unsafe {
            let instance = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let destroyed = result::graph::destroy(graph);
            let instance = checked("cuGraphInstantiate", instance)?;
            checked("cuGraphDestroy", destroyed)?;
            Ok(Graph(instance as u64))
        }
    }

    fn launch_graph(&self, stream: Stream, graph: Graph) -> Result<()> {
        self.enter()?;
        // SAFETY: an instance of this driver, never destroyed.
        let outcome = unsafe { result::graph::launch(graph.0 as sys::CUgraphExec, stream_handle(stream)) };
        checked("cuGraphLaunch", outcome)
    }
}

impl Nvidia {
    /// The sizes of a copy of rows, if there are several and the device can reach from one to the next.
    fn at_once(&self, rows: CopyRows) -> Option<sys::CUDA_MEMCPY2D> {
        let CopyRows { pitch, width, height } = rows;
        (height > 1 && pitch <= self.max_pitch).then_some(sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
            srcHost: std::ptr::null(),
            srcDevice: 0,
            srcArray: std::ptr::null_mut(),
            srcPitch: 0,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
            dstHost: std::ptr::null_mut(),
            dstDevice: 0,
            dstArray: std::ptr::null_mut(),
            dstPitch: 0,
            WidthInBytes: width,
            Height: height,
        })
    }

    fn copy_2d(&self, stream: Stream, copy: &sys::CUDA_MEMCPY2D) -> Result<()> {
        self.enter()?;
        // SAFETY: made by `upload_rows` or `download_rows`, whose callers promise what it reaches; the driver reads it before it returns.
        let outcome = unsafe { sys::cuMemcpy2DAsync_v2(copy, stream_handle(stream)) };
        checked("cuMemcpy2DAsync", outcome.result())
    }

    /// Found by name, and allowed all the shared memory that a block may have.
    fn function(&self, module: sys::CUmodule, symbol: &str) -> Result<Function> {
        use sys::CUfunction_attribute_enum::*;
        let name = CString::new(symbol).map_err(|_| CudaError::Call {
            call: "cuModuleGetFunction",
            reason: "a zero byte in the symbol".to_string(),
        })?;
        // SAFETY: a module that was just loaded.
        let function = checked("cuModuleGetFunction", unsafe { result::module::get_function(module, name) })?;
        // SAFETY: a function of that module.
        let fixed = checked("cuFuncGetAttribute", unsafe {
            result::function::get_function_attribute(function, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)
        })?;
        let dynamic = self.info.shared_per_block as i32 - fixed;
        // SAFETY: as above.
        checked("cuFuncSetAttribute", unsafe {
            result::function::set_function_attribute(
                function,
                CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                dynamic,
            )
        })?;
        Ok(Function(function as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a machine without a GPU this is one clear error; on one with a GPU it opens the first.
    #[test]
    fn a_machine_without_a_driver_gets_an_error() {
        let options = NvidiaOptions { ordinal: 0, cache: Cache::new("unused"), nvrtc: None };
        match Nvidia::new(options) {
            Ok(driver) => assert!(driver.info().num_sms > 0),
            Err(CudaError::NoDriver) => assert!(!is_present()),
            Err(error) => assert!(is_present(), "{error}"),
        }
    }

    #[test]
    fn faults_lose_the_context_and_mistakes_do_not() {
        use sys::CUresult::*;
        for code in [CUDA_ERROR_ILLEGAL_ADDRESS, CUDA_ERROR_LAUNCH_FAILED, CUDA_ERROR_ECC_UNCORRECTABLE] {
            assert!(is_lost(code));
        }
        for code in [CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_OUT_OF_MEMORY, CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES] {
            assert!(!is_lost(code));
        }
    }
}
