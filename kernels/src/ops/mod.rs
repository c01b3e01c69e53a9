//! The operations: one file for each group, with its contract and its checks. This list is the interface to models.
//!
//! Input is ragged: tokens `[T, ..]` of several sequences one after the other. Results are written into preallocated tensors. The
//! order of every sum is fixed by the row alone, so that a row's result never depends on the rest of the batch.

mod attention;
mod elementwise;
mod linear;
mod moe;
mod norm;
mod rope;
mod rows;

pub use attention::{AttentionScratch, Ragged, gqa_attention, mla_attention, packed_attention};
pub use elementwise::{add, silu_mul};
pub use linear::{Activation, HeadSlice, HeadSliceMut, heads_linear, linear};
pub use moe::{GroupScore, MoeScratch, RouterConfig, Scoring, moe, route};
pub use norm::{add_rms_norm, layer_norm, rms_norm};
pub use rope::{RopeLayout, RopeTable, rope};
pub use rows::{copy_slice, embedding, gather_rows, interpolate_positions, scatter_rows, store_rows};
