//! Where a model runs: from what was asked for to a device, without its memory, which is taken when the plan is known.

use crate::{ActivationsChoice, DeviceChoice, KernelOptions, LoadError, LoadOptions, MemoryLimit};
use kernels::cuda::compile::Cache;
use kernels::cuda::driver::{DeviceInfo, Driver};
use kernels::cuda::emulated::{Emulator, EmulatorOptions};
use kernels::cuda::error::CudaError;
use kernels::cuda::nvidia::{self, Nvidia, NvidiaOptions};
use kernels::cuda::paper::Paper;
use kernels::{CpuOptions, Device, Error};

/// Whether this machine has NVIDIA's driver library.
pub fn has_nvidia_driver() -> bool {
    nvidia::is_present()
}

/// What an emulated device has where no number of bytes is given.
const EMULATED_MEMORY: u64 = 1 << 30;

/// Opens the device, or says in one line why not.
pub(crate) fn open(options: &LoadOptions) -> Result<Device, LoadError> {
    match options.device {
        DeviceChoice::Cpu => cpu(options),
        DeviceChoice::Cuda(ordinal) => nvidia(ordinal, options),
        DeviceChoice::CudaEmulated => emulated(options),
        DeviceChoice::Auto if !nvidia::is_present() => cpu(options),
        // A driver without a GPU is as good as none. A GPU that cannot be used is an error: the processor would be
        // far slower, and nobody would know why.
        DeviceChoice::Auto => match nvidia(0, options) {
            Err(LoadError::Device(Error::Cuda(error))) if is_absent(&error) => cpu(options),
            other => other,
        },
    }
}

/// As `open`, for a plan: a GPU need not be there, nor a compiler.
pub(crate) fn on_paper(options: &LoadOptions) -> Result<Device, LoadError> {
    match (options.device, open(options)) {
        (DeviceChoice::Cuda(_) | DeviceChoice::CudaEmulated, Err(LoadError::Device(_))) => {
            with_driver(Box::new(Paper::new(planned_gpu())), options)
        }
        (_, opened) => opened,
    }
}

fn is_absent(error: &CudaError) -> bool {
    match error {
        CudaError::NoDriver | CudaError::NoDevice(_) => true,
        // A driver's library without its kernel module, as in containers that were given no GPU.
        CudaError::Call { call, .. } => *call == "cuInit",
        _ => false,
    }
}

fn nvidia(ordinal: usize, options: &LoadOptions) -> Result<Device, LoadError> {
    let KernelOptions { nvrtc, .. } = options.kernels.clone();
    let options_of_driver = NvidiaOptions { ordinal, cache: cache(options)?, nvrtc };
    with_driver(Box::new(Nvidia::new(options_of_driver).map_err(Error::from)?), options)
}

fn emulated(options: &LoadOptions) -> Result<Device, LoadError> {
    let memory = match options.memory {
        MemoryLimit::Bytes(bytes) => bytes,
        MemoryLimit::Fraction(_) => EMULATED_MEMORY,
    };
    let emulator = EmulatorOptions { memory, ..EmulatorOptions::new("c++", cache(options)?) };
    with_driver(Box::new(Emulator::new(emulator).map_err(Error::from)?), options)
}

fn cpu(options: &LoadOptions) -> Result<Device, LoadError> {
    Device::cpu_with(CpuOptions { activations: options.activations, ..host(options) }).map_err(option_error)
}

/// The processor for pictures that are encoded before the engine sees them: beside the model's device, and with as many threads as it has on the
/// host. They are pinned nowhere: the model's own are.
pub(crate) fn for_pictures(options: &LoadOptions) -> Result<Device, LoadError> {
    let pinned = (!options.threads_bind.is_empty()).then_some(options.threads_bind.len());
    let cpu = CpuOptions {
        threads: options.threads.or(pinned),
        activations: ActivationsChoice::F32,
        ..CpuOptions::default()
    };
    Device::cpu_with(cpu).map_err(option_error)
}

/// The processor with all that is best about it.
pub(crate) fn processor(threads: Option<usize>) -> Result<Device, LoadError> {
    Device::cpu_with(CpuOptions { threads, ..CpuOptions::default() }).map_err(option_error)
}

/// The processor's part in any device.
fn host(options: &LoadOptions) -> CpuOptions {
    CpuOptions { threads: options.threads, cpus: options.threads_bind.clone(), ..CpuOptions::default() }
}

/// By the name of the option that was wrong.
fn option_error(error: Error) -> LoadError {
    let option = match error {
        Error::NoProducts(..) => "activations",
        Error::PinCount { .. } | Error::CannotPin(_) => "threads_bind",
        Error::NoThread { .. } => return LoadError::Threads(error),
        error => return error.into(),
    };
    LoadError::Option { option, message: error.to_string() }
}

fn with_driver(driver: Box<dyn Driver>, options: &LoadOptions) -> Result<Device, LoadError> {
    if options.activations != ActivationsChoice::Auto {
        let message =
            "a GPU takes activations in the type of the weights, beside quantised ones in bfloat16".into();
        return Err(LoadError::Option { option: "activations", message });
    }
    let device = Device::cuda_without_memory(driver, host(options)).map_err(option_error)?;
    if let Device::Cuda(cuda) = &device
        && !cuda.choose_matmul(options.kernels.matmul)
    {
        let (major, minor) = cuda.info().capability;
        let message =
            format!("wgmma needs a GPU of compute capability 9.0, and this one has {major}.{minor}");
        return Err(LoadError::Option { option: "gpu_matmul", message });
    }
    Ok(device)
}

fn cache(options: &LoadOptions) -> Result<Cache, LoadError> {
    let folder = options.kernels.cache.as_ref().ok_or_else(|| LoadError::Option {
        option: "kernel_cache",
        message: "a GPU's kernels need a folder to be kept in".into(),
    })?;
    Ok(Cache::new(folder))
}

/// As far as sizes depend on it: an H100. How much memory it has is for the user to say.
fn planned_gpu() -> DeviceInfo {
    DeviceInfo {
        name: "planned".to_string(),
        capability: (9, 0),
        num_sms: 132,
        shared_per_block: 227 << 10,
        total_memory: 0,
        free_memory: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_that_there_is_no_gpu() {
        let call = |call| CudaError::Call { call, reason: String::new() };
        for (error, expected) in [
            (CudaError::NoDriver, true),
            (CudaError::NoDevice(0), true),
            (call("cuInit"), true),
            (call("cuMemGetInfo"), false),
            (CudaError::NoCompiler("libnvrtc was not found".into()), false),
        ] {
            assert_eq!(is_absent(&error), expected, "{error}");
        }
    }
}
