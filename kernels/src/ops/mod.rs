//! The operations: one file per group, with contract, checks and dispatch. This list is the interface to `models`.
//!
//! Shapes are in capitals: T tokens, H heads, D dimensions, S cache slots. Activations are f32; weights and caches are f32,
//! bf16 or f16, or quantised. A shape that does not fit is a mistake of the caller and panics with the name of the op.

mod attention;
mod attention_expanded;
mod elementwise;
mod embedding;
mod interpolate;
mod kv;
mod latents;
mod linear;
mod moe;
mod norm;
mod reads;
mod rope;
mod route;
mod rows;
mod sample;
mod screened;
mod tokens;

pub use crate::cuda::attention_plan::RangeRule;
pub use attention::{
    AttentionScratch, AttentionSizes, Ragged, TurnedHeads, gqa_attention, mla_attention, packed_attention,
    turned_attention,
};
pub use attention_expanded::{ExpandedScratch, ExpandedSizes, Latents, expanded_attention};
pub use elementwise::{add, silu_mul};
pub use embedding::embedding;
pub use interpolate::interpolate_positions;
pub use kv::{KvRows, KvShape, KvTensor, KvType, store_kv};
pub use latents::{LatentRows, Rotation, prepare_latents};
pub use linear::{Activation, HeadSlice, HeadSliceMut, LinearPart, heads_linear, linear, linear_pair};
pub use moe::{AddNorm, MoeScratch, SharedExpert, moe, moe_and_norm, moe_and_shared};
pub use norm::{add_rms_norm, layer_norm, layer_norm_heads, rms_norm};
pub use reads::{ReadPlan, ReadyPlan};
pub use rope::{RopeLayout, RopeTable, rope, rope_heads};
pub use route::{Choice, GroupScore, Router, RouterConfig, Scoring, norm_and_route, route};
pub(crate) use rows::as_heads;
pub use rows::{NOWHERE, add_rows, copy_slice, gather_rows, scatter_rows, store_rows};
pub use sample::{
    Draw, MAX_TOP, MAX_VOCAB, Outcomes, RowOutcome, RowRequest, SampleScratch, SampleSizes, Want,
    place_tokens, sample,
};
pub use screened::{Screened, screened_linear};
pub use tokens::{TokenRoom, Tokens};
