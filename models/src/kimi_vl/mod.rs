//! Kimi-VL's eyes: the image processor, the vision tower MoonViT, and the projector into the decoder's width.
//!
//! ```text
//! pixels ─image processor─▶ patches [N, 3pp] ─tower─▶ [N, D] ─projector─▶ [N/4, text hidden size]
//!          (on the server's threads)           └──────── on the device ────────┘
//! ```

mod config;
mod image_processor;
mod image_size;
mod projector;
mod rotation;
mod vit;

pub use crate::resize::resize;
pub use crate::vision_parts::VisionSize;
pub use config::VisionConfig;
pub use image_processor::KimiVlImageProcessor;
pub use image_size::{Layout, SizeRule};

use crate::LoadError;
use crate::layers::{Loader, Names};
use crate::parts::Part;
use crate::storage::Storage;
use crate::vision_parts::check_picture;
use crate::vision_scratch::Scratch;
use crate::weights::Checkpoint;
use kernels::{Device, Tensor};
use projector::Projector;
use scheduler::ImageInput;
use vit::Tower;

/// Tower and projector with their buffers, made for pictures of up to a number of patches.
pub struct Vision {
    config: VisionConfig,
    tower: Tower,
    projector: Projector,
    scratch: Scratch,
    max_patches: usize,
}

impl VisionSize {
    pub fn of(device: &Device, config: &VisionConfig, storage: &Storage, max_patches: usize) -> Self {
        let weights = Tower::size(&names(storage, vit::PREFIX), config)
            + Projector::size(&names(storage, projector::PREFIX), config);
        let buffer_bytes = Scratch::bytes(device, config.sizes(), max_patches);
        let tensors = weights.tensors + Scratch::NUM_TENSORS;
        Self { parameters: weights.parameters, weight_bytes: weights.bytes, buffer_bytes, tensors }
    }
}

impl Vision {
    pub fn load(
        checkpoint: &Checkpoint,
        device: &Device,
        storage: &Storage,
        config: &VisionConfig,
        max_patches: usize,
    ) -> Result<Self, LoadError> {
        let loader = |prefix: &str| Loader { checkpoint, device, names: names(storage, prefix) };
        Ok(Self {
            tower: Tower::load(&loader(vit::PREFIX), config)?,
            projector: Projector::load(&loader(projector::PREFIX), config)?,
            scratch: Scratch::new(device, config.sizes(), storage.float, max_patches),
            config: config.clone(),
            max_patches,
        })
    }

    /// Writes the picture's embedding to `out` `[num_tokens, text hidden size]`, f32.
    pub fn encode(&mut self, image: &ImageInput, out: &mut Tensor) {
        self.run_tower(image);
        assert_eq!(out.shape(), [image.num_tokens, self.config.text_hidden_size], "encode: out");
        self.projector.run(&mut self.scratch, out);
    }

    /// The tower's rows of a picture, one for each patch in raster order: for tests and tools.
    pub fn tower_rows(&mut self, image: &ImageInput) -> Vec<f32> {
        self.run_tower(image);
        self.scratch.normed.to_f32_vec()
    }

    fn run_tower(&mut self, image: &ImageInput) {
        check_picture(image, self.config.patch_len(), self.max_patches);
        self.scratch.set_grid(image.grid);
        self.scratch.patches.write_f32(0, &image.patches);
        self.tower.run(image.grid, &mut self.scratch);
    }
}

fn names<'a>(storage: &'a Storage, prefix: &str) -> Names<'a> {
    Names { storage, part: Part::Vision, prefix: prefix.into() }
}
