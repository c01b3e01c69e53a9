//! Operands of latent attention.

use super::kv::KvRows;
use crate::{DType, MatrixBatch, Tensor};

#[derive(Debug)]
pub struct LatentRows<'a> {
    /// `[T, R + P]`
    pub kv: &'a mut Tensor,
    /// `[R]`
    pub norm: &'a Tensor,
    pub eps: f32,
    /// `[T, H, N + P]`
    pub q: &'a mut Tensor,
    /// `[T, H, R + P]`
    pub absorbed: &'a mut Tensor,
    /// `[T, R]`, where the processor keeps latents before their norm.
    pub scratch: &'a mut Tensor,
}

/// The cached latents, and how keys and values come of them.
#[derive(Clone, Copy, Debug)]
pub struct Latents<'a> {
    pub cache: KvRows<'a>,
    pub key_up: &'a MatrixBatch,
    pub value_up: &'a MatrixBatch,
}

/// Sizes that a scratch of the expanded form serves.
#[derive(Clone, Copy, Debug)]
pub struct ExpandedSizes {
    pub heads: usize,
    /// R, of the latent.
    pub rank: usize,
    /// N, of the part of a key that comes from the latent.
    pub nope: usize,
    /// P, of the part that all heads share.
    pub rotated: usize,
    /// V
    pub value_dim: usize,
    /// Most tokens of a call.
    pub max_tokens: usize,
    /// Longest sequence. On the processor it changes nothing.
    pub max_context: usize,
    /// What the cache is kept in. On the processor it changes nothing.
    pub cache: DType,
}
