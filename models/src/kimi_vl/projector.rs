//! From the tower's rows to the decoder's: each 2 x 2 square of patches becomes one token.
//!
//! ```text
//! [N, D] ─norm─▶ [N, D] ─gather squares─▶ [N/4, 4D] ─linear_1, gelu─▶ [N/4, 4D] ─linear_2─▶ [N/4, text hidden size]
//! ```

use super::config::VisionConfig;
use super::vit::NORM_EPS;
use crate::LoadError;
use crate::layers::{Loader, Names, WeightSize};
use crate::vision_parts::{Linear, MERGE, Norm};
use crate::vision_scratch::Scratch;
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
            pre_norm: Norm::load(loader, "pre_norm", config.hidden_size, NORM_EPS)?,
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
    pub fn run(&self, s: &mut Scratch, out: &mut Tensor) {
        let (num_patches, d) = (s.normed.shape()[0], s.normed.shape()[1]);
        let num_tokens = num_patches / (MERGE * MERGE);
        // The norm is of each patch's row, before four of them become one.
        self.pre_norm.run(&s.normed, &mut s.x);
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
