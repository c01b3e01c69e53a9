//! The device tensors that hold the keys and values of all blocks, layer by layer. Who owns a block is the scheduler's business.
//!
//! ```text
//! slot = block * block_size + place in the block          one row a slot
//! grouped queries:  keys, values [S, Hk * D]               latent:  [S, R + P], the normalised latent and the rotated part
//! ```

use crate::config::{AttentionConfig, DecoderConfig};
use kernels::{DType, Device, Tensor};

pub struct KvCache {
    pub layers: Vec<LayerCache>,
    pub block_size: usize,
}

pub enum LayerCache {
    Gqa { keys: Tensor, values: Tensor },
    Mla { rows: Tensor },
}

impl KvCache {
    pub fn new(
        device: &Device,
        config: &DecoderConfig,
        stored_as: DType,
        num_blocks: usize,
        block_size: usize,
    ) -> Self {
        let slots = num_blocks * block_size;
        let layer = || match &config.attention {
            AttentionConfig::Gqa(a) => {
                let shape = [slots, a.num_kv_heads, a.head_dim];
                LayerCache::Gqa {
                    keys: Tensor::zeros(device, stored_as, &shape),
                    values: Tensor::zeros(device, stored_as, &shape),
                }
            }
            AttentionConfig::Mla(a) => {
                LayerCache::Mla { rows: Tensor::zeros(device, stored_as, &[slots, a.row()]) }
            }
        };
        Self { layers: (0..config.num_layers).map(|_| layer()).collect(), block_size }
    }

    /// At most.
    pub fn num_tensors(config: &DecoderConfig) -> u64 {
        2 * config.num_layers as u64
    }

    pub fn bytes_per_token(config: &DecoderConfig, stored_as: DType) -> u64 {
        (config.num_layers * config.kv_row() * stored_as.size()) as u64
    }
}
