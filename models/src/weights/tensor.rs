//! A matrix of a checkpoint in whatever form it is stored: what panels are packed from.

use super::experts::Slice;
use super::fp8::Fp8;
use super::gguf::GgufRows;
use super::grouped::Grouped;
use super::host::HostWeights;
use super::mxfp4::Mxfp4Rows;
use kernels::{GroupedRow, WeightRows, WeightType};
use std::ops::Range;

/// `[N, K]`, borrowed from the files.
pub enum WeightTensor<'a> {
    Floats(HostWeights<'a>),
    /// Whole numbers in groups that have a scale.
    Grouped(Grouped<'a>),
    /// Small floats in blocks that have a scale.
    Fp8(Fp8<'a>),
    /// Blocks of a GGUF file.
    Blocks(GgufRows<'a>),
    /// An expert's part of tensors in MXFP4.
    Mxfp4(Mxfp4Rows<'a>),
    /// An expert's part of a tensor.
    Slice(Slice<'a>),
}

impl WeightTensor<'_> {
    /// All values, row by row.
    pub fn to_f32(&self) -> Vec<f32> {
        let [n, k] = self.shape();
        let mut values = vec![0.0; n * k];
        for (row, out) in values.chunks_exact_mut(k).enumerate() {
            self.read_f32(row, out);
        }
        values
    }
}

impl WeightRows for WeightTensor<'_> {
    fn shape(&self) -> [usize; 2] {
        match self {
            Self::Floats(weights) => WeightRows::shape(weights),
            Self::Grouped(weights) => weights.shape(),
            Self::Fp8(weights) => weights.shape(),
            Self::Blocks(weights) => weights.shape(),
            Self::Mxfp4(weights) => weights.shape(),
            Self::Slice(weights) => weights.shape(),
        }
    }

    fn read_f32(&self, row: usize, out: &mut [f32]) {
        match self {
            Self::Floats(weights) => weights.read_f32(row, out),
            Self::Grouped(weights) => weights.read_f32(row, out),
            Self::Fp8(weights) => weights.read_f32(row, out),
            Self::Blocks(weights) => weights.read_f32(row, out),
            Self::Mxfp4(weights) => weights.read_f32(row, out),
            Self::Slice(weights) => weights.read_f32(row, out),
        }
    }

    fn read_groups(&self, row: usize, stored_as: WeightType, out: &mut GroupedRow) -> bool {
        match self {
            Self::Grouped(weights) => weights.read_groups(row, stored_as, out),
            Self::Blocks(weights) => weights.read_groups(row, stored_as, out),
            Self::Mxfp4(weights) => weights.read_groups(row, stored_as, out),
            Self::Floats(_) | Self::Fp8(_) | Self::Slice(_) => false,
        }
    }

    fn done(&self, rows: Range<usize>) {
        match self {
            Self::Floats(weights) => weights.done(rows),
            Self::Blocks(weights) => weights.done(rows),
            // Rows are not always apart in these: all go when all are packed.
            Self::Grouped(_) | Self::Fp8(_) | Self::Mxfp4(_) | Self::Slice(_) => {}
        }
    }
}
