//! The block that the towers with layer norms share: `x += out(attention(rotate(qkv(norm x))))`, then `x += down(gelu(up(norm x)))`.

use crate::LoadError;
use crate::layers::{Loader, Names, WeightSize};
use crate::vision_parts::{Linear, Norm};
use crate::vision_scratch::{Scratch, TowerSizes};
use kernels::ops::{self, Activation, RopeLayout, TurnedHeads};

/// What a family calls the parts of a block, and in what its blocks differ from those of others.
pub(crate) struct BlockKind {
    /// Before attention, and before the MLP.
    pub norms: [&'static str; 2],
    pub qkv: &'static str,
    pub out: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub norm_eps: f32,
    pub layout: RopeLayout,
}

pub(crate) struct Block {
    norms: [Norm; 2],
    /// `[3D, D]`: queries, keys and values, each of all heads.
    qkv: Linear,
    out: Linear,
    up: Linear,
    down: Linear,
    num_heads: usize,
    layout: RopeLayout,
}

impl BlockKind {
    fn linears(&self, sizes: TowerSizes) -> [(&'static str, usize, usize); 4] {
        let (d, i) = (sizes.hidden_size, sizes.intermediate_size);
        [(self.qkv, 3 * d, d), (self.out, d, d), (self.up, i, d), (self.down, d, i)]
    }

    /// `module` is the block's.
    pub fn load(&self, loader: &Loader, sizes: TowerSizes, module: &str) -> Result<Block, LoadError> {
        let norm =
            |name: &str| Norm::load(loader, &format!("{module}.{name}"), sizes.hidden_size, self.norm_eps);
        let linear =
            |(name, n, k): (&str, usize, usize)| Linear::load(loader, &format!("{module}.{name}"), n, k);
        let [qkv, out, up, down] = self.linears(sizes).map(linear);
        Ok(Block {
            norms: [norm(self.norms[0])?, norm(self.norms[1])?],
            qkv: qkv?,
            out: out?,
            up: up?,
            down: down?,
            num_heads: sizes.num_heads,
            layout: self.layout,
        })
    }

    pub fn size(&self, names: &Names, sizes: TowerSizes, module: &str) -> WeightSize {
        let size = |(name, n, k)| Linear::size(names, &format!("{module}.{name}"), n, k);
        Norm::size(sizes.hidden_size).times(2) + self.linears(sizes).map(size).into_iter().sum()
    }
}

impl Block {
    /// `s.x` in place.
    pub fn run(&self, s: &mut Scratch) {
        let &[n, d] = s.x.shape() else { unreachable!("rows of patches") };
        let [before_attention, before_mlp] = &self.norms;
        let mut normed = before_attention.run_for(&s.x, &mut s.normed, (&self.qkv, &mut s.tokens));
        self.qkv.run(&mut normed, Activation::None, &mut s.qkv);
        s.qkv.reshape(&[n, 3, self.num_heads, d / self.num_heads]);
        s.mixed.reshape(&[n, self.num_heads, d / self.num_heads]);
        // Queries and keys turn, values do not.
        let heads = TurnedHeads {
            qkv: &mut s.qkv,
            rotation: ops::Rotation { table: &s.turns, positions: (&s.raster).into(), layout: self.layout },
            cu_seqlens: (&s.segments).into(),
            scale: ((d / self.num_heads) as f32).powf(-0.5),
        };
        let mut mixed = self.out.hold_attention(heads, &mut s.attention, &mut s.mixed, &mut s.tokens);
        self.out.add_to(&mut s.x, &mut mixed, &mut s.normed);
        s.qkv.reshape(&[n, 3 * d]);
        s.mixed.reshape(&[n, d]);

        let mut normed = before_mlp.run_for(&s.x, &mut s.normed, (&self.up, &mut s.tokens));
        let into = (&self.down, &mut s.hidden_tokens);
        let mut hidden = self.up.run_for(&mut normed, Activation::GeluTanh, &mut s.hidden, into);
        self.down.add_to(&mut s.x, &mut hidden, &mut s.normed);
    }
}
