//! embedding: out[t, :] = table[ids[t], :]
//! table [V, D] f32 | bf16 | f16 · out [T, D] f32 · moves (size + 4)·T·D bytes

use crate::cpu::rows;
use crate::cuda::rows as cuda_rows;
use crate::{Device, Index, Tensor};

pub fn embedding<'a>(table: &Tensor, ids: impl Into<Index<'a>>, out: &mut Tensor) {
    let index = ids.into();
    let ids = index.as_slice();
    assert_eq!(out.rows(), ids.len(), "embedding: rows");
    assert_eq!(out.row_len(), table.row_len(), "embedding: width");
    let size = table.rows();
    assert!(ids.iter().all(|&id| (id as usize) < size), "embedding: an id is not below {size}");
    match &out.device().clone() {
        Device::Cpu(cpu) => rows::gather(cpu, table, ids, out),
        Device::Cuda(cuda) => {
            let rows = cuda_rows::Move { src_rows: Some(index), dst_rows: None, count: ids.len() };
            cuda_rows::move_rows(cuda, table, table.row_len(), &rows, out);
        }
    }
}
