//! The device tensors that hold the keys and values of all blocks, layer by layer. Who owns a block is the scheduler's business.
//!
//! ```text
//! slot = block * block_size + place in the block          one row a slot
//! grouped queries:  keys, values [S, Hk * D]               latent:  [S, R + P], the normalised latent and the rotated part
//! ```
//! In int8 each head of a row, or each of the two parts of a latent row, has a scale beside its levels.

use crate::config::{AttentionConfig, DecoderConfig};
use kernels::ops::{KvShape, KvTensor, KvType};
use kernels::{Device, Tensor};

pub struct KvCache {
    pub layers: Vec<LayerCache>,
    pub block_size: usize,
}

#[allow(clippy::large_enum_variant, reason = "one for each layer, made once")]
pub enum LayerCache {
    Gqa { keys: KvTensor, values: KvTensor },
    Mla { rows: KvTensor },
}

impl KvCache {
    pub fn new(
        device: &Device,
        config: &DecoderConfig,
        stored_as: KvType,
        num_blocks: usize,
        block_size: usize,
    ) -> Self {
        let slots = num_blocks * block_size;
        let shape = shape(config);
        let rows = || KvTensor::zeros(device, stored_as, slots, shape);
        let layer = || match &config.attention {
            AttentionConfig::Gqa(_) => LayerCache::Gqa { keys: rows(), values: rows() },
            AttentionConfig::Mla(_) => LayerCache::Mla { rows: rows() },
        };
        Self { layers: (0..config.num_layers).map(|_| layer()).collect(), block_size }
    }

    /// All that a block is made of: rows of these.
    pub fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.layers.iter_mut().flat_map(LayerCache::parts_mut).flat_map(KvTensor::tensors_mut)
    }

    /// At most.
    pub fn num_tensors(config: &DecoderConfig) -> u64 {
        2 * config.num_layers as u64
    }

    pub fn bytes_per_token(config: &DecoderConfig, stored_as: KvType) -> u64 {
        let rows = match &config.attention {
            AttentionConfig::Gqa(_) => 2,
            AttentionConfig::Mla(_) => 1,
        };
        (config.num_layers * rows) as u64 * KvTensor::bytes_per_slot(stored_as, shape(config))
    }
}

impl LayerCache {
    fn parts_mut(&mut self) -> impl Iterator<Item = &mut KvTensor> {
        let (first, second) = match self {
            Self::Gqa { keys, values } => (keys, Some(values)),
            Self::Mla { rows } => (rows, None),
        };
        std::iter::once(first).chain(second)
    }
}

/// Of a layer's rows.
fn shape(config: &DecoderConfig) -> KvShape {
    match &config.attention {
        AttentionConfig::Gqa(a) => KvShape::Heads { count: a.num_kv_heads, dim: a.head_dim },
        AttentionConfig::Mla(a) => KvShape::Latent { rank: a.kv_lora_rank, rotated: a.rope_dim },
    }
}
