//! Tensors and the operations on them. Knows nothing of models.

mod device;
pub mod ops;
mod tensor;
mod weights;

pub use device::Device;
pub use tensor::{DType, HostTensor, Tensor};
pub use weights::{ExpertSource, Experts, Matrix, MatrixBatch};
