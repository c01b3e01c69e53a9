//! MoonViT: a vision transformer for pictures of any shape. One picture at a time, so its rows depend on nothing else.
//!
//! ```text
//! patches [N, 3pp] ─linear─▶ + positions ─▶ blocks: x += wo(attention(rotate(wqkv(norm0 x))))
//!                                                   x += fc1(gelu(fc0(norm1 x)))                ─▶ final norm [N, D]
//! ```

use super::config::VisionConfig;
use super::rotation::Rotation;
use super::scratch::Scratch;
use crate::LoadError;
use crate::layers::{Loader, Names, WeightSize};
use crate::vision_parts::{CHANNELS, Linear, Norm};
use kernels::ops::{self, Activation, RopeLayout, TurnedHeads};
use kernels::{DType, Tensor};

/// Before every name.
pub(super) const PREFIX: &str = "vision_tower.";

pub(super) struct Tower {
    patch_embed: Linear,
    /// `[rows, columns, D]`, made for one shape of picture and interpolated to the others.
    positions: Tensor,
    rotation: Rotation,
    blocks: Vec<Block>,
    final_norm: Norm,
    num_heads: usize,
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
        let blocks = (0..config.num_layers).map(|layer| Block::load(loader, config, layer));
        Ok(Self {
            patch_embed,
            positions,
            rotation: Rotation::new(config.head_dim()),
            blocks: blocks.collect::<Result<_, _>>()?,
            final_norm: Norm::load(loader, "encoder.final_layernorm", d)?,
            num_heads: config.num_heads,
        })
    }

    pub fn size(names: &Names, config: &VisionConfig) -> WeightSize {
        let d = config.hidden_size;
        Linear::convolution_size(names, d, config.patch_len())
            + WeightSize::vector(config.table[0] * config.table[1] * d)
            + Norm::size(d)
            + (0..config.num_layers).map(|layer| Block::size(names, config, layer)).sum()
    }

    /// From `s.patches` to `s.normed`: one row for each patch, in raster order.
    pub fn run(&mut self, grid: [usize; 2], s: &mut Scratch) {
        self.patch_embed.run(&mut s.tokens.hold(&s.patches), Activation::None, &mut s.x);
        ops::interpolate_positions(&self.positions, grid[0], grid[1], &mut s.normed);
        ops::add(&mut s.x, &s.normed);
        self.rotation.fill(grid, &mut s.turns);
        for block in &self.blocks {
            block.run(self.num_heads, s);
        }
        self.final_norm.run(&s.x, &mut s.normed);
    }
}

struct Block {
    norm0: Norm,
    /// `[3D, D]`: queries, keys and values, each of all heads.
    wqkv: Linear,
    wo: Linear,
    norm1: Norm,
    fc0: Linear,
    fc1: Linear,
}

impl Block {
    fn load(loader: &Loader, config: &VisionConfig, layer: usize) -> Result<Self, LoadError> {
        let (d, i) = (config.hidden_size, config.intermediate_size);
        let name = |part: &str| format!("encoder.blocks.{layer}.{part}");
        Ok(Self {
            norm0: Norm::load(loader, &name("norm0"), d)?,
            wqkv: Linear::load(loader, &name("wqkv"), 3 * d, d)?,
            wo: Linear::load(loader, &name("wo"), d, d)?,
            norm1: Norm::load(loader, &name("norm1"), d)?,
            fc0: Linear::load(loader, &name("mlp.fc0"), i, d)?,
            fc1: Linear::load(loader, &name("mlp.fc1"), d, i)?,
        })
    }

    fn size(names: &Names, config: &VisionConfig, layer: usize) -> WeightSize {
        let (d, i) = (config.hidden_size, config.intermediate_size);
        let linears = [("wqkv", 3 * d, d), ("wo", d, d), ("mlp.fc0", i, d), ("mlp.fc1", d, i)];
        let size = |(name, n, k)| Linear::size(names, &format!("encoder.blocks.{layer}.{name}"), n, k);
        Norm::size(d).times(2) + linears.map(size).into_iter().sum()
    }

    /// `s.x` in place.
    fn run(&self, num_heads: usize, s: &mut Scratch) {
        let num_patches = s.x.shape()[0];
        let d = s.x.shape()[1];
        let mut normed = self.norm0.run_for(&s.x, &mut s.normed, (&self.wqkv, &mut s.tokens));
        self.wqkv.run(&mut normed, Activation::None, &mut s.qkv);
        s.qkv.reshape(&[num_patches, 3, num_heads, d / num_heads]);
        s.mixed.reshape(&[num_patches, num_heads, d / num_heads]);
        // Queries and keys turn, values do not.
        let heads = TurnedHeads {
            qkv: &mut s.qkv,
            rotation: ops::Rotation {
                table: &s.turns,
                positions: (&s.raster).into(),
                layout: RopeLayout::Interleaved,
            },
            cu_seqlens: (&s.segments).into(),
            scale: ((d / num_heads) as f32).powf(-0.5),
        };
        let mut mixed = self.wo.hold_attention(heads, &mut s.attention, &mut s.mixed, &mut s.tokens);
        self.wo.add_to(&mut s.x, &mut mixed, &mut s.normed);
        s.qkv.reshape(&[num_patches, 3 * d]);
        s.mixed.reshape(&[num_patches, d]);

        let mut normed = self.norm1.run_for(&s.x, &mut s.normed, (&self.fc0, &mut s.tokens));
        let into = (&self.fc1, &mut s.hidden_tokens);
        let mut hidden = self.fc0.run_for(&mut normed, Activation::GeluTanh, &mut s.hidden, into);
        self.fc1.add_to(&mut s.x, &mut hidden, &mut s.normed);
    }
}
