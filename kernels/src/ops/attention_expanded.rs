//! Latent attention in its expanded form, causal, over a paged cache.
//!
//! expanded_attention: q [T, H, N + P] f32, rotated · cache [S, R + P] f32 | bf16 | f16 | int8 · key_up [H, N, R], value_up [H, V, R] ·
//!                     out [T, H, V] f32
//! key[p, h] = [key_up[h] · latent[p] | rotated[p]], value[p, h] = value_up[h] · latent[p]
//! out[t, h] = Σ_p softmax_p(scale · q[t, h] · key[p, h]) value[p, h]
//!
//! Only rows of items that `ragged` has selected are written. It computes what `mla_attention` computes between two `heads_linear`, with other
//! roundings: 2·(N + P + V) FLOP per row, head and key instead of 2·(2·R + P), and 2·R·(N + V) per key and head of each item. On a processor queries,
//! keys, values and the softmax's weights are rounded to bf16 where those of `mla_attention` over such a cache are. On a GPU the
//! cache is f32, bf16 or f16, and keys and values are rounded to its type where tensor cores take them: N and V of 128, P of 64.

use crate::cpu::attention_expanded::{self, Expansion};
use crate::cuda::attention_expanded::{self as cuda_expanded, Workspace};
use crate::cuda::attention_expanded_plan::RANGE;
use crate::cuda::tokens::PackedResult;
use crate::operands::attention::Ragged;
use crate::operands::latents::{ExpandedSizes, Latents};
use crate::{DType, Device, Tensor};

/// Keys and values of some positions (512, on a GPU 2048), tiles of each thread, and sums of rows.
#[derive(Debug)]
pub struct ExpandedScratch {
    buffer: Tensor,
    sizes: ExpandedSizes,
    /// Where the device is a GPU.
    workspace: Option<Workspace>,
}

impl ExpandedScratch {
    pub fn new(device: &Device, sizes: ExpandedSizes) -> Self {
        Self::with_ranges(device, sizes, RANGE)
    }

    /// With ranges of so many keys on a GPU, a multiple of 128, which is another order of sums: for tests of long sequences.
    pub fn with_ranges(device: &Device, sizes: ExpandedSizes, range: usize) -> Self {
        let workspace = match device {
            Device::Cpu(_) => None,
            Device::Cuda(_) => Some(Workspace::new(device, &sizes, range)),
        };
        let buffer = Tensor::zeros(device, DType::F32, &[buffer_len(device, &sizes, range)]);
        Self { buffer, sizes, workspace }
    }

    /// What a result can be left rounded to, where a linear layer takes it so.
    pub fn packs_as(&self) -> Option<DType> {
        self.workspace.as_ref().and_then(Workspace::packs_as)
    }

    /// What `new` will allocate.
    pub fn bytes(device: &Device, sizes: ExpandedSizes) -> u64 {
        let buffer = Tensor::bytes_of(DType::F32, &[buffer_len(device, &sizes, RANGE)]);
        match device {
            Device::Cpu(_) => buffer,
            Device::Cuda(_) => buffer + Workspace::bytes(device, &sizes),
        }
    }
}

fn buffer_len(device: &Device, sizes: &ExpandedSizes, range: usize) -> usize {
    match device {
        Device::Cpu(_) => attention_expanded::scratch_len(sizes, device.num_threads()),
        Device::Cuda(_) => Workspace::buffer_len(device, sizes, range),
    }
}

pub fn expanded_attention(
    q: &Tensor,
    latents: Latents,
    ragged: &Ragged,
    scale: f32,
    scratch: &mut ExpandedScratch,
    out: &mut Tensor,
) {
    attend_expanded(ExpandedCall { q, latents, ragged, scale }, scratch, out, PackedResult::NONE);
}

/// What [`expanded_attention`] reads.
pub(super) struct ExpandedCall<'a> {
    pub q: &'a Tensor,
    pub latents: Latents<'a>,
    pub ragged: &'a Ragged<'a>,
    pub scale: f32,
}

/// `packed`: on a GPU, where [`ExpandedScratch::packs_as`] says so.
pub(super) fn attend_expanded(
    call: ExpandedCall,
    scratch: &mut ExpandedScratch,
    out: &mut Tensor,
    packed: PackedResult,
) {
    let ExpandedCall { q, latents, ragged, scale } = call;
    let ExpandedSizes { heads, rank, nope, rotated, value_dim, max_tokens, .. } = scratch.sizes;
    let Latents { cache, key_up, value_up } = latents;
    let t = q.rows();
    assert_eq!(q.shape(), [t, heads, nope + rotated], "expanded_attention: q");
    assert_eq!(out.shape(), [t, heads, value_dim], "expanded_attention: out");
    assert_eq!(cache.rows.row_len(), rank + rotated, "expanded_attention: width of the cache");
    assert_eq!([key_up.count(), key_up.n(), key_up.k()], [heads, nope, rank], "expanded_attention: key_up");
    assert_eq!(
        [value_up.count(), value_up.n(), value_up.k()],
        [heads, value_dim, rank],
        "expanded_attention: value_up"
    );
    cache.check("expanded_attention", 2);
    ragged.check(t, cache.rows.rows());
    assert!(t <= max_tokens, "expanded_attention: {t} tokens exceed the scratch");
    let ExpandedScratch { buffer, sizes, workspace } = scratch;
    match (&out.device().clone(), workspace) {
        (Device::Cpu(cpu), _) => {
            let expansion = Expansion { q, cache, key_up, value_up, ragged, scale };
            for item in (0..ragged.num_items()).filter(|&item| ragged.is_selected(item)) {
                attention_expanded::item(cpu, &expansion, item, sizes, buffer.as_f32_mut(), out);
            }
        }
        (Device::Cuda(cuda), Some(workspace)) => {
            let call = cuda_expanded::Call { q, latents, ragged, scale, sizes, buffer, packed };
            cuda_expanded::run(cuda, &call, workspace, out);
        }
        (Device::Cuda(_), None) => panic!("expanded_attention: the scratch is another device's"),
    }
}
