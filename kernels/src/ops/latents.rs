//! prepare_latents: what latent attention reads of a step's tokens, made ready where it is read
//!
//! cache[slots[t], :R] = rounded(rms_norm(kv[t, :R]) * norm)      cache[slots[t], R:] = rounded(rotated kv[t, R:])
//! q[t, h, N:] is rotated in place                                absorbed[t, h, R:] = q[t, h, N:]
//!
//! kv [T, R + P] f32, of no use afterwards · norm [R] f32 · q [T, H, N + P], absorbed [T, H, R + P] f32 · cache [S, R + P] · P = twice the
//! width of the table. It rounds as `store_kv`, which leaves out rows whose slot is `NOWHERE`, normalises as `rms_norm` and rotates as
//! `rope`; on a GPU it is one launch · moves (4 + size)·(R + P) + 12·H·P bytes a token

use super::rope::rotate;
use super::rows::check_slots;
use super::store_kv;
use crate::cpu::norm;
use crate::cpu::processor::Cpu;
use crate::cpu::rope::RopePlan;
use crate::cpu::rows::{self, SlicePlan};
use crate::cpu::shared::SharedMut;
use crate::cuda::latents;
use crate::operands::kv::KvTensor;
use crate::operands::latents::LatentRows;
use crate::operands::rope::Rotation;
use crate::tensor::as_heads;
use crate::{Device, Index};

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
        let ([num_tokens, heads, query_len], weight) = (as_heads(q), weight.as_f32());
        let nope = query_len - rotated;
        let of_kv = RopePlan { head_len: row_len, heads: 0..1, offset: rank };
        let of_q = RopePlan { head_len: query_len, heads: 0..heads, offset: nope };
        let copies = SlicePlan {
            src_len: query_len,
            src_offset: nope,
            dst_len: row_len,
            dst_offset: rank,
            len: rotated,
            dst_per_src: 1,
        };
        let [kv_rows, queries, targets, latents] =
            [kv.as_f32_mut(), q.as_f32_mut(), absorbed.as_f32_mut(), scratch.as_f32_mut()]
                .map(SharedMut::new);
        cpu.for_each(num_tokens, row_len + 2 * heads * rotated, |token| {
            // SAFETY: nobody else has rows of this token.
            let [row, query, target, latent] = unsafe {
                [
                    kv_rows.slice(token * row_len, row_len),
                    queries.slice(token * heads * query_len, heads * query_len),
                    targets.slice(token * heads * row_len, heads * row_len),
                    latents.slice(token * rank, rank),
                ]
            };
            latent.copy_from_slice(&row[..rank]);
            norm::rms_norm(cpu.isa, latent, weight, *eps, &mut row[..rank]);
            let position = positions.as_slice()[token] as usize;
            rotate(cpu.isa, row, &of_kv, table, (position, layout));
            rotate(cpu.isa, query, &of_q, table, (position, layout));
            rows::copy_slices(query, target, &copies);
        });
        store_kv(kv, cache, slots);
    }
}
