//! From the tower's rows to the decoder's: each 2 x 2 square of patches becomes one token.
//!
//! ```text
//! [N, D] ─norm─▶ [N, D] ─gather squares─▶ [N/4, 4D] ─linear_1, gelu─▶ [N/4, 4D] ─linear_2─▶ [N/4, text hidden size]
//! ```

use super::config::VisionConfig;
use super::scratch::Scratch;
use crate::LoadError;
use crate::layers::{Loader, Names, WeightSize};
use crate::vision_parts::MERGE;
use crate::vision_parts::{Linear, Norm};
use kernels::Tensor;
use kernels::ops::{self, Activation};

/// Before every name.
pub(super) const PREFIX: &str = "multi_modal_projector.";

pub(super) struct Projector {
    pre_norm: Norm,
    linear_1: Linear,
    linear_2: Linear,
}

impl Projector {
    pub fn load(loader: &Loader, config: &VisionConfig) -> Result<Self, LoadError> {
        let merged = config.merged_size();
        Ok(Self {
            pre_norm: Norm::load(loader, "pre_norm", config.hidden_size)?,
            linear_1: Linear::load(loader, "linear_1", merged, merged)?,
            linear_2: Linear::load(loader, "linear_2", config.text_hidden_size, merged)?,
        })
    }

    pub fn size(names: &Names, config: &VisionConfig) -> WeightSize {
        let merged = config.merged_size();
        Norm::size(config.hidden_size)
            + Linear::size(names, "linear_1", merged, merged)
            + Linear::size(names, "linear_2", config.text_hidden_size, merged)
    }

    /// From the tower's rows in `s.normed` to `out` `[N/4, text hidden size]`.
    pub fn run(&self, grid: [usize; 2], s: &mut Scratch, out: &mut Tensor) {
        let (num_patches, d) = (s.normed.shape()[0], s.normed.shape()[1]);
        let num_tokens = num_patches / (MERGE * MERGE);
        // The norm is of each patch's row, before four of them become one.
        self.pre_norm.run(&s.normed, &mut s.x);
        squares(grid, &mut s.order);
        s.squares.set(&s.order);
        ops::gather_rows(&s.x, &s.squares, &mut s.mixed);
        s.mixed.reshape(&[num_tokens, MERGE * MERGE * d]);
        s.normed.reshape(&[num_tokens, MERGE * MERGE * d]);
        let into = (&self.linear_2, &mut s.hidden_tokens);
        let mut merged =
            self.linear_1.run_for(&mut s.tokens.hold(&s.mixed), Activation::GeluErf, &mut s.normed, into);
        self.linear_2.run(&mut merged, Activation::None, out);
        s.mixed.reshape(&[num_patches, d]);
        s.normed.reshape(&[num_patches, d]);
    }
}

/// The patches of one token after the other: squares in raster order, and the patches inside one as well.
fn squares([rows, columns]: [usize; 2], patches: &mut Vec<u32>) {
    patches.clear();
    for (row, column) in
        (0..rows).step_by(MERGE).flat_map(|r| (0..columns).step_by(MERGE).map(move |c| (r, c)))
    {
        for inside in 0..MERGE * MERGE {
            patches.push(((row + inside / MERGE) * columns + column + inside % MERGE) as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_follow_one_another() {
        let mut patches = vec![9; 3];
        squares([4, 6], &mut patches);
        let expected = [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11, 12, 13, 18, 19, 14, 15, 20, 21, 16, 17, 22, 23];
        assert_eq!(patches, expected);
    }
}
