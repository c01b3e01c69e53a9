//! The operations: one file per group, with contract, checks and dispatch. This list is the interface to `models`.
//!
//! Shapes are in capitals: T tokens, H heads, D dimensions, S cache slots. Activations are f32; weights and caches are f32,
//! bf16 or f16, or quantised. A shape that does not fit is a mistake of the caller and panics with the name of the op.

mod attention;
mod attention_expanded;
mod elementwise;
mod embedding;
mod expert_rows;
mod interpolate;
mod kv;
mod latents;
mod linear;
mod made;
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
pub use crate::operands::attention::{AttentionScratch, AttentionSizes, Ragged, Softmax};
pub use crate::operands::expert_rows::{ExpertRowSizes, ExpertRows};
pub use crate::operands::kv::{KvRows, KvShape, KvTensor, KvType};
pub use crate::operands::latents::{ExpandedSizes, LatentRows, Latents};
pub use crate::operands::linear::Activation;
pub use crate::operands::moe::{AddNorm, MoeScratch, SharedExpert};
pub use crate::operands::rope::{RopeLayout, RopeSections, RopeTable, Rotation};
pub use crate::operands::route::{GroupScore, RouterConfig, Scoring};
pub use crate::operands::sample::{Draw, MAX_TOP, RowRequest, SampleSizes, Want};
pub use crate::operands::tokens::{NormFor, TokenRoom};
pub use attention::{TurnedHeads, gqa_attention, mla_attention, packed_attention, turned_attention};
pub use attention_expanded::{ExpandedScratch, expanded_attention};
pub use elementwise::{add, add_gated, silu_mul};
pub use embedding::embedding;
pub use expert_rows::{combine_experts, enter_experts, expert_linear, sort_by_expert};
pub use interpolate::{interpolate_corners, interpolate_positions};
pub use kv::store_kv;
pub use latents::prepare_latents;
pub use linear::{HeadSlice, HeadSliceMut, LinearPart, heads_linear, heads_pack_as, linear, linear_pair};
pub use made::{MadeTokens, Readers};
pub use moe::{moe, moe_and_norm, moe_and_shared};
pub use norm::{add_rms_norm, layer_norm, layer_norm_heads, rms_norm};
pub use reads::{ReadPlan, ReadyPlan};
pub use rope::{rope, rope_heads, rope_sections};
pub use route::{Choice, Router, norm_and_route, route};
pub use rows::{NOWHERE, add_rows, add_scaled, copy_slice, gather_rows, scatter_rows, store_rows};
pub use sample::{MAX_VOCAB, Outcomes, RowOutcome, SampleScratch, place_tokens, sample};
pub use screened::{Screened, screened_linear};
pub use tokens::Tokens;
