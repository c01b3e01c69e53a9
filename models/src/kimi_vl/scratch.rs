//! Everything that encoding a picture writes to, made once for the largest picture.

use super::config::VisionConfig;
use crate::vision_parts::{MERGE, attention_sizes};
use kernels::ops::{AttentionScratch, RopeTable, TokenRoom};
use kernels::{DType, Device, Indices, Tensor};

/// N patches of a picture, D the tower's width, I the width inside its blocks, p the side of a patch.
pub(super) struct Scratch {
    /// `[N, 3pp]`
    pub patches: Tensor,
    /// The residual stream, `[N, D]`.
    pub x: Tensor,
    /// `[N, D]`
    pub normed: Tensor,
    /// `[N, D]`
    pub mixed: Tensor,
    /// `[N, 3D]`
    pub qkv: Tensor,
    /// `[N, I]`
    pub hidden: Tensor,
    /// How each patch turns, `[N, head_dim / 2]`.
    pub turns: RopeTable,
    /// 0, 1, 2, …: each patch has its own row of `turns`.
    pub raster: Indices,
    /// Where the one picture begins and ends.
    pub segments: Indices,
    pub attention: AttentionScratch,
    /// Of a linear layer that runs, rounded.
    pub tokens: TokenRoom,
    /// Of one that runs after another, which has its own in `tokens`.
    pub hidden_tokens: TokenRoom,
    /// Patches in the order of the tokens that they become.
    pub squares: Indices,
    /// The same on the host.
    pub order: Vec<u32>,
}

/// Widths of the activations, in the order of the fields.
fn widths(config: &VisionConfig) -> [usize; 6] {
    let d = config.hidden_size;
    [config.patch_len(), d, d, d, 3 * d, config.intermediate_size]
}

/// Inputs of linear layers: of the tower the widest, and of the projector; and of those that run after another.
fn token_sizes(config: &VisionConfig, max_patches: usize) -> [[[usize; 2]; 2]; 2] {
    let merged = [max_patches / (MERGE * MERGE), config.merged_size()];
    let widths = [config.patch_len().max(config.hidden_size), config.intermediate_size];
    widths.map(|width| [[max_patches, width], merged])
}

impl Scratch {
    /// At most.
    pub const NUM_TENSORS: u64 = 18;

    /// Where attention multiplies in 16 bits, it does so in `float`, the type of the weights.
    pub fn new(device: &Device, config: &VisionConfig, float: DType, max_patches: usize) -> Self {
        let [patches, x, normed, mixed, qkv, hidden] =
            widths(config).map(|width| Tensor::zeros(device, DType::F32, &[max_patches, width]));
        let [tokens, hidden_tokens] = token_sizes(config, max_patches);
        Self {
            patches,
            x,
            normed,
            mixed,
            qkv,
            hidden,
            turns: RopeTable::zeros(device, max_patches, config.head_dim() / 2),
            raster: Indices::new(device, max_patches),
            segments: Indices::new(device, 2),
            attention: AttentionScratch::new(
                device,
                attention_sizes(config.num_heads, config.head_dim(), max_patches),
            )
            .multiplying_as(float),
            tokens: TokenRoom::new(device, &tokens),
            hidden_tokens: TokenRoom::new(device, &hidden_tokens),
            squares: Indices::new(device, max_patches),
            order: Vec::with_capacity(max_patches),
        }
    }

    /// What `new` allocates.
    pub fn bytes(device: &Device, config: &VisionConfig, max_patches: usize) -> u64 {
        let activations = widths(config).map(|width| Tensor::bytes_of(DType::F32, &[max_patches, width]));
        activations.iter().sum::<u64>()
            + RopeTable::bytes(max_patches, config.head_dim() / 2)
            + 2 * Indices::bytes(device, max_patches)
            + Indices::bytes(device, 2)
            + AttentionScratch::bytes(
                device,
                attention_sizes(config.num_heads, config.head_dim(), max_patches),
            )
            + token_sizes(config, max_patches)
                .map(|sizes| TokenRoom::bytes(device, &sizes))
                .iter()
                .sum::<u64>()
    }

    /// Shows as many rows as the picture has patches.
    pub fn set_patches(&mut self, num_patches: usize) {
        let Self { patches, x, normed, mixed, qkv, hidden, .. } = self;
        for tensor in [patches, x, normed, mixed, qkv, hidden] {
            tensor.set_rows(num_patches);
        }
        self.order.clear();
        self.order.extend(0..num_patches as u32);
        self.raster.set(&self.order);
        self.segments.set(&[0, num_patches as u32]);
    }
}
