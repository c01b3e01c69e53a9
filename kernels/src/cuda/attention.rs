//! The three forms of attention on a GPU: where their queries, keys and values lie, and which kernel serves them.

use super::Cuda;
use super::attention_rows::{self, Pages, Problem, Strided};
use crate::ops::{AttentionScratch, Ragged};
use crate::{DType, Index, Tensor};

pub(crate) fn gqa(
    cuda: &Cuda,
    q: &Tensor,
    [keys, values]: [&Tensor; 2],
    ragged: &Ragged,
    scale: f32,
    scratch: &mut AttentionScratch,
    out: &mut Tensor,
) {
    let strided = |tensor: &Tensor| Strided {
        start: tensor.pointer(),
        slot: tensor.row_len(),
        head: tensor.row_len() / scratch.sizes.kv_heads,
    };
    paged(cuda, q, [strided(keys), strided(values)], keys.dtype(), ragged, scale, scratch, out);
}

pub(crate) fn mla(
    cuda: &Cuda,
    q: &Tensor,
    cache: &Tensor,
    ragged: &Ragged,
    scale: f32,
    scratch: &mut AttentionScratch,
    out: &mut Tensor,
) {
    let latent = Strided { start: cache.pointer(), slot: cache.row_len(), head: 0 };
    paged(cuda, q, [latent; 2], cache.dtype(), ragged, scale, scratch, out);
}

#[allow(clippy::too_many_arguments, reason = "what two callers have in common; named once, in `Problem`")]
fn paged(
    cuda: &Cuda,
    q: &Tensor,
    [keys, values]: [Strided; 2],
    dtype: DType,
    ragged: &Ragged,
    scale: f32,
    scratch: &mut AttentionScratch,
    out: &mut Tensor,
) {
    let device = out.device().clone();
    let problem = Problem {
        q: q.pointer(),
        q_stride: q.row_len(),
        keys,
        values,
        dtype,
        sizes: &scratch.sizes,
        num_tokens: q.rows(),
        num_items: ragged.num_items(),
        scale,
        out: out.pointer(),
    };
    let pages = Pages {
        context_lens: ragged.context_lens.on_device(&device),
        block_tables: ragged.block_tables.on_device(&device),
        cu_blocks: ragged.cu_blocks.on_device(&device),
        block_size: ragged.block_size,
    };
    attention_rows::run(cuda, &problem, &ragged.cu_seqlens.on_device(&device), Some(&pages));
}

pub(crate) fn packed(
    cuda: &Cuda,
    qkv: &Tensor,
    cu_seqlens: Index,
    scale: f32,
    scratch: &mut AttentionScratch,
    out: &mut Tensor,
) {
    let sizes = &scratch.sizes;
    let width = sizes.heads * sizes.key_dim;
    let part = |part: usize| Strided {
        start: qkv.device_slice(part * width).start,
        slot: 3 * width,
        head: sizes.key_dim,
    };
    let problem = Problem {
        q: qkv.pointer(),
        q_stride: 3 * width,
        keys: part(1),
        values: part(2),
        dtype: qkv.dtype(),
        sizes,
        num_tokens: qkv.rows(),
        num_items: cu_seqlens.len() - 1,
        scale,
        out: out.pointer(),
    };
    attention_rows::run(cuda, &problem, &cu_seqlens.on_device(out.device()), None);
}
