//! Everything that encoding a picture writes to in the towers of `vision_block`, made once for the largest picture.

use crate::vision_parts::{MERGE, attention_sizes, places};
use kernels::ops::{AttentionScratch, RopeTable, TokenRoom};
use kernels::{DType, Device, Indices, Tensor};

/// Of a tower.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TowerSizes {
    /// Values of a patch.
    pub patch_len: usize,
    pub hidden_size: usize,
    /// Inside a block's MLP.
    pub intermediate_size: usize,
    pub num_heads: usize,
}

impl TowerSizes {
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_heads
    }

    /// Width of the patches of one token side by side.
    fn merged_size(&self) -> usize {
        MERGE * MERGE * self.hidden_size
    }
}

/// N patches of a picture, D the tower's width, I the width inside its blocks, p the side of a patch.
pub(crate) struct Scratch {
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
    /// Of each patch in the order of the tokens that they become its number in raster order.
    pub squares: Indices,
    /// Rows and columns of patches in that order.
    pub places: Vec<[u32; 2]>,
    /// What goes to `raster` and to `squares`.
    numbers: Vec<u32>,
}

/// Widths of the activations, in the order of the fields.
fn widths(sizes: TowerSizes) -> [usize; 6] {
    let d = sizes.hidden_size;
    [sizes.patch_len, d, d, d, 3 * d, sizes.intermediate_size]
}

/// Inputs of linear layers: of the tower the widest, and of the projector; and of those that run after another.
fn token_sizes(sizes: TowerSizes, max_patches: usize) -> [[[usize; 2]; 2]; 2] {
    let merged = [max_patches / (MERGE * MERGE), sizes.merged_size()];
    let widths = [sizes.patch_len.max(sizes.hidden_size), sizes.intermediate_size];
    widths.map(|width| [[max_patches, width], merged])
}

impl Scratch {
    /// At most.
    pub const NUM_TENSORS: u64 = 18;

    /// Where attention multiplies in 16 bits, it does so in `float`, the type of the weights.
    pub fn new(device: &Device, sizes: TowerSizes, float: DType, max_patches: usize) -> Self {
        let [patches, x, normed, mixed, qkv, hidden] =
            widths(sizes).map(|width| Tensor::zeros(device, DType::F32, &[max_patches, width]));
        let [tokens, hidden_tokens] = token_sizes(sizes, max_patches);
        Self {
            patches,
            x,
            normed,
            mixed,
            qkv,
            hidden,
            turns: RopeTable::zeros(device, max_patches, sizes.head_dim() / 2),
            raster: Indices::new(device, max_patches),
            segments: Indices::new(device, 2),
            attention: AttentionScratch::new(
                device,
                attention_sizes(sizes.num_heads, sizes.head_dim(), max_patches),
            )
            .multiplying_as(float),
            tokens: TokenRoom::new(device, &tokens),
            hidden_tokens: TokenRoom::new(device, &hidden_tokens),
            squares: Indices::new(device, max_patches),
            places: Vec::with_capacity(max_patches),
            numbers: Vec::with_capacity(max_patches),
        }
    }

    /// What `new` allocates.
    pub fn bytes(device: &Device, sizes: TowerSizes, max_patches: usize) -> u64 {
        let activations = widths(sizes).map(|width| Tensor::bytes_of(DType::F32, &[max_patches, width]));
        activations.iter().sum::<u64>()
            + RopeTable::bytes(max_patches, sizes.head_dim() / 2)
            + 2 * Indices::bytes(device, max_patches)
            + Indices::bytes(device, 2)
            + AttentionScratch::bytes(device, attention_sizes(sizes.num_heads, sizes.head_dim(), max_patches))
            + token_sizes(sizes, max_patches)
                .map(|tokens| TokenRoom::bytes(device, &tokens))
                .iter()
                .sum::<u64>()
    }

    /// Shows as many rows as a picture of so many rows and columns of patches has patches.
    pub fn set_grid(&mut self, grid: [usize; 2]) {
        let num_patches = grid[0] * grid[1];
        let Self { patches, x, normed, mixed, qkv, hidden, places: at, numbers, .. } = self;
        for tensor in [patches, x, normed, mixed, qkv, hidden] {
            tensor.set_rows(num_patches);
        }
        at.clear();
        at.extend(places(grid).map(|place| place.map(|side| side as u32)));
        numbers.clear();
        numbers.extend(at.iter().map(|&[row, column]| row * grid[1] as u32 + column));
        self.squares.set(numbers);
        numbers.clear();
        numbers.extend(0..num_patches as u32);
        self.raster.set(numbers);
        self.segments.set(&[0, num_patches as u32]);
    }
}
