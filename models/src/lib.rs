//! Architectures, weights, image processors, sampling, memory planning and the runner. Tensors do not go above this crate, text
//! and HTTP do not go below the server.

mod bytes;
pub mod chameleon;
mod config;
mod content;
mod decode_graphs;
mod decoder;
mod device;
mod error;
mod files;
pub mod gguf;
mod head;
mod info;
mod input;
pub mod kimi_vl;
mod kv_cache;
mod layers;
mod load;
pub mod lora;
mod memory;
mod memory_limit;
mod memory_plan;
mod parts;
mod pixels;
mod published;
pub mod qwen3_vl;
pub mod qwen_vl;
mod resize;
mod runner;
pub mod sampler;
mod scratch;
mod screening;
mod storage;
mod vision;
mod vision_block;
mod vision_parts;
mod vision_scratch;
mod weights;

pub use config::GenerationDefaults;
pub use device::has_nvidia_driver;
pub use error::{DoesNotFit, FileError, LoadError};
pub use files::ModelFiles;
pub use info::{
    ActivationsChoice, DTypeChoice, DeviceChoice, HeadScreeningChoice, ImageError, ImageProcessor,
    KernelOptions, KvCacheDTypeChoice, LoadFormat, LoadOptions, MemoryLimit, ModelInfo, ProcessedImage,
    QuantizationChoice, Transparency, WeightLayoutChoice, WeightsCache,
};
pub use kernels::Peaks;
pub use kernels::cuda::Matmul;
pub use kernels::cuda::ahead::{Built as BuiltKernels, build as build_kernels};
pub use kernels::cuda::error::CudaError as KernelError;
pub use load::{Loaded, Progress, load, plan};
pub use memory_plan::{Concurrency, ImagePlan, MemoryPlan, Plan};
pub use parts::{Quantization, WeightLayout};
pub use runner::DeviceRunner;
pub use screening::ScreenCounts;
pub use storage::Storage;
pub use weights::{CacheUse, Checkpoint, Exported, HostWeights, PendingWrite, Written, quantize};
