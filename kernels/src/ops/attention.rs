//! Attention over a paged cache, causal, and inside packed segments, bidirectional.
//!
//! gqa_attention:    q [T, Hq, D] f32 · k_cache [S, Hkv, D], v_cache [S, Hkv, Dv] f32 | bf16 | f16 | int8 · out [T, Hq, Dv] f32
//! mla_attention:    q [T, H, R + P] f32, absorbed · cache [S, R + P] · out [T, H, R] f32; values are the first R of a row
//! packed_attention: qkv [T, 3, H, D] f32 · out [T, H, D] f32
//! turned_attention: the same of queries and keys that turn before, as `rope_heads` turns them
//! out[t, h] = Σ_p softmax_p(scale · q[t, h] · k[p]) v[p]; gqa_attention over a window of keys and with sinks where its `Softmax` says so
//! Over a cache in bf16, where `Device::activation_type` beside bf16 is bf16, scale · q and the softmax's weights are rounded to it; so are they, and
//! keys and values, where a scratch of packed segments multiplies as bf16.
//!
//! Keys are visited in tiles at absolute positions, with a running maximum and sum, and in ranges of tiles that are merged in
//! order. So a row's bits depend on its own position only: not on chunks, on what is cached, or on who else is in the batch.
//! 2·(D + Dv) FLOP per row, head and key.

use super::rope::{check_rotation, rope_heads};
use crate::cpu::attention;
use crate::cuda::attention::{self as cuda_attention, Paged};
use crate::cuda::attention_plan::RangeRule;
use crate::cuda::attention_segments::{self, Call, Memory};
use crate::cuda::attention_tiles;
use crate::cuda::tokens::PackedResult;
use crate::operands::attention::{AttentionScratch, AttentionSizes, Ragged, Softmax, check_offsets};
use crate::operands::kv::KvRows;
use crate::operands::rope::{RopeLayout, Rotation};
use crate::{DType, Device, Index, Tensor};

impl AttentionScratch {
    pub fn new(device: &Device, sizes: AttentionSizes) -> Self {
        Self::with_ranges(device, sizes, RangeRule::default())
    }

    /// With another order of sums on a GPU: to measure what it costs, and what it would save (`bench-ops`).
    pub fn with_ranges(device: &Device, sizes: AttentionSizes, rule: RangeRule) -> Self {
        assert!(
            rule.shortest > 0 && rule.shortest.is_multiple_of(64) && rule.most > 0,
            "attention: {rule:?}"
        );
        let plan = match device {
            Device::Cpu(_) => None,
            Device::Cuda(_) => Some(attention_tiles::new_plan(device, &sizes, rule)),
        };
        let buffer = Tensor::zeros(device, DType::F32, &[Self::buffer_len(device, &sizes, rule)]);
        Self { buffer, sizes, plan, window_plan: None, multiply_as: DType::F32, rule }
    }

    /// For calls that have a window as well, the same one in all of them.
    pub fn with_window(self, device: &Device) -> Self {
        let window_plan = match device {
            Device::Cpu(_) => None,
            Device::Cuda(_) => Some(attention_tiles::new_plan(device, &self.sizes, self.rule)),
        };
        Self { window_plan, ..self }
    }

    /// What `with_window` will allocate.
    pub fn window_bytes(device: &Device, sizes: AttentionSizes) -> u64 {
        match device {
            Device::Cpu(_) => 0,
            Device::Cuda(_) => attention_tiles::plan_bytes(device, &sizes),
        }
    }

    /// What `new` will allocate.
    pub fn bytes(device: &Device, sizes: AttentionSizes) -> u64 {
        let buffer = Tensor::bytes_of(DType::F32, &[Self::buffer_len(device, &sizes, RangeRule::default())]);
        match device {
            Device::Cpu(_) => buffer,
            Device::Cuda(_) => buffer + attention_tiles::plan_bytes(device, &sizes),
        }
    }

    /// On a GPU, packed segments in f32 are rounded to this type and go through tensor cores, where their heads are at most 80 wide
    /// and the type is one of 16 bits. On a processor they are rounded to bf16, where that is the type and what activations are rounded to beside
    /// weights of it. Elsewhere it changes nothing.
    pub fn multiplying_as(self, dtype: DType) -> Self {
        assert!(dtype.is_float(), "attention: to multiply as {dtype}");
        Self { multiply_as: dtype, ..self }
    }

    /// Tells a graph that uses this scratch what its next replay attends to: the arrays that lie in the device's memory by then. An
    /// op that is called does so itself. Nothing to do on the CPU.
    pub fn plan(&mut self, ragged: &Ragged) {
        for plan in [&mut self.plan, &mut self.window_plan].into_iter().flatten() {
            plan.renew(&cuda_attention::items_of(ragged));
        }
    }

    /// What [`gqa_attention`] over a cache of this type can leave its result rounded to, where a linear layer takes it so.
    pub fn packs_as(&self, cache: DType) -> Option<DType> {
        match self.buffer.device() {
            Device::Cuda(cuda) if attention_tiles::serves_heads(cuda, &self.sizes, cache) => Some(cache),
            _ => None,
        }
    }

    /// What attention to packed segments takes on a GPU.
    fn memory(&mut self) -> Memory<'_> {
        let plan = self.plan.as_mut().expect("made on this device");
        Memory { buffer: &self.buffer, plan, sizes: &self.sizes }
    }

    fn buffer_len(device: &Device, sizes: &AttentionSizes, rule: RangeRule) -> usize {
        match device {
            Device::Cpu(_) => attention::scratch_len(sizes, device.num_threads()),
            Device::Cuda(cuda) => {
                attention_tiles::scratch_len(cuda.info().num_sms, sizes, rule)
                    + attention_segments::scratch_len(sizes)
            }
        }
    }
}

pub fn gqa_attention<'a>(
    q: &Tensor,
    k_cache: impl Into<KvRows<'a>>,
    v_cache: impl Into<KvRows<'a>>,
    ragged: &Ragged,
    softmax: impl Into<Softmax<'a>>,
    scratch: &mut AttentionScratch,
    out: &mut Tensor,
) {
    let call =
        HeadsOverPages { q, caches: [k_cache.into(), v_cache.into()], ragged, softmax: softmax.into() };
    attend_to_heads(call, scratch, out, PackedResult::NONE);
}

/// What [`gqa_attention`] reads.
pub(super) struct HeadsOverPages<'a> {
    pub q: &'a Tensor,
    /// Of keys and of values.
    pub caches: [KvRows<'a>; 2],
    pub ragged: &'a Ragged<'a>,
    pub softmax: Softmax<'a>,
}

/// `packed`: on a GPU, where [`AttentionScratch::packs_as`] says so.
pub(super) fn attend_to_heads(
    call: HeadsOverPages,
    scratch: &mut AttentionScratch,
    out: &mut Tensor,
    packed: PackedResult,
) {
    let HeadsOverPages { q, caches: [k_cache, v_cache], ragged, softmax } = call;
    let &[t, heads, d] = q.shape() else { panic!("gqa_attention: q {:?}", q.shape()) };
    let &[slots, kv_heads, key_d] = k_cache.rows.shape() else {
        panic!("gqa_attention: keys {:?}", k_cache.rows)
    };
    let &[v_slots, v_heads, dv] = v_cache.rows.shape() else {
        panic!("gqa_attention: values {:?}", v_cache.rows)
    };
    [k_cache, v_cache].iter().for_each(|cache| cache.check("gqa_attention", kv_heads));
    assert_eq!(key_d, d, "gqa_attention: width of keys");
    assert_eq!((v_slots, v_heads), (slots, kv_heads), "gqa_attention: values");
    assert_eq!(k_cache.rows.dtype(), v_cache.rows.dtype(), "gqa_attention: types of keys and values");
    assert!(heads.is_multiple_of(kv_heads), "gqa_attention: {heads} heads over {kv_heads}");
    assert_eq!(out.shape(), [t, heads, dv], "gqa_attention: out");
    check_scratch("gqa_attention", scratch, [heads, kv_heads, d, dv], t);
    assert!(softmax.window.is_none_or(|window| window > 0), "gqa_attention: a window of nothing");
    if let Some(sinks) = softmax.sinks {
        assert_eq!(sinks.shape(), [heads], "gqa_attention: sinks");
    }
    ragged.check(t, slots);
    match &out.device().clone() {
        Device::Cpu(cpu) => attention::gqa(cpu, q, [k_cache, v_cache], ragged, softmax, scratch, out),
        Device::Cuda(cuda) => {
            let call = Paged { q, keys: k_cache.rows, values: Some(v_cache.rows), ragged, softmax, packed };
            cuda_attention::paged(cuda, &call, scratch, out);
        }
    }
}

pub fn mla_attention<'a>(
    q: &Tensor,
    cache: impl Into<KvRows<'a>>,
    value_dim: usize,
    ragged: &Ragged,
    scale: f32,
    scratch: &mut AttentionScratch,
    out: &mut Tensor,
) {
    let &[t, heads, d] = q.shape() else { panic!("mla_attention: q {:?}", q.shape()) };
    let cache = cache.into();
    cache.check("mla_attention", 2);
    assert_eq!(cache.rows.row_len(), d, "mla_attention: width of the cache");
    assert!(value_dim <= d, "mla_attention: {value_dim} values of {d}");
    assert_eq!(out.shape(), [t, heads, value_dim], "mla_attention: out");
    check_scratch("mla_attention", scratch, [heads, 1, d, value_dim], t);
    ragged.check(t, cache.rows.rows());
    match &out.device().clone() {
        Device::Cpu(cpu) => attention::mla(cpu, q, cache, ragged, scale, scratch, out),
        Device::Cuda(cuda) => {
            let packed = PackedResult::NONE;
            let call = Paged { q, keys: cache.rows, values: None, ragged, softmax: scale.into(), packed };
            cuda_attention::paged(cuda, &call, scratch, out);
        }
    }
}

pub fn packed_attention<'a>(
    qkv: &Tensor,
    cu_seqlens: impl Into<Index<'a>>,
    scale: f32,
    scratch: &mut AttentionScratch,
    out: &mut Tensor,
) {
    let cu_seqlens = cu_seqlens.into();
    check_packed("packed_attention", qkv, cu_seqlens, scratch, out);
    match &out.device().clone() {
        Device::Cpu(cpu) => attention::packed(cpu, qkv, cu_seqlens.as_slice(), scale, scratch, out),
        Device::Cuda(cuda) if attention_segments::serves(&scratch.sizes, scratch.multiply_as) => {
            let call = segments(qkv, (cu_seqlens.as_slice(), scale), scratch.multiply_as, out);
            attention_segments::run(cuda, &call, scratch.memory());
        }
        Device::Cuda(cuda) => {
            cuda_attention::packed_rows(cuda, qkv, cu_seqlens, scale, &scratch.sizes, out);
        }
    }
}

/// Packed segments whose queries and keys turn before they are compared.
#[derive(Debug)]
pub struct TurnedHeads<'a> {
    /// `[T, 3, H, D]`: queries, keys, values. On return queries and keys may have been turned in place.
    pub qkv: &'a mut Tensor,
    /// From the first dimension of each head on; a position for each token.
    pub rotation: Rotation<'a>,
    /// Where segments begin and end.
    pub cu_seqlens: Index<'a>,
    pub scale: f32,
}

/// The bits of `rope_heads` of queries and keys, and `packed_attention`. On a GPU, where tensor cores take the segments and pairs are neighbours, what
/// is rounded for them turns on the way.
pub fn turned_attention(heads: TurnedHeads, scratch: &mut AttentionScratch, out: &mut Tensor) {
    turn_and_attend(heads, scratch, out, None);
}

/// With room where the result may be packed in the type that it is multiplied as, in place of `out`: whether it was.
pub(super) fn turn_and_attend(
    heads: TurnedHeads,
    scratch: &mut AttentionScratch,
    out: &mut Tensor,
    packed: Option<(DType, &Tensor)>,
) -> bool {
    let TurnedHeads { qkv, rotation, cu_seqlens, scale } = heads;
    check_packed("turned_attention", qkv, cu_seqlens, scratch, out);
    let &[t, _, num_heads, d] = qkv.shape() else { unreachable!("checked") };
    let Rotation { table, positions, layout } = rotation;
    match &out.device().clone() {
        Device::Cuda(cuda)
            if layout == RopeLayout::Interleaved
                && attention_segments::serves(&scratch.sizes, scratch.multiply_as) =>
        {
            check_rotation(table, positions, [t, d]);
            let packed = packed.filter(|(dtype, _)| *dtype == scratch.multiply_as).map(|(_, room)| room);
            let call = segments(qkv, (cu_seqlens.as_slice(), scale), scratch.multiply_as, out);
            let rotation = Some((table, positions.on_device(out.device())));
            attention_segments::run(cuda, &Call { rotation, packed, ..call }, scratch.memory());
            packed.is_some()
        }
        _ => {
            qkv.reshape(&[t, 3 * num_heads, d]);
            rope_heads(qkv, 0..2 * num_heads, table, positions, layout);
            qkv.reshape(&[t, 3, num_heads, d]);
            packed_attention(qkv, cu_seqlens, scale, scratch, out);
            false
        }
    }
}

/// On tensor cores: without a rotation, and its result as it is.
fn segments<'a>(
    qkv: &'a Tensor,
    (offsets, scale): (&'a [u32], f32),
    multiply_as: DType,
    out: &'a Tensor,
) -> Call<'a> {
    Call { qkv, offsets, rotation: None, scale, multiply_as, out, packed: None }
}

fn check_packed(op: &str, qkv: &Tensor, cu_seqlens: Index, scratch: &AttentionScratch, out: &Tensor) {
    let &[t, 3, heads, d] = qkv.shape() else { panic!("{op}: qkv {:?}", qkv.shape()) };
    assert_eq!(out.shape(), [t, heads, d], "{op}: out");
    check_scratch(op, scratch, [heads, heads, d, d], t);
    check_offsets(op, cu_seqlens.as_slice(), t);
}

fn check_scratch(op: &str, scratch: &AttentionScratch, found: [usize; 4], num_tokens: usize) {
    let AttentionSizes { heads, kv_heads, key_dim, value_dim, max_tokens, .. } = scratch.sizes;
    assert_eq!(found, [heads, kv_heads, key_dim, value_dim], "{op}: sizes of the scratch");
    assert!(num_tokens <= max_tokens, "{op}: {num_tokens} tokens exceed the scratch");
}
