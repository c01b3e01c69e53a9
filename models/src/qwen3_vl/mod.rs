//! Qwen3-VL's eyes: a vision tower whose rows are told to the decoder from several depths. Its image processor is Qwen2.5-VL's.
//!
//! ```text
//! patches [N, 3pp] ─tower─▶ [N, D] ─merger─▶ [N/4, text hidden size]      in place of the pictures' tokens
//!                    └─ after some blocks ─mergers─▶ the same, each       added after the decoder's first layers
//! ```

mod config;
mod tower;

pub use config::VisionConfig;

use crate::LoadError;
use crate::layers::{Loader, Names};
use crate::parts::Part;
use crate::storage::Storage;
use crate::vision_parts::{VisionSize, check_picture};
use crate::vision_scratch::Scratch;
use crate::weights::Checkpoint;
use kernels::{Device, Tensor};
use scheduler::ImageInput;
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
            buffer_bytes: Scratch::bytes(device, config.sizes(), max_patches),
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
            scratch: Scratch::new(device, config.sizes(), storage.float, max_patches),
            config: config.clone(),
            max_patches,
        })
    }

    /// Writes the picture's rows to `outs`, each `[num_tokens, text hidden size]`, f32: its embedding, and what is added after the decoder's layers.
    pub fn encode(&mut self, image: &ImageInput, outs: &mut [Tensor]) {
        check_picture(image, self.config.patch().values(), self.max_patches);
        assert_eq!(outs.len(), self.config.num_levels(), "encode: outs");
        for out in outs.iter() {
            assert_eq!(out.shape(), [image.num_tokens, self.config.text_hidden_size], "encode: out");
        }
        self.scratch.set_grid(image.grid);
        self.scratch.patches.write_f32(0, &image.patches);
        self.tower.run(image.grid, &mut self.scratch, outs);
    }
}

fn names(storage: &Storage) -> Names<'_> {
    Names { storage, part: Part::Vision, prefix: tower::PREFIX.into() }
}
