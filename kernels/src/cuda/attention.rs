//! Attention over pages on a GPU, of heads and of latents: where queries, keys and values lie, and which kernel serves them: the one on tensor
//! cores where it has an instance of these widths, or else the one that takes any, which serves packed segments as well
//! (on tensor cores: attention_segments.rs).

use super::Cuda;
use super::attention_plan::Items;
use super::attention_rows::{self, Pages, Problem, Strided};
use super::attention_tiles::{self, Memory};
use super::tokens::PackedResult;
use crate::operands::attention::{AttentionScratch, AttentionSizes, Ragged, Softmax};
use crate::{DType, Index, Tensor};

/// A call over pages.
pub(crate) struct Paged<'a> {
    pub q: &'a Tensor,
    pub keys: &'a Tensor,
    /// `None`: the first columns of the keys, which all heads share.
    pub values: Option<&'a Tensor>,
    pub ragged: &'a Ragged<'a>,
    pub softmax: Softmax<'a>,
    /// Of heads that `attention_tiles::serves_heads`, in the type of the cache.
    pub packed: PackedResult<'a>,
}

pub(crate) fn paged(cuda: &Cuda, call: &Paged, scratch: &mut AttentionScratch, out: &mut Tensor) {
    let Paged { q, keys, values, ragged, softmax, packed } = *call;
    packed.check("attention", [out.rows(), out.row_len()]);
    let strided = |tensor: &Tensor| Strided {
        start: tensor.pointer(),
        slot: tensor.row_len(),
        head: tensor.row_len() / scratch.sizes.kv_heads,
    };
    let problem = Problem {
        q: q.pointer(),
        q_stride: q.row_len(),
        keys: strided(keys),
        values: strided(values.unwrap_or(keys)),
        is_latent: values.is_none(),
        dtype: keys.dtype(),
        sizes: &scratch.sizes,
        num_tokens: q.rows(),
        num_items: ragged.num_items(),
        softmax,
        out: out.pointer(),
        packed,
    };
    assert_eq!([q.dtype(), out.dtype()], [DType::F32; 2], "attention: types");
    let device = out.device();
    let selected: Option<Vec<u32>> =
        ragged.selected.map(|selected| selected.iter().map(|&selected| u32::from(selected)).collect());
    let pages = Pages {
        context_lens: ragged.context_lens.on_device(device),
        block_tables: ragged.block_tables.on_device(device),
        cu_blocks: ragged.cu_blocks.on_device(device),
        block_size: ragged.block_size,
        selected: selected.as_deref().map(|selected| Index::Host(selected).on_device(device)),
    };
    let plan = match softmax.window {
        None => scratch.plan.as_mut().expect("made on this device"),
        Some(_) => scratch.window_plan.as_mut().expect("a scratch that was made with a window"),
    };
    let memory = Memory { buffer: &scratch.buffer, plan, rule: scratch.rule };
    if !attention_tiles::run(cuda, &problem, &items_of(ragged), &pages, memory) {
        assert!(packed.room.is_none(), "attention: rows in f32 are not packed");
        attention_rows::run(cuda, &problem, &ragged.cu_seqlens.on_device(device), Some(&pages));
    }
}

pub(crate) fn items_of<'a>(ragged: &Ragged<'a>) -> Items<'a> {
    Items {
        cu_seqlens: ragged.cu_seqlens.as_slice(),
        context_lens: Some(ragged.context_lens.as_slice()),
        tables: ragged.cu_blocks.as_slice(),
        selected: ragged.selected,
    }
}

/// Packed segments `[T, 3, H, D]` by the kernel that takes any width, in f32.
pub(crate) fn packed_rows(
    cuda: &Cuda,
    qkv: &Tensor,
    cu_seqlens: Index,
    scale: f32,
    sizes: &AttentionSizes,
    out: &mut Tensor,
) {
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
        is_latent: false,
        dtype: qkv.dtype(),
        sizes,
        num_tokens: qkv.rows(),
        num_items: cu_seqlens.len() - 1,
        softmax: scale.into(),
        out: out.pointer(),
        packed: PackedResult::NONE,
    };
    assert_eq!([qkv.dtype(), out.dtype()], [DType::F32; 2], "packed_attention: types");
    attention_rows::run(cuda, &problem, &cu_seqlens.on_device(out.device()), None);
}
