//! prepare_latents: what latent attention reads of a step's tokens, made ready where it is read
//!
//! cache[slots[t], :R] = rounded(rms_norm(kv[t, :R]) * norm)      cache[slots[t], R:] = rounded(rotated kv[t, R:])
//! q[t, h, N:] is rotated in place                                absorbed[t, h, R:] = q[t, h, N:]
//!
//! kv [T, R + P] f32, of no use afterwards · norm [R] f32 · q [T, H, N + P], absorbed [T, H, R + P] f32 · cache [S, R + P] · P = twice the
//! width of the table. It rounds as `store_kv`, which leaves out rows whose slot is `NOWHERE`, normalises as `rms_norm` and rotates as
//! `rope`; on a GPU it is one launch · moves (4 + size)·(R + P) + 12·H·P bytes a token

use super::rows::{as_heads, check_slots};
use super::{KvTensor, RopeLayout, RopeTable, copy_slice, rope, store_kv};
use crate::cpu::{SharedMut, norm};
use crate::cuda::latents;
use crate::device::Cpu;
use crate::{Device, Index, Tensor};

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

/// By which angles, and which dimensions make a pair.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// `[positions, P / 2]`
    pub table: &'a RopeTable,
    pub positions: Index<'a>,
    pub layout: RopeLayout,
}

pub fn prepare_latents<'a>(
    mut rows: LatentRows,
    rotation: &Rotation,
    cache: &mut KvTensor,
    slots: impl Into<Index<'a>>,
) {
    let slots = slots.into();
    rows.check(rotation, cache, slots);
    match rows.kv.device().clone() {
        Device::Cpu(cpu) => rows.on_cpu(&cpu, rotation, cache, slots),
        Device::Cuda(cuda) => latents::prepare(&cuda, &rows, rotation, slots, cache.floats()),
    }
}

impl LatentRows<'_> {
    fn check(&self, rotation: &Rotation, cache: &KvTensor, slots: Index) {
        let Rotation { table, positions, .. } = rotation;
        let (t, rank, rotated) = (self.kv.rows(), self.norm.len(), 2 * table.cos.row_len());
        let ([q_rows, heads, query_len], [rows, row_heads, row_len]) =
            (as_heads(self.q), as_heads(self.absorbed));
        assert_eq!(self.kv.shape(), [t, rank + rotated], "prepare_latents: kv");
        assert_eq!((q_rows, rows), (t, t), "prepare_latents: rows of queries");
        assert!(query_len >= rotated, "prepare_latents: width of q");
        assert_eq!((row_heads, row_len), (heads, rank + rotated), "prepare_latents: absorbed");
        assert_eq!((self.scratch.rows(), self.scratch.row_len()), (t, rank), "prepare_latents: scratch");
        assert_eq!(positions.len(), t, "prepare_latents: positions");
        assert_eq!(slots.len(), t, "prepare_latents: slots");
        let num_positions = table.cos.rows();
        let is_known = |&position: &u32| (position as usize) < num_positions;
        assert!(
            positions.as_slice().iter().all(is_known),
            "prepare_latents: a position is not below {num_positions}"
        );
        let kept = cache.as_rows().rows;
        assert_eq!(kept.row_len(), rank + rotated, "prepare_latents: width of the cache");
        check_slots("prepare_latents", slots.as_slice(), kept.rows());
    }

    fn on_cpu(&mut self, cpu: &Cpu, rotation: &Rotation, cache: &mut KvTensor, slots: Index) {
        let Self { kv, norm: weight, eps, q, absorbed, scratch } = self;
        let Rotation { table, positions, layout } = *rotation;
        let (rank, row_len, rotated) = (weight.len(), kv.row_len(), 2 * table.cos.row_len());
        let (weight, latents) = (weight.as_f32(), SharedMut::new(scratch.as_f32_mut()));
        cpu.for_rows(kv.as_f32_mut(), row_len, |first, block| {
            for (i, row) in block.chunks_exact_mut(row_len).enumerate() {
                // SAFETY: blocks of kv are disjoint, and so are the same rows of the scratch.
                let latent = unsafe { latents.slice((first + i) * rank, rank) };
                latent.copy_from_slice(&row[..rank]);
                norm::rms_norm(cpu.isa, latent, weight, *eps, &mut row[..rank]);
            }
        });
        rope(kv, rank, table, positions, layout);
        store_kv(kv, cache, slots);
        let nope = as_heads(q)[2] - rotated;
        rope(q, nope, table, positions, layout);
        copy_slice(q, nope, absorbed, rank, rotated);
    }
}
