//! Kimi-VL's eyes: the image processor.

mod image_processor;
mod image_size;
mod resize;

pub use image_processor::{KimiVlImageProcessor, ProcessorConfigError};
pub use image_size::{Layout, SizeRule};
pub use resize::resize;
