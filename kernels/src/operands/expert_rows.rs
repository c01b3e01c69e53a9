//! What both devices take of rows that were sorted by expert.

use crate::cpu::rounded::Rounding;
use crate::{DType, Device, Tensor};

/// Which rows the pairs of some tokens have, and room to round them.
#[derive(Debug)]
pub struct ExpertRows {
    /// `[P]`: the row of each pair.
    pub(crate) places: Tensor,
    /// `[P]`: the pair of each row. On a GPU.
    pub(crate) order: Tensor,
    /// `[2 E + 1]`: where the rows of each expert begin; on the CPU then the experts that have rows.
    pub(crate) starts: Tensor,
    /// `[P, ·]`: rows of the widest input, rounded.
    pub(crate) rounded: Tensor,
    pub(crate) sizes: ExpertRowSizes,
}

/// The largest call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertRowSizes {
    pub max_tokens: usize,
    pub top_k: usize,
    pub experts: usize,
    /// Of the inputs of `expert_linear`, the widest.
    pub max_width: usize,
}

impl ExpertRowSizes {
    fn shapes(&self) -> [[usize; 2]; 4] {
        let pairs = self.max_tokens * self.top_k;
        let width = self.max_width.max(Rounding::most_words(self.max_width));
        [[pairs, 1], [pairs, 1], [2 * self.experts + 1, 1], [pairs, width]]
    }
}

impl ExpertRows {
    /// Tensors that `new` makes.
    pub const NUM_TENSORS: u64 = 4;

    pub fn new(device: &Device, sizes: ExpertRowSizes) -> Self {
        let [places, order, starts, rounded] = sizes.shapes();
        let numbers = |shape: [usize; 2]| Tensor::zeros(device, DType::I32, &shape);
        Self {
            places: numbers(places),
            order: numbers(order),
            starts: numbers(starts),
            rounded: Tensor::zeros(device, DType::F32, &rounded),
            sizes,
        }
    }

    /// What `new` will allocate.
    pub fn bytes(sizes: ExpertRowSizes) -> u64 {
        // All of them are of types of four bytes.
        sizes.shapes().iter().map(|shape| Tensor::bytes_of(DType::F32, shape)).sum()
    }

    pub(crate) fn pairs(&self) -> usize {
        self.places.rows()
    }
}
