//! A vision transformer for pictures of any shape, most of whose blocks look at windows. One picture at a time, so its rows depend on nothing else.
//!
//! ```text
//! patches [N, 3pp] ─linear─▶ windows after each other ─▶ blocks: x += proj(attention(rotate(qkv(norm1 x))))     in windows, or all
//!                                                               x += down(silu(gate(norm2 x)) · up(norm2 x))
//!   ─norm─▶ tokens in raster order [N/4, 4D] ─linear, gelu─▶ [N/4, 4D] ─linear─▶ [N/4, text hidden size]
//! ```

use super::config::VisionConfig;
use super::patch_embed::PatchEmbed;
use super::rotation::Rotation;
use super::scratch::Scratch;
use crate::LoadError;
use crate::layers::{Loader, Names, WeightSize};
use crate::vision_parts::{Linear, MERGE};
use kernels::Tensor;
use kernels::ops::{self, Activation, RopeLayout, TurnedHeads};

/// Before every name.
pub(super) const PREFIX: &str = "visual.";
/// Of every norm.
const NORM_EPS: f32 = 1e-6;

pub(super) struct Tower {
    patch_embed: PatchEmbed,
    rotation: Rotation,
    blocks: Vec<Block>,
    merger: Merger,
    window: usize,
}

impl Tower {
    pub fn load(loader: &Loader, config: &VisionConfig) -> Result<Self, LoadError> {
        let blocks = (0..config.num_layers).map(|block| Block::load(loader, config, block));
        Ok(Self {
            patch_embed: PatchEmbed::load(loader, config.patch())?,
            rotation: Rotation::new(config.head_dim(), config.rope_theta),
            blocks: blocks.collect::<Result<_, _>>()?,
            merger: Merger::load(loader, config)?,
            window: config.window,
        })
    }

    pub fn size(names: &Names, config: &VisionConfig) -> WeightSize {
        PatchEmbed::size(names, config.patch())
            + (0..config.num_layers).map(|block| Block::size(names, config, block)).sum()
            + Merger::size(names, config)
    }

    /// From `s.patches` to `out` `[N/4, text hidden size]`.
    pub fn run(&mut self, grid: [usize; 2], s: &mut Scratch, out: &mut Tensor) {
        s.order.set(grid, self.window);
        s.windows.set(&s.order.segments);
        s.places.set(&s.order.patches);
        self.rotation.fill(&s.order.places, &mut s.turns);
        self.patch_embed.run(&mut s.tokens.hold(&s.patches), &mut s.normed, &mut s.mixed);
        ops::gather_rows(&s.normed, &s.places, &mut s.x);
        for block in &self.blocks {
            block.run(s);
        }
        s.places.set(&s.order.tokens);
        self.merger.run(s, out);
    }
}

struct Block {
    norm1: Tensor,
    /// `[3D, D]`: queries, keys and values, each of all heads.
    qkv: Linear,
    proj: Linear,
    norm2: Tensor,
    /// `[2I, D]`
    gate_up: Linear,
    down: Linear,
    num_heads: usize,
    /// Whether it looks at the whole picture.
    sees_all: bool,
}

impl Block {
    fn load(loader: &Loader, config: &VisionConfig, block: usize) -> Result<Self, LoadError> {
        let (d, i) = (config.hidden_size, config.intermediate_size);
        let name = |part: &str| format!("blocks.{block}.{part}");
        let linear = |part: &str, n: usize, k: usize| Linear::load(loader, &name(part), n, k);
        let (gate, up) = (name("mlp.gate_proj"), name("mlp.up_proj"));
        Ok(Self {
            norm1: loader.vector(&name("norm1.weight"), d)?,
            qkv: linear("attn.qkv", 3 * d, d)?,
            proj: linear("attn.proj", d, d)?,
            norm2: loader.vector(&name("norm2.weight"), d)?,
            gate_up: Linear::load_stacked(loader, &[(&gate, i), (&up, i)], d)?,
            down: linear("mlp.down_proj", d, i)?,
            num_heads: config.num_heads,
            sees_all: config.sees_all[block],
        })
    }

    fn size(names: &Names, config: &VisionConfig, block: usize) -> WeightSize {
        let (d, i) = (config.hidden_size, config.intermediate_size);
        let linears = [
            ("attn.qkv", 3 * d, d),
            ("attn.proj", d, d),
            ("mlp.gate_proj", 2 * i, d),
            ("mlp.down_proj", d, i),
        ];
        let size = |(name, n, k)| Linear::size(names, &format!("blocks.{block}.{name}"), n, k);
        WeightSize::vector(d).times(2) + linears.map(size).into_iter().sum()
    }

    /// `s.x` in place.
    fn run(&self, s: &mut Scratch) {
        let &[n, d] = s.x.shape() else { unreachable!("rows of patches") };
        ops::rms_norm(&s.x, &self.norm1, NORM_EPS, &mut s.normed);
        self.qkv.run(&mut s.tokens.hold(&s.normed), Activation::None, &mut s.qkv);
        s.qkv.reshape(&[n, 3, self.num_heads, d / self.num_heads]);
        s.mixed.reshape(&[n, self.num_heads, d / self.num_heads]);
        let heads = TurnedHeads {
            qkv: &mut s.qkv,
            rotation: ops::Rotation {
                table: &s.turns,
                positions: (&s.raster).into(),
                layout: RopeLayout::Half,
            },
            cu_seqlens: if self.sees_all { &s.whole } else { &s.windows }.into(),
            scale: ((d / self.num_heads) as f32).powf(-0.5),
        };
        let mut mixed = self.proj.hold_attention(heads, &mut s.attention, &mut s.mixed, &mut s.tokens);
        self.proj.add_to(&mut s.x, &mut mixed, &mut s.normed);
        s.qkv.reshape(&[n, 3 * d]);
        s.mixed.reshape(&[n, d]);

        ops::rms_norm(&s.x, &self.norm2, NORM_EPS, &mut s.normed);
        self.gate_up.run(&mut s.tokens.hold(&s.normed), Activation::None, &mut s.gate_up);
        let mut hidden = self.down.hold_silu_mul(&s.gate_up, &mut s.hidden, &mut s.tokens);
        self.down.add_to(&mut s.x, &mut hidden, &mut s.normed);
    }
}

/// Four patches become one token of the decoder's width.
struct Merger {
    norm: Tensor,
    linear_1: Linear,
    linear_2: Linear,
}

impl Merger {
    fn load(loader: &Loader, config: &VisionConfig) -> Result<Self, LoadError> {
        let merged = config.merged_size();
        Ok(Self {
            norm: loader.vector("merger.ln_q.weight", config.hidden_size)?,
            linear_1: Linear::load(loader, "merger.mlp.0", merged, merged)?,
            linear_2: Linear::load(loader, "merger.mlp.2", config.text_hidden_size, merged)?,
        })
    }

    fn size(names: &Names, config: &VisionConfig) -> WeightSize {
        let merged = config.merged_size();
        WeightSize::vector(config.hidden_size)
            + Linear::size(names, "merger.mlp.0", merged, merged)
            + Linear::size(names, "merger.mlp.2", config.text_hidden_size, merged)
    }

    /// From `s.x` to `out`, in the order of `s.places`.
    fn run(&self, s: &mut Scratch, out: &mut Tensor) {
        let &[n, d] = s.x.shape() else { unreachable!("rows of patches") };
        let merged = [n / (MERGE * MERGE), MERGE * MERGE * d];
        // The norm is of each patch's row, before four of them become one.
        ops::rms_norm(&s.x, &self.norm, NORM_EPS, &mut s.normed);
        s.normed.reshape(&merged);
        s.mixed.reshape(&merged);
        ops::gather_rows(&s.normed, &s.places, &mut s.mixed);
        let into = (&self.linear_2, &mut s.merged_tokens);
        let mut tokens =
            self.linear_1.run_for(&mut s.tokens.hold(&s.mixed), Activation::GeluErf, &mut s.normed, into);
        self.linear_2.run(&mut tokens, Activation::None, out);
        s.normed.reshape(&[n, d]);
        s.mixed.reshape(&[n, d]);
    }
}
