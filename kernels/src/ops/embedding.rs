//! embedding: out[t, :] = table[ids[t], :]
//! table [V, D] f32 | bf16 | f16 · out [T, D] f32 · moves (size + 4)·T·D bytes

use super::not_on_cuda;
use crate::cpu::rows;
use crate::{Device, Tensor};

pub fn embedding(table: &Tensor, ids: &[u32], out: &mut Tensor) {
    assert_eq!(out.rows(), ids.len(), "embedding: rows");
    assert_eq!(out.row_len(), table.row_len(), "embedding: width");
    let size = table.rows();
    assert!(ids.iter().all(|&id| (id as usize) < size), "embedding: an id is not below {size}");
    match &out.device().clone() {
        Device::Cpu(cpu) => rows::gather(cpu, table, ids, out),
        Device::Cuda(_) => not_on_cuda("embedding"),
    }
}
