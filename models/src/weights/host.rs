//! A tensor of floats in the memory of the host.

use crate::content::release_rows;
use kernels::{DType, FileMap, HostTensor, WeightRows};
use std::borrow::Cow;
use std::ops::Range;

/// One tensor as it is stored, little endian: borrowed from the mapped file, or made up.
#[derive(Debug)]
pub struct HostWeights<'a> {
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
    pub(super) data: Cow<'a, [u8]>,
    /// Where the data is, if that is a map.
    pub(super) map: Option<&'a FileMap>,
}

impl HostWeights<'_> {
    pub fn view(&self) -> HostTensor<'_> {
        HostTensor { dtype: self.dtype, shape: &self.shape, data: &self.data }
    }

    /// All values, widened.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            DType::F32 => {
                self.data.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
            }
            DType::BF16 => {
                self.data.as_chunks::<2>().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect()
            }
            DType::F16 => {
                self.data.as_chunks::<2>().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect()
            }
            other => unreachable!("weights are floats, not {other:?}"),
        }
    }
}

/// A matrix, or a vector as a matrix of one row.
impl WeightRows for HostWeights<'_> {
    fn shape(&self) -> [usize; 2] {
        self.view().shape()
    }

    fn read_f32(&self, row: usize, out: &mut [f32]) {
        WeightRows::read_f32(&self.view(), row, out);
    }

    fn done(&self, rows: Range<usize>) {
        release_rows(self.map, &self.data, self.shape[0], rows);
    }
}
