//! Tensors and the operations on them. Knows nothing of models: an architecture is a sequence of calls into [`ops`].
//!
//! Ops write into tensors that the caller made beforehand, so a step allocates nothing. The order of every reduction is fixed
//! by the row itself, so a row's bits never depend on the other rows, on how many there are, or on the number of threads.

mod activation_type;
mod beside;
mod compact;
mod cpu;
pub mod cuda;
mod device;
mod dtype;
mod error;
mod experts;
mod file_map;
mod host_blocks;
mod host_tensor;
mod index;
mod matrix;
mod memory;
mod milestone;
mod operands;
pub mod ops;
mod packed;
mod panel;
mod quantize;
mod random;
mod screen;
mod source;
mod stopwatch;
mod tensor;
mod weight_type;

pub use activation_type::{ActivationChoice, ActivationType};
pub use beside::{Beside, Ticket};
pub use cpu::pack::LAYOUT_VERSION as CPU_LAYOUT_VERSION;
pub use cpu::peaks::Peaks;
pub use cpu::processor::{Cpu, CpuOptions};
pub use cpu::simd::Isa;
pub use device::Device;
pub use dtype::DType;
pub use error::Error;
pub use experts::{BiasedGlu, ExpertSource, Experts};
pub use file_map::FileMap;
pub use host_blocks::{BlockMove, CopyTimes, HostBlocks};
pub use host_tensor::HostTensor;
pub use index::{Index, Indices};
pub use matrix::{Matrix, MatrixBatch};
pub use memory::{CACHE_LINE, SharedBytes};
pub use milestone::Milestone;
pub use packed::Packed;
pub use panel::GROUP;
pub use quantize::GroupedRow;
pub use screen::Screen;
pub use source::WeightRows;
pub use stopwatch::Stopwatch;
pub use tensor::Tensor;
pub use weight_type::WeightType;
