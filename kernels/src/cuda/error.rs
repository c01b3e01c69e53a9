//! What can go wrong with a GPU, its driver and its compiler.

/// What went wrong with a device, and in which call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    #[error("no NVIDIA driver on this machine: libcuda was not found")]
    NoDriver,
    #[error("the NVIDIA driver sees no device {0}")]
    NoDevice(usize),
    #[error("no compiler for kernels: {0}")]
    NoCompiler(String),
    #[error("`{0}` is not an architecture such as sm_80, sm_90a or sm_100a")]
    UnknownArch(String),
    #[error("{source_name} does not compile for {target}: {log}")]
    Compile { source_name: &'static str, target: String, log: String },
    #[error("{call}: {wanted} bytes wanted, {free} free")]
    OutOfMemory { call: &'static str, wanted: u64, free: u64 },
    #[error("{call} failed: {reason}")]
    Call { call: &'static str, reason: String },
    /// The context is gone, and with it all device memory: the process must start again.
    #[error("{call} failed and the device's context is lost: {reason}")]
    Lost { call: String, reason: String },
}

impl CudaError {
    /// Whether every later call will fail as well.
    pub fn is_sticky(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

pub type Result<T> = std::result::Result<T, CudaError>;
