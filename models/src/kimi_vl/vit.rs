//! MoonViT: a vision transformer for pictures of any shape. One picture at a time, so its rows depend on nothing else.
//!
//! ```text
//! patches [N, 3pp] ─linear─▶ + positions ─▶ blocks: x += wo(attention(rotate(wqkv(norm0 x))))
//!                                                   x += fc1(gelu(fc0(norm1 x)))                ─▶ final norm [N, D]
//! ```

use super::config::VisionConfig;
use super::rotation::Rotation;
use crate::LoadError;
use crate::layers::{Loader, Names, WeightSize};
use crate::vision_block::{Block, BlockKind};
use crate::vision_parts::{CHANNELS, Linear, Norm};
use crate::vision_scratch::Scratch;
use kernels::ops::{self, Activation, RopeLayout};
use kernels::{DType, Tensor};

/// Before every name.
pub(super) const PREFIX: &str = "vision_tower.";
/// Of every layer norm.
pub(super) const NORM_EPS: f32 = 1e-5;
const BLOCK: BlockKind = BlockKind {
    norms: ["norm0", "norm1"],
    qkv: "wqkv",
    out: "wo",
    up: "mlp.fc0",
    down: "mlp.fc1",
    norm_eps: NORM_EPS,
    layout: RopeLayout::Interleaved,
};

fn block_name(layer: usize) -> String {
    format!("encoder.blocks.{layer}")
}

pub(super) struct Tower {
    patch_embed: Linear,
    /// `[rows, columns, D]`, made for one shape of picture and interpolated to the others.
    positions: Tensor,
    rotation: Rotation,
    blocks: Vec<Block>,
    final_norm: Norm,
}

impl Tower {
    pub fn load(loader: &Loader, config: &VisionConfig) -> Result<Self, LoadError> {
        let d = config.hidden_size;
        let window = [CHANNELS, config.patch_size];
        let patch_embed = Linear::load_convolution(loader, "patch_embed.proj", d, window)?;
        let shape = [config.table[0], config.table[1], d];
        let table = loader.name("patch_embed.pos_emb.weight");
        let positions =
            loader.checkpoint.kept(loader.device, &table, (DType::F32, shape.to_vec()), || {
                let positions = loader.checkpoint.take(&table, &shape)?;
                Ok(Tensor::from_host_as(loader.device, positions.view(), DType::F32))
            })?;
        let blocks =
            (0..config.num_layers).map(|layer| BLOCK.load(loader, config.sizes(), &block_name(layer)));
        Ok(Self {
            patch_embed,
            positions,
            rotation: Rotation::new(config.head_dim()),
            blocks: blocks.collect::<Result<_, _>>()?,
            final_norm: Norm::load(loader, "encoder.final_layernorm", d, NORM_EPS)?,
        })
    }

    pub fn size(names: &Names, config: &VisionConfig) -> WeightSize {
        let d = config.hidden_size;
        Linear::convolution_size(names, d, config.patch_len())
            + WeightSize::vector(config.table[0] * config.table[1] * d)
            + Norm::size(d)
            + (0..config.num_layers).map(|layer| BLOCK.size(names, config.sizes(), &block_name(layer))).sum()
    }

    /// From `s.patches` to `s.normed`: one row for each patch, in raster order.
    pub fn run(&mut self, grid: [usize; 2], s: &mut Scratch) {
        self.patch_embed.run(&mut s.tokens.hold(&s.patches), Activation::None, &mut s.x);
        ops::interpolate_positions(&self.positions, grid[0], grid[1], &mut s.normed);
        ops::add(&mut s.x, &s.normed);
        self.rotation.fill(grid, &mut s.turns);
        for block in &self.blocks {
            block.run(s);
        }
        self.final_norm.run(&s.x, &mut s.normed);
    }
}
