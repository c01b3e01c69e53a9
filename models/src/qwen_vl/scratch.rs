//! Everything that encoding a picture writes to, made once for the largest picture.

use super::config::VisionConfig;
use super::windows::Windows;
use crate::vision_parts::{MERGE, attention_sizes};
use kernels::ops::{AttentionScratch, RopeTable, TokenRoom};
use kernels::{DType, Device, Indices, Tensor};

/// N patches of a picture, D the tower's width, I the width inside its blocks, p the side of a patch.
pub(super) struct Scratch {
    /// `[N, 3pp]`, as the image processor orders them.
    pub patches: Tensor,
    /// The residual stream, `[N, D]`, windows after each other.
    pub x: Tensor,
    /// `[N, D]`
    pub normed: Tensor,
    /// `[N, D]`
    pub mixed: Tensor,
    /// `[N, 3D]`
    pub qkv: Tensor,
    /// `[N, 2I]`
    pub gate_up: Tensor,
    /// `[N, I]`
    pub hidden: Tensor,
    /// How each patch turns, `[N, head_dim / 2]`.
    pub turns: RopeTable,
    /// 0, 1, 2, …: each patch has its own row of `turns`.
    pub raster: Indices,
    /// Where the one picture begins and ends.
    pub whole: Indices,
    /// Where its windows do.
    pub windows: Indices,
    pub attention: AttentionScratch,
    /// Of a linear layer that runs, rounded.
    pub tokens: TokenRoom,
    /// Of one that runs after another, which has its own in `tokens`.
    pub merged_tokens: TokenRoom,
    /// Patches in the tower's order, and then its tokens in raster order.
    pub places: Indices,
    /// These on the host.
    pub order: Windows,
    /// The numbers of `raster`.
    pub counts: Vec<u32>,
}

/// Widths of the activations, in the order of the fields.
fn widths(config: &VisionConfig) -> [usize; 7] {
    let (d, i) = (config.hidden_size, config.intermediate_size);
    [config.patch_len(), d, d, d, 3 * d, 2 * i, i]
}

/// What the merger's layers read.
fn merged_size(config: &VisionConfig, max_patches: usize) -> [usize; 2] {
    [max_patches / (MERGE * MERGE), config.merged_size()]
}

/// Inputs of linear layers: of the tower the widest, and of the merger.
fn token_sizes(config: &VisionConfig, max_patches: usize) -> [[usize; 2]; 2] {
    let widest = config.patch_len().max(config.hidden_size).max(config.intermediate_size);
    [[max_patches, widest], merged_size(config, max_patches)]
}

/// Of windows: a token each, if they are that small.
fn max_segments(max_patches: usize) -> usize {
    max_patches / (MERGE * MERGE) + 1
}

impl Scratch {
    /// At most.
    pub const NUM_TENSORS: u64 = 20;

    /// Where attention multiplies in 16 bits, it does so in `float`, the type of the weights.
    pub fn new(device: &Device, config: &VisionConfig, float: DType, max_patches: usize) -> Self {
        let [patches, x, normed, mixed, qkv, gate_up, hidden] =
            widths(config).map(|width| Tensor::zeros(device, DType::F32, &[max_patches, width]));
        Self {
            patches,
            x,
            normed,
            mixed,
            qkv,
            gate_up,
            hidden,
            turns: RopeTable::zeros(device, max_patches, config.head_dim() / 2),
            raster: Indices::new(device, max_patches),
            whole: Indices::new(device, 2),
            windows: Indices::new(device, max_segments(max_patches)),
            attention: AttentionScratch::new(
                device,
                attention_sizes(config.num_heads, config.head_dim(), max_patches),
            )
            .multiplying_as(float),
            tokens: TokenRoom::new(device, &token_sizes(config, max_patches)),
            merged_tokens: TokenRoom::new(device, &[merged_size(config, max_patches)]),
            places: Indices::new(device, max_patches),
            order: Windows::default(),
            counts: Vec::with_capacity(max_patches),
        }
    }

    /// What `new` allocates.
    pub fn bytes(device: &Device, config: &VisionConfig, max_patches: usize) -> u64 {
        let activations = widths(config).map(|width| Tensor::bytes_of(DType::F32, &[max_patches, width]));
        activations.iter().sum::<u64>()
            + RopeTable::bytes(max_patches, config.head_dim() / 2)
            + 2 * Indices::bytes(device, max_patches)
            + Indices::bytes(device, 2)
            + Indices::bytes(device, max_segments(max_patches))
            + AttentionScratch::bytes(
                device,
                attention_sizes(config.num_heads, config.head_dim(), max_patches),
            )
            + TokenRoom::bytes(device, &token_sizes(config, max_patches))
            + TokenRoom::bytes(device, &[merged_size(config, max_patches)])
    }

    /// Shows as many rows as the picture has patches.
    pub fn set_patches(&mut self, num_patches: usize) {
        let Self { patches, x, normed, mixed, qkv, gate_up, hidden, .. } = self;
        for tensor in [patches, x, normed, mixed, qkv, gate_up, hidden] {
            tensor.set_rows(num_patches);
        }
        self.counts.clear();
        self.counts.extend(0..num_patches as u32);
        self.raster.set(&self.counts);
        self.whole.set(&[0, num_patches as u32]);
    }
}
