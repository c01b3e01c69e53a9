//! The CPU side of each op, one file per op, and what they share: the pool, the vectors, ways to cut work into tasks.

pub(crate) mod affinity;
pub(crate) mod ahead;
pub(crate) mod attention;
mod attention_block;
pub(crate) mod attention_expanded;
mod attention_floats;
#[cfg(target_arch = "x86_64")]
mod attention_latents;
mod attention_load;
#[cfg(target_arch = "x86_64")]
mod attention_pairs;
#[cfg(target_arch = "x86_64")]
mod attention_pairs_thin;
mod attention_problem;
mod attention_thin;
pub(crate) mod by_expert;
mod by_type;
mod compact;
mod compact_blocks;
#[cfg(target_arch = "x86_64")]
mod compact_floats;
#[cfg(target_arch = "x86_64")]
mod compact_integers;
mod dot;
pub(crate) mod expert_rows;
mod floats;
pub(crate) mod gemm;
mod grouped;
pub(crate) mod interpolate;
pub(crate) mod moe;
pub(crate) mod norm;
pub(crate) mod pack;
pub(crate) mod peaks;
pub(crate) mod pool;
pub(crate) mod processor;
pub(crate) mod rope;
pub(crate) mod rounded;
pub(crate) mod rounds;
pub(crate) mod route;
pub(crate) mod rows;
pub(crate) mod screen;
pub(crate) mod shared;
pub(crate) mod simd;
pub(crate) mod tile;
