//! A vision transformer for pictures of any shape, whose rows are told to the decoder from several depths. One picture at a time, so its rows depend
//! on nothing else.
//!
//! ```text
//! patches [N, 3pp] ─linear─▶ + positions ─▶ blocks: x += proj(attention(rotate(qkv(norm1 x))))
//!                                                   x += fc2(gelu(fc1(norm2 x)))
//!   after some blocks, and at the end: merger, norm (before or after four patches become one) ─fc1, gelu─▶ ─fc2─▶ [N/4, text hidden size]
//! ```

use super::config::VisionConfig;
use crate::LoadError;
use crate::layers::{Loader, Names, WeightSize};
use crate::qwen_vl::{PatchEmbed, Rotation};
use crate::vision_block::{Block, BlockKind};
use crate::vision_parts::{Linear, MERGE, Norm};
use crate::vision_scratch::Scratch;
use kernels::ops::{self, Activation, RopeLayout};
use kernels::{DType, HostTensor, Tensor};

/// Before every name.
pub(super) const PREFIX: &str = "model.visual.";
/// Of every layer norm.
const NORM_EPS: f32 = 1e-6;
const BLOCK: BlockKind = BlockKind {
    norms: ["norm1", "norm2"],
    qkv: "attn.qkv",
    out: "attn.proj",
    up: "mlp.linear_fc1",
    down: "mlp.linear_fc2",
    norm_eps: NORM_EPS,
    layout: RopeLayout::Half,
};

fn block_name(block: usize) -> String {
    format!("blocks.{block}")
}

pub(super) struct Tower {
    patch_embed: PatchEmbed,
    /// `[side, side, D]`: made for one square of patches and interpolated to the shape of each picture.
    positions: Tensor,
    rotation: Rotation,
    blocks: Vec<Block>,
    merger: Merger,
    /// After which block, and what is done then.
    taps: Vec<(usize, Merger)>,
}

impl Tower {
    pub fn load(loader: &Loader, config: &VisionConfig) -> Result<Self, LoadError> {
        let blocks =
            (0..config.num_layers).map(|block| BLOCK.load(loader, config.sizes(), &block_name(block)));
        let tap = |(number, &block): (usize, &usize)| {
            let merger =
                Merger::load(loader, config, &format!("deepstack_merger_list.{number}"), NormOf::Token)?;
            Ok::<_, LoadError>((block, merger))
        };
        Ok(Self {
            patch_embed: PatchEmbed::load(loader, config.patch())?,
            positions: load_positions(loader, config)?,
            rotation: Rotation::new(config.head_dim(), config.rope_theta),
            blocks: blocks.collect::<Result<_, _>>()?,
            merger: Merger::load(loader, config, "merger", NormOf::Patch)?,
            taps: config.taps.iter().enumerate().map(tap).collect::<Result<_, _>>()?,
        })
    }

    pub fn size(names: &Names, config: &VisionConfig) -> WeightSize {
        let table = config.table_side * config.table_side * config.hidden_size;
        let tap = |number: usize| {
            Merger::size(names, config, &format!("deepstack_merger_list.{number}"), NormOf::Token)
        };
        PatchEmbed::size(names, config.patch())
            + WeightSize::vector(table)
            + (0..config.num_layers).map(|block| BLOCK.size(names, config.sizes(), &block_name(block))).sum()
            + Merger::size(names, config, "merger", NormOf::Patch)
            + (0..config.taps.len()).map(tap).sum()
    }

    /// From `s.patches` to `outs`, each `[N/4, text hidden size]`: the end's first, then those of the taps.
    pub fn run(&mut self, grid: [usize; 2], s: &mut Scratch, outs: &mut [Tensor]) {
        let (out, taps) = outs.split_first_mut().expect("the end's rows");
        self.rotation.fill(&s.places, &mut s.turns);
        self.patch_embed.run(&mut s.tokens.hold(&s.patches), &mut s.x, &mut s.mixed);
        // The table is in raster order, and patches are not.
        ops::interpolate_corners(&self.positions, grid[0], grid[1], &mut s.normed);
        ops::gather_rows(&s.normed, &s.squares, &mut s.mixed);
        ops::add(&mut s.x, &s.mixed);
        for (index, block) in self.blocks.iter().enumerate() {
            block.run(s);
            if let Some(tap) = self.taps.iter().position(|(block, _)| *block == index) {
                self.taps[tap].1.run(s, &mut taps[tap]);
            }
        }
        self.merger.run(s, out);
    }
}

fn load_positions(loader: &Loader, config: &VisionConfig) -> Result<Tensor, LoadError> {
    let (name, side, d) = (loader.name("pos_embed.weight"), config.table_side, config.hidden_size);
    loader.checkpoint.kept(loader.device, &name, (DType::F32, vec![side, side, d]), || {
        let table = loader.checkpoint.take(&name, &[side * side, d])?;
        let square = HostTensor { shape: &[side, side, d], ..table.view() };
        Ok(Tensor::from_host_as(loader.device, square, DType::F32))
    })
}

/// What a merger normalises.
#[derive(Clone, Copy, PartialEq)]
enum NormOf {
    /// Each patch's row, before four of them become one.
    Patch,
    /// The four patches of a token side by side.
    Token,
}

impl NormOf {
    fn width(self, config: &VisionConfig) -> usize {
        match self {
            Self::Patch => config.hidden_size,
            Self::Token => config.merged_size(),
        }
    }
}

/// Four patches become one token of the decoder's width.
struct Merger {
    norm: Norm,
    norm_of: NormOf,
    fc1: Linear,
    fc2: Linear,
}

impl Merger {
    fn load(loader: &Loader, config: &VisionConfig, name: &str, norm_of: NormOf) -> Result<Self, LoadError> {
        let merged = config.merged_size();
        Ok(Self {
            norm: Norm::load(loader, &format!("{name}.norm"), norm_of.width(config), NORM_EPS)?,
            norm_of,
            fc1: Linear::load(loader, &format!("{name}.linear_fc1"), merged, merged)?,
            fc2: Linear::load(loader, &format!("{name}.linear_fc2"), config.text_hidden_size, merged)?,
        })
    }

    fn size(names: &Names, config: &VisionConfig, name: &str, norm_of: NormOf) -> WeightSize {
        let merged = config.merged_size();
        Norm::size(norm_of.width(config))
            + Linear::size(names, &format!("{name}.linear_fc1"), merged, merged)
            + Linear::size(names, &format!("{name}.linear_fc2"), config.text_hidden_size, merged)
    }

    /// From `s.x`, which stays, to `out`.
    fn run(&self, s: &mut Scratch, out: &mut Tensor) {
        let &[n, d] = s.x.shape() else { unreachable!("rows of patches") };
        let merged = [n / (MERGE * MERGE), MERGE * MERGE * d];
        if self.norm_of == NormOf::Token {
            s.x.reshape(&merged);
            s.normed.reshape(&merged);
        }
        self.norm.run(&s.x, &mut s.normed);
        s.x.reshape(&[n, d]);
        s.normed.reshape(&merged);
        s.mixed.reshape(&merged);
        let into = (&self.fc2, &mut s.hidden_tokens);
        let mut tokens =
            self.fc1.run_for(&mut s.tokens.hold(&s.normed), Activation::GeluErf, &mut s.mixed, into);
        self.fc2.run(&mut tokens, Activation::None, out);
        s.normed.reshape(&[n, d]);
        s.mixed.reshape(&[n, d]);
    }
}
