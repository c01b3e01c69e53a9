//! The vision tower of a model, of whatever kind, and what comes before it: read from the configuration, sized, loaded, run.

use crate::config::{DecoderConfig, TowerKind, VisionPart};
use crate::kimi_vl::{self, KimiVlImageProcessor};
use crate::qwen_vl::{self, QwenVlImageProcessor};
use crate::qwen3_vl;
use crate::storage::Storage;
use crate::vision_parts::{MERGE, VisionSize};
use crate::weights::Checkpoint;
use crate::{ImageProcessor, LoadError, LoadOptions, ModelFiles};
use kernels::{Device, Tensor};
use scheduler::ImageInput;
use std::sync::Arc;

/// The vision part of a model, as far as memory is concerned: made for the largest picture of its image processor.
#[derive(Debug, Clone)]
pub(crate) struct VisionShape {
    pub config: TowerConfig,
    pub max_patches: usize,
    pub max_tokens: usize,
    /// Rows of a token: its embedding, and what is added after each of the decoder's first layers.
    pub num_levels: usize,
}

#[derive(Debug, Clone)]
pub(crate) enum TowerConfig {
    MoonVit(kimi_vl::VisionConfig),
    Qwen25(qwen_vl::VisionConfig),
    Qwen3(qwen3_vl::VisionConfig),
}

impl VisionShape {
    /// With the model's image processor.
    pub fn read(
        files: &ModelFiles,
        part: &VisionPart,
        decoder: &DecoderConfig,
        options: &LoadOptions,
    ) -> Result<(Self, Arc<dyn ImageProcessor>), LoadError> {
        let hidden_size = decoder.hidden_size;
        let file = files.describe(crate::files::CONFIG_FILE);
        Ok(match part.tower {
            TowerKind::MoonVit => {
                let config = kimi_vl::VisionConfig::read(&file, &part.object, hidden_size)?;
                let processor = KimiVlImageProcessor::from_files(files)?;
                processor.check(files, &config)?;
                let max_patches = processor.max_patches();
                let max_tokens = config.num_tokens(max_patches);
                let config = TowerConfig::MoonVit(config);
                (Self { config, max_patches, max_tokens, num_levels: 1 }, Arc::new(processor))
            }
            TowerKind::Qwen25 => {
                let config = qwen_vl::VisionConfig::read(&file, &part.object, hidden_size)?;
                let patch_size = config.patch_size;
                Self::of_qwen(files, options, (TowerConfig::Qwen25(config), patch_size, 1))?
            }
            TowerKind::Qwen3 => {
                let config = qwen3_vl::VisionConfig::read(&file, &part.object, hidden_size)?;
                let (patch_size, num_levels) = (config.patch_size, config.num_levels());
                if config.taps.len() > decoder.num_layers {
                    let (taps, layers) = (config.taps.len(), decoder.num_layers);
                    let message = format!("{taps} blocks are more than num_hidden_layers = {layers}");
                    return Err(LoadError::config(&file, "vision_config.deepstack_visual_indexes", message));
                }
                Self::of_qwen(files, options, (TowerConfig::Qwen3(config), patch_size, num_levels))?
            }
        })
    }

    /// With the image processor that the two kinds share.
    fn of_qwen(
        files: &ModelFiles,
        options: &LoadOptions,
        (config, patch_size, num_levels): (TowerConfig, usize, usize),
    ) -> Result<(Self, Arc<dyn ImageProcessor>), LoadError> {
        let processor = QwenVlImageProcessor::from_files(files)?.resizing_to(options.image_resize_pixels)?;
        processor.check(patch_size)?;
        let max_patches = processor.max_patches();
        let max_tokens = max_patches / (MERGE * MERGE);
        Ok((Self { config, max_patches, max_tokens, num_levels }, Arc::new(processor)))
    }

    /// What the tower takes on the device.
    pub fn size(&self, device: &Device, storage: &Storage) -> VisionSize {
        match &self.config {
            TowerConfig::MoonVit(config) => VisionSize::of(device, config, storage, self.max_patches),
            TowerConfig::Qwen25(config) => qwen_vl::Vision::size(device, config, storage, self.max_patches),
            TowerConfig::Qwen3(config) => qwen3_vl::Vision::size(device, config, storage, self.max_patches),
        }
    }
}

pub(crate) enum Vision {
    MoonVit(Box<kimi_vl::Vision>),
    Qwen25(Box<qwen_vl::Vision>),
    Qwen3(Box<qwen3_vl::Vision>),
}

impl Vision {
    pub fn load(
        checkpoint: &Checkpoint,
        device: &Device,
        storage: &Storage,
        shape: &VisionShape,
    ) -> Result<Self, LoadError> {
        let max_patches = shape.max_patches;
        Ok(match &shape.config {
            TowerConfig::MoonVit(config) => {
                let vision = kimi_vl::Vision::load(checkpoint, device, storage, config, max_patches)?;
                Self::MoonVit(Box::new(vision))
            }
            TowerConfig::Qwen25(config) => {
                let vision = qwen_vl::Vision::load(checkpoint, device, storage, config, max_patches)?;
                Self::Qwen25(Box::new(vision))
            }
            TowerConfig::Qwen3(config) => {
                let vision = qwen3_vl::Vision::load(checkpoint, device, storage, config, max_patches)?;
                Self::Qwen3(Box::new(vision))
            }
        })
    }

    /// Writes the picture's rows to `outs`, each `[num_tokens, hidden size of the decoder]`, f32: its embedding, and where there are several levels
    /// what is added after each of the decoder's first layers.
    pub fn encode(&mut self, image: &ImageInput, outs: &mut [Tensor]) {
        match self {
            Self::MoonVit(vision) => vision.encode(image, &mut outs[0]),
            Self::Qwen25(vision) => vision.encode(image, &mut outs[0]),
            Self::Qwen3(vision) => vision.encode(image, outs),
        }
    }
}
