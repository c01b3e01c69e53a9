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

/// Which of a token's three positions (time, row, column) a pair of dimensions turns by: `mrope_section` of multimodal rotary embedding.
/// The numbers of pairs add up to R/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeSections {
    /// So many pairs turn by the time, the next ones by the row, the last by the column.
    Consecutive([usize; 3]),
    /// Time, row, column in turns from the first pair on, while row and column have pairs left; all others turn by the time.
    Interleaved([usize; 3]),
}

impl RopeSections {
    /// Positions of a token.
    pub const AXES: usize = 3;

    pub fn num_pairs(&self) -> usize {
        let (Self::Consecutive(sizes) | Self::Interleaved(sizes)) = self;
        sizes.iter().sum()
    }

    /// Time 0, row 1, column 2.
    pub fn axis(&self, pair: usize) -> usize {
        match self {
            Self::Consecutive([time, row, _]) => usize::from(pair >= *time) + usize::from(pair >= time + row),
            Self::Interleaved(sizes) => {
                let axis = pair % Self::AXES;
                if pair < Self::AXES * sizes[axis] { axis } else { 0 }
            }
        }
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
