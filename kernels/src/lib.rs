//! Tensors and the operations on them. Knows nothing of models: an architecture is a sequence of calls into [`ops`].
//!
//! Ops write into tensors that the caller made beforehand, so a step allocates nothing. The order of every reduction is fixed
//! by the row itself, so a row's bits never depend on the other rows, on how many there are, or on the number of threads.

mod cpu;
pub mod cuda;
mod device;
mod error;
mod index;
mod matrix;
mod memory;
pub mod ops;
mod stopwatch;
mod tensor;

pub use cpu::simd::Isa;
pub use device::{Cpu, CpuOptions, Device};
pub use error::Error;
pub use index::{Index, Indices};
pub use matrix::{ExpertSource, Experts, Matrix, MatrixBatch};
pub use stopwatch::Stopwatch;
pub use tensor::{DType, HostTensor, Tensor};
