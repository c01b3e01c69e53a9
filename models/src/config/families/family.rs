//! What makes a family: its name, its defaults, and the switches that its configuration sets.

use crate::LoadError;
use crate::config::json::Fields;
use crate::config::{DecoderConfig, MoeConfig, NormPlace, QkNorm};
use kernels::ops::{RopeLayout, RopeSections};

/// An architecture that is served.
pub(super) struct Architecture {
    pub name: &'static str,
    pub special_tokens: SpecialTokens,
    /// What it switches on, as far as the file has a say in it.
    pub family: fn(&Fields) -> Result<Family, LoadError>,
    /// What only this architecture says of the decoder that was built.
    pub finish: fn(&Fields, DecoderConfig) -> Result<DecoderConfig, LoadError>,
}

impl Architecture {
    pub const fn new(name: &'static str, family: fn(&Fields) -> Result<Family, LoadError>) -> Self {
        let special_tokens = SpecialTokens { bos: None, eos: &[] };
        Self { name, special_tokens, family, finish: |_, decoder| Ok(decoder) }
    }

    pub const fn with_tokens(self, bos: u32, eos: &'static [u32]) -> Self {
        Self { special_tokens: SpecialTokens { bos: Some(bos), eos }, ..self }
    }

    pub const fn ending(self, eos: &'static [u32]) -> Self {
        Self { special_tokens: SpecialTokens { bos: None, eos }, ..self }
    }
}

pub(super) const MAX_LAYERS: usize = 1024;
pub(super) const MAX_WIDTH: usize = 1 << 20;
pub(super) const MAX_VOCAB: usize = 1 << 24;
pub(super) const MAX_HEADS: usize = 4096;
pub(super) const MAX_EXPERTS: usize = 4096;
pub(super) const MAX_POSITIONS: usize = 1 << 28;

/// Sizes that the configuration classes take when the file names none.
pub(super) struct Defaults {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    /// `None`: as many as heads.
    pub num_kv_heads: Option<usize>,
    pub max_positions: usize,
    pub rms_norm_eps: f64,
    pub theta: f64,
}

/// Special tokens that the configuration classes name when the files do not.
#[derive(Clone, Copy)]
pub(in crate::config) struct SpecialTokens {
    pub bos: Option<u32>,
    pub eos: &'static [u32],
}

/// The share of a head that turns, from its width.
pub(super) type RotatedShare = fn(&Fields, usize) -> Result<f64, LoadError>;

/// The switches of a family.
pub(super) struct Family {
    pub defaults: &'static Defaults,
    /// Multi-head latent attention, and the keys of DeepSeek.
    pub latent: bool,
    /// `rope_interleave` may say that latent attention rotates halves, not neighbours.
    pub halves: bool,
    /// Fixed by the code; `None`: `attention_bias` says it.
    pub qkv_bias: Option<bool>,
    pub bias_default: bool,
    pub out_bias: OutBias,
    pub qk_norm: QkNorm,
    pub head_dim: Option<usize>,
    pub mlp_bias: bool,
    pub window: Window,
    /// Heads have a logit that takes weight and has no value.
    pub sinks: bool,
    /// How values of a head that turn together lie, where heads have keys of their own.
    pub layout: RopeLayout,
    /// The share of a head that turns, where the file does not say it; `None`: all of it, whatever the file says.
    pub rotated: Option<RotatedShare>,
    pub norms: NormPlace,
    /// Gate and up are one matrix in the files.
    pub fused_gate_up: bool,
    /// The head is the embedding, where the file does not say it.
    pub tied_head: bool,
    /// Of tokens with three positions, where the file does not say it.
    pub sections: Option<RopeSections>,
    /// Layers after the last one that only speculate, where the file does not say how many.
    pub mtp_layers: usize,
    /// From the number of layers.
    pub moe: fn(&Fields, usize) -> Result<Option<MoeConfig>, LoadError>,
}

pub(super) const fn dense(defaults: &'static Defaults) -> Family {
    Family {
        defaults,
        latent: false,
        halves: false,
        qkv_bias: None,
        bias_default: false,
        out_bias: OutBias::AsQkv,
        qk_norm: QkNorm::None,
        head_dim: None,
        mlp_bias: false,
        window: Window::Never,
        sinks: false,
        layout: RopeLayout::Half,
        rotated: None,
        norms: NormPlace::Before,
        fused_gate_up: false,
        tied_head: false,
        sections: None,
        mtp_layers: 0,
        moe: |_, _| Ok(None),
    }
}

/// Whether the output of attention has a bias.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum OutBias {
    /// Where `attention_bias` gives queries, keys and values one.
    AsQkv,
    /// `attention_out_bias` says it.
    OwnKey,
    Never,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Window {
    /// The family has none.
    Never,
    /// `sliding_window`, when `use_sliding_window` is true, of the layers that `layer_types` says, or else from `max_window_layers` on.
    Switched,
    /// `sliding_window`, when `use_sliding_window` is true.
    SwitchedForAll,
    /// `sliding_window`, when it is not null, of the layers that `layer_types` says, or else from `max_window_layers` on; with the defaults of
    /// the class.
    FromLayer { width: usize, first: usize },
    /// `sliding_window`, when it is not null; with the default of the class.
    Always(Option<usize>),
    /// The same, of the layers that `layer_types` says, or else of all.
    OfTypes(usize),
    /// The same, or else of every second layer from the first on.
    Alternating(usize),
}
