//! Operands of what turns pairs of dimensions by the position of a token.

use crate::{DType, Device, Index, Tensor};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    Half,
    Interleaved,
}

/// Cosines and sines by position, each `[P, R/2]` f32. The fields are open to tables that are filled for each picture.
#[derive(Debug)]
pub struct RopeTable {
    pub cos: Tensor,
    pub sin: Tensor,
}

impl RopeTable {
    /// `angle(position, i)`, i below `half`, gives cosine and sine.
    pub fn new(
        device: &Device,
        num_positions: usize,
        half: usize,
        angle: &dyn Fn(usize, usize) -> (f32, f32),
    ) -> Self {
        let angles = (0..num_positions * half).map(|at| angle(at / half, at % half));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.unzip();
        let shape = [num_positions, half];
        Self { cos: Tensor::from_f32(device, &shape, &cos), sin: Tensor::from_f32(device, &shape, &sin) }
    }

    /// To be filled later.
    pub fn zeros(device: &Device, num_positions: usize, half: usize) -> Self {
        let shape = [num_positions, half];
        Self {
            cos: Tensor::zeros(device, DType::F32, &shape),
            sin: Tensor::zeros(device, DType::F32, &shape),
        }
    }

    pub fn bytes(num_positions: usize, half: usize) -> u64 {
        2 * Tensor::bytes_of(DType::F32, &[num_positions, half])
    }
}

/// By which angles, and which dimensions make a pair.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// `[positions, P / 2]`
    pub table: &'a RopeTable,
    pub positions: Index<'a>,
    pub layout: RopeLayout,
}
