//! Architectures, weights, image processors, sampling, memory planning and the runner. Tensors do not go above this crate, text
//! and HTTP do not go below the server.

mod files;
mod info;
pub mod kimi_vl;

pub use files::{FileError, ModelFiles};
pub use info::{DTypeChoice, ImageError, ImageProcessor, LoadFormat, LoadOptions, MemoryLimit, ModelInfo};
