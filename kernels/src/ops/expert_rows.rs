//! The layer of experts in steps, for what is computed between them; one after the other they have the bits of `moe`.
//!
//! sort_by_expert:  pairs (token, choice) get rows, those of an expert beside each other, in the order of the pairs
//! enter_experts:   out[row of pair, :] = x[token of pair, :]           x [T, D] f32 · out [P, D] f32, P = T·k
//! expert_linear:   out[r, n] = Σ_k x[r, k] · w[expert of r, n, k]      x [P, K] f32 · w [E, N, K] of any `WeightType` · out [P, N] f32
//! combine_experts: out[t, :] = Σ_j weights[t, j] · made[row of (t, j), :], in the order of j     made [P, H] f32 · out [T, H] f32
//!
//! On a GPU which expert a row has is known on the device alone.

use crate::cpu::by_expert::{Groups, sort_by_expert as sort_on_cpu};
use crate::cpu::expert_rows as cpu_rows;
use crate::cuda::moe as cuda_moe;
use crate::operands::expert_rows::{ExpertRowSizes, ExpertRows};
use crate::{DType, Device, MatrixBatch, Tensor};

/// `ids` `[T, k]`, each below E. On a GPU that cannot be seen from here.
pub fn sort_by_expert(ids: &Tensor, rows: &mut ExpertRows) {
    let ExpertRowSizes { max_tokens, top_k, experts, .. } = rows.sizes;
    assert!(ids.rows() <= max_tokens, "sort_by_expert: {} tokens exceed the room", ids.rows());
    assert_eq!((ids.dtype(), ids.row_len()), (DType::I32, top_k), "sort_by_expert: ids");
    rows.places.set_rows(ids.len());
    rows.order.set_rows(ids.len());
    match &ids.device().clone() {
        Device::Cpu(_) => {
            let known = ids.as_i32().iter().all(|id| (0..experts as i32).contains(id));
            assert!(known, "sort_by_expert: an id is not below {experts}");
            let starts = &mut rows.starts.as_i32_mut()[..experts + 1];
            sort_on_cpu(ids.as_i32(), rows.places.as_i32_mut(), starts);
        }
        Device::Cuda(cuda) => cuda_moe::sort_by_expert(cuda, ids, rows, experts),
    }
}

pub fn enter_experts(x: &Tensor, rows: &ExpertRows, out: &mut Tensor) {
    let (k, width) = (rows.sizes.top_k, x.row_len());
    assert_eq!(x.rows() * k, rows.pairs(), "enter_experts: rows of x");
    assert_eq!((out.rows(), out.row_len()), (rows.pairs(), width), "enter_experts: out");
    match &out.device().clone() {
        Device::Cpu(cpu) => {
            cpu_rows::enter(cpu, x.as_f32(), rows.places.as_i32(), [k, width], out.as_f32_mut());
        }
        Device::Cuda(cuda) => cuda_moe::enter(cuda, x, rows, k, out),
    }
}

pub fn expert_linear(x: &Tensor, w: &MatrixBatch, rows: &mut ExpertRows, out: &mut Tensor) {
    let ExpertRowSizes { experts, max_width, .. } = rows.sizes;
    assert_eq!(w.count(), experts, "expert_linear: experts of the weights");
    assert!(w.k() <= max_width, "expert_linear: a width of {} exceeds the room", w.k());
    assert_eq!((x.rows(), x.row_len()), (rows.pairs(), w.k()), "expert_linear: x");
    assert_eq!((out.rows(), out.row_len()), (rows.pairs(), w.n()), "expert_linear: out");
    if x.is_empty() {
        return;
    }
    match &out.device().clone() {
        Device::Cpu(cpu) => {
            let groups = groups(&mut rows.starts, experts);
            let rounded = rows.rounded.as_words_mut();
            cpu_rows::linear(cpu, x.as_f32(), w, &groups, rounded, out.as_f32_mut());
        }
        Device::Cuda(cuda) => cuda_moe::expert_linear(cuda, x, w, rows, out),
    }
}

pub fn combine_experts(made: &Tensor, weights: &Tensor, rows: &ExpertRows, out: &mut Tensor) {
    let (k, width) = (rows.sizes.top_k, out.row_len());
    assert_eq!((made.rows(), made.row_len()), (rows.pairs(), width), "combine_experts: rows");
    assert_eq!((weights.len(), out.rows() * k), (rows.pairs(), rows.pairs()), "combine_experts: weights");
    match &out.device().clone() {
        Device::Cpu(cpu) => {
            let (made, places) = (made.as_f32(), rows.places.as_i32());
            cpu_rows::combine(cpu, made, places, (weights.as_f32(), k), (out.as_f32_mut(), width));
        }
        Device::Cuda(cuda) => cuda_moe::combine(cuda, made, &rows.places, (weights, k), out),
    }
}

/// On the CPU.
fn groups(starts: &mut Tensor, experts: usize) -> Groups<'_> {
    let (starts, used) = starts.as_i32_mut().split_at_mut(experts + 1);
    Groups::new(starts, used)
}
