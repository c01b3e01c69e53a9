//! The vision tower of a model, of whatever kind, and what comes before it: read from the configuration, sized, loaded, run.

use crate::config::{TowerKind, VisionPart};
use crate::kimi_vl::{self, KimiVlImageProcessor};
use crate::qwen_vl::{self, QwenVlImageProcessor};
use crate::storage::Storage;
use crate::vision_parts::VisionSize;
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
}

#[derive(Debug, Clone)]
pub(crate) enum TowerConfig {
    MoonVit(kimi_vl::VisionConfig),
    Qwen25(qwen_vl::VisionConfig),
}

impl VisionShape {
    /// With the model's image processor. `hidden_size` is the decoder's.
    pub fn read(
        files: &ModelFiles,
        part: &VisionPart,
        hidden_size: usize,
        options: &LoadOptions,
    ) -> Result<(Self, Arc<dyn ImageProcessor>), LoadError> {
        let file = files.describe(crate::files::CONFIG_FILE);
        Ok(match part.tower {
            TowerKind::MoonVit => {
                let config = kimi_vl::VisionConfig::read(&file, &part.object, hidden_size)?;
                let processor = KimiVlImageProcessor::from_files(files)?;
                processor.check(files, &config)?;
                let max_patches = processor.max_patches();
                let max_tokens = config.num_tokens(max_patches);
                let config = TowerConfig::MoonVit(config);
                (Self { config, max_patches, max_tokens }, Arc::new(processor))
            }
            TowerKind::Qwen25 => {
                let config = qwen_vl::VisionConfig::read(&file, &part.object, hidden_size)?;
                let processor =
                    QwenVlImageProcessor::from_files(files)?.resizing_to(options.image_resize_pixels)?;
                processor.check(&config)?;
                let max_patches = processor.max_patches();
                let max_tokens = config.num_tokens(max_patches);
                let config = TowerConfig::Qwen25(config);
                (Self { config, max_patches, max_tokens }, Arc::new(processor))
            }
        })
    }

    /// What the tower takes on the device.
    pub fn size(&self, device: &Device, storage: &Storage) -> VisionSize {
        match &self.config {
            TowerConfig::MoonVit(config) => VisionSize::of(device, config, storage, self.max_patches),
            TowerConfig::Qwen25(config) => qwen_vl::Vision::size(device, config, storage, self.max_patches),
        }
    }
}

pub(crate) enum Vision {
    MoonVit(Box<kimi_vl::Vision>),
    Qwen25(Box<qwen_vl::Vision>),
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
        })
    }

    /// Writes the picture's embedding to `out` `[num_tokens, hidden size of the decoder]`, f32.
    pub fn encode(&mut self, image: &ImageInput, out: &mut Tensor) {
        match self {
            Self::MoonVit(vision) => vision.encode(image, out),
            Self::Qwen25(vision) => vision.encode(image, out),
        }
    }
}
