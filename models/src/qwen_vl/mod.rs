//! Qwen2.5-VL's eyes: the image processor, and the vision tower with the merger that ends in the decoder's width.
//!
//! ```text
//! pixels ─image processor─▶ patches [N, 3pp] ─tower─▶ [N, D] ─merger─▶ [N/4, text hidden size]
//!          (on the server's threads)           └──────── on the device ───────┘
//! ```

mod config;
mod image_processor;
mod image_size;
mod patch_embed;
mod rotation;
mod scratch;
mod tower;
mod windows;

pub use config::VisionConfig;
pub use image_processor::QwenVlImageProcessor;
pub use image_size::SizeRule;

pub(crate) use config::{axial_theta, check_out};
pub(crate) use patch_embed::{PatchEmbed, PatchShape};
pub(crate) use rotation::Rotation;

use crate::LoadError;
use crate::layers::{Loader, Names};
use crate::parts::Part;
use crate::storage::Storage;
use crate::vision_parts::{VisionSize, check_picture};
use crate::weights::Checkpoint;
use kernels::{Device, Tensor};
use scheduler::ImageInput;
use scratch::Scratch;
use tower::Tower;

/// The tower with its buffers, made for pictures of up to a number of patches.
pub struct Vision {
    config: VisionConfig,
    tower: Tower,
    scratch: Scratch,
    max_patches: usize,
}

impl Vision {
    /// What it takes on the device.
    pub fn size(device: &Device, config: &VisionConfig, storage: &Storage, max_patches: usize) -> VisionSize {
        let weights = Tower::size(&names(storage), config);
        VisionSize {
            parameters: weights.parameters,
            weight_bytes: weights.bytes,
            buffer_bytes: Scratch::bytes(device, config, max_patches),
            tensors: weights.tensors + Scratch::NUM_TENSORS,
        }
    }

    pub fn load(
        checkpoint: &Checkpoint,
        device: &Device,
        storage: &Storage,
        config: &VisionConfig,
        max_patches: usize,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            tower: Tower::load(&Loader { checkpoint, device, names: names(storage) }, config)?,
            scratch: Scratch::new(device, config, storage.float, max_patches),
            config: config.clone(),
            max_patches,
        })
    }

    /// Writes the picture's embedding to `out` `[num_tokens, text hidden size]`, f32.
    pub fn encode(&mut self, image: &ImageInput, out: &mut Tensor) {
        check_picture(image, self.config.patch_len(), self.max_patches);
        assert_eq!(out.shape(), [image.num_tokens, self.config.text_hidden_size], "encode: out");
        self.scratch.set_patches(image.num_patches());
        self.scratch.patches.write_f32(0, &image.patches);
        self.tower.run(image.grid, &mut self.scratch, out);
    }
}

fn names(storage: &Storage) -> Names<'_> {
    Names { storage, part: Part::Vision, prefix: tower::PREFIX.into() }
}
